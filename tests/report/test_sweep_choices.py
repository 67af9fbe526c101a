"""Pareto front, best and cheapest points, parts of the energy, and what the physics paragraph says."""

import pytest

from device_models.costs import PARTS
from fllm.report.sweep.answer import findings
from fllm.report.sweep.cost_figures import draw_front
from fllm.report.sweep.costs import OTHER, changing, energy_bars, merged_parts, parts_of_point
from fllm.report.sweep.facts import analyse
from fllm.report.sweep.front import changes_energy, choose, pareto_front
from fllm.report.sweep.method import limits
from fllm.report.sweep.physics import find_fall, physics
from fllm.report.sweep.tables import points_bounds
from fllm.sweeps.table import energy_column
from tests.report.sweep_example import SLUGS, TAUS, grid, hand_made, make_sweep


def test_front_of_known_points() -> None:
    hits, energies = [70, 75, 74, 75, 80, 60], [1.0, 2.0, 3.0, 2.0, 5.0, 1.0]
    result = hand_made("readout.bits", [3, 4, 5, 6, 7, 8], [[n] for n in hits], ideal=80, energies=energies)
    assert pareto_front(analyse(result)) == [0, 1, 4]


def test_a_point_without_energy_is_on_no_front() -> None:
    result = hand_made("readout.bits", [3, 4], [[70], [75]], ideal=80, energies=[1.0, 2.0])
    result["rows"][1]["energy_per_token_j"] = None
    assert pareto_front(analyse(result)) == [0]
    assert pareto_front(analyse(make_sweep(grid(retention__tau=TAUS), finished=0))) == []


def test_energies_that_hardly_differ_do_not_count() -> None:
    """A longer latency leaks a little more on every device: 0.1 % is no reason to call one cheaper."""
    energies = [1.0e-7, 1.0002e-7, 1.0004e-7]
    sweep = analyse(hand_made("readout.bits", [3, 4, 5], [[70], [75], [74]], ideal=80, energies=energies))
    assert not changes_energy(sweep)
    assert pareto_front(sweep) == [1]
    assert choose(sweep).cheapest == 1


def test_the_ideal_device_is_no_design() -> None:
    """Its energy is the limit of thermal noise: beside it, no device would be on the front."""
    result = make_sweep(grid(device_model=["ideal", "gaincell_28nm", "gaincell_igzo"]))
    for row in result["rows"]:
        if row["device_model"] == "ideal":
            row["energy_per_token_j"] = 2e-11
    sweep = analyse(result)
    assert (sweep.known, sweep.designs) == ([0, 1, 2], [1, 2])
    assert 0 not in pareto_front(sweep) and choose(sweep).cheapest != 0 and choose(sweep).best != 0
    assert "Without the ideal device" in draw_front(sweep).caption
    only = dict(result, points=result["points"][:1], rows=result["rows"][:4])
    assert analyse(only).designs == [0], "alone it is all there is"


def test_prices_that_do_not_follow_a_key_are_named() -> None:
    result = make_sweep(grid(readout__bits=[3, 5]))
    result["device"]["values"].append(
        {"key": "cost.qk_mac", "value": "17.1 fJ", "kind": "derived", "source": "leroux2025"}
    )
    expected = "Prices of this device belong to readout.bits = 5 and do not follow it to other values."
    sweep = analyse(result)
    assert expected in limits(sweep) and expected in findings(sweep, choose(sweep), [])
    result["device"]["values"][-1]["source"] = "user"
    assert expected not in limits(analyse(result)), "a device that states its own prices"
    assert expected not in limits(analyse(make_sweep(grid(retention__tau=TAUS))))


def test_best_and_cheapest() -> None:
    hits, energies = [70, 79, 80, 80, 78], [0.5, 1.0, 3.0, 2.0, 0.9]
    result = hand_made("readout.bits", [3, 4, 5, 6, 7], [[n, n] for n in hits], ideal=80, energies=energies)
    choice = choose(analyse(result))
    assert choice.best == 3, "of two equally good ones the cheaper"
    assert choice.cheapest == 1, "exactly one point of accuracy below counts as within one point"
    assert choice.best_share == 1.0
    assert choose(analyse(make_sweep(grid(retention__tau=TAUS), finished=0))).best is None


def test_repeated_points_count_once() -> None:
    result = hand_made("readout.bits", [3, 4], [[70], [70]], ideal=80, energies=[1.0, 1.0])
    result["points"][1]["same_as"] = 0
    assert analyse(result).known == [0]


def test_parts_are_named_and_add_up() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=TAUS)))
    for place in sweep.known:
        parts = parts_of_point(sweep.points[place])
        assert set(parts) <= set(PARTS)
        assert list(parts) == [part for part in PARTS if part in parts], "in the order of reports"
        assert sum(parts.values()) == pytest.approx(sweep.points[place].energy)


def test_parts_are_found_by_the_columns_that_a_sweep_writes() -> None:
    result = make_sweep(grid(retention__tau=TAUS))
    names = {SLUGS[part]: energy_column(part) for part in PARTS}
    result["rows"] = [{names.get(key, key): value for key, value in row.items()} for row in result["rows"]]
    sweep = analyse(result)
    assert sum(parts_of_point(sweep.points[0]).values()) == pytest.approx(sweep.points[0].energy)


