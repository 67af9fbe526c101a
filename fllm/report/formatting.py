"""Numbers as a reader wants them: three significant digits, engineering prefixes, a dash where nothing is known.

A no-break space stands between number and unit. What is written still knows the number that it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NOTHING = "–"  # noqa: RUF001 - an en dash is what a table shows for "no value"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_SPACE = "\N{NO-BREAK SPACE}"
_PREFIXES = {
    -24: "y", -21: "z", -18: "a", -15: "f", -12: "p", -9: "n", -6: "µ", -3: "m",
    0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E",
}  # fmt: skip


class Quantity(str):
    """A number as a reader sees it, with the number itself: a page sorts by it and shows it in full on hovering.

    Attributes:
        value: The number in SI, unrounded; of an interval its lower end.
        exact: All that the text shows, unrounded, with its unit: "5.9512e-07 J".
    """

    value: float
    exact: str

    def __new__(
        cls,
        text: str,
        value: float,
        unit: str = "",
        *,
        std: float | None = None,
        to: float | None = None,
        within: Sequence[float] | None = None,
    ) -> Quantity:
        """Attach numbers to a text.

        Args:
            text: What is shown.
            value: The number that it shows, in SI.
            unit: Unit of the number.
            std: Standard deviation that the text shows too.
            to: Upper end of the interval that begins with the number.
            within: Ends of the interval around the number.
        """
        self = super().__new__(cls, text)
        self.value = value
        numbers = _full(value) + (
            f" ± {_full(std)}" if std is not None else f" to {_full(to)}" if to is not None else ""
        )
        if within:
            numbers += f" ({_full(within[0])} to {_full(within[1])})"
        self.exact = f"{numbers} {unit}".rstrip()
        return self

    def __getnewargs__(self) -> tuple[str, float]:  # type: ignore[override]
        """Let it be copied and pickled, which a string with a second argument is not by itself."""
        return str(self), self.value


def significant(value: float | None, digits: int = 3) -> str:
    """Write a plain number with so many significant digits: 0.912, 12.3, 4567 stays 4567."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return Quantity("0", value)
    exponent = _rounded_exponent(value, digits)
    if not -4 <= exponent <= 6:
        return Quantity(f"{value:.{digits - 1}e}", value)
    return Quantity(f"{value:.{max(0, digits - 1 - exponent)}f}", value)


def prefix_exponent(value: float) -> int:
    """Power of ten of the engineering prefix that suits a value: -9 for 2.4e-8."""
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = 3 * math.floor(_rounded_exponent(value, 3) / 3)
    return min(max(exponent, min(_PREFIXES)), max(_PREFIXES))


def prefix(exponent: int) -> str:
    """Engineering prefix of a power of ten that is a multiple of three."""
    return _PREFIXES[exponent]


def engineering(value: float | None, unit: str) -> str:
    """Write a quantity with an engineering prefix: 1.7e-14 J is "17.0 fJ"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    exponent = prefix_exponent(value)
    return Quantity(f"{significant(value / 10.0**exponent)}{_SPACE}{prefix(exponent)}{unit}", value, unit)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage."""
    if fraction is None or not math.isfinite(fraction):
        return NOTHING
    return Quantity(f"{100 * fraction:.{digits}f}{_SPACE}%", fraction)


def share(part: float, total: float, digits: int = 1) -> str:
    """Write a part of a total as a percentage; a small part is "< 0.1 %", never "0.0 %"."""
    if total <= 0:
        return NOTHING
    smallest = 10.0 ** (-digits - 2)
    if 0 < part / total < smallest / 2:
        return Quantity(f"<{_SPACE}{percent(smallest, digits)}", part / total)
    return percent(part / total, digits)


def interval(bounds: Sequence[float] | None) -> str:
    """Write a pair of fractions as "66.0 to 76.2 %"."""
    if not bounds or len(bounds) != 2:
        return NOTHING
    return Quantity(f"{100 * bounds[0]:.1f} to {percent(bounds[1])}", bounds[0], to=bounds[1])


def score(value: float | None) -> str:
    """Write a score such as macro-F1: three decimals below one, three digits from there on."""
    if value is None or not math.isfinite(value) or abs(value) >= 1:
        return significant(value)
    return Quantity(f"{value:.3f}", value)


def between(bounds: Sequence[float] | None) -> str:
    """Write a pair of plain numbers as "0.521 to 0.651"."""
    if not bounds or len(bounds) != 2:
        return NOTHING
    return Quantity(f"{score(bounds[0])} to {score(bounds[1])}", bounds[0], to=bounds[1])


