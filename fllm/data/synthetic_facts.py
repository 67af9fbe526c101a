"""Counts over the tables of a fabricated cohort, as its data card shows them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fllm.data.cdm_cases import DIAGNOSES
from fllm.data.synthetic_patients import Patient
from fllm.data.synthetic_spec import difficulty, specification
from fllm.data.synthetic_tables import SyntheticTables

NOTHING = "-"
Cells = tuple[str, ...]

_HISTORY, _LABS = "history", "laboratory tests"
_TEXTS = {
    "history_of_present_illness.csv": _HISTORY,
    "physical_examination.csv": "examination",
    "radiology_reports.csv": "all radiology reports together",
}
_LISTS = {
    "laboratory_tests.csv": _LABS,
    "microbiology.csv": "cultures",
    "radiology_reports.csv": "radiology reports",
    "icd_diagnosis.csv": "coded diagnoses",
}


@dataclass(frozen=True)
class Facts:
    """What is counted once and shown in several places.

    Args:
        lengths: What -> diagnosis -> one number for each case.
        shares: What -> diagnosis -> share of the cases [1]; None without cases.
        history_length: Median length of a history [characters].
        labs_per_case: Median number of laboratory tests [1].
        majority: Share of the most frequent diagnosis [1].
        hospital_majority: Share of cases with the most frequent diagnosis of their hospital [1].
    """

    lengths: dict[str, dict[str, list[int]]]
    shares: dict[str, dict[str, float | None]]
    history_length: float
    labs_per_case: float
    majority: float
    hospital_majority: float


def _lengths(tables: SyntheticTables) -> dict[str, dict[int, int]]:
    """Return what -> admission -> number, zeros included."""
    rows, found = tables.rows, {}
    for name, what in _TEXTS.items():
        characters = dict.fromkeys(tables.hospitals, 0)
        for row in rows[name]:
            characters[int(row[0])] += len(str(row[-1]))
        found[what] = characters
    for name, what in _LISTS.items():
        counted = Counter(int(row[0]) for row in rows[name])
        found[what] = {hadm_id: counted[hadm_id] for hadm_id in tables.hospitals}
    return found


def _having(tables: SyntheticTables) -> dict[str, set[int]]:
    """Return what -> admissions that have it."""
    rows, mask = tables.rows, specification()["mask_token"]
    having: dict[str, set[int]] = {study.replace("_", ", "): set() for study in specification()["modality_plan"]}
    masked = set()
    for row in rows["radiology_reports.csv"]:
        having[f"{row[2]}, {row[3]}"].add(int(row[0]))
        if mask in str(row[5]):
            masked.add(int(row[0]))
    urine = {item["itemid"] for item in specification()["urinalysis"]["items"]}
    having["urinalysis"] = {int(row[0]) for row in rows["laboratory_tests.csv"] if row[1] in urine}
    having["culture"] = {int(row[0]) for row in rows["microbiology.csv"]}
    having["procedure"] = {int(row[0]) for row in rows["discharge_procedures.csv"]}
    having["coded procedure"] = {int(row[0]) for row in rows["icd_procedures.csv"]}
    having[f"report with the mask {mask}"] = masked
    return having


def count_facts(tables: SyntheticTables) -> Facts:
    """Count what the card shows in more than one place."""
    lengths = _lengths(tables)
    by_hospital: dict[str, Counter[str]] = defaultdict(Counter)
    for patient in tables.patients:
        by_hospital[patient.hospital.name][patient.label] += 1
    n_cases = len(tables.patients)
    return Facts(
        lengths={
            what: {name: [of[i] for i in tables.labels[name]] for name in DIAGNOSES} for what, of in lengths.items()
        },
        shares={
            what: {name: _share(having, tables.labels[name]) for name in DIAGNOSES}
            for what, having in _having(tables).items()
        },
        history_length=float(np.median(list(lengths[_HISTORY].values()))),
        labs_per_case=float(np.median(list(lengths[_LABS].values()))),
        majority=max(len(ids) for ids in tables.labels.values()) / n_cases,
        hospital_majority=sum(max(counts.values()) for counts in by_hospital.values()) / n_cases,
    )


def _share(having: set[int], ids: list[int]) -> float | None:
    return sum(i in having for i in ids) / len(ids) if ids else None


def file_rows(tables: SyntheticTables) -> list[Cells]:
    """Return file, rows and cases with a row, for every file of the cohort."""
    rows = []
    for name, content in tables.rows.items():
        cases = NOTHING if name == "lab_test_mapping.csv" else str(len({row[0] for row in content}))
        rows.append((name, str(len(content)), cases))
    n_cases = str(len(tables.hospitals))
    return [*rows, ("pathology_ids.json", NOTHING, n_cases), ("hospital_ids.json", NOTHING, n_cases)]


def hospital_rows(tables: SyntheticTables) -> list[Cells]:
    """Return the number of cases by hospital and diagnosis, with their sums."""
    counts = Counter((patient.hospital.name, patient.label) for patient in tables.patients)
    names = sorted({hospital for hospital, _ in counts})
    rows = []
    for hospital in names:
        of = [counts[hospital, label] for label in DIAGNOSES]
        rows.append((hospital, *map(str, of), str(sum(of))))
    total = [len(tables.labels[label]) for label in DIAGNOSES]
    return [*rows, ("all", *map(str, total), str(sum(total)))]


def _by_class(patients: Iterable[Patient], show: Callable[[list[Patient]], str]) -> Cells:
    of: dict[str, list[Patient]] = {name: [] for name in DIAGNOSES}
    for patient in patients:
        of[patient.label].append(patient)
    return tuple(show(of[name]) if of[name] else NOTHING for name in DIAGNOSES)


def _range(values: list[int], lower: int, upper: int) -> str:
    """Return median and two percentiles."""
    if not values:
        return NOTHING
    middle, low, high = np.percentile(values, (50, lower, upper), method="inverted_cdf")
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def age_rows(tables: SyntheticTables) -> list[Cells]:
    """Return age and sex by diagnosis."""
    patients = tables.patients

    def women(of: list[Patient]) -> str:
        return f"{100 * sum(patient.female for patient in of) / len(of):.1f}"

    return [
        ("age, median (quartiles)", *_by_class(patients, lambda of: _range([p.age for p in of], 25, 75))),
        ("women [%]", *_by_class(patients, women)),
    ]


def length_rows(facts: Facts) -> list[Cells]:
    """Return the lengths of texts and lists by diagnosis."""
    return [(what, *(_range(of[name], 5, 95) for name in DIAGNOSES)) for what, of in facts.lengths.items()]


def availability_rows(facts: Facts) -> list[Cells]:
    """Return the share of cases with each kind of row, by diagnosis."""
    rows = []
    for what, of in facts.shares.items():
        shares = [of[name] for name in DIAGNOSES]
        rows.append((what, *(NOTHING if share is None else f"{100 * share:.1f}" for share in shares)))
    return rows


def difficulty_rows() -> list[Cells]:
    """Return the accuracies and macro-F1 of record of the standard cohort."""

    def seeds(values: list[float]) -> str:
        return " / ".join(f"{value:.3f}" for value in values)

    return [(row["shown"], seeds(row["accuracy"]), seeds(row["macro_f1"])) for row in difficulty()["rows"]]
