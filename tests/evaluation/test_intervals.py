"""Intervals: by hand, against SciPy, and by how often they hold the truth."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fllm.evaluation import intervals, metrics
from fllm.evaluation.intervals import (
    bootstrap_interval,
    calibration_by_chance,
    calibration_interval,
    mcnemar,
    over_redraws,
    percentile_interval,
    share_interval,
)
from fllm.evaluation.metrics import Array


def weights_of(cases: int, seed: int = 0, draws: int = 50) -> Array:
    return over_redraws(lambda weights: {"weights": weights}, cases, seed=seed, draws=draws)["weights"]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_bootstrap_interval_holds_the_mean_and_shrinks(share: float) -> None:
    widths = []
    for cases in (20, 100, 1000):
        flags = [i < share * cases for i in range(cases)]
        low, high = bootstrap_interval(flags, seed=0)
        assert 0 <= low <= np.mean(flags) <= high <= 1
        assert bootstrap_interval(flags, seed=0) == (low, high)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] if 0 < share < 1 else widths == [0, 0, 0]


def test_bootstrap_interval_has_the_width_of_a_binomial() -> None:
    low, high = bootstrap_interval([i % 2 == 0 for i in range(400)], seed=1)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.15)


def test_redraws_are_those_of_the_accuracy() -> None:
    """All metrics are redrawn as the accuracy is, to the last case."""
    flags = np.arange(37) % 3 == 0
    found = over_redraws(lambda weights: {"accuracy": metrics.mean_over_cases(flags, weights)}, 37, seed=5)["accuracy"]
    assert percentile_interval(found) == bootstrap_interval(flags, seed=5)


def test_redraws_hold_the_test_set_first_and_as_many_cases_each() -> None:
    weights = weights_of(9)
    assert weights.shape == (51, 9)
    assert (weights[0] == 1).all() and (weights.sum(axis=1) == 9).all() and (weights >= 0).all()
    assert np.array_equal(weights, weights_of(9))
    assert not np.array_equal(weights, weights_of(9, seed=1))
    assert len(np.unique(weights, axis=0)) > 45


def test_blocks_of_redraws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    flags, sure = np.arange(13) / 13, np.linspace(0.3, 1, 13)

    def all_of() -> tuple[Array, tuple[float, float], Array]:
        return weights_of(13), bootstrap_interval(flags, seed=2), calibration_by_chance(sure, seed=2, draws=50)

    whole = all_of()
    for block in (1, 13 * 7, 13 * 50):
        monkeypatch.setattr(intervals, "_BLOCK", block)
        blocked = all_of()
        assert np.array_equal(blocked[0], whole[0])
        assert blocked[1] == whole[1]
        assert blocked[2] == pytest.approx(whole[2], rel=1e-12)


def test_every_case_is_drawn_alike() -> None:
    """Weights are binomial (n, 1/n): mean 1, variance 1 - 1/n, covariance -1/n."""
    cases, draws = 20, 2000
    weights = weights_of(cases, draws=draws)[1:]
    error = math.sqrt((1 - 1 / cases) / draws)
    assert (np.abs(weights.mean(axis=0) - 1) < 4.5 * error).all()
    assert np.cov(weights.T)[np.triu_indices(cases, 1)].mean() == pytest.approx(-1 / cases, rel=0.1)


def coverage(statistic: str, repeats: int, cases: int) -> float:
    """Share of made-up test sets whose interval holds the number of the population they come from."""
    rng = np.random.default_rng(7)
    table = np.array([[0.32, 0.05, 0.03], [0.06, 0.24, 0.0], [0.04, 0.08, 0.18]])  # class, choice
    flat, held = np.arange(9), 0
    everyone = np.repeat(flat, (table.ravel() * 100).round().astype(int))
    accuracy, f1 = np.trace(table), metrics.macro_f1(everyone // 3, everyone % 3, 3)
    for repeat in range(repeats):
        truth, chosen = np.divmod(rng.choice(flat, size=cases, p=table.ravel()), 3)

        def measure(weights: Array, truth: Array = truth, chosen: Array = chosen) -> dict[str, Array]:
            return {
                "accuracy": metrics.accuracy(truth, chosen, weights),
                "macro_f1": metrics.mean_f1(truth, chosen, 3, weights),
            }

        found = percentile_interval(over_redraws(measure, cases, seed=repeat, draws=200)[statistic])
        assert found is not None
        held += found[0] <= {"accuracy": accuracy, "macro_f1": f1}[statistic] <= found[1]
    return held / repeats


@pytest.mark.parametrize("statistic", ["accuracy", "macro_f1"])
def test_intervals_hold_the_truth_as_often_as_they_say(statistic: str) -> None:
    repeats = 300
    z = (coverage(statistic, repeats, cases=120) - 0.95) / math.sqrt(0.95 * 0.05 / repeats)
    assert -3 < z < 2.5  # percentile intervals of 120 cases are a little too narrow


def test_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(0)
    ideal = rng.random(200) < 0.8
    hardware = ideal ^ (rng.random(200) < 0.05)

    def measure(weights: Array) -> dict[str, Array]:
        return {"a": metrics.mean_over_cases(ideal, weights), "b": metrics.mean_over_cases(hardware, weights)}

    found = over_redraws(measure, 200, seed=0)
    paired = percentile_interval(found["b"] - found["a"])
    unpaired = percentile_interval(found["b"] - np.concatenate([found["a"][:1], found["a"][1:][::-1]]))
    assert paired is not None and unpaired is not None
    assert paired[1] - paired[0] < 0.6 * (unpaired[1] - unpaired[0])


def test_percentiles_by_hand() -> None:
    values = np.array([50.0, *range(101)])
    assert percentile_interval(values) == pytest.approx((2.5, 97.5))
    assert percentile_interval(np.array([50.0, *range(101), math.nan, math.nan])) == pytest.approx((2.5, 97.5))


@pytest.mark.parametrize("values", [[math.nan, 1.0, 2.0], [1.0, math.nan], [1.0, 1.0, math.inf], [math.inf, 1.0]])
def test_number_that_is_not_known_has_no_interval(values: list[float]) -> None:
    assert percentile_interval(np.array(values)) is None
    assert calibration_interval(np.array(values), [0.1]) is None


@pytest.mark.parametrize("cases", [1, 2, 7, 25, 400])
@pytest.mark.parametrize("right", [0, 1])
def test_share_of_cases_that_came_out_alike_is_exact(cases: int, right: int) -> None:
    found = share_interval(np.full(100, float(right)), cases)
    exact = binomtest(right * cases, cases).proportion_ci(0.95, method="exact")
    assert found == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_other_shares_are_by_percentiles() -> None:
    values = np.array([0.5, *np.linspace(0, 1, 101)])
    assert share_interval(values, 30) == percentile_interval(values) == pytest.approx((0.025, 0.975))
    assert share_interval(np.array([math.nan, 1.0]), 0) is None


# ---- calibration


def calibration_coverage(overconfidence: float, repeats: int = 150, cases: int = 150) -> tuple[float, float]:
    """Share of intervals, and of plain percentile intervals, that hold the error of the population."""
    rng, found = np.random.default_rng(11), np.zeros(2)
    drawn = np.clip(rng.beta(4, 1.2, size=400_000), 0.3, 1)
    gap = np.bincount(metrics.bin_of(drawn), np.maximum(drawn - overconfidence, 0) - drawn, minlength=15)
    true = np.abs(gap).sum() / len(drawn)
    for repeat in range(repeats):
        sure = rng.choice(drawn, size=cases)
        right = rng.random(cases) < sure - overconfidence

        def measure(weights: Array, right: Array = right, sure: Array = sure) -> dict[str, Array]:
            return {"ece": metrics.expected_calibration_error(right, sure, weights)}

        values = over_redraws(measure, cases, seed=repeat, draws=200)["ece"]
        ours = calibration_interval(values, calibration_by_chance(sure, seed=repeat, draws=200))
        plain = percentile_interval(values)
        assert ours is not None and plain is not None
        found += [ours[0] <= true <= ours[1], plain[0] <= true <= plain[1]]
    return float(found[0] / repeats), float(found[1] / repeats)


@pytest.mark.parametrize(("overconfidence", "least", "most_of_plain"), [(0.0, 0.9, 0.05), (0.05, 0.8, 0.05)])
def test_calibration_interval_holds_the_truth_where_percentiles_do_not(
    overconfidence: float, least: float, most_of_plain: float
) -> None:
    ours, plain = calibration_coverage(overconfidence)
    assert ours >= least  # measured .96 and .87
    assert plain <= most_of_plain  # measured 0


def test_calibration_interval_by_hand() -> None:
    values = np.array([0.10, *np.linspace(0.10, 0.20, 101)])  # 2.5 %: .1025, 97.5 %: .1975
    assert calibration_interval(values, [0.05]) == pytest.approx((0.0025, 0.0975))
    assert calibration_interval(values, [0.2]) == pytest.approx((0.0, 0.0975))  # chance alone scores more
    assert calibration_interval(values - 0.09, [0.0]) == pytest.approx((0.0, 0.0075))  # cut off at 0


def test_error_by_chance_shrinks_with_the_cases() -> None:
    """One bin: |mean of n Bernoulli deviates - p| has mean sqrt(2 p (1 - p) / (pi n))."""
    for cases in (100, 400):
        found = calibration_by_chance(np.full(cases, 0.7), seed=1).mean()
        assert found == pytest.approx(math.sqrt(2 * 0.21 / (math.pi * cases)), rel=0.08)
    again = calibration_by_chance(np.full(10, 0.7), seed=1, draws=5)
    assert np.array_equal(again, calibration_by_chance(np.full(10, 0.7), seed=1, draws=5))
    assert not np.array_equal(again, calibration_by_chance(np.full(10, 0.7), seed=2, draws=5))


# ---- McNemar


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[int], list[int]]:
    first = [1] * both + [1] * only_first + [0] * only_second + [0] * neither
    return first, [1] * both + [0] * only_first + [1] * only_second + [0] * neither


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (1, 9, 2 * (1 + 10) / 1024),
        (9, 1, 2 * (1 + 10) / 1024),
        (3, 12, 2 * (1 + 15 + 105 + 455) / 2**15),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p_value: float) -> None:
    found = mcnemar(*answers(20, only_first, only_second, 4))
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == pytest.approx(p_value, rel=1e-9)


def test_mcnemar_of_a_large_table() -> None:
    """Discordant 121 and 59, an example of statsmodels, by exact fractions."""
    tail = sum(Fraction(math.comb(180, k)) for k in range(60)) / Fraction(2**180)
    assert mcnemar(*answers(101, 121, 59, 33)).p_value == pytest.approx(float(2 * tail), rel=1e-6)
    assert mcnemar(*answers(101, 121, 59, 33)).p_value == pytest.approx(4.434e-6, rel=1e-3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_asks_only_the_cases_that_differ(both: int, only_first: int, only_second: int) -> None:
    found = mcnemar(*answers(both, only_first, only_second, 3))
    assert found.p_value == mcnemar(*answers(0, only_first, only_second, 0)).p_value
    assert found.p_value == pytest.approx(mcnemar(*answers(both, only_second, only_first, 3)).p_value)
    assert 0 < found.p_value <= 1
