"""Decay of a stored voltage with its age."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_models.schema import Retention


def decay_factor(age: NDArray, retention: Retention) -> NDArray:
    """Return the fraction ``d(a)`` of the stored excursion that is left at age ``a``.

    ``V(a) = v_inf + (V(0) - v_inf) d(a)``, ``d(a) = exp(-a / tau)``; without decay ``d = 1``.

    Args:
        age: [s] time since the value was written, >= 0.
        retention: Law and constants.

    Returns:
        [1] factor in (0, 1], of the shape of ``age``.

    Raises:
        ValueError: If an age is negative.

    Source: leroux2025, Methods, leakage. Approximation: an off transistor far from equilibrium sinks a constant
        current; one exponential misses the only 28 nm droop table by 14 % rms.
    """
    age = np.asarray(age, dtype=np.float64)
    if np.any(age < 0):
        raise ValueError(f"age must be >= 0 s, got minimum {age.min()!r}; was a slot read before it was written?")
    if retention.kind == "none" or retention.tau is None:
        return np.ones_like(age)
    return np.exp(-age / retention.tau)
