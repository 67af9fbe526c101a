"""Score a model on held-out cases: which diagnosis is most likely, and how well it predicts the note."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from fllm.data import DIAGNOSES
from hwsim import noise_key
from hwsim.randomness import seed_of

METRICS = ("accuracy", "macro_f1", "perplexity")
"""Names of the numbers in :class:`Scores`."""


@dataclass(frozen=True)
class Prompt:
    """One case as token ids; ``repr`` shows none of them.

    Attributes:
        tokens: The prompt.
        diagnosis: Index into ``DIAGNOSES``.
        truncated: Whether text was cut out of the middle to fit.
    """

    tokens: tuple[int, ...]
    diagnosis: int
    truncated: bool

    def __repr__(self) -> str:
        return f"Prompt({len(self.tokens)} tokens)"


@dataclass(frozen=True)
class Scores:
    """Metrics of one model on one device.

    Attributes:
        accuracy: Share of cases whose most likely diagnosis is right.
        macro_f1: Mean over the four diagnoses of the F1 score.
        perplexity: exp of the mean loss per token of the prompts, answers excluded.
        correct: 1 or 0 for each case, in the order given.
    """

    accuracy: float
    macro_f1: float
    perplexity: float
    correct: tuple[float, ...]


@torch.no_grad()
def evaluate(
    model: nn.Module, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], batch_size: int, pad_id: int,
    noise_seed: int = 0,
) -> Scores:  # fmt: skip
    """Score prompts by the likelihood of each diagnosis, normalised by its number of tokens.

    Each prompt has a noise key of its own, so its score does not depend on the batch that it is in.

    Args:
        model: Causal language model; its mode is restored afterwards.
        prompts: The cases.
        answers: Token ids of each diagnosis, in the order of ``DIAGNOSES``.
        batch_size: Prompts per forward pass.
        pad_id: Token used as padding.
        noise_seed: Key of the noise of the device, if it has any.

    Returns:
        The metrics.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), i))
    chosen = np.zeros(len(prompts), dtype=int)
    loss_sum, loss_count = 0.0, 0
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        keys = torch.tensor([seed_of(noise_seed, "prompt", i) for i in part])
        with noise_key(keys):
            scores, losses = _score_batch(model, [prompts[i] for i in part], answers, pad_id)
        chosen[part] = scores.argmax(dim=1).numpy()
        loss_sum += losses.double().sum().item()
        loss_count += losses.numel()
    model.train(was_training)
    truth = np.array([prompt.diagnosis for prompt in prompts])
    return Scores(
        accuracy=float((chosen == truth).mean()),
        macro_f1=macro_f1(truth, chosen),
        perplexity=math.exp(loss_sum / loss_count) if loss_count else math.nan,
        correct=tuple(float(x) for x in chosen == truth),
    )


def over_dies(scores: Sequence[Scores]) -> Scores:
    """Return the means over dies; ``correct`` becomes the share of dies on which a case came out right."""
    share = np.mean([found.correct for found in scores], axis=0)
    mean = {key: float(np.mean([getattr(found, key) for found in scores])) for key in METRICS}
    return Scores(**mean, correct=tuple(share.tolist()))


def _score_batch(
    model: nn.Module, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return (batch, diagnoses) mean log-likelihoods per token, and the losses of all prompt tokens."""
    tokens, real = padded([prompt.tokens for prompt in prompts], pad_id)
    logits = model(input_ids=tokens, attention_mask=real, use_cache=False).logits.float()
    wanted = real[:, 1:].bool()
    losses = cross_entropy(logits[:, :-1][wanted], tokens[:, 1:][wanted], reduction="none")
    last = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
    first = log_softmax(logits[torch.arange(len(prompts)), last], dim=-1)
    scores = torch.stack([first[:, answer[0]] for answer in answers], dim=1)
    for index, answer in enumerate(answers):
        if len(answer) > 1:  # the tokens behind the first need the first as context
            scores[:, index] = _answer_likelihood(model, prompts, answer, pad_id)
    return scores, losses


def _answer_likelihood(model: nn.Module, prompts: Sequence[Prompt], answer: Sequence[int], pad_id: int) -> Tensor:
    tokens, real = padded([(*prompt.tokens, *answer) for prompt in prompts], pad_id)
    logits = log_softmax(model(input_ids=tokens, attention_mask=real, use_cache=False).logits.float(), dim=-1)
    rows = torch.arange(len(prompts))
    start = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
    parts = [logits[rows, start + offset, token] for offset, token in enumerate(answer)]
    return torch.stack(parts).mean(dim=0)


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token lists on the right; return ids and attention mask, both (rows, longest)."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *([pad_id] * (width - len(row)))] for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, real


def macro_f1(truth: np.ndarray, chosen: np.ndarray) -> float:
    """Return the unweighted mean F1 over the four diagnoses; a diagnosis that neither occurs nor is chosen counts 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, chosen, labels=range(len(DIAGNOSES)), average="macro", zero_division=0))


def bootstrap_interval(correct: Sequence[float], *, seed: int, draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % percentile interval of an accuracy over redraws of the test cases."""
    flags = np.asarray(correct, dtype=float)
    rng = np.random.default_rng(seed_of(seed, "bootstrap", len(flags)))
    means = flags[rng.integers(len(flags), size=(draws, len(flags)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
