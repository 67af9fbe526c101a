"""Figures of runs that differ in nothing but the seed: every seed as a small dot, means with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fllm.report.comparison.seeds import Seeds, Series, Values, spread_of
from fllm.report.drawing import BLUE, CARD, GREY, INK, SIZE, VERMILION, Drawn, name_rows, nothing, percent_tick
from fllm.report.formatting import change, percent, points, score
from fllm.report.standing import IDEAL, OWN
from fllm.report.standing_figure import perplexity_axis


def draw_models(seeds: Seeds) -> Drawn:
    """Draw every model in every seed, and the mean with its interval, accuracy beside the second metric."""
    caption = (
        f"Every one of {len(seeds.seeds)} seeds as a small dot; mark and line: mean over seeds and its 95 % t-interval."
    )
    return _drawn(seeds, seeds.models, caption, differences=False)


def draw_differences(seeds: Seeds) -> Drawn:
    """Draw the paired differences of every seed, and their means with intervals, about zero."""
    caption = (
        "Differences paired by seed: the federated model on the hardware minus another; small dots: seeds; "
        "mark and line: mean and its 95 % t-interval. Right of zero the federated model on the hardware has more."
    )
    return _drawn(seeds, seeds.differences, caption, differences=True)


def _drawn(seeds: Seeds, rows: Sequence[Series], caption: str, *, differences: bool) -> Drawn:
    figure = Figure(figsize=(SIZE[0], 1.4 + 0.42 * max(3, len(rows))))
    left, right = figure.subplots(1, 2, sharey=True)
    if not rows:
        right.set_axis_off()
        return nothing(figure, left, caption)
    for axes, (metric, name) in zip((left, right), seeds.metrics.items(), strict=True):
        for height, one in enumerate(rows):
            color = _color(one) if not differences else INK
            _row(axes, height, one.values[metric], color, hollow=one.device == IDEAL and not differences)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=4)
        if differences:
            axes.axvline(0, color=GREY, linestyle=":", linewidth=1.4, zorder=1)
        unit = " [points]" if differences and metric == "accuracy" else " [%]" if metric == "accuracy" else ""
        axes.set_xlabel(f"{name},\ndifference{unit}" if differences else f"{name}{unit}")
    name_rows(left, [textwrap.fill(one.label[0].upper() + one.label[1:], 24) for one in rows])
    left.xaxis.set_major_formatter(percent_tick)
    if "perplexity" in seeds.metrics and not differences:
        perplexity_axis(right, [value for one in rows for value in one.values["perplexity"]])
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", markersize=4, label="one seed"),
        Line2D([], [], color=INK, marker="s", markersize=7, label="mean and 95 % t-interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawn(figure, caption, f"Dots with intervals: {'; '.join(_words(one, seeds, differences) for one in rows)}.")


def _color(one: Series) -> str:
    if one.key != OWN:
        return INK
    return BLUE if one.device == IDEAL else VERMILION


def _row(axes: Axes, height: int, values: Values, color: str, *, hollow: bool) -> None:
    found = spread_of(values)
    if found is None:
        return
    known = [value for value in values if value is not None]
    axes.plot(known, [height + 0.2] * len(known), "o", color=GREY, markersize=3.6, alpha=0.75, zorder=2)
    if found.bounds:
        axes.plot(found.bounds, [height] * 2, color=color, linewidth=2.2, solid_capstyle="butt", zorder=2)
    axes.plot([found.mean], [height], "o" if hollow else "s", color=color, markersize=7,
              markerfacecolor=CARD if hollow else color, markeredgewidth=1.6, zorder=3)  # fmt: skip


def _words(one: Series, seeds: Seeds, differences: bool) -> str:
    words = []
    for metric, name in seeds.metrics.items():
        found = spread_of(one.values[metric])
        if found:
            show = (points if metric == "accuracy" else change) if differences else (
                percent if metric == "accuracy" else score
            )  # fmt: skip
            words.append(f"{name} {show(found.mean)}")
    return f"{one.label} {', '.join(words)}"
