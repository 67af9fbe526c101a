"""Instruments: read cells and columns through the whole emulator, and judge samples by standard errors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from device_models import DeviceModel, load_device
from hwsim import Die, gain_cell_attention
from hwsim.functional.attention import naive_steps

LARGEST = 4.5
"""Standard errors a sample may be off; 7 in a million true hypotheses are, and all seeds are fixed."""
SLOPE = 19.3e-6  # [A/V] the ideal cell
ZERO = 0.45  # [V]
KEYS = torch.arange


def quiet(**effects: object) -> DeviceModel:
    """Return the ideal device but for these effects, one sub-tile of 16 tokens that never clips its charges."""
    size = {"window.tokens": 16, "tile.slots": 16, "saturation.qk": "1 nA", "saturation.av": "1 mA",
            "cost.time_qk": "15 ns", "cost.time_av": "15 ns"}  # fmt: skip
    return load_device("ideal", {**size, **effects})


def value_currents(
    device: DeviceModel, volts: Tensor | float, *, die: Die | None = None, keys: Tensor | None = None,
    shape: tuple[int, int, int, int] = (1, 8, 8, 16), period: float = 1e-6,
) -> NDArray:  # fmt: skip
    """Measure the current [A] of each value cell, (b, heads, tokens, head_dim), when its token is new.

    Scores saturate, so every token sends a full pulse, and each query adds one token's current to the sum.
    """
    q = torch.ones(shape, dtype=torch.float64)
    v = torch.as_tensor(volts, dtype=torch.float64).expand(shape)
    out = gain_cell_attention(q, 0.9 * q, v, device, token_period_s=period, die=die, read_key=keys)
    return (out * device.saturation.av).diff(dim=2, prepend=torch.zeros_like(out[:, :, :1])).numpy()


def key_currents(
    device: DeviceModel, volts: Tensor | float, *, die: Die | None = None, keys: Tensor | None = None,
    shape: tuple[int, int, int] = (1, 8, 8), period: float = 1e-6,
) -> NDArray:  # fmt: skip
    """Measure the current [A] of each key cell at each query, (b, heads, queries, tokens); heads of one dimension."""
    q = torch.ones(*shape, 1, dtype=torch.float64)
    k = torch.as_tensor(volts, dtype=torch.float64).expand_as(q)
    steps = naive_steps(q, k, k, device, token_period_s=period, die=die, read_key=keys)
    return (steps.scores * device.saturation.qk).numpy()


def over_dies(device: DeviceModel, volts: float | Tensor, dies: int, **how: object) -> NDArray:
    """Measure value cells of many dies, (dies, heads, tokens, head_dim)."""
    return np.concatenate([value_currents(device, volts, die=Die(seed, device), **how) for seed in range(dies)])  # type: ignore[arg-type]


def assert_normal(x: NDArray, mean: float, sigma: float) -> None:
    """Mean, variance and shape of independent draws."""
    x = np.asarray(x, dtype=np.float64).ravel()
    assert x.size > 500
    errors = {"mean": (x.mean() - mean) / sigma * x.size**0.5}
    errors["variance"] = ((x - mean).var() / sigma**2 - 1) * (x.size / 2) ** 0.5
    assert all(abs(e) < LARGEST for e in errors.values()), errors
    assert stats.kstest((x - mean) / sigma, "norm").pvalue > 1e-5


def assert_power(x: NDArray, power: float) -> None:
    """Mean square of draws of any shape; the first axis counts independent ones."""
    each = np.asarray(x, dtype=np.float64) ** 2
    each = each.reshape(each.shape[0], -1).mean(1)
    assert len(each) >= 50
    assert abs(each.mean() - power) / (each.std() / len(each) ** 0.5) < LARGEST, (each.mean(), power)


def assert_unrelated(a: NDArray, b: NDArray) -> None:
    """No correlation between paired draws."""
    r = np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]
    assert abs(r) * np.size(a) ** 0.5 < LARGEST, r


def assert_unrelated_along_axes(x: NDArray) -> None:
    """Neither dies or sequences, heads, tokens nor dimensions share a draw."""
    for axis in range(x.ndim):
        if x.shape[axis] > 1:
            lower, upper = np.split(x, [x.shape[axis] // 2], axis=axis)
            n = min(lower.shape[axis], upper.shape[axis])
            assert_unrelated(lower.take(range(n), axis), upper.take(range(n), axis))
            assert_unrelated(x.take(range(x.shape[axis] - 1), axis), x.take(range(1, x.shape[axis]), axis))
