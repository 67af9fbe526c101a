"""What one model scored on one device: the numbers, and what each test case contributed to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fllm.evaluation.calibration import at_temperature, calibrated, fit_temperature
from fllm.evaluation.metrics import Array, macro_f1

METRICS = ("accuracy", "macro_f1", "perplexity")
"""Names of the numbers in :class:`Scores`."""


@dataclass(frozen=True)
class Scores:
    """Metrics of one model on one device; its ``repr`` shows no single case.

    Attributes:
        accuracy: Share of cases whose most likely class is right; in language modelling, of tokens whose most likely
            successor is.
        macro_f1: Unweighted mean over the classes of the F1 score; None in language modelling, which has no classes.
        perplexity: exp of the mean loss per token of the prompts, answers excluded.
        correct: 1 or 0 for each case, in the order given; in language modelling the share of its tokens.
        log_likelihoods: (cases, classes) log-likelihood of each class's name [nat]; None in language
            modelling and for means over dies, as the next three.
        probabilities: (cases, classes) softmax of them. As they are means per token, this is no probability that the
            model itself states: it is calibrated only as far as it was made so.
        truth: (cases,) true classes.
        losses: (cases, 2) sum of the losses of the prompt's tokens [nat], and their number; in language modelling too.
        temperature: What the likelihoods were divided by [1].
    """

    accuracy: float
    macro_f1: float | None
    perplexity: float
    correct: tuple[float, ...] = field(repr=False)
    log_likelihoods: Array | None = field(default=None, repr=False, compare=False)
    probabilities: Array | None = field(default=None, repr=False, compare=False)
    truth: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    losses: Array | None = field(default=None, repr=False, compare=False)
    temperature: float = 1.0

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Most likely class of each case, (cases,).

        Raises:
            ValueError: If there are no classes, or the scores are means over dies.
        """
        return self._known()[0].argmax(axis=1)

    def without_content(self, content_free: Scores) -> Scores:
        """Score again with the likelihoods compared to those of a prompt that says nothing, as ``content_free`` has.

        Raises:
            ValueError: If either has no likelihoods.
        """
        likelihoods, truth = self._known()
        return self._with(calibrated(likelihoods, content_free._known()[0].mean(axis=0)), truth)

    def at_fitted_temperature(self, validation: Scores) -> Scores:
        """Score again at the temperature that suits the validation cases best; choices stay as they are.

        Raises:
            ValueError: If either has no likelihoods.
        """
        likelihoods, truth = self._known()
        temperature = fit_temperature(*validation._known())
        return replace(self._with(at_temperature(likelihoods, temperature), truth), temperature=temperature)

    def _known(self) -> tuple[Array, NDArray[np.int64]]:
        if self.log_likelihoods is None or self.truth is None:
            raise ValueError("no likelihoods of classes: language modelling, or means over dies")
        return self.log_likelihoods, self.truth

    def _with(self, log_likelihoods: Array, truth: NDArray[np.int64]) -> Scores:
        again = classified(log_likelihoods, truth, self.losses)
        return replace(again, perplexity=self.perplexity)  # to its last digit


def classified(log_likelihoods: Array, truth: NDArray[np.int64], losses: Array | None = None) -> Scores:
    """Choose the likeliest class of each case and score the choices.

    Args:
        log_likelihoods: (cases, classes) [nat].
        truth: (cases,) true classes.
        losses: (cases, 2) as in :class:`Scores`; without them the perplexity is NaN.
    """
    chosen = log_likelihoods.argmax(axis=1)
    return Scores(
        accuracy=float((chosen == truth).mean()),
        macro_f1=macro_f1(truth, chosen, log_likelihoods.shape[1]),
        perplexity=perplexity_of(losses),
        correct=tuple(float(x) for x in chosen == truth),
        log_likelihoods=log_likelihoods,
        probabilities=softmax(log_likelihoods),
        truth=truth,
        losses=losses,
    )


def predicted(hits: Array, losses: Array) -> Scores:
    """Score language modelling.

    Args:
        hits: (cases,) tokens whose likeliest prediction is right.
        losses: (cases, 2) as in :class:`Scores`.
    """
    tokens = losses[:, 1]
    share = np.divide(hits, tokens, out=np.zeros(len(hits)), where=tokens > 0)
    return Scores(
        accuracy=float(hits.sum() / tokens.sum()) if tokens.sum() else math.nan,
        macro_f1=None,
        perplexity=perplexity_of(losses),
        correct=tuple(share.tolist()),
        losses=losses,
    )


def joined(parts: Sequence[Scores], places: Sequence[Sequence[int]]) -> Scores:
    """Return the scores of all cases, each of which one of several models has scored.

    Args:
        parts: Of each model on its cases; of one kind, at one temperature.
        places: Place of each of its cases among all.
    """
    order = np.argsort(np.concatenate([np.asarray(place, dtype=np.int64) for place in places]))

    def together(arrays: Sequence[Array]) -> Array:
        return np.asarray(np.concatenate(arrays)[order])

    losses = together([part.losses for part in parts if part.losses is not None])
    if parts[0].log_likelihoods is None:
        tokens = together([np.multiply(part.correct, part.losses[:, 1]) for part in parts if part.losses is not None])
        return predicted(np.rint(tokens), losses)
    known = [part._known() for part in parts]
    truth = np.concatenate([truth for _, truth in known])[order]
    return classified(together([likelihoods for likelihoods, _ in known]), truth, losses)


def over_dies(scores: Sequence[Scores]) -> Scores:
    """Return the means over dies; ``correct`` becomes the share of dies on which a case came out right."""
    share = np.mean([found.correct for found in scores], axis=0)
    f1 = [found.macro_f1 for found in scores if found.macro_f1 is not None]
    return Scores(
        accuracy=float(np.mean([found.accuracy for found in scores])),
        macro_f1=float(np.mean(f1)) if f1 else None,
        perplexity=float(np.mean([found.perplexity for found in scores])),
        correct=tuple(share.tolist()),
    )


def perplexity_of(losses: Array | None) -> float:
    """Return exp of the mean loss per token; NaN without tokens."""
    if losses is None or not losses[:, 1].sum():
        return math.nan
    return math.exp(losses[:, 0].sum() / losses[:, 1].sum())


def softmax(log_likelihoods: Array) -> Array:
    """Return probabilities over the last axis."""
    shifted = np.exp(log_likelihoods - log_likelihoods.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
