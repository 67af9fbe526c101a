"""Build the tiny base model: tokenizer and a ternary language model, trained on a device from scratch.

The corpus is clinical-style text made up by the synthetic cohort, with the diagnosis withheld: each note ends in a
diagnosis drawn uniformly at random, so the model learns what notes look like and what an answer looks like, and knows
nothing about which belongs to which. So that it sums up the note where the answer will stand, a linear head, thrown
away afterwards, reads the note's latent semantic vector off the hidden state there; no label enters it. Batches
alternate between the device and the ideal device, so that the model works on both.

Source of the recipe: ma2024 for two-stage learning rate and weight decay of ternary models, at our size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM, PreTrainedTokenizerFast

from device_models import load_device
from fllm.config import DEFAULT_FIELDS
from fllm.data import DIAGNOSES, FIELDS
from fllm.data.prompts import answer, build_note
from fllm.data.synthetic import load_synthetic
from fllm.evaluation import padded
from fllm.model.checkpoints import write_packed
from hwsim import BitLinear, emulate, gain_cell_layers
from hwsim.randomness import generator, seed_of

END = "<|end|>"
PAD = "<|pad|>"
put_on_design = partial(emulate, die_seed=None, noise_seed=None)
"""The base model is made for the design, not for one chip of it: chips are what fine-tuning meets."""


@dataclass(frozen=True)
class BaseRecipe:
    """Everything that decides the bytes of the base model.

    Attributes:
        notes: Notes of the corpus; a tenth of them more are made up for validation.
        steps: Optimiser steps.
        batch_notes: Notes per step.
        learning_rate: Peak of the first stage; the second stage starts at ``stage_two_rate`` of it and falls to zero.
        stage_two: Share of steps after which weight decay ends and the rate drops.
        device: Device file or name of the device in the loop.
        token_period_s: [s] time between two tokens in the loop.
        key_gain: [V] initial gain of the key and value range scalers.
        summary_size: Dimensions of the latent semantic vector.
        summary_weight: Weight of its loss beside that of the next token.
    """

    seed: int = 0
    notes: int = 14_000
    hospitals: int = 8
    vocabulary: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 2
    context: int = 512
    steps: int = 1600
    batch_notes: int = 24
    learning_rate: float = 3e-3
    stage_two: float = 0.5
    stage_two_rate: float = 0.5
    weight_decay: float = 0.1
    warm_up: int = 20
    device: str = "gaincell_28nm"
    token_period_s: float = 1e-5
    key_gain: float = 0.25
    output_gain: float = 1.0
    summary_size: int = 64
    summary_weight: float = 2.0


@dataclass(frozen=True)
class Progress:
    """One step of training, for a progress bar."""

    step: int
    steps: int
    loss: float
    summary_loss: float


def build_base(
    folder: Path, recipe: BaseRecipe, report: Callable[[Progress], None] = lambda _: None
) -> dict[str, float]:
    """Train tokenizer and model and write them as a packed checkpoint with ``provenance.json``.

    Args:
        folder: Folder to write; made if absent.
        recipe: What to build; equal recipes give equal bytes on one machine.
        report: Called after each step.

    Returns:
        Validation loss [nat per token] on the device and on the ideal device.
    """
    texts, summaries = corpus(recipe)
    tokenizer = train_tokenizer(texts, recipe)
    encoded = [encode(tokenizer, text) for text in texts]
    model = new_model(recipe, len(tokenizer), tokenizer)
    _train(model, encoded[: recipe.notes], summaries, recipe, report)
    held_out = encoded[recipe.notes :]
    write_packed(model, folder)
    losses = {}
    for name in (recipe.device, "ideal"):
        put_on_design(model, load_device(name), token_period=recipe.token_period_s)
        losses[f"validation_loss_{Path(name).stem}"] = mean_loss(model, held_out)
    tokenizer.save_pretrained(folder)
    provenance = {
        "what": "tiny BitNet base model of fllm, trained from scratch on fabricated text; no clinical use",
        "recipe": asdict(recipe),
        "corpus_sha256": hashlib.sha256("\x00".join(texts).encode()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "ternary_parameters": sum(m.weight.numel() for m in model.modules() if isinstance(m, BitLinear)),
        "torch": torch.__version__,
        **losses,
    }
    text = json.dumps(provenance, indent=2, sort_keys=True) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8", newline="\n")
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
    texts = []
    for case in cases:
        kind = draw.random()
        fields: Sequence[str] = FIELDS if kind < 0.15 else DEFAULT_FIELDS
        if kind >= 0.85:
            fields = [FIELDS[j] for j in draw.permutation(len(FIELDS))[: int(draw.integers(2, len(FIELDS) + 1))]]
        texts.append(build_note(case, fields) + answer(DIAGNOSES[draw.integers(len(DIAGNOSES))]))
    return texts, latent_semantics([build_note(case, DEFAULT_FIELDS) for case in cases], recipe)


def latent_semantics(notes: Sequence[str], recipe: BaseRecipe) -> Tensor:
    """Return (notes, summary_size) vectors of the notes' words and word pairs, each dimension of unit variance.

    Source: Deerwester et al., Indexing by latent semantic analysis, JASIS 41, 391 (1990).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_df=0.5),
        TruncatedSVD(recipe.summary_size, random_state=seed_of(recipe.seed, "summaries") % 2**31),
        StandardScaler(),
    ).fit_transform(notes)
    return torch.from_numpy(made).float()


