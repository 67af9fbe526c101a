"""What a result says about the test cases: numbers by hand, intervals of pairs, small cells, plain JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from fllm.evaluation import evaluation_facts, macro_f1, over_dies, scores_facts
from fllm.evaluation.facts import recall_facts
from fllm.evaluation.intervals import bootstrap_interval, mcnemar
from fllm.evaluation.scores import Scores, classified, predicted

CLASSES = ("a", "b", "c")
NAMES = ("north", "south", "none")
CASES = 40


def scored(seed: int, skill: float = 1.5, cases: int = CASES) -> Scores:
    """Made-up likelihoods of a model with some skill; the truth is the same for every seed."""
    truth = np.arange(cases) % 3
    likelihoods = np.random.default_rng(seed).standard_normal((cases, 3)) + skill * np.eye(3)[truth]
    losses = np.stack([np.random.default_rng(seed + 100).random(cases) * 20, np.full(cases, 10.0)], axis=1)
    return classified(likelihoods, truth, losses)


IDEAL, DIES = scored(0, 2.5), [scored(1), scored(2), scored(3)]
CLIENTS = [-1 if case % 10 == 9 else int(case % 2) for case in range(CASES)]


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return evaluation_facts(IDEAL, DIES, CLASSES, CLIENTS, NAMES, seed=3)


def test_facts_are_plain_json_with_all_keys(facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts) == {"ideal", "hardware", "difference"}
    for part in (facts["ideal"], facts["hardware"]):
        assert set(part) == {
            "accuracy", "macro_f1", "mean_class_accuracy", "ece", "brier", "nll", "perplexity", "recall", "confusion",
            "reliability", "clients", "worst_client", "client_spread",
        }  # fmt: skip
        for name in ("accuracy", "macro_f1", "mean_class_accuracy", "brier", "nll", "perplexity"):
            low, high = part[name]["interval_95"]
            assert low < part[name]["value"] < high
        assert part["ece"]["by_chance"] > 0


def test_numbers_of_the_ideal_device_are_its_scores(facts: dict[str, Any]) -> None:
    found = facts["ideal"]
    assert found["accuracy"]["value"] == IDEAL.accuracy
    assert found["macro_f1"]["value"] == pytest.approx(IDEAL.macro_f1, rel=1e-12)
    assert found["perplexity"]["value"] == pytest.approx(IDEAL.perplexity, rel=1e-12)
    assert found["accuracy"]["interval_95"] == list(bootstrap_interval(IDEAL.correct, seed=3))
    assert np.sum(found["confusion"]) == CASES
    assert np.trace(found["confusion"]) == sum(IDEAL.correct)
    for index, name in enumerate(CLASSES):
        row = found["confusion"][index]
        assert found["recall"][name]["value"] == pytest.approx(row[index] / sum(row))
        assert found["recall"][name]["cases"] == sum(row)


def test_numbers_of_the_hardware_are_means_over_its_dies(facts: dict[str, Any]) -> None:
    found, mean = facts["hardware"], over_dies(DIES)
    assert found["accuracy"]["value"] == pytest.approx(mean.accuracy, rel=1e-12)
    assert found["macro_f1"]["value"] == pytest.approx(mean.macro_f1, rel=1e-12)
    assert found["perplexity"]["value"] == pytest.approx(mean.perplexity, rel=1e-12)
    assert found["accuracy"]["interval_95"] == pytest.approx(bootstrap_interval(mean.correct, seed=3))
    alone = [evaluation_facts(die, [die], CLASSES, CLIENTS, NAMES, seed=3)["ideal"] for die in DIES]
    for name in ("ece", "brier", "nll", "mean_class_accuracy"):
        assert found[name]["value"] == pytest.approx(np.mean([one[name]["value"] for one in alone]), rel=1e-12)
    assert np.allclose(found["confusion"], np.mean([one["confusion"] for one in alone], axis=0))
    assert found["clients"][0]["accuracy"] == pytest.approx(np.mean([one["clients"][0]["accuracy"] for one in alone]))
    rows = found["reliability"]
    assert len(rows) == 15
    assert sum(row["cases"] for row in rows) == pytest.approx(CASES)
    right = sum(row["cases"] * row["accuracy"] for row in rows if row["cases"])
    assert right == pytest.approx(CASES * mean.accuracy)


def test_one_die_like_the_ideal_device_differs_in_nothing() -> None:
    found = evaluation_facts(IDEAL, [IDEAL], CLASSES, CLIENTS, NAMES, seed=3)
    assert found["ideal"] == found["hardware"]
    nothing = {"value": 0.0, "interval_95": [0.0, 0.0]}
    assert found["difference"] == {
        "accuracy": nothing,
        "macro_f1": nothing,
        "mcnemar": [{"die": 0, "only_ideal": 0, "only_hardware": 0, "p_value": 1.0}],
    }


def test_difference_is_hardware_less_ideal_on_the_same_redraws(facts: dict[str, Any]) -> None:
    found = facts["difference"]
    mean = over_dies(DIES)
    assert found["accuracy"]["value"] == pytest.approx(mean.accuracy - IDEAL.accuracy)
    assert found["macro_f1"]["value"] == pytest.approx(mean.macro_f1 - IDEAL.macro_f1)  # type: ignore[operator]
    difference = np.array(mean.correct) - np.array(IDEAL.correct)
    assert found["accuracy"]["interval_95"] == pytest.approx(bootstrap_interval(difference.tolist(), seed=3))
    assert found["accuracy"]["interval_95"][1] < 0  # this hardware is worse


def test_each_die_is_tested_against_the_ideal_device(facts: dict[str, Any]) -> None:
    rows = facts["difference"]["mcnemar"]
    assert [row["die"] for row in rows] == [0, 1, 2]
    for row, die in zip(rows, DIES, strict=True):
        expected = mcnemar(IDEAL.correct, die.correct)
        assert (row["only_ideal"], row["only_hardware"]) == (expected.only_first, expected.only_second)
        assert row["p_value"] == expected.p_value
        assert row["only_ideal"] - row["only_hardware"] == sum(IDEAL.correct) - sum(die.correct)


def test_equal_seeds_give_equal_facts_and_others_do_not(facts: dict[str, Any]) -> None:
    again = evaluation_facts(IDEAL, DIES, CLASSES, CLIENTS, NAMES, seed=3)
    assert json.dumps(again) == json.dumps(facts)
    other = evaluation_facts(IDEAL, DIES, CLASSES, CLIENTS, NAMES, seed=4)
    assert other["ideal"]["accuracy"]["value"] == facts["ideal"]["accuracy"]["value"]
    assert other["ideal"]["nll"]["interval_95"] != facts["ideal"]["nll"]["interval_95"]


# ---- clients


def test_clients_by_hand(facts: dict[str, Any]) -> None:
    found = facts["ideal"]
    north, south, none = found["clients"]
    for client, index in ((north, 0), (south, 1)):
        mine = np.array(CLIENTS) == index
        correct = np.array(IDEAL.correct)[mine]
        assert (client["client"], client["name"], client["cases"]) == (index, NAMES[index], mine.sum())
        assert client["accuracy"] == pytest.approx(correct.mean())
        assert client["interval_95"][0] <= client["accuracy"] <= client["interval_95"][1]
        assert IDEAL.truth is not None
        assert client["macro_f1"] == macro_f1(IDEAL.truth[mine], IDEAL.chosen[mine], 3)
    assert none == {"client": 2, "name": "none", "cases": None, "accuracy": None, "interval_95": None, "macro_f1": None}
    low, high = sorted((north, south), key=lambda client: client["accuracy"])
    assert found["worst_client"] == {key: low[key] for key in ("client", "name", "accuracy")}
    assert found["client_spread"] == pytest.approx(high["accuracy"] - low["accuracy"])


def test_without_clients_none_is_worst() -> None:
    found = evaluation_facts(IDEAL, DIES, CLASSES, [-1] * CASES, (), seed=0)["ideal"]
    assert (found["clients"], found["worst_client"], found["client_spread"]) == ([], None, None)
    found = evaluation_facts(IDEAL, DIES, CLASSES, [-1] * CASES, NAMES, seed=0)["ideal"]
    assert (found["worst_client"], found["client_spread"]) == (None, None)


def test_small_clients_are_not_spoken_of() -> None:
    """North has 20 test cases, south 16; classes of south have 5 or 6. Of two, one tells the other."""
    assert (CLIENTS.count(0), CLIENTS.count(1)) == (20, 16)
    for smallest, spoken_of in ((16, [True, True]), (17, [False, False]), (21, [False, False])):
        found = evaluation_facts(IDEAL, DIES, CLASSES, CLIENTS, NAMES, seed=0, smallest_cell=smallest)["hardware"]
        assert [client["accuracy"] is not None for client in found["clients"][:2]] == spoken_of
        assert [client["cases"] is not None for client in found["clients"][:2]] == spoken_of
        assert (found["worst_client"] is None) is not any(spoken_of)
        assert (found["client_spread"] == 0.0) is (spoken_of == [True, False])


def test_small_classes_of_a_client_are_not_spoken_of() -> None:
    south = [int((np.arange(CASES)[np.array(CLIENTS) == 1] % 3 == name).sum()) for name in range(3)]
    for smallest, spoken_of in ((min(south), True), (min(south) + 1, False)):
        found = evaluation_facts(IDEAL, DIES, CLASSES, CLIENTS, NAMES, seed=0, smallest_cell=smallest)["ideal"]
        assert found["clients"][1]["accuracy"] is not None
        assert (found["clients"][1]["macro_f1"] is not None) is spoken_of


# ---- what is missing


def test_class_that_does_not_occur_has_no_recall() -> None:
    truth = np.zeros(CASES, dtype=np.int64)
    one = classified(np.random.default_rng(0).standard_normal((CASES, 3)), truth, IDEAL.losses)
    found = evaluation_facts(one, [one], CLASSES, CLIENTS, NAMES, seed=0)["ideal"]["recall"]
    assert found["b"] == found["c"] == {"value": None, "interval_95": None, "cases": 0}
    assert found["a"]["value"] == one.accuracy


def test_recall_of_a_class_that_is_always_recognised_is_not_certain() -> None:
    values = np.array([[1.0, 0.0, 0.5]] * 50)
    found = recall_facts(values, np.array([0, 0, 0, 1, 2]), CLASSES)
    assert found["a"] == {"value": 1.0, "interval_95": [pytest.approx(0.025 ** (1 / 3)), 1.0], "cases": 3}
    assert found["b"]["interval_95"] == [0.0, pytest.approx(0.975)]


def test_perplexity_without_tokens_is_null() -> None:
    empty = classified(np.eye(3), np.arange(3), np.zeros((3, 2)))
    found = evaluation_facts(empty, [empty], CLASSES, [0] * 3, ("one",), seed=0)
    assert found["ideal"]["perplexity"] == {"value": None, "interval_95": None}
    json.dumps(found, allow_nan=False)


def test_scores_without_cases_are_refused() -> None:
    for bare in (over_dies(DIES), Scores(0.5, 0.5, 2.0, (1.0,) * CASES, truth=IDEAL.truth)):
        with pytest.raises(ValueError, match=r"scores without|no likelihoods"):
            evaluation_facts(bare, DIES, CLASSES, CLIENTS, NAMES, seed=0)
    bare = Scores(0.5, None, 2.0, (1.0,) * CASES)
    with pytest.raises(ValueError, match="scores without"):
        evaluation_facts(bare, [bare], (), CLIENTS, NAMES, seed=0)


def test_language_modelling_has_tokens_perplexity_and_clients() -> None:
    losses = np.array([[30.0, 10.0], [3.0, 2.0], [12.0, 6.0]])
    one, two = predicted(np.array([5.0, 2.0, 3.0]), losses), predicted(np.array([4.0, 0.0, 3.0]), losses * [1.1, 1])
    found = evaluation_facts(one, [two, two], (), [0, 0, 1], ("x", "y"), seed=0)
    json.dumps(found, allow_nan=False)
    ideal = found["ideal"]
    assert set(ideal) == {"accuracy", "perplexity", "clients", "worst_client", "client_spread"}
    assert ideal["accuracy"]["value"] == pytest.approx(10 / 18)  # of tokens, not of texts
    assert ideal["perplexity"]["value"] == pytest.approx(math.exp(45 / 18))
    assert [client["accuracy"] for client in ideal["clients"]] == pytest.approx([7 / 12, 3 / 6])
    assert [client["macro_f1"] for client in ideal["clients"]] == [None, None]
    assert ideal["worst_client"]["name"] == "y"
    assert found["difference"]["accuracy"]["value"] == pytest.approx(-3 / 18)
    assert (found["difference"]["macro_f1"], found["difference"]["mcnemar"]) == (None, [])


# ---- baselines


def test_scores_of_choices_are_means_over_models() -> None:
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    rows = np.array([truth, np.zeros(8, dtype=int)])
    found = scores_facts(truth, rows, CLASSES, seed=1)
    assert found["accuracy"] == pytest.approx((1 + 3 / 8) / 2)
    assert found["macro_f1"] == pytest.approx((1 + macro_f1(truth, rows[1], 3)) / 2)
    correct = (rows == truth).mean(axis=0)
    assert found["interval_95"]["accuracy"] == pytest.approx(bootstrap_interval(correct.tolist(), seed=1))
    assert scores_facts(truth, rows[1], CLASSES, seed=1) == scores_facts(truth, rows[1:], CLASSES, seed=1)
    sure = scores_facts(truth, truth, CLASSES, seed=1)
    assert sure["interval_95"]["accuracy"] == [pytest.approx(0.025 ** (1 / 8)), 1.0]
    json.dumps(found, allow_nan=False)


def test_a_class_of_few_cases_has_neither_recall_nor_row_and_its_number_cannot_be_inferred() -> None:
    truth = np.repeat([0, 1, 2], [20, 9, 3])
    scores = classified(np.eye(3)[truth], truth, np.ones((32, 2)))
    facts = evaluation_facts(scores, [scores], ("a", "b", "c"), [0] * 32, ["site"], seed=0, smallest_cell=5)["ideal"]
    assert facts["confusion"] is None
    assert {name: row["cases"] for name, row in facts["recall"].items()} == {"a": 20, "b": None, "c": None}
    assert facts["recall"]["c"]["value"] is None and facts["recall"]["a"]["value"] == 1.0
    assert facts["accuracy"]["value"] == 1.0


def test_a_small_client_takes_along_the_next_larger_one_alone() -> None:
    truth = np.zeros(60, dtype=int)
    scores = classified(np.eye(2)[truth], truth, np.ones((60, 2)))
    owner = [0] * 3 + [1] * 20 + [2] * 37
    found = evaluation_facts(scores, [scores], ("a", "b"), owner, ["x", "y", "z"], seed=0, smallest_cell=5)["ideal"]
    assert [client["cases"] for client in found["clients"]] == [None, None, 37]
    assert [client["accuracy"] for client in found["clients"]] == [None, None, 1.0]
