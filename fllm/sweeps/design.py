"""Which values a sweep gives its keys, and how they combine: what ``--vary key=values`` and ``--design`` mean.

``--vary`` takes, as the values behind the equals sign::

    0.2 ms,1 ms,5 ms      a list
    3:8   0:1:0.25        a range with both ends, by whole steps or the step given
    log:0.2 ms:50 ms:7    so many values, equal factors apart
    lin:1 ms:5 ms:5       so many values, equal steps apart

Random and Sobol designs draw from a list, from the whole numbers of a range such as ``3:8``, or from anything between
two ends (``0.1:0.5``, ``log:0.2 ms:50 ms``).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from device_models import InputError, format_quantity, parse_quantity
from device_models.strict_yaml import parse_yaml

Kind = Literal["grid", "list", "random", "sobol"]
DESIGNS: tuple[Kind, ...] = ("grid", "list", "random", "sobol")
DRAWN = ("random", "sobol")
MOST_VALUES = 100_000
"""Values that one key may have."""

_EXACT = 12
"""Digits that decimal ends and steps have at most."""
_DRAWS = 1000
"""Numbers between two ends that a drawn design can tell apart."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TERM = rf"\s*{_NUMBER}\s*[^:,]*"
_RANGE = re.compile(rf"({_TERM}):({_TERM})(?::({_TERM}))?")
_SPACED = re.compile(rf"(log|lin):({_TERM}):({_TERM})(?::\s*(\d+)\s*)?")


@dataclass(frozen=True)
class Span:
    """What a random design draws from: the numbers between two ends, in the key's unit.

    Attributes:
        low: Lower end.
        high: Upper end.
        whole: Whether only whole numbers count.
        logarithmic: Whether equal factors, rather than equal differences, are equally likely.
    """

    low: float
    high: float
    whole: bool = False
    logarithmic: bool = False

    def at(self, share: float) -> float:
        """Return the number below which this share of the draws lies, ``0 <= share < 1``."""
        if self.whole:
            return self.low + math.floor(share * (self.high - self.low + 1))
        if self.logarithmic:
            return self.low * (self.high / self.low) ** share
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Vary:
    """One varied key as the user wrote it.

    Attributes:
        key: Dotted key, without ``device.`` in front.
        spec: What stands behind the equals sign.
    """

    key: str
    spec: str

    def values(self, unit: str | None) -> list[object]:
        """Return the values as written, of a list or a range.

        Args:
            unit: SI unit of the key; None for plain numbers and words.

        Raises:
            InputError: If there is none, or they cannot be read.
        """
        found = self._range(unit)
        if found is None:
            found = self._list()
        if not found:
            raise self._wrong("no value", "at least one")
        return found

    def span(self, unit: str | None) -> Span | list[object]:
        """Return what random designs draw from: a span, or the choices of a list; raises InputError."""
        spaced, plain = _SPACED.fullmatch(self.spec), _RANGE.fullmatch(self.spec)
        if spaced is not None and spaced[4] is None:
            low, high = self._ends(spaced[2], spaced[3], unit)
            self._above_zero(spaced[1], low)
            return Span(low, high, logarithmic=spaced[1] == "log")
        if plain is not None and plain[3] is None:
            low, high = self._ends(plain[1], plain[2], unit)
            return Span(low, high, whole=unit is None and all(_is_whole(plain[end]) for end in (1, 2)))
        return self.values(unit)

    def _range(self, unit: str | None) -> list[object] | None:
        spaced, plain = _SPACED.fullmatch(self.spec), _RANGE.fullmatch(self.spec)
        if spaced is not None:
            if spaced[4] is None:
                raise self._wrong("number of values missing", f"{spaced[1]}:lowest:highest:number")
            return self._spaced(spaced, unit)
        if self.spec.startswith(("log:", "lin:")):
            raise self._wrong("cannot be read", f"{self.spec[:3]}:lowest:highest:number, such as log:0.2 ms:50 ms:7")
        if plain is None:
            return None
        low, high = self._ends(plain[1], plain[2], unit)
        if plain[3] is None and (unit is not None or not _is_whole(plain[1])):
            raise self._wrong("step missing", "lowest:highest:step")
        step = 1.0 if plain[3] is None else self._number(plain[3], unit)
        if step <= 0:
            raise self._wrong("step not above zero", "lowest:highest:step")
        steps = (high - low) / step * (1 + 1e-12) + 1e-9
        number = self._few(1 + math.floor(min(steps, MOST_VALUES)))
        whole = unit is None and all(_is_whole(text) for text in (plain[1], plain[3] or "1"))
        found = [low + i * step for i in range(number)]
        found = [x if abs(x) > 1e-9 * step else 0.0 for x in found]  # what sums of decimals leave of zero
        return self._written(found, unit, _EXACT, whole=whole)

    def _spaced(self, match: re.Match[str], unit: str | None) -> list[object]:
        low, high = self._ends(match[2], match[3], unit)
        self._above_zero(match[1], low)
        number = self._few(int(match[4]))
        if number < 2:
            raise self._wrong("too few values", "2 or more")
        space = np.geomspace if match[1] == "log" else np.linspace
        found = [float(x) for x in space(low, high, number)]
        digits = _digits(min((b - a) / max(abs(a), abs(b)) for a, b in itertools.pairwise(found)), unit)
        first, last = self._written([low, high], unit, _EXACT)
        return [first, *self._written(found[1:-1], unit, digits), last]

    def _written(
        self, numbers: Sequence[float], unit: str | None, digits: int, *, whole: bool = False
    ) -> list[object]:  # fmt: skip
        """Write computed numbers as a file would hold them."""
        if unit is not None:
            return [format_quantity(x, unit, digits) for x in numbers]
        return [round(x) if whole else float(f"{x:.{digits}g}") for x in numbers]

    def drawn(self, number: float, span: Span, unit: str | None) -> object:
        """Write a number that a random design drew from a span; rounding does not leave it."""
        apart = (span.high - span.low) / max(abs(span.low), abs(span.high)) / _DRAWS
        for digits in (_digits(apart, unit), _EXACT):
            written = self._written([number], unit, digits, whole=span.whole)[0]
            if span.low <= self._number(str(written), unit) <= span.high:
                break
        return written

    def _list(self) -> list[object]:
        try:
            found = parse_yaml(f"[{self.spec}]", f"--vary {self.key}")
            json.dumps(found, default=str)  # a list may hold itself
        except ValueError:
            raise self._wrong("cannot be read", "values separated by commas, or a range such as 3:8") from None
        return list(found)

    def _ends(self, low: str, high: str, unit: str | None) -> tuple[float, float]:
        ends = self._number(low, unit), self._number(high, unit)
        if not ends[0] < ends[1]:
            raise self._wrong("impossible range", "the lower end first")
        return ends

    def _above_zero(self, spacing: str, low: float) -> None:
        if spacing == "log" and low <= 0:
            raise self._wrong("impossible range", "ends above zero")

    def _few(self, number: int) -> int:
        if number > MOST_VALUES:
            raise self._wrong("too many values", f"at most {MOST_VALUES:,}")
        return number

    def _number(self, text: str, unit: str | None) -> float:
        try:
            number = float(text) if unit is None else parse_quantity(text, unit)
        except ValueError:
            expected = "plain numbers" if unit is None else f"quantities in {unit}, such as '1.5 {unit}'"
            raise self._wrong("impossible range", expected) from None
        if not math.isfinite(number):
            raise self._wrong("impossible range", "finite ends and step")
        return number

    def _wrong(self, what: str, expected: str) -> InputError:
        return InputError(what, where=f"--vary {self.key}", expected=expected, received=self.spec)


