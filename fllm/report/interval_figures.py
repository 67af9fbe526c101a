"""Figures of intervals on a logarithmic axis: the three places of training, and two devices beside each other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fllm.report.drawing import BLUE, GREEN, ORANGE, VERMILION, Drawn, beside, log_axis, name_rows, nothing, rows_figure
from fllm.report.energy_facts import LINES, PLACES, Interval, in_lines
from fllm.report.formatting import engineering

_PLACE_COLORS = dict(zip(PLACES, (BLUE, ORANGE, GREEN), strict=True))
_DEVICE_LOOKS = ((BLUE, "o"), (VERMILION, "s"))


def draw_training(training: Mapping[str, Any]) -> Drawn:
    """Draw the energy of the whole training in its three places, their parts smaller below them."""
    lines, parts = training.get("lines_j") or {}, training.get("parts_j") or {}
    rows: list[tuple[str, str, Interval, bool]] = []
    for place in [place for place in PLACES if place in lines]:
        rows.append((place, place, lines[place], True))
        inside = parts.get(place) or {}
        ranked = sorted(inside, key=lambda part: (-inside[part]["nominal"], part))
        rows += [(place, part, inside[part], False) for part in ranked if inside[part]["nominal"] > 0]
    figure, axes = rows_figure(1.1 + 0.3 * max(6, len(rows)))
    caption = (
        "Energy of the whole training, all clients, in its three places, which are three different systems; "
        "whiskers: 95 % interval."
    )
    if not any(found["nominal"] > 0 for _, _, found, _ in rows):
        return nothing(figure, axes, caption)
    for height, (place, _, found, whole) in enumerate(rows):
        _dot(axes, height, found, _PLACE_COLORS[place], "o", large=whole)
        beside(axes, height, engineering(found["nominal"], "J"), 54, fontweight="bold" if whole else "normal")
    name_rows(axes, [name for _, name, _, _ in rows], bold="|".join(PLACES))
    log_axis(axes, "J")
    axes.set_xlabel("Energy of training, logarithmic")
    words = "; ".join(f"{name} {engineering(found['nominal'], 'J')}" for _, name, found, whole in rows if whole)
    return Drawn(figure, caption, f"Dots with intervals on a logarithmic axis: {words}.")


def draw_comparison(devices: Sequence[tuple[str, Mapping[str, Any]]]) -> Drawn:
    """Draw the energy per token of two devices part by part, then their lines and both lines together.

    Args:
        devices: Name and energy facts of each device.
    """
    names = _rows_of([facts for _, facts in devices])
    figure, axes = rows_figure(1.7 + 0.46 * max(4, len(names)))
    caption = "Energy per token of both devices; whiskers: 95 % interval. Bold rows are sums."
    for number, (device, facts) in enumerate(devices):
        color, mark = _DEVICE_LOOKS[number]
        for height, name in enumerate(names):
            found = _value(facts, name)
            if not found or found["nominal"] <= 0:
                continue
            shifted = height + 0.2 * (2 * number - 1)
            _dot(axes, shifted, found, color, mark, large=name in _SUMS)
            beside(axes, shifted, engineering(found["nominal"], "J"), 50, color=color, fontsize=8.5)
        axes.plot([], [], mark, color=color, label=device)
    if not axes.lines or not names:
        return nothing(figure, axes, caption)
    name_rows(axes, [textwrap.fill(name, 20) for name in names], bold="all .*|both together")
    log_axis(axes, "J")
    axes.set_xlabel("Energy per token, logarithmic")
    handles = [
        Line2D([], [], color=color, marker=mark, label=device)
        for (device, _), (color, mark) in zip(devices, _DEVICE_LOOKS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    words = "; ".join(f"{name} {engineering(_value(facts, _TOGETHER)['nominal'], 'J')}" for name, facts in devices)
    return Drawn(figure, caption, f"Dots with intervals for two devices: {words} per token.")


_TOGETHER = "both together"
_SUMS = {**{f"all {line}": line for line in LINES}, _TOGETHER: ""}


def _rows_of(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return parts that take energy on any device, grouped by line, then the sums."""
    largest: dict[str, Interval] = {}
    for found in facts:
        for part, interval in found["parts_j"].items():
            if interval["nominal"] > largest.get(part, {"nominal": 0.0})["nominal"]:
                largest[part] = interval
    return [part for members in in_lines(largest).values() for part in members] + (list(_SUMS) if largest else [])


def _value(facts: Mapping[str, Any], name: str) -> Interval:
    if name == _TOGETHER:
        return dict(facts["energy_per_token_j"])
    found: Interval = facts["lines_j"].get(_SUMS[name], {}) if name in _SUMS else facts["parts_j"].get(name, {})
    return found


def _dot(axes: Axes, height: float, found: Interval, color: str, mark: str, *, large: bool) -> None:
    """Draw a value as a dot with its 95 % interval."""
    nominal = found["nominal"]
    if nominal <= 0:
        return
    ends = [max(found.get("lower_95", nominal), 1e-30), found.get("upper_95", nominal)]
    axes.plot(ends, [height, height], color=color, linewidth=2.4 if large else 1.2, alpha=0.75, solid_capstyle="butt")
    axes.plot([nominal], [height], mark, color=color, markersize=8.5 if large else 5)
