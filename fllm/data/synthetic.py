"""A fabricated cohort in the layout of MIMIC-IV-Ext-CDM v1.1, so that everything runs without clinical data.

No number and no word comes from MIMIC: probabilities are rounded judgement, phrases were written for this project.
Identifiers start at 90,000,000 and note ids with ``SYN-``, so that a fabricated case cannot be taken for a real one.
Equal seeds give byte-identical files.

Approximation: microbiology, procedures and ICD tables are left out; no loader of ours reads them.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_models.errors import InputError
from fllm.data.cdm import DIAGNOSES, Cohort, load_cohort
from fllm.data.cdm_files import COLUMNS
from fllm.data.draws import chance, draw_from, keyed_generator, pick
from fllm.data.synthetic_imaging import ReportRow, write_reports
from fllm.data.synthetic_labs import LabRow, draw_lab_rows, lab_mapping_rows
from fllm.data.synthetic_patients import assign_hospitals, draw_hospitals, draw_labels, draw_patient
from fllm.data.synthetic_spec import specification
from fllm.data.synthetic_text import write_examination, write_history

DEFAULT_CASES = 2400
"""Size of the real release."""

LABEL_CONCENTRATION = 10.0
"""How alike the hospitals' mixes of diagnoses are: Dirichlet concentration; 0.1 is extreme, 100 nearly none."""

_MOST_CASES = 250_000
_README = """SYNTHETIC DATA - EVERYTHING HERE IS FABRICATED

Written by fllm (fllm.data.write_cohort) with n_cases={n_cases}, n_hospitals={n_hospitals}, seed={seed},
label_concentration={label_concentration}.
They have the layout of MIMIC-IV-Ext-CDM v1.1 but contain no MIMIC content and describe no real person.
The probabilities behind them are rounded judgement, not epidemiology: draw no medical conclusion from them.
All hadm_ids are 90000000 or above and all note ids start with SYN-, which no real record has.
hospital_ids.json is an addition for federated learning; the real release has no hospitals.
"""


@dataclass(frozen=True)
class SyntheticTables:
    """Rows of the CSV files by file name, in the order of :data:`fllm.data.cdm_files.COLUMNS`, and the two JSON tables.

    Args:
        rows: File name -> rows.
        labels: Diagnosis -> admissions.
        hospitals: Admission -> hospital name.
        readme: The notice that travels with the files.
    """

    rows: dict[str, list[tuple[str | int, ...]]]
    labels: dict[str, list[int]]
    hospitals: dict[int, str]
    readme: str


def _discharge_diagnosis(index: int, label: str, seed: int) -> str:
    table = specification()["discharge_diagnosis"]
    rng = keyed_generator(seed, "discharge", index)
    primary = draw_from(rng, table[label])
    extra = table["extra_lines"]
    return f"{primary}\n{pick(rng, extra['pool'])}" if chance(rng, extra["p"]) else primary


def _admission_ids(n_cases: int, seed: int) -> list[int]:
    rule = specification()["hadm_id"]
    rng = keyed_generator(seed, "hadm_id")
    steps = rng.integers(1, rule["step_max"], size=n_cases, endpoint=True)
    return [int(rule["start"] + total) for total in steps.cumsum()]


def _check_sizes(n_cases: int, n_hospitals: int) -> None:
    if not 1 <= n_cases <= _MOST_CASES:
        raise InputError("number of cases", expected=f"1 to {_MOST_CASES}", received=n_cases)
    if not 1 <= n_hospitals <= n_cases:
        raise InputError("number of hospitals", expected=f"1 to the number of cases, {n_cases}", received=n_hospitals)


def synthesize_cohort(
    n_cases: int = DEFAULT_CASES,
    *,
    n_hospitals: int = 4,
    seed: int = 0,
    label_concentration: float = LABEL_CONCENTRATION,
) -> SyntheticTables:
    """Make the tables of a fabricated cohort.

    Raises:
        InputError: If there are no cases, too many, more hospitals than cases, or the concentration is not positive.
    """
    _check_sizes(n_cases, n_hospitals)
    if not 0.0 < label_concentration < 1e6:
        raise InputError("label concentration", expected="a number above 0, below 1e6", received=label_concentration)
    labels = draw_labels(n_cases, seed)
    hospitals = draw_hospitals(n_hospitals, seed)
    treated_at = assign_hospitals(labels, n_hospitals, seed, label_concentration)
    ids = _admission_ids(n_cases, seed)
    rows: dict[str, list[tuple[str | int, ...]]] = {name: [] for name in COLUMNS}
    labs: list[LabRow] = []
    reports: list[ReportRow] = []
    for index, (hadm_id, label, at) in enumerate(zip(ids, labels, treated_at, strict=True)):
        patient = draw_patient(index, label, hospitals[at], seed)
        rows["history_of_present_illness.csv"].append((hadm_id, write_history(patient, seed)))
        rows["physical_examination.csv"].append((hadm_id, write_examination(patient, seed)))
        rows["discharge_diagnosis.csv"].append((hadm_id, _discharge_diagnosis(index, label, seed)))
        labs += draw_lab_rows(hadm_id, patient, seed)
        reports += write_reports(hadm_id, patient, seed)
    rows["laboratory_tests.csv"].extend(labs)
    rows["radiology_reports.csv"].extend(reports)
    rows["lab_test_mapping.csv"].extend(lab_mapping_rows(labs))
    return SyntheticTables(
        rows=rows,
        labels={name: [i for i, label in zip(ids, labels, strict=True) if label == name] for name in DIAGNOSES},
        hospitals={i: hospitals[at].name for i, at in zip(ids, treated_at, strict=True)},
        readme=_README.format(
            n_cases=n_cases, n_hospitals=n_hospitals, seed=seed, label_concentration=label_concentration
        ),
    )


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str | int]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)


def write_cohort(
    folder: str | Path,
    n_cases: int = DEFAULT_CASES,
    *,
    n_hospitals: int = 4,
    seed: int = 0,
    label_concentration: float = LABEL_CONCENTRATION,
) -> Path:
    """Write a fabricated cohort as the files of the real release, and a README that says what they are.

    Returns:
        The folder, which is made when absent.

    Raises:
        InputError: If the sizes are impossible, or the folder already holds files of another cohort.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError("the output folder is not empty", where=str(path), remedy="name a new or an empty folder")
    tables = synthesize_cohort(n_cases, n_hospitals=n_hospitals, seed=seed, label_concentration=label_concentration)
    path.mkdir(parents=True, exist_ok=True)
    for name, columns in COLUMNS.items():
        _write_csv(path / name, columns, tables.rows[name])
    _write_text(path / "pathology_ids.json", json.dumps(tables.labels, sort_keys=True) + "\n")
    by_id = {str(hadm_id): name for hadm_id, name in tables.hospitals.items()}
    _write_text(path / "hospital_ids.json", json.dumps(by_id, sort_keys=True, indent=0) + "\n")
    _write_text(path / "README.txt", tables.readme)
    return path


def load_synthetic(
    n_cases: int = DEFAULT_CASES,
    *,
    n_hospitals: int = 4,
    seed: int = 0,
    label_concentration: float = LABEL_CONCENTRATION,
) -> Cohort:
    """Make a fabricated cohort and read it back with :func:`fllm.data.cdm.load_cohort`, through a temporary folder.

    Raises:
        InputError: If the sizes are impossible.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / f"synthetic-{n_cases}-cases-{n_hospitals}-hospitals-seed-{seed}"
        return load_cohort(
            write_cohort(folder, n_cases, n_hospitals=n_hospitals, seed=seed, label_concentration=label_concentration)
        )
