"""What reading and checking a cohort of the real size takes: seconds, and the most memory.

Run: ``python benchmarks/clinical_data.py``. Writes a folder with the rows and about the bytes of MIMIC-IV-Ext-CDM v1.1,
filled with meaningless words, and measures each step in a process of its own, so that the peak is that of the step. The
first line is a process that only imports the loader.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fllm.data.cdm_cases import PUBLISHED_COUNTS
from fllm.data.cdm_check import PUBLISHED_ROWS
from fllm.data.cdm_files import COLUMNS
from fllm.data.draws import keyed_generator

FIRST_ID, CASES, TESTS, REPEATS = 90_000_001, sum(PUBLISHED_COUNTS.values()), 480, 3

STEPS = {
    "imports alone": "pass",
    "load_cohort": "load_cohort(sys.argv[1])",
    "check_folder": "check_folder(sys.argv[1])",
}
CHILD = """
import resource, sys, time
from fllm.data import load_cohort
from fllm.data.cdm_check import check_folder
began = time.perf_counter(), time.process_time()
{step}
print(time.perf_counter() - began[0], time.process_time() - began[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    """Write the folder, and measure each step as often as needed to see the noise."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        began = time.perf_counter()
        write_folder(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{CASES} cases, {size / 1e6:.1f} MB, written in {time.perf_counter() - began:.1f} s")
        for name, step in STEPS.items():
            measured = [_measured(step, folder) for _ in range(REPEATS)]
            wall, cpu = (" ".join(f"{each[at]:.2f}" for each in measured) for at in (0, 1))
            print(f"{name:<14} {wall} s ({cpu} s of the processor), at most {max(each[2] for each in measured):.0f} MB")


def _measured(step: str, folder: Path) -> tuple[float, float, float]:
    """Return seconds, seconds of the processor and peak memory [MB] of a step in a new process."""
    command = [sys.executable, "-c", CHILD.format(step=step), str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    per_unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kB on Linux
    return float(printed[0]), float(printed[1]), float(printed[2]) / per_unit


def write_folder(folder: Path) -> None:
    """Write all tables and the labels."""
    ids = list(range(FIRST_ID, FIRST_ID + CASES))
    rng = keyed_generator(0, "benchmark of the loader")
    letters = "".join(chr(code) for code in rng.integers(ord("a"), ord("z") + 1, size=100_000))
    words = " ".join(letters[at : at + 6] for at in range(0, len(letters), 6))

    def text(at: int, length: int) -> str:
        start = (at * 7919) % (len(words) - length)
        return words[start : start + length]

    labels = [name for name, count in PUBLISHED_COUNTS.items() for _ in range(count)]
    for name, row in _rows(ids, labels, text).items():
        count = PUBLISHED_ROWS[name]
        _write(folder / name, COLUMNS[name], (row(at) for at in range(count)))
    by_label = {name: [i for i, label in zip(ids, labels, strict=True) if label == name] for name in PUBLISHED_COUNTS}
    (folder / "pathology_ids.json").write_text(json.dumps(by_label), encoding="utf-8")


def _rows(ids: Sequence[int], labels: Sequence[str], text: Callable[[int, int], str]) -> dict[str, Callable]:
    """Return for each table what makes its row of a number."""

    def of(at: int) -> int:
        return ids[at % CASES]

    return {
        "history_of_present_illness.csv": lambda at: (of(at), f" ___ is a 50 year old with {text(at, 1050)}"),
        "physical_examination.csv": lambda at: (of(at), text(at, 400)),
        "laboratory_tests.csv": lambda at: (of(at), 50_000 + at // CASES, f"{at % 97}.5 mEq/L", "1.0", "90.0"),
        "lab_test_mapping.csv": lambda at: (f"{50_000 + at}.0", f"Test {at}", "Blood", "Chemistry", "9.0", f"[{at}]"),
        "radiology_reports.csv": lambda at: (
            of(at), f"SYN-{at}", "CT", "Abdomen", "CT ABD & PELVIS", f"FINDINGS:\n{text(at, 1140)}\n\n",
        ),
        "microbiology.csv": lambda at: (ids[at % 1856], 90_201, f"NO GROWTH. {text(at, 24)}", 70_012),
        "discharge_diagnosis.csv": lambda at: (of(at), f"{labels[at]} {text(at, 35)}"),
        "icd_diagnosis.csv": lambda at: (of(at), text(at, 44)),
        "discharge_procedures.csv": lambda at: (of(at), text(at, 33)),
        "icd_procedures.csv": lambda at: (of(at), "4701", text(at, 42), 9),
    }  # fmt: skip


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
