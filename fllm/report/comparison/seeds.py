"""Runs that differ in nothing but the seed, as draws of one experiment: means, their intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from fllm.report.comparison.facts import Result, Results, device_differences, less, settings_differences
from fllm.report.standing import HARDWARE, IDEAL, OWN, Standing, own_standings, shown_baselines
from fllm.report.task import LANGUAGE, accuracy_name, kind_of
from fllm.results import value_at

Values = Sequence[float | None]

_AGAINST = {
    "hardware \N{MINUS SIGN} ideal device": (OWN, IDEAL),
    "federated \N{MINUS SIGN} each client alone": ("lora_local", HARDWARE),
    "federated \N{MINUS SIGN} centralised": ("lora_centralised", HARDWARE),
}
"""Differences that a reader asks for: the federated model on hardware less one other, by key and device."""


@dataclass(frozen=True)
class Spread:
    """What several seeds gave of one number.

    Attributes:
        count: Seeds that have the number.
        mean: Its mean.
        std: Sample standard deviation; None for a single seed.
        bounds: 95 % interval of the mean; None for a single seed.
    """

    count: int
    mean: float
    std: float | None
    bounds: tuple[float, float] | None


@dataclass(frozen=True)
class Series:
    """One model, baseline or difference in every seed.

    Attributes:
        key: Its key in ``baselines``; :data:`~fllm.report.standing.OWN` for the runs' own model.
        device: ``hardware``, ``ideal`` or None.
        label: What it is called.
        values: Metric to its number in each seed, in the order of the runs; None where a seed has none.
    """

    key: str
    device: str | None
    label: str
    values: Mapping[str, Values]


@dataclass(frozen=True)
class Seeds:
    """Runs of one experiment.

    Attributes:
        seeds: Seed of each run.
        metrics: What is compared, with its name: accuracy and macro-F1, of language models perplexity in its place.
        models: The federated model on both devices, then the baselines.
        differences: The federated model on the hardware less others, seed by seed.
    """

    seeds: Sequence[int]
    metrics: Mapping[str, str]
    models: Sequence[Series]
    differences: Sequence[Series]


def over_seeds(results: Results) -> Seeds | None:
    """Gather runs that are the same but for their seeds; None where anything else differs, or a seed stands twice."""
    seeds = [value_at(result, "config", "seed") for result in results]
    if None in seeds or len(set(seeds)) < len(seeds) or set(settings_differences(results).values) != {"seed"}:
        return None
    same_model = len({value_at(result, "model", "sha256") for result in results}) == 1
    if not same_model or device_differences(results).values:
        return None
    second = {"perplexity": "Perplexity"} if kind_of(results[0]) == LANGUAGE else {"macro_f1": "Macro-F1"}
    metrics = {"accuracy": accuracy_name(results[0])} | second
    models = _models(results, metrics)
    return Seeds(seeds, metrics, models, _differences(models, metrics))


def spread_of(values: Values) -> Spread | None:
    r"""Return the mean over seeds, its standard deviation and its 95 % interval; None where no seed has the number.

    .. math:: \bar x \pm t_{0.975, n-1} \, s / \sqrt n

    Source: Student, Biometrika 6, 1 (1908). Holds for independent seeds with a normal spread.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    n, mean = len(known), math.fsum(known) / len(known)
    if n < 2:
        return Spread(n, mean, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Spread(n, mean, std, (mean - half, mean + half))


def same_sign(values: Values) -> tuple[int, str]:
    """Count the seeds whose difference has the sign of the mean, and name that sign: higher, lower or equal."""
    known = [value for value in values if value is not None]
    total = math.fsum(known)
    agree: Callable[[float], bool] = (lambda x: x > 0) if total > 0 else (lambda x: x < 0)
    if total == 0:
        return sum(value == 0 for value in known), "equal"
    return sum(map(agree, known)), "higher" if total > 0 else "lower"


def _models(results: Results, metrics: Iterable[str]) -> list[Series]:
    """Return every model that any run has, in the order of the tables of a run."""
    found = [{(one.key, one.device): one for one in _standings(result)} for result in results]
    order = dict.fromkeys(place for each in found for place in each)
    series = []
    for place in sorted(order, key=lambda place: _rank(place, found)):
        members = [each.get(place) for each in found]
        values = {metric: [one[metric].value if one else None for one in members] for metric in metrics}
        first = next(one for one in members if one)
        label = f"Federated LoRA, {first.device}" if first.key == OWN else first.short
        if any(value is not None for each in values.values() for value in each):
            series.append(Series(*place, label, values))
    return series


def _standings(result: Result) -> list[Standing]:
    return [*own_standings(result), *shown_baselines(result)]


def _rank(place: tuple[str, str | None], found: Sequence[Mapping[tuple[str, str | None], Standing]]) -> int:
    """Place of a model in the longest list that has it: all lists have one order."""
    return max(list(each).index(place) for each in found if place in each)


def _differences(models: Sequence[Series], metrics: Iterable[str]) -> list[Series]:
    by_place = {(one.key, one.device): one for one in models}
    own = by_place.get((OWN, HARDWARE))
    differences = []
    for label, place in _AGAINST.items():
        other = by_place.get(place)
        if own is None or other is None:
            continue
        values = {metric: list(map(less, own.values[metric], other.values[metric])) for metric in metrics}
        if any(value is not None for each in values.values() for value in each):
            differences.append(Series(*place, label, values))
    return differences
