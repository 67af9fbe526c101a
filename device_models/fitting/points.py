"""CSV files of measured points, told apart by their header; units stand in the header: ``time_us,voltage_mV``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from device_models.errors import InputError, nearest
from device_models.quantities import parse_quantity

Kind = Literal["cell", "retention", "converter"]

_UNITS: Mapping[str, tuple[str, ...]] = {
    "voltage": ("V",),
    "current": ("A",),
    "current_std": ("A",),
    "time": ("s",),
    "written": ("V",),
    "cell": (),
    "input": ("V", "A"),
    "code": (),
}
"""SI units that a column may be given in; ``cell`` and ``code`` take none, ``input`` may go without."""

_KINDS: Mapping[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "cell": (frozenset({"voltage", "current"}), frozenset({"current_std"})),
    "retention": (frozenset({"time", "voltage"}), frozenset({"written", "cell"})),
    "converter": (frozenset({"input", "code"}), frozenset()),
}
"""Columns that each kind needs, and those it may have."""

_EXPECTED = (
    "a header such as voltage_V,current_A[,current_std_A] (cell), time_s,voltage_V[,written_V][,cell] (retention)"
    " or input,code (converter)"
)


@dataclass(frozen=True, eq=False)
class Points:
    """Measured points of one file, in SI units.

    Attributes:
        kind: What was measured.
        file: Path as given, for messages.
        lines: Line of the file that each point stands on.
        columns: Values by column name without its unit, for example ``"voltage"`` [V]; ``cell`` is left out.
        cells: Id of each point's cell; empty without such a column.
        input_unit: SI unit of ``input``, empty for a number without unit.
    """

    kind: Kind
    file: str
    lines: NDArray
    columns: Mapping[str, NDArray]
    cells: tuple[str, ...] = ()
    input_unit: str = ""

    def __len__(self) -> int:
        return len(self.lines)


def read_points(path: str | Path) -> Points:
    """Read a CSV file: one header, one point per line, commas, decimal points; lines that begin with # are skipped.

    Raises:
        InputError: If the file is absent, empty or no such table, a column is unknown, missing or without its unit,
            or a line is malformed; the message names the line.
    """
    where = str(path)
    rows = _rows(Path(path), where)
    if not rows:
        raise InputError("the file is empty", where=where, expected=_EXPECTED)
    (first, header), body = rows[0], rows[1:]
    place = f"{where}, line {first}"
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InputError("columns are not separated by commas", where=place, remedy="save it as comma-separated CSV")
    columns = [_column(title.strip(), place) for title in header]
    names = [name for name, _, _ in columns]
    kind = _kind(names, place)
    if not body:
        raise InputError("no points below the header", where=where, expected="one point per line")
    table: dict[str, list[float]] = {name: [] for name in names}
    cells: list[str] = []
    for line, row in body:
        place = f"{where}, line {line}"
        if len(row) != len(header):
            raise InputError("malformed line", where=place, expected=f"{len(header)} fields", received=len(row))
        for (name, _, scale), text in zip(columns, row, strict=True):
            if name == "cell":
                cells.append(_identity(text, place))
            else:
                table[name].append(_number(name, text, scale, place))
    units = {name: unit for name, unit, _ in columns}
    return Points(
        kind=kind,
        file=where,
        lines=np.array([line for line, _ in body]),
        columns={name: np.array(values) for name, values in table.items() if name != "cell"},
        cells=tuple(cells),
        input_unit=units.get("input", ""),
    )


def _rows(path: Path, where: str) -> list[tuple[int, list[str]]]:
    """Return (number of the line, fields) of every line that says something."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError("no such file", where=where, remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", where=where, expected="a UTF-8 CSV file") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if any(field.strip() for field in row) and not row[0].lstrip().startswith("#"):
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise InputError(f"malformed line: {error}", where=f"{where}, line {reader.line_num}") from None
    return rows


def _column(title: str, place: str) -> tuple[str, str, float]:
    """Part a title such as ``time_us`` into name, SI unit and factor to it."""
    name = next((n for n in sorted(_UNITS, key=len, reverse=True) if title == n or title.startswith(f"{n}_")), None)
    if name is None:
        known = [f"{n}_{units[0]}" if units else n for n, units in _UNITS.items()]
        raise InputError("unknown column", where=place, received=title, remedy=nearest(title, known))
    units, unit = _UNITS[name], title[len(name) + 1 :]
    if not unit:
        if units and name != "input":
            raise InputError("a column without its unit", where=place, expected=f"{name}_{units[0]}", received=title)
        return name, "", 1.0
    for si_unit in units:
        try:
            return name, si_unit, parse_quantity(f"1 {unit}", si_unit)
        except ValueError:
            continue
    expected = f"{name} in {' or '.join(units)}, such as {name}_m{units[0]}" if units else f"{name} without a unit"
    raise InputError("a column with a wrong unit", where=place, expected=expected, received=title)


def _kind(names: list[str], place: str) -> Kind:
    """Tell from the columns what was measured."""
    for name in names:
        if names.count(name) > 1:
            raise InputError("a column stands twice", where=place, received=name, remedy="keep one of them")
    given = set(names)
    whole = [kind for kind, (needed, _) in _KINDS.items() if needed <= given]
    if not whole:
        raise InputError("columns are missing", where=place, expected=_EXPECTED, received=", ".join(names))
    strange = given - _KINDS[whole[0]][0] - _KINDS[whole[0]][1]
    if len(whole) > 1 or strange:
        raise InputError(
            "columns that do not belong together", where=place, expected=_EXPECTED, received=", ".join(names),
            remedy="keep one kind of measurement per file",
        )  # fmt: skip
    return whole[0]


def _identity(text: str, place: str) -> str:
    if not text.strip():
        raise InputError("a point without its cell", where=place, expected="the id of the measured cell")
    return text.strip()


def _number(name: str, text: str, scale: float, place: str) -> float:
    """Read one field and check what its column alone can know."""
    try:
        value = float("" if "_" in text else text) * scale  # Python reads 1_000 as a number
    except ValueError:
        raise InputError(f"{name} is no number", where=place, expected="a decimal number", received=text) from None
    if not math.isfinite(value):
        raise InputError(f"{name} is not finite", where=place, expected="a finite number", received=text)
    if name == "time" and value < 0:
        raise InputError("a negative time", where=place, expected="time since the write, >= 0", received=text)
    if name == "current_std" and value <= 0:
        raise InputError("a standard deviation that is not positive", where=place, expected="> 0 A", received=text)
    if name == "code" and not value.is_integer():
        raise InputError("a code that is no whole number", where=place, expected="single reads", received=text)
    return value
