"""What a language model must beat: the frequencies of tokens and of pairs of tokens in the training texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Floats = NDArray[np.float64]


def language_baselines(
    train: Sequence[Sequence[int]], test: Sequence[Sequence[int]], vocabulary: int
) -> dict[str, dict[str, Any]]:
    """Score how well counts of tokens predict the test passages, token by token.

    As for a language model, the first token of each passage is given, and all others are predicted.

    - ``unigram``: the frequency of each token, with one added to every count; it chooses the most frequent token.
    - ``bigram``: interpolated Kneser-Ney estimate of each token after the one before it.

    Args:
        train: Token ids of the training passages, of all clients pooled.
        test: Token ids of the test passages.
        vocabulary: Number of different tokens.

    Returns:
        For each baseline ``name``, ``kind``, ``accuracy`` (share of tokens that are its likeliest choice) [1] and
        ``perplexity`` [1]; both null when the test passages hold no token to predict.
    """
    first, then = _pairs(train)
    given, truth = _pairs(test)
    counts = np.bincount(then, minlength=vocabulary)
    single = np.log((counts[truth] + 1) / (len(then) + vocabulary))
    pairs, choices = bigram(first, then, given, truth, vocabulary)
    return {
        "unigram": _entry("frequencies of tokens", "constant", single, truth == counts.argmax()),
        "bigram": _entry("frequencies of token pairs", "counts", np.log(pairs), truth == choices),
    }


def _entry(name: str, kind: str, log_likelihood: Floats, right: NDArray[np.bool_]) -> dict[str, Any]:
    scored = len(right) > 0
    return {
        "name": name,
        "kind": kind,
        "accuracy": float(right.mean()) if scored else None,
        "perplexity": math.exp(-float(log_likelihood.mean())) if scored else None,
    }


def _pairs(passages: Sequence[Sequence[int]]) -> tuple[Tokens, Tokens]:
    """Return each token that has a successor in its passage, and that successor."""
    first = [token for passage in passages for token in passage[:-1]]
    then = [token for passage in passages for token in passage[1:]]
    return np.array(first, dtype=np.int64), np.array(then, dtype=np.int64)


def bigram(
    first: Tokens, then: Tokens, given: Tokens, truth: Tokens, vocabulary: int
) -> tuple[Floats, Tokens]:  # fmt: skip
    r"""Estimate the probability of tokens after given ones, and the likeliest token after each.

    .. math:: p(w \mid v) = \frac{\max(c_{vw} - D, 0)}{c_v} + \frac{D\, N_{v}}{c_v}\, q(w), \qquad
        q(w) = \frac{\max(N^w - D', 0)}{N} + \frac{D'\, M}{N\, V}

    with :math:`N_v` the number of different tokens after v, :math:`N^w` of those before w, :math:`N` of different
    pairs, :math:`M` of tokens with any before them, and :math:`V` of all tokens. After a token that has no successor in
    training, :math:`p = q`.

    Args:
        first: First tokens of the training pairs.
        then: Second tokens of the training pairs.
        given: First tokens of the pairs to estimate.
        truth: Second tokens of the pairs to estimate.
        vocabulary: Number of different tokens.

    Returns:
        Probabilities and likeliest tokens, of as many as ``given``.

    Source: Kneser and Ney, ICASSP 1995; interpolated, as in Chen and Goodman, Computer Speech & Language 13, 359
    (1999), equations 20 and 21, with one discount per order, :math:`D = n_1 / (n_1 + 2 n_2)`.
    """
    code, seen = np.unique(first * vocabulary + then, return_counts=True)
    before, after = code // vocabulary, code % vocabulary
    total = np.bincount(before, weights=seen, minlength=vocabulary)
    kinds = np.bincount(before, minlength=vocabulary)
    lower = _continuation(np.bincount(after, minlength=vocabulary))
    discount = _discount(seen)
    with np.errstate(invalid="ignore"):
        spare = np.where(total > 0, discount * kinds / total, 1.0)  # mass that goes to the lower order
    direct = (seen - discount) / total[before]
    wanted = given * vocabulary + truth
    place = np.minimum(np.searchsorted(code, wanted), max(len(code) - 1, 0))
    known = code[place] == wanted if len(code) else np.zeros(len(wanted), dtype=bool)
    found = spare[given] * lower[truth]
    found[known] += direct[place[known]]
    return found, _likeliest(before, after, direct + spare[before] * lower[after], spare, lower)[given]


def _continuation(kinds: NDArray[np.int64]) -> Floats:
    """Return how likely each token is after a token unknown, from the number of different tokens before it."""
    discount, total, size = _discount(kinds[kinds > 0]), int(kinds.sum()), len(kinds)
    if not total:
        return np.full(size, 1.0 / size)
    return np.asarray(np.maximum(kinds - discount, 0.0) / total + discount * (kinds > 0).sum() / total / size)


def _discount(counts: NDArray[np.int64]) -> float:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once and twice else 0.5


def _likeliest(before: Tokens, after: Tokens, found: Floats, spare: Floats, lower: Floats) -> Tokens:
    """Return the likeliest token after each token: one seen there, or the likeliest of the lower order."""
    choice = np.full(len(lower), int(lower.argmax()))
    best = spare * lower.max()
    order = np.lexsort((-after, found, before))  # the last of each token: most likely, then smallest id
    last = order[np.append(before[order][1:] != before[order][:-1], True)] if len(order) else order
    better = last[found[last] >= best[before[last]]]
    choice[before[better]] = after[better]
    return choice
