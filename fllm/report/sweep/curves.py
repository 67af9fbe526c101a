"""Curves of a sweep: accuracy along one key while the others are held, and whether it is monotone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.points import Key, Value

MOST_LINES = 6


@dataclass(frozen=True)
class Line:
    """Points along one key.

    Attributes:
        value: Value of the second key; None where there is only one key.
        places: Points with an accuracy, the key ascending.
        failed: Points without one.
    """

    value: Value | None
    places: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True)
class Curve:
    """Lines along one key, one for each chosen value of a second one; all further keys are held.

    Attributes:
        key: The key that varies along a line.
        second: The key that differs from line to line.
        lines: At most :data:`MOST_LINES`.
        main: Which line is the base device's, or nearest to it.
        held: Further keys with the value that they are held at.
    """

    key: Key
    second: Key | None
    lines: tuple[Line, ...]
    main: int
    held: tuple[tuple[Key, Value], ...]


@dataclass(frozen=True)
class Violation:
    """Two neighbouring points of a line between which accuracy goes the wrong way.

    Attributes:
        before: Place of the point with the smaller value of the key.
        after: Place of the other.
        difference: Accuracy there less here [1].
        interval: Its 95 % interval [1]; zero lies outside.
    """

    before: int
    after: int
    difference: float
    interval: tuple[float, float]


def curves(sweep: Sweep) -> list[Curve]:
    """Return one curve for each key; none where a key cannot be followed alone."""
    if not sweep.gridlike:
        return []
    return [_curve(sweep, key) for key in sweep.keys if key.values]


def shown_line(curve: Curve, fewest: int = 2) -> Line:
    """Return the base device's line, or the one with most points where that one has fewer than so many."""
    main = curve.lines[curve.main]
    return main if len(main.places) >= fewest else max(curve.lines, key=lambda line: len(line.places))


def held_on(curve: Curve, line: Line) -> list[tuple[Key, Value]]:
    """Return every key that is held on a line, with its value there."""
    second = [] if curve.second is None or line.value is None else [(curve.second, line.value)]
    return [*second, *curve.held]


def main_values(sweep: Sweep) -> dict[str, Value]:
    """Return the value that each key is held at: the base device's, or the swept one that is nearest to it."""
    return {key.name: key.nearest(key.base) for key in sweep.keys if key.values}


def rises(sweep: Sweep, curve: Curve) -> bool:
    """Say whether accuracy rises with the key: the sign of their covariance, all lines together; True where it is 0."""
    total = 0.0
    for line in curve.lines:
        where = [curve.key.place(sweep.points[place].values[curve.key.name]) for place in line.places]
        accuracy = sweep.accuracies(line.places)
        middle = sum(where) / max(1, len(where))
        total += sum((x - middle) * y for x, y in zip(where, accuracy, strict=True))
    return total >= 0.0


def violations(sweep: Sweep, curve: Curve) -> list[Violation]:
    """List neighbours of a line whose paired difference has the wrong sign with 95 % confidence."""
    sign = 1.0 if rises(sweep, curve) else -1.0
    found = []
    for before, after in neighbours(curve):
        bounds = sweep.difference_interval(after, before)
        if bounds and max(sign * bounds[0], sign * bounds[1]) < 0.0:
            difference = (sweep.points[after].accuracy or 0.0) - (sweep.points[before].accuracy or 0.0)
            found.append(Violation(before, after, difference, bounds))
    return found


def neighbours(curve: Curve) -> list[tuple[int, int]]:
    """Pairs of neighbouring points on all lines."""
    return [pair for line in curve.lines for pair in pairwise(line.places)]


def spread_values(values: Sequence[Value], most: int, keep: Value) -> list[Value]:
    """Choose so many values, evenly over their list with both ends, among them the one to keep."""
    count = len(values)
    if count <= most:
        return list(values)
    chosen = [round(step * (count - 1) / (most - 1)) for step in range(most)]
    kept = list(values).index(keep)
    if kept not in chosen:
        inner = min(range(1, most - 1), key=lambda step: abs(chosen[step] - kept))
        chosen[inner] = kept
    return [values[place] for place in sorted(chosen)]


def _curve(sweep: Sweep, key: Key) -> Curve:
    others = [other for other in sweep.keys if other is not key and other.values]
    main = main_values(sweep)
    second = others[0] if others else None
    values: list[Value | None] = [None]
    if second:
        values = list(spread_values(second.values, MOST_LINES, main[second.name]))
    held = tuple((other, main[other.name]) for other in others[1:])
    lines = [_line(sweep, key, second, value, held) for value in values]
    at = values.index(main[second.name]) if second else 0
    return Curve(key, second, tuple(lines), at, held)


def _line(sweep: Sweep, key: Key, second: Key | None, value: Value | None, held: Sequence[tuple[Key, Value]]) -> Line:
    wanted = {other.name: at for other, at in held} | ({} if second is None else {second.name: value})
    on_line: dict[Value, int] = {}
    for place, point in enumerate(sweep.points):
        if not point.added and all(point.values[name] == at for name, at in wanted.items()):
            on_line.setdefault(point.values[key.name], place)
    places = [on_line[at] for at in key.values if at in on_line]
    known = [place for place in places if sweep.points[place].accuracy is not None]
    failed = [place for place in places if place not in known and sweep.points[place].failures]
    return Line(value, tuple(known), tuple(failed))
