"""Figure of where a run stands: its model and every baseline as dots with intervals, accuracy beside macro-F1."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fllm.report.answer import is_trained
from fllm.report.drawing import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SIZE,
    SMALL,
    VERMILION,
    Drawn,
    name_rows,
    nothing,
    percent_tick,
)
from fllm.report.formatting import percent, score
from fllm.report.standing import IDEAL, OWN, Estimate, Standing, hardware_standing, own_standings, shown_baselines
from fllm.report.task import LANGUAGE, accuracy_name, case_noun, kind_of

_FAMILIES = {OWN: VERMILION, "lora": ORANGE, "tfidf": GREEN, "linear": GREEN}
_SECOND = {"macro_f1": "Macro-F1", "perplexity": "Perplexity"}


def draw_standing(result: Mapping[str, Any]) -> Drawn:
    """Draw the model on both devices and every baseline, one row each."""
    noun = case_noun(result)
    second = "perplexity" if kind_of(result) == LANGUAGE else "macro_f1"
    rows = [one for one in (*own_standings(result), *shown_baselines(result)) if _known(one, second)]
    figure = Figure(figsize=(SIZE[0], 1.5 + 0.4 * max(4, len(rows))))
    left, right = figure.subplots(1, 2, sharey=True)
    caption = (
        f"The {'federated model' if is_trained(result) else 'model'} and its baselines on the same test {noun}s; "
        f"whiskers: 95 % interval over test {noun}s; dotted line: the model on the emulated hardware."
    )
    if not rows:
        right.set_axis_off()
        return nothing(figure, left, caption)
    for axes, metric in ((left, "accuracy"), (right, second)):
        axes.margins(x=0.08)
        for height, one in enumerate(rows):
            _row(axes, height, one, metric)
        own = hardware_standing(result)[metric].value
        if own is not None:
            axes.axvline(own, color=VERMILION, linestyle=":", linewidth=1.2, zorder=1)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    name_rows(left, [textwrap.fill(one.short, 23) for one in rows])
    for label, one in zip(left.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if one.key == OWN else "normal")
    left.xaxis.set_major_formatter(percent_tick)
    left.set_xlabel(f"{accuracy_name(result)} [%]")
    right.set_xlabel(_SECOND[second])
    _room_around(left)
    if second == "perplexity":
        perplexity_axis(right, [one[second].value for one in rows])
    else:
        _room_around(right)
    if any(one.ranges for one in rows):
        caption += " Small ticks: lowest and highest of the clients' own models."
    figure.legend(handles=_handles(rows), loc="outside lower center", ncols=2, fontsize=SMALL)
    words = "; ".join(f"{one.label} {percent(one['accuracy'].value)}" + _second_words(one, second) for one in rows)
    return Drawn(figure, caption, f"Dots with intervals: {words}.")


def _known(one: Standing, second: str) -> bool:
    return one["accuracy"].value is not None or one[second].value is not None


def _row(axes: Axes, height: int, one: Standing, metric: str) -> None:
    """Draw a number as a mark, its interval as a line, and the reach of the clients' own models as ticks."""
    found: Estimate = one[metric]
    if found.value is None:
        return
    color = _color(one)
    if found.bounds:
        axes.plot(found.bounds, [height] * 2, color=color, linewidth=2.2, solid_capstyle="butt", zorder=2)
    ends = one.ranges.get(metric)
    if ends:
        axes.plot(ends, [height] * 2, "|", color=INK, markersize=9, markeredgewidth=1.3, zorder=2)
        axes.plot(ends, [height] * 2, color=INK, linewidth=0.8, zorder=1.9)
    hollow = one.device == IDEAL
    axes.plot([found.value], [height], "o" if hollow else "s", color=color, markersize=7,
              markerfacecolor=CARD if hollow else color, markeredgewidth=1.6, zorder=3)  # fmt: skip


def _room_around(axes: Axes, least: float = 0.06) -> None:
    """Show so much of the scale of a share at least, so that small differences look small; few ticks."""
    low, high = axes.get_xlim()
    if high - low < least:
        axes.set_xlim((low + high - least) / 2, (low + high + least) / 2)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def perplexity_axis(axes: Axes, values: Sequence[float | None]) -> None:
    """Make the axis logarithmic where its values lie far apart."""
    known = [value for value in values if value is not None]
    if known and max(known) > 8 * min(known) > 0:
        axes.set_xscale("log")
        axes.set_xlabel("Perplexity, logarithmic")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _color(one: Standing) -> str:
    if one.key == OWN and one.device == IDEAL:
        return BLUE
    return next((color for start, color in _FAMILIES.items() if one.key.startswith(start)), GREY)


def _handles(rows: Sequence[Standing]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=INK, marker="s", linestyle="", markersize=6, label="emulated hardware, or none needed"),
    ]
    if any(one.device == IDEAL for one in rows):
        look: dict[str, Any] = {"marker": "o", "markerfacecolor": CARD, "linestyle": "", "markersize": 6}
        handles.append(Line2D([], [], color=INK, label="ideal device", **look))
    return handles


def _second_words(one: Standing, second: str) -> str:
    value = one[second].value
    return "" if value is None else f" ({_SECOND[second]} {score(value)})"