def train_tokenizer(texts: Sequence[str], recipe: BaseRecipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=END)


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode one training text: end token, text, end token."""
    end = tokenizer.convert_tokens_to_ids(END)
    return [end, *tokenizer(text, add_special_tokens=False)["input_ids"], end]


def new_model(recipe: BaseRecipe, vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> BitNetForCausalLM:
    """Make the untrained model on its device."""
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (END, PAD))
    config = BitNetConfig(
        vocab_size=-(-vocabulary // 16) * 16,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(recipe.seed, "base weights"))
        model = BitNetForCausalLM(config)
    put_on_design(model, load_device(recipe.device), token_period=recipe.token_period_s)
    with torch.no_grad():
        for layer in gain_cell_layers(model):
            layer.key.gain.fill_(recipe.key_gain)
            layer.value.gain.fill_(recipe.key_gain)
            layer.output.gain.fill_(recipe.output_gain)
    return model


def _train(
    model: BitNetForCausalLM,
    notes: list[list[int]],
    summaries: Tensor,
    recipe: BaseRecipe,
    report: Callable[[Progress], None],
) -> None:
    reader = nn.Linear(recipe.hidden_size, recipe.summary_size)
    nn.init.zeros_(reader.weight)
    nn.init.zeros_(reader.bias)
    weights = [*model.parameters(), *reader.parameters()]
    matrices = [p for p in weights if p.dim() > 1]
    vectors = [p for p in weights if p.dim() <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    devices = [load_device(recipe.device), load_device("ideal")]
    model.train()
    for step, batch in enumerate(_batches(notes, recipe)):
        rate, decay = _schedule(step, recipe)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.param_groups[0]["weight_decay"] = decay
        put_on_design(model, devices[step % 2], token_period=recipe.token_period_s)
        losses, behind_note = _forward(model, [notes[i] for i in batch])
        summary_loss = nn.functional.mse_loss(reader(behind_note), summaries[batch])
        loss = losses.mean() + recipe.summary_weight * summary_loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        report(Progress(step + 1, recipe.steps, losses.mean().item(), summary_loss.item()))
    model.eval()


def _schedule(step: int, recipe: BaseRecipe) -> tuple[float, float]:
    """Return learning rate and weight decay: warm-up and slow fall, then a drop, a fall to zero and no decay."""
    share = step / recipe.steps
    warm = min(1.0, (step + 1) / recipe.warm_up)
    if share < recipe.stage_two:
        return recipe.learning_rate * warm * (1 - 0.5 * share / recipe.stage_two), recipe.weight_decay
    left = (1 - share) / (1 - recipe.stage_two)
    return recipe.learning_rate * warm * recipe.stage_two_rate * left, 0.0


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
