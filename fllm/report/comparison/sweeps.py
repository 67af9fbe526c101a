"""Sweeps beside each other: their base devices, and the points that have the same settings in two or more of them.

Two points on the same test cases are compared on the same redrawn cases, so their difference is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_models.loading import key_units
from fllm.report.answer import device_entries
from fllm.report.comparison.facts import Result, Results, flatten, plain, same_cases, setting_in_si
from fllm.report.sweep.bootstrap import interval_of
from fllm.report.sweep.facts import Bounds, Sweep, analyse
from fllm.report.sweep.points import Point, Value
from fllm.results import value_at

_UNRECORDED = "as in device file "


@dataclass(frozen=True)
class Shared:
    """Settings that two or more sweeps have a point for.

    Attributes:
        settings: Varied key to its value as written.
        places: Place of the point in each sweep that has it, by the number of the sweep.
    """

    settings: Mapping[str, str]
    places: Mapping[int, int]

    @property
    def text(self) -> str:
        """Write the settings: "retention.tau = 5 ms, readout.bits = 5"."""
        return ", ".join(f"{key} = {value}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Sweeps:
    """Sweeps with their names and statistics, in the order given."""

    results: Results
    names: Sequence[str]
    members: Sequence[Sweep]

    def base_points(self) -> Shared:
        """Return the base device of each sweep that has been evaluated, whatever its settings are."""
        places = {number: sweep.base for number, sweep in enumerate(self.members) if sweep.base is not None}
        known = {number: place for number, place in places.items() if place in self.members[number].known}
        return Shared({}, known)

    def shared(self) -> list[Shared]:
        """Return the settings that two or more sweeps have, in the order of the first that has them.

        A key that one sweep varies has, in another, the value of that other's base device.
        """
        found: dict[tuple[Value, ...], dict[int, int]] = {}
        for number, sweep in enumerate(self.members):
            for place in sweep.known:
                values = tuple(self.value(number, sweep.points[place], key) for key in self.keys)
                found.setdefault(values, {}).setdefault(number, place)
        return [Shared(self._written(places), places) for places in found.values() if len(places) > 1]

    @property
    def keys(self) -> list[str]:
        """Keys that any of the sweeps varies, in the order in which they are met."""
        return list(dict.fromkeys(key.name for sweep in self.members for key in sweep.keys))

    def difference(self, reference: tuple[int, int], other: tuple[int, int]) -> tuple[float | None, Bounds]:
        """Accuracy of one point less that of a reference [1], and its 95 % interval where both saw the same cases.

        Args:
            reference: Number of the sweep and place of the point.
            other: Of the point that is compared.
        """
        (one, place), (two, another) = reference, other
        accuracies = self.members[one].points[place].accuracy, self.members[two].points[another].accuracy
        if accuracies[0] is None or accuracies[1] is None:
            return None, None
        paired = same_cases(self.results[one], self.results[two])
        bounds = _paired(self.members[one], place, self.members[two], another) if paired else None
        return accuracies[1] - accuracies[0], bounds

    def value(self, number: int, point: Point, key: str) -> Value:
        """Value of a key at a point [SI], that of the base device where the sweep does not vary it."""
        result, own = self.results[number], point.values.get(key)
        device = point.values.get("device_model")
        of_base = device is None or device in _base_models(result)
        if key == "device_model":  # the base device by its file, whatever path led there
            return f"{_UNRECORDED}{result['device'].get('file_sha256')}" if of_base else str(device)
        if own is None and not of_base and key in key_units():
            return f"{_UNRECORDED}{device}"
        return _normal(key, own if own is not None else base_value(result, key))

    def _written(self, places: Mapping[int, int]) -> dict[str, str]:
        written: dict[str, str] = {}
        for key in self.keys:
            texts = (self.members[number].points[place].settings.get(key) for number, place in places.items())
            first = self.results[next(iter(places))]
            written[key] = next((text for text in texts if text), plain(base_value(first, key)))
        return {key: text for key, text in written.items() if not text.startswith(_UNRECORDED)}


def read_sweeps(results: Results, names: Sequence[str]) -> Sweeps:
    """Read sweeps and compute their statistics."""
    return Sweeps(results, names, [analyse(result) for result in results])


def _base_models(result: Result) -> set[str]:
    """Names of the base device of a sweep: that of its configuration, and those of its base points."""
    points = [point for point in result.get("points") or [] if point.get("base")]
    named = {str(point["settings"].get("device_model")) for point in points}
    return named | {str(value_at(result, "config", "device_model"))}


def base_value(result: Result, key: str) -> Any:
    """Value of a key in the base run of a sweep, as written; where none is recorded, a word for that of its file."""
    config = flatten(result.get("config") or {})
    found = config[key] if key in config else (device_entries(result).get(key) or {}).get("value")
    return f"{_UNRECORDED}{result['device'].get('file_sha256')}" if found is None else found


def _paired(one: Sweep, place: int, two: Sweep, another: int) -> Bounds:
    """95 % interval of a difference of accuracies [1]; equal seeds redraw equal cases in both sweeps."""
    drawn = one.draws.accuracy[:, place], two.draws.accuracy[:, another]
    return interval_of(drawn[1] - drawn[0]) if drawn[0].shape == drawn[1].shape else None


def _normal(key: str, value: Any) -> Value:
    """Return a value so that "5 ms", "0.005 s" and 0.005 are one."""
    value = setting_in_si(key, value)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return float(f"{value:.12g}") if isinstance(value, int | float) else str(value)
