"""Reading of one table of texts: CSV, TSV or JSON lines, each also gzipped, with errors that never show a cell."""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from device_models.errors import InputError

DELIMITERS: dict[str, str | None] = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".ndjson": None}
"""Suffix of a table and what parts its fields; None where each line is a JSON object."""

USUAL_NAMES: frozenset[str] = frozenset(
    {
        "abstract", "answer", "body", "category", "class", "client", "content", "diagnosis", "dialogue", "document",
        "fold", "hospital", "id", "label", "labels", "note", "notes", "outcome", "part", "partition", "question",
        "report", "section_header", "section_text", "sentence", "set", "site", "source", "split", "subset", "summary",
        "target", "text", "title", "transcription", "type", "y",
    }
)  # fmt: skip
"""Names of columns that an error may always show: in a table without a header, other words are a patient's record."""

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_LONGEST_FIELD = 2**31 - 1
_LONGEST_NAME, _MOST_NAMES = 40, 20


@dataclass(frozen=True)
class Table:
    """The asked columns of one file; its ``repr`` shows no cell.

    Attributes:
        name: Name of the file.
        sha256: Digest over its bytes as stored.
        unit: ``row`` for rows behind a header, ``line`` for lines of JSON.
        numbers: Number of each row, counted from 1.
        columns: The cells of each column, as text; a missing value of JSON is empty text.
    """

    name: str
    sha256: str
    unit: str
    numbers: tuple[int, ...] = field(repr=False)
    columns: dict[str, list[str]] = field(repr=False)

    def where(self, index: int) -> str:
        """Name the place of a row, for an error."""
        return f"{self.name}, {self.unit} {self.numbers[index]}"


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in lower case, without that of gzip: ``.csv`` of ``Notes.CSV.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_text(path: Path) -> tuple[str, bytes]:
    """Return the text of a file, unpacked when it is gzipped, and its bytes as stored.

    Raises:
        InputError: If the file is absent, a folder, unreadable, another archive, cut off, empty or not UTF-8.
    """
    if not path.exists():
        raise InputError("the file does not exist", where=str(path), remedy="check the path")
    if path.is_dir():
        raise InputError("this is a folder", where=path.name, expected="a file")
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path.name) from None
    if stored.startswith(_ZIP):
        what = "this is a ZIP archive or a spreadsheet"
        raise InputError(what, where=path.name, remedy="unpack it, or save the sheet as CSV in UTF-8")
    return _decoded(_unpacked(stored, path.name), path.name), stored


def _unpacked(stored: bytes, name: str) -> bytes:
    if not stored.startswith(_GZIP):
        return stored
    try:
        return gzip.decompress(stored)
    except (OSError, EOFError, zlib.error):
        raise InputError("broken gzip file", where=name, remedy="it may have been cut off; fetch it again") from None


def _decoded(content: bytes, name: str) -> str:
    remedy = "save it as UTF-8, and unpack archives other than .gz"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is no UTF-8 text", where=name, remedy=remedy) from None
    if "\0" in text:
        raise InputError("the file holds zero bytes, as UTF-16 text does", where=name, remedy=remedy)
    if not text.strip():
        raise InputError("the file is empty", where=name)
    return text


def read_columns(path: Path, wanted: Sequence[str]) -> Table:
    """Read the asked columns of a table.

    Raises:
        InputError: If the kind of the file is unknown, it is malformed or has no rows, or a column is missing.
    """
    suffix = suffix_of(path)
    if suffix not in DELIMITERS:
        kinds = ", ".join(DELIMITERS)
        raise InputError("unknown kind of table", where=path.name, expected=f"{kinds}, each also with .gz behind it")
    text, stored = read_text(path)
    delimiter = DELIMITERS[suffix]
    if delimiter is None:
        numbers, columns = _json_columns(text, path.name, wanted)
    else:
        numbers, columns = _delimited_columns(text, path.name, wanted, delimiter)
    if not numbers:
        raise InputError("no rows after the header" if delimiter else "no rows", where=path.name)
    unit = "row" if delimiter else "line"
    return Table(path.name, hashlib.sha256(stored).hexdigest(), unit, tuple(numbers), columns)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the limit of the csv module, 131,072 characters a field, for a while."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _delimited_columns(
    text: str, name: str, wanted: Sequence[str], delimiter: str
) -> tuple[list[int], dict[str, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    remedy = "check its quotes, and whether the file was cut off"
    try:
        with _long_fields():
            rows = [row for row in reader if row]
    except csv.Error:
        raise InputError("malformed table", where=f"{name}, line {reader.line_num}", remedy=remedy) from None
    header = [column.strip() for column in rows.pop(0)]
    _check_names(header, name, wanted)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            where, fields = f"{name}, row {number}", f"{len(header)} fields"
            raise InputError("malformed table", where=where, expected=fields, received=len(row), remedy=remedy)
    places = [(column, header.index(column)) for column in wanted]
    return list(range(1, len(rows) + 1)), {column: [row[place] for row in rows] for column, place in places}


def _check_names(header: Sequence[str], name: str, wanted: Sequence[str]) -> None:
    for column in wanted:
        if header.count(column) > 1:
            raise InputError(f"column {column!r} stands twice", where=name)
        if column not in header:
            raise InputError(
                f"column {column!r} missing", where=name, expected=" and ".join(repr(each) for each in wanted),
                remedy=_existing(header, wanted),
            )  # fmt: skip


def _existing(names: Sequence[str], wanted: Sequence[str]) -> str:
    """Tell which columns there are, as far as that cannot show a patient's record."""
    if len(names) == 1 and not set(names) <= USUAL_NAMES:
        for mark, called in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
            if mark in names[0]:
                return f"the first line has one field alone; are its fields parted by {called}?"
    close = {each for column in wanted for each in difflib.get_close_matches(column, names, n=3, cutoff=0.6)}
    certain = not set(names).isdisjoint(wanted)
    shown = [n for n in names if n and (certain or n in close or n.lower() in USUAL_NAMES)]
    shown = [n for n in shown if len(n) <= _LONGEST_NAME][:_MOST_NAMES]
    if not shown:
        return "name the columns to read; the first line must hold their names"
    more = len(names) - len(shown)
    return "columns: " + ", ".join(shown) + (f" and {more} more" if more else "")


def _json_columns(text: str, name: str, wanted: Sequence[str]) -> tuple[list[int], dict[str, list[str]]]:
    numbers: list[int] = []
    columns: dict[str, list[str]] = {column: [] for column in wanted}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        row = _json_object(line, where)
        _check_names(list(row), where, wanted)
        numbers.append(number)
        for column in wanted:
            columns[column].append(_cell(row[column], column, where))
    return numbers, columns


def _json_object(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("malformed JSON", where=where, expected="one object per line") from None
    if not isinstance(row, dict):
        raise InputError("malformed content", where=where, expected="a JSON object", received=type(row).__name__)
    return row


def _cell(value: object, column: str, where: str) -> str:
    if value is None or value != value:  # NaN, as pandas writes a missing value
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise InputError(
            f"column {column!r} holds a nested value", where=where, expected="text or a number",
            received=type(value).__name__,
        )  # fmt: skip
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"column {column!r} is no valid text", where=where, remedy="mend its \\u escapes") from None
    return text
