"""Keys and points of a sweep, with means, spreads and intervals over the dies and seeds of each point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from scipy.special import stdtrit

from fllm.report.formatting import engineering, significant

Value = float | str
Row = Mapping[str, Any]

LOG_RATIO = 8.0
"""[1] ratio of largest to smallest value from which a key is read on a logarithmic axis."""
_LONGEST = 16  # characters of a value as the user wrote it; a longer one is written anew


@dataclass(frozen=True)
class Key:
    """One varied key of a device or a run.

    Attributes:
        name: As on the command line, for example ``retention.tau``.
        unit: SI unit of its values; None where they have none.
        column: Its column in the rows.
        numeric: Whether all its values are numbers; else they are words.
        values: Distinct values of the design in SI: numbers ascending, words in the order given.
        labels: These values, and that of the base device, as the user or the device file wrote them.
        base: Value of the base device in SI; None when unknown.
    """

    name: str
    unit: str | None
    column: str
    numeric: bool
    values: tuple[Value, ...]
    labels: Mapping[Value, str]
    base: Value | None

    @property
    def whole(self) -> bool:
        """Whether the key takes whole numbers only, such as bits."""
        return self.numeric and self.unit is None and all(isinstance(value, int) for value in self.values)

    @cached_property
    def logarithmic(self) -> bool:
        """Whether distances are ratios: positive values that span a factor of eight, except evenly counted ones."""
        numbers = [float(value) for value in self.values] if self.numeric else []
        if len(numbers) < 2 or numbers[0] <= 0 or numbers[-1] < LOG_RATIO * numbers[0]:
            return False
        steps = {after - before for before, after in pairwise(numbers)}
        return not (self.whole and len(numbers) > 2 and len(steps) == 1)

    def place(self, value: Value) -> float:
        """Return the coordinate in which one interpolates: log10 of the value, or the value; a word's rank."""
        if not self.numeric:
            return float(self.values.index(value))
        return math.log10(float(value)) if self.logarithmic else float(value)

    def value_at(self, place: float) -> float:
        """Return the value at a coordinate; the inverse of :meth:`place` for numbers."""
        return 10.0**place if self.logarithmic else place

    def text(self, value: Value) -> str:
        """Write a value, a swept one as the user did."""
        label = self.labels.get(value, "")
        if isinstance(value, str):
            return label or value
        if 0 < len(label) <= _LONGEST:
            return label.replace(" ", "\N{NO-BREAK SPACE}")
        return number_text(value, self.unit)

    def nearest(self, value: Value | None) -> Value:
        """Return the swept value that is nearest to one; the middle of numbers or the first word where none is."""
        if value in self.values:
            return value
        if not self.numeric:
            return self.values[0]
        if not isinstance(value, int | float) or (self.logarithmic and value <= 0):
            return self.values[(len(self.values) - 1) // 2]
        return min(self.values, key=lambda swept: abs(self.place(swept) - self.place(value)))


@dataclass(frozen=True)
class Point:
    """One set of device settings with all that was evaluated for it.

    Attributes:
        number: Its number in the sweep.
        settings: Varied keys as written.
        values: The same in SI, or words.
        base: Whether these are the settings of the base device.
        added: Whether it was added to the design to show the base device.
        same_as: Number of an earlier point with the same settings in effect.
        warnings: What was configured without effect.
        rows: Finished rows, by seed and die.
        failures: Different reasons of failed dies, as (seed, reason).
    """

    number: int
    settings: Mapping[str, str]
    values: Mapping[str, Value]
    base: bool
    added: bool
    same_as: int | None
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    failures: tuple[tuple[int | None, str], ...]

    def seed_means(self, column: str) -> list[float]:
        """Mean over the dies of each seed, for the seeds in which the column is known."""
        return [sum(values) / len(values) for values in self._by_seed(column)]

    def mean(self, column: str) -> float | None:
        """Mean of a column: over the dies of each seed, then over seeds; None where nothing is known."""
        means = self.seed_means(column)
        return sum(means) / len(means) if means else None

    @cached_property
    def accuracy(self) -> float | None:
        """Accuracy on the emulated device [1], mean over dies and seeds."""
        return self.mean("accuracy")

    @cached_property
    def ideal(self) -> float | None:
        """Accuracy on the ideal device [1], mean over seeds."""
        return self.mean("accuracy_ideal")

    @cached_property
    def drop(self) -> float | None:
        """Accuracy lost against the ideal device on the same cases [1]: ideal less emulated."""
        if self.accuracy is None or self.ideal is None:
            return None
        return self.ideal - self.accuracy

    @cached_property
    def accuracy_std(self) -> float | None:
        """Standard deviation over the dies of a seed [1], pooled over seeds; None with one die."""
        groups = [values for values in self._by_seed("accuracy") if len(values) > 1]
        degrees = sum(len(values) - 1 for values in groups)
        if not degrees:
            return None
        squares = sum((value - sum(values) / len(values)) ** 2 for values in groups for value in values)
        return math.sqrt(squares / degrees)

    @cached_property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean accuracy [1] over dies, or over seeds where there are several; None with one.

        Dies of one seed share its adapter and its test cases, so several seeds count by their means.
        """
        means = self.seed_means("accuracy")
        return t_interval(means if len(means) > 1 else self._first("accuracy"))

    @cached_property
    def energy(self) -> float | None:
        """Energy per token [J]."""
        return self.mean("energy_per_token_j")

    @cached_property
    def energy_interval(self) -> tuple[float, float] | None:
        """95 % interval of the energy per token [J] from the ranges of its prices."""
        ends = (self.mean("energy_per_token_lower_95_j"), self.mean("energy_per_token_upper_95_j"))
        return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])

    @cached_property
    def latency(self) -> float | None:
        """Latency per token [s]."""
        return self.mean("latency_per_token_s")

    def _by_seed(self, column: str) -> list[list[float]]:
        groups: dict[int, list[float]] = {}
        for row in self.rows:
            if row.get(column) is not None:
                groups.setdefault(row["seed"], []).append(float(row[column]))
        return list(groups.values())

    def _first(self, column: str) -> list[float]:
        groups = self._by_seed(column)
        return groups[0] if groups else []


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean accuracy [1], ``mean +- t s / sqrt(n)``, cut off at 0 and 1; None for n < 2.

    t is the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom, s the sample standard deviation.
    """
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    s = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * s / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)


