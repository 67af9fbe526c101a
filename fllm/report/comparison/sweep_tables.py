"""Tables of a comparison of sweeps: what is compared, base devices, and points that share their settings."""

from __future__ import annotations

from collections.abc import Sequence

from fllm.report.comparison.facts import plain, same_cases
from fllm.report.comparison.sweeps import Shared, Sweeps
from fllm.report.downloads import Download, csv_file
from fllm.report.formatting import NOTHING, Quantity, count, engineering, interval, percent, points
from fllm.report.sweep.facts import Bounds
from fllm.report.sweep.points import Point
from fllm.report.tables import Group, Row, Table

_COLUMNS = ("Sweep", "Accuracy", "95 % interval", "Below ideal [points]", "Energy per token", "95 % interval",
            "Latency per token", "Against the first [points]", "95 % interval", "Verdict")  # fmt: skip
_TOLD = "intervals redraw test cases and dies; those of differences redraw the same ones on both sides"


def sweeps_table(sweeps: Sweeps) -> Table:
    """What is compared, in the order given."""
    rows: list[Row] = [
        (
            name,
            str(result["status"]),
            str(result.get("mode") or NOTHING),
            ", ".join(key.name for key in sweep.keys) or NOTHING,
            f"{len(sweep.known)} of {len(sweep.points)}",
            count(result.get("dies")),
            plain(result.get("seeds")),
            str(result["device"].get("name") or NOTHING),
            str(result.get("created") or NOTHING),
        )
        for name, result, sweep in zip(sweeps.names, sweeps.results, sweeps.members, strict=True)
    ]
    columns = ("Sweep", "Status", "Mode", "Varied", "Points known", "Dies", "Seeds", "Base device", "Created")
    return Table("The first sweep is the one that the others are compared with", columns, [Group(rows)], frozenset({5}))


def base_table(sweeps: Sweeps) -> Table | None:
    """Base devices of the sweeps beside each other."""
    base = sweeps.base_points()
    if not base.places:
        return None
    numeric = frozenset(range(1, len(_COLUMNS) - 1))
    return Table(f"The base device of each sweep; {_TOLD}", _COLUMNS, [Group(_rows(sweeps, base))], numeric,
                 wide=True, sortable=True)  # fmt: skip


def shared_table(sweeps: Sweeps, shared: Sequence[Shared]) -> Table | None:
    """Points that share their settings, a group for each."""
    blank = ("",) * (len(_COLUMNS) - 1)
    groups = [Group(_rows(sweeps, entry), (entry.text, *blank)) for entry in shared]
    numeric = frozenset(range(1, len(_COLUMNS) - 1))
    caption = f"Points with the same settings; {_TOLD}"
    many = sum(len(group.rows) for group in groups) > 24
    return Table(caption, _COLUMNS, groups, numeric, wide=True, sortable=True, filterable=many) if groups else None


def shared_csv(sweeps: Sweeps, shared: Sequence[Shared]) -> Download:
    """Points that share their settings as CSV, one row per sweep and point, unrounded and in SI."""
    columns = (*sweeps.keys, "sweep", "point", "accuracy", "accuracy_lower_95", "accuracy_upper_95", "accuracy_ideal",
               "energy_per_token_j", "latency_per_token_s", "difference", "difference_lower_95",
               "difference_upper_95")  # fmt: skip
    rows = []
    for entry in shared:
        reference = next(iter(entry.places.items()))
        for number, place in entry.places.items():
            sweep, point = sweeps.members[number], sweeps.members[number].points[place]
            between, bounds = sweeps.difference(reference, (number, place))
            values = {key: sweeps.value(number, point, key) for key in sweeps.keys}
            settings = [entry.settings.get(key) if isinstance(value, str) else value for key, value in values.items()]
            rows.append([*settings, sweeps.names[number], point.number, point.accuracy,
                         *(sweep.accuracy_interval(place) or (None, None)), point.ideal, point.energy, point.latency,
                         between, *(bounds or (None, None))])  # fmt: skip
    return csv_file("comparison.csv", columns, rows)


def _rows(sweeps: Sweeps, entry: Shared) -> list[Row]:
    """Write one row per sweep; the first is what the others are compared with."""
    reference = next(iter(entry.places.items()))
    rows: list[Row] = []
    for number, place in entry.places.items():
        sweep, point = sweeps.members[number], sweeps.members[number].points[place]
        between, bounds = sweeps.difference(reference, (number, place))
        first = (number, place) == reference
        rows.append((
            sweeps.names[number],
            percent(point.accuracy),
            interval(_listed(sweep.accuracy_interval(place))),
            _below(point.drop),
            engineering(point.energy, "J"),
            _energy_interval(point),
            engineering(point.latency, "s"),
            NOTHING if first else points(between),
            NOTHING if first or bounds is None else _points_interval(bounds),
            NOTHING if first else _verdict(bounds, same_cases(sweeps.results[reference[0]], sweeps.results[number])),
        ))  # fmt: skip
    return rows


def _verdict(bounds: Bounds, paired: bool) -> str:
    if not paired:
        return "other test cases"
    if bounds is None:
        return "not known"
    if bounds == (0.0, 0.0):
        return "the same"
    return "higher" if bounds[0] > 0 else "lower" if bounds[1] < 0 else "not told apart"


def _points_interval(bounds: tuple[float, float]) -> str:
    return Quantity(f"{points(bounds[0])} to {points(bounds[1])}", bounds[0], to=bounds[1])


def _energy_interval(point: Point) -> str:
    found = point.energy_interval
    if found is None or found[0] == found[1]:
        return NOTHING
    shown = f"{engineering(found[0], 'J')} to {engineering(found[1], 'J')}"
    return Quantity(shown, found[0], "J", to=found[1])


def _below(drop: float | None) -> str:
    return NOTHING if drop is None else Quantity(points(drop).removeprefix("+"), drop)


def _listed(bounds: Bounds) -> list[float] | None:
    return None if bounds is None else list(bounds)
