"""Random draws that are functions of a key, never of call order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def keyed_generator(seed: int, *words: str | int) -> np.random.Generator:
    """Return the generator that belongs to a seed and a list of words; equal keys give equal streams."""
    key = "\x1f".join(str(word) for word in (seed, *words))
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Draw one Bernoulli event."""
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """Draw one item, all equally likely."""
    return items[min(int(rng.random() * len(items)), len(items) - 1)]


def draw_from(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """Draw one key with a probability in proportion to its weight."""
    mark = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        mark -= weight
        if mark < 0:
            return name
    return next(reversed(list(weights)))


def lognormal(rng: np.random.Generator, median: float, sigma: float) -> float:
    """Draw ``median * exp(sigma * z)`` with z standard normal."""
    return float(median * np.exp(sigma * rng.standard_normal()))


def permuted(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """Return the items in random order."""
    return [items[i] for i in rng.permutation(len(items))]
