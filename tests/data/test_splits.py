from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as given_examples
from hypothesis import settings
from hypothesis import strategies as st

from device_models.errors import InputError
from fllm.data import DIAGNOSES, Example, Task
from fllm.data.splits import LACDM_SEED, Split, SplitRule, given, holdout, lacdm, split_examples
from tests.data.made_up import corpus_of, digest, keys, made_up, without

FORMER = {(0.2, 0): "64b12061f57b88ec", (0.35, 7): "d3dc1f7a7f8ec410"}
"""Digests of (training keys, test keys) that this project's split of clinical cases gave before it knew examples."""


def _parts(split: Split) -> list[tuple[Example, ...]]:
    return [split.train, split.validation, split.test]


def _assert_partition(split: Split, examples: list[Example]) -> None:
    assert sorted(key for part in _parts(split) for key in keys(part)) == sorted(keys(examples))
    assert all(keys(part) == sorted(keys(part)) for part in _parts(split))
    sizes = [split.facts[f"num_{name}"] for name in ("train", "validation", "test")]
    assert sizes == [len(part) for part in _parts(split)]
    json.dumps(split.facts)


@pytest.mark.parametrize(("fraction", "seed"), FORMER)
def test_a_holdout_is_that_of_former_versions(fraction: float, seed: int) -> None:
    split = holdout(made_up(), DIAGNOSES, test_fraction=fraction, seed=seed)
    assert digest((keys(split.train), keys(split.test))) == FORMER[fraction, seed]
    assert split.validation == ()


