"""Compile the C kernels with the system's compiler at their first use, and keep them in the user's cache directory.

Nothing here raises when there is no compiler or it fails: the caller is told the reason and takes the slower path.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("forward.c", "backward.c", "digits.c", "decode.c", "bit_serial.c", "ring.c", "codes.c", "peak.c")
"""Those that take longest first: they are compiled side by side."""
HEADERS = ("attention.h", "vectors.h", "tiles.h", "aged.h", "scores.h", "codes.h", "arrays.h", "chunks.h")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-fvisibility=hidden")
OPENMP = "-fopenmp"
TIMEOUT_S = 300

# Each feature by name: `-march=native` of a compiler older than the processor leaves out what it does not know
AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2")
AVX512 = (*AVX2, "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mprefer-vector-width=512")
VARIANTS = {
    "AVX-512 VNNI": (
        (*AVX512, "-mavx512vnni"),
        {"avx2", "fma", "bmi2", "avx512f", "avx512vl", "avx512dq", "avx512bw", "avx512_vnni"},
    ),
    "AVX-512": (AVX512, {"avx2", "fma", "bmi2", "avx512f", "avx512vl", "avx512dq", "avx512bw"}),
    "AVX2": (AVX2, {"avx2", "fma", "bmi2"}),
    "generic": ((), set()),
}
"""Compiler flags and the processor features they need, the fastest first."""


@dataclass(frozen=True)
class Built:
    """A loaded library.

    Attributes:
        library: The functions.
        variant: Its key in :data:`VARIANTS`.
        compiler: First line of the compiler's version.
    """

    library: ctypes.CDLL
    variant: str
    compiler: str

    def __str__(self) -> str:
        return f"{self.variant}, {self.compiler}"


def variants() -> list[str]:
    """Return the variants that this processor runs, the fastest first."""
    features = _features()
    return [name for name, (_, needed) in VARIANTS.items() if needed <= features]


@functools.cache
def load(variant: str | None = None) -> Built | str:
    """Return the library of a variant, compiled if need be, or the reason why there is none.

    Args:
        variant: Key of :data:`VARIANTS`; None is the fastest that the processor runs and the compiler knows.
    """
    compiler = _compiler()
    if compiler is None:
        return f"no C compiler: none of {', '.join(COMPILERS)} was found"
    reason = ""
    for name in [variant] if variant else variants():
        try:
            return _load(name, compiler, _version(compiler))
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            reason = f"{compiler} made no kernel: {detail.strip()[-500:]}"
    return reason


def compiles_at_first_use() -> bool:
    """Say whether the kernels of this processor are still to be compiled, which takes a quarter of a minute."""
    compiler = _compiler()
    if compiler is None:
        return False
    try:
        return not _path(variants()[0], _version(compiler)).exists()
    except (OSError, subprocess.SubprocessError, IndexError):
        return False


def _compiler() -> str | None:
    return None if os.name == "nt" else next((found for found in map(shutil.which, COMPILERS) if found), None)


def _version(compiler: str) -> str:
    return _output([compiler, "--version"]).splitlines()[0].strip()


def _path(variant: str, version: str) -> Path:
    """Return where the library of a variant is kept: named after all that goes into it."""
    here = Path(__file__).parent
    digest = hashlib.sha256(repr((version, FLAGS, VARIANTS[variant][0], platform.machine())).encode())
    for source in (*HEADERS, *SOURCES):
        digest.update((here / source).read_bytes())
    return cache_directory() / f"attention-{digest.hexdigest()[:24]}.so"


def _load(variant: str, compiler: str, version: str) -> Built:
    path = _path(variant, version)
    if path.exists():
        with contextlib.suppress(OSError):  # a damaged file is made once more
            return Built(ctypes.CDLL(str(path)), variant, version)
    _compile([compiler, *FLAGS, *VARIANTS[variant][0]], path)
    return Built(ctypes.CDLL(str(path)), variant, version)


def _compile(command: list[str], path: Path) -> None:
    """Compile into a folder of our own and move it into place: other processes see the whole library or none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "made.so"
        try:
            _compile_into(made, [*command, OPENMP])
        except subprocess.CalledProcessError:  # a compiler without OpenMP: one thread
            _compile_into(made, command)
        made.replace(path)


def _compile_into(made: Path, command: list[str]) -> None:
    """Compile the sources side by side and link them."""
    sources = [Path(__file__).parent / source for source in SOURCES]
    objects = [made.with_name(f"{source.stem}.o") for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        calls = ([*command, "-c", "-o", str(out), str(source)] for source, out in zip(sources, objects, strict=True))
        list(workers.map(_output, calls))
    _output([*command, "-shared", "-o", str(made), *map(str, objects), "-lm"])


def cache_directory() -> Path:
    """Return where compiled kernels are kept: the platform's place for what can be made again."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hwsim"
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "hwsim"


def _features() -> set[str]:
    """Return the features that an x86 processor under Linux reports; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return set(flags.partition(":")[2].split())


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.stdout
