"""Made-up examples for tests of splits and partitions; they do not depend on any generator of cases."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from fllm.data import DIAGNOSES, Corpus, Example, Task
from fllm.data.draws import keyed_generator

TASK = Task("diagnosis", DIAGNOSES, "diagnosis:")


def made_up(count: int = 200) -> list[Example]:
    """Return examples in random order of their keys, with classes, hospitals a to e, ages and ranks."""
    rng = keyed_generator(0, "made-up cases")
    keys = (90_000_000 + rng.permutation(count) * 7).tolist()
    labels = rng.choice(4, size=count, p=[0.4, 0.27, 0.11, 0.22]).tolist()
    groups = rng.choice(5, size=count, p=[0.35, 0.25, 0.2, 0.15, 0.05]).tolist()
    ages = keyed_generator(0, "made-up ages").integers(18, 95, size=count).tolist()
    ranks = keyed_generator(0, "made-up ranks").permutation(count).tolist()
    rows = zip(keys, labels, groups, ages, ranks, strict=True)
    return [
        Example(key, (("", f"text {key}"),), label, "abcde"[group], age=age, rank=rank)
        for key, label, group, age, rank in rows
    ]


def corpus_of(examples: Sequence[Example], task: Task = TASK) -> Corpus:
    return Corpus(task, tuple(examples), True, "0" * 64, "made-up")


def without(examples: Iterable[Example], **nothing: None) -> list[Example]:
    """Return examples with some attributes set to None, named as ``label=None``."""
    return [replace(example, **nothing) for example in examples]  # type: ignore[arg-type]


def keys(examples: Iterable[Example]) -> list[int]:
    return [example.key for example in examples]


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