RULES = [
    SplitRule(),
    SplitRule(test_fraction=0.2, validation_fraction=0.1),
    SplitRule("kfold", folds=5, fold=3),
    SplitRule("kfold", folds=3, fold=0, validation_fraction=0.2),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("labelled", [True, False])
def test_a_split_is_disjoint_complete_and_depends_on_the_seed_alone(rule: SplitRule, labelled: bool) -> None:
    examples = made_up() if labelled else without(made_up(), label=None)
    task = corpus_of([]).task if labelled else Task("language")
    split = split_examples(corpus_of(examples, task), rule, seed=3)
    _assert_partition(split, examples)
    assert split_examples(corpus_of(examples[::-1], task), rule, seed=3) == split
    assert split_examples(corpus_of(examples, task), rule, seed=4).test != split.test
    assert bool(split.validation) == bool(rule.validation_fraction)


def test_seventy_ten_twenty_in_every_class() -> None:
    examples = made_up(1000)
    split = holdout(examples, DIAGNOSES, test_fraction=0.2, validation_fraction=0.1, seed=0)
    for part, share in ((split.train, 0.7), (split.validation, 0.1), (split.test, 0.2)):
        for label in range(4):
            of_class = sum(example.label == label for example in examples)
            assert sum(example.label == label for example in part) == pytest.approx(share * of_class, abs=1)
    assert split.facts["rule"] == "at random within each class, 20 % of each class test, 10 % validate"


def test_a_validation_set_takes_nothing_from_the_test_set() -> None:
    plain = holdout(made_up(), DIAGNOSES, test_fraction=0.2, seed=1)
    split = holdout(made_up(), DIAGNOSES, test_fraction=0.2, validation_fraction=0.1, seed=1)
    assert split.test == plain.test
    assert sorted(keys(split.train) + keys(split.validation)) == keys(plain.train)


def test_rare_classes_stand_on_all_sides() -> None:
    three_each = [example for label in range(4) for example in _of_class(made_up(), label)[:3]]
    split = holdout(three_each, DIAGNOSES, test_fraction=0.05, validation_fraction=0.05, seed=0)
    for part in _parts(split):
        assert Counter(example.label for example in part) == dict.fromkeys(range(4), 1)


def _of_class(examples: list[Example], label: int) -> list[Example]:
    return [example for example in examples if example.label == label]


@given_examples(
    labels=st.lists(st.integers(0, 3), min_size=3, max_size=60),
    fractions=st.tuples(st.floats(0.01, 0.5), st.sampled_from([0.0, 0.1, 0.4])),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_no_key_stands_in_two_parts(labels: list[int], fractions: tuple[float, float], seed: int) -> None:
    examples = [Example(key, (), label) for key, label in enumerate(labels)]
    try:
        split = holdout(
            examples, DIAGNOSES, test_fraction=fractions[0], validation_fraction=fractions[1], seed=seed
        )  # fmt: skip
    except InputError as error:
        assert "too few cases" in str(error) and max(Counter(labels).values()) < 3
        return
    _assert_partition(split, examples)
    assert {example.label for example in split.train} == set(labels)


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_folds_partition_the_examples_evenly(folds: int) -> None:
    examples = made_up()
    tests = [
        split_examples(corpus_of(examples), SplitRule("kfold", folds=folds, fold=fold), seed=2).test
        for fold in range(folds)
    ]
    assert sorted(key for test in tests for key in keys(test)) == sorted(keys(examples))
    assert np.ptp([len(test) for test in tests]) <= 1
    for label in range(4):
        assert np.ptp([sum(example.label == label for example in test) for test in tests]) <= 1


def test_a_fold_with_validation_tests_on_the_same_examples() -> None:
    plain, with_validation = (
        split_examples(corpus_of(made_up()), SplitRule("kfold", validation_fraction=share), seed=2)
        for share in (0.0, 0.25)
    )
    assert plain.test == with_validation.test
    assert len(with_validation.validation) == pytest.approx(0.25 * len(plain.train), abs=2)


def test_the_published_split_is_that_of_scikit_learn() -> None:
    """Frames in the published order, cut by the published calls, give the same three sets."""
    from sklearn.model_selection import train_test_split

    examples = made_up(400)
    split = split_examples(corpus_of(examples), SplitRule("lacdm"), seed=12345)
    listed: dict[str, list[int]] = {
        name: keys(sorted(_of_class(examples, label), key=lambda example: example.rank or 0))
        for label, name in enumerate(DIAGNOSES)
    }
    ids = [key for name in DIAGNOSES for key in listed[name]]
    names = [name for name in DIAGNOSES for _ in listed[name]]
    name_of = dict(zip(ids, names, strict=True))
    train, rest = train_test_split(ids, test_size=0.2, stratify=names, random_state=LACDM_SEED)
    first, second = train_test_split(
        rest, test_size=0.5, stratify=[name_of[key] for key in rest], random_state=LACDM_SEED
    )  # fmt: skip
    assert [keys(part) for part in _parts(split)] == [sorted(train), sorted(first), sorted(second)]
    assert [len(part) for part in _parts(split)] == [320, 40, 40]
    _assert_partition(split, examples)
    assert lacdm(examples[::-1], DIAGNOSES) == split


def test_the_published_split_follows_the_order_of_the_label_file() -> None:
    examples = made_up(400)
    reversed_ranks = [replace(example, rank=400 - (example.rank or 0)) for example in examples]
    assert keys(lacdm(reversed_ranks, DIAGNOSES).test) != keys(lacdm(examples, DIAGNOSES).test)


def test_the_smallest_cohort_of_the_published_split_works() -> None:
    ten_each = [Example(10 * label + rank, (), label, rank=rank) for label in range(4) for rank in range(10)]
    assert [len(part) for part in _parts(lacdm(ten_each, DIAGNOSES))] == [32, 4, 4]


@pytest.mark.parametrize(
    ("examples", "classes", "pattern"),
    [
        (made_up(), ("yes", "no"), "published for another task"),
        (without(made_up(), label=None), (), "published for another task"),
        (without(made_up(), rank=None), DIAGNOSES, "without a place in the label file"),
        (made_up(60), DIAGNOSES, "10 or more of each class"),
        (_of_class(made_up(), 0), DIAGNOSES, "10 or more of each class"),
    ],
)
def test_the_published_split_is_refused_elsewhere(
    examples: list[Example], classes: tuple[str, ...], pattern: str
) -> None:
    with pytest.raises(InputError, match=pattern):
        lacdm(examples, classes)


def test_data_can_bring_their_own_split() -> None:
    examples = [
        replace(example, part=("train", "train", "validation", "test")[i % 4]) for i, example in enumerate(made_up(40))
    ]
    split = split_examples(corpus_of(examples), SplitRule("column"), seed=0)
    _assert_partition(split, examples)
    assert all(example.part == "test" for example in split.test) and len(split.test) == 10
    no_validation = [example for example in examples if example.part != "validation"]
    assert given(no_validation).validation == ()


@pytest.mark.parametrize(
    ("parts", "pattern"),
    [
        (("train", None), "1 examples belong to no set"),
        (("train", "dev"), "1 examples belong to no set"),
        (("train", "train"), "no example says test"),
        (("test", "validation"), "no example says train"),
    ],
)
def test_incomplete_columns_are_refused(parts: tuple[str | None, ...], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        given([Example(key, (), 0, part=part) for key, part in enumerate(parts)])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_fractions_outside_the_open_interval_are_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="test fraction"):
        holdout(made_up(), DIAGNOSES, test_fraction=fraction, seed=0)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"test_fraction": 0.2, "validation_fraction": -0.1}, "validation fraction"),
        ({"test_fraction": 0.2, "validation_fraction": float("nan")}, "validation fraction"),
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "nothing is left to train on"),
    ],
)
def test_impossible_fractions_are_refused(arguments: dict[str, Any], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        holdout(made_up(), DIAGNOSES, seed=0, **arguments)


@pytest.mark.parametrize(("count", "validation_fraction"), [(0, 0.0), (1, 0.0), (2, 0.1)])
def test_too_few_examples_cannot_be_split(count: int, validation_fraction: float) -> None:
    examples = [Example(key, (), 0) for key in range(count)]
    with pytest.raises(InputError, match="too few cases"):
        holdout(examples, DIAGNOSES, test_fraction=0.3, validation_fraction=validation_fraction, seed=0)


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [
        (SplitRule("kfold", folds=1), "number of folds"),
        (SplitRule("kfold", folds=201), "number of folds.*2 to the number of cases, 200"),
        (SplitRule("kfold", folds=5, fold=5), "fold out of range; expected 0 to 4; received 5"),
        (SplitRule("kfold", folds=5, fold=-1), "fold out of range"),
        (SplitRule("kfold", validation_fraction=1.0), "validation fraction"),
    ],
)
def test_impossible_folds_are_refused(rule: SplitRule, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        split_examples(corpus_of(made_up()), rule, seed=0)


def test_equal_keys_are_refused_without_showing_them() -> None:
    examples = [*made_up(20), made_up(20)[0]]
    with pytest.raises(InputError, match="same key") as caught:
        split_examples(corpus_of(examples), SplitRule(), seed=0)
    assert not re.search(r"\d{3,}", str(caught.value))
