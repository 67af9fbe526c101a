"""Heat map of accuracy over two keys of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from fllm.report.drawing import CARD, INK, SIZE, VERMILION, Drawn, nothing, shorten
from fllm.report.formatting import percent
from fllm.report.sweep.bootstrap import Array
from fllm.report.sweep.curves import main_values
from fllm.report.sweep.drawing import held_note
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.points import Key, Value

_COLORS = "cividis"
_MOST_NUMBERS = (9, 14)  # columns and rows of a map that still has room for a number in each cell
_MOST_TICKS = 12


def has_map(sweep: Sweep) -> bool:
    """Whether the sweep is a grid of two keys or more."""
    return sweep.gridlike and len([key for key in sweep.keys if len(key.values) > 1]) >= 2


def draw_map(sweep: Sweep) -> Drawn:
    """Draw the mean accuracy of each pair of values of the first two keys; the rest is held."""
    across, up = _axes_of(sweep)
    cells = _cells(sweep, across, up)
    figure = Figure(figsize=(SIZE[0], min(8.0, max(3.2, 1.7 + 0.38 * len(up.values)))))
    axes = figure.subplots()
    held = [(key, value) for key, value in _main(sweep) if key not in (across, up)]
    caption = f"Mean accuracy on the emulated hardware for each pair of values.{held_note(sweep, held)}"
    accuracy = np.array([[_accuracy(sweep, place) for place in row] for row in cells])
    if np.isnan(accuracy).all():
        return nothing(figure, axes, caption)
    low, high = float(np.nanmin(accuracy)), float(np.nanmax(accuracy))
    shown = axes.imshow(np.ma.masked_invalid(accuracy), origin="lower", aspect="auto", cmap=_COLORS, vmin=low,
                        vmax=max(high, low + 1e-3))  # fmt: skip
    axes.grid(visible=False)
    _name_cells(axes, sweep, cells, accuracy)
    _ticks(axes, across, up)
    if not up.numeric:
        axes.invert_yaxis()  # words are read from the top
    bar = figure.colorbar(shown, ax=axes, format=FuncFormatter(lambda value, _: f"{round(100 * value, 6):g}"), pad=0.02)
    bar.set_label("Accuracy [%]")
    bar.outline.set_visible(False)
    caption += _frame_base(axes, sweep, cells)
    if np.isnan(accuracy).any():
        caption += " Crossed cells have no accuracy: they failed or are not finished."
    return Drawn(figure, caption, _alt(sweep, cells, accuracy))


def _axes_of(sweep: Sweep) -> tuple[Key, Key]:
    """Return the keys across and upwards: the first two, words upwards, where their names have room."""
    first, second = [key for key in sweep.keys if len(key.values) > 1][:2]
    return (second, first) if second.numeric and not first.numeric else (first, second)


def _main(sweep: Sweep) -> list[tuple[Key, Value]]:
    main = main_values(sweep)
    return [(key, main[key.name]) for key in sweep.keys if key.name in main]


def _cells(sweep: Sweep, across: Key, up: Key) -> list[list[int | None]]:
    """Places of the points on the map; None where the sweep has none."""
    held = {key.name: value for key, value in _main(sweep) if key not in (across, up)}
    found = {
        (point.values[across.name], point.values[up.name]): place
        for place, point in reversed(list(enumerate(sweep.points)))
        if not point.added and all(point.values[name] == value for name, value in held.items())
    }
    return [[found.get((x, y)) for x in across.values] for y in up.values]


def _accuracy(sweep: Sweep, place: int | None) -> float:
    accuracy = None if place is None else sweep.points[place].accuracy
    return np.nan if accuracy is None else accuracy


def _name_cells(axes: Axes, sweep: Sweep, cells: Sequence[Sequence[int | None]], accuracy: Array) -> None:
    """Write the accuracy into each cell, dark on light colours and light on dark ones; cross out empty cells."""
    rows, columns = accuracy.shape
    low, high = float(np.nanmin(accuracy)), float(np.nanmax(accuracy))
    room = columns <= _MOST_NUMBERS[0] and rows <= _MOST_NUMBERS[1]
    for row in range(rows):
        for column in range(columns):
            found = accuracy[row, column]
            if np.isnan(found):
                place = cells[row][column]
                failed = place is not None and bool(sweep.points[place].failures)
                look: dict[str, Any] = {
                    "facecolor": CARD,
                    "edgecolor": "#B9BDB8",
                    "linewidth": 0.5,
                    "hatch": "" if room else "xx",
                }
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
                if room:
                    word = "failed" if failed else "\N{MULTIPLICATION SIGN}"
                    axes.text(column, row, word, ha="center", va="center", fontsize=8, color=INK)
            elif room:
                color = _readable((found - low) / ((high - low) or 1.0))
                axes.text(column, row, f"{100 * found:.1f}", ha="center", va="center", color=color,
                          fontsize=10 if columns <= 6 else 8.5)  # fmt: skip


def _readable(share: float) -> str:
    """Return the ink that is readable on a colour of the map, by its relative luminance (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colormaps[_COLORS](share)[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#FFFFFF" if luminance < 0.18 else "#000000"


def _ticks(axes: Axes, across: Key, up: Key) -> None:
    chosen = _spread(len(across.values))
    names = [shorten(across.text(across.values[place]), 18) for place in chosen]
    long = max(map(len, names)) * len(names) > 44
    axes.set_xticks(chosen, names, rotation=35 if long else 0, ha="right" if long else "center",
                    rotation_mode="anchor" if long else "default")  # fmt: skip
    chosen = _spread(len(up.values))
    axes.set_yticks(chosen, [shorten(up.text(up.values[place]), 22) for place in chosen])
    axes.tick_params(length=0)
    axes.set_xlabel(across.name)
    axes.set_ylabel(up.name)
    for side in axes.spines.values():
        side.set_visible(False)


def _spread(count: int) -> list[int]:
    if count <= _MOST_TICKS:
        return list(range(count))
    return sorted({round(step * (count - 1) / (_MOST_TICKS - 1)) for step in range(_MOST_TICKS)})


def _frame_base(axes: Axes, sweep: Sweep, cells: Sequence[Sequence[int | None]]) -> str:
    """Frame the cell of the base device, and say so."""
    for row, members in enumerate(cells):
        for column, place in enumerate(members):
            if place is not None and sweep.points[place].base:
                for color, width in ((CARD, 4.0), (VERMILION, 2.2)):
                    look: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": width}
                    axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **look))
                return f" Framed: {sweep.base_noun}."
    name = sweep.base_noun
    return "" if sweep.base is None else f" {name[0].upper()}{name[1:]} is not one of the cells."


def _alt(sweep: Sweep, cells: Sequence[Sequence[int | None]], accuracy: Array) -> str:
    best, worst = int(np.nanargmax(accuracy)), int(np.nanargmin(accuracy))
    columns = accuracy.shape[1]
    words = []
    for flat in (worst, best):
        place = cells[flat // columns][flat % columns]
        if place is not None:
            words.append(f"{percent(float(accuracy.flat[flat]))} at {sweep.settings_text(place)}")
    return f"Heat map of {accuracy.size} cells: accuracy from {' to '.join(words)}."
