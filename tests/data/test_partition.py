from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from device_models.errors import InputError
from fllm.data import DIAGNOSES, Example
from fllm.data.draws import keyed_generator
from fllm.data.holdings import js_divergence
from fllm.data.partition import (
    UNKNOWN_AGE,
    Client,
    PartitionName,
    PartitionRule,
    _log_dirichlet,
    _whole_shares,
    partition,
)
from fllm.data.splits import Split, holdout
from tests.data.made_up import digest, keys, made_up, without

FORMER = {
    1: "9b97735bc5916996", 3: "7c0fef4bdd8b9cf3", 5: "cdc7a940f6bb6676", 8: "5072008b85077492",
    16: "bee83bec0d714dd7",
}  # fmt: skip
"""Clients -> digest of their names and training keys, as this project dealt clinical cases before it knew examples."""

FORMER_SITES = {1: "83bcf078abda791d", 7: "6ca5dd9dedf11c4c"}

RULES = [PartitionRule(name, least=2) for name in get_args(PartitionName)]


def _split(examples: list[Example]) -> Split:
    return holdout(examples, DIAGNOSES, test_fraction=0.2, seed=0)


def _all(split: Split) -> list[Example]:
    return [*split.train, *split.test]


def _replaced(split: Split, **nothing: None) -> Split:
    return replace(split, train=tuple(without(split.train, **nothing)), test=tuple(without(split.test, **nothing)))


def _deal(split: Split, rule: PartitionRule, num_clients: int, seed: int = 0) -> list[Client]:
    return partition(split, rule, num_clients=num_clients, seed=seed)


def _counts(clients: list[Client]) -> list[list[int]]:
    return [[sum(example.label == label for example in client.train) for label in range(4)] for client in clients]


def _assert_conserved(clients: list[Client], split: Split) -> None:
    for part in ("train", "test"):
        held = [example for client in clients for example in getattr(client, part)]
        assert sorted(keys(held)) == keys(getattr(split, part))
        assert all(keys(getattr(client, part)) == sorted(keys(getattr(client, part))) for client in clients)
    assert all(client.train for client in clients)
    assert len({client.name for client in clients}) == len(clients)


@pytest.mark.parametrize("num_clients", FORMER)
def test_hospitals_are_those_of_former_versions(num_clients: int) -> None:
    clients = _deal(_split(made_up()), PartitionRule(), num_clients, seed=4)
    assert digest([(client.name, keys(client.train)) for client in clients]) == FORMER[num_clients]


@pytest.mark.parametrize("num_clients", FORMER_SITES)
def test_sites_are_those_of_former_versions(num_clients: int) -> None:
    clients = _deal(_replaced(_split(made_up()), group=None), PartitionRule(), num_clients, seed=4)
    assert digest([(client.name, keys(client.train)) for client in clients]) == FORMER_SITES[num_clients]


@pytest.mark.parametrize("num_clients", [1, 2, 5, 7, 16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("known", [True, False])
def test_every_example_goes_to_one_client(rule: PartitionRule, num_clients: int, known: bool) -> None:
    split = _split(made_up())
    if not known and rule.name == "hospital":
        split = _replaced(split, group=None)
    elif not known:
        split = replace(split, train=tuple(replace(e, age=None if e.key % 2 else e.age) for e in split.train))
    clients = _deal(split, rule, num_clients)
    assert len(clients) == num_clients
    _assert_conserved(clients, split)
    backwards = replace(split, train=split.train[::-1], test=split.test[::-1])
    assert _deal(backwards, rule, num_clients) == clients
    assert num_clients == 1 or rule.name in ("hospital", "age") or _deal(split, rule, num_clients, seed=1) != clients


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["train", "test"]), st.integers(0, 3), st.sampled_from("abc"),
            st.integers(16, 99) | st.none(),
        ),
        min_size=1, max_size=60,
    ),
    rule=st.sampled_from(RULES), num_clients=st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whatever_the_examples_none_is_lost_or_doubled(
    rows: list[tuple[str, int, str, int | None]], rule: PartitionRule, num_clients: int
) -> None:
    examples = [Example(key, (), label, group, age, part) for key, (part, label, group, age) in enumerate(rows)]
    train, test = (tuple(e for e in examples if e.part == part) for part in ("train", "test"))
    try:
        clients = _deal(Split(train, (), test, {}), rule, num_clients)
    except InputError:
        no_age = rule.name == "age" and all(example.age is None for example in train)
        assert len(train) < num_clients * (2 if rule.name == "dirichlet" else 1) or no_age
        return
    assert len(clients) == num_clients
    _assert_conserved(clients, Split(train, (), test, {}))


def test_test_examples_go_with_their_hospital() -> None:
    split = _split(made_up())
    for client in _deal(split, PartitionRule(), 5):
        assert {example.group for example in (*client.train, *client.test)} == {client.name}
    for client in _deal(split, PartitionRule(), 3):
        assert {example.group for example in client.test} <= set(client.name.split("+"))


