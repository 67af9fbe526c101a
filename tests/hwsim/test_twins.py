"""The vectorised attention against its readable twin with every effect on: values and gradients, same chip and keys."""

from __future__ import annotations

import pytest
import torch

from device_models import DeviceModel, InputError, load_device, preset_names
from hwsim import Die, gain_cell_attention, naive_gain_cell_attention
from hwsim.effects import EFFECTS, is_configured
from hwsim.functional import attention_tiled
from tests import tolerances
from tests.hwsim.comparison import (
    CONTINUOUS_READOUT,
    NO_REFRESH,
    PERIOD,
    SURROGATE,
    assert_same,
    every_effect,
    inputs,
    values_and_gradients,
)

NO_SPREAD = {"retention.tau_sigma_ln": 0.0}
STRETCHED = {"retention.kind": "stretched", "retention.beta": 0.4, "retention.tau": "3 ms"}
LOG = {
    "retention.kind": "log_self_limited", "retention.v_scale": "80 mV", "retention.t0": "200 us",
    "retention.v_top": "0.9 V",
}  # fmt: skip
NO_DECAY = {"retention.kind": "none"}
CONSTANT = {"retention.kind": "constant_current", "retention.rate": "400 V/s"}
ON_DROOP = {"refresh.kind": "on_droop", "refresh.droop": 0.5}
SOFTMAX = {"activation.kind": "softmax", "readout_qk.bits": 6}


def sized(head_dim: int, window: int, slots: int, **overrides: object) -> DeviceModel:
    """Return a device with every effect on whose saturations suit the size of its heads."""
    return every_effect(**{
        "window.tokens": window, "tile.slots": slots, "tile.rows": 64, "saturation.qk": f"{10 * head_dim / 64} uA",
        "saturation.av": "25 uA", **overrides,
    })  # fmt: skip


def compare(
    device: DeviceModel, shape: tuple[int, int, int, int, int], dtype: torch.dtype = torch.float64,
    period: float = PERIOD,
) -> None:  # fmt: skip
    tensors = inputs(*shape, dtype, signed=device.activation.kind == "softmax")
    with_all = {"die": Die(3, device), "read_key": torch.arange(shape[0]) + 5}
    expected = values_and_gradients(naive_gain_cell_attention, tensors, device, period, **with_all)
    got = values_and_gradients(gain_cell_attention, tensors, device, period, **with_all)
    assert all(x.abs().max() > 0 for x in expected), "a comparison of zeros proves nothing"
    if dtype == torch.float64:
        assert_same(got, expected, tolerances.TWINS)
    else:
        assert_same(got, expected, tolerances.FLOAT32, step=1 / 15, flips=tolerances.FLOAT32_FLIPS)
        assert all(x.dtype == dtype for x in (*got, *expected))


def test_device_of_these_tests_has_every_effect() -> None:
    assert [name for name in EFFECTS if not is_configured(every_effect(), name)] == []


SIZES = [  # batch, heads, kv_heads, tokens, head_dim; window, slots
    ((2, 4, 2, 1, 64), 64, 64),
    ((2, 2, 1, 63, 64), 16, 8),
    ((1, 2, 2, 64, 80), 64, 64),
    ((1, 2, 1, 65, 64), 64, 64),
    ((1, 2, 1, 100, 128), 100, 64),
    ((2, 2, 1, 100, 16), 100, 64),
    ((1, 1, 1, 100, 8), 16, 16),
    ((1, 2, 1, 30, 5), 7, 3),
    ((1, 1, 1, 20, 4), 1, 1),
]
"""1, 63, 64, 65 and 100 tokens; sub-tiles that are filled, straddled, wrapped, and cut by window and head."""


@pytest.mark.parametrize("more", [{}, NO_REFRESH, {**NO_REFRESH, **NO_SPREAD}], ids=["exact", "nodes", "powers"])
@pytest.mark.parametrize(("shape", "window", "slots"), SIZES, ids=str)
def test_sizes(shape: tuple[int, int, int, int, int], window: int, slots: int, more: dict) -> None:
    """Each of the three kinds of images of an array."""
    compare(sized(shape[4], window, slots, **more), shape)


