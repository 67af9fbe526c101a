"""Pulses, charge-to-pulse stage and readout in torch against their NumPy twins, elementwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from device_models import DeviceModel
from device_models import converters as reference
from device_models.converters import code_errors, highest_code, readout_step
from device_models.variability import read_noise_variance
from hwsim import Die, gain_cell_attention, naive_gain_cell_attention
from hwsim.functional import reads
from hwsim.functional.attention_tiled import attend
from hwsim.functional.cells import full_scale_current, read_noise_sigma
from hwsim.functional.layout import causal_layout
from hwsim.functional.reads import Place, input_pulses, read_out, scores_to_pulses, sequence_keys
from hwsim.functional.tables import AttentionTables
from tests import tolerances
from tests.hwsim.comparison import Attention, every_effect, inputs

CPU = torch.device("cpu")
BATCH, HEADS, KV_HEADS, TOKENS, DIMS, TILES = 2, 4, 2, 6, 7, 3
SIZE = {"window.tokens": 12, "tile.slots": 4}
INDEX = torch.arange(TOKENS)[None]
RNG = np.random.default_rng(8)


def place_on(device: DeviceModel) -> Place:
    return Place(Die(9, device), torch.tensor([4, 44]), 0)


def axis(size: int, dim: int) -> Tensor:
    return torch.arange(size).view(*(-1 if d == dim else 1 for d in range(4)))


def per_head(z: Tensor) -> np.ndarray:
    """Repeat deviates (kv_heads, ..) for the query heads that share an array."""
    return z.double().repeat_interleave(HEADS // KV_HEADS, 0).numpy()


# ---- readout

READOUTS: dict[str, dict[str, object]] = {
    **{c: {"readout.circuit": c} for c in ("counter", "ramp", "sar", "flash")},
    "published": {"readout.codes": "published_33"},
    "published-sar": {"readout.codes": "published_33", "readout.circuit": "sar"},
    "two-bits": {"readout.bits": 2},
    "nine-bits": {"readout.bits": 9, "readout.inl": 3.0, "readout.dnl": 2.0, "readout.offset_sigma": 8.0},
    "large-errors": {"readout.inl": 16.0, "readout.dnl": 16.0, "readout.offset_sigma": 16.0, "readout.gain_sigma": 0.5},
}


@pytest.mark.parametrize("name", READOUTS)
@pytest.mark.parametrize("tile", range(TILES))
def test_readout_is_its_twin(name: str, tile: int) -> None:
    made = every_effect(**SIZE, **READOUTS[name])
    place, readout = place_on(made), made.readout
    assert place.die is not None
    charge = RNG.uniform(-1.3, 1.3, (BATCH, HEADS, TOKENS, DIMS))
    codes, circuits = 2 * highest_code(readout) + 1, place.die.circuits
    shared = 1 if readout.circuit == "ramp" else DIMS
    inl = per_head(circuits("readout inl", CPU, KV_HEADS, TILES, shared, codes)[:, tile].expand(-1, DIMS, -1))
    dnl = per_head(circuits("readout dnl", CPU, KV_HEADS, TILES, DIMS, codes)[:, tile])
    column = (CPU, KV_HEADS, TILES, DIMS)
    head, query = torch.arange(HEADS).view(1, -1, 1), torch.arange(TOKENS).view(1, 1, -1)
    noise = place.draw("readout", torch.float64, DIMS, head, query, torch.full((1, 1, 1), tile))
    expected = reference.read_out(
        charge, readout, errors=code_errors(inl, dnl, readout)[:, None],
        z_gain=per_head(circuits("readout gain", *column)[:, tile])[:, None],
        z_offset=per_head(circuits("readout offset", *column)[:, tile])[:, None], z_noise=noise.numpy(),
    )  # fmt: skip
    ours = read_out(torch.from_numpy(charge), None, made, place, INDEX, tile, KV_HEADS)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=tolerances.FLOAT64)
    step = readout_step(readout)
    assert step is not None
    assert np.mean(np.abs(expected - reference.readout_codes(charge, readout)) > 0.5 * step) > 0.1  # errors show


def test_readout_gates_the_gradient_of_the_clipped_value() -> None:
    made = every_effect(**SIZE, **{"readout.gain_sigma": 0.2})
    place = place_on(made)
    assert place.die is not None
    x = torch.from_numpy(RNG.uniform(-1.3, 1.3, (BATCH, HEADS, TOKENS, DIMS))).requires_grad_()
    (found,) = torch.autograd.grad(read_out(x, None, made, place, INDEX, 1, KV_HEADS).sum(), x)
    gain = 1 + 0.2 * per_head(place.die.circuits("readout gain", CPU, KV_HEADS, TILES, DIMS)[:, 1])[:, None]
    expected = np.where(np.abs(x.detach().numpy() * gain) < 1, gain, 0.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerances.FLOAT64)


def test_range_of_the_readout_is_a_scale() -> None:
    """A range of r saturations is the device that saturates at r times the current, times r."""
    scale = torch.tensor([0.5, 1.7], dtype=torch.float64)
    q, k, v = inputs(1, 2, 2, 20, 8)

    def out(av: float, full_scale: Tensor | None) -> Tensor:
        made = every_effect(**SIZE, **{"saturation.qk": "2 uA", "saturation.av": f"{av} uA"})
        tables = AttentionTables(causal_layout(20, made), made, 1e-5, torch.float64)
        place = Place(Die(1, made), sequence_keys(3, 1, CPU))
        return attend(q, k, v, made, tables, place, full_scale=full_scale)

    ranged = out(20.0, scale)
    for head in range(2):
        by_hand = scale[head] * out(20.0 * float(scale[head]), None)
        assert (ranged[:, head] - by_hand[:, head]).abs().max() <= tolerances.TWINS
    assert (ranged[:, 0] != out(20.0, None)[:, 0]).any()


@pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention])
def test_subtile_without_tokens_adds_neither_offset_nor_noise(attention: Attention) -> None:
    made = every_effect(**SIZE, **{"readout.offset_sigma": 6.0, "readout.noise": 3.0})
    q, k, v = inputs(1, 1, 1, 12, 8)
    q = torch.zeros_like(q)
    out = attention(q, k, v, made, token_period_s=1e-5, die=Die(0, made), read_key=0) * 15
    code = out.round().abs()
    assert (out.abs() - code).abs().max() < 1e-9
    most = code.amax((0, 1, 3))
    assert most[:4].max() <= 15 and most[:4].max() > 5
    assert 15 < most[8:].max() <= 45  # three sub-tiles


# ---- noise


def test_noise_of_a_line_is_its_twin() -> None:
    made = every_effect()
    p = RNG.uniform(0, 1, (5, 3, 64))
    variance = read_noise_variance(p, full_scale_current(made), made.noise)
    ours = read_noise_sigma(torch.from_numpy(p), made).numpy() ** 2
    np.testing.assert_allclose(ours / variance, 1.0, rtol=tolerances.FLOAT64)
    power = tuple(torch.from_numpy((p**n).sum(-1)) for n in (1, 2))
    charge = reads.charge_noise(power, made).numpy() ** 2  # type: ignore[arg-type]
    np.testing.assert_allclose(charge * made.saturation.av**2 / variance, 1.0, rtol=tolerances.FLOAT64)
    assert full_scale_current(made) == pytest.approx(10.313e-6, rel=tolerances.THREE_DIGITS)


@pytest.mark.parametrize("jitter", ["1 ns", "5 ns"])
def test_jitter_beyond_the_shortest_pulse_leaves_no_negative_pulse(jitter: str) -> None:
    made = every_effect(**SIZE, **{"input.jitter": jitter, "input.inl": 0.0})
    q = torch.zeros(2, HEADS, TOKENS, DIMS, dtype=torch.float64)
    q[..., 0] = 1 / 15
    pulses = input_pulses(q, made, place_on(made), INDEX, KV_HEADS)
    assert pulses.min() >= 0 and torch.isfinite(read_noise_sigma(pulses, made)).all()


# ---- pulses


def test_no_pulse_has_no_error() -> None:
    made = every_effect(**SIZE)
    off = torch.from_numpy(RNG.uniform(0, 1, (BATCH, HEADS, TOKENS, DIMS)) > 0.5)
    q = inputs(BATCH, HEADS, KV_HEADS, TOKENS, DIMS)[0].masked_fill(off, 0.0)
    pulses = input_pulses(q, made, place_on(made), INDEX, KV_HEADS)
    assert (pulses[q <= 1 / 31] == 0).all() and (pulses[q > 1 / 29] != 0).all()
    level = (q.clamp(0, 1) * 15).round() / 15
    assert 0.002 < (pulses - level)[q > 1 / 29].std() < 0.03  # 0.2 LSB rms and 100 ps of 15 ns


@pytest.mark.parametrize("bits", [None, 1, 4])
def test_scores_become_pulses(bits: int | None) -> None:
    """Clip, offset, noise and codes; an unread column has no pulse whatever its offset."""
    made = every_effect(**SIZE, **{"readout_qk.bits": bits, "input.jitter": "0 s", "variability.phi_offset_sigma": 0.2})
    place = place_on(made)
    assert place.die is not None
    slots, scores = torch.arange(12), torch.from_numpy(RNG.uniform(-0.5, 1.5, (BATCH, HEADS, TOKENS, 12)))
    pulses = torch.from_numpy(RNG.uniform(0, 1, (BATCH, HEADS, TOKENS, DIMS)))
    read = torch.from_numpy(RNG.integers(0, 2, (1, TOKENS, 12))).double()
    offset = 0.2 * per_head(place.die.columns("phi", KV_HEADS, slots))[:, None]
    line = read_noise_variance(pulses.numpy(), full_scale_current(made), made.noise) / made.saturation.qk**2
    head, query, width = axis(HEADS, 1), axis(TOKENS, 2), made.tile.slots
    rows = place.draw("score", torch.float64, width, head, query, torch.arange(12 // width).view(1, 1, 1, -1))
    z = rows.flatten(-2).numpy()
    raw = scores.numpy() + offset + np.sqrt(line + made.noise.comparator**2)[..., None] * z
    expected = reference.quantise_levels(raw, None if bits is None else 2**bits, 0.0, 1.0) * read[:, None].numpy()
    ours = scores_to_pulses(scores, pulses, read, made, place, INDEX, slots, KV_HEADS)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=tolerances.FLOAT64)


# ---- softmax


def test_the_two_reads_of_a_signed_query_have_noise_of_their_own() -> None:
    """Noise alike in both reads would cancel in the difference, and in the output of a query of zeros."""
    made = every_effect(**SIZE, **{
        "activation.kind": "softmax", "readout_qk.bits": 12, "readout.bits": 12, "noise.comparator": 0.05,
        "noise.white": 0.0, "noise.flicker": 0.0, "readout.noise": 0.0,
    })  # fmt: skip
    q, k, v = inputs(1, 1, 1, 12, 4)
    noisy, quiet = (gain_cell_attention(0 * q, k, v, made, token_period_s=1e-6, read_key=key) for key in (1, None))
    assert (noisy - quiet)[:, :, 1:].abs().mean() > 1e-3
    place, slots = Place(None, torch.arange(500)), torch.arange(12)
    zero = torch.zeros(500, 1, TOKENS, 12, dtype=torch.float64)
    first, second = (
        reads.noisy_scores(zero, zero, made, place, INDEX, slots, 1, what).flatten()
        for what in ("score", "score of negative queries")
    )
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) * len(first) ** 0.5 < 4.5
    assert abs((first - second).var() / (2 * 0.05**2) - 1) * (len(first) / 2) ** 0.5 < 4.5
