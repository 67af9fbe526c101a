"""The tables of one folder as records by admission, with every check that a single table allows."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import Generic, TypeVar

from device_models.errors import InputError
from fllm.data.cdm_cases import DIAGNOSES, Culture, LabResult, RadiologyReport
from fllm.data.cdm_counts import number_of
from fllm.data.cdm_files import (
    COLUMNS,
    EXAMINATION,
    HISTORY,
    HOSPITALS,
    LABELS,
    LABS,
    MICROBIOLOGY,
    RADIOLOGY,
    TEST_NAMES,
    CohortFiles,
)
from fllm.data.cdm_numbers import integer_or_none, integers, leading_number, limits

Record = TypeVar("Record")

LONGEST_HOSPITAL = 60
"""Characters of a hospital's name."""


@dataclass(frozen=True, eq=False)
class Joined(Generic[Record]):
    """Records of one table that belong to an admission of the history file.

    Attributes:
        of: Admission -> records in the order of the file; an admission without any is absent.
        strangers: Rows of admissions that the history file does not hold.
        repeated: Rows that repeat a test of the same admission; the first one counts.
    """

    of: dict[int, list[Record]]
    strangers: int
    repeated: int = 0


def texts(files: CohortFiles, name: str) -> dict[int, str]:
    """Read a table with one text for each admission: the history, or the examination.

    Raises:
        InputError: If the table is unreadable or an admission stands twice.
    """
    table, where, column = files.table(name), files.shown(name), COLUMNS[name][1]
    of: dict[int, str] = {}
    for row, (hadm_id, text) in enumerate(zip(integers(table, "hadm_id", where), table[column], strict=True), start=1):
        if hadm_id in of:
            raise InputError("duplicate hadm_id", where=f"{where}, row {row}", expected="one row for each admission")
        of[hadm_id] = text
    return of


def item_names(files: CohortFiles) -> dict[int, tuple[str, str]]:
    """Return label and fluid by itemid; the mapping's rows without an itemid are names of panels.

    Raises:
        InputError: If the table is unreadable or an itemid is no whole number.
    """
    table, where = files.table(TEST_NAMES), files.shown(TEST_NAMES)
    names: dict[int, tuple[str, str]] = {}
    for row, (cell, label, fluid) in enumerate(zip(table["itemid"], table["label"], table["fluid"], strict=True), 1):
        itemid = integer_or_none(cell)
        if itemid is not None:
            names.setdefault(itemid, (label, fluid))
        elif cell.strip().lower() not in ("", "nan"):
            raise InputError("itemid is no whole number", where=f"{where}, row {row}", expected="digits")
    return names


def lab_results(files: CohortFiles, known: Container[int], names: dict[int, tuple[str, str]]) -> Joined[LabResult]:
    """Read the laboratory table; the first value of a test in an admission counts.

    Raises:
        InputError: If the table is unreadable, or an identifier or a reference limit is no number.
    """
    table, where = files.table(LABS), files.shown(LABS)
    results: dict[int, list[LabResult]] = defaultdict(list)
    seen: set[tuple[int, int]] = set()
    strangers = repeated = 0
    numbers = {value: leading_number(value) for value in set(table["valuestr"])}
    columns = (
        integers(table, "hadm_id", where),
        integers(table, "itemid", where),
        table["valuestr"],
        limits(table, "ref_range_lower", where),
        limits(table, "ref_range_upper", where),
    )
    for hadm_id, itemid, value, lower, upper in zip(*columns, strict=True):
        if hadm_id not in known:
            strangers += 1
        elif (hadm_id, itemid) in seen:
            # The release keeps the first value of a test; a second row would be a later one.
            repeated += 1
        else:
            seen.add((hadm_id, itemid))
            label, fluid = names.get(itemid, (f"item {itemid}", ""))
            results[hadm_id].append(LabResult(itemid, label, fluid, value, numbers[value], lower, upper))
    return Joined(results, strangers, repeated)


def reports(files: CohortFiles, known: Container[int]) -> Joined[RadiologyReport]:
    """Read the radiology table; all reports are kept, also several of one modality and region.

    Raises:
        InputError: If the table is unreadable, an identifier is no number or a report stands twice.
    """
    table, where = files.table(RADIOLOGY), files.shown(RADIOLOGY)
    found: dict[int, list[RadiologyReport]] = defaultdict(list)
    seen: set[str] = set()
    strangers = 0
    columns = (table[column] for column in COLUMNS[RADIOLOGY][1:])
    for row, (hadm_id, *cells) in enumerate(zip(integers(table, "hadm_id", where), *columns, strict=True), start=1):
        if cells[0].strip() and cells[0] in seen:
            raise InputError("duplicate note_id", where=f"{where}, row {row}", expected="one row for each report")
        seen.add(cells[0])
        if hadm_id in known:
            found[hadm_id].append(RadiologyReport(*cells))
        else:
            strangers += 1
    return Joined(found, strangers)


