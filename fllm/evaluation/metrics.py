"""Metrics of a classifier as pure functions of its answers, each for many weightings of the test cases at once.

``weights`` is (draws, cases): how often each draw of a bootstrap holds each case; one row of ones is the test set
itself. Every metric returns one number, or one row, per draw. A choice of -1 is an answer that names no class.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BINS = 15
"""Bins of equal width between 0 and 1 that confidences are sorted into; the number of Guo et al. (2017)."""


def mean_over_cases(values: ArrayLike, weights: Array, sizes: ArrayLike | None = None) -> Array:
    """Return the mean of one number per case, (draws,); NaN for a draw that holds no case.

    Args:
        values: (cases,) such as 1 for a right answer and 0 for a wrong one, whose mean is the accuracy.
        weights: (draws, cases).
        sizes: (cases,) what a case counts for, such as its number of tokens; 1 when not given.
    """
    size = np.ones(weights.shape[1]) if sizes is None else np.asarray(sizes, dtype=float)
    return _ratio(weights @ (np.asarray(values, dtype=float) * size), weights @ size)


def accuracy(truth: ArrayLike, chosen: ArrayLike, weights: Array) -> Array:
    """Return the share of right answers [1], (draws,)."""
    return mean_over_cases(np.asarray(truth) == np.asarray(chosen), weights)


def recalls(truth: ArrayLike, chosen: ArrayLike, classes: int, weights: Array) -> Array:
    """Return the share of each class's cases that are recognised [1], (draws, classes); NaN where none occurs."""
    is_class, is_choice = _one_hot(truth, classes), _one_hot(chosen, classes)
    return _ratio(weights @ (is_class * is_choice), weights @ is_class)


def mean_class_accuracy(truth: ArrayLike, chosen: ArrayLike, classes: int, weights: Array) -> Array:
    """Return the unweighted mean of the recalls of those classes that occur [1], (draws,)."""
    found = recalls(truth, chosen, classes, weights)
    known = ~np.isnan(found)
    return _ratio(np.where(known, found, 0.0).sum(axis=1), known.sum(axis=1).astype(float))


def mean_f1(truth: ArrayLike, chosen: ArrayLike, classes: int, weights: Array) -> Array:
    """Return the macro-F1 [1], (draws,): the unweighted mean over classes of ``2 hits / (cases + choices)``.

    A class that neither occurs nor is chosen counts 0.
    """
    is_class, is_choice = _one_hot(truth, classes), _one_hot(chosen, classes)
    hits, both = weights @ (is_class * is_choice), weights @ is_class + weights @ is_choice
    return np.nan_to_num(_ratio(2.0 * hits, both)).mean(axis=1)


def macro_f1(truth: ArrayLike, chosen: ArrayLike, classes: int) -> float:
    """Return the macro-F1 of one list of answers over a number of classes, as :func:`mean_f1` defines it.

    Raises:
        ValueError: If a class is not below that number.
    """
    truth, chosen = np.asarray(truth), np.asarray(chosen)
    if max(truth.max(initial=-1), chosen.max(initial=-1)) >= classes:
        raise ValueError(f"a class beyond the {classes} that there are")
    return float(mean_f1(truth, chosen, classes, np.ones((1, len(truth))))[0])


def confusion(truth: ArrayLike, chosen: ArrayLike, classes: int) -> Array:
    """Count cases by class (rows) and choice (columns), (classes, classes); answers without a class are left out."""
    return _one_hot(truth, classes).T @ _one_hot(chosen, classes)


def brier_score(truth: ArrayLike, probabilities: Array, weights: Array) -> Array:
    """Return the mean over cases of ``sum over classes (p - y)^2`` [1], (draws,): 0 is best, 2 worst.

    Source: Brier, Monthly Weather Review 78, 1 (1950), equation 2: the sum over all classes, twice what is often given
    for two classes.
    """
    distance = (probabilities - _one_hot(truth, probabilities.shape[1])) ** 2
    return mean_over_cases(distance.sum(axis=1), weights)


def negative_log_likelihood(truth: ArrayLike, probabilities: Array, weights: Array) -> Array:
    """Return the mean of ``-ln p(true class)`` [nat], (draws,); a probability of 0 counts as the smallest number."""
    of_truth = probabilities[np.arange(len(probabilities)), np.asarray(truth, dtype=int)]
    return mean_over_cases(-np.log(np.maximum(of_truth, np.finfo(float).tiny)), weights)


def expected_calibration_error(correct: ArrayLike, confidence: ArrayLike, weights: Array) -> Array:
    """Return the mean over cases of ``|accuracy - confidence|`` of their bin [1], (draws,).

    The plain estimate of few cases is too high: chance alone parts accuracy from confidence in each bin, so a model
    that is calibrated perfectly does not score 0. It depends on the bins, and looks at the likeliest class alone.

    Source: Guo, Pleiss, Sun and Weinberger, ICML 2017, equation 3, :data:`BINS` bins of equal width. Its weaknesses:
    Nixon, Dusenberry, Zhang, Jerfel and Tran, CVPR Workshops 2019.
    """
    correct, confidence = np.asarray(correct, dtype=float), np.asarray(confidence, dtype=float)
    in_bin = _one_hot(bin_of(confidence), BINS)
    gaps = weights @ (in_bin * (correct - confidence)[:, None])
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def reliability(correct: ArrayLike, confidence: ArrayLike) -> list[dict[str, Any]]:
    """Return limits, cases, mean confidence and accuracy of each bin; the latter are None where it is empty."""
    correct, confidence = np.asarray(correct, dtype=float), np.asarray(confidence, dtype=float)
    place, rows = bin_of(confidence), []
    for index in range(BINS):
        inside = place == index
        row: dict[str, Any] = {"low": index / BINS, "high": (index + 1) / BINS, "cases": int(inside.sum())}
        for name, values in (("confidence", confidence), ("accuracy", correct)):
            row[name] = float(values[inside].mean()) if inside.any() else None
        rows.append(row)
    return rows


def bin_of(confidence: ArrayLike) -> NDArray[np.int64]:
    """Return the bin of each confidence: ``(low, high]``, 0 in the first, as in the paper."""
    return np.clip(np.ceil(np.asarray(confidence, dtype=float) * BINS).astype(np.int64) - 1, 0, BINS - 1)


def perplexity(losses: Array, weights: Array) -> Array:
    """Return exp of the mean loss per token [1], (draws,).

    Args:
        losses: (cases, 2) sum of the losses of a case's tokens [nat] and their number.
        weights: (draws, cases).
    """
    with np.errstate(over="ignore"):
        return np.exp(_ratio(weights @ losses[:, 0], weights @ losses[:, 1]))


def bits_per_byte(losses: Array, text_bytes: int) -> float:
    """Return the loss of a text in bits per byte of its UTF-8 form, which tokenisers do not change."""
    return float(losses[:, 0].sum()) / (math.log(2.0) * text_bytes)


def _one_hot(index: ArrayLike, size: int) -> Array:
    return (np.asarray(index)[:, None] == np.arange(size)).astype(float)


def _ratio(above: Array, below: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return above / below
