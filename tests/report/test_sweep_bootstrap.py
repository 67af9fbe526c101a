"""Intervals over dies and test cases: exact records, paired draws, and how often they cover the truth."""

import time

import numpy as np
import pytest

from fllm.report.sweep.bootstrap import bootstrap, flags, interval_of
from fllm.report.sweep.facts import analyse
from fllm.report.sweep.points import read_keys, read_points
from fllm.report.sweep.required import required_values
from tests.report.sweep_example import TAUS, _hex, grid, hand_made, make_sweep


@pytest.mark.parametrize("cases", [1, 3, 4, 5, 7, 8, 9, 200])
def test_a_record_of_cases_reads_back(cases: int) -> None:
    right = np.random.default_rng(cases).random(cases) < 0.6
    assert (flags(_hex(right), cases) == right).all()


def test_first_case_is_the_first_bit() -> None:
    assert flags("a4", 7).tolist() == [1, 0, 1, 0, 0, 1, 0]
    assert flags("8", 1).tolist() == [1]


@pytest.mark.parametrize("text", [None, "", "a", "a4c"])
def test_a_record_of_another_length_is_not_known(text: str | None) -> None:
    assert flags(text, 7) is None


def test_draws_are_centred_on_the_accuracies() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=TAUS), dies=8))
    for place, point in enumerate(sweep.points):
        drawn = sweep.draws.accuracy[:, place]
        assert abs(drawn.mean() - point.accuracy) < 4 * drawn.std() / np.sqrt(len(drawn))
        assert sweep.draws.drop[:, place].mean() == pytest.approx(point.drop, abs=0.005)


def test_differences_are_paired() -> None:
    """Two devices that get the same cases right differ by exactly nothing, however few cases there are."""
    sweep = analyse(hand_made("readout.bits", [5, 6], [[70, 74], [70, 74]], ideal=80))
    assert sweep.difference_interval(0, 1) == (0.0, 0.0)
    low, high = sweep.accuracy_interval(0) or (0, 0)
    assert high - low > 0.1
    low, high = sweep.drop_interval(0) or (0, 0)
    assert 0.0 < low < sweep.points[0].drop < high < 0.2


def test_variance_is_that_of_cases_and_dies() -> None:
    """One die: that of a share; dies that differ: s^2/n more, as drawing n - 1 of n gives it."""
    one = analyse(hand_made("readout.bits", [5], [[70]], ideal=80)).draws.accuracy[:, 0]
    assert one.var() == pytest.approx(0.7 * 0.3 / 100, rel=0.15)
    all_right = [[40, 60]]
    result = hand_made("readout.bits", [5], all_right, ideal=80, cases=100)
    keys = read_keys(result)
    drawn = bootstrap(read_points(result, keys), result, draws=20000).accuracy[:, 0]
    within = (0.4 * 0.6 + 0.6 * 0.4) / 2 / 100  # of the cases, given the die that was drawn
    between = 0.02 / 2  # s^2/n of 0.4 and 0.6
    assert drawn.var() == pytest.approx(within + between, rel=0.05)


def test_intervals_cover_the_truth() -> None:
    """Dies and cases both vary; about 95 of 100 intervals hold the mean of their population, rather more than less."""
    rng, trials, cases, dies = np.random.default_rng(3), 200, 80, 4
    result = hand_made("readout.bits", [5], [[0] * dies], ideal=1, cases=cases)
    keys, covered = read_keys(result), 0
    for _ in range(trials):
        ease = rng.normal(0.8, 1.0, cases)
        for row in result["rows"]:
            right = ease + rng.normal(0.0, 0.25) + rng.normal(0.0, 1.0, cases) > 0
            row["correct"] = _hex(right)
        low, high = interval_of(bootstrap(read_points(result, keys), result, draws=400).accuracy[:, 0]) or (0, 0)
        # P(0.8 + a + b + e > 0) with variances 1, 1/16 and 1
        truth = 0.5 * (1.0 + float(np.vectorize(__import__("math").erf)(0.8 / np.sqrt(2 * (2 + 1 / 16)))))
        covered += low <= truth <= high
    assert 0.90 <= covered / trials <= 1.0


def test_draws_depend_on_nothing_else() -> None:
    """The same result gives the same draws, and a point's draws do not depend on the other points."""
    sweep = make_sweep(grid(retention__tau=TAUS))
    one, two = analyse(sweep), analyse(sweep)
    assert (one.draws.accuracy == two.draws.accuracy).all()
    alone = dict(sweep, points=sweep["points"][1:2], rows=[row for row in sweep["rows"] if row["point"] == 1])
    assert (analyse(alone).draws.accuracy[:, 0] == one.draws.accuracy[:, 1]).all()


def test_points_that_are_not_finished_are_drawn_with_the_dies_they_have() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=TAUS), dies=4, finished=5))
    assert not np.isnan(sweep.draws.accuracy[:, :2]).any()
    assert np.isnan(sweep.draws.accuracy[:, 2:]).all()
    assert sweep.accuracy_interval(2) is None
    assert sweep.draws.accuracy[:, 1].mean() == pytest.approx(sweep.points[1].accuracy, abs=0.01)


def test_without_records_there_are_no_intervals() -> None:
    result = make_sweep(grid(retention__tau=TAUS))
    for row in result["rows"]:
        row["correct"] = None
    sweep = analyse(result)
    assert sweep.accuracy_interval(0) is sweep.drop_interval(0) is None
    assert sweep.points[0].accuracy_interval is not None


def test_a_large_sweep_is_quick() -> None:
    points = grid(retention__tau=TAUS, readout__bits=[3, 4, 5, 6, 7, 8])
    result = make_sweep(points, dies=8)
    start = time.perf_counter()
    required_values(analyse(result))
    assert time.perf_counter() - start < 2.0
