"""Which examples train, which validate, and which test.

Examples are split, not people: the clinical release has no identifiers of patients, and a few of its patients have two
admissions. Every random choice is a function of the seed and of an example's key and class, never of the order in which
examples are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from device_models.errors import InputError
from fllm.data.cdm import DIAGNOSES
from fllm.data.corpus import Corpus, Example
from fllm.data.draws import keyed_generator, permuted

SplitName = Literal["holdout", "kfold", "lacdm", "column"]

LACDM_SEED = 269
"""Random state of the published split."""

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitRule:
    """How examples are split.

    Attributes:
        name: ``holdout`` (random within each class), ``kfold`` (one of several folds is the test set), ``lacdm`` (the
            published split of the clinical release), or ``column`` (as the data say).
        test_fraction: Share of each class that tests under ``holdout`` [1].
        validation_fraction: Share of each class that validates under ``holdout``, and share of what is left for
            training under ``kfold`` [1].
        folds: Number of folds of ``kfold``.
        fold: Which fold tests, from 0.
    """

    name: SplitName = "holdout"
    test_fraction: float = 0.2
    validation_fraction: float = 0.0
    folds: int = 5
    fold: int = 0


@dataclass(frozen=True)
class Split:
    """Three disjoint sets of examples, each sorted by key.

    Attributes:
        train: What clients learn from.
        validation: What settings such as a temperature are chosen on; may be empty.
        test: What results are measured on.
        facts: The rule in a sentence, its name and its numbers, as JSON.
    """

    train: tuple[Example, ...] = field(repr=False)
    validation: tuple[Example, ...] = field(repr=False)
    test: tuple[Example, ...] = field(repr=False)
    facts: dict[str, Any]


def split_examples(corpus: Corpus, rule: SplitRule, *, seed: int) -> Split:
    """Split a corpus by a rule.

    Raises:
        InputError: If the rule does not fit the corpus, or a set that must not be empty would be.
    """
    examples, classes = corpus.examples, corpus.task.classes
    if len({example.key for example in examples}) < len(examples):
        raise InputError("two examples have the same key", where=corpus.source, expected="one example for each key")
    if rule.name == "lacdm":
        return lacdm(examples, classes)
    if rule.name == "column":
        return given(examples)
    if rule.name == "kfold":
        return kfold(examples, classes, rule, seed=seed)
    return holdout(
        examples,
        classes,
        test_fraction=rule.test_fraction,
        validation_fraction=rule.validation_fraction,
        seed=seed,
    )


def holdout(
    examples: Sequence[Example],
    classes: Sequence[str],
    *,
    test_fraction: float,
    validation_fraction: float = 0.0,
    seed: int,
) -> Split:
    """Split at random within each class; examples without a class are one class of their own.

    Every class of two or more has at least one example in the training and one in the test set, and one of three or
    more has one in the validation set when that is asked for.

    Raises:
        InputError: If the fractions are none, or a set would be empty.
    """
    _check_fraction("test fraction", test_fraction, least_excluded=True)
    _check_fraction("validation fraction", validation_fraction, least_excluded=False)
    if test_fraction + validation_fraction >= 1.0:
        shown = f"{test_fraction:g} + {validation_fraction:g}"
        raise InputError("nothing is left to train on", expected="fractions with a sum below 1", received=shown)
    train: list[Example] = []
    validation: list[Example] = []
    test: list[Example] = []
    for group in _strata(examples, classes, seed, "split"):
        n_test = _share(test_fraction, len(group), leave=2 if validation_fraction and len(group) > 2 else 1)
        n_validation = _share(validation_fraction, len(group), leave=n_test + 1) if validation_fraction else 0
        test += group[:n_test]
        validation += group[n_test : n_test + n_validation]
        train += group[n_test + n_validation :]
    if not train or not test or (validation_fraction and not validation):
        expected = f"{'three' if validation_fraction else 'two'} or more cases of a class"
        raise InputError("too few cases to split", expected=expected, received=len(examples))
    said = f"{_percent(test_fraction)} of each class test"
    said += f", {_percent(validation_fraction)} validate" if validation_fraction else ""
    facts = {"test_fraction": test_fraction, "validation_fraction": validation_fraction, "seed": seed}
    return _split("holdout", f"at random within each class, {said}", (train, validation, test), facts)


def kfold(examples: Sequence[Example], classes: Sequence[str], rule: SplitRule, *, seed: int) -> Split:
    """Cut each class into folds at random; one fold tests, the others train, less a share of each class to validate.

    The folds of one seed partition the examples. Their sizes, and their numbers of each class, differ by one at most.

    Raises:
        InputError: If there are fewer than two folds, fewer examples than folds, or no such fold.
    """
    if not 2 <= rule.folds <= max(len(examples), 1):
        expected = f"2 to the number of cases, {len(examples)}"
        raise InputError("number of folds", expected=expected, received=rule.folds)
    if not 0 <= rule.fold < rule.folds:
        raise InputError("fold out of range", expected=f"0 to {rule.folds - 1}", received=rule.fold)
    _check_fraction("validation fraction", rule.validation_fraction, least_excluded=False)
    dealt = [example for group in _strata(examples, classes, seed, "folds") for example in group]
    test = dealt[rule.fold :: rule.folds]
    rest = [example for i, example in enumerate(dealt) if i % rule.folds != rule.fold]
    facts: dict[str, Any] = {"folds": rule.folds, "fold": rule.fold, "seed": seed}
    said = f"fold {rule.fold} (from 0) of {rule.folds} tests; folds are cut at random within each class"
    if not rule.validation_fraction:
        return _split("kfold", said, (rest, [], test), facts)
    inner = holdout(rest, classes, test_fraction=rule.validation_fraction, seed=seed)
    said += f"; {_percent(rule.validation_fraction)} of each class of the others validate"
    facts["validation_fraction"] = rule.validation_fraction
    return _split("kfold", said, (inner.train, inner.test, test), facts)


def lacdm(examples: Sequence[Example], classes: Sequence[str]) -> Split:
    """Split the clinical cases 80/10/10 as published with LA-CDM, so that results can be set beside it.

    Cases stand in the order appendicitis, cholecystitis, diverticulitis, pancreatitis, within a class in the order of
    the label file. Then ``train_test_split`` takes 20 % off, stratified, with random state 269, and halves these in
    the same way. The first half returned is the validation set, the second one the test set.

    Approximation: the order of cases within a class is our reading of the published rule; its authors' own files
    decide it, and another order gives other cases.

    Source: LA-CDM (ICLR 2026), split of 80/10/10 with seed 269.

    Raises:
        InputError: If this is not the diagnosis of the four, a case has no place in the label file, or a class is too
            small to be cut.
    """
    from sklearn.model_selection import train_test_split

    if tuple(classes) != DIAGNOSES:
        expected = "the diagnosis of clinical cases"
        raise InputError("this split is published for another task", where="split lacdm", expected=expected)
    if any(example.rank is None or example.label is None for example in examples):
        expected = "the position of each case in pathology_ids.json"
        raise InputError("cases without a place in the label file", where="split lacdm", expected=expected)
    ordered = sorted(examples, key=lambda example: (example.label, example.rank, example.key))
    labels = np.array([example.label for example in ordered])
    least = min(int((labels == label).sum()) for label in range(len(classes)))
    if least < 10:  # a fifth of ten can be halved
        raise InputError("too few cases for the published split", expected="10 or more of each class")
    order = np.arange(len(ordered))
    train, rest = train_test_split(order, test_size=0.2, stratify=labels, random_state=LACDM_SEED)
    validation, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=LACDM_SEED)
    said = (
        f"as published with LA-CDM: 80/10/10, stratified, random state {LACDM_SEED}, cases in the order of the label "
        "file (our reading)"
    )
    parts = [[ordered[i] for i in part] for part in (train, validation, test)]
    return _split("lacdm", said, parts, {"random_state": LACDM_SEED})


def given(examples: Sequence[Example]) -> Split:
    """Split as the data themselves say; there may be no validation set.

    Raises:
        InputError: If an example belongs to no set, or nothing trains or tests.
    """
    unknown = sum(example.part not in _PARTS for example in examples)
    if unknown:
        expected = ", ".join(_PARTS)
        raise InputError(f"{unknown} examples belong to no set", where="split column", expected=expected)
    parts = [[example for example in examples if example.part == name] for name in _PARTS]
    if not parts[0] or not parts[2]:
        missing = "train" if not parts[0] else "test"
        raise InputError(f"no example says {missing}", where="split column", expected="train and test examples")
    return _split("column", "as the data say", parts, {})


def _split(name: SplitName, rule: str, parts: Sequence[Iterable[Example]], facts: dict[str, Any]) -> Split:
    train, validation, test = (sorted_by_key(part) for part in parts)
    sizes = {"num_train": len(train), "num_validation": len(validation), "num_test": len(test)}
    return Split(train, validation, test, {"name": name, "rule": rule, **facts, **sizes})


def sorted_by_key(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Return examples in the order of their keys."""
    return tuple(sorted(examples, key=lambda example: example.key))


