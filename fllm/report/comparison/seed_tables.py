"""Tables, sentences and numbers of runs that differ in nothing but the seed."""

from __future__ import annotations

from collections.abc import Sequence

from fllm.report.comparison.seeds import Seeds, Series, Spread, same_sign, spread_of
from fllm.report.downloads import Cell, Download, csv_file
from fllm.report.formatting import (
    NOTHING,
    between,
    change,
    change_between,
    interval,
    percent,
    points,
    points_between,
    score,
    significant,
)
from fllm.report.standing import OWN
from fllm.report.tables import Group, Row, Table

_BETTER = {"perplexity": "lower"}


def models_table(seeds: Seeds) -> Table:
    """Mean, standard deviation and interval over seeds of every model."""
    groups = []
    for metric, name in seeds.metrics.items():
        rows = []
        for one in seeds.models:
            found = spread_of(one.values[metric])
            if found:
                rows.append(_spread_row(one.label, found, metric))
        groups.append(Group(rows, (name, *("",) * 4)))
    columns = ("Model", "Seeds", "Mean", "Standard deviation", "95 % t-interval of the mean")
    caption = (
        f"Over {len(seeds.seeds)} seeds: the federated model and every baseline; adapters of baselines on the hardware "
        "unless ideal is said, of clients alone the mean over clients"
    )
    return Table(caption, columns, [group for group in groups if group.rows], frozenset({1, 2, 3, 4}), sortable=True)


def differences_over_seeds_table(seeds: Seeds) -> Table | None:
    """Mean paired difference of every pair, its interval, and how many seeds agree on its sign."""
    groups = []
    for metric, name in seeds.metrics.items():
        rows: list[Row] = []
        for one in seeds.differences:
            found = spread_of(one.values[metric])
            if found:
                agree, side = same_sign(one.values[metric])
                shown = _difference(found.mean, metric), _plain(found.std, metric), _bounds(found.bounds, metric)
                rows.append((_capital(one.label), str(found.count), *shown, f"{agree} of {found.count} {side}"))
        unit = "points" if metric == "accuracy" else f"{_BETTER.get(metric, 'higher')} is better"
        groups.append(Group(rows, (f"{name} [{unit}]", *("",) * 5)))
    shown_groups = [group for group in groups if group.rows]
    if not shown_groups:
        return None
    columns = ("Difference", "Seeds", "Mean", "Standard deviation", "95 % t-interval of the mean", "Same sign")
    caption = "Differences paired by seed: the federated model on the hardware minus another"
    return Table(caption, columns, shown_groups, frozenset({1, 2, 3, 4}))


def seed_lines(seeds: Seeds) -> list[str]:
    """State the outcome in one sentence, then what its intervals are."""
    outcome = _outcome(seeds)
    how = (
        f"The runs differ in nothing but the seed ({', '.join(map(str, seeds.seeds))}): split, clients, first adapter, "
        "batches and chips are drawn anew, made-up patients too. Each interval is that of a mean over seeds, "
        "mean ± t s / √n with n \N{MINUS SIGN} 1 degrees of freedom (Student 1908); it takes seeds for independent "
        "draws with a normal spread, and is wide for few of them. Differences are taken seed by seed."
    )
    return [outcome, how] if outcome else [how]


def seeds_csv(seeds: Seeds) -> Download:
    """Every number of every seed, unrounded; differences too."""
    rows: list[tuple[Cell, ...]] = []
    for kind, members in (("model", seeds.models), ("difference", seeds.differences)):
        for one in members:
            for metric in seeds.metrics:
                rows += [
                    (kind, one.key, one.device, one.label, metric, seed, value)
                    for seed, value in zip(seeds.seeds, one.values[metric], strict=True)
                ]
    return csv_file("seeds.csv", ("kind", "key", "device", "name", "metric", "seed", "value"), rows)


def _outcome(seeds: Seeds) -> str:
    """Say what the federated model reaches, and what its differences establish."""
    own = next((one for one in seeds.models if one.key == OWN and one.device == "hardware"), None)
    first = spread_of(own.values["accuracy"]) if own else None
    if own is None or first is None:
        return ""
    accuracy, other = seeds.metrics
    second = spread_of(own.values[other])
    also = f", {_named(other)} {score(second.mean)}" if second else ""
    parts = []
    for one in seeds.differences:
        metric = accuracy if one.key == OWN or spread_of(one.values[other]) is None else other
        found = spread_of(one.values[metric])
        if found:
            parts.append(_told(one, found, metric))
    head = f"Over {first.count} seeds the federated model reaches {percent(first.mean)} on the hardware{also}"
    return f"{head}; {'; '.join(parts)}." if parts else f"{head}."


def _told(one: Series, found: Spread, metric: str) -> str:
    agree, side = same_sign(one.values[metric])
    unit = " points of accuracy" if metric == "accuracy" else f" of {_named(metric)}"
    head = f"{one.label}: {_difference(found.mean, metric)}{unit}"
    if found.bounds is None:
        return head
    told = "established" if not found.bounds[0] <= 0 <= found.bounds[1] else "not established"
    return f"{head} ({_bounds(found.bounds, metric)}; {agree} of {found.count} seeds {side}; {told})"


def _spread_row(label: str, found: Spread, metric: str) -> Row:
    if metric == "accuracy":
        bounds = interval(None if found.bounds is None else [max(0.0, found.bounds[0]), min(1.0, found.bounds[1])])
        return label, str(found.count), percent(found.mean), percent(found.std), bounds
    return label, str(found.count), score(found.mean), significant(found.std, 2), between(found.bounds)


def _difference(value: float | None, metric: str) -> str:
    return points(value) if metric == "accuracy" else change(value)


def _bounds(bounds: Sequence[float] | None, metric: str) -> str:
    return points_between(bounds) if metric == "accuracy" else change_between(bounds)


def _plain(std: float | None, metric: str) -> str:
    if std is None:
        return NOTHING
    return f"{100 * std:.1f}" if metric == "accuracy" else significant(std, 2)


def _named(metric: str) -> str:
    return "macro-F1" if metric == "macro_f1" else metric


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