def cultures(files: CohortFiles, known: Container[int], names: dict[int, tuple[str, str]]) -> Joined[Culture]:
    """Read the microbiology table, which may hold no row at all.

    Raises:
        InputError: If the table is unreadable or an identifier is no number.
    """
    table, where = files.table(MICROBIOLOGY), files.shown(MICROBIOLOGY)
    found: dict[int, list[Culture]] = defaultdict(list)
    strangers = 0
    columns = (
        integers(table, "hadm_id", where),
        integers(table, "test_itemid", where),
        table["valuestr"],
        integers(table, "spec_itemid", where),
    )
    for hadm_id, test, value, specimen in zip(*columns, strict=True):
        if hadm_id in known:
            name, _ = names.get(test, (f"item {test}", ""))
            found[hadm_id].append(Culture(test, name, value, specimen))
        else:
            strangers += 1
    return Joined(found, strangers)


def diagnoses(files: CohortFiles) -> dict[int, tuple[str, int]]:
    """Read the labels: admission -> its class and its position in the class's list, from 0.

    Raises:
        InputError: If the file is absent or unreadable, a class is unknown or an admission stands under two.
    """
    where = files.shown(LABELS)
    found: dict[int, tuple[str, int]] = {}
    twice: set[int] = set()
    for key, ids in files.json_object(LABELS).items():
        if key not in DIAGNOSES:
            # Only look-alikes of a class are shown: a key could be an identifier or a text.
            close = difflib.get_close_matches(key[:40], DIAGNOSES, n=1, cutoff=0.6)
            what = f"unknown diagnosis {key!r}" if close and len(key) <= 40 else "a key that is none of the diagnoses"
            remedy = f"did you mean {close[0]}?" if close else "use the labels of MIMIC-IV-Ext-CDM v1.1"
            raise InputError(what, where=where, expected=", ".join(DIAGNOSES), remedy=remedy)
        if not isinstance(ids, list):
            raise InputError(f"{key} holds no list", where=where, expected="a list of hadm_ids")
        for position, value in enumerate(ids):
            hadm_id, place = integer_or_none(str(value)), f"{where}, {key}, entry {position}"
            if hadm_id is None:
                raise InputError("hadm_id is no whole number", where=place, expected="digits")
            if found.setdefault(hadm_id, (key, position))[0] != key:
                twice.add(hadm_id)
    if twice:
        raise InputError(f"two diagnoses for {number_of(len(twice), 'case')}", where=where, expected="one class each")
    return found


def is_hospital_name(text: str) -> bool:
    """Tell whether a text can name a hospital in a report: short, printable and not empty."""
    return 0 < len(text) <= LONGEST_HOSPITAL and text.isprintable()


def hospital_names(files: CohortFiles) -> dict[int, str]:
    """Read the hospital of each admission, an addition of ours to the layout.

    Raises:
        InputError: If the file is unreadable, an identifier is no number or a hospital is no name.
    """
    names: dict[int, str] = {}
    for position, (key, name) in enumerate(files.json_object(HOSPITALS).items()):
        hadm_id, where = integer_or_none(key), f"{files.shown(HOSPITALS)}, entry {position}"
        if hadm_id is None:
            raise InputError("hadm_id is no whole number", where=where, expected="{hadm_id: hospital name}")
        tidy = " ".join(name.split()) if isinstance(name, str) else ""
        if not is_hospital_name(tidy):
            expected = f"{{hadm_id: hospital name of at most {LONGEST_HOSPITAL} characters}}"
            raise InputError("hospital is no name", where=where, expected=expected)
        if names.setdefault(hadm_id, tidy) != tidy:
            raise InputError("this case also has another hospital", where=where, expected="one hospital")
    return names


def require(known: Container[int], histories: dict[int, str], where: str, what: str) -> None:
    """Raise InputError unless every admission of the history file is known to another file."""
    absent = sum(hadm_id not in known for hadm_id in histories)
    if absent:
        remedy = "keep the files of one release together"
        raise InputError(f"{what} for {number_of(absent, 'case')} of {HISTORY}", where=where, remedy=remedy)


def examinations(files: CohortFiles, histories: dict[int, str]) -> dict[int, str]:
    """Read the examination of every admission of the history file.

    Raises:
        InputError: If the table is unreadable, or an admission has none or two.
    """
    found = texts(files, EXAMINATION)
    require(found, histories, files.shown(EXAMINATION), "no examination")
    return found
