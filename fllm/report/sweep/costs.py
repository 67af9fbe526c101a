"""Energy by part and latency of a sweep's points, and which keys change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_models.costs import PARTS
from fllm.report.sweep.curves import Curve, curves, held_on, shown_line
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.front import choose, differs
from fllm.report.sweep.points import Key, Point, Value
from fllm.sweeps.table import energy_column

SMALL_PART = 0.03
"""[1] share of the total below which a part is merged with the other small ones."""
MOST_PARTS, MOST_BARS = 8, 12
OTHER = "other"


@dataclass(frozen=True)
class EnergyBars:
    """Energy by part of a few points.

    Attributes:
        names: What each point is, for example a value of the key.
        places: The points.
        key: The key that they follow; None where they are chosen points.
        held: Other keys with the value that they are held at.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    key: Key | None
    held: tuple[tuple[Key, Value], ...]


def parts_of_point(point: Point) -> dict[str, float]:
    """Energy per token by part [J], in the order of reports; parts that take nothing are left out."""
    parts = {energy_column(part): part for part in PARTS}
    found: dict[str, float] = {}
    names = sorted({column for row in point.rows for column in row if _is_part(column)})
    for column in names:
        energy = point.mean(column)
        if energy:
            found[parts.get(column) or column[len("energy_") : -len("_j")].replace("_", " ")] = energy
    order = list(PARTS)
    return {part: found[part] for part in sorted(found, key=lambda part: _rank(part, order))}


def merged_parts(points: Sequence[dict[str, float]]) -> tuple[list[str], list[str]]:
    """Choose the parts that are drawn, and those that are summed as other, for several points together.

    A part is drawn where it takes at least :data:`SMALL_PART` of any point, as long as there is room.
    """
    share: dict[str, float] = {}
    for parts in points:
        total = sum(parts.values()) or 1.0
        for part, energy in parts.items():
            share[part] = max(share.get(part, 0.0), energy / total)
    order = list(PARTS)
    large = [part for part in share if share[part] >= SMALL_PART]
    kept = sorted(large, key=lambda part: (-share[part], part))[:MOST_PARTS]
    small = [part for part in share if part not in kept]
    if len(small) == 1 and len(kept) < MOST_PARTS:
        kept, small = [*kept, *small], []
    return sorted(kept, key=lambda part: _rank(part, order)), sorted(small, key=lambda part: _rank(part, order))


def changing(sweep: Sweep, column: str) -> list[Curve]:
    """Return the curves along whose lines a column of the rows changes."""

    def varies(places: Sequence[int]) -> bool:
        return differs([sweep.points[place].mean(column) for place in places])

    return [curve for curve in curves(sweep) if any(varies(line.places) for line in curve.lines)]


def energy_bars(sweep: Sweep) -> EnergyBars:
    """Choose the points whose energy is shown by part: along the first key that changes it, or a few telling ones."""
    along = changing(sweep, "energy_per_token_j")
    if along:
        line = shown_line(along[0])
        places = _spread(line.places)
        names = [along[0].key.text(sweep.points[place].values[along[0].key.name]) for place in places]
        return EnergyBars(tuple(names), tuple(places), along[0].key, tuple(held_on(along[0], line)))
    named = _telling(sweep)
    return EnergyBars(tuple(named.values()), tuple(named), None, ())


def _telling(sweep: Sweep) -> dict[int, str]:
    """Choose the base device, the best point and the ends of the energy, each once; one point where all are equal."""
    priced = [place for place in sweep.designs if sweep.points[place].energy is not None]
    if not priced:
        return {}
    by_energy = sorted(priced, key=lambda place: (sweep.points[place].energy, place))
    base = sweep.base if sweep.base in priced else None
    if not differs([sweep.points[place].energy for place in priced]):
        only = base if base is not None else priced[0]
        return {only: sweep.base_name if base is not None else f"point {sweep.points[only].number}"}
    chosen = [(base, sweep.base_name), (choose(sweep).best, "most accurate"), (by_energy[0], "least energy"),
              (by_energy[-1], "most energy")]  # fmt: skip
    named: dict[int, str] = {}
    for place, name in chosen:
        if place is not None:
            named[place] = f"{named[place]}, {name}" if place in named else name
    return {place: f"{name} (point {sweep.points[place].number})" for place, name in named.items()}


def _spread(places: Sequence[int]) -> list[int]:
    if len(places) <= MOST_BARS:
        return list(places)
    return [places[round(step * (len(places) - 1) / (MOST_BARS - 1))] for step in range(MOST_BARS)]


def _is_part(column: str) -> bool:
    return column.startswith("energy_") and column.endswith("_j") and not column.startswith("energy_per_token")


def _rank(part: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(part) if part in order else len(order), part)
