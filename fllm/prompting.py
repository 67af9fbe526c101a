"""Examples as token ids, none longer than the model and the budgets allow, and what was cut from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from device_models import InputError
from fllm.data.budget import TokenBudget, TokenizerEncoder, chunks, fit_prompts, truncation_facts
from fllm.data.corpus import Example, Task, note_text
from fllm.evaluation import Prompt


@dataclass(frozen=True)
class Encoded:
    """Prompts of examples.

    Attributes:
        prompts: Those of each example, by its key: one, or the pieces of a text that is longer.
        facts: Lengths, and what was cut, for a report.
    """

    prompts: Mapping[int, tuple[Prompt, ...]] = field(repr=False)
    facts: dict[str, Any]

    def of(self, examples: Sequence[Example]) -> list[Prompt]:
        """Return the prompts of some examples, in their order."""
        return [prompt for example in examples for prompt in self.prompts[example.key]]


def encode(examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, budget: TokenBudget) -> Encoded:
    """Write examples as token ids.

    A labelled text is one prompt that ends in the cue for its class; what does not fit is cut by the rule of
    :mod:`fllm.data.budget`. A text without a label is cut into pieces instead, so that nothing of it is lost.

    Raises:
        InputError: If a budget is for no field, not even the names of the fields and the cue fit, or nothing of the
            texts is left to predict.
    """
    encoder = TokenizerEncoder(tokenizer)
    if task.kind == "language":
        return _pieces(examples, task, encoder, budget)
    fitted = fit_prompts([example.sections for example in examples], task, encoder, budget)
    prompts = {
        example.key: (Prompt(found.tokens, example.label, found.truncated),)
        for example, found in zip(examples, fitted, strict=True)
    }
    return Encoded(prompts, _lengths(prompts) | {"truncation": truncation_facts(fitted, budget)})


def _pieces(examples: Sequence[Example], task: Task, encoder: TokenizerEncoder, budget: TokenBudget) -> Encoded:
    start, room = encoder.start, budget.room - len(encoder.start)
    texts = ((example.key, encoder.ids_of(note_text(example.sections, task))) for example in examples)
    prompts = {key: tuple(Prompt((*start, *piece), None, False) for piece in chunks(ids, room)) for key, ids in texts}
    if not any(prompts.values()):
        raise InputError("no text has two tokens or more", expected="a token to predict, and one before it")
    return Encoded(prompts, _lengths(prompts))


def _lengths(prompts: Mapping[int, tuple[Prompt, ...]]) -> dict[str, Any]:
    lengths = sorted(len(prompt.tokens) for own in prompts.values() for prompt in own)
    return {
        "tokens_per_prompt": {
            "median": lengths[len(lengths) // 2], "p95": lengths[int(0.95 * (len(lengths) - 1))], "max": lengths[-1],
        },
        "truncated_prompts": sum(prompt.truncated for own in prompts.values() for prompt in own),
    }  # fmt: skip
