"""Build base models from scratch: tokenizer and ternary language model, trained on a device.

:mod:`clinical` is the recipe on made-up clinical notes, :mod:`text` builds from any text.
"""

from fllm.model.pretrain.clinical import BaseRecipe, build_base
from fllm.model.pretrain.recipe import SIZES, TextRecipe, recipe_of, steps_for
from fllm.model.pretrain.text import Sources, build_text_base
from fllm.model.pretrain.training import Progress, Stopped
from fllm.model.pretrain.workplace import Workplace

__all__ = [
    "SIZES",
    "BaseRecipe",
    "Progress",
    "Sources",
    "Stopped",
    "TextRecipe",
    "Workplace",
    "build_base",
    "build_text_base",
    "recipe_of",
    "steps_for",
]
