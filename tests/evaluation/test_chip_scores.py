"""Chips compared on the same cases: means, costs, cases at home, gains, and what is not told of few cases."""

from __future__ import annotations

import numpy as np
import pytest

from fllm.evaluation import Scores
from fllm.evaluation.chips import ChipScores, chip_facts, difference_facts, gain_facts
from fllm.evaluation.scores import classified, predicted

OWNERS = [0, 0, 0, 1, 1, 1]


def answered(*correct: int) -> Scores:
    """Return scores of two classes, right where there is a 1."""
    likelihoods = np.array([[0.0, -1.0] if right else [-1.0, 0.0] for right in correct])
    return classified(likelihoods, np.zeros(len(correct), dtype=np.int64), np.ones((len(correct), 2)))


IDEAL = answered(1, 1, 1, 1, 1, 0)
FOUND = ChipScores(
    IDEAL,
    {0: answered(1, 1, 0, 0, 0, 0), 1: answered(0, 0, 0, 1, 1, 0)},
    [answered(1, 1, 1, 1, 0, 0), answered(1, 0, 0, 0, 0, 0), answered(1, 1, 1, 0, 0, 0)],
)


def test_costs_are_what_the_ideal_device_has_more() -> None:
    facts = chip_facts(FOUND, OWNERS, seed=0)
    assert facts["ideal"]["value"] == pytest.approx(5 / 6)
    assert [one["accuracy"]["value"] for one in facts["clients"]] == pytest.approx([2 / 6, 2 / 6])
    assert [one["cost"]["value"] for one in facts["clients"]] == pytest.approx([3 / 6, 3 / 6])
    assert facts["own"]["accuracy"]["value"] == pytest.approx(2 / 6)
    assert facts["own"]["std"] == 0.0
    assert facts["unseen"]["accuracy"]["value"] == pytest.approx(8 / 18)
    assert (facts["unseen"]["min"], facts["unseen"]["max"]) == pytest.approx((1 / 6, 4 / 6))
    assert [one["cost"]["value"] for one in facts["unseen"]["chips"]] == pytest.approx([1 / 6, 4 / 6, 2 / 6])
    assert facts["own_minus_unseen"]["value"] == pytest.approx(2 / 6 - 8 / 18)
    low, high = facts["own"]["cost"]["interval_95"]
    assert low < 3 / 6 < high


def test_at_home_each_case_meets_the_chip_of_its_own_client() -> None:
    facts = chip_facts(FOUND, OWNERS, seed=0)
    assert facts["home"]["accuracy"]["value"] == pytest.approx(4 / 6)
    assert facts["home"]["cost"]["value"] == pytest.approx(1 / 6)
    assert [one["own_cases"]["value"] for one in facts["clients"]] == pytest.approx([2 / 3, 2 / 3])


def test_chips_that_answer_alike_cost_exactly_nothing() -> None:
    facts = chip_facts(ChipScores(IDEAL, {0: IDEAL, 1: IDEAL}, [IDEAL]), OWNERS, seed=0)
    assert facts["own"]["cost"] == {"value": 0.0, "interval_95": [0.0, 0.0]}
    assert facts["own_minus_unseen"]["interval_95"] == [0.0, 0.0]
    assert facts["unseen"]["std"] is None


def test_clients_of_few_cases_are_not_spoken_of_alone() -> None:
    few = chip_facts(FOUND, [0, 1, 1, 1, 1, 1], seed=0, smallest_cell=4)["clients"]
    assert [(one["cases"], one["own_cases"]) for one in few] == [(None, None), (None, None)]
    assert all(one["accuracy"]["value"] is not None for one in few)  # over everybody's cases


def test_without_chips_of_clients_there_are_unseen_ones_alone() -> None:
    facts = chip_facts(ChipScores(IDEAL, {}, FOUND.unseen), OWNERS, seed=0)
    assert facts["clients"] == []
    assert facts["own"] is facts["home"] is facts["own_minus_unseen"] is None
    assert facts["unseen"]["cost"]["value"] == pytest.approx(5 / 6 - 8 / 18)


def test_texts_count_by_their_tokens() -> None:
    losses = np.array([[1.0, 10.0], [1.0, 30.0]])
    ideal, chip = predicted(np.array([10.0, 15.0]), losses), predicted(np.array([5.0, 15.0]), losses)
    facts = chip_facts(ChipScores(ideal, {0: chip}, [chip]), [0, 0], seed=0)
    assert facts["ideal"]["value"] == pytest.approx(25 / 40) == ideal.accuracy
    assert facts["clients"][0]["cost"]["value"] == pytest.approx(5 / 40)
    assert facts["home"]["accuracy"]["value"] == pytest.approx(20 / 40)


def test_gain_is_the_federations_and_paired() -> None:
    better, worse = answered(1, 1, 1, 0, 0, 0), answered(1, 1, 0, 0, 0, 0)
    found = gain_facts([better, better], [worse, better], seed=0)
    assert found is not None
    assert found["accuracy"]["value"] == pytest.approx(5 / 12)
    assert found["gain"]["value"] == pytest.approx(1 / 12)
    assert found["gain"]["interval_95"][0] == 0.0  # never worse on any case, in any redraw
    assert found["federated"]["interval_95"][0] < found["accuracy"]["value"]  # single intervals overlap
    apart = difference_facts([worse], [better], seed=0)
    assert apart is not None and apart["value"] == pytest.approx(-1 / 6)


def test_nothing_is_compared_where_there_are_no_chips() -> None:
    assert gain_facts([], [], seed=0) is None
    assert difference_facts([IDEAL], [], seed=0) is None
