"""Points of a sweep that are worth having: the Pareto front of accuracy and energy, the best, the cheapest good one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fllm.report.sweep.facts import Sweep

CLOSE = 0.01
"""[1] accuracy that a reader may give up for a cheaper device: one point."""
_SAME = 1e-9  # [1] difference of accuracies that are the same
NOTICEABLE = 1e-2
"""[1] relative difference of energies or times from which a report calls them different. Smaller ones come from what
leaks while arrays wait, and no published price is known as well as that."""


@dataclass(frozen=True)
class Choice:
    """Points that the first screen names, by their place; None where no point is known.

    Attributes:
        best: Highest mean accuracy; the cheaper of equals.
        best_share: Share of bootstrap draws in which it is the best [1]; None without draws.
        cheapest: Least energy among the points within :data:`CLOSE` of the best; None where no energy is known.
    """

    best: int | None
    best_share: float | None
    cheapest: int | None


def pareto_front(sweep: Sweep) -> list[int]:
    """Return the points that no other beats in accuracy without taking more energy, the cheapest first.

    Where no key changes the energy noticeably, that is the most accurate point alone.
    """
    priced = [place for place in sweep.designs if sweep.points[place].energy is not None]
    counts = changes_energy(sweep)
    ranked = sorted(priced, key=lambda place: (_energy(sweep, place) * counts, -_accuracy(sweep, place), place))
    front: list[int] = []
    for place in ranked:
        if not front or _accuracy(sweep, place) > _accuracy(sweep, front[-1]) + _SAME:
            front.append(place)
    return front


def choose(sweep: Sweep) -> Choice:
    """Find the best point and the cheapest one that is nearly as good."""
    if not sweep.designs:
        return Choice(None, None, None)
    best = min(sweep.designs, key=lambda place: (-_accuracy(sweep, place), _energy(sweep, place), place))
    close = [
        place
        for place in sweep.designs
        if sweep.points[place].energy is not None and _accuracy(sweep, place) >= _accuracy(sweep, best) - CLOSE - _SAME
    ]
    counts = changes_energy(sweep)
    cheapest = min(
        close, key=lambda place: (_energy(sweep, place) * counts, -_accuracy(sweep, place), place), default=None
    )
    return Choice(best, _share_of_draws(sweep, best), cheapest)


def changes_energy(sweep: Sweep) -> bool:
    """Say whether the energy per token differs noticeably between points."""
    return differs([sweep.points[place].energy for place in sweep.designs])


def differs(values: list[float | None]) -> bool:
    """Say whether numbers differ by :data:`NOTICEABLE` or more."""
    known = [value for value in values if value is not None]
    return bool(known) and max(known) - min(known) >= NOTICEABLE * max(abs(value) for value in known)


def _share_of_draws(sweep: Sweep, best: int) -> float | None:
    drawn = sweep.draws.accuracy[:, sweep.designs]
    if not drawn.size or np.isnan(drawn).any():
        return None
    mine = sweep.draws.accuracy[:, best]
    return float(np.mean(mine >= drawn.max(axis=1) - 1e-12))


def _energy(sweep: Sweep, place: int) -> float:
    energy = sweep.points[place].energy
    return float("inf") if energy is None else energy


def _accuracy(sweep: Sweep, place: int) -> float:
    return sweep.points[place].accuracy or 0.0
