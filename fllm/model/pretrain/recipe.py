"""What decides the bytes of a base model: its shape and its training, for any text by a named size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from device_models import InputError


@dataclass(frozen=True)
class Recipe:
    """What every recipe says about the model and its training, whatever the text.

    Attributes:
        vocabulary: Most tokens of the tokenizer.
        steps: Optimiser steps.
        learning_rate: Peak of the first stage; the second stage starts at ``stage_two_rate`` of it and falls to zero.
        stage_two: Share of steps after which weight decay ends and the rate drops.
        device: Device file or name of the device in the loop.
        token_period_s: [s] time between two tokens in the loop.
        key_gain: [V] initial gain of the key and value range scalers.
        summary_size: Dimensions of the summary of a text.
        summary_weight: Weight of its loss beside that of the next token.
        embedding_rate: Learning rate of the embeddings beside that of the rest; other than 1, they do not decay.
    """

    vocabulary: int
    context: int
    steps: int
    warm_up: int
    summary_size: int
    summary_weight: float
    seed: int = 0
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 2
    learning_rate: float = 3e-3
    stage_two: float = 0.5
    stage_two_rate: float = 0.5
    weight_decay: float = 0.1
    device: str = "gaincell_28nm"
    token_period_s: float = 1e-5
    key_gain: float = 0.25
    output_gain: float = 1.0
    embedding_rate: float = 4.0


@dataclass(frozen=True)
class TextRecipe(Recipe):
    """A base model on any text; the defaults are those of the size ``1m``.

    Attributes:
        sequences: Pieces of ``context`` tokens per step.
        passages: Short passages per step, summed up at their end; 0 for none.
        held_out: Share of documents held out when no validation file is given.
        precision: Of the matrix products while training; ``bfloat16`` runs under autocast.
    """

    vocabulary: int = 4096
    context: int = 256
    steps: int = 20_000
    warm_up: int = 100
    summary_size: int = 96
    summary_weight: float = 2.0
    sequences: int = 3
    passages: int = 6
    held_out: float = 0.05
    precision: Literal["float32", "bfloat16"] = "float32"


SIZES: dict[str, TextRecipe] = {
    "1m": TextRecipe(),
    "3m": TextRecipe(
        hidden_size=192, intermediate_size=576, layers=5, heads=3, context=512, sequences=16, passages=40,
        learning_rate=2e-3, warm_up=200,
    ),
    "10m": TextRecipe(
        vocabulary=8192, hidden_size=320, intermediate_size=960, layers=6, heads=5, context=512, sequences=32,
        passages=80, learning_rate=1.5e-3, warm_up=375,
    ),
    "30m": TextRecipe(
        vocabulary=8192, hidden_size=512, intermediate_size=1536, layers=8, heads=8, context=512, sequences=64,
        passages=160, learning_rate=1.2e-3, warm_up=375,
    ),
}  # fmt: skip
"""Shapes by their number of parameters, tied embeddings included: 1.4, 3.2, 10.6 and 31.5 million.

Heads of 64 dimensions fill the rows of a sub-tile. Learning rates fall with the size down to that of the smallest
published models. Source: ma2024.
"""

PASSAGE_TOKENS = 90
"""Tokens of a passage on average, about; what was really predicted is counted."""

TOKENS_PER_PARAMETER = 20
"""Tokens that a size is trained on by default, per parameter.

Source: Hoffmann et al., Training compute-optimal large language models, NeurIPS 2022, for full precision.
"""


def recipe_of(size: str) -> TextRecipe:
    """Return the recipe of a named size; raises InputError where there is no such size."""
    if size not in SIZES:
        known = ", ".join(SIZES)
        raise InputError("unknown size", where="--size", expected=f"one of {known}", received=size)
    return SIZES[size]


def parameters(recipe: Recipe) -> int:
    """Return the number of parameters of a recipe's model [1], norms and range scalers left out."""
    layer = 4 * recipe.hidden_size**2 + 3 * recipe.hidden_size * recipe.intermediate_size
    return recipe.layers * layer + recipe.vocabulary * recipe.hidden_size


def steps_for(recipe: TextRecipe, tokens: int | None = None) -> int:
    """Return the steps that predict so many tokens, by default ``TOKENS_PER_PARAMETER`` for each parameter."""
    wanted = TOKENS_PER_PARAMETER * parameters(recipe) if tokens is None else tokens
    return max(1, round(wanted / (recipe.sequences * recipe.context + recipe.passages * PASSAGE_TOKENS)))
