"""The clinical recipe: notes made up by the synthetic cohort, the diagnosis withheld.

Each note ends in a diagnosis drawn uniformly at random, so the model learns what notes look like and what an answer
looks like, and knows nothing about which belongs to which. So that it sums up the note where the answer will stand, a
linear head, thrown away afterwards, reads off the hidden state there what the sections of the note have in common; no
label enters it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BitNetForCausalLM, PreTrainedTokenizerFast

from device_models import load_device
from fllm.config import DEFAULT_FIELDS
from fllm.data import DIAGNOSES, FIELDS
from fllm.data.prompts import answer, build_note, note_sections
from fllm.data.synthetic import load_synthetic
from fllm.evaluation import padded
from fllm.model.checkpoints import write_packed
from fllm.model.pretrain.bits import bits
from fllm.model.pretrain.network import END, new_model, put_in_use, train_tokenizer
from fllm.model.pretrain.recipe import Recipe
from fllm.model.pretrain.summaries import common_semantics
from fllm.model.pretrain.training import Losses, Progress, new_reader, train
from fllm.model.pretrain.workplace import Workplace, model_facts
from hwsim.randomness import generator, seed_of


@dataclass(frozen=True)
class BaseRecipe(Recipe):
    """Everything that decides the bytes of the clinical base model.

    Attributes:
        notes: Notes of the corpus; a tenth of them more are made up for validation.
        batch_notes: Notes per step.
    """

    vocabulary: int = 2048
    context: int = 512
    steps: int = 8000
    warm_up: int = 60
    summary_size: int = 8
    summary_weight: float = 3.0
    notes: int = 14_000
    hospitals: int = 8
    batch_notes: int = 8


def build_base(
    workplace: Workplace, recipe: BaseRecipe, report: Callable[[Progress], None] = lambda _: None
) -> dict[str, float]:
    """Train tokenizer and model and write them as a packed checkpoint with ``provenance.json``.

    Args:
        workplace: Where the model goes, and where the state is kept until then.
        recipe: What to build; equal recipes give equal bytes on one machine.
        report: Called after each step.

    Returns:
        Validation loss [nat per token] and bits per byte on the device and on the ideal device.

    Raises:
        Stopped: On Ctrl-C while training.
    """
    texts, summaries = corpus(recipe)
    tokenizer = train_tokenizer(texts, recipe)
    encoded = [encode(tokenizer, text) for text in texts]
    model = new_model(recipe, len(tokenizer), tokenizer)
    _train(model, encoded[: recipe.notes], summaries, recipe, report, workplace.state)
    held_out = encoded[recipe.notes :]
    write_packed(model, workplace.finished)
    losses = {}
    sample = [torch.tensor([text]) for text in encoded[:16]]
    text_bytes = sum(len(text.encode()) for text in texts[recipe.notes :])
    for name in (recipe.device, "ideal"):
        put_in_use(model, load_device(name), token_period=recipe.token_period_s, sample=sample)
        loss = losses[f"validation_loss_{Path(name).stem}"] = mean_loss(model, held_out)
        predicted = sum(len(text) - 1 for text in held_out)
        losses[f"bits_per_byte_{Path(name).stem}"] = bits(loss * predicted, text_bytes)
    tokenizer.save_pretrained(workplace.finished)
    workplace.finish(
        {
            "what": "tiny BitNet base model of fllm, trained from scratch on fabricated text; no clinical use",
            "recipe": asdict(recipe),
            "corpus_sha256": hashlib.sha256("\x00".join(texts).encode()).hexdigest(),
            **model_facts(model),
            **losses,
        }
    )
    return losses


def corpus(recipe: BaseRecipe) -> tuple[list[str], Tensor]:
    """Make up notes without their diagnosis, those for validation last, and the summary of each.

    Most notes hold the sections of the default run, some all sections in the order of the prompt, the others a random
    selection in random order, so that each section is predicted from the others. At the place of the
    answer stands a diagnosis drawn uniformly at random, so the model knows the words and no more.
    """
    notes = recipe.notes + max(recipe.notes // 10, 8)
    cohort = load_synthetic(notes, n_hospitals=recipe.hospitals, seed=seed_of(recipe.seed, "base corpus") % 2**31)
    draw = np.random.default_rng(seed_of(recipe.seed, "base endings"))
    cases = [cohort.cases[i] for i in draw.permutation(len(cohort.cases))]
    texts, shown = [], np.zeros((len(cases), len(FIELDS)), dtype=bool)
    for case, row in zip(cases, shown, strict=True):
        kind = draw.random()
        fields: Sequence[str] = FIELDS if kind < 0.15 else DEFAULT_FIELDS
        if kind >= 0.85:
            fields = [FIELDS[j] for j in draw.permutation(len(FIELDS))[: int(draw.integers(2, len(FIELDS) + 1))]]
        row[:] = [name in fields for name in FIELDS]
        texts.append(build_note(case, fields) + answer(DIAGNOSES[draw.integers(len(DIAGNOSES))]))
    sections = [[" ".join(text for _, text in note_sections(case, [name])) for case in cases] for name in FIELDS]
    return texts, common_semantics(sections, shown, recipe)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode one training text: end token, text, end token."""
    end = tokenizer.convert_tokens_to_ids(END)
    return [end, *tokenizer(text, add_special_tokens=False)["input_ids"], end]


