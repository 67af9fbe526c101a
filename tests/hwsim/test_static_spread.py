"""What differs from die to die and from cell to cell, measured through the emulator: size, shape, independence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from device_models import DeviceModel
from hwsim import Die, gain_cell_attention
from tests.hwsim.measure import (
    SLOPE,
    ZERO,
    assert_normal,
    assert_power,
    assert_unrelated,
    assert_unrelated_along_axes,
    key_currents,
    over_dies,
    quiet,
    value_currents,
)

DIES = 24
CPU = torch.device("cpu")


def keys_over_dies(device: DeviceModel, volts: float, dies: int = DIES, **how: object) -> np.ndarray:
    return np.concatenate([key_currents(device, volts, die=Die(s, device), **how) for s in range(dies)])  # type: ignore[arg-type]


# ---- cells


def test_instrument_reads_the_ideal_cell() -> None:
    volts = torch.linspace(0, 0.9, 16, dtype=torch.float64)
    np.testing.assert_allclose(value_currents(quiet(), volts)[0, 3, 5], SLOPE * (volts.numpy() - ZERO), atol=1e-16)
    np.testing.assert_allclose(key_currents(quiet(), 0.7)[0, 0], np.tril(np.full((8, 8), SLOPE * 0.25)), atol=1e-16)


def test_gain_mismatch() -> None:
    device = quiet(**{"variability.gain_sigma": 0.05})
    error = over_dies(device, 0.8, DIES) / (SLOPE * 0.35) - 1
    assert_normal(error, 0.0, 0.05)
    assert_unrelated_along_axes(error)
    np.testing.assert_allclose(over_dies(device, ZERO, 2), 0.0, atol=1e-18)  # no current, no error


def test_cell_offset() -> None:
    error = over_dies(quiet(**{"variability.offset_sigma": "5 mV"}), 0.8, DIES) / SLOPE - 0.35
    assert_normal(error, 0.0, 5e-3)
    assert_unrelated_along_axes(error)


def test_capacitor_mismatch() -> None:
    device = quiet(**{"write.capacitance": "1 fF", "write.capacitor_mismatch": "0.00664 fF**0.5"})
    error = over_dies(device, 0.8, DIES) / (SLOPE * 0.35) - 1
    assert_normal(error, 0.0, 0.00664)
    assert_unrelated_along_axes(error)


def test_pedestal() -> None:
    settings = {"write.pedestal_mean": "-8 mV", "write.pedestal_gain": 0.04, "write.pedestal_sigma": "3 mV"}
    error = over_dies(quiet(**settings), 0.8, DIES) / SLOPE - 0.35
    assert_normal(error, -8e-3 + 0.04 * 0.35, 3e-3)
    assert_unrelated_along_axes(error)


def test_key_and_value_arrays_and_layers_are_cells_of_their_own() -> None:
    device = quiet(**{"variability.gain_sigma": 0.05, "write.pedestal_sigma": "3 mV"})
    shape = (1, 64, 16, 1)
    dies = [Die(seed, device) for seed in range(4)]
    value = np.concatenate([value_currents(device, 0.8, die=die, shape=shape)[..., 0] for die in dies])
    key = np.concatenate([key_currents(device, 0.8, die=die, shape=shape[:3])[:, :, -1] for die in dies])
    later = np.concatenate([value_currents(device, 0.8, die=die.at_layer(1), shape=shape)[..., 0] for die in dies])
    assert_unrelated(value, key)
    assert_unrelated(value, later)
    size = (0.05**2 * 0.35**2 + 3e-3**2) ** 0.5 * SLOPE
    for found in (value, key, later):
        assert abs(found.std() / size - 1) * (2 * found.size) ** 0.5 < 4.5


def test_effects_of_one_cell_are_unrelated() -> None:
    """Gain from the slope between two levels, offset from the level of no current, for the same cells."""
    device = quiet(**{"variability.gain_sigma": 0.05, "variability.offset_sigma": "5 mV"})
    low, high = (over_dies(device, volts, DIES) for volts in (0.2, 0.8))
    gain = (high - low) / (SLOPE * 0.6) - 1
    offset = (high + low) / (2 * SLOPE * (1 + gain)) - 0.05
    assert_normal(gain, 0.0, 0.05)
    assert_normal(offset, 0.0, 5e-3)
    assert_unrelated(gain, offset)


def test_retention_time() -> None:
    settings = {"retention.kind": "exponential", "retention.tau": "1 ms", "retention.v_inf": "0.45 V",
                "retention.tau_sigma_ln": 0.4}  # fmt: skip
    currents = keys_over_dies(quiet(**settings), 0.8, period=1e-4, shape=(1, 32, 8))
    left = currents[:, :, -1, :-1] / (SLOPE * 0.35)  # of the tokens that are 7..1 periods old
    ages = 1e-4 * np.arange(7, 0, -1)
    ln_slow = np.log(ages / 1e-3 / -np.log(left))
    assert_normal(ln_slow, 0.0, 0.4)
    assert_unrelated_along_axes(ln_slow)


def test_static_errors_are_the_same_at_every_read() -> None:
    """Other queries, other keys, another batch: correlation one."""
    device = quiet(
        **{"variability.gain_sigma": 0.05, "variability.offset_sigma": "5 mV", "write.pedestal_sigma": "3 mV"}
    )
    die = Die(0, device)
    currents = key_currents(device, 0.8, die=die)[0]
    for t in range(8):
        np.testing.assert_array_equal(currents[:, t, : t + 1], currents[:, -1, : t + 1])
    others = value_currents(device, 0.8, die=die, keys=torch.tensor([5, 6, 7]), shape=(3, 8, 8, 16))
    np.testing.assert_array_equal(others, np.broadcast_to(value_currents(device, 0.8, die=die), others.shape))


def test_write_converter() -> None:
    """One converter per row and sub-tile: the error belongs to the level, and all slots of the sub-tile share it."""
    device = quiet(**{"storage.levels": 8, "write.dac_inl": 0.2, "tile.slots": 8})
    levels = torch.arange(8, dtype=torch.float64) * (0.9 / 7)
    shape = (1, 8, 8, 16)
    error = over_dies(device, levels.view(8, 1), 60, shape=shape) / SLOPE - (levels.numpy() - ZERO)[:, None]
    assert_power(error, (0.2 * 0.9 / 7) ** 2)
    np.testing.assert_allclose(error[:, :, [0, -1]], 0.0, atol=1e-15)  # end-point fit
    middle = error[:, :, 3]
    assert_unrelated_along_axes(middle)
    same = value_currents(device, levels[3].item(), die=Die(0, device), shape=(1, 8, 16, 16))[0] / SLOPE
    np.testing.assert_allclose(same[:, :8], np.broadcast_to(same[:, :1], (8, 8, 16)), atol=1e-15)
    assert_unrelated(same[:, 0], same[:, 8])


# ---- circuits


def column_pulses(device: DeviceModel, die: Die, heads: int = 32, tokens: int = 16) -> np.ndarray:
    """Pulses [1] of each column, (heads, slots): scores of a half pulse, values of a known current."""
    q = torch.full((1, heads, tokens, 1), 0.5, dtype=torch.float64)
    v = torch.full_like(q, 0.9)
    out = gain_cell_attention(q, v, v, device, token_period_s=1e-6, die=die)
    pulses = out.diff(dim=2, prepend=torch.zeros_like(out[:, :, :1]))[0, :, :, 0]
    return (pulses * device.saturation.av / (SLOPE * ZERO)).numpy()


def test_charge_to_pulse_stage() -> None:
    device = quiet(**{"variability.phi_offset_sigma": 0.01, "saturation.qk": f"{SLOPE * ZERO * 1e6} uA"})
    pulses = np.stack([column_pulses(device, Die(seed, device)) for seed in range(DIES)])
    assert_normal(pulses, 0.5, 0.01)
    assert_unrelated_along_axes(pulses)


def test_input_converter() -> None:
    device = quiet(**{"input.levels": 16, "input.inl": 0.3, "saturation.qk": f"{SLOPE * ZERO * 1e6} uA"})
    q = (torch.arange(16, dtype=torch.float64) / 15).view(1, 1, 16, 1).expand(1, 64, 16, 1)
    v = torch.full_like(q, 0.9)
    found = []
    for seed in range(60):
        out = gain_cell_attention(q, v, v, device, die=Die(seed, device))[0, :, :, 0]
        pulses = out * device.saturation.av / (SLOPE * ZERO) / torch.arange(1, 17)  # token t sums t + 1 equal pulses
        found.append((pulses - q[0, :, :, 0]).numpy() * 15)
    error = np.stack(found)
    assert_power(error, 0.3**2)
    np.testing.assert_allclose(error[..., 0], 0.0, atol=1e-12)
    assert_unrelated_along_axes(error[..., 8])


def read_columns(
    device: DeviceModel, charge: torch.Tensor | float, die: Die, heads: int = 8, tokens: int = 1
) -> np.ndarray:
    """Codes [LSB] read at given charges over the saturation, (heads, tokens, 32 columns)."""
    ones = torch.ones(1, heads, tokens, 32, dtype=torch.float64)
    share = torch.as_tensor(charge, dtype=torch.float64).expand(32) / tokens
    volts = ZERO + share * device.saturation.av / SLOPE
    top = 2 ** (device.readout.bits or 0) // 2 - 1
    return gain_cell_attention(ones, 0.9 * ones, volts * ones, device, die=die)[0].numpy() * top


FINE = {"readout.codes": "counter", "readout.bits": 12, "saturation.av": "5 uA"}
"""2047 codes for 1: what is rounded away is below 1/12 of a squared code."""


def test_gain_of_readout_columns() -> None:
    device = quiet(**FINE, **{"readout.gain_sigma": 0.05})
    codes = np.stack([read_columns(device, 0.5, Die(seed, device))[:, 0] for seed in range(DIES)])
    assert_normal(codes / (0.5 * 2047) - 1, 0.0, 0.05)
    assert_unrelated_along_axes(codes)


def test_offset_of_readout_columns() -> None:
    device = quiet(**FINE, **{"readout.offset_sigma": 16.0})
    codes = np.stack([read_columns(device, 0.5, Die(seed, device))[:, 0] for seed in range(DIES)])
    rng = np.random.default_rng(0).uniform(-0.5, 0.5, codes.shape)  # rounding, undone in distribution
    assert_normal(codes + rng - 0.5 * 2047, 0.0, (16**2 + 2 / 12) ** 0.5)
    assert_unrelated_along_axes(codes)


@pytest.mark.parametrize("circuit", ["counter", "ramp", "sar", "flash"])
@pytest.mark.parametrize("error", ["inl", "dnl"])
def test_errors_of_codes(circuit: str, error: str) -> None:
    """Their mean square over codes and dies is what the device says; each sub-tile has a ramp, each column the rest."""
    device = quiet(**{**FINE, "readout.bits": 7, f"readout.{error}": 4.0, "readout.circuit": circuit})
    code = torch.arange(-48, 48, 3).double()  # every third of 127
    found = np.stack([read_columns(device, code / 63, Die(seed, device))[:, 0] for seed in range(80)]) - code.numpy()
    if error == "dnl" or circuit == "flash":
        assert_normal(found + np.random.default_rng(0).uniform(-0.5, 0.5, found.shape), 0.0, (16 + 2 / 12) ** 0.5)
        assert_unrelated_along_axes(found)
    else:
        assert 2.5 < (found**2).mean() ** 0.5 < 5.5  # rms over all codes is 4
    same = np.stack([read_columns(device, 0.25, Die(seed, device))[:, 0] for seed in range(20)])
    shared = bool((same == same[..., :1]).all())
    assert shared == (circuit == "ramp" and error == "inl")
    assert_unrelated_along_axes(same.mean(-1) if shared else same)
