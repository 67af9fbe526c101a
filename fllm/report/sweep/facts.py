"""A sweep as analysed data: keys, points and bootstrap draws, and the questions one asks of two points.

Everything is a pure function of the sweep's ``result.json``, at any state of the sweep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fllm.report.sweep.bootstrap import Draws, bootstrap, interval_of
from fllm.report.sweep.points import Key, Point, read_keys, read_points
from fllm.results import value_at

Bounds = tuple[float, float] | None
_UNBROKEN = 20  # characters of a key and its value that stay on one line


@dataclass(frozen=True)
class Sweep:
    """A sweep with its statistics; points are named by their place in ``points``.

    Attributes:
        result: The ``result.json``.
        keys: Varied keys in the order given.
        points: All points in order.
        draws: Accuracies on redrawn dies and test cases.
    """

    result: Mapping[str, Any]
    keys: tuple[Key, ...]
    points: tuple[Point, ...]
    draws: Draws

    @cached_property
    def known(self) -> list[int]:
        """Places of points that have an accuracy; repetitions of an earlier point are left out."""
        return [
            place for place, point in enumerate(self.points) if point.accuracy is not None and point.same_as is None
        ]

    @cached_property
    def designs(self) -> list[int]:
        """Places of known points that are designs: all but the ideal device, whose energy is a limit of physics."""
        stated = (self.result.get("config") or {}).get("device_model")
        found = [
            place
            for place in self.known
            if not re.search(r"(^|[/\\])ideal(\.yaml)?$", str(self.points[place].values.get("device_model", stated)))
        ]
        return found or self.known

    @cached_property
    def base(self) -> int | None:
        """Place of the base device; None where the sweep does not hold it."""
        return next((place for place, point in enumerate(self.points) if point.base), None)

    @property
    def published(self) -> bool:
        """Whether the base device is a shipped file with no value changed: the device as published."""
        return value_at(self.result, "device", "as_shipped") is True

    @property
    def base_name(self) -> str:
        """What to call the base device beside a mark."""
        return "as published" if self.published else "base device"

    @property
    def base_noun(self) -> str:
        """What to call the base device in a sentence."""
        return "the device as published" if self.published else "the base device"

    @property
    def gridlike(self) -> bool:
        """Whether one key can be followed while the others are held: a grid, or a sweep of a single key."""
        return len(self.keys) == 1 or (self.result.get("design") or {}).get("kind") == "grid"

    def accuracies(self, places: Sequence[int]) -> list[float]:
        """Accuracies of points that have one [1]."""
        return [self.points[place].accuracy or 0.0 for place in places]

    def accuracy_interval(self, place: int) -> Bounds:
        """95 % interval of a point's accuracy [1] over dies and test cases."""
        return interval_of(self.draws.accuracy[:, place])

    def drop_interval(self, place: int) -> Bounds:
        """95 % interval of a point's drop below the ideal device [1] over dies and test cases."""
        return interval_of(self.draws.drop[:, place])

    def difference_interval(self, place: int, other: int) -> Bounds:
        """95 % interval of the accuracy of one point less that of another [1], on the same dies and cases."""
        return interval_of(self.draws.accuracy[:, place] - self.draws.accuracy[:, other])

    def settings_text(self, place: int) -> str:
        """Write the varied keys of a point: "retention.tau = 5 ms, readout.bits = 5", short ones unbroken."""
        settings, space, parts = self.points[place].settings, "\N{NO-BREAK SPACE}", []
        for key in self.keys:
            value = settings[key.name].replace(" ", space)
            before = space if len(key.name) + len(value) <= _UNBROKEN else " "
            parts.append(f"{key.name}{before}={space}{value}")
        return ", ".join(parts)


def analyse(result: Mapping[str, Any]) -> Sweep:
    """Read a sweep and compute its statistics."""
    keys = read_keys(result)
    points = read_points(result, keys)
    return Sweep(result, tuple(keys), tuple(points), bootstrap(points, result))
