"""Two ways to make the likelihoods of class names comparable to the truth, as pure functions of arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fllm.evaluation.metrics import Array

TEMPERATURES = (0.05, 20.0)
"""Range in which a temperature is looked for [1]: few validation cases that are all right ask for 0, which would make
every later mistake infinitely surprising."""


def calibrated(log_likelihoods: Array, content_free: Array) -> Array:
    """Take off what a model thinks of each class name before it has read anything.

    Which classes win changes. Both are means per token, so names of several tokens are treated alike.

    Args:
        log_likelihoods: (cases, classes) [nat].
        content_free: (classes,) the same after the cue alone [nat].

    Returns:
        (cases, classes), relative to the content-free prompt: no longer likelihoods, but their softmax are
        probabilities.

    Source: Zhao, Wallace, Feng, Klein and Singh, ICML 2021: contextual calibration, W = diag(p_cf)^-1 and b = 0, which
    in logarithms is this difference. Holtzman, West, Shwartz, Choi and Zettlemoyer, EMNLP 2021, derive the same as
    domain-conditional pointwise mutual information.
    """
    return log_likelihoods - content_free


def at_temperature(log_likelihoods: Array, temperature: float) -> Array:
    """Divide by a temperature [1]: above 1 the model becomes less sure, below 1 more; choices stay as they are."""
    return log_likelihoods / temperature


def fit_temperature(log_likelihoods: Array, truth: NDArray[np.int64]) -> float:
    """Return the temperature [1] at which the truth of validation cases is likeliest.

    The mean negative log-likelihood is convex in 1/T, so it has one minimum over ln T, which a bounded search finds;
    where all choices are right, or the classes say nothing, it is an end of :data:`TEMPERATURES`.

    Args:
        log_likelihoods: (cases, classes) [nat] of cases that are neither trained nor tested on.
        truth: (cases,) their classes.

    Source: Guo, Pleiss, Sun and Weinberger, ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = log_likelihoods * math.exp(-log_temperature)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, truth]).mean())

    low, high = (math.log(limit) for limit in TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(float(found.x))
