"""Currents of cells with time constants of their own at all ages of a step, from those at a few ages.

The currents of a chip's cells as functions of age form a narrow family. The weights that give the family's values at
any age from its values at the nodes ``a_j`` with the least mean square are found once for a device::

    min_W  E_cells |I(a) - sum_j W_j(a) I(a_j)|^2

over the log-normal time constant (Gauss-Hermite points), the stored levels and offsets to either side. They include the
mean decay, so they err ten times less than polynomials of the age through as many nodes.
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
SAMPLES = 48
"""Ages of a range at which the error is looked at to find how many nodes it needs."""
IMAGE_COST = 64
"""Queries whose products with a column of cells take as long as the image of the column (measured)."""


@functools.cache
def _quantiles() -> tuple[NDArray, NDArray]:
    """Return standard normals and the share of all cells that each stands for."""
    z, share = hermegauss(POINTS)
    return z, share / share.sum()


@dataclass(frozen=True)
class Family:
    """The cells of a device as functions of age.

    Attributes:
        laws: Polynomials c_0 .. c_3 of the current in the excursion, one for each offset.
        lowest: [V] lowest stored excursion.
        highest: [V] highest stored excursion.
        rate: [1] loss of the median cell per token.
        sigma: [1] deviation of the logarithm of the rate.
    """

    laws: tuple[tuple[float, ...], ...]
    lowest: float
    highest: float
    rate: float
    sigma: float

    def currents(self, ages: NDArray) -> NDArray:
        """Return the currents of the family at some ages [tokens], weighted by how many cells they stand for."""
        z, share = _quantiles()
        left = np.exp(-(self.rate * np.exp(self.sigma * z))[:, None] * ages)
        powers = np.stack([np.ones_like(left), left, left**2, left**3]) * np.sqrt(share / len(self.laws))[:, None]
        # Squares add up over eight levels as over the rows of the triangle that their powers reduce to
        levels = np.vander(np.linspace(self.lowest, self.highest, 8), 4, increasing=True) / math.sqrt(8.0)
        triangle = np.linalg.qr(levels, mode="r")
        found = [np.tensordot(triangle * np.array(law), powers, 1) for law in self.laws]
        return np.concatenate(found).reshape(-1, len(ages))

    @property
    def full_scale(self) -> float:
        """Return the largest current of a cell."""
        y = np.array([self.lowest, self.highest])
        return max(float(np.abs(np.polynomial.polynomial.polyval(y, law)).max()) for law in self.laws)


def node_ages(nodes: int, span: int, youngest: int) -> tuple[float, ...]:
    """Return the Chebyshev nodes of the ages youngest..youngest + span [tokens], from the write on."""
    low, high = max(0, youngest), youngest + span
    return tuple(low + 0.5 * (high - low) * (1.0 + math.cos((j + 0.5) * math.pi / nodes)) for j in range(nodes))


@functools.lru_cache(maxsize=2048)
def fitted_weights(family: Family, nodes: int, span: int, youngest: int) -> tuple[NDArray, float]:
    """Return the weights (nodes, span + 1) of the ages from ``youngest`` on, and the largest rms error over them.

    The error is in full scales. Ages before the write, of which a query's own sub-tile has some, are not read: their
    weights are zero.
    """
    before = max(0, -youngest)
    wanted = family.currents(np.arange(youngest + before, youngest + span + 1))
    weights, wrong = _fitted(family, node_ages(nodes, span, youngest), wanted)
    return np.pad(weights, ((0, 0), (before, 0))), wrong


def _fitted(family: Family, ages: tuple[float, ...], wanted: NDArray) -> tuple[NDArray, float]:
    """Return the weights of nodes that come nearest to some currents, and the largest rms error in full scales."""
    known = family.currents(np.array(ages))
    weights = np.linalg.pinv(known, rcond=1e-13) @ wanted
    return weights, float(np.sqrt(np.square(known @ weights - wanted).sum(0).max())) / family.full_scale


@functools.lru_cache(maxsize=2048)
def fewest_nodes(family: Family, span: int, youngest: int) -> int | None:
    """Return how many nodes serve the ages youngest..youngest + span; None where no number does."""
    wanted = family.currents(np.linspace(max(0, youngest), youngest + span, SAMPLES))  # the error is smooth
    for nodes in range(1, MOST_NODES + 1):
        if _fitted(family, node_ages(nodes, span, youngest), wanted)[1] <= TOLERANCE:
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
