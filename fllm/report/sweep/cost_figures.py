"""Figures of what the points of a sweep cost: accuracy against energy, energy by part, latency."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from device_models.costs import ARRAYS, PARTS
from fllm.report.drawing import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    Drawn,
    beside,
    log_axis,
    name_rows,
    nothing,
    rows_figure,
)
from fllm.report.formatting import engineering, percent, prefix, prefix_exponent
from fllm.report.sweep.costs import OTHER, EnergyBars, energy_bars, merged_parts, parts_of_point
from fllm.report.sweep.curves import Curve, held_on, shown_line
from fllm.report.sweep.drawing import (
    LOOKS,
    STAR,
    KeyAxis,
    accuracy_axis,
    bars_note,
    base_handle,
    error_ends,
    held_note,
    legend_below,
    new_axes,
)
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.front import changes_energy, pareto_front

FRONT_LETTERS = "ABCDEFGH"
_LOG_ENERGY = 5.0  # [1] ratio of energies from which their axis is logarithmic
_MOST_BARS = 150
_ARRAY_COLORS = (BLUE, SKY, GREEN, "#00456E", "#8CC9A9")
_DIGITAL_COLORS = (ORANGE, VERMILION, PURPLE, "#F0C870", "#8A3B00")


def draw_front(sweep: Sweep) -> Drawn:
    """Draw accuracy against energy per token, the Pareto front as a step line."""
    figure, axes = new_axes()
    caption = (
        "Accuracy on the emulated hardware against modelled energy per token; up and left is better. The step line is "
        "the Pareto front: no point of the sweep is more accurate for the same energy or less."
    )
    places = [place for place in sweep.designs if sweep.points[place].energy is not None]
    if not places:
        return nothing(figure, axes, caption)
    if len(sweep.designs) < len(sweep.known):
        caption += " Without the ideal device, whose energy is the limit of thermal noise and no design."
    energies = [sweep.points[place].energy or 0.0 for place in places]
    front = pareto_front(sweep)
    few = len(places) <= _MOST_BARS
    for place in places:
        on_front = place in front
        _point(axes, sweep, place, BLUE if on_front else GREY, "o" if on_front else "x", bars=few)
    _front_line(axes, sweep, front)
    handles: list[Any] = [Line2D([], [], color=BLUE, marker="o", markerfacecolor=CARD, label="on the Pareto front")]
    if len(front) < len(places):
        handles.append(Line2D([], [], color=GREY, marker="x", linestyle="none", label="other points"))
    handles += _base_star(axes, sweep)
    _energy_axis(axes, energies)
    accuracy_axis(axes)
    legend_below(figure, handles)
    if not changes_energy(sweep):
        caption += " No varied key changes the energy noticeably, so that the front is one point."
    if letters(front):
        caption += " Letters name points of the front, where there is room; a table lists them."
    caption += bars_note(sweep) if few else " More than 150 points: drawn without bars."
    words = "; ".join(_front_words(sweep, place) for place in front[:12])
    return Drawn(figure, caption, f"Scatter of {len(places)} points. Pareto front: {words}.")


def letters(front: Sequence[int]) -> dict[int, str]:
    """Letters of the points of a front, cheapest first; none where there are too many for letters or one only."""
    return dict(zip(front, FRONT_LETTERS, strict=False)) if 1 < len(front) <= len(FRONT_LETTERS) else {}


def draw_energy_parts(sweep: Sweep) -> Drawn:
    """Draw energy per token by part, a stacked bar for each point along the first key that changes it."""
    bars = energy_bars(sweep)
    figure, axes = rows_figure(1.5 + 0.36 * max(3, len(bars.places)))
    caption = _parts_caption(sweep, bars)
    points = [parts_of_point(sweep.points[place]) for place in bars.places]
    if not any(points):
        return nothing(figure, axes, caption)
    kept, small = merged_parts(points)
    looks = _part_looks(kept)
    exponent = prefix_exponent(max(sum(parts.values()) for parts in points))
    scale = 10.0**exponent
    for row, parts in enumerate(points):
        left = 0.0
        for name in [*kept, OTHER]:
            energy = sum(parts.get(part, 0.0) for part in small) if name == OTHER else parts.get(name, 0.0)
            axes.barh(row, energy / scale, left=left, height=0.62, **looks[name])
            left += energy / scale
        beside(axes, row, engineering(sum(parts.values()), "J"), 54)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")
    name_rows(axes, [textwrap.fill(name, 24) for name in bars.names])
    if bars.key is not None:
        axes.annotate(bars.key.name, (0, 1), (-4, 5), xycoords="axes fraction", textcoords="offset points", ha="right",
                      fontsize=SMALL, color=GREY)  # fmt: skip
    handles = [Patch(**looks[name], label=_part_label(name, small)) for name in [*kept, *([OTHER] if small else [])]]
    legend_below(figure, handles)
    words = "; ".join(f"{name} {engineering(sum(parts.values()), 'J')}"
                      for name, parts in zip(bars.names, points, strict=True))  # fmt: skip
    return Drawn(figure, caption + _small_note(small, points), f"Stacked bars of energy per token: {words}.")


def draw_latency(sweep: Sweep, along: Sequence[Curve]) -> Drawn:
    """Draw latency per token against each key that changes it, on the main line of its curve."""
    shown = list(along)[:3]
    figure, axes = new_axes()
    caption = "Modelled latency per token, decoding one token after another."
    if not shown:
        return nothing(figure, axes, caption, "No varied key changes the latency noticeably")
    figure.clear()
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    words = []
    for look, panel, curve in zip(LOOKS, panels, shown, strict=False):
        line = shown_line(curve)
        known = [place for place in line.places if sweep.points[place].latency is not None]
        values = [sweep.points[place].values[curve.key.name] for place in known]
        where = [float(value) if curve.key.numeric else curve.key.place(value) for value in values]
        times = [sweep.points[place].latency or 0.0 for place in known]
        marks = look if curve.key.numeric else dict(look) | {"linestyle": "none"}
        panel.plot(where, times, **marks, linewidth=1.6, markersize=6, markerfacecolor=CARD)
        _key_axis(panel, curve)
        caption += f" Against {curve.key.name}:{held_note(sweep, held_on(curve, line)) or ' no other key varies.'}"
        if times:
            ends = [f"{engineering(time, 's')} at {curve.key.text(value)}"
                    for time, value in ((times[0], values[0]), (times[-1], values[-1]))]  # fmt: skip
            words.append(f"against {curve.key.name} from {' to '.join(ends)}")
    largest = max((sweep.points[place].latency or 0.0 for place in sweep.known), default=0.0)
    exponent = prefix_exponent(largest)
    panels[0].set_ylabel(f"Latency per token [{prefix(exponent)}s]")
    panels[0].yaxis.set_major_locator(MaxNLocator(6))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10.0**exponent:.6g}"))
    panels[0].margins(y=0.15)
    return Drawn(figure, caption, f"Latency per token {'; '.join(words)}.")


def _point(axes: Axes, sweep: Sweep, place: int, color: str, mark: str, *, bars: bool) -> None:
    point = sweep.points[place]
    down, up = error_ends(point)
    ends = [[down], [up]] if bars and down + up > 0 else None
    axes.errorbar(point.energy or 0.0, point.accuracy or 0.0, ends, fmt=mark, color=color, markersize=6,
                  markerfacecolor=CARD, markeredgewidth=1.5, capsize=2.5, elinewidth=0.9)  # fmt: skip


def _front_line(axes: Axes, sweep: Sweep, front: Sequence[int]) -> None:
    """Draw the front as steps, with a letter above and left of each point, where no other point can lie."""
    energies = [sweep.points[place].energy or 0.0 for place in front]
    axes.plot(energies, sweep.accuracies(front), color=BLUE, linewidth=1.3, drawstyle="steps-post", zorder=1.8)
    room = [max(values) - min(values) or 1.0 for values in (axes.dataLim.intervalx, axes.dataLim.intervaly)]
    taken: list[tuple[float, float]] = []
    for place, letter in letters(front).items():
        x, y = sweep.points[place].energy or 0.0, sweep.points[place].accuracy or 0.0
        if any(abs(x - a) < 0.04 * room[0] and abs(y - b) < 0.07 * room[1] for a, b in taken):
            continue
        taken.append((x, y))
        axes.annotate(letter, (x, y), (-5, 4), textcoords="offset points", ha="right", va="bottom", fontsize=SMALL,
                      fontweight="bold", color=BLUE)  # fmt: skip


def _base_star(axes: Axes, sweep: Sweep) -> list[Any]:
    handle = base_handle(sweep)
    if handle is None or sweep.base is None:
        return []
    point = sweep.points[sweep.base]
    if point.energy is None or point.accuracy is None:
        return []
    axes.plot([point.energy], [point.accuracy], **dict(STAR) | {"linestyle": "none", "zorder": 5})
    handle.set_label(f"{sweep.base_name}: {percent(point.accuracy)}, {engineering(point.energy, 'J')}")
    return [handle]


def _energy_axis(axes: Axes, energies: Sequence[float]) -> None:
    axes.margins(x=0.08, y=0.1)
    if min(energies) > 0 and max(energies) > _LOG_ENERGY * min(energies):
        log_axis(axes, "J")
        axes.set_xlabel("Energy per token, logarithmic")
        return
    if max(energies) - min(energies) < 1e-3 * max(energies):  # one energy: room left and right instead of noise
        axes.set_xlim(0.8 * min(energies), 1.2 * max(energies))
    exponent = prefix_exponent(max(energies))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10.0**exponent:.6g}"))
    axes.set_xlabel(f"Energy per token [{prefix(exponent)}J]")


def _front_words(sweep: Sweep, place: int) -> str:
    point = sweep.points[place]
    return f"{percent(point.accuracy)} at {engineering(point.energy, 'J')} ({sweep.settings_text(place)})"


def _parts_caption(sweep: Sweep, bars: EnergyBars) -> str:
    start = "Modelled energy per token by part"
    if bars.key is not None:
        return f"{start}, along {bars.key.name}.{held_note(sweep, bars.held)}"
    if not changes_energy(sweep):
        return f"{start}. No varied key changes the energy noticeably."
    return f"{start}, of a few points of the sweep."


def _part_looks(kept: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colours of the parts: arrays plain, the digital accelerator hatched, the rest grey."""
    arrays = [part for part in kept if PARTS.get(part) == ARRAYS]
    digital = [part for part in kept if PARTS.get(part) != ARRAYS]
    plain: dict[str, Any] = {"edgecolor": CARD, "linewidth": 0.8}
    looks = {part: {"facecolor": _ARRAY_COLORS[n % len(_ARRAY_COLORS)], **plain} for n, part in enumerate(arrays)}
    for n, part in enumerate(digital):
        looks[part] = {"facecolor": _DIGITAL_COLORS[n % len(_DIGITAL_COLORS)], "hatch": "///", **plain}
    return looks | {OTHER: {"facecolor": "#B9BDB8", **plain}}


def _part_label(name: str, small: Sequence[str]) -> str:
    return f"{OTHER} ({len(small)} parts)" if name == OTHER else name


def _small_note(small: Sequence[str], points: Sequence[dict[str, float]]) -> str:
    """Name the parts that are summed as other, with their sum, and what hatching means."""
    hatched = " Hatched: digital accelerator; plain: arrays."
    if not small:
        return hatched
    sums = [sum(parts.get(part, 0.0) for part in small) for parts in points]
    ends = dict.fromkeys([str(engineering(min(sums), "J")), str(engineering(max(sums), "J"))])
    return f"{hatched} Other, {' to '.join(ends)}: {'; '.join(small)}."


def _key_axis(axes: Axes, curve: Curve) -> None:
    if curve.key.numeric:
        KeyAxis(curve.key).apply(axes)
        return
    names = [str(value) for value in curve.key.values]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_xlabel(curve.key.name)
