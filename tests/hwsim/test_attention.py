"""Attention on the design of gain cells, without a chip: the contract, the naive and the vectorised twin."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from device_models import DeviceModel, InputError, load_device
from hwsim import Die, gain_cell_attention, naive_gain_cell_attention
from hwsim.functional.attention_tiled import attend
from hwsim.functional.layout import causal_layout
from hwsim.functional.tables import AttentionTables
from tests import tolerances
from tests.hwsim.comparison import (
    CONTINUOUS_READOUT,
    PERIOD,
    SURROGATE,
    Attention,
    assert_same,
    inputs,
    values_and_gradients,
)

CONTINUOUS = {"input.levels": None, "storage.levels": None, **CONTINUOUS_READOUT}

# ---- the contract, read once more and written without any of the product's code


def loop_of_the_contract(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    d: Mapping[str, float],
    coefficients: list[float],
    window: int,
    slots: int,
) -> np.ndarray:
    """HARDWARE.md section 1, steps 1-10, one scalar at a time; (heads, tokens, dim)."""

    def code(x: float, levels: float, low: float, high: float) -> float:
        x = min(max(x, low), high)
        step = (high - low) / (levels - 1)
        return low + step * round((x - low) / step)

    def current(stored: float, age: float) -> float:
        volts = d["v_inf"] + (stored - d["v_inf"]) * math.exp(-age / d["tau"])
        return math.fsum(c * (volts - 0.45) ** n for n, c in enumerate(coefficients))

    heads, tokens, dim = q.shape
    group = heads // k.shape[0]
    out = np.zeros_like(q)
    for h in range(heads):
        for t in range(tokens):
            charge: dict[int, list[float]] = {}
            for s in range(t + 1):
                if s <= t - window:
                    continue
                age = (t - s) * d["period"]
                score = math.fsum(
                    code(q[h, t, i], 16, 0, 1) * current(code(k[h // group, s, i], 8, 0, 0.9), age) for i in range(dim)
                )
                phi = min(max(score / d["s_qk"], 0.0), 1.0)
                tile = charge.setdefault((s % window) // slots, [0.0] * dim)
                for i in range(dim):
                    tile[i] += phi * current(code(v[h // group, s, i], 8, 0, 0.9), age)
            for tile in charge.values():
                for i in range(dim):
                    out[h, t, i] += round(15 * min(max(tile[i] / d["s_av"], -1.0), 1.0)) / 15
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tokens", "dim", "window", "slots", "v_inf"),
    [(1, 1, 7, 3, 16, 4, 0.45), (2, 1, 19, 5, 8, 4, 0.45), (4, 2, 23, 4, 10, 4, 0.3), (2, 2, 30, 6, 12, 8, 0.6)],
    ids=str,
)
@pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention])
def test_attention_is_the_contract(
    attention: Attention, heads: int, kv_heads: int, tokens: int, dim: int, window: int, slots: int, v_inf: float
) -> None:
    overrides = {
        "window.tokens": window, "tile.slots": slots, "retention.v_inf": f"{v_inf} V",
        "saturation.qk": "8 uA", "saturation.av": "20 uA",
    }  # fmt: skip
    device = load_device("gaincell_28nm", overrides)
    q, k, v = inputs(1, heads, kv_heads, tokens, dim)
    numbers = {"tau": 5e-3, "v_inf": v_inf, "period": 3e-4, "s_qk": 8.0, "s_av": 20.0}
    cubic = [0.521364, 13.612261, -2.620446, 46.054838]
    expected = loop_of_the_contract(q[0].numpy(), k[0].numpy(), v[0].numpy(), numbers, cubic, window, slots)
    got = attention(q, k, v, device, token_period_s=3e-4)[0].numpy()
    np.testing.assert_allclose(got, expected, atol=tolerances.FLOAT64 * 10)
    assert np.abs(expected).max() > 0.2  # saturated or dead outputs would prove nothing
    assert len(np.unique(expected.round(9))) > 5


# ---- the vectorised twin

CASES = [  # batch, heads, kv_heads, tokens, head_dim, window, slots, overrides
    (4, 4, 4, 1, 64, 1024, 64, {}),
    (1, 2, 1, 63, 64, 1024, 64, {}),
    (1, 2, 2, 64, 80, 1024, 64, {}),
    (1, 2, 1, 65, 64, 64, 64, {}),
    (2, 4, 2, 100, 8, 16, 8, {}),
    (1, 2, 2, 100, 16, 64, 64, SURROGATE),
    (1, 2, 1, 100, 16, 40, 16, {"retention.v_inf": "0.3 V"}),
    (1, 2, 1, 100, 16, 40, 16, {"retention.v_inf": "0.6 V", **SURROGATE}),
    (1, 1, 1, 100, 80, 100, 64, {"retention.kind": "none"}),
    (1, 2, 1, 130, 8, 100, 64, {"tile.assignment": "absolute"}),
    (1, 2, 2, 100, 16, 32, 8, CONTINUOUS),
    (1, 1, 1, 50, 8, 1, 1, {}),
]  # fmt: skip


def name_of(case: tuple[object, ...]) -> str:
    batch, heads, kv_heads, tokens, head_dim, window, slots, overrides = case
    more = "".join(f"-{key.split('.')[1]}={value}" for key, value in overrides.items())  # type: ignore[attr-defined]
    return f"b{batch}h{heads}kv{kv_heads}T{tokens}D{head_dim}w{window}s{slots}{more}".replace(" ", "")


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_vectorised_equals_naive_in_float64(case: tuple) -> None:
    batch, heads, kv_heads, tokens, head_dim, window, slots, overrides = case
    scale = {"saturation.qk": f"{10 * head_dim / 64} uA", "saturation.av": "25 uA"}
    device = load_device("gaincell_28nm", {"window.tokens": window, "tile.slots": slots, **scale, **overrides})
    tensors = inputs(batch, heads, kv_heads, tokens, head_dim)
    expected = values_and_gradients(naive_gain_cell_attention, tensors, device, PERIOD)
    assert all(x.abs().max() > 0 for x in expected)
    assert_same(values_and_gradients(gain_cell_attention, tensors, device, PERIOD), expected, tolerances.FLOAT64)


@pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention])
def test_ideal_device_is_three_lines_of_plain_torch(attention: Attention) -> None:
    tensors = inputs(2, 3, 3, 60, 24)
    got = values_and_gradients(attention, tensors, load_device("ideal"), None)

    def plain(q: Tensor, k: Tensor, v: Tensor, device: DeviceModel, *, token_period_s: float | None) -> Tensor:
        scores = 19.3 / 80 * q.clamp(0, 1) @ (k.clamp(0, 0.9) - 0.45).mT
        phi = scores.clamp(0, 1).tril()
        return (19.3 / 40 * phi @ (v.clamp(0, 0.9) - 0.45)).clamp(-1, 1)

    assert_same(got, values_and_gradients(plain, tensors, load_device("ideal"), None), tolerances.FLOAT64)


@pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention])
@pytest.mark.parametrize("position", [0, 17, 59])
def test_later_tokens_and_tokens_beyond_the_window_are_not_read(attention: Attention, position: int) -> None:
    device = load_device("gaincell_28nm", {"window.tokens": 20, "tile.slots": 8, "saturation.qk": "2 uA"})
    q, k, v = inputs(1, 1, 1, 60, 8)
    before = attention(q, k, v, device, token_period_s=PERIOD)
    k[:, :, position], v[:, :, position] = 0.9 - k[:, :, position], 0.9 - v[:, :, position]
    changed = (attention(q, k, v, device, token_period_s=PERIOD) != before).any(-1)[0, 0]
    where = changed.nonzero().flatten().tolist()
    assert where and min(where) >= position and max(where) < position + 20


@pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention])
def test_decay_shows(attention: Attention) -> None:
    tensors = inputs(1, 1, 1, 60, 32)
    device = load_device("gaincell_28nm")
    slow, fast = (attention(*tensors, device, token_period_s=period) for period in (1e-9, 1e-3))
    assert (slow != fast).double().mean() > 0.1


@pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention])
class TestRefusals:
    def test_decay_needs_a_token_period(self, attention: Attention) -> None:
        with pytest.raises(ValueError, match="gaincell_28nm decays: give token_period_s"):
            attention(*inputs(1, 1, 1, 4, 4), load_device("gaincell_28nm"))

    def test_keys_must_be_those_of_the_sequences(self, attention: Attention) -> None:
        device = load_device("gaincell_28nm")
        with pytest.raises((RuntimeError, ValueError), match="2"):
            attention(*inputs(3, 1, 1, 4, 4), device, token_period_s=1e-6, read_key=torch.tensor([1, 2]))

    def test_a_die_needs_as_many_cells_as_it_was_measured_for(self, attention: Attention) -> None:
        device = load_device("gaincell_28nm")
        die = Die(0, device, measured={"0.gain.value": torch.zeros(1, 64, 3)})
        with pytest.raises(InputError, match=r"0\.gain\.value.*another geometry"):
            attention(*inputs(1, 1, 1, 4, 4), device, token_period_s=1e-6, die=die)

    def test_heads_must_divide(self, attention: Attention) -> None:
        with pytest.raises(ValueError, match="3 query heads cannot share 2"):
            attention(*inputs(1, 3, 2, 4, 4), load_device("ideal"))


def test_heads_must_divide_in_any_geometry() -> None:
    device = load_device("ideal")
    tables = AttentionTables(causal_layout(4, device), device, None, torch.float64)
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        attend(*inputs(1, 3, 2, 4, 4), device, tables)
