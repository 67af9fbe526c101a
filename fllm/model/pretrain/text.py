"""Build a base model on any text: tokens once, training that can be interrupted, scores, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BitNetForCausalLM

from device_models import load_device
from fllm.model.checkpoints import write_packed
from fllm.model.pretrain.bits import bits, reference_losses, text_loss
from fllm.model.pretrain.documents import Split, checked
from fllm.model.pretrain.embeddings import embed_by_counts
from fllm.model.pretrain.lessons import TextLessons
from fllm.model.pretrain.network import new_model, put_in_use
from fllm.model.pretrain.recipe import TextRecipe
from fllm.model.pretrain.tokens import TokenCorpus, is_tokenised, load_tokens, tokenise
from fllm.model.pretrain.training import Progress, new_reader, train
from fllm.model.pretrain.workplace import Workplace, model_facts


@dataclass(frozen=True)
class Sources:
    """Files to build from.

    Attributes:
        corpus: Text to train on.
        validation: Text held out; none takes a share of the corpus.
        column: Column of a table that holds the text.
        where: ``cpu`` or ``cuda``, the machine to train on.
    """

    corpus: Sequence[str]
    validation: Sequence[str]
    column: str
    where: str = "cpu"

    def split(self, recipe: TextRecipe) -> Split:
        """Return documents to train on and held out; raises InputError where a file cannot be read."""
        corpus, held_out = (checked([Path(p) for p in files], self.column) for files in (self.corpus, self.validation))
        return Split(corpus, held_out if self.validation else None, recipe.held_out, recipe.seed)


def build_text_base(
    workplace: Workplace, recipe: TextRecipe, sources: Sources,
    report: Callable[[Progress], None] = lambda _: None, on_stage: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Build a base model, or go on building it where its workplace holds a part of the work.

    Args:
        workplace: Where the model goes; begun.
        recipe: What to build; equal recipes and texts give equal bytes on one machine.
        sources: The text.
        report: Called after each step.
        on_stage: Is told what goes on.

    Returns:
        What ``provenance.json`` says.

    Raises:
        InputError: If a file cannot be read, or there is too little text.
        Stopped: On Ctrl-C while training.
    """
    if not is_tokenised(workplace.training):
        tokenise(sources.split(recipe), recipe, workplace.training, on_stage)
    provenance = _train_and_score(workplace, recipe, sources.where, report, on_stage)
    workplace.finish(provenance)
    return provenance


def _train_and_score(
    workplace: Workplace, recipe: TextRecipe, where: str,
    report: Callable[[Progress], None], on_stage: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the model; its tokens are no longer mapped at the return, as Windows takes no mapped file away."""
    corpus = load_tokens(workplace.training)
    model = new_model(recipe, len(corpus.tokenizer), corpus.tokenizer).to(where)
    if not workplace.state.exists():
        on_stage("counting tokens")
        embed_by_counts(model.get_input_embeddings(), corpus.train, recipe)
    reader = new_reader(recipe).to(where) if corpus.passages is not None else None
    on_stage("training")
    lessons = TextLessons(corpus, recipe, model, reader)
    seen = train(model, reader, lessons, recipe, report, workplace.state)
    write_packed(model, workplace.finished)
    corpus.tokenizer.save_pretrained(workplace.finished)
    return {
        "what": "BitNet base model of fllm, trained from scratch",
        "recipe": asdict(recipe),
        **asdict(corpus.facts),
        **model_facts(model),
        "tokens_seen": seen,
        "trained_on": where,
        "bits_per_byte": _scores(model, recipe, corpus, on_stage),
    }


def _scores(
    model: BitNetForCausalLM, recipe: TextRecipe, corpus: TokenCorpus, on_stage: Callable[[str], None]
) -> dict[str, float]:
    """Return bits per byte of the held-out text: of the model on its device and on the ideal one, of references."""
    losses = {}
    length = min(recipe.context, len(corpus.train))
    sample = torch.from_numpy(corpus.train[:length].astype(np.int64))[None].to(model.device)
    for name in (recipe.device, "ideal"):
        on_stage(f"scoring on {Path(name).stem}")
        put_in_use(model, load_device(name), token_period=recipe.token_period_s, sample=[sample])
        losses[Path(name).stem] = text_loss(model, corpus.held_out)
    on_stage("counting pairs of tokens")
    losses |= reference_losses(corpus.train, corpus.held_out, len(corpus.tokenizer))
    return {name: bits(loss, corpus.facts.held_out_bytes) for name, loss in losses.items()}
