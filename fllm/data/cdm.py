"""Cases in the layout of MIMIC-IV-Ext-CDM v1.1, as the emulator's federations read them.

Five tables, the labels and, where present, the hospitals are read. The outcome tables (discharge diagnosis, procedures,
ICD codes) are never opened: they name the answer or its treatment.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from device_models.errors import InputError, nearest
from fllm.data.cdm_files import CohortFiles, integer_or_none, integers, limits

DIAGNOSES: tuple[str, ...] = ("appendicitis", "cholecystitis", "diverticulitis", "pancreatitis")
"""The four classes, in the order of every table of this package."""

SYNTHETIC_FIRST_ID = 90_000_000
"""Identifiers from here on are fabricated; those of MIMIC-IV lie between 20,000,000 and 29,999,999."""

_LABELS, _HOSPITALS = "pathology_ids.json", "hospital_ids.json"
_NUMBER = re.compile(r"\s*([-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)(?![0-9.,:/-])")
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z_ -]{0,39}")


@dataclass(frozen=True)
class LabResult:
    """First value of one laboratory test in an admission.

    Args:
        itemid: Test number of MIMIC-IV.
        label: Name of the test.
        fluid: Material, such as ``Blood``.
        value: The value as written.
        number: The leading number of the value, in the unit the value names; None when it is no number.
        lower: Lower limit of the row's own reference range, same unit, or None.
        upper: Upper limit, or None.
    """

    itemid: int
    label: str
    fluid: str
    value: str = field(repr=False)
    number: float | None = field(repr=False)
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class RadiologyReport:
    """One radiology report without its impression, as the release has it."""

    note_id: str = field(repr=False)
    modality: str
    region: str
    exam_name: str = field(repr=False)
    text: str = field(repr=False)


@dataclass(frozen=True)
class Case:
    """One admission; its ``repr`` shows neither text nor identifiers."""

    hadm_id: int = field(repr=False)
    diagnosis: str
    history: str = field(repr=False)
    examination: str = field(repr=False)
    labs: tuple[LabResult, ...] = field(repr=False)
    radiology: tuple[RadiologyReport, ...] = field(repr=False)
    hospital: str | None


@dataclass(frozen=True)
class Cohort:
    """All cases of one folder.

    Args:
        cases: In the order of the history file.
        synthetic: Whether every identifier is at least 90,000,000, which no real admission has.
        hospitals: Sorted names; empty when the folder has no hospital file.
        sha256: Digest over the bytes of all files read, in name order.
        source: Name of the folder, without its path.
    """

    cases: tuple[Case, ...] = field(repr=False)
    synthetic: bool
    hospitals: tuple[str, ...]
    sha256: str
    source: str


def load_cohort(folder: str | Path) -> Cohort:
    """Read a folder in the layout of MIMIC-IV-Ext-CDM v1.1, real or synthetic.

    The admissions are those of the history file; rows of the other files join to them. Laboratory and radiology rows
    may be absent for a case, its examination and its label may not.

    Raises:
        InputError: If a file is absent, unreadable or contradicts the layout, or a case has no single label.
    """
    path = Path(folder)
    files = CohortFiles(path)
    histories = _one_text_each(files, "history_of_present_illness.csv", "hpi")
    examinations = _one_text_each(files, "physical_examination.csv", "pe")
    labs = _labs(files, histories)
    reports = _reports(files, histories)
    diagnoses = _diagnoses(files)
    hospitals = _hospitals(files, histories) if files.has(_HOSPITALS) else None
    _require(histories, diagnoses, _LABELS, "no label")
    _require(histories, examinations, "physical_examination.csv", "no examination")
    cases = tuple(
        Case(
            hadm_id=hadm_id,
            diagnosis=diagnoses[hadm_id],
            history=history,
            examination=examinations[hadm_id],
            labs=tuple(labs[hadm_id]),
            radiology=tuple(reports[hadm_id]),
            hospital=hospitals[hadm_id] if hospitals is not None else None,
        )
        for hadm_id, history in histories.items()
    )
    return Cohort(
        cases=cases,
        synthetic=min(histories) >= SYNTHETIC_FIRST_ID,
        hospitals=tuple(sorted({case.hospital for case in cases if case.hospital is not None})),
        sha256=files.sha256(),
        source=path.resolve().name,
    )


def _require(histories: Iterable[int], present: Iterable[int], where: str, what: str) -> None:
    known = set(present)
    absent = sum(hadm_id not in known for hadm_id in histories)
    if absent:
        remedy = "keep the files of one release together"
        raise InputError(f"{absent} cases of the history file have {what}", where=where, remedy=remedy)


def _one_text_each(files: CohortFiles, name: str, column: str) -> dict[int, str]:
    table = files.table(name)
    ids = integers(table, "hadm_id", name)
    texts: dict[int, str] = {}
    for row, (hadm_id, text) in enumerate(zip(ids, table[column], strict=True), start=1):
        if hadm_id in texts:
            raise InputError("duplicate hadm_id", where=f"{name}, row {row}", expected="one row for each admission")
        texts[hadm_id] = text
    return texts


def leading_number(value: str) -> float | None:
    """Return the number at the start of a laboratory value such as ``12.4 K/uL``, or None."""
    match = _NUMBER.match(value)
    number = float(match.group(1)) if match else math.nan
    return number if math.isfinite(number) else None


def _test_names(files: CohortFiles) -> dict[int, tuple[str, str]]:
    """Return label and fluid by itemid; the mapping's rows without an itemid are names of panels."""
    table = files.table("lab_test_mapping.csv")
    names: dict[int, tuple[str, str]] = {}
    for row, (cell, label, fluid) in enumerate(zip(table["itemid"], table["label"], table["fluid"], strict=True), 1):
        itemid = integer_or_none(cell)
        if itemid is not None:
            names.setdefault(itemid, (label, fluid))
        elif cell.strip().lower() not in ("", "nan"):
            raise InputError("itemid is no whole number", where=f"lab_test_mapping.csv, row {row}", expected="digits")
    return names


