"""Figure of the required value of a key against the allowed drop below the ideal device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fllm.report.drawing import CARD, GREY, Drawn
from fllm.report.sweep.curves import Curve, held_on
from fllm.report.sweep.drawing import LOOKS, KeyAxis, held_note, legend_below, new_axes
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.points import Key
from fllm.report.sweep.required import LineRequired, Required

_NAMES = {"ideal": "below the ideal device", "end": "below the better end of the sweep"}


def draw_required(sweep: Sweep, curve: Curve, found: LineRequired) -> Drawn:
    """Draw the required values along one line of a curve with their 95 % intervals."""
    against = {"ideal": found.ideal, "end": found.end}
    figure, axes = new_axes()
    key = curve.key
    low, high = (key.place(value) for value in (key.values[0], key.values[-1]))
    beyond = 0.12 * (high - low)
    for number, values in enumerate(against.values()):
        shift = 0.16 * (2 * number - 1)
        for row, required in enumerate(values):
            _interval(axes, row + shift, required, number, (low, high, beyond))
    for edge in (low, high):
        axes.axhline(key.value_at(edge), color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1.4)
    allowed = next(iter(against.values()))
    axes.set_xticks(range(len(allowed)), [points_text(required.allowed) for required in allowed])
    axes.set_xlim(-0.75, len(allowed) - 0.25)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("Allowed drop of accuracy [points]")
    KeyAxis(key, vertical=True).apply(axes)
    axes.set_ylim(key.value_at(low - 1.6 * beyond), key.value_at(high + 1.6 * beyond))
    least = "at least" if allowed[0].rising else "at most"
    axes.set_ylabel(f"{axes.get_ylabel()}\nrequired, {least}")
    looks = [dict(LOOKS[number]) | {"linestyle": "-", "markerfacecolor": CARD} for number in range(len(against))]
    names = [_NAMES[name] for name in against]
    legend_below(figure, [Line2D([], [], **look, label=name) for look, name in zip(looks, names, strict=True)])
    return Drawn(figure, _caption(sweep, curve, found), _alt(key, against))


def points_text(allowed: float) -> str:
    """Write an allowed drop in points: 0.5, 1, 2, 5."""
    return f"{100 * allowed:g}"


def _interval(axes: Axes, where: float, found: Required, number: int, ends: tuple[float, float, float]) -> None:
    """Draw a value with its interval; an end beyond the sweep becomes an arrow outwards."""
    look = LOOKS[number]
    at, lower, upper = (_shown(found, coordinate, ends) for coordinate in (found.at, found.lower, found.upper))
    low, high = sorted((lower, upper)) if found.has_interval else (at, at)
    key = found.key
    axes.plot([where] * 2, [key.value_at(low), key.value_at(high)], color=look["color"], linewidth=1.3)
    for end in {low, high}:
        inside = ends[0] <= end <= ends[1]
        mark = "_" if inside else "^" if end > ends[1] else "v"
        if found.has_interval and (inside or end != at):
            axes.plot([where], [key.value_at(end)], mark, color=look["color"], markersize=7)
    if math.isfinite(found.at):
        axes.plot([where], [key.value_at(at)], look["marker"], color=look["color"], markerfacecolor=CARD,
                  markeredgewidth=1.5, markersize=7)  # fmt: skip
    else:
        mark = "^" if at > ends[1] else "v"
        axes.plot([where], [key.value_at(at)], mark, color=look["color"], markersize=9)
        word = "not\nreached" if found.at > 0 else "any"
        side, ha = (-7, "right") if number == 0 else (7, "left")
        axes.annotate(word, (where, key.value_at(at)), (side, 0), textcoords="offset points", ha=ha, va="center",
                      fontsize=8, color=look["color"])  # fmt: skip


def _shown(found: Required, coordinate: float, ends: tuple[float, float, float]) -> float:
    """Place of a coordinate in the figure, on the axis of :meth:`Key.place`; beyond the sweep at its rim."""
    place = coordinate if found.rising else -coordinate
    if math.isnan(place):
        return ends[0]
    return min(max(place, ends[0] - ends[2]), ends[1] + ends[2])


def _caption(sweep: Sweep, curve: Curve, found: LineRequired) -> str:
    held = held_note(sweep, held_on(curve, found.line))
    return (
        f"{curve.key.name} that keeps the drop of accuracy within the allowed one, read off the curve between swept "
        f"values.{held} Bars: 95 % interval over dies and test cases (bootstrap). "
        "Dotted: ends of the sweep; an arrow beyond them means that an interval leaves the sweep, “any” that every "
        "swept value will do."
    )


def _alt(key: Key, against: Mapping[str, Sequence[Required]]) -> str:
    words = []
    for name, found in against.items():
        shown = ", ".join(f"{points_text(r.allowed)} points {r.text(r.at)}" for r in found)
        words.append(f"{_NAMES[name]}: {shown}")
    return f"Required {key.name} for each allowed drop. {'; '.join(words)}."
