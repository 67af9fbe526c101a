"""Numbers in the cells of the release: identifiers, reference limits, laboratory values, lists of test numbers."""

from __future__ import annotations

import ast
import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from device_models.errors import InputError

Number = TypeVar("Number")

_INTEGER = re.compile(r"[0-9]{1,15}(?:\.0+)?")
_SCIENTIFIC = re.compile(r"[0-9](?:\.[0-9]*)?[eE]\+?[0-9]+")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_LEADING = re.compile(r"\s*([-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)(?![0-9.,:/-])")
_LIST = re.compile(r"\[ *(?:[0-9]{1,15}(?:\.0*)?(?: *, *[0-9]{1,15}(?:\.0*)?)*)? *\]")


def _converted(
    values: Sequence[str], convert: Callable[[str], Number], what: str, where: str, expected: str
) -> list[Number]:
    of: dict[str, Number] = {}
    for value in set(values):
        with contextlib.suppress(ValueError):
            of[value] = convert(value)
    failed = [row for row, value in enumerate(values, start=1) if value not in of]
    if failed:
        more = f", as in {len(failed) - 1:,} more of its rows" if len(failed) > 1 else ""
        raise InputError(f"{what}{more}", where=f"{where}, row {failed[0]}", expected=expected)
    return [of[value] for value in values]


def integers(table: dict[str, list[str]], column: str, where: str) -> list[int]:
    """Convert a column of ids; ``51301.0`` counts as 51301.

    Raises:
        InputError: If a value is no whole number, or was written in a form that loses digits.
    """
    expected = "digits"
    if any(_SCIENTIFIC.fullmatch(value.strip()) for value in set(table[column])):
        expected = "all digits; a spreadsheet wrote 1.2E+07, which loses some"
    return _converted(table[column], _integer, f"{column} is no whole number", where, expected)


def _integer(value: str) -> int:
    number = integer_or_none(value)
    if number is None:
        raise ValueError
    return number


def integer_or_none(value: str) -> int | None:
    """Return the whole number in a cell, or None when there is none."""
    value = value.strip()
    return int(value.split(".")[0]) if _INTEGER.fullmatch(value) else None


def limits(table: dict[str, list[str]], column: str, where: str) -> list[float | None]:
    """Convert a column of reference limits; empty cells and ``nan`` give None.

    Raises:
        InputError: If a value is neither a finite number nor missing.
    """
    return _converted(table[column], _limit, f"{column} is no number", where, "a number")


def _limit(value: str) -> float | None:
    value = value.strip()
    if value == "" or value.lower() == "nan":
        return None
    number = float(value) if _DECIMAL.fullmatch(value) else math.nan
    if not math.isfinite(number):
        raise ValueError
    return number


def leading_number(value: str) -> float | None:
    """Return the number at the start of a laboratory value such as ``12.4 K/uL``, or None."""
    match = _LEADING.match(value)
    number = float(match.group(1)) if match else math.nan
    return number if math.isfinite(number) else None


def listed_ids(cell: str) -> list[int] | None:
    """Return the test numbers of a list literal such as ``[51301, 51755]``, or None when it is no such list."""
    if not _LIST.fullmatch(cell.strip()):
        return None
    try:
        values = ast.literal_eval(cell.strip())
    except SyntaxError:  # such as 007
        return None
    return [int(value) for value in values]
