"""The four figures of a report, drawn with matplotlib's object interface and reproducible to the byte.

Each figure brings its own light card, so it reads the same on the light page, the dark page and paper. Colours are
Okabe and Ito's; shapes and dashes repeat what colour says.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from fllm.report.answer import BASELINES, Answer, answer
from fllm.report.formatting import engineering, percent, prefix, prefix_exponent, share, significant
from fllm.results import value_at

IDEAL, HARDWARE, LOSS = "#0072B2", "#D55E00", "#009E73"
_BASELINE_STYLE = {"majority": ("#5F5F5F", ":"), "tfidf_logreg": ("#CC79A7", "--")}
_SIZE = (5.6, 3.9)  # inches
_CARD, _INK, _GRID = "#FBFBF9", "#22262B", "#DCDDDA"
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#6B7076",
    "axes.facecolor": _CARD,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": _CARD,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": _GRID,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "savefig.facecolor": _CARD,
    "svg.fonttype": "path",
    "svg.hashsalt": "fllm",
    "text.color": _INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Picture:
    """One drawn figure: its file name, what it says, and its bytes in two formats."""

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes


def draw_all(result: Mapping[str, Any]) -> list[Picture]:
    """Draw every figure of a report, in page order."""
    with style.context(["default", _STYLE], after_reset=True):
        return [_picture(name, draw, result) for name, draw in _FIGURES.items()]


def _picture(name: str, draw: Callable[[Mapping[str, Any]], _Drawn], result: Mapping[str, Any]) -> Picture:
    """Draw one figure and save it twice, without dates or versions in the files."""
    drawn = draw(result)
    svg, png = io.BytesIO(), io.BytesIO()
    drawn.figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    drawn.figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Picture(name, drawn.caption, drawn.alt, svg.getvalue(), png.getvalue())


@dataclass(frozen=True)
class _Drawn:
    """A figure that is not saved yet."""

    figure: Figure
    caption: str
    alt: str


def draw_rounds(result: Mapping[str, Any]) -> _Drawn:
    """Draw accuracy per round, ideal and on hardware, with the baselines as horizontal lines."""
    figure = Figure(figsize=_SIZE)
    axes = figure.subplots()
    caption = "Accuracy on the test cases after each round; round 0 is the model before fine-tuning."
    rounds, ideal = _series(result, "ideal", "accuracy")
    rounds_hw, hardware = _series(result, "hardware", "accuracy", "mean")
    if not rounds and not rounds_hw:
        return _nothing(figure, axes, caption)
    handles: list[Any] = axes.plot(rounds, ideal, "o-", label="Ideal device", **_solid(IDEAL, rounds))
    bars: dict[str, Any] = {"fmt": "s--", "capsize": 3, "errorevery": _every(rounds_hw)}
    handles.append(axes.errorbar(rounds_hw, hardware, _deviations(result), **bars, **_dashed(rounds_hw)))
    for key, name in BASELINES.items():
        accuracy = value_at(result, "baselines", key, "accuracy")
        if accuracy is not None:
            color, dashes = _BASELINE_STYLE[key]
            line = axes.axhline(accuracy, color=color, linestyle=dashes, linewidth=1.8, zorder=1.5)
            line.set_label(f"{name}, {percent(accuracy)}")
            handles.append(line)
    _round_axis(axes)
    axes.set_ylabel("Accuracy on test cases [%]")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.margins(y=0.12)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return _Drawn(figure, caption + _bars_note(result), _alt_accuracy(rounds, ideal, hardware))


def draw_loss(result: Mapping[str, Any]) -> _Drawn:
    """Draw training loss and perplexity beside each other."""
    figure = Figure(figsize=_SIZE)
    left, right = figure.subplots(1, 2)
    caption = "Left: training loss, mean over clients. Right: perplexity on the test cases; lower is better in both."
    rounds, loss = _series(result, "train_loss")
    left.set_title("Training loss", loc="left")
    left.set_ylabel("Cross-entropy [nat per token]")
    _line_or_note(left, rounds, loss, LOSS, "D-", "Training loss")
    right.set_title("Perplexity", loc="left")
    right.set_ylabel("Perplexity on test cases")
    rounds, ideal = _series(result, "ideal", "perplexity")
    rounds_hw, hardware = _series(result, "hardware", "perplexity", "mean")
    _line_or_note(right, rounds, ideal, IDEAL, "o-", "Ideal device")
    if hardware:
        right.plot(rounds_hw, hardware, "s--", **_dashed(rounds_hw))
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    both = ideal + hardware
    if both and min(both) > 0 and max(both) > 30 * min(both):
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.yaxis.set_minor_formatter(NullFormatter())
    alt = f"Training loss {_from_to(loss)}; perplexity on the ideal device {_from_to(ideal)}, on hardware "
    return _Drawn(figure, caption, f"Two line charts over rounds. {alt}{_from_to(hardware)}.")


def draw_energy_parts(result: Mapping[str, Any]) -> _Drawn:
    """Draw energy per token by part as horizontal bars with their values."""
    found = answer(result)
    parts = found.parts_j
    figure = Figure(figsize=(_SIZE[0], 1.5 + 0.46 * max(4, len(parts))))
    axes = figure.subplots()
    caption = "Modelled energy of one token, by part of the system, with the share of the total."
    if not parts or max(parts.values()) <= 0:
        return _nothing(figure, axes, caption)
    exponent = prefix_exponent(max(parts.values()))
    values = [joule / 10.0**exponent for joule in parts.values()]
    bars = axes.barh([textwrap.fill(name, 20) for name in parts], values, color=IDEAL, height=0.62)
    axes.bar_label(bars, _part_labels(found), padding=5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.42 * max(values))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")
    listed = "; ".join(f"{name} {engineering(joule, 'J')}" for name, joule in parts.items())
    return _Drawn(figure, caption, f"Bar chart of energy per token by part: {listed}.")


def draw_communication(result: Mapping[str, Any]) -> _Drawn:
    """Draw the bytes sent so far, uplink and downlink stacked."""
    figure = Figure(figsize=_SIZE)
    axes = figure.subplots()
    caption = "Bytes sent between clients and server since the start, all clients together."
    rows = [row for row in result["rounds"] if row["round"] > 0]
    if not rows:
        return _nothing(figure, axes, caption)
    rounds = [row["round"] for row in rows]
    up, down = _cumulative(rows, "uplink_bytes"), _cumulative(rows, "downlink_bytes")
    total = up[-1] + down[-1]
    exponent = max(prefix_exponent(total), 0)
    scale = 10.0**exponent
    axes.bar(rounds, [value / scale for value in up], color=IDEAL, label="Uplink (client to server)")
    axes.bar(rounds, [value / scale for value in down], bottom=[value / scale for value in up], color="#E69F00",
             hatch="//", edgecolor=_CARD, linewidth=0, label="Downlink (server to client)")  # fmt: skip
    axes.annotate(engineering(total, "B"), (rounds[-1], total / scale), (0, 4), textcoords="offset points", ha="center")
    _round_axis(axes)
    axes.set_xlim(rounds[0] - 0.7, max(rounds[-1], rounds[0] + 4) + 0.7)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
    axes.set_ylabel(f"Sent since the start [{prefix(exponent)}B]")
    figure.legend(loc="outside lower center", ncols=2)
    sent = f"{engineering(up[-1], 'B')} uplink and {engineering(down[-1], 'B')} downlink"
    return _Drawn(figure, caption, f"Stacked bars over rounds: {sent} by round {rounds[-1]}.")


_FIGURES: dict[str, Callable[[Mapping[str, Any]], _Drawn]] = {
    "rounds": draw_rounds,
    "loss": draw_loss,
    "energy_parts": draw_energy_parts,
    "communication": draw_communication,
}


def _series(result: Mapping[str, Any], *path: str) -> tuple[list[int], list[float]]:
    """Rounds and the values they have at a path; rounds without a value are left out."""
    found = [(row["round"], value_at(row, *path)) for row in result["rounds"]]
    known = [(number, value) for number, value in found if value is not None]
    return [number for number, _ in known], [value for _, value in known]


def _deviations(result: Mapping[str, Any]) -> list[float] | None:
    """Standard deviation over dies beside each hardware accuracy; None when there is one die only."""
    rows = [row for row in result["rounds"] if value_at(row, "hardware", "accuracy", "mean") is not None]
    accuracy = [row["hardware"]["accuracy"] for row in rows]
    if not any((entry.get("dies") or 1) > 1 for entry in accuracy):
        return None
    return [entry.get("std") or 0.0 for entry in accuracy]


def _bars_note(result: Mapping[str, Any]) -> str:
    """Explain the error bars where there are some."""
    return " Bars: standard deviation over dies." if _deviations(result) else ""


def _cumulative(rows: list[Mapping[str, Any]], key: str) -> list[int]:
    """Running sum of one count over the rounds."""
    total, sums = 0, []
    for row in rows:
        total += row.get(key) or 0
        sums.append(total)
    return sums


def _part_labels(found: Answer) -> list[str]:
    """Value and share of each part."""
    total = sum(found.parts_j.values())
    return [f"{engineering(joule, 'J')}  ({share(joule, total, 0)})" for joule in found.parts_j.values()]


def _round_axis(axes: Axes) -> None:
    """Label the x axis with whole rounds only."""
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _every(rounds: list[int]) -> int:
    """Step between marked points, so that a long run's marks stay apart."""
    return 1 + len(rounds) // 20


