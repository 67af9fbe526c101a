"""The figures of learning and communication, and the list of all figures of a report.

Figures of the evaluation and the data are drawn where the result has their numbers, those of training where the run
trains; all others are drawn always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fllm.report.answer import is_trained
from fllm.report.chip_figure import draw_chips, has_chip_figure
from fllm.report.data_figure import draw_label_mix
from fllm.report.drawing import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SIZE,
    VERMILION,
    Drawn,
    Picture,
    note,
    nothing,
    percent_tick,
    picture,
    shorten,
)
from fllm.report.energy_facts import baselines_of, energy_of, parts_of, training_of
from fllm.report.energy_figures import draw_baselines, draw_parts, draw_timeline, draw_tornado
from fllm.report.evaluation_facts import evaluation_of
from fllm.report.evaluation_figures import draw_confusion, draw_reliability
from fllm.report.formatting import engineering, percent, prefix, prefix_exponent, significant
from fllm.report.interval_figures import draw_training
from fllm.report.standing import baseline
from fllm.report.standing_figure import draw_standing
from fllm.report.task import accuracy_name, case_noun
from fllm.results import value_at

IDEAL, HARDWARE, LOSS = BLUE, VERMILION, GREEN
_LINES = {
    "lora_centralised": (INK, "-."),
    "lora_local": (ORANGE, (0, (6, 2, 1, 2, 1, 2))),
    "tfidf_logreg": (PURPLE, "--"),
    "majority": (GREY, ":"),
}
"""Baselines that are lines in the figure of rounds: more would bury the model's own."""


def draw_all(result: Mapping[str, Any]) -> list[Picture]:
    """Draw every figure of a report, in page order."""
    return [picture(name, partial(_FIGURES[name], result)) for name in figure_names(result)]


def figure_names(result: Mapping[str, Any]) -> list[str]:
    """Return the names of the figures of a result, in page order."""
    return [name for name in _FIGURES if name not in _NEEDS or _NEEDS[name](result)]


def draw_rounds(result: Mapping[str, Any]) -> Drawn:
    """Draw accuracy per round, ideal and on hardware, with the baselines as horizontal lines."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    name, noun = accuracy_name(result), f"test {case_noun(result)}s"
    each = "each round" if _all_evaluated(result) else "every evaluated round"
    caption = f"{name} on the {noun} after {each}; round 0 is the model before fine-tuning."
    rounds, ideal = _series(result, "ideal", "accuracy")
    rounds_hw, hardware = _series(result, "hardware", "accuracy", "mean")
    if not rounds and not rounds_hw:
        return nothing(figure, axes, caption)
    handles: list[Any] = axes.plot(rounds, ideal, "o-", label="Ideal device", **_solid(IDEAL, rounds))
    bars: dict[str, Any] = {"fmt": "s--", "capsize": 3, "errorevery": _every(rounds_hw)}
    handles.append(axes.errorbar(rounds_hw, hardware, _deviations(result), **bars, **_dashed(rounds_hw)))
    for key, (color, dashes) in _LINES.items():
        other = baseline(result, key)
        accuracy = other["accuracy"].value if other else None
        if other is not None and accuracy is not None:
            line = axes.axhline(accuracy, color=color, linestyle=dashes, linewidth=1.8, zorder=1.5)
            line.set_label(f"{shorten(other.name)}, {percent(accuracy)}")
            handles.append(line)
    _round_axis(axes)
    axes.set_ylabel(f"{name} on {noun} [%]")
    axes.yaxis.set_major_formatter(percent_tick)
    axes.margins(y=0.12)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return Drawn(figure, caption + _bars_note(result), _alt_accuracy(rounds, ideal, hardware))


def draw_loss(result: Mapping[str, Any]) -> Drawn:
    """Draw training loss and perplexity beside each other."""
    figure = Figure(figsize=SIZE)
    left, right = figure.subplots(1, 2)
    caption = (
        f"Left: training loss, mean over clients. Right: perplexity on the test {case_noun(result)}s; lower is better "
        "in both."
    )
    rounds, loss = _series(result, "train_loss")
    left.set_title("Training loss", loc="left")
    left.set_ylabel("Cross-entropy [nat per token]")
    _line_or_note(left, rounds, loss, LOSS, "D-", "Training loss")
    right.set_title("Perplexity", loc="left")
    right.set_ylabel(f"Perplexity on test {case_noun(result)}s")
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
    return Drawn(figure, caption, f"Two line charts over rounds. {alt}{_from_to(hardware)}.")


def draw_communication(result: Mapping[str, Any]) -> Drawn:
    """Draw the bytes sent so far, uplink and downlink stacked."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    caption = "Bytes sent between clients and server since the start, all clients together."
    rows = [row for row in result["rounds"] if row["round"] > 0]
    if not rows:
        return nothing(figure, axes, caption)
    rounds = [row["round"] for row in rows]
    up, down = _cumulative(rows, "uplink_bytes"), _cumulative(rows, "downlink_bytes")
    total = up[-1] + down[-1]
    exponent = max(prefix_exponent(total), 0)
    scale = 10.0**exponent
    axes.bar(rounds, [value / scale for value in up], color=IDEAL, label="Uplink (client to server)")
    axes.bar(rounds, [value / scale for value in down], bottom=[value / scale for value in up], color=ORANGE,
             hatch="//", edgecolor=CARD, linewidth=0, label="Downlink (server to client)")  # fmt: skip
    axes.annotate(engineering(total, "B"), (rounds[-1], total / scale), (0, 4), textcoords="offset points", ha="center")
    _round_axis(axes)
    axes.set_xlim(rounds[0] - 0.7, max(rounds[-1], rounds[0] + 4) + 0.7)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
    axes.set_ylabel(f"Sent since the start [{prefix(exponent)}B]")
    figure.legend(loc="outside lower center", ncols=2)
    sent = f"{engineering(up[-1], 'B')} uplink and {engineering(down[-1], 'B')} downlink"
    return Drawn(figure, caption, f"Stacked bars over rounds: {sent} by round {rounds[-1]}.")


