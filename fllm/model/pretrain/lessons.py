"""What a model learns from in each step: pieces of the token stream, and short passages with their summaries.

Which ones they are is a function of the step, so training goes on after an interruption as if there had been none.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import BitNetForCausalLM

from fllm.evaluation import padded
from fllm.model.pretrain.passages import Passages
from fllm.model.pretrain.recipe import TextRecipe
from fllm.model.pretrain.tokens import Stream, TokenCorpus
from fllm.model.pretrain.training import Losses
from hwsim.randomness import generator

POOL = 16
"""Batches of passages that are sorted by length together, to pad little."""


class TextLessons:
    """The losses of each step.

    Args:
        corpus: Tokens and passages.
        recipe: Sizes of the batches, and the precision.
        model: The model; batches go to the machine that it is on.
        reader: Reads summaries; None where there are no passages.
    """

    def __init__(
        self, corpus: TokenCorpus, recipe: TextRecipe, model: BitNetForCausalLM, reader: nn.Linear | None
    ) -> None:
        self.recipe, self.model, self.reader, self.corpus = recipe, model, reader, corpus
        self.sequences = Sequences(corpus.train, recipe)
        self.batches = None if corpus.passages is None else PassageBatches(corpus.passages, recipe)

    def __call__(self, step: int) -> Losses:
        """Return the losses of a step, under autocast where the recipe asks for it."""
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=half):
            rows = self.sequences.batch(step).to(self.model.device)
            hidden = self.model.model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
            losses = [next_token_losses(self.model, hidden, rows[:, 1:])]
            summary = None
            if self.batches is not None:
                passage_losses, summary = self._passages(self.batches.batch(step))
                losses.append(passage_losses)
        return Losses(torch.cat(losses), summary)

    def _passages(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the losses of the tokens of passages, and that of the summaries at their last token."""
        assert self.reader is not None and self.corpus.passages is not None
        where, passages = self.model.device, self.corpus.passages
        rows = [passages[i] for i in batch]
        tokens, real = (x.to(where) for x in padded(rows, self.model.config.pad_token_id))
        hidden = self.model.model(input_ids=tokens, attention_mask=real, use_cache=False).last_hidden_state
        wanted = real[:, 1:].bool()
        losses = next_token_losses(self.model, hidden[:, :-1][wanted], tokens[:, 1:][wanted])
        last = torch.tensor([len(row) - 1 for row in rows], device=where)
        read = self.reader(hidden[torch.arange(len(rows), device=where), last]).float()
        return losses, mse_loss(read, torch.from_numpy(passages.summaries[batch]).to(where))


def next_token_losses(model: BitNetForCausalLM, hidden: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss [nat] of each wanted token, flat, in float32."""
    logits = model.lm_head(hidden).float()
    return cross_entropy(logits.flatten(0, -2), wanted.flatten(), reduction="none")


class Sequences:
    """Pieces of the stream in a random order; each epoch cuts at other places, and misses two pieces at most."""

    def __init__(self, stream: Stream, recipe: TextRecipe) -> None:
        self.stream, self.recipe = stream, recipe
        self.pieces = (len(stream) - 1) // recipe.context - 1
        self._epoch = self._shuffled(0)

    def batch(self, step: int) -> Tensor:
        """Return (sequences, context + 1) tokens."""
        length, size = self.recipe.context, self.recipe.sequences
        rows = []
        for number in range(step * size, (step + 1) * size):
            epoch, place = divmod(number, self.pieces)
            if epoch != self._epoch[0]:
                self._epoch = self._shuffled(epoch)
            _, offset, order = self._epoch
            start = offset + int(order[place]) * length
            rows.append(torch.from_numpy(self.stream[start : start + length + 1].astype(np.int64)))
        return torch.stack(rows)

    def _shuffled(self, epoch: int) -> tuple[int, int, Tensor]:
        draw = generator(self.recipe.seed, "text order", epoch)
        offset = int(torch.randint(self.recipe.context, (), generator=draw))
        return epoch, offset, torch.randperm(self.pieces, generator=draw)


class PassageBatches:
    """Passages in a random order, those of like length together."""

    def __init__(self, passages: Passages, recipe: TextRecipe) -> None:
        self.lengths, self.recipe = passages.lengths, recipe
        self.per_epoch = len(passages) // recipe.passages
        self._epoch = self._shuffled(0)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Return the indices of the passages of a step."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch[0]:
            self._epoch = self._shuffled(epoch)
        return self._epoch[1][place]

    def _shuffled(self, epoch: int) -> tuple[int, list[NDArray[np.int64]]]:
        size = self.recipe.passages
        draw = generator(self.recipe.seed, "passage order", epoch)
        order = torch.randperm(len(self.lengths), generator=draw).numpy()[: self.per_epoch * size]
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), POOL * size):
            pool = order[start : start + POOL * size]
            pool = pool[np.lexsort((pool, self.lengths[pool]))]
            batches += np.split(pool, len(pool) // size)
        return epoch, [batches[i] for i in torch.randperm(len(batches), generator=draw)]
