"""Figures of the final evaluation: confusion matrices as heat maps, and confidence against accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fllm.report.drawing import (
    BLUE,
    CARD,
    GREY,
    SIZE,
    VERMILION,
    Drawn,
    ink_on,
    nothing,
    percent_tick,
    shorten_middle,
)
from fllm.report.evaluation_facts import evaluation_of
from fllm.report.evaluation_tables import confusion_of, mean_count
from fllm.report.formatting import percent
from fllm.report.task import DEVICES, case_noun, classes_of
from fllm.results import value_at

_COLORS = LinearSegmentedColormap.from_list("share of a class", [CARD, *colormaps["Blues"](np.linspace(0.12, 1, 12))])
_MOST_SHARES, _MOST_COUNTS = 6, 12  # classes of a matrix with room for a share, and for a count, in each cell
_LOOKS = {"ideal": (BLUE, "o", "-"), "hardware": (VERMILION, "s", "--")}


def draw_confusion(result: Mapping[str, Any], device: str) -> Drawn:
    """Draw the confusion matrix of a device: colour is the share of the true class, numbers are cases."""
    classes, matrix = classes_of(result), confusion_of(evaluation_of(result), device)
    noun, many = case_noun(result), len(classes)
    figure = Figure(figsize=(SIZE[0], min(6.6, 2.2 + 0.52 * max(3, many) if many <= _MOST_COUNTS else 6.6)))
    axes = figure.subplots()
    of_dies = ", mean over dies" if device == "hardware" else ""
    caption = f"{DEVICES[device].capitalize()}{of_dies}: {noun}s by true class (rows) and chosen class (columns)."
    if not many or len(matrix) != many:
        return nothing(figure, axes, caption)
    counts = np.array(matrix, dtype=float)
    sums = counts.sum(axis=1)
    shares = np.divide(counts, sums[:, None], out=np.zeros_like(counts), where=sums[:, None] > 0)
    shown = axes.imshow(shares, cmap=_COLORS, vmin=0.0, vmax=1.0, aspect="auto")
    axes.grid(visible=False)
    if many <= _MOST_COUNTS:
        _write_cells(axes, counts, shares)
        caption += f" Percent of the row{' below the count' if many <= _MOST_SHARES else ' by colour'}."
    else:
        bar = figure.colorbar(shown, ax=axes, format=FuncFormatter(percent_tick), pad=0.02)
        bar.set_label("Share of the true class [%]")
        bar.outline.set_visible(False)
        caption += " The numbers stand in the table."
    _name_classes(axes, classes, sums, noun)
    right = [f"{name} {percent(share, 0)}" for name, share in zip(classes, np.diag(shares), strict=True)]
    listed = "; ".join(right[:12]) + ("; and others" if many > 12 else "")
    return Drawn(figure, caption, f"Heat map of {many} by {many} classes; rightly recognised: {listed}.")


def draw_reliability(result: Mapping[str, Any]) -> Drawn:
    """Draw accuracy against confidence in bins, above the number of cases in each bin."""
    figure = Figure(figsize=SIZE)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    noun = case_noun(result)
    caption = (
        f"Accuracy of the {noun}s in each of 15 bins of confidence, at the mean confidence of the bin; on the dotted "
        f"line confidence is right, below it the model is too sure. Below: {noun}s in each bin, of which few mean "
        "little; larger marks hold more."
    )
    bins = {device: _filled_bins(evaluation_of(result), device) for device in DEVICES}
    if not any(bins.values()):
        lower.set_axis_off()
        return nothing(figure, upper, caption)
    upper.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1.5)
    most = max(row["cases"] for rows in bins.values() for row in rows)
    for number, (device, rows) in enumerate(bins.items()):
        color, mark, dashes = _LOOKS[device]
        confidence, accuracy = [row["confidence"] for row in rows], [row["accuracy"] for row in rows]
        upper.plot(confidence, accuracy, dashes, color=color, linewidth=1, alpha=0.7)
        sizes = [(12 + 80 * row["cases"] / most) / (1 + number) for row in rows]
        upper.scatter(confidence, accuracy, s=sizes, marker=mark, color=color if number else CARD, edgecolors=color,
                      linewidths=1.4, zorder=3)  # fmt: skip
        width = 0.4 / 15
        left = [(row["low"] + row["high"]) / 2 + (number - 0.5) * width for row in rows]
        lower.bar(left, [row["cases"] for row in rows], width, color=color if number else CARD, edgecolor=color)
    _reliability_axes(upper, lower, noun)
    figure.legend(handles=_device_handles(), loc="outside lower center", ncols=2)
    words = []
    for device, rows in bins.items():
        if rows:
            fullest = max(rows, key=lambda row: row["cases"])
            words.append(
                f"{DEVICES[device]}: in the fullest bin {percent(fullest['confidence'], 0)} sure and "
                f"{percent(fullest['accuracy'], 0)} right"
            )
    return Drawn(figure, caption, f"Reliability diagram with bars of cases per bin. {'; '.join(words)}.")


def _write_cells(axes: Axes, counts: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> None:
    """Write the count of each cell, and its share of the row where there is room; nothing into empty cells."""
    many = len(counts)
    for (row, column), cases in np.ndenumerate(counts):
        if cases <= 0:
            continue
        share = shares[row, column]
        text = str(mean_count(cases))
        if many <= _MOST_SHARES:
            text += f"\n{100 * share:.0f} %"
        ink = ink_on(_COLORS(share))
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=9.5 if many <= 6 else 8)


def _name_classes(axes: Axes, classes: Sequence[str], sums: Sequence[float], noun: str) -> None:
    """Name rows and columns; the rows with their cases; of very many only as many as fit."""
    many = len(classes)
    small = 9.5 if many <= 8 else 8 if many <= 20 else 6
    short = [shorten_middle(name, 18 if many <= _MOST_COUNTS else 22) for name in classes]
    numbered = many > _MOST_COUNTS
    across = [str(number) for number in range(1, many + 1)] if numbered else short
    tilted = not numbered and (many > 5 or sum(map(len, short)) > 44)
    every = 1 + many // 21  # numbers of more columns would touch each other
    axes.set_xticks(range(0, many, every), across[::every], fontsize=small)
    if tilted:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    rows = [f"{name} ({mean_count(total)})" for name, total in zip(short, sums, strict=True)]
    rows = [f"{row}  {number}" for row, number in zip(rows, across, strict=True)] if numbered else rows
    axes.set_yticks(range(many), rows, fontsize=small)
    axes.tick_params(length=0)
    axes.set_xlabel("Chosen class, numbered as the rows" if numbered else "Chosen class")
    axes.set_ylabel(f"True class (test {noun}s)")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xticks(np.arange(many - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(many - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#DCDDDA", linewidth=0.6)
    axes.tick_params(which="minor", length=0)


def _filled_bins(evaluation: Mapping[str, Any], device: str) -> list[Mapping[str, Any]]:
    """Bins that hold a case."""
    rows = value_at(evaluation, device, "reliability") or []
    return [row for row in rows if row.get("cases") and None not in (row.get("confidence"), row.get("accuracy"))]


def _reliability_axes(upper: Axes, lower: Axes, noun: str) -> None:
    upper.set_ylabel("Accuracy in the bin [%]")
    upper.set_ylim(-0.05, 1.05)
    upper.set_xlim(-0.02, 1.02)
    upper.yaxis.set_major_formatter(percent_tick)
    lower.set_ylabel(f"{noun.capitalize()}s")
    lower.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    lower.set_xlabel("Confidence: probability of the chosen class [%]")
    lower.xaxis.set_major_formatter(percent_tick)
    lower.grid(axis="x", visible=False)


def _device_handles() -> list[Line2D]:
    return [
        Line2D([], [], color=_LOOKS[device][0], marker=_LOOKS[device][1], linestyle=_LOOKS[device][2], markersize=6,
               markerfacecolor=CARD if device == "ideal" else _LOOKS[device][0], label=name.capitalize())
        for device, name in DEVICES.items()
    ]  # fmt: skip
