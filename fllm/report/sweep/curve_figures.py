"""Figures of accuracy against one key: lines for a grid, dots for words, a cloud where keys cannot be held."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fllm.report.drawing import CARD, GREY, Drawn, beside, name_rows, nothing, rows_figure, shorten
from fllm.report.formatting import percent
from fllm.report.sweep.curves import Curve, Line
from fllm.report.sweep.drawing import (
    LOOKS,
    KeyAxis,
    accuracy_axis,
    bars_note,
    held_note,
    legend_below,
    majority_line,
    new_axes,
)
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.marks import (
    all_levels,
    coordinate,
    dot,
    ideal_level,
    ideal_lines,
    ideal_rows,
    majority_note,
    mark_base,
    mark_failed,
)
from fllm.report.sweep.points import Key

_MOST_BARS = 150  # points of a cloud that still have bars


def draw_curve(sweep: Sweep, curve: Curve) -> Drawn:
    """Draw accuracy along a key, one line for each value of the second one."""
    return _draw_lines(sweep, curve) if curve.key.numeric else _draw_rows(sweep, curve)


def draw_cloud(sweep: Sweep, key: Key) -> Drawn:
    """Draw the accuracy of all points of the design against one key; all others vary with it."""
    figure, axes = new_axes()
    caption = f"Accuracy of every point against {key.name}; the other keys vary as well." + bars_note(sweep)
    places = [place for place in sweep.known if not sweep.points[place].added]
    if not places:
        return nothing(figure, axes, caption)
    handles: list[Any] = []
    for look, (label, members) in zip(LOOKS, _groups(sweep, key, places), strict=False):
        plain = dict(look) | {"linestyle": "none"}
        for place in members:
            point = sweep.points[place]
            dot(axes, coordinate(key, point), point, plain, bars=len(places) <= _MOST_BARS)
        handles.append(Line2D([], [], **plain, markerfacecolor=CARD, label=label))
    if len(places) > _MOST_BARS:
        caption = caption.partition(" Bars:")[0] + " More than 150 points: drawn without bars."
    handles = handles if len(handles) > 1 else []
    ideal_level(axes, sweep, places, handles)
    mark_base(axes, sweep, key, handles)
    caption += majority_note(axes, sweep, places, handles)
    _finish_key_axis(axes, key)
    accuracy_axis(axes)
    legend_below(figure, handles)
    ranked = sorted(places, key=lambda place: sweep.points[place].accuracy or 0.0)
    ends = [f"{percent(sweep.points[at].accuracy)} at {sweep.settings_text(at)}" for at in (ranked[0], ranked[-1])]
    return Drawn(figure, caption, f"Cloud of {len(places)} points: accuracy from {' to '.join(ends)}.")


def _draw_lines(sweep: Sweep, curve: Curve) -> Drawn:
    figure, axes = new_axes()
    caption = _caption(sweep, curve)
    places = [place for line in curve.lines for place in line.places]
    if not places:
        return nothing(figure, axes, caption)
    handles: list[Any] = []
    for number, line in enumerate(curve.lines):
        if not line.places:
            continue
        look = LOOKS[number]
        shift = _sideways(curve, number)
        where = [curve.key.value_at(_place(sweep, curve.key, place) + shift) for place in line.places]
        axes.plot(where, sweep.accuracies(line.places), color=look["color"],
                  linestyle=look["linestyle"], linewidth=1.6)  # fmt: skip
        for x, place in zip(where, line.places, strict=True):
            dot(axes, x, sweep.points[place], look)
        handles.append(Line2D([], [], **look, markerfacecolor=CARD, label=_line_label(curve, line)))
    caption += ideal_lines(axes, sweep, curve, handles)
    if _shifts(curve):
        caption += " Lines are shifted sideways a little, so that bars stay apart."
    caption += mark_failed(axes, sweep, curve, handles)
    mark_base(axes, sweep, curve.key, handles)
    caption += majority_note(axes, sweep, places, handles)
    _finish_key_axis(axes, curve.key)
    accuracy_axis(axes)
    legend_below(figure, handles)
    return Drawn(figure, caption, _alt(sweep, curve))


def _draw_rows(sweep: Sweep, curve: Curve) -> Drawn:
    """Draw one row for each word, its lines below each other."""
    words = [str(value) for value in curve.key.values]
    pitch = 0.34 if len(curve.lines) == 1 else 0.14 + 0.17 * len(curve.lines)
    figure, axes = rows_figure(1.5 + pitch * max(3, len(words)))
    caption = _caption(sweep, curve)
    places = [place for line in curve.lines for place in line.places]
    if not places:
        return nothing(figure, axes, caption)
    handles: list[Any] = []
    for band in range(0, len(words), 2) if len(curve.lines) > 1 else ():
        axes.axhspan(band - 0.5, band + 0.5, color="#EFEFEC", linewidth=0, zorder=0.5)
    for number, line in enumerate(curve.lines):
        look = dict(LOOKS[number]) | {"linestyle": "none"}
        height = 0.0 if len(curve.lines) == 1 else 0.6 * (number / (len(curve.lines) - 1) - 0.5)
        for place in line.places:
            row = words.index(str(sweep.points[place].values[curve.key.name])) + height
            dot(axes, row, sweep.points[place], look, horizontal=True)
            if len(curve.lines) == 1:
                beside(axes, row, percent(sweep.points[place].accuracy), 46)
        for place in line.failed:
            row = words.index(str(sweep.points[place].values[curve.key.name])) + height
            across = axes.get_yaxis_transform()
            axes.annotate("failed", (0.02, row), xycoords=across, va="center", fontsize=8, color=GREY)
        handles.append(Line2D([], [], **look, markerfacecolor=CARD, label=_line_label(curve, line)))
    handles = handles if len(curve.lines) > 1 else []
    caption += ideal_rows(axes, sweep, places, curve, handles)
    line, said = majority_line(axes, sweep, all_levels(sweep, places), vertical=True)
    handles += [line] if line else []
    name_rows(axes, words, bold="" if curve.key.base is None else re.escape(shorten(str(curve.key.base))))
    axes.margins(x=0.08)
    accuracy_axis(axes, vertical=False)
    if curve.key.base in curve.key.values:
        caption += f" Bold: {sweep.base_name}."
    legend_below(figure, handles)
    return Drawn(figure, caption + said, _alt(sweep, curve))


def _finish_key_axis(axes: Axes, key: Key) -> None:
    if key.numeric:
        KeyAxis(key).apply(axes)
        return
    axes.set_xticks(range(len(key.values)), [shorten(str(value), 16) for value in key.values], rotation=20, ha="right")
    axes.set_xlabel(key.name)


def _groups(sweep: Sweep, key: Key, places: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Group points by the thirds of the first other key, or by its words."""
    other = next((other for other in sweep.keys if other is not key and other.values), None)
    if other is None:
        return [("", list(places))]
    if not other.numeric:
        words = list(other.values)[: len(LOOKS)]
        groups = [(f"{other.name} = {word}", [p for p in places if sweep.points[p].values[other.name] == word])
                  for word in words]  # fmt: skip
        return [group for group in groups if group[1]]
    ranked = sorted(places, key=lambda place: (_place(sweep, other, place), place))
    cuts = [round(third * len(ranked) / 3) for third in range(4)]
    thirds = [ranked[start:end] for start, end in pairwise(cuts) if end > start]
    return [(f"{other.name} {_range(sweep, other, third)}", third) for third in thirds]