def draw_energy_parts(result: Mapping[str, Any]) -> Drawn:
    """Draw energy per token by part."""
    return draw_parts(parts_of(result))


def draw_result_baselines(result: Mapping[str, Any]) -> Drawn:
    """Draw the same token on other hardware."""
    return draw_baselines(baselines_of(result))


def draw_result_tornado(result: Mapping[str, Any]) -> Drawn:
    """Draw the numbers that matter most."""
    energy = energy_of(result)
    return draw_tornado(energy.get("tornado") or [], value_at(energy, "energy_per_token_j", "nominal"))


_FIGURES: dict[str, Callable[[Mapping[str, Any]], Drawn]] = {
    "standing": draw_standing,
    "confusion_ideal": partial(draw_confusion, device="ideal"),
    "confusion_hardware": partial(draw_confusion, device="hardware"),
    "reliability": draw_reliability,
    "rounds": draw_rounds,
    "loss": draw_loss,
    "communication": draw_communication,
    "chips": draw_chips,
    "energy_parts": draw_energy_parts,
    "tornado": draw_result_tornado,
    "baselines": draw_result_baselines,
    "timeline": lambda result: draw_timeline(energy_of(result).get("timeline")),
    "training": lambda result: draw_training(training_of(result)),
    "label_mix": draw_label_mix,
}
_NEEDS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "standing": lambda result: bool(result.get("baselines")),
    "confusion_ideal": lambda result: bool(value_at(evaluation_of(result), "ideal", "confusion")),
    "confusion_hardware": lambda result: bool(value_at(evaluation_of(result), "hardware", "confusion")),
    "reliability": lambda result: bool(value_at(evaluation_of(result), "ideal", "reliability")),
    **dict.fromkeys(("rounds", "loss", "communication", "training"), is_trained),
    "chips": has_chip_figure,
    "label_mix": lambda result: any(client.get("label_counts") for client in result["data"].get("clients") or []),
}


def _series(result: Mapping[str, Any], *path: str) -> tuple[list[int], list[float]]:
    """Rounds and the values they have at a path; rounds without a value are left out."""
    found = [(row["round"], value_at(row, *path)) for row in result["rounds"]]
    known = [(number, value) for number, value in found if value is not None]
    return [number for number, _ in known], [value for _, value in known]


def _all_evaluated(result: Mapping[str, Any]) -> bool:
    """Whether every round was evaluated; lines go through those that were."""
    return all(value_at(row, "ideal", "accuracy") is not None for row in result["rounds"])


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


def _round_axis(axes: Axes) -> None:
    """Label the x axis with whole rounds only."""
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _every(rounds: list[int]) -> int:
    """Step between marked points, so that a long run's marks stay apart."""
    return 1 + len(rounds) // 20


def _solid(color: str, rounds: list[int]) -> dict[str, Any]:
    """Look of a line with open marks."""
    return {"color": color, "linewidth": 2, "markersize": 6.5, "markerfacecolor": CARD, "markevery": _every(rounds)}


def _dashed(rounds: list[int]) -> dict[str, Any]:
    """Look of the hardware's line: thin, dashed and small, so that an equal ideal line shows behind it."""
    look = {"color": HARDWARE, "linewidth": 1.6, "markersize": 4.5, "markevery": _every(rounds)}
    return {"label": "Emulated hardware", **look}


def _line_or_note(axes: Axes, rounds: list[int], values: list[float], color: str, marks: str, label: str) -> None:
    """Draw one line over rounds, or say that there is none yet."""
    if not values:
        note(axes)
        return
    axes.plot(rounds, values, marks, label=label, **_solid(color, rounds))
    _round_axis(axes)


def _from_to(values: list[float]) -> str:
    """Describe a series by its first and last value."""
    return f"from {significant(values[0])} to {significant(values[-1])}" if values else "not known yet"


def _alt_accuracy(rounds: list[int], ideal: list[float], hardware: list[float]) -> str:
    """Describe the accuracy figure in words."""
    ends = [f"{percent(values[0])} to {percent(values[-1])}" if values else "not known" for values in (ideal, hardware)]
    span = f"from round {rounds[0]} to {rounds[-1]}" if rounds else ""
    return f"Line chart of accuracy {span}: ideal device {ends[0]}, emulated hardware {ends[1]}; baselines as lines."