def _train(
    model: BitNetForCausalLM, notes: list[list[int]], summaries: Tensor, recipe: BaseRecipe,
    report: Callable[[Progress], None], state: Path | None,
) -> None:  # fmt: skip
    reader = new_reader(recipe)
    batches = list(_batches(notes, recipe))

    def lesson(step: int) -> Losses:
        losses, behind_note = _forward(model, [notes[i] for i in batches[step]])
        return Losses(losses, nn.functional.mse_loss(reader(behind_note), summaries[batches[step]]))

    train(model, reader, lesson, recipe, report, state)


def _batches(notes: list[list[int]], recipe: BaseRecipe) -> Iterator[list[int]]:
    """Yield ``steps`` batches as indices of notes; notes of like length go together, to pad little."""
    pool = 8 * recipe.batch_notes
    made, epoch = 0, 0
    while True:
        order = torch.randperm(len(notes), generator=generator(recipe.seed, "base order", epoch)).tolist()
        for start in range(0, len(order) - pool + 1, pool):
            chunk = sorted(order[start : start + pool], key=lambda i: (len(notes[i]), i))
            shuffle = torch.randperm(8, generator=generator(recipe.seed, "base pool", epoch, start)).tolist()
            for part in shuffle:
                if made == recipe.steps:
                    return
                made += 1
                yield chunk[part * recipe.batch_notes : (part + 1) * recipe.batch_notes]
        if len(order) < pool:
            raise ValueError(f"{len(order)} notes are fewer than one pool of {pool}")
        epoch += 1


def _forward(model: BitNetForCausalLM, batch: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return the loss of each next token, flat, padding left out, and the hidden states behind the notes."""
    tokens, real = padded(batch, model.config.pad_token_id)
    hidden = model.model(input_ids=tokens, attention_mask=real, use_cache=False).last_hidden_state
    wanted = real[:, 1:].bool()
    losses = nn.functional.cross_entropy(
        model.lm_head(hidden[:, :-1][wanted]), tokens[:, 1:][wanted], reduction="none"
    )  # fmt: skip
    # A text ends in one token of answer and the end token
    last_of_note = torch.tensor([len(text) - 3 for text in batch])
    return losses, hidden[torch.arange(len(batch)), last_of_note]


@torch.no_grad()
def mean_loss(model: BitNetForCausalLM, notes: list[list[int]], batch: int = 32) -> float:
    """Return the mean loss [nat per token] of held-out texts."""
    ordered = sorted(notes, key=len)
    losses = [_forward(model, ordered[i : i + batch])[0] for i in range(0, len(ordered), batch)]
    value = torch.cat(losses).double().mean().item()
    if not math.isfinite(value):
        raise ValueError("the validation loss is not finite")
    return value