def _range(sweep: Sweep, key: Key, places: Sequence[int]) -> str:
    ends = [key.text(sweep.points[place].values[key.name]) for place in (places[0], places[-1])]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _place(sweep: Sweep, key: Key, place: int) -> float:
    return key.place(sweep.points[place].values[key.name])


def _shifts(curve: Curve) -> bool:
    return len(curve.lines) > 1 and len(curve.key.values) > 1


def _sideways(curve: Curve, number: int) -> float:
    """Shift of a line in the coordinate of its key: at most 1.5 % of the axis, a quarter of the closest step."""
    if not _shifts(curve):
        return 0.0
    places = [curve.key.place(value) for value in curve.key.values]
    closest = min(after - before for before, after in pairwise(places))
    return min(0.03 * (places[-1] - places[0]), 0.5 * closest) * (number / (len(curve.lines) - 1) - 0.5)


def _line_label(curve: Curve, line: Line) -> str:
    if curve.second is None or line.value is None:
        return "Emulated hardware"
    value = curve.second.text(line.value)
    return f"{curve.second.name} = {value}" if curve.second.numeric else value


def _caption(sweep: Sweep, curve: Curve) -> str:
    caption = f"Accuracy on the emulated hardware against {curve.key.name}"
    if curve.second is not None:
        chosen = len(curve.lines) < len(curve.second.values)
        which = f"{len(curve.lines)} of {len(curve.second.values)} values" if chosen else "each value"
        caption += f", one line for {which} of {curve.second.name}"
    return f"{caption}.{held_note(sweep, curve.held)}{bars_note(sweep)}"


def _alt(sweep: Sweep, curve: Curve) -> str:
    """Describe each line by its ends."""
    lines = []
    for line in curve.lines:
        if line.places:
            ends = [line.places[0], line.places[-1]] if len(line.places) > 1 else [line.places[0]]
            points = [sweep.points[place] for place in (ends if curve.key.numeric else line.places)]
            shown = [f"{percent(p.accuracy)} at {curve.key.text(p.values[curve.key.name])}" for p in points]
            named = "" if curve.second is None else f"{_line_label(curve, line)}: "
            lines.append(named + (" to " if curve.key.numeric else ", ").join(shown))
    kind = "Lines" if curve.key.numeric else "Dots"
    return f"{kind} of accuracy against {curve.key.name}: {'; '.join(lines)}."
