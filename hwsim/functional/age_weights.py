"""Currents of cells with time constants of their own at all ages of a step, from those at a few ages.

The currents of a chip's cells as functions of age form a narrow family. The weights that give the family's values at
any age from its values at the nodes ``a_j`` with the least mean square are found once for a device::

    min_W  E_cells |I(a) - sum_j W_j(a) I(a_j)|^2

over the log-normal time constant (Gauss-Hermite points), the stored levels and offsets to either side. They include the
mean decay, so they err ten times less than polynomials of the age through as many nodes. Where cells lose charge by the
self-limited law of ``device_models.retention``, with W = exp(-|y| / v_scale) and a rate of their own::

    z(a) = sign(y) v_scale max(-ln(W + rate a), 0)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray

POINTS = 40
"""Time constants that stand for all; the outermost lie beyond those of any chip."""
TOLERANCE = 2e-6
"""Rms error of the cells' currents, in full scales, that nodes may make: fewer readout codes change by it than by the
rounding of float32."""
MOST_NODES = 12
LEVELS = 8
"""Stored levels that stand for all."""
MANY_LEVELS, FEW_POINTS = 25, 16
"""The same under the self-limited law, where levels are no powers of one factor: more levels than nodes."""
SAMPLES = 48
"""Ages of a range at which the error is looked at to find how many nodes it needs."""
IMAGE_COST = 64
"""Queries whose products with a column of cells take as long as the image of the column (measured)."""


@functools.cache
def _quantiles(points: int) -> tuple[NDArray, NDArray]:
    """Return standard normals and the share of all cells that each stands for."""
    z, share = hermegauss(points)
    return z, share / share.sum()


@dataclass(frozen=True)
class Family:
    """The cells of a device as functions of age.

    Attributes:
        laws: Polynomials c_0 .. c_3 of the current in the excursion, one for each offset.
        lowest: [V] lowest stored excursion.
        highest: [V] highest stored excursion.
        rate: [1] loss of the median cell per token; what it adds to W where there is a ``v_scale``.
        sigma: [1] deviation of the logarithm of the rate.
        v_scale: [V] of the self-limited law; None is exponential.
    """

    laws: tuple[tuple[float, ...], ...]
    lowest: float
    highest: float
    rate: float
    sigma: float
    v_scale: float | None = None

    def currents(self, ages: NDArray) -> NDArray:
        """Return the currents of the family at some ages [tokens], weighted by how many cells they stand for."""
        return self._exponential(ages) if self.v_scale is None else self._self_limited(ages, self.v_scale)

    def _self_limited(self, ages: NDArray, v_scale: float) -> NDArray:
        z, share = _quantiles(FEW_POINTS)
        levels = np.linspace(self.lowest, self.highest, MANY_LEVELS)[:, None, None]
        w = np.exp(-np.abs(levels) / v_scale) + (self.rate * np.exp(self.sigma * z))[:, None] * ages
        left = np.sign(levels) * v_scale * np.maximum(-np.log(w), 0.0)
        weight = np.sqrt(share / (MANY_LEVELS * len(self.laws)))[:, None]
        found = [np.polynomial.polynomial.polyval(left, law) * weight for law in self.laws]
        return np.concatenate(found).reshape(-1, len(ages))

    def _exponential(self, ages: NDArray) -> NDArray:
        z, share = _quantiles(POINTS)
        left = np.exp(-(self.rate * np.exp(self.sigma * z))[:, None] * ages)
        powers = np.stack([np.ones_like(left), left, left**2, left**3]) * np.sqrt(share / len(self.laws))[:, None]
        # Squares add up over the levels as over the rows of the triangle that their powers reduce to
        levels = np.vander(np.linspace(self.lowest, self.highest, LEVELS), 4, increasing=True) / math.sqrt(LEVELS)
        triangle = np.linalg.qr(levels, mode="r")
        found = [np.tensordot(triangle * np.array(law), powers, 1) for law in self.laws]
        return np.concatenate(found).reshape(-1, len(ages))

    def node_ages(self, nodes: int, span: int, youngest: int) -> tuple[float, ...]:
        """Return the nodes of the ages youngest..youngest + span [tokens]."""
        return node_ages(nodes, span, youngest, self_limited=self.v_scale is not None)

    @property
    def full_scale(self) -> float:
        """Return the largest current of a cell."""
        y = np.array([self.lowest, self.highest])
        return max(float(np.abs(np.polynomial.polynomial.polyval(y, law)).max()) for law in self.laws)


def node_ages(nodes: int, span: int, youngest: int, *, self_limited: bool = False) -> tuple[float, ...]:
    """Return the Chebyshev nodes of the ages youngest..youngest + span [tokens], from the write on.

    Of their logarithms where cells lose most at first: the write itself is a node then, and the others follow it.
    """
    low, high = max(0, youngest), youngest + span
    if self_limited:
        first = (0.0,) if low == 0 else ()
        bottom, top = math.log(max(1, low)), math.log(max(1, high))
        others = nodes - len(first)
        angles = ((j + 0.5) * math.pi / others for j in range(others))
        return (*first, *(math.exp(bottom + 0.5 * (top - bottom) * (1.0 + math.cos(angle))) for angle in angles))
    return tuple(low + 0.5 * (high - low) * (1.0 + math.cos((j + 0.5) * math.pi / nodes)) for j in range(nodes))


@functools.lru_cache(maxsize=2048)
def fitted_weights(family: Family, nodes: int, span: int, youngest: int) -> tuple[NDArray, float]:
    """Return the weights (nodes, span + 1) of the ages from ``youngest`` on, and the largest rms error over them.

    The error is in full scales. Ages before the write, of which a query's own sub-tile has some, are not read: their
    weights are zero.
    """
    before = max(0, -youngest)
    wanted = family.currents(np.arange(youngest + before, youngest + span + 1))
    weights, wrong = _fitted(family, nodes, span, youngest, wanted)
    return np.pad(weights, ((0, 0), (before, 0))), wrong


def _fitted(family: Family, nodes: int, span: int, youngest: int, wanted: NDArray) -> tuple[NDArray, float]:
    """Return the weights of nodes that come nearest to some currents, and the largest rms error in full scales."""
    known = family.currents(np.array(family.node_ages(nodes, span, youngest)))
    weights = np.linalg.pinv(known, rcond=1e-13) @ wanted
    return weights, float(np.sqrt(np.square(known @ weights - wanted).sum(0).max())) / family.full_scale


@functools.lru_cache(maxsize=2048)
def fewest_nodes(family: Family, span: int, youngest: int) -> int | None:
    """Return how many nodes serve the ages youngest..youngest + span; None where no number does."""
    low, high = max(0, youngest), youngest + span
    some = np.linspace(low, high, SAMPLES)  # the error is smooth
    if family.v_scale is not None:  # but close to the write
        some = np.unique(np.rint(np.concatenate([some, np.geomspace(max(1, low), max(1, high), SAMPLES)])))
    wanted = family.currents(some)
    for nodes in range(1, MOST_NODES + 1):
        if _fitted(family, nodes, span, youngest, wanted)[1] <= TOLERANCE:
            return nodes
    return None


@functools.lru_cache(maxsize=256)
def steps_and_nodes(family: Family, queries: int, window: int, columns: int) -> tuple[int, int] | None:
    """Return how many queries a step has and how many nodes, at least cost; None where no number of nodes serves.

    Args:
        family: The cells.
        queries: Queries that read a sub-tile.
        window: Tokens in the arrays.
        columns: Columns of a sub-tile.
    """
    best: tuple[float, int, int] | None = None
    for n in range(12):
        rows = columns * 2**n  # few different ones, so that weights can be kept
        span = max(1, rows + columns - 2)
        starts = {0, *(min(start, window - 1) for start in (columns, rows, 4 * rows))}
        needed = [fewest_nodes(family, span, start - columns + 1) for start in starts]
        serve = [nodes for nodes in needed if nodes is not None]
        if len(serve) == len(needed):
            cost = max(serve) * (1.0 + IMAGE_COST / rows)
            best = (cost, rows, max(serve)) if best is None or cost < best[0] else best
        if rows >= queries:
            break
    return None if best is None else best[1:]
