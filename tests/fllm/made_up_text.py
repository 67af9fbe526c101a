"""A small language made up by key, for tests that build a base model: a few hundred words, documents of two topics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fllm.model.pretrain import SIZES, TextRecipe
from hwsim.randomness import seed_of

SMALL: TextRecipe = replace(
    SIZES["1m"], vocabulary=400, hidden_size=32, intermediate_size=48, layers=1, heads=1, context=32, steps=6,
    sequences=2, passages=3, warm_up=2, summary_size=4,
)  # fmt: skip
"""A recipe of a second."""


def documents(number: int = 60, seed: int = 0) -> list[str]:
    """Return documents of 30 to 80 words, each of one of two topics."""
    draw = np.random.default_rng(seed_of(seed, "made-up text"))
    topics = [[f"{stem}{i}" for i in range(80)] for stem in ("kidney", "heart")]
    made = []
    for _ in range(number):
        words = topics[draw.integers(2)]
        made.append(" ".join(words[i] for i in draw.integers(len(words), size=draw.integers(30, 81))))
    return made
