"""Statistics that the fits share: information criterion, intervals, and whether a law misses more than the noise.

``scipy.special`` instead of ``scipy.stats``: the same distributions at a fraction of the import time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc, fdtrc, ndtri, stdtrit

from device_models.errors import InputError
from device_models.quantities import format_quantity

LEVEL = 0.95
"""Share of repetitions whose interval holds the true value."""

MISFIT_P = 1e-3
"""Probability below which noise alone does not explain the residuals."""

MISFIT_RATIO = 3.0
"""Misfit in units of the noise above which a law is refused; below, the intervals are widened."""

ROUNDING = 1e-9
"""Of the span of the data: noise below it is taken for rounding."""

RESOLUTION = 1e-6
"""Of the span of the data: repetitions are not taken for more equal than that."""


def span(values: NDArray) -> float:
    """Return the range that values cover, in their unit."""
    return float(values.max() - values.min())


def amount(value: float, unit: str) -> str:
    """Write a difference with its unit; weighted ones count in stated standard deviations."""
    return format_quantity(value, unit) if unit else f"{value:.3g} stated standard deviations"


def probability(p: float) -> str:
    """Write a probability that may be too small for a number."""
    return f"p = {p:.2g}" if p > 0 else "p < 1e-300"


def aicc(rss: float, points: int, parameters: int, floor: float) -> float:
    """Return Akaike's information criterion with small-sample correction [1].

    ``n ln(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1)``, k with the variance of the noise

    Args:
        rss: Sum of squared (weighted) residuals.
        points: n.
        parameters: Fitted numbers without the variance.
        floor: Residual rms below which two laws are equally exact.

    Source: Burnham and Anderson, Model Selection and Multimodel Inference (2002), eq. 2.5 and section 7.4. Gaussian
        noise of one variance.
    """
    k = parameters + 1
    return points * math.log(max(rss / points, floor**2)) + 2 * k + 2 * k * (k + 1) / (points - k - 1)


def quantile(dof: float) -> float:
    """Return how many standard errors lie between estimate and end of the interval (Student's t) [1]."""
    tail = 0.5 + LEVEL / 2
    return float(ndtri(tail)) if math.isinf(dof) else float(stdtrit(dof, tail))


@dataclass(frozen=True)
class Noise:
    """What is known of the noise beside the residuals of a law.

    Attributes:
        variance: Of one (weighted) point.
        dof: Degrees of freedom it was estimated with; infinite for stated standard deviations.
        sum_squares: Part of any law's residual sum of squares that is noise; 0 for stated ones.
    """

    variance: float
    dof: float
    sum_squares: float


def repeated(groups: Sequence[object], values: NDArray, weights: NDArray | None = None) -> Noise | None:
    """Estimate the noise from points measured again under the same conditions (pure error); None without any.

    Args:
        groups: What tells the conditions apart, per point.
        values: Measured values.
        weights: 1/sigma of each point.
    """
    index = np.unique([str(group) for group in groups], return_inverse=True)[1]
    w = np.ones_like(values) if weights is None else weights
    total = np.bincount(index, w**2)
    mean = np.bincount(index, w**2 * values) / total
    dof = len(values) - len(total)
    if dof == 0:
        return None
    squares = float(((w * (values - mean[index])) ** 2).sum())
    smallest = (RESOLUTION * span(values * w)) ** 2
    return Noise(max(squares / dof, smallest), dof, squares)


def check_consistent(
    groups: Sequence[object], values: NDArray, residuals: NDArray, lines: NDArray, where: str, unit: str = "V"
) -> None:
    """Refuse points that were measured under the same conditions and differ by far more than all others scatter.

    Args:
        groups: What tells the conditions apart, per point.
        values: Measured values.
        residuals: Of the fit; their median size tells the noise, which one wrong point does not move.
        lines: Line of the file of each point.
        where: File, for messages.
        unit: Of the values; empty where they are weighted.

    Raises:
        InputError: Naming the two lines that lie farthest apart.

    Approximation: six standard deviations of a difference; Gaussian noise exceeds it once in 5e8 pairs.
    """
    allowed = max(6.0 * np.sqrt(2.0) * 1.4826 * float(np.median(np.abs(residuals))), 1e-3 * span(values))
    places: dict[object, list[int]] = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    for same in places.values():
        low, high = min(same, key=lambda i: values[i]), max(same, key=lambda i: values[i])
        apart = float(values[high] - values[low])
        if apart > allowed:
            first, second = sorted((int(lines[low]), int(lines[high])))
            raise InputError(
                f"points of the same conditions differ by {amount(apart, unit)}",
                where=f"{where}, lines {first} and {second}",
                expected=f"at most {amount(allowed, unit)}, six times the scatter of the other points",
                remedy="correct or remove one, or tell different cells apart in a cell column",
            )  # fmt: skip


@dataclass(frozen=True)
class Misfit:
    """Variance to compute intervals with, and what to say about the law's misfit.

    Attributes:
        variance: Of one (weighted) point.
        dof: Of that variance.
        note: None where the law explains the points.
    """

    variance: float
    dof: float
    note: str | None = None


def misfit(rss: float, dof: int, noise: Noise | None, *, law: str, unit: str, where: str, accept: bool) -> Misfit:
    """Compare the residuals of a law with the noise (lack-of-fit test).

    ``F = [(RSS - SS_noise) / (dof - dof_noise)] / variance``

    Args:
        rss: Sum of squared (weighted) residuals.
        dof: Points minus fitted numbers.
        noise: What is known of the noise; None compares nothing.
        law: Name of the law, for messages.
        unit: Unit of the residuals, for messages; empty when they are weighted.
        where: File, for messages.
        accept: Widen the intervals instead of refusing.

    Raises:
        InputError: If the law misses by more than ``MISFIT_RATIO`` times the noise, and that is no accident.

    Source: Draper and Smith, Applied Regression Analysis (1998), section 2.1; stated deviations: chi-squared test, and
        intervals widened by the Birge ratio.
    """
    own = Misfit(rss / dof, dof)
    if noise is None:
        return own
    stated = math.isinf(noise.dof)
    free = dof if stated else dof - int(noise.dof)
    if free <= 0:
        return Misfit(noise.variance, noise.dof)
    lacking = max(rss - noise.sum_squares, 0.0)
    f = lacking / free / noise.variance
    p = float(chdtrc(free, lacking / noise.variance) if stated else fdtrc(free, noise.dof, f))
    if p >= 10 * MISFIT_P:
        return Misfit(noise.variance, noise.dof) if stated else own
    widened = Misfit(max(lacking / free, rss / dof), free)
    ratio, size = math.sqrt(f), math.sqrt(noise.variance)
    told = "the stated standard deviations" if stated else "repeated points"
    seen = f"{format_quantity(size, unit)} of noise" if unit else "the noise"
    if p < MISFIT_P and ratio > MISFIT_RATIO and not accept:
        raise InputError(
            f"the {law} law misses the points by {ratio:.3g} times {seen} that {told} tell", where=where,
            expected=f"at most {MISFIT_RATIO:g} times",
            remedy="try another law, leave out the range where it fails, or accept the misfit with wider intervals",
        )  # fmt: skip
    return Misfit(
        widened.variance,
        widened.dof,
        f"the {law} law misses the points by {ratio:.2g} times {seen} that {told} tell ({probability(p)});"
        " the intervals are widened by it",
    )


def runs_note(order: ArrayLike, residuals: NDArray, along: str, floor: float) -> str | None:
    """Say so if residuals keep their sign for longer than chance allows: the law misses a trend.

    Args:
        order: What to sort the residuals by.
        residuals: Measured minus fitted.
        along: Name of ``order``.
        floor: Residual rms below which all is rounding.

    Source: Wald and Wolfowitz, Annals of Mathematical Statistics 11, 147 (1940), normal approximation; at least ten
        residuals of each sign.
    """
    if float(np.sqrt(np.mean(residuals**2))) <= floor:
        return None
    up = residuals[np.argsort(order, kind="stable")] > 0
    n, m = int(up.sum()), int((~up).sum())
    if min(n, m) < 10:
        return None
    mean = 2 * n * m / (n + m) + 1
    deviation = math.sqrt((mean - 1) * (mean - 2) / (n + m - 1))
    z = (1 + np.count_nonzero(up[1:] != up[:-1]) - mean) / deviation
    if z > -4:
        return None
    return f"the residuals follow a trend along {along} (runs test, z = {z:.1f}): the law misses something systematic"


def simplest(scores: Sequence[float], parameters: Sequence[int]) -> int:
    """Return which law to take: the one of fewest numbers within 2 units of the best criterion.

    Source: Burnham and Anderson (2002), section 2.6: laws within 2 units have substantial support.
    """
    best = min(scores)
    return min((i for i, s in enumerate(scores) if s <= best + 2), key=lambda i: (parameters[i], scores[i]))