def _solid(color: str, rounds: list[int]) -> dict[str, Any]:
    """Look of a line with open marks."""
    return {"color": color, "linewidth": 2, "markersize": 6.5, "markerfacecolor": _CARD, "markevery": _every(rounds)}


def _dashed(rounds: list[int]) -> dict[str, Any]:
    """Look of the hardware's line: thin, dashed and small, so that an equal ideal line shows behind it."""
    look = {"color": HARDWARE, "linewidth": 1.6, "markersize": 4.5, "markevery": _every(rounds)}
    return {"label": "Emulated hardware", **look}


def _line_or_note(axes: Axes, rounds: list[int], values: list[float], color: str, marks: str, label: str) -> None:
    """Draw one line over rounds, or say that there is none yet."""
    if not values:
        _note(axes)
        return
    axes.plot(rounds, values, marks, label=label, **_solid(color, rounds))
    _round_axis(axes)


def _nothing(figure: Figure, axes: Axes, caption: str) -> _Drawn:
    """Return an empty figure that says so."""
    _note(axes)
    return _Drawn(figure, caption, "Empty figure: the result has no data for it.")


def _note(axes: Axes) -> None:
    """Write into empty axes why they are empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, "No data", transform=axes.transAxes, ha="center", va="center", color="#5F5F5F")


def _from_to(values: list[float]) -> str:
    """Describe a series by its first and last value."""
    return f"from {significant(values[0])} to {significant(values[-1])}" if values else "not known yet"


def _alt_accuracy(rounds: list[int], ideal: list[float], hardware: list[float]) -> str:
    """Describe the accuracy figure in words."""
    ends = [f"{percent(values[0])} to {percent(values[-1])}" if values else "not known" for values in (ideal, hardware)]
    span = f"from round {rounds[0]} to {rounds[-1]}" if rounds else ""
    return f"Line chart of accuracy {span}: ideal device {ends[0]}, emulated hardware {ends[1]}; baselines as lines."
