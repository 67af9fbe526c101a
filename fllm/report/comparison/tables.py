"""Tables of a comparison: what is compared, where settings and devices differ, and results of runs side by side.

Differences have a column per result; results have a row per run, so that they sort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from fllm.report.answer import answer
from fllm.report.comparison.facts import Differences, Result, Results, less, plain, same_cases
from fllm.report.energy_facts import (
    LINES,
    PLACES,
    Interval,
    Parts,
    ends,
    energy_of,
    in_lines,
    lines_of,
    parts_of,
    training_of,
)
from fllm.report.formatting import (
    NOTHING,
    Quantity,
    count,
    engineering,
    points,
    times,
)
from fllm.report.tables import Group, Row, Table, kind_badge
from fllm.results import value_at

BYTES = ("uplink_bytes", "downlink_bytes")


def compared_table(results: Results, names: Sequence[str]) -> Table:
    """What is compared, in the order given."""
    rows: list[Row] = [
        (
            name,
            str(result["status"]),
            _rounds(result),
            str(result["model"].get("name") or NOTHING),
            str(result["device"].get("name") or NOTHING),
            plain(value_at(result, "config", "seed")),
            count(result["data"].get("num_test")),
            str(result.get("created") or NOTHING),
        )
        for name, result in zip(names, results, strict=True)
    ]
    columns = ("Run", "Status", "Rounds", "Model", "Device", "Seed", "Test cases", "Created")
    return Table(
        "The first run is the one that the others are compared with", columns, [Group(rows)], frozenset({5, 6})
    )


def differences_table(caption: str, differences: Differences, names: Sequence[str]) -> Table | None:
    """Keys whose values differ, with the value in each result; None where there is none."""
    if not differences.values:
        return None
    rows = [(key, *(plain(value) for value in values)) for key, values in differences.values.items()]
    return Table(caption, ("Key", *names), [Group(rows)], wide=len(names) > 3)


def device_differences_table(differences: Differences, names: Sequence[str]) -> Table | None:
    """Device numbers that differ, with value, kind and, where it differs, range in each result."""
    if not differences.values:
        return None
    rows = []
    for key, entries in differences.values.items():
        ranges = {plain((entry or {}).get("range")) for entry in entries}
        rows.append((key, *(_device_cell(entry, with_range=len(ranges) > 1) for entry in entries)))
    caption = f"Device numbers that differ in value, kind or range: {len(rows)} of {differences.total}"
    return Table(caption, ("Number", *names), [Group(rows)], wide=len(names) > 3)


def against_first_table(results: Results, names: Sequence[str]) -> Table:
    """Difference of every other run to the first, with what the intervals allow to say."""
    first, rows = results[0], list[Row]()
    for name, result in zip(names[1:], results[1:], strict=True):
        rows.append((
            name,
            points(less(answer(result).accuracy_hardware, answer(first).accuracy_hardware)),
            accuracy_verdict(first, result),
            points(less(answer(result).accuracy_ideal, answer(first).accuracy_ideal)),
            times(ratio(answer(result).energy_per_token_j, answer(first).energy_per_token_j)),
            _verdict(energy_of(first).get("energy_per_token_j"), energy_of(result).get("energy_per_token_j")),
            times(ratio(answer(result).latency_per_token_s, answer(first).latency_per_token_s)),
        ))  # fmt: skip
    columns = ("Run", "Accuracy, hardware [points]", "95 % intervals", "Accuracy, ideal [points]", "Energy per token",
               "95 % intervals", "Latency per token")  # fmt: skip
    caption = (
        f"Against {names[0]}: accuracy less its accuracy, energy and latency divided by its own; 95 % intervals that "
        "overlap establish no difference"
    )
    return Table(caption, columns, [Group(rows)], frozenset({1, 3, 4, 6}), sortable=True)


def cost_table(results: Results, names: Sequence[str]) -> Table:
    """Energy and latency of a token, and the bytes sent, of every run."""
    rows: list[Row] = []
    for name, result in zip(names, results, strict=True):
        found, energy, spent = answer(result), energy_of(result), lines_of(result)
        rows.append((
            name,
            engineering(found.energy_per_token_j, "J"),
            _ends(energy.get("energy_per_token_j"), "J"),
            *(engineering(spent.get(line), "J") for line in LINES),
            engineering(found.latency_per_token_s, "s"),
            _ends(energy.get("latency_per_token_s"), "s"),
            *(engineering(bytes_sent(result, key), "B") for key in BYTES),
        ))  # fmt: skip
    columns = ("Run", "Energy per token", "95 % interval", "Arrays", "Digital accelerator", "Latency per token",
               "Low to high", "Uplink", "Downlink")  # fmt: skip
    caption = (
        "Modelled energy and latency of one token, forward pass, both lines together; bytes of all rounds and clients"
    )
    return Table(caption, columns, [Group(rows)], frozenset(range(1, len(columns))), wide=True, sortable=True)


def parts_table(results: Results, names: Sequence[str]) -> Table | None:
    """Energy of a token by part, a column per run; parts that take nothing anywhere are left out."""
    found = [parts_of(result) for result in results]
    groups = []
    for line, members in in_lines(_largest(found)).items():
        rows: list[Row] = [
            (part, *(engineering(value_at(parts, part, "nominal"), "J") for parts in found)) for part in members
        ]
        sums = (engineering(lines_of(result).get(line), "J") for result in results)
        groups.append(Group(rows, ((line or "of no known line").capitalize(), *sums)))
    if not groups:
        return None
    numeric = frozenset(range(1, len(names) + 1))
    return Table("Energy per token by part", ("Part", *names), groups, numeric, wide=len(names) > 4)


def training_table(results: Results, names: Sequence[str]) -> Table | None:
    """Energy of the whole training of every run, in its three places."""
    rows: list[Row] = []
    for name, result in zip(names, results, strict=True):
        training = training_of(result)
        cells = []
        for place in PLACES:
            whole = value_at(training, "lines_j", place) or {}
            cells += [engineering(whole.get("nominal"), "J"), _ends(whole, "J")]
        rows.append((name, *cells, count(training.get("tokens"))))
    if not any(training_of(result) for result in results):
        return None
    columns = ("Run", *(column for place in PLACES for column in (place.capitalize(), "95 % interval")), "Tokens")
    caption = "Energy of the whole training, all rounds and clients, in three places that are not one system"
    return Table(caption, columns, [Group(rows)], frozenset(range(1, len(columns))), wide=True, sortable=True)


def accuracy_verdict(first: Result, other: Result) -> str:
    """Say what two 95 % intervals of accuracy allow to say."""
    if not same_cases(first, other):
        return "other test cases"
    one, two = answer(first).interval_hardware, answer(other).interval_hardware
    return verdict(one, two)


def verdict(one: Sequence[float] | None, two: Sequence[float] | None) -> str:
    """Say whether two intervals overlap; intervals apart are more than a test of the difference at 5 % asks for."""
    if not one or not two:
        return "not known yet"
    return "apart" if one[1] < two[0] or two[1] < one[0] else "overlap"


def _verdict(one: Interval | None, two: Interval | None) -> str:
    pairs = [[found["lower_95"], found["upper_95"]] if found and "upper_95" in found else None for found in (one, two)]
    return verdict(*pairs)


def _device_cell(entry: Mapping[str, Any] | None, *, with_range: bool) -> str:
    if entry is None:
        return NOTHING
    shown = Markup("{} {}").format(plain(entry.get("value")), kind_badge(entry.get("kind")))
    if with_range and entry.get("range"):
        shown += Markup(" ({})").format(" to ".join(plain(end) for end in entry["range"]))
    return shown


def _rounds(result: Result) -> str:
    found = answer(result)
    return f"{found.rounds_done} of {found.rounds_planned}" if found.rounds_planned else str(found.rounds_done)


def _ends(found: Interval | None, unit: str) -> str:
    """Write an interval so that it sorts by its lower end."""
    shown = ends(found, unit)
    if not shown or not found:
        return NOTHING
    low, high = found.get("lower_95", found.get("low")), found.get("upper_95", found.get("high"))
    return NOTHING if low is None or high is None else Quantity(shown, low, unit, to=high)


def ratio(one: float | None, other: float | None) -> float | None:
    """Divide two numbers; None where one is unknown or zero."""
    return one / other if one and other else None


def bytes_sent(result: Result, key: str) -> int | None:
    """Sum of ``uplink_bytes`` or ``downlink_bytes`` over the rounds; None before the first."""
    rows = [row for row in result["rounds"] if row["round"] > 0]
    return sum(row.get(key) or 0 for row in rows) if rows else None


def _largest(found: Sequence[Parts]) -> Parts:
    """Return each part with the largest energy that it has anywhere; parts of nothing are left out."""
    largest: Parts = {}
    for parts in found:
        for part, energy in parts.items():
            if energy["nominal"] > (largest[part]["nominal"] if part in largest else 0.0):
                largest[part] = energy
    return largest