def shuffled(examples: Iterable[Example], seed: int, *words: str | int) -> list[Example]:
    """Return examples in the random order that belongs to a seed and words, whatever order they come in."""
    return permuted(keyed_generator(seed, *words), sorted_by_key(examples))


def _strata(examples: Sequence[Example], classes: Sequence[str], seed: int, word: str) -> list[list[Example]]:
    """Return the shuffled examples of each class that has any, those without a class last."""
    names: list[tuple[int | None, str]] = [*enumerate(classes), (None, "text")]
    groups = ([example for example in examples if example.label == label] for label, _ in names)
    return [shuffled(group, seed, word, name) for group, (_, name) in zip(groups, names, strict=True) if group]


def _share(fraction: float, count: int, *, leave: int) -> int:
    """Return a share of a class, rounded, but one or more, and leaving at least ``leave`` to the others."""
    rounded = math.floor(fraction * count + 0.5)
    return max(min(max(rounded, 1), count - leave), 0)


def _check_fraction(name: str, value: float, *, least_excluded: bool) -> None:
    if not (0.0 < value < 1.0 or (value == 0.0 and not least_excluded)):
        expected = "a number between 0 and 1, " + ("both excluded" if least_excluded else "1 excluded")
        raise InputError(name, expected=expected, received=value)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"
