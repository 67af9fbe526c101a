"""The tables of a sweep's report."""

from __future__ import annotations

from collections.abc import Sequence

from fllm.report.answer import BASELINES
from fllm.report.formatting import NOTHING, Quantity, engineering, interval, percent, plural, significant
from fllm.report.sweep.cost_figures import letters
from fllm.report.sweep.curves import Curve, held_on
from fllm.report.sweep.facts import Bounds, Sweep
from fllm.report.sweep.front import Choice, pareto_front
from fllm.report.sweep.points import Key, Point
from fllm.report.sweep.required import ALLOWED, LineRequired, Required
from fllm.report.tables import Group, Row, Table
from fllm.results import value_at

_REFERENCES = {"ideal": "below the ideal device", "end": "below the better end of the sweep"}


def answer_table(sweep: Sweep, choice: Choice) -> Table:
    """Accuracy, energy and latency of the telling points, beside the ideal device and the baselines."""
    named: dict[int, list[str]] = {}
    for place, name in ((sweep.base, sweep.base_noun), (choice.best, "most accurate point"),
                        (choice.cheapest, "cheapest within 1 point of the most accurate")):  # fmt: skip
        if place is not None:
            named.setdefault(place, []).append(name)
    rows = [_answer_row(sweep, place, ", ".join(names)) for place, names in named.items()]
    ideal = ideal_range(sweep)
    rows.append(("Ideal device", ideal, NOTHING, NOTHING, NOTHING, NOTHING))
    for key, name in BASELINES.items():
        accuracy = percent(value_at(sweep.result, "baselines", key, "accuracy"))
        rows.append((f"{name} (baseline)", accuracy, NOTHING, NOTHING, NOTHING, NOTHING))
    columns = ("", "Accuracy", "95 % interval", "Below ideal [points]", "Energy per token", "Latency per token")
    caption = "Accuracy on the test cases, modelled energy and latency; intervals redraw dies and test cases together"
    return Table(caption, columns, [Group(rows)], frozenset({1, 2, 3, 4, 5}))


def ideal_range(sweep: Sweep) -> str:
    """Accuracy of the ideal device: one number, or the range over the points."""
    ideal = [level for point in sweep.points if (level := point.ideal) is not None]
    if not ideal:
        return NOTHING
    low, high = min(ideal), max(ideal)
    return percent(low) if high - low < 1e-9 else interval([low, high])


def required_table(curve: Curve, lines: Sequence[LineRequired]) -> Table:
    """Required values of a key, one row for each line and each reference."""
    least = "smallest" if lines[0].ideal[0].rising else "largest"
    columns = ("Held", *(f"{100 * allowed:g} {'point' if allowed == 0.01 else 'points'}" for allowed in ALLOWED))
    groups = []
    for name, heading in _REFERENCES.items():
        rows: list[Row] = [
            (_held_text(curve, found), *(_required_cell(required) for required in getattr(found, name)))
            for found in lines
        ]
        groups.append(Group(rows, (f"Allowed drop {heading}", *("",) * len(ALLOWED))))
    caption = (
        f"Required {curve.key.name}: the {least} value from which on accuracy stays within the allowed drop, with its "
        "95 % interval"
    )
    return Table(caption, columns, groups)


def _held_text(curve: Curve, found: LineRequired) -> str:
    space = "\N{NO-BREAK SPACE}"
    held = [f"{key.name}{space}={space}{key.text(value)}" for key, value in held_on(curve, found.line)]
    return (", ".join(held) or "nothing else varies") + missing_text(curve, found)


def missing_text(curve: Curve, found: LineRequired) -> str:
    """Say which swept values a required value had to do without."""
    if not found.missing:
        return ""
    shown = ", ".join(curve.key.text(value) for value in found.missing[:4])
    return f" ({curve.key.name} = {shown}{' and more' if len(found.missing) > 4 else ''} missing)"


def _required_cell(found: Required) -> str:
    """Write a required value, the next whole number, its interval, and how often it left the sweep."""
    shown = found.text(found.at)
    if found.whole_text and found.whole_text != shown:
        shown = f"{shown}, so {found.whole_text}"
    if not found.has_interval:
        return shown
    same = found.interval_text == found.text(found.at).replace(" ", "\N{NO-BREAK SPACE}")
    if same and max(found.never, found.always) >= 0.995:
        return shown
    beyond = []
    if found.never >= 0.01:
        beyond.append(f"not reached in {percent(found.never, 0)} of draws")
    if found.always >= 0.01:
        beyond.append(f"any value in {percent(found.always, 0)}")
    inside = "; ".join(([] if same else [found.interval_text]) + beyond)
    return f"{shown} ({inside})" if inside else shown


def front_table(sweep: Sweep) -> Table | None:
    """Points of the Pareto front, the cheapest first."""
    front = pareto_front(sweep)
    if not front:
        return None
    names = letters(front)
    rows: list[Row] = [
        (
            names.get(place, str(number)),
            sweep.settings_text(place),
            percent(sweep.points[place].accuracy),
            bounds_text(sweep.accuracy_interval(place)),
            engineering(sweep.points[place].energy, "J"),
            quantity_bounds(sweep.points[place].energy_interval, "J"),
        )
        for number, place in enumerate(front, 1)
    ]
    columns = ("", "Settings", "Accuracy", "95 % interval", "Energy per token", "95 % interval of the energy")
    caption = "Pareto front: no point of the sweep is more accurate for the same energy or less"
    return Table(caption, columns, [Group(rows)], frozenset({2, 3, 4, 5}))


