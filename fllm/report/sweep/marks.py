"""What the figures of accuracy mark: points with bars, the ideal device, the base device, baselines, failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fllm.report.drawing import CARD, INK
from fllm.report.formatting import percent
from fllm.report.sweep.curves import Curve
from fllm.report.sweep.drawing import LOOKS, STAR, Look, base_handle, error_ends, majority_line
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.points import Key, Point


def dot(axes: Axes, where: float, point: Point, look: Look, *, bars: bool = True, horizontal: bool = False) -> None:
    """Draw one point with its interval over dies."""
    mean, (down, up) = point.accuracy or 0.0, error_ends(point)
    x, y = (mean, where) if horizontal else (where, mean)
    ends = [[down], [up]] if bars and down + up > 0 else None
    xerr, yerr = (ends, None) if horizontal else (None, ends)
    axes.errorbar(x, y, yerr, xerr, fmt=look["marker"], color=look["color"], markersize=5.5, markerfacecolor=CARD,
                  markeredgewidth=1.5, capsize=2.5, elinewidth=1.1)  # fmt: skip


def ideal_lines(axes: Axes, sweep: Sweep, curve: Curve, handles: list[Any]) -> str:
    """Draw the ideal device: one line where it is the same everywhere, else one for each line in its colour."""
    places = [place for line in curve.lines for place in line.places]
    if ideal_level(axes, sweep, places, handles) or all(sweep.points[place].ideal is None for place in places):
        return ""
    for number, line in enumerate(curve.lines):
        known = [place for place in line.places if sweep.points[place].ideal is not None]
        where = [coordinate(curve.key, sweep.points[place]) for place in known]
        axes.plot(
            where, [sweep.points[place].ideal or 0.0 for place in known], color=LOOKS[number]["color"], linewidth=0.9
        )
    handles.append(Line2D([], [], color=INK, linewidth=0.9, label="Ideal device"))
    return " Thin lines without marks: the ideal device at the same points."


def ideal_rows(axes: Axes, sweep: Sweep, places: Sequence[int], curve: Curve, handles: list[Any]) -> str:
    """Draw the ideal device in a figure of rows: one line, or a short one in each row."""
    level = ideal_level(axes, sweep, places, handles, vertical=True)
    if level or all(sweep.points[place].ideal is None for place in places):
        return ""
    words = [str(value) for value in curve.key.values]
    for place in curve.lines[curve.main].places:
        row = words.index(str(sweep.points[place].values[curve.key.name]))
        axes.plot([sweep.points[place].ideal or 0.0] * 2, [row - 0.4, row + 0.4], color=INK, linewidth=1.1, zorder=1.6)
    handles.append(Line2D([], [], color=INK, linewidth=1.1, label="Ideal device"))
    return " Short lines: the ideal device at the same points."


def ideal_level(axes: Axes, sweep: Sweep, places: Sequence[int], handles: list[Any], *, vertical: bool = False) -> bool:
    """Draw one line for the ideal device, if it has one accuracy at all points; say whether it does."""
    levels = {round(ideal, 9) for place in places if (ideal := sweep.points[place].ideal) is not None}
    if len(levels) != 1:
        return False
    draw = axes.axvline if vertical else axes.axhline
    line = draw(level := levels.pop(), color=INK, linewidth=1.1, zorder=1.6)
    line.set_label(f"Ideal device, {percent(level)}")
    handles.append(line)
    return True


def mark_failed(axes: Axes, sweep: Sweep, curve: Curve, handles: list[Any]) -> str:
    """Mark points without an accuracy at the foot of the axes."""
    failed = [place for line in curve.lines for place in line.failed]
    if not failed:
        return ""
    for place in failed:
        axes.plot([coordinate(curve.key, sweep.points[place])], [0.02], "x", color=INK, markersize=6,
                  transform=axes.get_xaxis_transform(), clip_on=False, zorder=5)  # fmt: skip
    handles.append(Line2D([], [], color=INK, marker="x", linestyle="none", label="failed"))
    return " Crosses at the foot: points that failed."


def mark_base(axes: Axes, sweep: Sweep, key: Key, handles: list[Any]) -> None:
    """Mark the base device by a thin vertical line at its value, and a star where its accuracy is known."""
    handle = base_handle(sweep, key)
    if handle is None or key.base is None or not key.numeric:
        return
    at = float(key.base)
    if key.logarithmic and at <= 0:
        return
    axes.axvline(at, color=INK, linewidth=1, linestyle=":", zorder=1.4)
    accuracy = sweep.points[sweep.base].accuracy if sweep.base is not None else None
    if accuracy is not None:
        axes.plot([at], [accuracy], **dict(STAR) | {"linestyle": "none", "zorder": 4})
    handles.append(handle)


def majority_note(axes: Axes, sweep: Sweep, places: Sequence[int], handles: list[Any]) -> str:
    """Draw the majority class, and return what to say in the caption."""
    line, said = majority_line(axes, sweep, all_levels(sweep, places))
    handles += [line] if line else []
    return said


def all_levels(sweep: Sweep, places: Sequence[int]) -> list[float]:
    """Return accuracies of points and of the ideal device there [1]."""
    points = [sweep.points[place] for place in places]
    return [level for point in points for level in (point.accuracy, point.ideal) if level is not None]


def coordinate(key: Key, point: Point) -> float:
    """Return where a point stands on the axis of a key: its value, or the rank of its word."""
    value = point.values[key.name]
    return key.place(value) if isinstance(value, str) else float(value)
