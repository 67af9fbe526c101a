"""The tables of energy, latency and area of a report. A sum over two lines is always called one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fllm.report.energy_facts import (
    LINES,
    PLACES,
    Interval,
    baselines_of,
    ends,
    energy_of,
    in_lines,
    parts_of,
    telling,
    training_of,
)
from fllm.report.formatting import NOTHING, Quantity, count, engineering, share, times
from fllm.report.tables import Group, Row, Table, kind_badge, link_sources
from fllm.results import value_at

_TOGETHER = "Arrays and digital accelerator together"


def prices_table(result: Mapping[str, Any]) -> Table | None:
    """Energy per token, line by line and part by part; each event with its price and the source of that."""
    prices = value_at(result, "final", "prices") or []
    parts = dict(parts_of(result))
    for part in sorted({row["part"] for row in prices} - set(parts)):  # counted, but without energy
        energy = sum(row["energy_per_token_j"] or 0.0 for row in prices if row["part"] == part)
        parts[part] = {"nominal": energy}
    if not parts:
        return None
    total = sum(found["nominal"] for found in parts.values())
    groups = []
    for line, members in in_lines(parts).items():
        for name, found in members.items():
            rows = [row for row in prices if row["part"] == name]
            rows.sort(key=lambda row: (-(row["energy_per_token_j"] or 0.0), row["event"]))
            groups.append(Group([_price_row(row, total, result) for row in rows], _sum_row(name, found, total)))
        if line:
            known = value_at(energy_of(result), "lines_j", line)
            whole = known or {"nominal": sum(found["nominal"] for found in members.values())}
            groups.append(Group([], _sum_row(f"All {line}", whole, total)))
    whole = energy_of(result).get("energy_per_token_j") or {"nominal": total}
    groups.append(Group([], _sum_row(_TOGETHER if set(LINES) <= set(in_lines(parts)) else "Total", whole, total)))
    columns = ("Part and event", "Count per token", "Price per event", "Kind", "Source", "Energy per token",
               "95 % interval", "Share")  # fmt: skip
    caption = "Modelled energy of one token; shares are those of both lines together"
    return Table(caption, columns, groups, frozenset({1, 2, 5, 6, 7}), sortable=True, filterable=True)


def comparison_table(result: Mapping[str, Any]) -> Table | None:
    """A few baselines for the first screen; their names lead to their caveats."""
    rows = baselines_of(result)
    cells: list[Row] = [
        (
            Markup('<a href="#baseline-{}">{}</a>').format(index + 1, rows[index]["name"]),
            rows[index]["scope"],
            times(rows[index]["ratio"]),
            kind_badge(rows[index]["kind"]),
        )
        for index in telling(rows)
    ]
    if not cells:
        return None
    caption = (
        "Energy of the same token elsewhere, divided by here: in each scope the hardware that takes least, then the "
        "one most outdone. No like-for-like systems: each name leads to what its number leaves out"
    )
    columns = ("Elsewhere", "Scope", "There / here", "Kind of number")
    return Table(caption, columns, [Group(cells)], frozenset({2}))


def baselines_table(result: Mapping[str, Any]) -> Table | None:
    """Every baseline with what it rests on and what a reader must know before dividing by it."""
    rows = baselines_of(result)
    if not rows:
        return None
    groups = []
    for scope in dict.fromkeys(row["scope"] for row in rows):
        members: list[Row] = [
            (
                Markup('<span id="baseline-{}">{}</span>').format(index, row["name"]),
                engineering(row["energy_per_token_j"], "J"),
                engineering(row["device_energy_per_token_j"], "J"),
                times(row["ratio"]),
                kind_badge(row["kind"]),
                link_sources(", ".join(row.get("citations") or row["sources"]), result),
                row["caveat"],
            )
            for index, row in enumerate(rows, 1)
            if row["scope"] == scope
        ]
        groups.append(Group(members, (f"Scope: {scope}", "", "", "", "", "", _leakage(rows, scope))))
    columns = ("Same token on", "Energy there", "Energy here", "There / here", "Kind", "Sources", "Caveat")
    caption = "Energy of one token, in the same scope there and here"
    return Table(caption, columns, groups, frozenset({1, 2, 3}), frozenset({6}), sortable=True, filterable=True)


def _leakage(rows: list[Mapping[str, Any]], scope: str) -> str:
    """Say what leaks beside a scope, which its ratios leave out on both sides."""
    own = next(row for row in rows if row["scope"] == scope)
    leaks = own.get("device_leakage_per_token_j")
    if not leaks:
        return ""
    whole = engineering(own["device_energy_per_token_j"] + leaks, "J")
    return f"here with what leaks in a token period: {whole}; no ratio below contains it, on either side"


def area_table(result: Mapping[str, Any]) -> Table | None:
    """Area of the whole chip by part, with the technology of each number."""
    area = energy_of(result).get("area_m2") or {}
    if not area.get("parts"):
        return None
    technology = energy_of(result).get("area_technology") or {}
    rows: list[Row] = [
        (part, square_mm(area["parts"][part]), (technology.get(part) or NOTHING).removeprefix("technology: "))
        for part in sorted(area["parts"])
        if area["parts"][part]
    ]
    total = area.get("total") or {"nominal": sum(area["parts"].values())}
    low, high = total.get("low", total["nominal"]), total.get("high", total["nominal"])
    reach = "" if low == high else f"low to high: {square_mm(low)} to {square_mm(high)}"
    groups = [Group(rows), Group([], ("Whole chip, all layers", square_mm(total["nominal"]), reach))]
    if area.get("attention_head"):
        head = ("One stored attention head", square_mm(area["attention_head"]), "its cells, readout and control")
        groups.append(Group([], head))
    columns = ("Part", "Area", "Technology of the number")
    return Table("Modelled area by part", columns, groups, frozenset({1}), frozenset({2}))


def training_table(result: Mapping[str, Any]) -> Table | None:
    """Energy of the whole training in its three places, each with its parts; never their sum."""
    training = training_of(result)
    lines, parts = training.get("lines_j") or {}, training.get("parts_j") or {}
    groups = []
    for place in [place for place in PLACES if place in lines]:
        inside = parts.get(place) or {}
        whole = lines[place]["nominal"]
        ranked = sorted(inside, key=lambda part: (-inside[part]["nominal"], part))
        rows = [_place_row(part, inside[part], whole) for part in ranked]
        groups.append(Group(rows, _place_row(place.capitalize(), lines[place], whole)))
    if not groups:
        return None
    columns = ("Place and part", "Energy", "95 % interval", "Share of its place")
    caption = f"Energy of the whole training: all rounds and clients, {count(training.get('tokens'))} tokens"
    return Table(caption, columns, groups, frozenset({1, 2, 3}))


def training_rounds_table(result: Mapping[str, Any]) -> Table | None:
    """Energy of training round by round in its three places."""

    def spent(row: Mapping[str, Any], place: str) -> str:
        return engineering(value_at(row, "training", "lines_j", place, "nominal"), "J")

    rows: list[Row] = [
        (str(row["round"]), *(spent(row, place) for place in PLACES)) for row in result["rounds"] if row.get("training")
    ]
    if not rows:
        return None
    columns = ("Round", *(place.capitalize() for place in PLACES))
    caption = "Energy of training by round, all clients"
    return Table(caption, columns, [Group(rows)], frozenset({1, 2, 3}), sortable=True)


def square_mm(area_m2: float) -> str:
    """Write an area in mm2, which a chip's area is told in."""
    millimetres = area_m2 * 1e6
    shown = f"{millimetres:,.0f}" if millimetres >= 1000 else f"{millimetres:.3g}"
    return Quantity(f"{shown}\N{NO-BREAK SPACE}mm²", area_m2, "m²")


def _sum_row(name: str, found: Interval, total: float) -> Row:
    energy = found["nominal"]
    return name, "", "", "", "", engineering(energy, "J"), ends(found), share(energy, total)


def _price_row(row: Mapping[str, Any], total: float, result: Mapping[str, Any]) -> Row:
    """Write the cells of one priced event."""
    return (
        row["event"],
        count(row.get("count_per_token")),
        engineering(row.get("price_j"), "J"),
        kind_badge(row.get("kind")),
        link_sources(row.get("source"), result),
        engineering(row.get("energy_per_token_j"), "J"),
        "",
        share(row.get("energy_per_token_j") or 0.0, total),
    )


def _place_row(name: str, found: Interval, whole: float) -> Row:
    return name, engineering(found["nominal"], "J"), ends(found), share(found["nominal"], whole)
