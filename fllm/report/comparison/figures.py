"""Figures of a comparison of runs: accuracy over rounds, accuracy with intervals, energy per token by part."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from device_models.costs import ACCELERATOR, ARRAYS, PARTS
from fllm.report.answer import answer
from fllm.report.comparison.facts import Results, distinct
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
    SMALL,
    VERMILION,
    Drawn,
    beside,
    name_rows,
    nothing,
    percent_tick,
    rows_figure,
)
from fllm.report.energy_facts import energy_of, parts_of
from fllm.report.formatting import engineering, interval, percent, prefix, prefix_exponent
from fllm.results import value_at

MOST = 12
"""Runs that a figure shows."""

LOOKS = list(zip(2 * (BLUE, VERMILION, GREEN, ORANGE, PURPLE, INK), 3 * "os^D", strict=True))
"""Colour and mark of each run in the order given, no two the same."""

_NAME = 26  # characters of a run's name beside a row
_SHOWN_PARTS = 4  # parts of each line that get a colour of their own
_COLORS = {
    ARRAYS: (BLUE, SKY, GREEN, "#7A86C9"),
    ACCELERATOR: (ORANGE, VERMILION, PURPLE, "#8C6D1F"),
}
_REST = {ARRAYS: "#C9D6E0", ACCELERATOR: "#E6D9C6", "": GREY}


def draw_rounds(results: Results, names: Sequence[str]) -> Drawn:
    """Draw accuracy over rounds of every run: on hardware as a solid line, on the ideal device thin and dashed."""
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.17 * max(0, len(names) - 4)))
    axes = figure.subplots()
    caption = "Accuracy on the test cases after each round: emulated hardware solid, ideal device thin and dashed."
    handles, words = [], []
    for name, result, (color, mark) in zip(_short(names), results, LOOKS, strict=False):
        rounds, ideal, hardware = _series(result)
        if not rounds:
            continue
        every = 1 + len(rounds) // 20
        axes.plot(rounds, ideal, "--", color=color, linewidth=1, alpha=0.8)
        handles += axes.plot(rounds, hardware, f"{mark}-", color=color, linewidth=1.8, markersize=5, markevery=every,
                             markeredgecolor=CARD, markeredgewidth=0.6, label=name)  # fmt: skip
        words.append(f"{name} from {percent(hardware[0])} to {percent(hardware[-1])}")
    if not handles:
        return nothing(figure, axes, caption)
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("Accuracy on test cases [%]")
    axes.yaxis.set_major_formatter(percent_tick)
    axes.margins(y=0.1)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawn(figure, caption + cut_note(names), f"Lines of accuracy on hardware over rounds: {'; '.join(words)}.")


def draw_accuracy(results: Results, names: Sequence[str]) -> Drawn:
    """Draw the accuracy of every run with its 95 % interval, on hardware and on the ideal device."""
    shown = list(zip(_short(names), results, strict=False))[:MOST]
    figure, axes = rows_figure(1.35 + 0.42 * max(3, len(shown)))
    caption = (
        "Accuracy after the last round with its 95 % interval over test cases; the number is that of the hardware, the "
        "dotted line the first run's."
    )
    first, words = answer(results[0]).accuracy_hardware, []
    for row, (name, result) in enumerate(shown):
        found = answer(result)
        _dot(axes, row - 0.14, found.accuracy_hardware, found.interval_hardware, VERMILION, "s")
        _dot(axes, row + 0.14, found.accuracy_ideal, found.interval_ideal, BLUE, "o")
        beside(axes, row, percent(found.accuracy_hardware), 46)
        words.append(f"{name} {percent(found.accuracy_hardware)} ({interval(found.interval_hardware)})")
    if not axes.lines:
        return nothing(figure, axes, caption)
    if first is not None:
        axes.axvline(first, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    name_rows(axes, [fold(name) for name, _ in shown])
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set_xlabel("Accuracy on test cases [%]")
    handles = [
        Line2D([], [], color=VERMILION, marker="s", markersize=6, label="Emulated hardware"),
        Line2D([], [], color=BLUE, marker="o", markerfacecolor=CARD, markersize=6, label="Ideal device"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawn(figure, caption + cut_note(names), f"Dots of accuracy on hardware: {'; '.join(words)}.")


def draw_energy(results: Results, names: Sequence[str]) -> Drawn:
    """Draw energy per token as bars stacked by part, the arrays left, the digital accelerator right of them."""
    shown = list(zip(_short(names), results, strict=False))[:MOST]
    figure, axes = rows_figure(2.3 + 0.36 * max(3, len(shown)))
    caption = "Modelled energy of one token by part: arrays in blue and green, digital accelerator in warm colours."
    parts = [{part: found["nominal"] for part, found in parts_of(result).items()} for _, result in shown]
    totals = [sum(found.values()) for found in parts]
    if not any(totals):
        return nothing(figure, axes, caption, "No part takes energy" if any(parts) else "No data")
    bounds = [energy_of(result).get("energy_per_token_j") or {} for _, result in shown]
    exponent = prefix_exponent(max(*totals, *(found.get("upper_95", 0.0) for found in bounds)))
    scale = 10.0**exponent
    colors = _part_colors(parts)
    for row, found in enumerate(parts):
        left = 0.0
        for label, (color, members) in colors.items():
            width = sum(found.get(part, 0.0) for part in members) / scale
            axes.barh(row, width, left=left, color=color, height=0.62, edgecolor=CARD, linewidth=0.5, label=label)
            left += width
        _whisker(axes, row, totals[row], bounds[row], scale)
        beside(axes, row, engineering(totals[row], "J") if found else "", 50)
    name_rows(axes, [fold(name) for name, _ in shown])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")
    handles = [Patch(color=color, label=label) for label, (color, _) in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=SMALL - 0.7)
    if any(bounds):
        caption += " Whiskers: 95 % interval of the whole from the ranges of the prices."
    words = "; ".join(f"{name} {engineering(total, 'J')}" for (name, _), total in zip(shown, totals, strict=True))
    return Drawn(figure, caption + cut_note(names), f"Stacked bars of energy per token: {words}.")


def fold(name: str, width: int = 17) -> str:
    """Break a name behind spaces and signs, so that it fits beside a row; a longer word is cut."""
    lines = [""]
    for piece in re.findall(rf"[^\s_.,=+-]{{1,{width}}}[\s_.,=+-]*|[\s_.,=+-]+", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def cut_note(names: Sequence[str]) -> str:
    """Say how many runs a figure leaves out."""
    return f" The first {MOST} of {len(names)} are shown." if len(names) > MOST else ""


def _short(names: Sequence[str]) -> list[str]:
    return distinct(names, _NAME)


def _series(result: Mapping[str, Any]) -> tuple[list[int], list[float], list[float]]:
    """Rounds that were evaluated on both devices, with both accuracies [1]."""
    found = [
        (row["round"], value_at(row, "ideal", "accuracy"), value_at(row, "hardware", "accuracy", "mean"))
        for row in result["rounds"]
    ]
    known = [entry for entry in found if None not in entry]
    return [entry[0] for entry in known], [entry[1] for entry in known], [entry[2] for entry in known]


def _dot(axes: Axes, row: float, value: float | None, bounds: Sequence[float] | None, color: str, mark: str) -> None:
    if value is None:
        return
    if bounds:
        axes.plot(bounds, [row, row], color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot([value], [row], mark, color=color, markersize=6, markerfacecolor=CARD if mark == "o" else color)


def _whisker(axes: Axes, row: int, total: float, found: Mapping[str, float], scale: float) -> None:
    low, high = found.get("lower_95", total), found.get("upper_95", total)
    if low < high:
        reach = [[max(0.0, total - low) / scale], [max(0.0, high - total) / scale]]
        axes.errorbar(total / scale, row, xerr=reach, fmt="none", ecolor=INK, capsize=3, elinewidth=1.1)


def _part_colors(parts: Sequence[Mapping[str, float]]) -> dict[str, tuple[str, list[str]]]:
    """Choose the largest parts of each line and gather the rest: label to its colour and the parts in it."""
    largest: dict[str, float] = {}
    for found in parts:
        total = sum(found.values()) or 1.0
        for part, energy in found.items():
            largest[part] = max(largest.get(part, 0.0), energy / total)
    chosen: dict[str, tuple[str, list[str]]] = {}
    for line in (ARRAYS, ACCELERATOR, ""):
        members = [part for part in sorted(largest, key=lambda part: (-largest[part], part)) if largest[part] > 0]
        members = [part for part in members if PARTS.get(part, "") == line]
        own = _COLORS.get(line, ())
        chosen |= {part: (color, [part]) for part, color in zip(members[:_SHOWN_PARTS], own, strict=False)}
        rest = members[min(_SHOWN_PARTS, len(own)) :]
        if rest:
            chosen[f"rest of {line}" if line else "of no known line"] = (_REST[line], rest)
    return chosen
