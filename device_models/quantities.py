"""Quantity strings such as ``"17.1 fJ"`` to SI floats and back; pint is met only here.

Files and the command line speak in quantity strings, everything behind this border in SI floats. Both directions
shift decimal exponents instead of multiplying floats, so ``"17.1 fJ"`` is exactly ``1.71e-14``.
"""

from __future__ import annotations

import math
import re
import tokenize
from decimal import Decimal
from functools import cache
from typing import Any

_QUANTITY = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$")
_PREFIXABLE = re.compile(r"^[A-Za-zΩ]+(?!\s*(?:\*\*|\^|[A-Za-zΩ]))")
_PREFIXES = {
    -18: "a", -15: "f", -12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T",
}  # fmt: skip


@cache
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(cache_folder=None, autoconvert_offset_to_baseunit=True)


@cache
def _scale(unit: str, si_unit: str) -> Decimal:
    """Return the decimal factor from ``unit`` to ``si_unit``; raise ValueError where they do not convert."""
    import pint

    registry = _registry()
    try:
        factor, double = (registry.Quantity(n, unit).to(si_unit).magnitude for n in (1, 2))
    except pint.UndefinedUnitError:
        raise ValueError(f"expected a quantity in {si_unit}, but {unit!r} is no known unit") from None
    except (
        pint.errors.PintError,
        tokenize.TokenError,
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        SyntaxError,
        TypeError,
        ValueError,
    ):  # fmt: skip - whatever pint's parser throws at a mistyped unit
        raise ValueError(f"expected a quantity in {si_unit}, but {unit!r} does not convert to it") from None
    if not math.isclose(double, 2 * factor, rel_tol=1e-12):  # degF, dBm: no factor leads there
        raise ValueError(f"expected a quantity in {si_unit}, but {unit!r} is not proportional to it")
    return Decimal(f"{factor:.12g}")


def parse_quantity(text: object, si_unit: str) -> float:
    """Read a quantity string into a float in ``si_unit``.

    Args:
        text: For example ``"5 ms"``, ``"0.9 V"``, ``"27 degC"``.
        si_unit: SI unit without prefix that the caller wants, for example ``"s"`` or ``"A/V**2"``.

    Returns:
        The value in ``si_unit``.

    Raises:
        ValueError: If it is a bare number, no quantity, of another dimension, or not finite.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected a quantity string in {si_unit} such as '1.5 {si_unit}', not a bare value")
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError(f"expected a quantity in {si_unit} such as '1.5 {si_unit}'")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"expected a quantity in {si_unit} such as '{number} {si_unit}'; the unit is missing")
    if si_unit == "K" and unit in ("degC", "°C", "C"):
        return float(Decimal(number) + Decimal("273.15"))
    scale = _scale(unit, si_unit)
    try:
        value = float(Decimal(number) * scale)
    except ArithmeticError:  # an exponent beyond decimal's own range
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"expected a finite quantity in {si_unit}")
    return value


def format_quantity(value: float, si_unit: str, digits: int = 3) -> str:
    """Write an SI value for a person to read, with an engineering prefix: ``1.71e-14, "J"`` -> ``"17.1 fJ"``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {si_unit}"
    if _PREFIXABLE.match(si_unit) is None:  # nm**2 is (nm)**2, and 1/s has nothing to put a prefix on
        return f"{value:.{digits}g} {si_unit}"
    exponent = min(max(3 * math.floor(math.log10(abs(value)) / 3 + 1e-12), min(_PREFIXES)), max(_PREFIXES))
    shown = f"{value / 10**exponent:.{digits}g}"
    if abs(float(shown)) >= 1000 and exponent < max(_PREFIXES):  # 999.7 us rounds up to 1 ms
        exponent += 3
        shown = f"{value / 10**exponent:.{digits}g}"
    if "e" in shown:
        shown = f"{float(shown):.{max(digits, 6)}g}"
    return f"{shown} {_PREFIXES[exponent]}{si_unit}"
