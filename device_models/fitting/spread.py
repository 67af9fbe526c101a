"""Median and spread of the time constants of a population, from cells that are each known with an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import chdtri

from device_models.fitting.statistics import LEVEL


@dataclass(frozen=True, eq=False)
class Spread:
    """Normal population of thetas.

    Attributes:
        mean: Of theta = ln(time constant).
        mean_variance: Of ``mean``, without errors that all cells share.
        sigma: [1] standard deviation of theta over cells, errors of the measurement taken off.
        low: Lower end of its 95 % interval.
        high: Upper end.
        weights: [1] share of each cell in ``mean``.
    """

    mean: float
    mean_variance: float
    sigma: float
    low: float
    high: float
    weights: NDArray


def population(theta: NDArray, variance: NDArray) -> Spread:
    """Estimate mean and standard deviation of a normal population from values with known errors.

    ``Q(s^2) = sum_i (theta_i - mean)^2 / (s^2 + variance_i)`` is chi-squared with n - 1 degrees of freedom at the true
    ``s``, with ``mean`` weighted by the same terms; ``sigma`` solves Q = n - 1, the ends of its interval solve Q = the
    quantiles.

    Args:
        theta: [1] estimate of each cell.
        variance: [1] of each estimate; a cell that did not decay has an enormous one and hardly counts.

    Source: Paule and Mandel, J. Res. NBS 87, 377 (1982); Viechtbauer, Statistics in Medicine 26, 37 (2007) (Q-profile).
    """
    count = len(theta)

    def moments(square: float) -> tuple[float, NDArray]:
        weights = 1.0 / (square + variance)
        return float((weights * theta).sum() / weights.sum()), weights

    def q(square: float) -> float:
        mean, weights = moments(square)
        return float((weights * (theta - mean) ** 2).sum())

    tail = (1 - LEVEL) / 2
    square, low, high = (_solve(q, t) for t in (count - 1, chdtri(count - 1, tail), chdtri(count - 1, 1 - tail)))
    mean, weights = moments(square)
    return Spread(
        mean=mean,
        mean_variance=float(1.0 / weights.sum()),
        sigma=math.sqrt(square),
        low=math.sqrt(low),
        high=math.sqrt(high),
        weights=weights / weights.sum(),
    )


def _solve(q: Callable[[float], float], target: float) -> float:
    """Return the variance at which the falling function ``q`` meets a target, 0 where it lies below it throughout."""
    smallest = 1e-20
    if q(smallest) <= target:
        return 0.0
    highest = 1e-6
    while q(highest) > target:
        highest *= 10.0
    return float(np.exp(brentq(lambda log: q(math.exp(log)) - target, math.log(smallest), math.log(highest))))
