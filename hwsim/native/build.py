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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCES = ("forward.c", "backward.c", "decode.c", "codes.c", "ring.c", "bit_serial.c", "digits.c", "peak.c")
HEADERS = ("attention.h", "vectors.h", "tiles.h", "aged.h", "scores.h", "codes.h", "arrays.h")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", "-fvisibility=hidden")
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
    compiler = next((found for found in map(shutil.which, COMPILERS) if found), None)
    if os.name == "nt" or compiler is None:
        return f"no C compiler: none of {', '.join(COMPILERS)} was found"
    reason = ""
    for name in [variant] if variant else variants():
        try:
            version = _output([compiler, "--version"]).splitlines()[0].strip()
            return _load(name, compiler, version)
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            reason = f"{compiler} made no kernel: {detail.strip()[-500:]}"
    return reason


def _load(variant: str, compiler: str, version: str) -> Built:
    here = Path(__file__).parent
    flags = (*FLAGS, *VARIANTS[variant][0])
    digest = hashlib.sha256(repr((version, flags, platform.machine())).encode())
    for source in (*HEADERS, *SOURCES):
        digest.update((here / source).read_bytes())
    path = cache_directory() / f"attention-{digest.hexdigest()[:24]}.so"
    if path.exists():
        with contextlib.suppress(OSError):  # a damaged file is made once more
            return Built(ctypes.CDLL(str(path)), variant, version)
    _compile(compiler, flags, [here / source for source in SOURCES], path)
    return Built(ctypes.CDLL(str(path)), variant, version)


def _compile(compiler: str, flags: Sequence[str], sources: list[Path], path: Path) -> None:
    """Compile into a file of our own and move it into place: other processes see the whole library or none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    command = [compiler, *flags, "-o", made, *map(str, sources), "-lm"]
    try:
        try:
            _output([*command, OPENMP])
        except subprocess.CalledProcessError:  # a compiler without OpenMP: one thread
            _output(command)
        Path(made).replace(path)
    finally:
        with contextlib.suppress(OSError):
            Path(made).unlink(missing_ok=True)


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
