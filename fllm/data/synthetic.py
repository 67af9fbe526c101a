"""A fabricated cohort in the layout of MIMIC-IV-Ext-CDM v1.1, so that everything runs without clinical data.

No number and no word comes from MIMIC: probabilities are rounded judgement, phrases were written for this project.
Identifiers start at 90,000,000 and note ids with ``SYN-``, so that a fabricated case cannot be taken for a real one.
Equal seeds give byte-identical files.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from device_models.errors import InputError
from fllm.data.cdm import DIAGNOSES, Cohort, load_cohort
from fllm.data.cdm_files import COLUMNS
from fllm.data.draws import keyed_generator
from fllm.data.synthetic_card import data_card
from fllm.data.synthetic_imaging import write_reports
from fllm.data.synthetic_labs import draw_lab_rows, has_urinalysis, lab_mapping_rows
from fllm.data.synthetic_outcomes import draw_cultures, draw_outcomes
from fllm.data.synthetic_patients import Patient, assign_hospitals, draw_hospitals, draw_labels, draw_patient
from fllm.data.synthetic_realistic import filler_lab_rows, lengthen_history
from fllm.data.synthetic_spec import specification
from fllm.data.synthetic_tables import DEFAULT_CASES, LABEL_CONCENTRATION, SyntheticRecipe, SyntheticTables
from fllm.data.synthetic_text import write_examination, write_history

__all__ = [
    "DATA_CARD",
    "DEFAULT_CASES",
    "LABEL_CONCENTRATION",
    "SyntheticTables",
    "load_synthetic",
    "synthesize_cohort",
    "write_cohort",
]

DATA_CARD = "DATA_CARD.md"
"""Name of the notice that is written beside the tables."""

Rows = dict[str, list[tuple[str | int, ...]]]


def _admission_ids(n_cases: int, seed: int) -> list[int]:
    rule = specification()["hadm_id"]
    rng = keyed_generator(seed, "hadm_id")
    steps = rng.integers(1, rule["step_max"], size=n_cases, endpoint=True)
    return [int(rule["start"] + total) for total in steps.cumsum()]


def _patients(recipe: SyntheticRecipe) -> tuple[Patient, ...]:
    seed = recipe.seed
    labels = draw_labels(recipe.n_cases, seed)
    hospitals = draw_hospitals(recipe.n_hospitals, seed)
    treated_at = assign_hospitals(labels, recipe.n_hospitals, seed, recipe.label_concentration)
    pairs = zip(labels, treated_at, strict=True)
    return tuple(draw_patient(index, label, hospitals[at], seed) for index, (label, at) in enumerate(pairs))


def _add_inputs(rows: Rows, hadm_id: int, patient: Patient, recipe: SyntheticRecipe) -> None:
    """Add what a model may see: history, examination, laboratory, cultures, radiology."""
    seed = recipe.seed
    history, labs = write_history(patient, seed), draw_lab_rows(hadm_id, patient, seed)
    if recipe.realistic:
        history = lengthen_history(history, patient, seed)
        labs += filler_lab_rows(hadm_id, patient, seed, urinalysis=has_urinalysis(labs))
    rows["history_of_present_illness.csv"].append((hadm_id, history))
    rows["physical_examination.csv"].append((hadm_id, write_examination(patient, seed)))
    rows["laboratory_tests.csv"] += labs
    rows["microbiology.csv"] += draw_cultures(hadm_id, patient, seed)
    rows["radiology_reports.csv"] += write_reports(hadm_id, patient, seed)


def _add_outcomes(rows: Rows, hadm_id: int, patient: Patient, seed: int) -> None:
    """Add what no model may see: the discharge diagnosis, the codes and the procedure."""
    outcomes = draw_outcomes(patient, seed)
    rows["discharge_diagnosis.csv"].append((hadm_id, outcomes.discharge_diagnosis))
    rows["icd_diagnosis.csv"] += [(hadm_id, title) for title in outcomes.icd_titles]
    if outcomes.procedure is not None:
        rows["discharge_procedures.csv"].append((hadm_id, outcomes.procedure))
    if outcomes.procedure_code is not None:
        rows["icd_procedures.csv"].append((hadm_id, *outcomes.procedure_code))


def synthesize_cohort(
    n_cases: int = DEFAULT_CASES,
    *,
    n_hospitals: int = 4,
    seed: int = 0,
    label_concentration: float = LABEL_CONCENTRATION,
    realistic: bool = False,
    progress: Callable[[int], None] | None = None,
) -> SyntheticTables:
    """Make the tables of a fabricated cohort.

    Args:
        n_cases: Number of cases.
        n_hospitals: Number of hospitals.
        seed: Seed of every draw.
        label_concentration: How alike the hospitals' mixes of diagnoses are [1].
        realistic: Whether histories and laboratory lists are about as long as in the real release.
        progress: Called after each case with the number of cases made so far.

    Raises:
        InputError: If there are no cases, too many, more hospitals than cases, or the concentration is not positive.
    """
    recipe = SyntheticRecipe(n_cases, n_hospitals, seed, label_concentration, realistic)
    ids, patients = _admission_ids(n_cases, seed), _patients(recipe)
    rows: Rows = {name: [] for name in COLUMNS}
    for done, (hadm_id, patient) in enumerate(zip(ids, patients, strict=True), start=1):
        _add_inputs(rows, hadm_id, patient, recipe)
        _add_outcomes(rows, hadm_id, patient, seed)
        if progress is not None:
            progress(done)
    itemids = [int(row[1]) for row in rows["laboratory_tests.csv"]]
    rows["lab_test_mapping.csv"] += lab_mapping_rows(itemids, realistic=realistic)
    of_label = {name: [i for i, p in zip(ids, patients, strict=True) if p.label == name] for name in DIAGNOSES}
    hospitals = {i: p.hospital.name for i, p in zip(ids, patients, strict=True)}
    return SyntheticTables(recipe, rows, of_label, hospitals, patients)


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
    realistic: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a fabricated cohort as the files of the real release, with a data card that says what they are.

    The arguments are those of :func:`synthesize_cohort`.

    Returns:
        The folder, which is made when absent.

    Raises:
        InputError: If the sizes are impossible, or the folder already holds files of another cohort.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError("the output folder is not empty", where=str(path), remedy="name a new or an empty folder")
    tables = synthesize_cohort(
        n_cases,
        n_hospitals=n_hospitals,
        seed=seed,
        label_concentration=label_concentration,
        realistic=realistic,
        progress=progress,
    )
    path.mkdir(parents=True, exist_ok=True)
    for name, columns in COLUMNS.items():
        _write_csv(path / name, columns, tables.rows[name])
    _write_text(path / "pathology_ids.json", json.dumps(tables.labels, sort_keys=True) + "\n")
    by_id = {str(hadm_id): name for hadm_id, name in tables.hospitals.items()}
    _write_text(path / "hospital_ids.json", json.dumps(by_id, sort_keys=True, indent=0) + "\n")
    _write_text(path / DATA_CARD, data_card(tables))
    return path


def load_synthetic(
    n_cases: int = DEFAULT_CASES,
    *,
    n_hospitals: int = 4,
    seed: int = 0,
    label_concentration: float = LABEL_CONCENTRATION,
    realistic: bool = False,
) -> Cohort:
    """Make a fabricated cohort and read it back with :func:`fllm.data.cdm.load_cohort`, through a temporary folder.

    Raises:
        InputError: If the sizes are impossible.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / f"synthetic-{n_cases}-cases-{n_hospitals}-hospitals-seed-{seed}"
        write_cohort(
            folder,
            n_cases,
            n_hospitals=n_hospitals,
            seed=seed,
            label_concentration=label_concentration,
            realistic=realistic,
        )
        return load_cohort(folder)