def _labs(files: CohortFiles, known: Iterable[int]) -> dict[int, list[LabResult]]:
    name = "laboratory_tests.csv"
    table, names, known = files.table(name), _test_names(files), set(known)
    results: dict[int, list[LabResult]] = defaultdict(list)
    seen: set[tuple[int, int]] = set()
    columns = (
        integers(table, "hadm_id", name),
        integers(table, "itemid", name),
        table["valuestr"],
        limits(table, "ref_range_lower", name),
        limits(table, "ref_range_upper", name),
    )
    for hadm_id, itemid, value, lower, upper in zip(*columns, strict=True):
        # The release keeps the first value of a test; a second row would be a later one.
        if hadm_id in known and (hadm_id, itemid) not in seen:
            seen.add((hadm_id, itemid))
            label, fluid = names.get(itemid, (f"item {itemid}", ""))
            results[hadm_id].append(LabResult(itemid, label, fluid, value, leading_number(value), lower, upper))
    return results


def _reports(files: CohortFiles, known: Iterable[int]) -> dict[int, list[RadiologyReport]]:
    name = "radiology_reports.csv"
    table, known = files.table(name), set(known)
    reports: dict[int, list[RadiologyReport]] = defaultdict(list)
    columns = (table[column] for column in ("note_id", "modality", "region", "exam_name", "text"))
    for hadm_id, *cells in zip(integers(table, "hadm_id", name), *columns, strict=True):
        if hadm_id in known:
            reports[hadm_id].append(RadiologyReport(*cells))
    return reports


def _shown(name: str) -> str:
    """Return a JSON key for a message, unless it could be an identifier or a text."""
    return repr(name) if _PLAIN_NAME.fullmatch(name) else "a key that is no name"


def _diagnoses(files: CohortFiles) -> dict[int, str]:
    if not files.has(_LABELS):
        raise InputError(
            "file missing",
            where=_LABELS,
            expected="the labels, which only MIMIC-IV-Ext-CDM v1.1 ships (v1.0 does not)",
            remedy="download v1.1; labels are not guessed from the discharge diagnosis",
        )
    diagnoses: dict[int, str] = {}
    for key, ids in files.json_object(_LABELS).items():
        if key not in DIAGNOSES:
            remedy = nearest(key, DIAGNOSES)
            raise InputError(
                f"unknown diagnosis {_shown(key)}", where=_LABELS, expected=", ".join(DIAGNOSES), remedy=remedy
            )
        if not isinstance(ids, list):
            raise InputError(f"{key} holds no list", where=_LABELS, expected="a list of hadm_ids")
        for position, value in enumerate(ids):
            hadm_id = None if isinstance(value, bool) else integer_or_none(str(value))
            if hadm_id is None:
                where = f"{_LABELS}, {key}, entry {position}"
                raise InputError("hadm_id is no whole number", where=where, expected="digits")
            if diagnoses.setdefault(hadm_id, key) != key:
                where = f"{_LABELS}, {key}, entry {position}"
                raise InputError(f"this case also stands under {diagnoses[hadm_id]}", where=where, expected="one class")
    return diagnoses


def _hospitals(files: CohortFiles, known: Iterable[int]) -> dict[int, str]:
    hospitals: dict[int, str] = {}
    for position, (key, name) in enumerate(files.json_object(_HOSPITALS).items()):
        hadm_id, where = integer_or_none(key), f"{_HOSPITALS}, entry {position}"
        if hadm_id is None:
            raise InputError("hadm_id is no whole number", where=where, expected="{hadm_id: hospital name}")
        if not isinstance(name, str) or not name.strip():
            raise InputError("hospital is no name", where=where, expected="{hadm_id: hospital name}")
        hospitals[hadm_id] = " ".join(name.split())
    _require(known, hospitals, _HOSPITALS, "no hospital")
    return hospitals
