"""What the figures of a sweep share: axes of keys and of accuracy, looks of lines, marks of the base device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator

from fllm.report.drawing import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SIZE,
    SKY,
    VERMILION,
    log_axis,
    shorten,
)
from fllm.report.formatting import percent, prefix, prefix_exponent
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.points import Key, Point, Value, number_text
from fllm.results import value_at

Look = Mapping[str, Any]
LOOKS: tuple[Look, ...] = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": VERMILION, "marker": "s", "linestyle": "--"},
    {"color": GREEN, "marker": "^", "linestyle": "-."},
    {"color": PURPLE, "marker": "D", "linestyle": ":"},
    {"color": ORANGE, "marker": "v", "linestyle": (0, (6, 1.5, 1, 1.5, 1, 1.5))},
    {"color": SKY, "marker": "P", "linestyle": (0, (3, 1))},
)
"""One look for each line of a figure: colour, mark and dashes, so that no line is told by its colour alone."""

STAR: Look = {"marker": "*", "markersize": 13, "color": INK, "markeredgecolor": CARD, "markeredgewidth": 0.8}
ACCURACY = "Accuracy on test cases [%]"
_CLOSEST = 0.085  # of the axis, between two ticks that each name a swept value
_MOST_TICKS = 9
_LEGEND_WIDTH = 68  # characters


@dataclass(frozen=True)
class KeyAxis:
    """How one axis shows a key: ticks that name values, and a label with the unit."""

    key: Key
    vertical: bool = False

    def apply(self, axes: Axes) -> None:
        """Set scale, ticks and label; call it when everything is drawn."""
        axis = axes.yaxis if self.vertical else axes.xaxis
        ticks = self._swept_ticks()
        if self.key.logarithmic and ticks:
            (axes.set_yscale if self.vertical else axes.set_xscale)("log")
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FuncFormatter(lambda value, _: self.key.text(_swept(self.key, value))))
            axis.set_minor_locator(FixedLocator([]))
        elif self.key.logarithmic:
            self._log_ticks(axes)
        else:
            scale = self._linear(axis, ticks)
            axis.set_label_text(f"{self.key.name}{scale}")
            return
        axis.set_label_text(f"{self.key.name}, logarithmic")

    def _log_ticks(self, axes: Axes) -> None:
        """Tick powers of ten."""
        if not self.vertical and self.key.unit is not None:
            log_axis(axes, self.key.unit)
            return
        (axes.set_yscale if self.vertical else axes.set_xscale)("log")
        axis = axes.yaxis if self.vertical else axes.xaxis
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value, self.key.unit)))
        axis.set_minor_locator(FixedLocator([]))

    def _linear(self, axis: Any, ticks: Sequence[float]) -> str:
        """Set ticks in one unit for all, and return the unit for the label."""
        largest = max(abs(float(value)) for value in self.key.values)
        prefixed = self.key.unit is not None and "**" not in self.key.unit and not self.key.unit.startswith("1/")
        exponent = prefix_exponent(largest) if prefixed else 0
        axis.set_major_locator(FixedLocator(ticks) if ticks else MaxNLocator(6, integer=self.key.whole))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10.0**exponent:.6g}"))
        return "" if self.key.unit is None else f" [{prefix(exponent)}{self.key.unit}]"

    def _swept_ticks(self) -> list[float]:
        """Swept values, where they are few enough and far enough apart to be named one by one."""
        if len(self.key.values) > _MOST_TICKS:
            return []
        places = [self.key.place(value) for value in self.key.values]
        span = (places[-1] - places[0]) or 1.0
        gaps = np.diff(places) / span
        return [] if gaps.size and gaps.min() < _CLOSEST else [float(value) for value in self.key.values]


def _swept(key: Key, value: float) -> Any:
    """Return the swept value of a tick, which an axis may have changed in its last bit."""
    return min(key.values, key=lambda swept: abs(float(swept) - value))


def accuracy_axis(axes: Axes, *, vertical: bool = True) -> None:
    """Show accuracy in per cent, never outside 0 to 100."""
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_label_text(ACCURACY)
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}"))
    low, high = axes.get_ylim() if vertical else axes.get_xlim()
    (axes.set_ylim if vertical else axes.set_xlim)(max(low, -0.03), min(high, 1.03))


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """Put a legend below a figure and give it the height that its rows take."""
    if not handles:
        return
    for handle in handles:
        handle.set_label(shorten(str(handle.get_label()), 62))
    columns = next((n for n in (3, 2) if _legend_width(handles, n) <= _LEGEND_WIDTH), 1)
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, rows - 1))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def _legend_width(handles: Sequence[Any], columns: int) -> int:
    """Width of a legend in characters; it is filled column by column, the first ones longer."""
    parts = np.array_split([len(str(handle.get_label())) for handle in handles], columns)
    return sum(6 + max(part, default=0) for part in parts)


def error_ends(point: Point) -> tuple[float, float]:
    """Distances from the mean accuracy down and up to its interval over dies [1]; 0 where there is none."""
    mean, bounds = point.accuracy or 0.0, point.accuracy_interval
    return (0.0, 0.0) if bounds is None else (max(0.0, mean - bounds[0]), max(0.0, bounds[1] - mean))


def bars_note(sweep: Sweep) -> str:
    """Say what error bars are; empty where no point has any."""
    points = [sweep.points[place] for place in sweep.known]
    if not any(point.accuracy_interval for point in points):
        return " One replicate of each point: no bars." if points else ""
    several = len(sweep.result.get("seeds") or [0]) > 1
    over = "seeds, each by the mean over its dies" if several else "dies"
    return f" Bars: 95 % interval of the mean over {over} (Student t), on the same test cases."


def base_handle(sweep: Sweep, key: Key | None = None) -> Line2D | None:
    """Legend entry of the base device: a star, with the value of the key and the accuracy where they are known."""
    if sweep.base is None:
        return None
    accuracy = sweep.points[sweep.base].accuracy
    shown = [] if key is None or key.base is None else [key.text(key.base)]
    shown += [percent(accuracy)] if accuracy is not None else []
    look = dict(STAR) | {"linestyle": ":" if key else "", "linewidth": 1}
    if accuracy is None:
        look["marker"] = ""
    return Line2D([], [], **look, label=": ".join([sweep.base_name, ", ".join(shown)] if shown else [sweep.base_name]))


def majority(sweep: Sweep) -> float | None:
    """Accuracy of always naming the most frequent class [1]."""
    found = value_at(sweep.result, "baselines", "majority", "accuracy")
    return None if found is None else float(found)


def majority_line(axes: Axes, sweep: Sweep, shown: Sequence[float], *, vertical: bool = False) -> tuple[Any, str]:
    """Draw the majority class as a thin line, unless it lies so far below that the points would shrink.

    Returns:
        The line, or None; and what to say in the caption.
    """
    accuracy = majority(sweep)
    if accuracy is None or not shown:
        return None, ""
    spread = max(max(shown) - min(shown), 0.04)
    if min(shown) - accuracy > spread:
        return None, f" The majority class ({percent(accuracy)}) lies below the axis."
    draw = axes.axvline if vertical else axes.axhline
    line = draw(accuracy, color=GREY, linestyle=(0, (1, 2)), linewidth=1.1, zorder=1.5)
    line.set_label(f"Majority class, {percent(accuracy)}")
    return line, ""


def held_note(sweep: Sweep, held: Sequence[tuple[Key, Value]]) -> str:
    """Say at which values further keys are held, and how these relate to the base device."""
    return "".join(f" {key.name} is held at {key.text(value)}, {_relation(sweep, key, value)}." for key, value in held)


def _relation(sweep: Sweep, key: Key, value: Value) -> str:
    if key.base is None:
        return "as that of the base device is not known"
    if value == key.base:
        return "as published" if sweep.published else "as on the base device"
    nearest = "the swept value nearest to" if key.numeric else "since the sweep lacks"
    return f"{nearest} {key.text(key.base)}{' as published' if sweep.published else ' of the base device'}"


def new_axes(height: float = SIZE[1]) -> tuple[Figure, Axes]:
    """Return a figure of the usual width with one pair of axes."""
    figure = Figure(figsize=(SIZE[0], height))
    return figure, figure.subplots()
