"""Reading of single files of the release, with one-line errors that never show what a patient's record says."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from device_models.errors import InputError, nearest

HISTORY, EXAMINATION = "history_of_present_illness.csv", "physical_examination.csv"
LABS, TEST_NAMES, MICROBIOLOGY = "laboratory_tests.csv", "lab_test_mapping.csv", "microbiology.csv"
RADIOLOGY, LABELS, HOSPITALS = "radiology_reports.csv", "pathology_ids.json", "hospital_ids.json"

COLUMNS: dict[str, tuple[str, ...]] = {
    HISTORY: ("hadm_id", "hpi"),
    EXAMINATION: ("hadm_id", "pe"),
    LABS: ("hadm_id", "itemid", "valuestr", "ref_range_lower", "ref_range_upper"),
    TEST_NAMES: ("itemid", "label", "fluid", "category", "count", "corresponding_ids"),
    RADIOLOGY: ("hadm_id", "note_id", "modality", "region", "exam_name", "text"),
    MICROBIOLOGY: ("hadm_id", "test_itemid", "valuestr", "spec_itemid"),
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

MAY_BE_EMPTY = OUTCOMES | {MICROBIOLOGY}
"""Tables of which a folder may hold the header alone."""

_ARCHIVES: dict[bytes, str] = {
    b"PK\x03\x04": "a zip archive or a workbook",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "gzip-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"7z\xbc\xaf": "a 7z archive",
}
_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_COLUMN = re.compile(r"[A-Za-z_]{1,30}")


class CohortFiles:
    """The files of one folder, each read once; every file read enters the digest.

    Args:
        folder: Folder in the layout of MIMIC-IV-Ext-CDM v1.1.
        inside: What stands before a file's name in messages, such as ``north/`` for one folder of several.

    Raises:
        InputError: If the folder is absent, no folder, or holds no file of the layout.
    """

    def __init__(self, folder: Path, *, inside: str = "") -> None:
        if not folder.exists():
            raise InputError("the data folder does not exist", where=str(folder), remedy="check the path")
        if not folder.is_dir():
            raise InputError(
                "this is a file", where=str(folder), expected="a folder with the CSV files", remedy="unpack it first"
            )
        if not any((folder / name).exists() for name in (*COLUMNS, LABELS)):
            raise InputError(
                "no file of the layout is here", where=str(folder), expected=f"{HISTORY} and the other tables"
            )
        self._folder, self._inside = folder, inside
        self._bytes: dict[str, bytes] = {}
        self._headers: dict[str, list[str]] = {}
        self._tables: dict[str, dict[str, list[str]]] = {}

    def sha256(self) -> str:
        """Return the digest over the bytes of all files read so far, in name order."""
        digest = hashlib.sha256()
        for name in sorted(self._bytes):
            digest.update(self._bytes[name])
        return digest.hexdigest()

    def shown(self, name: str) -> str:
        """Return a file's name as messages show it."""
        return self._inside + name

    def has(self, name: str) -> bool:
        """Tell whether the folder holds this file."""
        return (self._folder / name).is_file()

    def missing(self, name: str) -> InputError:
        """Return the error that says that a file is absent, and how to get it."""
        if name == LABELS:
            return InputError(
                "file missing",
                where=self.shown(name),
                expected="the labels, which only MIMIC-IV-Ext-CDM v1.1 ships (v1.0 does not)",
                remedy="download v1.1; labels are not guessed from the discharge diagnosis",
            )
        stem = name.rpartition(".")[0]
        packed = next((form for ending in _PACKED for form in (name + ending, stem + ending) if self.has(form)), None)
        remedy = (
            f"unpack {packed} first"
            if packed
            else f"put it into {self._folder.name or self._folder}/, as MIMIC-IV-Ext-CDM v1.1 has it"
        )
        return InputError("file missing", where=self.shown(name), remedy=remedy)

    def content(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InputError: If the file is absent or cannot be read.
        """
        if not self.has(name):
            raise self.missing(name)
        if name not in self._bytes:
            try:
                self._bytes[name] = (self._folder / name).read_bytes()
            except OSError as error:
                raise InputError(f"cannot be read ({error.strerror})", where=self.shown(name)) from None
        return self._bytes[name]

    def text(self, name: str) -> str:
        """Return a file as text, without a byte order mark and with plain line ends.

        Raises:
            InputError: If the file is absent, unreadable, empty or no UTF-8 text.
        """
        content, where = self.content(name), self.shown(name)
        _refuse_foreign(content, where)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            remedy = "save tables as UTF-8"
            raise InputError(f"byte {error.start} is no UTF-8 text", where=where, remedy=remedy) from None
        if "\0" in text:
            raise InputError("the file holds NUL bytes", where=where, remedy="it is damaged; download it again")
        if not text.strip():
            raise InputError("the file is empty", where=where)
        return text.replace("\r\n", "\n")

    def table(self, name: str) -> dict[str, list[str]]:
        """Read one CSV file as columns of text; ``NA`` and the like stay as they are written.

        Raises:
            InputError: If the file is absent, empty, not UTF-8, no regular CSV or without a column, or if it has no
                rows and is no table that may be empty.
        """
        if name in self._tables:
            return self._tables[name]
        where, remedy = self.shown(name), "check its quotes, and whether the file was cut off"
        header, rows = _records(self.text(name), where, remedy)
        _check_columns(COLUMNS[name], header, where)
        if not rows and name not in MAY_BE_EMPTY:
            raise InputError("no rows after the header", where=where)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                place, fields = f"{where}, row {number}", f"{len(header)} fields"
                raise InputError("malformed CSV", where=place, expected=fields, received=len(row), remedy=remedy)
        self._headers[name] = header
        places = {column: header.index(column) for column in COLUMNS[name]}
        self._tables[name] = {column: [row[at] for row in rows] for column, at in places.items()}
        return self._tables[name]

    def header(self, name: str) -> list[str]:
        """Return all columns of a table as they stand in the file; raises what :meth:`table` does."""
        self.table(name)
        return self._headers[name]

    def json_object(self, name: str) -> dict[str, Any]:
        """Read one JSON file that must hold an object.

        Raises:
            InputError: If the file is absent, not UTF-8, no JSON or no object, or names a key twice.
        """
        where = self.shown(name)

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            if len({key for key, _ in pairs}) < len(pairs):
                raise InputError("a key stands twice", where=where, expected="each key once")
            return dict(pairs)

        text = self.text(name)
        try:
            value = json.loads(text, object_pairs_hook=unique)
        except InputError:
            raise
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise InputError("malformed JSON", where=where + line) from None
        if not isinstance(value, dict):
            raise InputError("malformed content", where=where, expected="a JSON object", received=type(value).__name__)
        return value


def _refuse_foreign(content: bytes, where: str) -> None:
    """Refuse what is no text file at all, by its first bytes."""
    for magic, form in _ARCHIVES.items():
        if content.startswith(magic):
            raise InputError(f"this is {form}", where=where, expected="plain text", remedy="unpack it first")
    if content.startswith(_UTF_16) or (content[:64].count(0) > 16 and len(content) >= 32):
        raise InputError("this is UTF-16 text", where=where, remedy="save it as UTF-8")
    if content[:64].lstrip().lower().startswith((b"<!doctype", b"<html")):
        remedy = "it is what a server sends without a login; download it again with your credentials"
        raise InputError("this is a web page", where=where, remedy=remedy)


def _records(text: str, where: str, remedy: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a CSV text; blank lines are no rows."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    # The parser's own limit of 131,072 characters is one of the process, and a report may be longer.
    before = csv.field_size_limit(len(text) + 1)
    try:
        rows = [row for row in reader if row]
    except csv.Error:
        raise InputError("malformed CSV", where=f"{where}, line {reader.line_num}", remedy=remedy) from None
    finally:
        csv.field_size_limit(before)
    return [column.strip() for column in rows[0]], rows[1:]


def _check_columns(expected: Sequence[str], header: list[str], where: str) -> None:
    twice = [column for column in expected if header.count(column) > 1]
    if twice:
        raise InputError(f"column {twice[0]!r} stands twice", where=where)
    for column in expected:
        if column in header:
            continue
        # Only look-alikes of a column name are shown: without a header the first line is a patient's record.
        names = {name.lower(): name for name in header if _COLUMN.fullmatch(name) and name not in expected}
        close = difflib.get_close_matches(column, names, n=3, cutoff=0.6)
        remedy = "use the columns of MIMIC-IV-Ext-CDM v1.1"
        if len(header) == 1 and re.split("[;\t|]", header[0][:200])[0] in expected:
            remedy = "separate the columns by commas"
        elif column in close:
            remedy = "write it in lower case"
        elif close:
            remedy = nearest(column, [names[name] for name in close])
        raise InputError(f"column {column!r} missing", where=where, expected=", ".join(expected), remedy=remedy)