@pytest.mark.parametrize(
    "law",
    [{}, NO_SPREAD, STRETCHED, {**STRETCHED, **NO_SPREAD}, LOG, {**LOG, **NO_SPREAD}, CONSTANT, NO_DECAY],
    ids=["exponential", "median", "stretched", "stretched-median", "log", "log-median", "constant", "none"],
)  # fmt: skip
@pytest.mark.parametrize("refresh", [{}, NO_REFRESH, ON_DROOP], ids=["periodic", "none", "on_droop"])
def test_laws_of_retention(law: dict, refresh: dict) -> None:
    if law == NO_DECAY:  # there is nothing to refresh then, and a device file may not say so
        refresh = NO_REFRESH
    compare(sized(8, 16, 8, **refresh, **law), (2, 2, 1, 30, 8))


@pytest.mark.parametrize("v_inf", ["-1 V", "0 V", "0.3 V", "0.6 V", "0.9 V", "2 V"])
@pytest.mark.parametrize("more", [{}, NO_SPREAD, CONSTANT], ids=["nodes", "powers", "constant"])
def test_level_that_cells_relax_to(v_inf: str, more: dict) -> None:
    compare(sized(8, 25, 25, **NO_REFRESH, **more, **{"retention.v_inf": v_inf}), (1, 2, 1, 40, 8))


ANALOG = {
    "input.levels": None, "storage.levels": None, "readout_qk.bits": None, **NO_REFRESH, **CONTINUOUS_READOUT
}  # fmt: skip
CIRCUITS = {
    **{circuit: {"readout.circuit": circuit} for circuit in ("counter", "ramp", "sar", "flash")},
    "33-codes": {"readout.codes": "published_33"},
    "33-sar": {"readout.codes": "published_33", "readout.circuit": "sar"},
    "12-bits": {"readout.bits": 12, "readout.inl": 4.0, "readout.noise": 4.0},
    "continuous": CONTINUOUS_READOUT,
    "pulses-pass": {"readout_qk.bits": None},
    "one-bit-scores": {"readout_qk.bits": 1},
    "softmax": SOFTMAX,
    "softmax-levels": {**SOFTMAX, "activation.levels": 64},
    "softmax-continuous": {**SOFTMAX, **CONTINUOUS_READOUT, **NO_REFRESH},
    "surrogate": SURROGATE,
    "surrogate-nodes": {**SURROGATE, **NO_REFRESH},
    "surrogate-powers": {**SURROGATE, **NO_REFRESH, **NO_SPREAD, "retention.v_inf": "0.6 V"},
    "linear-cell": {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]},
    "analog": ANALOG,
    "five-rows": {"tile.rows": 5},
}  # fmt: skip


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_circuits(circuit: str) -> None:
    compare(sized(16, 20, 8, **CIRCUITS[circuit]), (2, 4, 2, 30, 16))


@pytest.mark.parametrize("name", preset_names())
def test_shipped_devices(name: str) -> None:
    device = load_device(name, {"window.tokens": 24, "tile.slots": 16, "saturation.qk": "20 uA"})
    compare(device, (1, 2, 1, 40, 16))


@pytest.mark.parametrize("shape", [(1, 2, 1, 65, 64), (1, 1, 1, 130, 80), (1, 4, 2, 100, 16)], ids=str)
@pytest.mark.parametrize(
    "more",
    [{}, NO_REFRESH, {**NO_REFRESH, "readout_qk.bits": None}, {**NO_REFRESH, **NO_SPREAD}],
    ids=["exact", "nodes", "analog-pulses", "powers"],
)
def test_float32_flips_few_codes(shape: tuple[int, int, int, int, int], more: dict) -> None:
    compare(sized(shape[4], 64, 64, **more), shape, torch.float32)


