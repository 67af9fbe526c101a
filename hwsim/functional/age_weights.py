"""Currents of cells with time constants of their own at all ages of a step, from those at a few ages.

The currents of a chip's cells as functions of age form a narrow family. The weights that give the family's values at
any age from its values at the nodes ``a_j`` with the least mean square are found once for a device::

    min_W  E_cells |I(a) - sum_j W_j(a) I(a_j)|^2

over quantiles of the log-normal time constant, the stored levels and offsets to either side. They include the mean
decay, so they err ten times less than polynomials of the age through as many nodes.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

QUANTILES = 200
TAIL = (-4.5, -4.0, -3.5, 4.0)
"""Standard normals beyond the quantiles, so that the fastest cells of a chip count."""
TOLERANCE = 2e-6
"""Rms error of the cells' currents, in full scales, that nodes may make: fewer readout codes change by it than by the
rounding of float32."""
MOST_NODES = 12
IMAGE_COST = 64
"""Queries whose products with a column of cells take as long as the image of the column (measured)."""


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
        middle = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
        z = np.concatenate([middle, TAIL])
        share = np.concatenate([np.full(QUANTILES, 1.0 / QUANTILES), norm.sf(np.abs(TAIL))])
        y = np.linspace(self.lowest, self.highest, 8)[:, None, None]
        v = y * np.exp(-(self.rate * np.exp(self.sigma * z))[:, None] * ages)
        found = np.stack([c[0] + v * (c[1] + v * (c[2] + v * c[3])) for c in self.laws])
        found *= np.sqrt(share / (8 * len(self.laws)))[:, None]
        return found.reshape(-1, len(ages))

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
    known = family.currents(np.array(node_ages(nodes, span, youngest)))
    wanted = family.currents(np.arange(youngest + before, youngest + span + 1))
    weights = np.linalg.lstsq(known, wanted, rcond=1e-13)[0]
    wrong = np.sqrt(np.square(known @ weights - wanted).sum(0).max())
    return np.pad(weights, ((0, 0), (before, 0))), float(wrong) / family.full_scale


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
        for nodes in range(1, MOST_NODES + 1):
            cost = nodes * (1.0 + IMAGE_COST / rows)
            if best is not None and cost >= best[0]:
                break
            if all(fitted_weights(family, nodes, span, start - columns + 1)[1] <= TOLERANCE for start in starts):
                best = (cost, rows, nodes)
                break
        if rows >= queries:
            break
    return None if best is None else best[1:]
