"""Figure of what every chip costs the last model: a dot with its interval for each, the ideal device as a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.lines import Line2D

from fllm.report.chip_tables import chips_of
from fllm.report.data_tables import client_name
from fllm.report.drawing import BLUE, CARD, GREY, SMALL, VERMILION, Drawn, beside, name_rows, percent_tick, rows_figure
from fllm.report.formatting import percent
from fllm.report.task import accuracy_name, case_noun

MOST = 40
"""Clients beyond which there is no figure, as their names would not be read."""


def has_chip_figure(result: Mapping[str, Any]) -> bool:
    """Whether there are chips to draw, and not too many."""
    chips = chips_of(result)
    return bool(chips) and len(chips["clients"]) <= MOST


def draw_chips(result: Mapping[str, Any]) -> Drawn:
    """Draw how far each chip is from the ideal device, paired: clients' own chips, then unseen ones."""
    chips, noun, name = chips_of(result), case_noun(result), accuracy_name(result)
    rows = [(client_name(one), one, True) for one in chips["clients"]]
    rows += [(f"unseen chip {number}", one, False) for number, one in enumerate(chips["unseen"]["chips"])]
    figure, axes = rows_figure(1.5 + 0.3 * max(4, len(rows)))
    axes.axvline(0.0, color=BLUE, linestyle="--", linewidth=1.6)
    for height, (_, one, own) in enumerate(rows):
        color, mark = (VERMILION, "s") if own else (GREY, "D")
        if bounds := one["cost"]["interval_95"]:
            axes.plot([-end for end in bounds], [height] * 2, color=color, linewidth=2, solid_capstyle="butt")
        axes.plot([-one["cost"]["value"]], [height], mark, color=color, markersize=6.5,
                  markerfacecolor=color if own else CARD, markeredgewidth=1.5)  # fmt: skip
        beside(axes, height, percent(one["accuracy"]["value"]), 44)
    name_rows(axes, [row_name for row_name, *_ in rows])
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set_xlabel(f"{name}, chip \N{MINUS SIGN} ideal device [points]")
    handles = [Line2D([], [], color=BLUE, linestyle="--", label=f"ideal device, {percent(chips['ideal']['value'])}")]
    if chips["clients"]:
        handles.append(Line2D([], [], color=VERMILION, marker="s", label="client's own chip"))
    handles.append(Line2D([], [], color=GREY, marker="D", markerfacecolor=CARD, label="chip that nobody trained on"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=SMALL)
    caption = (
        f"The last model on every chip against the ideal device, all test {noun}s; at the right its accuracy. "
        f"Whiskers: 95 % interval of the difference over test {noun}s, paired {noun} by {noun}."
    )
    words = "; ".join(f"{row_name} {percent(one['accuracy']['value'])}" for row_name, one, _ in rows)
    return Drawn(figure, caption, f"Dots with intervals: ideal device {percent(chips['ideal']['value'])}; {words}.")