def estimate(value: float | None, bounds: Sequence[float] | None, *, fraction: bool = True) -> str:
    """Write a number with its interval, each unbroken in itself: "74.2 % (65.8 to 81.7)", "0.586 (0.520 to 0.651)".

    Args:
        value: The number; a fraction is shown in percent.
        bounds: Ends of its interval, or None.
        fraction: Whether the number is shown in percent.
    """
    shown = percent(value) if fraction else score(value)
    if value is None or not bounds or len(bounds) != 2:
        return shown
    ends = [f"{100 * end:.1f}" if fraction else str(score(end)) for end in bounds]
    inside = f"({ends[0]} to {ends[1]})".replace(" ", _SPACE)
    return Quantity(f"{shown} {inside}", value, within=bounds)


def points(difference: float | None) -> str:
    """Write a difference of two fractions in points: +1.2, \N{MINUS SIGN}0.4."""
    return _signed(difference, 100, 1)


def points_between(bounds: Sequence[float] | None) -> str:
    """Write an interval of such a difference: "\N{MINUS SIGN}0.4 to +1.2"."""
    if not bounds or len(bounds) != 2:
        return NOTHING
    return Quantity(f"{points(bounds[0])} to {points(bounds[1])}", bounds[0], to=bounds[1])


def change(difference: float | None) -> str:
    """Write a difference of two plain numbers with its sign: +0.012, \N{MINUS SIGN}0.004."""
    return _signed(difference, 1, 3)


def change_between(bounds: Sequence[float] | None) -> str:
    """Write an interval of such a difference."""
    if not bounds or len(bounds) != 2:
        return NOTHING
    return Quantity(f"{change(bounds[0])} to {change(bounds[1])}", bounds[0], to=bounds[1])


def p_value(p: float | None) -> str:
    """Write the p-value of a test: 0.62, 0.041, "< 0.001"."""
    if p is None or not math.isfinite(p):
        return NOTHING
    if p < 0.001:
        return Quantity(f"<{_SPACE}0.001", p)
    return Quantity(f"{p:.2f}" if p >= 0.1 else f"{p:.3f}", p)


def shown_count(value: float | None, smallest: int | None) -> str:
    """Write a count of cases, or that it is hidden.

    Args:
        value: The count; None where it is hidden, itself small or next to a small one that it would tell.
        smallest: Smallest count of real cases that is told; None where nothing is hidden.
    """
    if smallest and value is None:
        return "hidden"
    if smallest and value is not None and 0 < value < smallest:
        return f"<{_SPACE}{smallest}"
    return count(value)


def spread(mean: float | None, std: float | None, dies: int | None, *, fraction: bool = True) -> str:
    """Write the mean over dies and, when there are several, its standard deviation."""
    shown = percent(mean) if fraction else significant(mean)
    if mean is None or std is None or not dies or dies < 2:
        return shown
    if fraction:
        return Quantity(f"{100 * mean:.1f} ± {percent(std)}", mean, std=std)
    return Quantity(f"{significant(mean)} ± {significant(std, 2)}", mean, std=std)


def count(value: float | None) -> str:
    """Write a count: 65,536 in full, 1.05 M from a million on."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1e6:
        return engineering(value, "")
    if float(value).is_integer() or abs(value) >= 1000:
        return Quantity(f"{value:,.0f}", value)
    return significant(value)


def times(ratio: float | None) -> str:
    """Write a ratio with three digits and a multiplication sign, a small one as a fraction: 13,600 x, 5.38 x, 1/240."""
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return NOTHING
    if ratio < 0.01:
        return Quantity(f"1/{_rounded(1 / ratio)}", ratio)
    return Quantity(f"{_rounded(ratio)}{_SPACE}\N{MULTIPLICATION SIGN}", ratio)


def _rounded(ratio: float) -> str:
    """Write a number with three digits, from a million on with a power of ten."""
    if ratio >= 1e6:
        digits, _, exponent = f"{ratio:.2e}".partition("e")
        return f"{digits}\N{MIDDLE DOT}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{float(f'{ratio:.3g}'):,.0f}" if ratio >= 1000 else significant(ratio)


def _signed(difference: float | None, scale: float, digits: int) -> str:
    """Write a difference with its sign."""
    if difference is None or not math.isfinite(difference):
        return NOTHING
    return Quantity(f"{scale * difference:+.{digits}f}".replace("-", "\N{MINUS SIGN}"), difference)


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: "1 round", "4 rounds"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _full(value: float) -> str:
    """Write all digits of a number, a whole one without a decimal point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(value)


def _rounded_exponent(value: float, digits: int) -> int:
    """Decimal exponent of a value after rounding, so that 999.7 counts as 1.00e3."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])
