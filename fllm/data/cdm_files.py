"""Reading of single files of the release, with one-line errors that never show what a patient's record says."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from device_models.errors import InputError, nearest

COLUMNS: dict[str, tuple[str, ...]] = {
    "history_of_present_illness.csv": ("hadm_id", "hpi"),
    "physical_examination.csv": ("hadm_id", "pe"),
    "laboratory_tests.csv": ("hadm_id", "itemid", "valuestr", "ref_range_lower", "ref_range_upper"),
    "lab_test_mapping.csv": ("itemid", "label", "fluid", "category", "count", "corresponding_ids"),
    "radiology_reports.csv": ("hadm_id", "note_id", "modality", "region", "exam_name", "text"),
    "microbiology.csv": ("hadm_id", "test_itemid", "valuestr", "spec_itemid"),
    "discharge_diagnosis.csv": ("hadm_id", "discharge_diagnosis"),
    "icd_diagnosis.csv": ("hadm_id", "icd_diagnosis"),
    "discharge_procedures.csv": ("hadm_id", "discharge_procedure"),
    "icd_procedures.csv": ("hadm_id", "icd_code", "icd_title", "icd_version"),
}
"""Columns of MIMIC-IV-Ext-CDM v1.1 in their order."""

OUTCOMES: frozenset[str] = frozenset(
    {"discharge_diagnosis.csv", "icd_diagnosis.csv", "discharge_procedures.csv", "icd_procedures.csv"}
)
"""Tables that name the answer or its treatment: checked, never loaded into a case."""

_INTEGER = re.compile(r"[0-9]{1,15}(?:\.0+)?")
_MISSING = {"", "nan"}


class CohortFiles:
    """The files of one folder; every file read enters the digest.

    Args:
        folder: Folder in the layout of MIMIC-IV-Ext-CDM v1.1.

    Raises:
        InputError: If the folder is absent or no folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise InputError("the data folder does not exist", where=str(folder), remedy="check the path")
        if not folder.is_dir():
            raise InputError(
                "this is a file", where=str(folder), expected="a folder with the CSV files", remedy="unpack it first"
            )
        self._folder = folder
        self._bytes: dict[str, bytes] = {}

    def sha256(self) -> str:
        """Return the digest over the bytes of all files read so far, in name order."""
        digest = hashlib.sha256()
        for name in sorted(self._bytes):
            digest.update(self._bytes[name])
        return digest.hexdigest()

    def has(self, name: str) -> bool:
        """Tell whether the folder holds this file."""
        return (self._folder / name).is_file()

    def _text(self, name: str) -> str:
        path = self._folder / name
        if not path.is_file():
            raise InputError(
                "file missing", where=name, remedy=f"put it into {self._folder.name}/, as MIMIC-IV-Ext-CDM v1.1 has it"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=name) from None
        self._bytes[name] = content
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"byte {error.start} is no UTF-8 text", where=name, remedy="unpack archives, save tables as UTF-8"
            ) from None
        if not text.strip():
            raise InputError("the file is empty", where=name)
        return text

    def table(self, name: str) -> dict[str, list[str]]:
        """Read one CSV file as columns of text; ``NA`` and the like stay as they are written.

        Raises:
            InputError: If the file is absent, empty, not UTF-8, no regular CSV, without rows or without a column.
        """
        reader = csv.reader(io.StringIO(self._text(name), newline=""), strict=True)
        remedy = "check its quotes, and whether the file was cut off"
        try:
            rows = [row for row in reader if row]
        except csv.Error:
            raise InputError("malformed CSV", where=f"{name}, line {reader.line_num}", remedy=remedy) from None
        header = [column.strip() for column in rows.pop(0)]
        _check_columns(name, header)
        if not rows:
            raise InputError("no rows after the header", where=name)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                where, fields = f"{name}, row {number}", f"{len(header)} fields"
                raise InputError("malformed CSV", where=where, expected=fields, received=len(row), remedy=remedy)
        columns = dict(zip(header, (list(column) for column in zip(*rows, strict=True)), strict=False))
        return {column: columns[column] for column in COLUMNS[name]}

    def json_object(self, name: str) -> dict[str, Any]:
        """Read one JSON file that must hold an object.

        Raises:
            InputError: If the file is absent, not UTF-8, no JSON or no object.
        """
        text = self._text(name)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError("malformed JSON", where=name + line) from None
        if not isinstance(value, dict):
            raise InputError("malformed content", where=name, expected="a JSON object", received=type(value).__name__)
        return value


def _check_columns(name: str, header: list[str]) -> None:
    expected = COLUMNS[name]
    twice = [column for column in expected if header.count(column) > 1]
    if twice:
        raise InputError(f"column {twice[0]!r} stands twice", where=name)
    for column in expected:
        if column in header:
            continue
        # Only look-alikes of a column name are shown: without a header the first line is a patient's record.
        close = [c for c in difflib.get_close_matches(column, header, n=3, cutoff=0.6) if c not in expected]
        remedy = nearest(column, close) if close else "use the columns of MIMIC-IV-Ext-CDM v1.1"
        raise InputError(f"column {column!r} missing", where=name, expected=", ".join(expected), remedy=remedy)


def integers(table: dict[str, list[str]], column: str, where: str) -> list[int]:
    """Convert a column of ids; ``51301.0`` counts as 51301.

    Raises:
        InputError: If a value is no whole number.
    """
    numbers = []
    for row, value in enumerate(table[column], start=1):
        number = integer_or_none(value)
        if number is None:
            raise InputError(f"{column} is no whole number", where=f"{where}, row {row}", expected="digits")
        numbers.append(number)
    return numbers


def integer_or_none(value: str) -> int | None:
    """Return the whole number in a cell, or None when there is none."""
    value = value.strip()
    return int(value.split(".")[0]) if _INTEGER.fullmatch(value) else None


def limits(table: dict[str, list[str]], column: str, where: str) -> list[float | None]:
    """Convert a column of reference limits; empty cells and ``nan`` give None.

    Raises:
        InputError: If a value is neither a number nor missing.
    """
    numbers: list[float | None] = []
    for row, value in enumerate(table[column], start=1):
        try:
            missing = value.strip().lower() in _MISSING
            numbers.append(None if missing else float(value))
        except ValueError:
            raise InputError(f"{column} is no number", where=f"{where}, row {row}", expected="a number") from None
    return numbers