def test_small_parts_are_merged_with_their_sum() -> None:
    points = [{"a": 90.0, "b": 8.0, "c": 1.0, "d": 1.0}, {"a": 90.0, "b": 1.0, "c": 1.0, "d": 1.0}]
    kept, small = merged_parts(points)
    assert (kept, small) == (["a", "b"], ["c", "d"])
    kept, small = merged_parts([{"a": 98.0, "b": 2.0}])
    assert (kept, small) == (["a", "b"], []), "one small part needs no other name"
    kept, small = merged_parts([{f"part {n}": 1.0 for n in range(12)}])
    assert len(kept) == 8 and len(small) == 4
    assert OTHER not in kept


def test_energy_is_shown_along_the_first_key_that_changes_it() -> None:
    sweep = analyse(make_sweep(grid(variability__gain_sigma=[0.0, 0.1, 0.2], readout__bits=[3, 5])))
    bars = energy_bars(sweep)
    assert bars.key is not None and bars.key.name == "readout.bits"
    assert bars.names == ("3", "5")
    assert [(key.name, value) for key, value in bars.held] == [("variability.gain_sigma", 0.0)]
    assert [curve.key.name for curve in changing(sweep, "latency_per_token_s")] == ["readout.bits"]


def test_one_bar_where_no_key_changes_the_energy() -> None:
    sweep = analyse(make_sweep(grid(variability__gain_sigma=[0.0, 0.1, 0.2])))
    assert not changes_energy(sweep)
    bars = energy_bars(sweep)
    assert bars.key is None
    assert (bars.places, bars.names) == ((sweep.base,), ("as published",))


def test_telling_points_of_a_drawn_design() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5]), design="sobol"))
    bars = energy_bars(sweep)
    assert bars.key is None
    assert 2 <= len(bars.places) == len(set(bars.places)) <= 4
    assert any("as published" in name for name in bars.names)


def test_where_accuracy_begins_to_fall() -> None:
    sweep = analyse(hand_made("readout.bits", [3, 4, 5, 6], [[40, 40], [60, 60], [79, 80], [80, 79]], ideal=80))
    fall = find_fall(sweep, [0, 1, 2, 3])
    assert (fall.best, fall.kept, fall.fallen) == (3, 2, 1)
    flat = analyse(hand_made("readout.bits", [3, 4, 5], [[79, 80], [80, 79], [79, 80]], ideal=80))
    assert find_fall(flat, [0, 1, 2]).fallen is None


def test_decay_is_explained_with_the_numbers_of_the_sweep() -> None:
    text = " ".join(physics(analyse(make_sweep(grid(retention__tau=TAUS))))).replace("\xa0", " ")
    for expected in (
        "the oldest stored values are 74 tokens old: 740 µs, with a token every 10.0 µs",
        "At retention.tau = 0.2 ms a median cell keeps 2.5 %",  # exp(-0.74/0.2)
        "at 50 ms it keeps 98.5 %",
        "(ideal 78.5 %)",
        "In a full window of 1024 tokens the oldest token would keep < 0.1 % at 0.2 ms and 81.5 % at 50 ms",
        "Accuracy begins to fall between 5 ms and 1 ms: at 5 ms, where 86.2 % is left,",
    ):
        assert expected in text, expected


def test_flat_curves_are_called_flat() -> None:
    sweep = hand_made("retention.tau", TAUS, [[70, 71], [71, 70], [70, 71], [71, 70]], ideal=72)
    (text,) = physics(analyse(sweep))
    assert "No fall of accuracy is resolved within this sweep: no value can be told apart from 50\xa0ms." in text


def test_steps_of_the_readout_are_explained() -> None:
    (text,) = physics(analyse(make_sweep(grid(readout__bits=[3, 5, 8]))))
    text = text.replace("\xa0", " ")
    assert "one step of the readout (counter code) is 16.7 % at 3 bits" in text.lower()  # 1/(2^3 - 2)
    assert "0.4 % at 8 bits" in text  # 1/(2^8 - 2)


def test_no_physics_where_the_numbers_are_missing() -> None:
    result = make_sweep(grid(retention__tau=TAUS))
    for row in result["rows"]:
        row.update(dict.fromkeys(("signal_left", "oldest_age_s", "window_signal_left")))
    assert physics(analyse(result)) == []
    assert physics(analyse(make_sweep(grid(retention__tau=TAUS), finished=0))) == []
    assert physics(analyse(make_sweep(grid(variability__gain_sigma=[0.0, 0.1, 0.2])))) == []


def test_a_cloud_is_told_by_its_ends() -> None:
    points = grid(retention__tau=TAUS, readout__bits=[3, 5])
    (text,) = physics(analyse(make_sweep(points, design="random")))
    assert "from 2.5\xa0% (retention.tau" in text and "Other keys vary from point to point" in text


def test_an_interval_has_the_sign_of_its_number() -> None:
    """A base device above the ideal one is so many points above it, with an interval of that."""
    sweep = analyse(hand_made("readout.bits", [3, 4, 5], [[80, 82], [84, 86], [88, 90]], ideal=80))
    (sentence,) = [line for line in findings(sweep, choose(sweep), []) if "the ideal device" in line][:1]
    low, high = (-bound for bound in sweep.drop_interval(sweep.base))
    assert "points above the ideal device" in sentence
    assert f"(95 % interval {points_bounds((high, low))})" in sentence.replace("\xa0", " ")
