"""How well a model predicts held-out text, in bits per byte, which no tokenizer changes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import BitNetForCausalLM

from fllm.baselines.language import bigram
from fllm.model.pretrain.tokens import Stream

COUNTED = 20_000_000
"""Tokens of training text that the simple references count at most, from the first on."""


@torch.no_grad()
def text_loss(model: BitNetForCausalLM, stream: Stream, batch: int = 16) -> float:
    """Return the loss [nat] of a whole stream, each token but the first predicted once.

    Windows of the model's context overlap by half, and only the second half of each is counted, so a token sees at
    least half a context where the stream has it.
    """
    context: int = model.config.max_position_embeddings
    length = min(context, len(stream) - 1)
    starts = [*range(0, len(stream) - 1 - length, max(1, length // 2)), len(stream) - 1 - length]
    total, counted = 0.0, 0
    for first in range(0, len(starts), batch):
        part = starts[first : first + batch]
        rows = torch.stack([torch.from_numpy(stream[s : s + length + 1].astype(np.int64)) for s in part])
        rows = rows.to(model.device)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
        losses = cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").double()
        for start, row in zip(part, losses, strict=True):
            fresh = row[counted - start :]
            total += float(fresh.sum())
            counted += len(fresh)
    if not math.isfinite(total):
        raise ValueError("the held-out loss is not finite")
    return total


def bits(loss: float, text_bytes: int) -> float:
    """Return a loss [nat] in bits per byte of text.

    The loss holds the end tokens behind the documents; the bytes are those of the documents alone.
    """
    return loss / (math.log(2.0) * text_bytes)


def reference_losses(train: Stream, held_out: Stream, vocabulary: int) -> dict[str, float]:
    """Return the loss [nat] of the held-out stream under counts of tokens and of pairs of tokens.

    The same estimates as :func:`fllm.baselines.language_baselines`, on the stream as a whole.
    """
    seen, text = (stream.astype(np.int64) for stream in (train[:COUNTED], held_out))
    counts = np.bincount(seen[1:], minlength=vocabulary)
    single = np.log((counts[text[1:]] + 1) / (len(seen) - 1 + vocabulary))
    pairs, _ = bigram(seen[:-1], seen[1:], text[:-1], text[1:], vocabulary)
    return {"unigram": -float(single.sum()), "bigram": -float(np.log(pairs).sum())}
