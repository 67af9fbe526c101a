"""Score a model on held-out cases: which class's name is most likely, and how well it predicts the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from fllm.evaluation.metrics import Array
from fllm.evaluation.prompts import Prompt
from fllm.evaluation.scores import Scores, classified, predicted
from hwsim import noise_key
from hwsim.randomness import seed_of


@dataclass(frozen=True, eq=False)
class _Batch:
    """What one forward pass says about its prompts; logits are gone.

    Attributes:
        scores: (batch, classes) log-likelihood of each class's name [nat].
        losses: (batch, 2) sum of token losses [nat] and number of tokens.
        hits: (batch,) tokens whose likeliest prediction is right.
        loss_sum: Sum over all tokens of the batch [nat].
    """

    scores: Array
    losses: Array
    hits: Array
    loss_sum: float


@torch.no_grad()
def evaluate(
    model: nn.Module, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], batch_size: int, pad_id: int,
    noise_seed: int = 0,
) -> Scores:  # fmt: skip
    """Score prompts by the likelihood of each class's name: the product over its tokens.

    That is how likely the model writes the name, so the easy last tokens of a long one are no advantage. Each prompt
    has a noise key of its own, so its score does not depend on the batch that it is in.

    Args:
        model: Causal language model; its mode is restored afterwards.
        prompts: The cases.
        answers: Token ids of each class's name, in the order of the labels; none for language modelling, where the
            prompts' own tokens are what is predicted.
        batch_size: Prompts per forward pass.
        pad_id: Token used as padding.
        noise_seed: Key of the noise of the device, if it has any.

    Returns:
        The metrics.

    Raises:
        ValueError: If there are classes, and a prompt without one.
    """
    if answers and any(prompt.label is None for prompt in prompts):
        raise ValueError("a prompt without a class among labelled ones")
    was_training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), i))
    likelihoods, losses = np.zeros((len(prompts), len(answers))), np.zeros((len(prompts), 2))
    hits, loss_sum = np.zeros(len(prompts)), 0.0
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        keys = torch.tensor([seed_of(noise_seed, "prompt", i) for i in part])
        with noise_key(keys):
            batch = _score_batch(model, [prompts[i] for i in part], answers, pad_id)
        likelihoods[part], losses[part], hits[part] = batch.scores, batch.losses, batch.hits
        loss_sum += batch.loss_sum
    model.train(was_training)
    if answers:
        found = classified(likelihoods, np.array([prompt.label for prompt in prompts]), losses)
    else:
        found = predicted(hits, losses)
    tokens = losses[:, 1].sum()
    return replace(found, perplexity=math.exp(loss_sum / tokens) if tokens else math.nan)


def _score_batch(model: nn.Module, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], pad_id: int) -> _Batch:
    tokens, real = padded([prompt.tokens for prompt in prompts], pad_id)
    logits = model(input_ids=tokens, attention_mask=real, use_cache=False).logits.float()
    wanted = real[:, 1:].bool()
    given, next_tokens = logits[:, :-1][wanted], tokens[:, 1:][wanted]
    losses = cross_entropy(given, next_tokens, reduction="none")
    right = next_tokens == given.argmax(dim=-1)
    row = torch.arange(len(prompts))[:, None].expand_as(wanted)[wanted]
    sums = torch.zeros(len(prompts), 3, dtype=torch.float64)
    sums.index_add_(0, row, torch.stack([losses.double(), torch.ones_like(row).double(), right.double()], dim=1))
    scores = np.zeros((len(prompts), 0)) if not answers else _likelihoods(model, logits, prompts, answers, pad_id)
    return _Batch(scores, sums[:, :2].numpy(), sums[:, 2].numpy(), losses.double().sum().item())


def _likelihoods(
    model: nn.Module, logits: Tensor, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], pad_id: int
) -> Array:
    """Return (batch, classes) log-likelihoods of the names; ``logits`` are those of the prompts alone."""
    last = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
    first = log_softmax(logits[torch.arange(len(prompts)), last], dim=-1)
    scores = torch.stack([first[:, answer[0]] for answer in answers], dim=1)
    for index, answer in enumerate(answers):
        if len(answer) > 1:  # the tokens behind the first need the first as context
            scores[:, index] = _answer_likelihood(model, prompts, answer, pad_id)
    return scores.double().numpy()


def _answer_likelihood(model: nn.Module, prompts: Sequence[Prompt], answer: Sequence[int], pad_id: int) -> Tensor:
    tokens, real = padded([(*prompt.tokens, *answer) for prompt in prompts], pad_id)
    logits = log_softmax(model(input_ids=tokens, attention_mask=real, use_cache=False).logits.float(), dim=-1)
    rows = torch.arange(len(prompts))
    start = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
    parts = [logits[rows, start + offset, token] for offset, token in enumerate(answer)]
    return torch.stack(parts).sum(dim=0)


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token lists on the right; return ids and attention mask, both (rows, longest)."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *([pad_id] * (width - len(row)))] for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, real