def read_keys(result: Mapping[str, Any]) -> list[Key]:
    """Return the varied keys in the order given; their values are those that the points of the design have."""
    keys = []
    for entry in result.get("keys") or []:
        name = entry["key"]
        found: dict[Value, str] = {}
        for point in result.get("points") or []:
            if not point.get("added") and name in point["values"]:
                found.setdefault(_hashable(point["values"][name]), str(point["settings"].get(name, "")))
        numeric = bool(entry.get("ordered")) and all(_is_number(value) for value in found)
        if not numeric:
            found = {str(value): label for value, label in found.items()}
        base = _base_value(result, name, entry.get("base_si") if numeric else entry.get("base"))
        values = tuple(sorted(found) if numeric else found)
        if base is not None:
            found.setdefault(base, str(entry.get("base")))
        keys.append(
            Key(
                name=name,
                unit=entry.get("unit"),
                column=entry.get("column") or name,
                numeric=numeric,
                values=values,
                labels=found,
                base=base if numeric or base is None else str(base),
            )
        )
    return keys


def _base_value(result: Mapping[str, Any], name: str, stated: Any) -> Value | None:
    """Return the value of the base device: that of the point which is the base device, or what the key states."""
    for point in result.get("points") or []:
        if point.get("base") and point["values"].get(name) is not None:
            return _hashable(point["values"][name])
    return None if stated is None else _hashable(stated)


def read_points(result: Mapping[str, Any], keys: Sequence[Key]) -> list[Point]:
    """Return all points, in order, with their rows."""
    rows: dict[int, list[Row]] = {}
    for row in sorted(result.get("rows") or [], key=_row_order):
        rows.setdefault(row["point"], []).append(row)
    points = sorted(result.get("points") or [], key=lambda entry: int(entry["point"]))
    return [_point(entry, keys, rows.get(entry["point"], [])) for entry in points]


def _point(entry: Mapping[str, Any], keys: Sequence[Key], rows: Sequence[Row]) -> Point:
    values = {key.name: _hashable(entry["values"].get(key.name)) for key in keys}
    return Point(
        number=entry["point"],
        settings={key.name: str(entry["settings"].get(key.name, "")) for key in keys},
        values={key.name: values[key.name] if key.numeric else str(values[key.name]) for key in keys},
        base=bool(entry.get("base")),
        added=bool(entry.get("added")),
        same_as=entry.get("same_as"),
        warnings=tuple(entry.get("warnings") or ()),
        rows=tuple(row for row in rows if row.get("status") == "ok"),
        failures=tuple(
            dict.fromkeys(
                (row.get("seed"), str(row.get("reason") or "no reason given")) for row in rows if row["status"] != "ok"
            )
        ),
    )


def number_text(value: float, unit: str | None) -> str:
    """Write a number with its unit: 870 us as 870 µs, 4.3 as it is."""
    if unit is None:
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    if "**" in unit or unit.startswith("1/"):  # a prefix would belong to the power
        return f"{significant(value)}\N{NO-BREAK SPACE}{unit}"
    return engineering(value, unit)


def _row_order(row: Row) -> tuple[int, int, int]:
    return row["point"], row.get("seed") or 0, -1 if row.get("die") is None else row["die"]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hashable(value: Any) -> Value:
    return value if _is_number(value) or isinstance(value, str) else str(value)
