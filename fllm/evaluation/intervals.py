"""How far the numbers of a finite test set can be trusted: bootstrap over its cases, exact tests of paired answers.

Test cases are redrawn, dies are not: an interval of a mean over dies holds for these chips and other cases like these.
The redraws follow from the seed and the number of cases alone, so that models scored on the same cases are redrawn
alike and their differences are paired.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals. Davison and
Hinkley, Bootstrap Methods and their Application (1997), section 5.2: basic intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fllm.evaluation.metrics import BINS, Array, bin_of
from hwsim.randomness import seed_of

DRAWS = 2000
"""Redraws of the test cases."""
_ENDS = (0.025, 0.975)
_BLOCK = 1_000_000  # cases in the redraws that are held at a time

Interval = tuple[float, float]


@dataclass(frozen=True)
class McNemar:
    """Two answers to each of the same cases.

    Attributes:
        only_first: Cases that only the first answered right.
        only_second: Cases that only the second answered right.
        p_value: Probability of a split at least as uneven if neither were better [1], two-sided.
    """

    only_first: int
    only_second: int
    p_value: float


def bootstrap_interval(correct: Sequence[float], *, seed: int, draws: int = DRAWS) -> Interval:
    """Return the 95 % percentile interval of an accuracy over redraws of the test cases."""
    flags = np.asarray(correct, dtype=float)
    rng = np.random.default_rng(seed_of(seed, "bootstrap", len(flags)))
    parts = [flags[rng.integers(len(flags), size=(rows, len(flags)))].mean(axis=1) for rows in _rows(len(flags), draws)]
    low, high = np.quantile(np.concatenate(parts), _ENDS)
    return float(low), float(high)


def over_redraws(
    measure: Callable[[Array], Mapping[str, Array]], cases: int, *, seed: int, draws: int = DRAWS
) -> dict[str, Array]:
    """Measure a test set and its redraws, a block of them at a time, so that memory stays small.

    Args:
        measure: Is given (rows, cases) how often each row holds each case, and returns an array of as many rows by
            name. Its first row of all is the test set itself.
        cases: Number of test cases.
        seed: Key of the redraws.
        draws: Redraws.

    Returns:
        Each array, (1 + draws, ...).
    """
    rng = np.random.default_rng(seed_of(seed, "bootstrap", cases))
    found = [measure(np.ones((1, cases)))]
    for rows in _rows(cases, draws):
        drawn = rng.integers(cases, size=(rows, cases))
        drawn += cases * np.arange(len(drawn))[:, None]
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        found.append(measure(weights.astype(float)))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _rows(cases: int, draws: int) -> list[int]:
    """Return the numbers of redraws to hold at a time; the stream of a generator does not depend on them."""
    most = max(1, _BLOCK // cases)
    return [min(most, draws - start) for start in range(0, draws, most)]


def percentile_interval(values: Array) -> Interval | None:
    """Return the 95 % percentile interval of a number.

    Args:
        values: The number on the test set itself, then on each redraw; those that lack what it needs are NaN.

    Returns:
        The interval, or None where the number is not defined on the test set or is not finite.
    """
    drawn = values[1:][~np.isnan(values[1:])]
    if not np.isfinite(values[0]) or not drawn.size or not np.isfinite(drawn).all():
        return None
    low, high = np.quantile(drawn, _ENDS)
    return float(low), float(high)


def share_interval(values: Array, cases: int) -> Interval | None:
    """Return the 95 % interval of a share of cases: by percentiles, and exact where all cases came out alike.

    Redraws of cases that came out alike are alike as well, which would say that nothing is uncertain.

    Args:
        values: As in :func:`percentile_interval`.
        cases: Cases that the share is of.

    Source: Clopper and Pearson, Biometrika 26, 404 (1934), for 0 and for all of the cases.
    """
    if values[0] not in (0.0, 1.0) or not cases:
        return percentile_interval(values)
    far = float(_ENDS[0] ** (1.0 / cases))
    return (far, 1.0) if values[0] else (0.0, 1.0 - far)


def calibration_interval(values: Array, chance: ArrayLike) -> Interval | None:
    """Return the 95 % interval of an expected calibration error.

    Each redraw adds as much upward bias as the test set did, so percentiles would lie above the truth: of a calibrated
    model, none of them holds it. The basic interval, ``[2 v - high, 2 v - low]`` cut off at 0, takes the bias off.
    Where a calibrated model scores the value by chance, 0 belongs to the interval. In simulations of 150 cases, .85 to
    .96 of these intervals hold the truth (percentiles: none to .9).

    Args:
        values: As in :func:`percentile_interval`.
        chance: The error that a calibrated model scores in each of many repeats, as :func:`calibration_by_chance` says.
    """
    found = percentile_interval(values)
    if found is None:
        return None
    value = float(values[0])
    by_chance = value <= np.quantile(np.asarray(chance), _ENDS[1])
    return 0.0 if by_chance else max(0.0, 2 * value - found[1]), max(0.0, 2 * value - found[0])


def calibration_by_chance(confidence: Array, *, seed: int, draws: int = DRAWS) -> Array:
    """Return the expected calibration error [1] that a perfectly calibrated model scores by chance, (draws,).

    Args:
        confidence: (cases,) probability of the chosen class, by which each repeat decides who is right.
        seed: Key of the repeats.
        draws: Repeats.

    Source: Broecker and Smith, Weather and Forecasting 22, 651 (2007): consistency resampling.
    """
    rng = np.random.default_rng(seed_of(seed, "calibrated", len(confidence)))
    in_bin = (bin_of(confidence)[:, None] == np.arange(BINS)).astype(float)
    parts = []
    for rows in _rows(len(confidence), draws):
        right = rng.random((rows, len(confidence))) < confidence
        parts.append(np.abs((right - confidence) @ in_bin).sum(axis=1))
    return np.concatenate(parts) / len(confidence)


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Test whether two models answer the same cases equally well, by the cases on which they differ.

    Exact: given that they differ on n cases, either is right on each with probability 1/2 if they are equally good.

    Args:
        first: (cases,) whether the first model is right.
        second: (cases,) whether the second is.

    Source: McNemar, Psychometrika 12, 153 (1947); the exact form is the sign test.
    """
    from scipy.stats import binomtest

    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    differ = only_first + only_second
    p_value = float(binomtest(only_first, differ, 0.5).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p_value)