def test_a_hospital_that_is_cut_shares_its_test_examples_evenly() -> None:
    clients = _deal(_split(made_up()), PartitionRule(), 8)
    pieces = [client for client in clients if client.name.startswith("a ")]
    assert len(pieces) > 1
    for part in ("train", "test"):
        sizes = [len(getattr(client, part)) for client in pieces]
        assert max(sizes) - min(sizes) <= 1
    assert all(example.group == "a" for client in pieces for example in client.test)


def test_the_smallest_hospitals_are_merged() -> None:
    split = _split(made_up())
    sizes = Counter(example.group for example in split.train)
    two_smallest = sorted(sizes, key=lambda name: (sizes[name], name))[:2]
    merged = [client.name for client in _deal(split, PartitionRule(), 4) if "+" in client.name]
    assert merged == ["+".join(sorted(map(str, two_smallest)))]
    assert [client.name for client in _deal(split, PartitionRule(), 1)] == ["a+b+c+d+e"]


def test_a_hospital_without_training_examples_joins_the_smallest() -> None:
    split = _split(made_up())
    stranger = Example(1, (), 0, "somewhere")
    clients = {c.name: c for c in _deal(replace(split, test=(stranger, *split.test)), PartitionRule(), 5)}
    assert stranger in clients["e"].test and set(clients) == set("abcde")


def test_every_example_can_be_a_client_of_its_own() -> None:
    split = replace(_split(made_up()), train=tuple(made_up()[:80]))
    clients = _deal(split, PartitionRule(), 80)
    assert all(len(client.train) == 1 for client in clients)


def test_random_sites_have_equal_sizes_and_mixes() -> None:
    for rule, split in (
        (PartitionRule("iid"), _split(made_up())),
        (PartitionRule(), _replaced(_split(made_up()), group=None)),
    ):
        clients = _deal(split, rule, 7)
        assert [client.name for client in clients] == [f"site {i}" for i in range(1, 8)]
        counts = np.array(_counts(clients))
        assert np.ptp(counts.sum(axis=1)) <= 1 and np.ptp([len(client.test) for client in clients]) <= 1
        if rule.name == "iid":
            assert np.ptp(counts, axis=0).max() <= 1


def test_iid_takes_texts_without_classes() -> None:
    split = _replaced(_split(made_up()), label=None)
    _assert_conserved(_deal(split, PartitionRule("iid"), 4), split)


def test_dirichlet_clients_are_equally_large_and_tested_on_their_own_mix() -> None:
    split = _split(made_up(2000))
    clients = _deal(split, PartitionRule("dirichlet", alpha=0.5), 6)
    counts = np.array(_counts(clients))
    assert np.ptp(counts.sum(axis=1)) <= 1
    tested = np.array([[sum(e.label == label for e in client.test) for label in range(4)] for client in clients])
    assert np.abs(tested - counts * tested.sum(axis=0) / counts.sum(axis=0)).max() < 1


def test_mixes_differ_more_the_smaller_alpha_is() -> None:
    """The divergence falls with alpha, and is about that of mixes drawn without regard to what is available."""
    split = _split(made_up(2000))
    prior = np.array([sum(example.label == label for example in split.train) for label in range(4)]) / len(split.train)
    found = []
    for alpha in (0.1, 0.3, 1.0, 10.0, 1000.0):
        rule = PartitionRule("dirichlet", alpha=alpha)
        dealt = np.mean([js_divergence(_counts(_deal(split, rule, 8, seed=seed))) for seed in range(8)])
        rng = np.random.default_rng(0)
        free = np.mean([js_divergence((1e6 * rng.dirichlet(alpha * prior, size=8)).tolist()) for _ in range(200)])
        assert dealt == pytest.approx(free, rel=0.15, abs=0.002)
        found.append(dealt)
    assert found == sorted(found, reverse=True)


def test_a_log_dirichlet_variate_has_its_mean_and_variance_and_never_vanishes() -> None:
    concentration = np.array([0.5, 1.0, 2.5])
    draws = np.array([_log_dirichlet(concentration, keyed_generator(0, "draw", i)) for i in range(20_000)])
    shares = np.exp(draws - np.logaddexp.reduce(draws, axis=1, keepdims=True))
    mean = concentration / concentration.sum()
    assert shares.mean(axis=0) == pytest.approx(mean, abs=0.01)
    assert shares.var(axis=0) == pytest.approx(mean * (1 - mean) / (concentration.sum() + 1), rel=0.05)
    assert np.isfinite(_log_dirichlet(np.full(3, 1e-5), keyed_generator(0, "tiny"))).all()


