"""Figures of energy: parts with intervals, other hardware, the numbers that matter most, one layer's timeline.

Values stand in columns at the right, so that no label meets a whisker.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from device_models.costs import ACCELERATOR, ARRAYS
from device_models.errors import InputError
from fllm.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    Drawn,
    beside,
    log_axis,
    name_rows,
    nothing,
    picture,
    rows_figure,
    shorten,
)
from fllm.report.energy_facts import Interval, in_lines
from fllm.report.formatting import engineering, prefix, prefix_exponent, share, significant, times
from fllm.report.interval_figures import draw_comparison

LINE_COLORS = {ARRAYS: BLUE, ACCELERATOR: ORANGE, "": GREY}
_KIND_MARKS = {"measured": ("o", GREEN), "simulated": ("^", SKY), "derived": ("D", BLUE), "assumed": ("X", PURPLE)}
_PHASE_COLORS = {
    "cost.time_reset": GREY, "cost.time_write": PURPLE, "cost.time_qk": BLUE, "cost.time_av": BLUE,
    "cost.time_add": GREEN,
}  # fmt: skip


def draw_parts(parts: Mapping[str, Interval]) -> Drawn:
    """Draw energy per token by part, coloured by line, with the 95 % interval; parts that take nothing are left out.

    Args:
        parts: Part to its energy [J]: ``nominal``, and ``lower_95`` and ``upper_95`` where they are known.
    """
    shown = in_lines({name: found for name, found in parts.items() if found["nominal"] > 0})
    listed = [(line, name, found) for line, members in shown.items() for name, found in members.items()]
    figure, axes = rows_figure(1.35 + 0.4 * max(4, len(listed)))
    caption = "Modelled energy of one token by part, with its share of all parts together."
    if not listed:
        return nothing(figure, axes, caption, "No part takes energy" if parts else "No data")
    total = sum(found["nominal"] for _, _, found in listed)
    exponent = prefix_exponent(max(found.get("upper_95", found["nominal"]) for _, _, found in listed))
    scale = 10.0**exponent
    for row, (line, _, found) in enumerate(listed):
        axes.barh(row, found["nominal"] / scale, color=LINE_COLORS[line], height=0.62)
        _whisker(axes, row, found, scale)
        beside(axes, row, engineering(found["nominal"], "J"), 50)
        beside(axes, row, share(found["nominal"], total, 0), 88)
    name_rows(axes, [textwrap.fill(name, 20) for _, name, _ in listed])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")
    handles = [Patch(color=LINE_COLORS[line], label=_line_label(line, members)) for line, members in shown.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    words = "; ".join(f"{name} {engineering(found['nominal'], 'J')}" for _, name, found in listed)
    if any("upper_95" in found for _, _, found in listed):
        caption += " Whiskers: 95 % interval from the ranges of the prices."
    return Drawn(figure, f"{caption} Parts that take nothing are left out.", f"Bars of energy per token: {words}.")


def draw_baselines(rows: Sequence[Mapping[str, Any]]) -> Drawn:
    """Draw the energy of the same token elsewhere beside the device's, scope by scope, on a logarithmic axis."""
    scopes = dict.fromkeys(row["scope"] for row in rows)
    figure, axes = rows_figure(1.6 + 0.4 * max(4, len(rows) + 1.3 * len(scopes)))
    caption = (
        "Energy of the same token elsewhere, and there divided by here; marks tell the kind of number. These are no "
        "like-for-like systems: the table says what each leaves out."
    )
    if not any(row["energy_per_token_j"] > 0 for row in rows):
        return nothing(figure, axes, caption)
    height, names, places = 0.0, [], []
    for scope in scopes:
        members = sorted((row for row in rows if row["scope"] == scope), key=lambda row: row["energy_per_token_j"])
        own = members[0]["device_energy_per_token_j"]
        names.append(f"{scope}:\nthis device")
        places.append(height)
        beside(axes, height, engineering(own, "J"), 50)
        if own > 0:
            axes.plot([own, own], [height - 0.35, height + len(members) + 0.35], color=VERMILION, linewidth=1.2)
            axes.plot([own], [height], "s", color=VERMILION, markersize=8)
        for row in members:
            height += 1
            names.append(textwrap.fill(row["name"], 25))
            places.append(height)
            _baseline(axes, height, row, own)
        height += 1.3
    name_rows(axes, names, places, bold=".*this device")
    log_axis(axes, "J", ticks=3)
    axes.set_xlabel("Energy per token, logarithmic")
    kinds = [kind for kind in _KIND_MARKS if any(row["kind"] == kind for row in rows)]
    handles = [Line2D([], [], color=VERMILION, marker="s", markersize=8, label="this device")]
    handles += [
        Line2D([], [], linestyle="", marker=_KIND_MARKS[kind][0], color=_KIND_MARKS[kind][1], label=kind)
        for kind in kinds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    words = "; ".join(f"{r['scope']}, {r['name']} {engineering(r['energy_per_token_j'], 'J')}" for r in rows)
    return Drawn(figure, caption, f"Dots on a logarithmic axis: {words}.")


def draw_tornado(rows: Sequence[Mapping[str, Any]], nominal: float | None) -> Drawn:
    """Draw how far each number of the device moves the energy of a token within its range.

    Args:
        rows: As in the result, widest first.
        nominal: [J] per token with every number as the device file has it; None where it is not known.
    """
    figure, axes = rows_figure(1.4 + 0.5 * max(3, len(rows)))
    caption = (
        "The numbers that matter most: energy per token with one number at the low and at the high end of its range, "
        "all others as they are. Arrays and digital accelerator together."
    )
    if not rows or nominal is None:
        return nothing(figure, axes, caption, "No data" if nominal is None else "No number with a range moves it")
    reached = [row[end] for row in rows for end in ("low_j", "high_j")]
    bottom, top = min(nominal, *reached), max(nominal, *reached)
    exponent = prefix_exponent(top)
    scale = 10.0**exponent
    for place, row in enumerate(rows):
        for end, color in (("low", SKY), ("high", ORANGE)):
            energy = row[f"{end}_j"]
            axes.barh(place, (energy - nominal) / scale, left=nominal / scale, color=color, height=0.58)
            outwards = 1 if energy > nominal or (energy == nominal and end == "high") else -1
            axes.annotate(
                shorten(row[end], 12), (energy / scale, place), (4 * outwards, 0), textcoords="offset points",
                va="center", ha="left" if outwards > 0 else "right", fontsize=SMALL,
            )  # fmt: skip
    axes.axvline(nominal / scale, color=INK, linewidth=1)
    name_rows(axes, [f"{row['key']}\n{row['value']}, {row['kind']}" for row in rows])
    span = (top - bottom) / scale or 1.0
    axes.set_xlim(bottom / scale - 0.34 * span, top / scale + 0.22 * span)
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")
    handles: list[Artist] = [Patch(color=SKY, label="low end"), Patch(color=ORANGE, label="high end")]
    handles.append(Line2D([], [], color=INK, linewidth=1, label=f"as it is, {engineering(nominal, 'J')}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    words = "; ".join(f"{r['key']} {engineering(r['low_j'], 'J')} to {engineering(r['high_j'], 'J')}" for r in rows)
    return Drawn(figure, caption, f"Tornado chart of energy per token: {words}.")


def draw_timeline(phases: Sequence[Mapping[str, Any]] | None) -> Drawn:
    """Draw when each step of one token happens in one attention layer; None where that is not known."""
    figure, axes = rows_figure(1.1 + 0.36 * max(4, len(phases or ())))
    caption = (
        "One token in one attention layer, all heads and sub-tiles at the same time; without the linear layers "
        "around it."
    )
    if not phases:
        return nothing(figure, axes, caption, "No data" if phases is None else "No step takes time")
    for row, phase in enumerate(phases):
        start, end = phase["start_s"] * 1e9, phase["end_s"] * 1e9
        axes.barh(row, end - start, left=start, height=0.66, color=_PHASE_COLORS.get(phase["key"], VERMILION))
        beside(axes, row, f"{end - start:.3g} ns", 50)
    name_rows(axes, [textwrap.fill(phase["name"], 24) for phase in phases])
    axes.set_xlim(left=0)
    axes.set_xlabel("Time since the token's arrival [ns]")
    words = "; ".join(
        f"{p['name']} {significant(p['start_s'] * 1e9)} to {significant(p['end_s'] * 1e9)} ns" for p in phases
    )
    return Drawn(figure, caption, f"Timeline: {words}.")


def write_cost_figures(facts: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the figures of ``fllm cost``: those of decoding for each device, and for two devices one of both.

    Args:
        facts: As ``fllm.cost.cost_facts`` returns them, for one or two devices.
        folder: Is made.

    Returns:
        The written files.

    Raises:
        InputError: If the folder cannot be made.
    """
    drawings: dict[str, Callable[[], Drawn]] = {}
    for number, found in enumerate(facts, 1):
        start = "" if len(facts) == 1 else f"{number}_{found['device']['name']}_"
        drawings |= {f"{start}{name}": draw for name, draw in _of_one(found).items()}
    if len(facts) > 1:
        drawings["comparison"] = lambda: _titled(
            draw_comparison([(found["device"]["name"], found["decode"]) for found in facts]), facts[0], ""
        )
    pictures = [picture(name, draw) for name, draw in drawings.items()]
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=str(folder), remedy="name a new folder") from None
    written = []
    for made in pictures:
        for suffix, content in (("svg", made.svg), ("png", made.png)):
            written.append(folder / f"{made.name}.{suffix}")
            written[-1].write_bytes(content)
    return written


def _of_one(found: Mapping[str, Any]) -> dict[str, Callable[[], Drawn]]:
    """Return what draws the figures of one device."""
    decode, device = found["decode"], found["device"]["name"]
    nominal = decode["energy_per_token_j"]["nominal"]
    return {
        "energy_parts": lambda: _titled(draw_parts(decode["parts_j"]), found, device),
        "baselines": lambda: _titled(draw_baselines(decode["baselines"]), found, device),
        "tornado": lambda: _titled(draw_tornado(decode["tornado"], nominal), found, device),
        "timeline": lambda: _titled(draw_timeline(decode["timeline"]), found, device),
    }


def _titled(drawn: Drawn, found: Mapping[str, Any], device: str) -> Drawn:
    """Name model, device and token above a figure that stands alone."""
    on = f" on {device}" if device else ""
    title = f"{found['model']['name']}{on}, decoding token {found['tokens']}, modelled"
    drawn.figure.suptitle(textwrap.fill(title, 64))
    return drawn


def _baseline(axes: Axes, height: float, row: Mapping[str, Any], own: float) -> None:
    """Draw one baseline with a thread to the device's own energy."""
    there = row["energy_per_token_j"]
    if own > 0 and there > 0:
        axes.plot([own, there], [height, height], color="#B9BDB8", linewidth=1, zorder=1.5)
    if there > 0:
        mark, color = _KIND_MARKS.get(row["kind"], ("v", GREY))
        axes.plot([there], [height], mark, color=color, markersize=7)
    beside(axes, height, engineering(there, "J"), 50)
    beside(axes, height, times(row["ratio"]), 104)


def _whisker(axes: Axes, row: float, found: Interval, scale: float) -> None:
    """Draw the 95 % interval of a value, where it has one."""
    if found.get("lower_95", 0.0) < found.get("upper_95", 0.0):
        below, above = found["nominal"] - found["lower_95"], found["upper_95"] - found["nominal"]
        axes.errorbar(
            found["nominal"] / scale, row, xerr=[[below / scale], [above / scale]], fmt="none", ecolor=INK, capsize=3,
            elinewidth=1.1,
        )  # fmt: skip


def _line_label(line: str, members: Mapping[str, Interval]) -> str:
    energy = engineering(sum(found["nominal"] for found in members.values()), "J")
    return f"{line or 'of no known line'}, {energy}"
