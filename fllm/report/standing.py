"""Where a run stands: its own model on both devices, then every baseline, in one order and with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fllm.report.answer import BASELINES, answer, first_known
from fllm.report.formatting import plural
from fllm.report.task import DEVICES
from fllm.results import value_at

Bounds = tuple[float, float] | None

HARDWARE, IDEAL = "hardware", "ideal"
OWN = "federated"
"""Key of the run's own model."""
METRICS = ("accuracy", "macro_f1", "perplexity")

_ORDER = {
    "lora_centralised": "LoRA, centralised",
    "lora_one_chip": "LoRA, federated on one chip",
    "lora_local": "LoRA, each client alone",
    "tfidf_logreg": BASELINES["tfidf_logreg"],
    "linear_federated": "Linear, federated",
    "linear_local": "Linear, each client alone",
    "majority": BASELINES["majority"],
    "bigram": "Bigrams",
    "unigram": "Unigrams",
}
"""Baselines from the nearest to the simplest, with their names in results that do not name them."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, each None where it is not known."""

    value: float | None = None
    bounds: Bounds = None


@dataclass(frozen=True)
class Standing:
    """One model on one device, or one baseline.

    Attributes:
        key: Its key in ``baselines`` of the result; :data:`OWN` for the run's own model.
        device: ``hardware`` or ``ideal``; None for a baseline that needs neither.
        name: What it is called, its device left out.
        scores: Metric to its number: accuracy [1], macro_f1 [1], perplexity [1].
        ranges: Metric to the lowest and the highest number [1] of the clients' own models, where each has one.
        num_clients: Clients whose own models the numbers are means of; 0 where there is one model.
    """

    key: str
    device: str | None
    name: str
    scores: Mapping[str, Estimate]
    ranges: Mapping[str, tuple[float, float]]
    num_clients: int = 0

    @property
    def label(self) -> str:
        """Name, with the device where it has one, and of how many models it is the mean."""
        if self.key == OWN and self.device:
            return f"{self.name}, {DEVICES[self.device]}"
        name = f"{self.name[:1].upper()}{self.name[1:]}"
        notes = [self.device] if self.device else []
        notes += [f"mean of {plural(self.num_clients, 'client')}"] if self.num_clients else []
        return f"{name} ({', '.join(notes)})" if notes else name

    @property
    def short(self) -> str:
        """Name for a figure: the device only where it is the ideal one, or the model is the run's own."""
        if self.key == OWN and self.device:
            return f"{self.name}, {self.device}"
        name = f"{self.name[:1].upper()}{self.name[1:]}"
        return f"{name}, ideal" if self.device == IDEAL else name

    def __getitem__(self, metric: str) -> Estimate:
        """Return the number of a metric; an empty one where it is not known."""
        return self.scores.get(metric, Estimate())


def own_standings(result: Mapping[str, Any]) -> list[Standing]:
    """Return the run's own model on the ideal device and on the emulated hardware; as far as they are known."""
    return [
        Standing(OWN, device, "This model", {metric: _own(result, device, metric) for metric in METRICS}, {})
        for device in (IDEAL, HARDWARE)
    ]


def hardware_standing(result: Mapping[str, Any]) -> Standing:
    """Return the run's own model on the emulated hardware."""
    return own_standings(result)[1]


def baseline_standings(result: Mapping[str, Any]) -> list[Standing]:
    """Return all baselines in the order of every table: the nearest first, what is not known by name last."""
    found = result.get("baselines") or {}
    keys = [key for key in _ORDER if found.get(key)] + sorted(key for key in found if key not in _ORDER and found[key])
    standings = []
    for key in keys:
        on_device = "ideal" in found[key] or found[key].get("kind") == "lora"
        standings.append(_baseline(key, found[key], HARDWARE if on_device else None))
        if found[key].get("ideal"):
            named = {"name": standings[-1].name, **found[key]["ideal"]}
            standings.append(_baseline(key, named, IDEAL, num_clients=standings[-1].num_clients))
    return standings


def shown_baselines(result: Mapping[str, Any]) -> list[Standing]:
    """Return the baselines that tables and figures show: means over clients on the hardware alone."""
    return [one for one in baseline_standings(result) if not (one.key.endswith("_local") and one.device == IDEAL)]


def baseline(result: Mapping[str, Any], key: str) -> Standing | None:
    """Return one baseline, of two devices the hardware; None where the result has none of that key."""
    return next((one for one in baseline_standings(result) if one.key == key), None)


def _own(result: Mapping[str, Any], device: str, metric: str) -> Estimate:
    """Return a number of the run's own model: the final evaluation's, or that of the last round."""
    found = answer(result)
    final = value_at(result, "final", "evaluation", device, metric) or {}
    if metric == "accuracy":
        value, bounds = {
            IDEAL: (found.accuracy_ideal, found.interval_ideal),
            HARDWARE: (found.accuracy_hardware, found.interval_hardware),
        }[device]
        return Estimate(first_known(value, final.get("value")), pair(bounds or final.get("interval_95")))
    path = (device, metric) if device == IDEAL else (device, metric, "mean")
    return Estimate(first_known(final.get("value"), value_at(found.last, *path)), pair(final.get("interval_95")))


def _baseline(key: str, found: Mapping[str, Any], device: str | None, num_clients: int = 0) -> Standing:
    name = str(found.get("name") or _ORDER.get(key) or key.replace("_", " "))
    scores = {
        metric: Estimate(found.get(metric), pair(value_at(found, "interval_95", metric)))
        for metric in METRICS
        if found.get(metric) is not None
    }
    clients = found.get("clients") or []
    return Standing(key, device, name, scores, _ranges(found, clients), num_clients or len(clients))


def _ranges(found: Mapping[str, Any], clients: list[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Lowest and highest number of the clients' own models."""
    ranges = {}
    for metric in METRICS:
        values = [client[metric] for client in clients if client.get(metric) is not None]
        if values:
            ranges[metric] = (min(values), max(values))
    if found.get("min") is not None and found.get("max") is not None:
        ranges["accuracy"] = (found["min"], found["max"])
    return ranges


def pair(bounds: Any) -> Bounds:
    """Return the ends of an interval; None where it has none."""
    return (bounds[0], bounds[1]) if bounds and len(bounds) == 2 and None not in bounds else None
