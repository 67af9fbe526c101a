"""Figures of a comparison of sweeps: accuracy at shared settings, and accuracy against energy for all their points."""

from __future__ import annotations

from collections.abc import Container, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fllm.report.comparison.facts import distinct
from fllm.report.comparison.figures import LOOKS, MOST, cut_note, fold
from fllm.report.comparison.sweeps import Shared, Sweeps
from fllm.report.drawing import CARD, SIZE, Drawn, log_axis, name_rows, nothing, percent_tick, rows_figure
from fllm.report.formatting import percent, plural, prefix, prefix_exponent

_LOG_ENERGY = 5.0  # [1] ratio of energies from which their axis is logarithmic
_NAME = 26  # characters of a sweep's name in a legend


def draw_shared(sweeps: Sweeps, shared: Sequence[Shared]) -> Drawn:
    """Draw the accuracy of points that share their settings, a row for each, with 95 % intervals."""
    shown, names = shared[:MOST], distinct(sweeps.names, _NAME)[:MOST]
    figure, axes = rows_figure(1.6 + (0.3 + 0.12 * len(names)) * max(3, len(shown)))
    caption = f"Accuracy with its 95 % interval at the same settings ({', '.join(sweeps.keys)})."
    if len(shared) > MOST:
        caption += f" The first {MOST} of {len(shared)} are shown."
    if not shown:
        return nothing(figure, axes, caption, "No settings are shared")
    present = sorted({number for entry in shown for number in entry.places if number < len(names)})
    for row, entry in enumerate(shown):
        for rank, number in enumerate(present):
            if number in entry.places:
                _dot(axes, row + 0.6 * ((rank + 0.5) / len(present) - 0.5), sweeps, number, entry.places[number])
    name_rows(axes, [fold(", ".join(entry.settings.values()), 20) for entry in shown])
    axes.xaxis.set_major_formatter(percent_tick)
    axes.set_xlabel("Accuracy on test cases [%]")
    figure.legend(handles=_handles(names, present), loc="outside lower center", ncols=2)
    words = "; ".join(
        f"{entry.text}: "
        + ", ".join(
            f"{sweeps.names[n]} {percent(sweeps.members[n].points[p].accuracy)}" for n, p in entry.places.items()
        )
        for entry in shown
    )
    return Drawn(figure, caption + cut_note(sweeps.names), f"Dots of accuracy: {words}.")


def draw_all_points(sweeps: Sweeps) -> Drawn:
    """Draw accuracy against energy per token, every known point of every sweep, the base devices large."""
    figure = Figure(figsize=SIZE)
    axes = figure.subplots()
    names = distinct(sweeps.names, _NAME)[:MOST]
    caption = "All points of all sweeps: accuracy against modelled energy per token; large marks are the base devices."
    energies, words = [], []
    for number, name in enumerate(names):
        sweep, (color, mark) = sweeps.members[number], LOOKS[number]
        known = [
            (place, sweep.points[place].energy or 0.0, sweep.points[place].accuracy or 0.0) for place in sweep.known
        ]
        priced = [entry for entry in known if entry[1] > 0]
        energies += [energy for _, energy, _ in priced]
        words.append(f"{name} {plural(len(priced), 'point')}")
        for place, energy, accuracy in priced:
            base = place == sweep.base
            axes.plot([energy], [accuracy], mark, color=color, markersize=10 if base else 5, alpha=0.85,
                      markeredgecolor=CARD, markeredgewidth=0.6, zorder=3 if base else 2)  # fmt: skip
    if not energies:
        return nothing(figure, axes, caption)
    _energy_axis(axes, energies)
    axes.set_ylabel("Accuracy on test cases [%]")
    axes.yaxis.set_major_formatter(percent_tick)
    axes.margins(0.08)
    figure.legend(handles=_handles(names, range(len(names)), line=""), loc="outside lower center", ncols=2)
    return Drawn(figure, caption + cut_note(sweeps.names), f"Scatter of accuracy against energy: {', '.join(words)}.")


def _energy_axis(axes: Axes, energies: Sequence[float]) -> None:
    if max(energies) > _LOG_ENERGY * min(energies):
        log_axis(axes, "J")
        axes.set_xlabel("Energy per token, logarithmic")
        return
    exponent = prefix_exponent(max(energies))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 10.0**exponent:g}")
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")


def _dot(axes: Axes, height: float, sweeps: Sweeps, number: int, place: int) -> None:
    sweep, (color, mark) = sweeps.members[number], LOOKS[number]
    bounds = sweep.accuracy_interval(place)
    if bounds:
        axes.plot(bounds, [height, height], color=color, linewidth=1.5, solid_capstyle="butt")
    axes.plot([sweep.points[place].accuracy or 0.0], [height], mark, color=color, markersize=5.5)


def _handles(names: Sequence[str], present: Container[int], line: str = "-") -> list[Line2D]:
    return [
        Line2D([], [], color=color, marker=mark, markersize=5.5, linestyle=line, label=name)
        for number, (name, (color, mark)) in enumerate(zip(names, LOOKS, strict=False))
        if number in present
    ]
