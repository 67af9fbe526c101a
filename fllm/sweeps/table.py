"""The table of a sweep: one row per point, seed and die, appended as they come, whole after any interruption."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from device_models import InputError
from device_models.costs import PARTS
from fllm.results import replace_file

Row = Mapping[str, Any]
OK, FAILED = "ok", "failed"

PLACE = ("point", "seed", "die")
STATE = ("status", "reason")
METRICS = (
    "accuracy", "macro_f1", "perplexity", "accuracy_ideal", "macro_f1_ideal", "perplexity_ideal",
    "energy_per_token_j", "energy_per_token_lower_95_j", "energy_per_token_upper_95_j",
)  # fmt: skip
FACTS = ("latency_per_token_s", "area_m2", "token_period_s", "oldest_age_s", "signal_left", "window_signal_left")
FLAGS = ("correct", "correct_ideal")
CASES = ("test_cases", "cases_sha256")
_WHOLE = {"point", "seed", "die", "test_cases"}
_TEXT = {"status", "reason", "settings_sha256", "cases_sha256", *FLAGS}


def energy_column(part: str) -> str:
    """Name the column of one part's energy."""
    return f"energy_{re.sub(r'[^a-z0-9]+', '_', part.lower())}_j"


def columns_of(keys: Sequence[str]) -> tuple[str, ...]:
    """Return all columns, given those of the varied keys."""
    parts = tuple(energy_column(part) for part in PARTS)
    return (*PLACE, *STATE, *keys, *METRICS, *parts, *FACTS, *CASES, *FLAGS, "settings_sha256")


def place_of(row: Row) -> tuple[int, int, int | None]:
    """Return point, seed and die of a row: there is one row for each."""
    return row["point"], row["seed"], row["die"]


class Table:
    """A CSV file that only grows while a sweep runs.

    Args:
        path: The file; what is there is read, a row that was cut off is dropped.
        columns: Its columns.
        words: Columns of varied keys whose values are words.

    Attributes:
        rows: All rows.
        places: Point, seed and die of each.

    Raises:
        InputError: If the file has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str], words: Iterable[str] = ()) -> None:
        self.path, self.columns = path, tuple(columns)
        self._text = _TEXT | set(words)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self._read()
        else:
            self._replace()
        self.places = set(map(place_of, self.rows))

    def append(self, rows: Sequence[Row]) -> None:
        """Add finished rows, safe on disk before this returns."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._lines(rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows += [dict(row) for row in rows]
        self.places.update(map(place_of, rows))

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drop all rows but some."""
        self.rows = [row for row in self.rows if wanted(row)]
        self.places = set(map(place_of, self.rows))
        self._replace()

    def sort(self) -> None:
        """Put the rows in order of point, seed and die: what was finished first leaves no trace."""
        self.rows.sort(key=lambda row: (row["point"], row["seed"], -1 if row["die"] is None else row["die"]))
        self._replace()

    def _read(self) -> None:
        whole, newline, cut_off = self.path.read_bytes().rpartition(b"\n")  # a row may end within a character
        text = (whole + newline).decode("utf-8", errors="replace")
        lines = list(csv.reader(io.StringIO(text)))
        if not lines or tuple(lines[0]) != self.columns:
            raise InputError(
                "not the table of this sweep", where=str(self.path), expected=f"{len(self.columns)} columns",
                received=f"{len(lines[0]) if lines else 0}", remedy="start a new sweep",
            )  # fmt: skip
        self.rows = [
            {name: self._value(name, cell) for name, cell in zip(self.columns, line, strict=True)}
            for line in lines[1:]
            if len(line) == len(self.columns)
        ]
        if cut_off or len(self.rows) < len(lines) - 1:
            self._replace()

    def _value(self, column: str, cell: str) -> Any:
        if cell == "":
            return None
        if column in self._text:
            return cell
        return int(cell) if column in _WHOLE else _number(cell)

    def _lines(self, rows: Iterable[Row]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([["" if row[name] is None else row[name] for name in self.columns] for row in rows])
        return text.getvalue()

    def _replace(self) -> None:
        replace_file(self.path, ",".join(self.columns) + "\n" + self._lines(self.rows))


def _number(cell: str) -> Any:
    """Read a number as it was written: a whole one stays whole."""
    try:
        return int(cell)
    except ValueError:
        pass
    try:
        return float(cell)
    except ValueError:
        return cell


def bits(flags: Iterable[float]) -> str:
    """Write a flag per test case in hexadecimal digits, the first case in the highest bit of the first digit."""
    text = "".join("1" if flag else "0" for flag in flags)
    text += "0" * (-len(text) % 4)
    return f"{int(text, 2):0{len(text) // 4}x}" if text else ""