@pytest.mark.parametrize(("tokens", "window"), [(1000, 64), (300, 1024)])
@torch.no_grad()
def test_a_thousand_tokens(tokens: int, window: int) -> None:
    device = sized(8, window, 64, **NO_REFRESH)
    tensors = inputs(1, 1, 1, tokens, 4)
    expected, got = (
        f(*tensors, device, token_period_s=PERIOD / 4, die=Die(1, device), read_key=2)
        for f in (naive_gain_cell_attention, gain_cell_attention)
    )
    assert (expected[0, 0, -100:] != 0).double().mean() > 0.5
    assert (got - expected).abs().max() <= tolerances.TWINS


def test_gradient_of_a_thousand_tokens() -> None:
    """The oracle would take minutes: the gradient is checked along one direction by central differences.

    Without converters, and without noise that depends on the pulses, whose gradient is left out on purpose.
    """
    device = sized(8, 256, 64, **ANALOG, **{"noise.white": 0.0, "noise.flicker": 0.0, "saturation.av": "1 mA"})
    tensors = inputs(1, 1, 1, 1000, 4)
    chip = {"die": Die(1, device), "read_key": 2}
    _, *gradients = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **chip)
    direction = [torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view_as(x) for x in tensors]

    def loss(step: float) -> torch.Tensor:
        moved = [x + step * d for x, d in zip(tensors, direction, strict=True)]
        out = gain_cell_attention(*moved, device, token_period_s=PERIOD, **chip)
        return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).mul(7).cos().view_as(out)).sum()

    slope = (loss(1e-7) - loss(-1e-7)) / 2e-7
    expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    assert slope.item() == pytest.approx(float(expected), rel=tolerances.FINITE_DIFFERENCE)


def test_recomputed_scores_meet_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences compute their scores again in the backward pass."""
    device = sized(8, 16, 8)
    tensors, chip = inputs(2, 2, 1, 40, 8), {"die": Die(0, device), "read_key": 1}
    stored = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **chip)
    monkeypatch.setattr(attention_tiled, "STORED_SCORES", 0)
    recomputed = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **chip)
    assert all(torch.equal(a, b) for a, b in zip(stored, recomputed, strict=True))


def test_absolute_subtiles_beyond_the_window() -> None:
    compare(sized(8, 16, 8, **{"tile.assignment": "absolute"}), (1, 2, 1, 40, 8))


PUBLISHED = {
    "gain": {"variability.gain_sigma": 0.1},
    "offset": {"variability.offset_sigma": "20 mV"},
    "drift": {"drift.amplitude": "50 mV", "drift.tau": "1 s", "drift.stress_time": "1 s"},
    "refresh": {"refresh.kind": "periodic", "refresh.interval": "200 us"},
}


@pytest.mark.parametrize("effect", PUBLISHED)
def test_published_rounding_is_refused_on_a_chip(effect: str) -> None:
    with pytest.raises(InputError, match="knows no chip and no refresh"):
        load_device("parity_leroux2025", PUBLISHED[effect])


@torch.no_grad()
def test_error_of_nodes_is_bounded_wherever_cells_relax_to() -> None:
    """A thousandth of full scale in one cell is what float32 allows; a sum of 32 has less of its own largest value."""
    device = sized(32, 64, 64, **ANALOG, **{"retention.v_inf": "-1 V"})
    tensors = inputs(1, 2, 1, 150, 32, torch.float32)
    naive, fast = (
        f(*tensors, device, token_period_s=2e-6, die=Die(3, device), read_key=5)
        for f in (naive_gain_cell_attention, gain_cell_attention)
    )
    assert (naive - fast).abs().max() <= 1e-3 * naive.abs().max()


def test_comparison_sees_one_wrong_cell() -> None:
    """The test of the tests: one cell of another chip, one token's noise."""
    device = sized(8, 16, 8, **CIRCUITS["continuous"])
    tensors, die = inputs(1, 1, 1, 20, 8), Die(0, device)
    expected = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, die=die, read_key=1)
    gain = die.cells("gain", "value", 1, torch.arange(16), 8).clone()
    gain[0, 5, 3] += 0.01
    off = Die(0, device, measured={"0.gain.value": gain})
    with pytest.raises(AssertionError, match="output"):
        assert_same(
            values_and_gradients(gain_cell_attention, tensors, device, PERIOD, die=off, read_key=1), expected,
            tolerances.TWINS,
        )  # fmt: skip
