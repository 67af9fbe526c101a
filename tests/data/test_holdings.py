from __future__ import annotations

import json

import numpy as np
import pytest

from fllm.data import DIAGNOSES, Example
from fllm.data.holdings import js_divergence, label_counts, partition_facts
from fllm.data.partition import Client, PartitionRule, partition
from fllm.data.splits import holdout
from tests.data.made_up import made_up, without


def _clients(examples: list[Example], rule: PartitionRule, num_clients: int = 4) -> list[Client]:
    split = holdout(examples, DIAGNOSES, test_fraction=0.2, seed=0)
    return partition(split, rule, num_clients=num_clients, seed=0)


def test_divergence_of_hand_made_mixes() -> None:
    assert js_divergence([[10, 10], [40, 40]]) == 0.0
    # By hand: p = (1, 0), pooled (1/2, 1/2), middle (3/4, 1/4)
    middle = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert js_divergence([[5, 0], [0, 5]]) == pytest.approx(middle - 0.5)


def test_divergence_is_that_of_scipy() -> None:
    from scipy.spatial.distance import jensenshannon

    tables = np.random.default_rng(0).integers(0, 50, size=(6, 4))
    pooled = tables.sum(axis=0)
    distances = [jensenshannon(row, pooled, base=2) for row in tables]
    assert js_divergence(tables.tolist()) == pytest.approx(np.mean(np.square(distances)))


def test_facts_tell_who_holds_what() -> None:
    clients = _clients(made_up(), PartitionRule("dirichlet", alpha=0.3))
    facts = partition_facts(clients, DIAGNOSES, PartitionRule("dirichlet", alpha=0.3))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["name"], facts["alpha"]) == ("dirichlet", 0.3) and "Dir(0.3 p)" in facts["rule"]
    assert facts["js_divergence"] == js_divergence([list(row["label_counts"].values()) for row in facts["clients"]])
    assert [row["client"] for row in facts["clients"]] == [0, 1, 2, 3]
    for row, client in zip(facts["clients"], clients, strict=True):
        assert row["name"] == client.name
        for part, number, counts in (
            (client.train, "num_train", "label_counts"), (client.test, "num_test", "test_label_counts")
        ):  # fmt: skip
            assert row[number] == len(part) == sum(row[counts].values())
            assert row[counts] == label_counts(part, DIAGNOSES)
            assert tuple(row[counts]) == DIAGNOSES


def test_every_rule_says_what_it_does() -> None:
    examples = made_up()
    said = [
        partition_facts(_clients(examples, PartitionRule(name)), DIAGNOSES, PartitionRule(name))["rule"]
        for name in ("hospital", "iid", "dirichlet", "age")
    ]
    said.append(
        partition_facts(_clients(without(examples, group=None), PartitionRule()), DIAGNOSES, PartitionRule())["rule"]
    )
    assert len(set(said)) == 5 and "no groups" in said[-1]


def test_small_numbers_of_patients_are_hidden_with_what_would_tell_them() -> None:
    clients = _clients(made_up(), PartitionRule())
    facts = partition_facts(clients, DIAGNOSES, PartitionRule(), smallest_cell=8)
    hidden = 0
    for row, client in zip(facts["clients"], clients, strict=True):
        for part, counts in ((client.train, "label_counts"), (client.test, "test_label_counts")):
            true = label_counts(part, DIAGNOSES)
            for name, count in row[counts].items():
                assert count in (None, true[name]) and (count is None or count == 0 or count >= 8)
                hidden += count is None
        assert row["num_test"] is None or row["num_test"] >= 8
    assert hidden > 0
    assert facts["js_divergence"] == round(facts["js_divergence"], 2)


def test_label_counts_hide_small_classes() -> None:
    examples = [Example(key, (), label) for key, label in enumerate([0] * 20 + [1] * 3 + [2] * 9)]
    assert label_counts(examples, DIAGNOSES) == dict(zip(DIAGNOSES, (20, 3, 9, 0), strict=True))
    shown = label_counts(examples, DIAGNOSES, smallest_cell=5)
    assert shown == dict(zip(DIAGNOSES, (20, None, None, 0), strict=True))


def test_texts_without_classes_have_no_mixes() -> None:
    rule = PartitionRule("iid")
    facts = partition_facts(_clients(without(made_up(), label=None), rule), (), rule)
    assert facts["js_divergence"] is None
    assert all(row["label_counts"] == {} and row["num_train"] == 40 for row in facts["clients"])