@given(
    columns=st.lists(st.integers(1, 50), min_size=1, max_size=6), num_clients=st.integers(1, 9),
    alpha=st.sampled_from([1e-6, 0.01, 0.3, 5.0, 1e5]), seed=st.integers(0, 50),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_shares_are_whole_and_use_up_every_class(columns: list[int], num_clients: int, alpha: float, seed: int) -> None:
    assume(num_clients <= sum(columns))
    shares = _whole_shares(columns, alpha, num_clients, seed)
    assert shares.min() >= 0 and shares.sum(axis=0).tolist() == columns
    assert np.ptp(shares.sum(axis=1)) <= 1


def test_a_mix_of_one_class_takes_others_once_that_is_used_up() -> None:
    split = _split(made_up())
    clients = _deal(split, PartitionRule("dirichlet", alpha=1e-6, least=2), 16)
    _assert_conserved(clients, split)


def test_classes_that_nobody_trains_on_are_tested_everywhere() -> None:
    split = _split(made_up())
    train = tuple(example for example in split.train if example.label != 3)
    clients = _deal(replace(split, train=train), PartitionRule("dirichlet"), 4)
    held = [sum(example.label == 3 for example in client.test) for client in clients]
    assert sum(held) == sum(example.label == 3 for example in split.test) and max(held) - min(held) <= 1


def test_bands_of_ages() -> None:
    ages = [17, 18, 29, 30, 44, 45, 64, 65, 79, 80, 95, None]
    examples = tuple(Example(key, (), 0, age=age) for key, age in enumerate(ages))
    clients = _deal(Split(examples, (), examples, {}), PartitionRule("age"), 7)
    assert {client.name: [example.age for example in client.train] for client in clients} == {
        "under 18": [17], "18-29": [18, 29], "30-44": [30, 44], "45-64": [45, 64], "65-79": [65, 79], "80+": [80, 95],
        UNKNOWN_AGE: [None],
    }  # fmt: skip
    assert all(client.train == client.test for client in clients)


def _aged(*counts: int, unknown: int = 0) -> Split:
    """Return a split with so many training examples in the bands from 18-29 on."""
    ages = [age for age, count in zip((20, 35, 50, 70, 85), counts, strict=True) for _ in range(count)]
    examples = [Example(key, (), 0, age=age) for key, age in enumerate([*ages, *[None] * unknown])]
    return Split(tuple(examples), (), (), {})


@pytest.mark.parametrize(
    ("split", "num_clients", "names"),
    [
        (_aged(9, 8, 2, 5, 7), 4, ["18-29", "30-44", "45-79", "80+"]),  # 45-64 with its smaller neighbour, 65-79
        (_aged(9, 8, 2, 5, 7), 3, ["18-29", "30-44", "45+"]),
        (_aged(9, 8, 2, 5, 7), 2, ["18-44", "45+"]),
        (_aged(9, 8, 2, 5, 7), 1, ["18+"]),
        (_aged(1, 8, 3, 5, 7), 4, ["18-44", "45-64", "65-79", "80+"]),  # the edge has one neighbour
        (_aged(4, 0, 5, 0, 6), 2, ["18-64", "80+"]),  # empty bands are no clients
        (_aged(9, 8, 2, 5, 7, unknown=1), 3, ["18-44", "45+", UNKNOWN_AGE]),  # however few, merged last
        (_aged(9, 8, 2, 5, 7, unknown=1), 2, ["18+", UNKNOWN_AGE]),
        (_aged(9, 8, 2, 5, 7, unknown=1), 1, [f"18+, {UNKNOWN_AGE}"]),
        (_aged(9, 0, 0, 0, 7, unknown=20), 4, ["18-29", "80+", f"{UNKNOWN_AGE} a", f"{UNKNOWN_AGE} b"]),
        (_aged(9, 0, 0, 0, 0), 2, ["18-29 a", "18-29 b"]),
    ],
)  # fmt: skip
def test_bands_are_merged_with_their_smaller_neighbour_or_cut(split: Split, num_clients: int, names: list[str]) -> None:
    clients = _deal(split, PartitionRule("age"), num_clients)
    assert [client.name for client in clients] == names
    _assert_conserved(clients, split)


@pytest.mark.parametrize("num_clients", [0, -1, 161])
@pytest.mark.parametrize("rule", RULES)
def test_impossible_numbers_of_clients_are_refused(rule: PartitionRule, num_clients: int) -> None:
    with pytest.raises(InputError, match="number of clients; expected 1 to the number of cases, 160"):
        _deal(_split(made_up()), rule, num_clients)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_a_concentration_is_a_positive_number(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha; expected a number above 0"):
        _deal(_split(made_up()), PartitionRule("dirichlet", alpha=alpha), 4)


def test_what_a_rule_needs_and_does_not_find_is_told() -> None:
    split = _split(made_up())
    with pytest.raises(InputError, match=r"too few training examples.*10 or more; received 8.*fewer clients"):
        _deal(split, PartitionRule("dirichlet"), 20)
    with pytest.raises(InputError, match="texts without classes"):
        _deal(_replaced(split, label=None), PartitionRule("dirichlet"), 4)
    with pytest.raises(InputError, match="no age is known"):
        _deal(_replaced(split, age=None), PartitionRule("age"), 4)