def points_table(sweep: Sweep) -> Table:
    """One row for each point: means over dies and seeds, and their intervals."""
    columns = (
        "Point",
        *(key.name for key in sweep.keys),
        "Accuracy",
        "Std over dies",
        "95 % interval, dies",
        "95 % interval, dies and cases",
        "Ideal",
        "Below ideal [points]",
        "95 % interval [points]",
        "Macro-F1",
        "Energy per token",
        "95 % interval of energy",
        "Latency per token",
        "Signal left",
        "Rows",
        "Note",
    )
    rows = [_point_row(sweep, place) for place in range(len(sweep.points))]
    caption = (
        "All points: means over dies and seeds. Intervals over dies are Student's t of the mean on the same test "
        "cases; those over dies and cases redraw both"
    )
    words = {1 + place for place, key in enumerate(sweep.keys) if not key.numeric}
    numeric = frozenset(range(len(columns) - 1)) - words - {0}
    return Table(caption, columns, [Group(rows)], numeric, frozenset({len(columns) - 1}), wide=True, sortable=True,
                 filterable=True)  # fmt: skip


def failed_table(sweep: Sweep) -> Table | None:
    """Points that failed, with the reason."""
    rows: list[Row] = [
        (
            str(point.number),
            sweep.settings_text(place),
            str(seed) if seed is not None else NOTHING,
            " ".join(reason.split()),
        )
        for place, point in enumerate(sweep.points)
        for seed, reason in point.failures
    ]
    if not rows:
        return None
    columns = ("Point", "Settings", "Seed", "Reason")
    return Table("Points that failed", columns, [Group(rows)], prose=frozenset({3}))


def adapters_table(sweep: Sweep) -> Table | None:
    """Adapters that were evaluated, one for each seed."""
    rows: list[Row] = [
        (
            str(adapter.get("seed")),
            str(adapter.get("run") or NOTHING),
            str(adapter.get("sha256") or NOTHING)[:12],
            str(adapter.get("device") or NOTHING),
            str(adapter.get("rounds") if adapter.get("rounds") is not None else NOTHING),
            str(adapter.get("test_cases") if adapter.get("test_cases") is not None else NOTHING),
        )
        for adapter in sorted(sweep.result.get("adapters") or [], key=lambda adapter: int(adapter.get("seed") or 0))
    ]
    if not rows:
        return None
    columns = ("Seed", "Trained in run", "SHA-256, first 12 digits", "Trained on device", "Rounds", "Test cases")
    return Table("Adapters that were evaluated", columns, [Group(rows)], frozenset({4, 5}))


def points_of(drop: float | None) -> str:
    """Write a drop in points of accuracy: 1.3; a gain is negative."""
    if drop is None:
        return NOTHING
    shown = f"{100 * drop:.1f}"
    return Quantity("0.0" if shown == "-0.0" else shown.replace("-", "\N{MINUS SIGN}"), 100 * drop)


def points_bounds(bounds: Bounds) -> str:
    """Write the ends of an interval of a drop in points."""
    return NOTHING if bounds is None else f"{points_of(bounds[0])} to {points_of(bounds[1])}"


def bounds_text(bounds: Bounds) -> str:
    """Write the ends of an interval of an accuracy."""
    return NOTHING if bounds is None else interval(list(bounds))


def quantity_bounds(bounds: Bounds, unit: str) -> str:
    """Write the ends of an interval of a quantity."""
    return NOTHING if bounds is None else f"{engineering(bounds[0], unit)} to {engineering(bounds[1], unit)}"


def _answer_row(sweep: Sweep, place: int, name: str) -> Row:
    point = sweep.points[place]
    return (
        f"{name[0].upper()}{name[1:]}: {sweep.settings_text(place)}",
        percent(point.accuracy),
        bounds_text(sweep.accuracy_interval(place)),
        points_of(point.drop),
        engineering(point.energy, "J"),
        engineering(point.latency, "s"),
    )


def _point_row(sweep: Sweep, place: int) -> Row:
    point = sweep.points[place]
    return (
        str(point.number),
        *(_setting(point, key) for key in sweep.keys),
        percent(point.accuracy),
        percent(point.accuracy_std, 2),
        bounds_text(point.accuracy_interval),
        bounds_text(sweep.accuracy_interval(place)),
        percent(point.ideal),
        points_of(point.drop),
        points_bounds(sweep.drop_interval(place)),
        significant(point.mean("macro_f1")),
        engineering(point.energy, "J"),
        quantity_bounds(point.energy_interval, "J"),
        engineering(point.latency, "s"),
        percent(point.mean("signal_left")),
        str(len(point.rows)),
        _note(sweep, point),
    )


def _setting(point: Point, key: Key) -> str:
    value = point.values[key.name]
    text = point.settings[key.name]
    return text if isinstance(value, str) else Quantity(text, float(value), key.unit or "")


def _note(sweep: Sweep, point: Point) -> str:
    notes = [sweep.base_name] if point.base else []
    notes += ["added to the design"] if point.added else []
    notes += [f"same settings in effect as point {point.same_as}"] if point.same_as is not None else []
    notes += [f"failed for {plural(len({seed for seed, _ in point.failures}), 'seed')}"] if point.failures else []
    return "; ".join([*notes, *point.warnings]) or NOTHING
