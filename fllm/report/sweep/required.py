"""Required value of a key: how long a retention, how many bits, for an allowed drop below the ideal device.

Along a line, let ``d_i`` be the drop at the swept value ``x_i``, values in the order in which accuracy improves.
The required value is where the drop last crosses the allowed one, a::

    x* = x_i + (x_(i+1) - x_i) (d_i - a) / (d_i - d_(i+1)),    i the last point with d_i > a

in log10 of the key where it is read on a logarithmic axis. Where no d_i exceeds a, every swept value will do (x* lies
at or before the first one); where the last one does, none will. Both are reported as such, never extrapolated.

The drop is measured below the ideal device; and, since other effects of the device may cost more than is allowed, also
below the accuracy at the better end of the sweep, which leaves what this key alone costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fllm.report.sweep.bootstrap import Array
from fllm.report.sweep.curves import Curve, Line, curves, rises, shown_line
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.points import Key, Value

ALLOWED = (0.005, 0.01, 0.02, 0.05)
"""[1] drops below the ideal device that reports ask for."""
FEWEST_VALUES = 3
_EXACT = 1e-9  # [1] a drop of the allowed size is allowed, whatever its last bit says


@dataclass(frozen=True)
class Required:
    """Required value of a key on one line.

    Coordinates grow in the direction in which accuracy improves: those of :meth:`Key.place`, or their negatives. Minus
    infinity: every swept value will do; infinity: none will.

    Attributes:
        key: The key.
        rising: Whether accuracy rises with it: then at least so much is required, else at most.
        allowed: Allowed drop below the ideal device [1].
        at: Coordinate of the required value.
        lower: Lower end of its 95 % interval; NaN where no interval is known.
        upper: Upper end.
        always: Share of draws in which every swept value will do [1].
        never: Share of draws in which none will [1].
    """

    key: Key
    rising: bool
    allowed: float
    at: float
    lower: float
    upper: float
    always: float
    never: float

    @property
    def has_interval(self) -> bool:
        """Whether an interval is known."""
        return not math.isnan(self.lower)

    def value(self, at: float) -> float | None:
        """Value of the key at a coordinate; None beyond the sweep."""
        if not math.isfinite(at):
            return None
        return self.key.value_at(at if self.rising else -at)

    def text(self, at: float) -> str:
        """Write a required value: "870 µs", "≤ 0.2 ms" where every swept value will do, "not reached"."""
        found = self.value(at)
        if found is not None:
            return self.key.text(found)
        if at > 0:
            return "not reached"
        if self.rising:
            return f"≤ {self.key.text(self.key.values[0])}"
        return f"≥ {self.key.text(self.key.values[-1])}"

    @property
    def interval_text(self) -> str:
        """Write the 95 % interval from the less to the more demanding end."""
        if not self.has_interval:
            return ""
        ends = [self.text(self.lower), self.text(self.upper)]
        shown = ends[0] if ends[0] == ends[1] else " to ".join(ends)
        return shown.replace(" ", "\N{NO-BREAK SPACE}")

    @property
    def whole_text(self) -> str:
        """Write the next whole number that will do, for a key of whole numbers that lies between two."""
        found = self.value(self.at)
        if found is None or not self.key.whole:
            return ""
        rounded = round(found, 6)
        return str(math.ceil(rounded) if self.rising else math.floor(rounded))


@dataclass(frozen=True)
class LineRequired:
    """Required values along one line, one for each of :data:`ALLOWED`.

    Attributes:
        line: The line.
        missing: Values of the key without an accuracy there, such as those that failed.
        better_end: Value of the key at the better end of the line.
        ideal: For drops below the ideal device.
        end: For drops below the point at the better end of the line.
    """

    line: Line
    missing: tuple[Value, ...]
    better_end: Value
    ideal: tuple[Required, ...]
    end: tuple[Required, ...]


def required_values(sweep: Sweep) -> list[tuple[Curve, list[LineRequired]]]:
    """Return the required values of every line of every curve along a key with enough numbers."""
    found = []
    for curve in curves(sweep):
        if not curve.key.numeric or len(curve.key.values) < FEWEST_VALUES:
            continue
        rising = rises(sweep, curve)
        lines = [line for line in curve.lines if len(_usable(sweep, line)) >= FEWEST_VALUES]
        if lines:
            found.append((curve, [_of_line(sweep, curve.key, line, rising) for line in lines]))
    return found


def main_required(curve: Curve, lines: list[LineRequired]) -> LineRequired:
    """Return the required values on the base device's line, or on the longest one where that has too few points."""
    wanted = shown_line(curve, FEWEST_VALUES)
    return next((found for found in lines if found.line is wanted), lines[0])


def crossing(places: Array, drops: Array, allowed: float) -> Array:
    """Return where each row of drops last crosses the allowed one; the formula stands at the top of this module.

    Args:
        places: Coordinates in the order in which accuracy improves, shape (values,).
        drops: Drops below the ideal device [1], shape (rows, values).
        allowed: Allowed drop [1].

    Returns:
        Coordinates, shape (rows,): -inf where no drop exceeds the allowed one, inf where the last one does.
    """
    exceeds = drops > allowed + _EXACT
    count = drops.shape[1]
    last = count - 1 - np.argmax(exceeds[:, ::-1], axis=1)
    i = np.minimum(last, count - 2)
    rows = np.arange(len(drops))
    before, after = drops[rows, i], drops[rows, i + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = places[i] + (places[i + 1] - places[i]) * (before - allowed) / (before - after)
    between = np.where(last == count - 1, np.inf, between)
    return np.where(exceeds.any(axis=1), between, -np.inf)


def _usable(sweep: Sweep, line: Line) -> list[int]:
    return [place for place in line.places if sweep.points[place].drop is not None]


def _of_line(sweep: Sweep, key: Key, line: Line, rising: bool) -> LineRequired:
    places = _usable(sweep, line) if rising else _usable(sweep, line)[::-1]
    where = np.array([key.place(sweep.points[place].values[key.name]) for place in places]) * (1.0 if rising else -1.0)
    drops = np.array([[sweep.points[place].drop or 0.0 for place in places]])
    accuracy = np.array([[sweep.points[place].accuracy or 0.0 for place in places]])
    drawn_drops, drawn = sweep.draws.drop[:, places], sweep.draws.accuracy[:, places]
    there = {sweep.points[place].values[key.name] for place in places}
    return LineRequired(
        line,
        tuple(value for value in key.values if value not in there),
        sweep.points[places[-1]].values[key.name],
        tuple(_required(key, rising, allowed, where, drops, drawn_drops) for allowed in ALLOWED),
        tuple(
            _required(key, rising, allowed, where, accuracy[:, -1:] - accuracy, drawn[:, -1:] - drawn)
            for allowed in ALLOWED
        ),
    )


def _required(key: Key, rising: bool, allowed: float, where: Array, drops: Array, drawn: Array) -> Required:
    at = float(crossing(where, drops, allowed)[0])
    if not drawn.size or np.isnan(drawn).any():
        return Required(key, rising, allowed, at, math.nan, math.nan, math.nan, math.nan)
    found = np.sort(crossing(where, drawn, allowed))
    lower, upper = np.quantile(found, [0.025, 0.975], method="inverted_cdf")  # no arithmetic between infinities
    always, never = float(np.mean(found == -np.inf)), float(np.mean(found == np.inf))
    return Required(key, rising, allowed, at, float(lower), float(upper), always, never)
