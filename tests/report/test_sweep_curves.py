"""Curves hold the other keys at the base device's values; accuracy is monotone unless a paired difference says no."""

import pytest

from fllm.report.sweep.curves import curves, held_on, neighbours, rises, shown_line, spread_values, violations
from fllm.report.sweep.facts import analyse
from tests.report.sweep_example import TAUS, grid, hand_made, make_sweep


def test_one_line_for_each_value_of_the_second_key() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5, 8])))
    along_tau, along_bits = curves(sweep)
    assert [line.value for line in along_tau.lines] == [3, 5, 8]
    assert along_tau.lines[along_tau.main].value == 5
    assert [line.value for line in along_bits.lines] == [0.0002, 0.001, 0.005, 0.05]
    assert along_bits.lines[along_bits.main].value == 0.005
    for curve in (along_tau, along_bits):
        for line in curve.lines:
            points = [sweep.points[place] for place in line.places]
            assert [point.values[curve.key.name] for point in points] == list(curve.key.values)
            assert {point.values[curve.second.name] for point in points} == {line.value}


def test_further_keys_are_held_at_the_nearest_value() -> None:
    points = grid(retention__tau=TAUS, readout__bits=[4, 8], variability__gain_sigma=[0.0, 0.04, 0.2])
    sweep = analyse(make_sweep(points))
    along_tau = curves(sweep)[0]
    assert [(key.name, value) for key, value in along_tau.held] == [("variability.gain_sigma", 0.04)]
    line = along_tau.lines[along_tau.main]
    assert line.value == 4
    assert [(key.name, value) for key, value in held_on(along_tau, line)] == [
        ("readout.bits", 4),
        ("variability.gain_sigma", 0.04),
    ]
    assert {sweep.points[place].values["variability.gain_sigma"] for place in line.places} == {0.04}


def test_many_values_are_thinned_and_keep_the_base_device() -> None:
    bits = list(range(1, 13))
    along_tau = curves(analyse(make_sweep(grid(retention__tau=TAUS[:2], readout__bits=bits))))[0]
    values = [line.value for line in along_tau.lines]
    assert len(values) == 6 and values == sorted(values)
    assert {1, 5, 12} <= set(values)
    assert along_tau.lines[along_tau.main].value == 5


@pytest.mark.parametrize("keep", range(20))
def test_spread_values_hold_the_ends_and_the_one_to_keep(keep: int) -> None:
    found = spread_values(list(range(20)), 6, keep)
    assert found == sorted(set(found)) and len(found) == 6
    assert {0, 19, keep} <= set(found)


def test_an_added_point_is_on_no_curve() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=["1 ms", "50 ms"])))
    assert sweep.points[2].added and sweep.points[2].base
    assert curves(sweep)[0].lines[0].places == (0, 1)


@pytest.mark.parametrize("design", ["list", "random", "sobol"])
def test_keys_that_vary_together_have_no_curves(design: str) -> None:
    points = grid(retention__tau=TAUS, readout__bits=[3, 5])
    assert curves(analyse(make_sweep(points, design=design))) == []
    assert len(curves(analyse(make_sweep(grid(retention__tau=TAUS), design=design)))) == 1


def test_points_without_accuracy_are_left_out_of_lines() -> None:
    failed = {1: "no memory"}
    line = curves(analyse(make_sweep(grid(retention__tau=TAUS), failed=failed, finished=9)))[0].lines[0]
    assert line.places == (0, 2)
    assert line.failed == (1,)


def test_another_line_stands_in_for_one_without_points() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=["0.2 ms", "5 ms"], readout__bits=[3, 5, 8]), finished=12))
    along_bits = curves(sweep)[1]
    assert along_bits.lines[along_bits.main].places == ()
    assert shown_line(along_bits).value == 0.0002


@pytest.mark.parametrize(("hits", "way"), [([60, 65, 70], True), ([70, 65, 60], False), ([60, 60, 60], True)])
def test_direction(hits: list[int], way: bool) -> None:
    sweep = analyse(hand_made("readout.bits", [3, 4, 5], [[n, n] for n in hits], ideal=80))
    assert rises(sweep, curves(sweep)[0]) is way


def test_a_clear_step_the_wrong_way_is_a_violation() -> None:
    sweep = analyse(hand_made("readout.bits", [3, 4, 5, 6], [[40, 41], [70, 70], [58, 59], [75, 76]], ideal=80))
    curve = curves(sweep)[0]
    assert neighbours(curve) == [(0, 1), (1, 2), (2, 3)]
    (found,) = violations(sweep, curve)
    assert (found.before, found.after) == (1, 2)
    assert found.difference == pytest.approx(-0.115)
    assert found.interval[0] < -0.115 < found.interval[1] < 0


def test_a_step_within_its_interval_is_none() -> None:
    sweep = analyse(hand_made("readout.bits", [3, 4, 5], [[60, 60], [71, 70], [70, 70]], ideal=80))
    assert violations(sweep, curves(sweep)[0]) == []


def test_for_a_falling_key_a_clear_rise_is_the_violation() -> None:
    hits = [[70, 70], [50, 50], [65, 65], [30, 30]]
    sweep = analyse(hand_made("variability.gain_sigma", [0.01, 0.02, 0.05, 0.1], hits, ideal=80))
    (found,) = violations(sweep, curves(sweep)[0])
    assert (found.before, found.after) == (1, 2)
    assert found.interval[0] > 0
