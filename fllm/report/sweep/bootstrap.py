"""Intervals that cover dies and the finite test set at once: both are redrawn, the same for all points of a seed.

With ``c`` test cases and ``n`` dies, one draw takes c cases and n - 1 dies with replacement and scores every point, and
the ideal device, on them. Differences of two points, and the drop below the ideal device, therefore are paired.

Source: Owen, Annals of Applied Statistics 1, 386 (2007): redrawing both ways of a table, slightly conservative. Rao and
Wu, Journal of the American Statistical Association 83, 231 (1988): n - 1 of n makes the variance of few dies unbiased.
Approximation: seeds are not redrawn; two or three of them would say little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fllm.report.sweep.points import Point, Row

DRAWS = 1000
_KEY = 20_070_806  # any fixed number: the same result gives the same page
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Accuracy of every point in every draw [1], shape (draws, points); NaN where a point has no case-wise record.

    Attributes:
        accuracy: On the emulated device, mean over dies and seeds.
        ideal: On the ideal device, same cases.
    """

    accuracy: Array
    ideal: Array

    @property
    def drop(self) -> Array:
        """Accuracy lost against the ideal device [1]."""
        return self.ideal - self.accuracy


def bootstrap(points: Sequence[Point], result: Mapping[str, Any], draws: int = DRAWS) -> Draws:
    """Redraw test cases and dies of every seed and score all points on them.

    Args:
        points: As :func:`~fllm.report.sweep.points.read_points` returns them.
        result: The sweep, which knows the number of test cases.
        draws: Number of draws.
    """
    sums = np.zeros((2, draws, len(points)))
    seeds_known = np.zeros((2, len(points)))
    for seed in sorted({row["seed"] for point in points for row in point.rows}):
        cases = _test_cases(result, seed)
        if not cases:
            continue
        same = [replace(point, rows=tuple(_with_cases(point, cases_of(points, seed)))) for point in points]
        for which, scored in enumerate(_one_seed(same, seed, cases, draws)):
            known = ~np.isnan(scored[0])
            sums[which][:, known] += scored[:, known]
            seeds_known[which] += known
    with np.errstate(invalid="ignore"):
        accuracy, ideal = sums / np.where(seeds_known > 0, seeds_known, np.nan)[:, None, :]
    return Draws(accuracy, ideal)


def cases_of(points: Sequence[Point], seed: int) -> str | None:
    """Return which test cases the base device of a seed was scored on; of a sweep without it, the first point."""
    ranked = sorted(points, key=lambda point: not point.base)
    return next((row.get("cases_sha256") for point in ranked for row in point.rows if row["seed"] == seed), None)


def _with_cases(point: Point, cases: str | None) -> list[Row]:
    """Return the rows that are scored on certain cases: others cannot be paired with them."""
    return [row for row in point.rows if row.get("cases_sha256") == cases]


def interval_of(draws: Array) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of the draws of one number; None where it has none."""
    if not draws.size or np.isnan(draws).any():
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def flags(text: str | None, cases: int) -> NDArray[np.uint8] | None:
    """Read the hexadecimal record of right and wrong cases; None where it is missing or of another length."""
    if not text or len(text) != -(-cases // 4):
        return None
    packed = np.frombuffer(bytes.fromhex(text + "0" * (len(text) % 2)), dtype=np.uint8)
    return np.unpackbits(packed)[:cases]


def _one_seed(points: Sequence[Point], seed: int, cases: int, draws: int) -> tuple[Array, Array]:
    """Score all points on the draws of one seed; sums of whole numbers, so equal on every machine."""
    right, known, ideal, ideal_known = _records(points, seed, cases)
    dies = len(right)
    rng = np.random.default_rng([_KEY, seed])
    drawn_cases = rng.multinomial(cases, np.full(cases, 1.0 / cases), size=draws).astype(np.float32)
    drawn_dies = rng.multinomial(max(dies - 1, 1), np.full(dies, 1.0 / dies), size=draws).astype(np.float64)
    hits, tried = np.zeros((draws, len(points))), np.zeros((draws, len(points)))
    hits_all = np.zeros((draws, len(points)))
    for die in range(dies):
        scored = (drawn_cases @ right[die].T).astype(np.float64)
        hits += drawn_dies[:, die, None] * scored
        tried += drawn_dies[:, die, None] * known[die]
        hits_all += scored
    none_drawn = tried == 0  # a point that has few of the dies so far
    hits, tried = np.where(none_drawn, hits_all, hits), np.where(none_drawn, known.sum(axis=0), tried)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(tried > 0, hits / (cases * tried), np.nan)
        on_ideal = np.where(ideal_known, (drawn_cases @ ideal.T).astype(np.float64) / cases, np.nan)
    return accuracy, on_ideal


def _records(points: Sequence[Point], seed: int, cases: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return right answers (dies, points, cases) and on the ideal device (points, cases), each with what is known."""
    numbers = sorted({row["die"] for point in points for row in point.rows if row["seed"] == seed})
    right = np.zeros((len(numbers), len(points), cases), dtype=np.float32)
    known = np.zeros((len(numbers), len(points)))
    ideal, ideal_known = np.zeros((len(points), cases), dtype=np.float32), np.zeros(len(points), dtype=bool)
    for place, point in enumerate(points):
        for row in point.rows:
            if row["seed"] == seed:
                _record(row, (numbers.index(row["die"]), place), cases, (right, known, ideal, ideal_known))
    return right, known, ideal, ideal_known


def _record(row: Row, place: tuple[int, int], cases: int, into: tuple[NDArray, NDArray, NDArray, NDArray]) -> None:
    right, known, ideal, ideal_known = into
    found, on_ideal = flags(row.get("correct"), cases), flags(row.get("correct_ideal"), cases)
    if found is not None:
        right[place], known[place] = found, 1
    if on_ideal is not None:
        ideal[place[1]], ideal_known[place[1]] = on_ideal, True


def _test_cases(result: Mapping[str, Any], seed: int) -> int:
    """Return the number of test cases of a seed; 0 when unknown."""
    for adapter in result.get("adapters") or []:
        if adapter.get("seed") == seed and adapter.get("test_cases"):
            return int(adapter["test_cases"])
    return int((result.get("data") or {}).get("num_test") or 0)