def parse_vary(text: str) -> Vary:
    """Read one ``--vary key=values``; raises InputError."""
    key, equals, spec = text.partition("=")
    key = key.strip().removeprefix("device.")
    if not equals or not key:
        raise InputError(
            "cannot be read", where=f"--vary {text}", expected="key=values, such as readout.bits=3:8"
        )  # fmt: skip
    return Vary(key, spec.strip())


def combinations(varied: Sequence[tuple[Vary, str | None]], kind: Kind, *, points: int | None, seed: int) -> Points:
    """Lay out the points of a sweep.

    Args:
        varied: Varied keys, each with its SI unit or None.
        kind: ``grid`` combines every value with every other; ``list`` takes the first value of each key, then the
            second, and so on; ``random`` and ``sobol`` draw from what the keys span.
        points: How many are drawn; only for the latter two.
        seed: Of the draws.

    Raises:
        InputError: If a value cannot be read, or the number of points does not fit the design.
    """
    if kind in DRAWN:
        if points is None or points < 1:
            raise InputError("zero points", where="--points", expected="1 or more for a drawn design", received=points)
        return _draw(varied, kind, points, seed)
    if points is not None:
        raise InputError("has no meaning for this design", where="--points", expected=f"--design {' or '.join(DRAWN)}")
    lists = [vary.values(unit) for vary, unit in varied]
    if kind == "grid":
        return Points(lists, math.prod(map(len, lists)), grid=True)
    lengths = {len(values) for values in lists}
    if len(lengths) > 1:
        shown = ", ".join(f"{vary.key}: {len(values)}" for (vary, _), values in zip(varied, lists, strict=True))
        raise InputError("lists of different lengths", where="--design list", expected="equal ones", received=shown)
    return Points(lists, lengths.pop(), grid=False)


@dataclass(frozen=True)
class Points:
    """Points of a design, laid out without being listed: a mistyped grid may have a billion of them.

    Attributes:
        values: Values of each key; of a grid each once, else one for each point.
        number: Number of points.
        grid: Whether every value is combined with every other.
    """

    values: list[list[object]]
    number: int
    grid: bool

    def listed(self) -> list[tuple[object, ...]]:
        """Return the values of every point; the last key of a grid changes first."""
        return list(itertools.product(*self.values)) if self.grid else list(zip(*self.values, strict=True))


def _draw(varied: Sequence[tuple[Vary, str | None]], kind: Kind, points: int, seed: int) -> Points:
    if points > MOST_VALUES:
        raise InputError("too many points", where="--points", expected=f"at most {MOST_VALUES:,}", received=points)
    shares = _shares(kind, points, len(varied), seed)
    columns: list[list[object]] = []
    for (vary, unit), column in zip(varied, shares.T, strict=True):
        span = vary.span(unit)
        if isinstance(span, Span):
            columns.append([vary.drawn(span.at(share), span, unit) for share in column.tolist()])
        else:
            columns.append([span[math.floor(share * len(span))] for share in column.tolist()])
    return Points(columns, points, grid=False)


def _shares(kind: Kind, points: int, keys: int, seed: int) -> NDArray[np.float64]:
    """Return numbers from 0 to below 1, (points, keys)."""
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.random((points, keys))
    from scipy.stats.qmc import Sobol

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numbers that are no power of two are allowed, if less balanced
        drawn: NDArray[np.float64] = Sobol(keys, scramble=True, rng=rng).random(points)
    return np.minimum(drawn, np.nextafter(1.0, 0.0))


def _digits(apart: float, unit: str | None) -> int:
    """Return how many digits to write: few that a person reads, more where numbers lie close (relative distance)."""
    return min(max(4 if unit is not None else 6, math.ceil(-math.log10(apart)) + 1), _EXACT)


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d+\s*", text) is not None
