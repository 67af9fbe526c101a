"""What is drawn at each write and at each read, measured through the emulator: size, shape, independence, lifetime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from device_models import DeviceModel
from device_models.variability import read_noise_variance
from hwsim import gain_cell_attention
from tests.hwsim.measure import (
    LARGEST,
    SLOPE,
    ZERO,
    assert_normal,
    assert_unrelated,
    assert_unrelated_along_axes,
    key_currents,
    quiet,
    value_currents,
)

MANY = torch.arange(24)
THERMAL = {"write.capacitance": "1 fF", "write.ktc": True, "operation.temperature": "300 K"}
FULL_SCALE = SLOPE * ZERO  # [A]
HALF_PULSE = {"saturation.qk": f"{2 * FULL_SCALE * 1e6} uA"}
"""A full pulse on one cell at the top of its range comes to half a pulse between the products."""

# ---- writes


@pytest.mark.parametrize(
    ("settings", "sigma"),
    [
        (THERMAL, 2.035e-3),
        ({**THERMAL, "write.capacitance": "4 fF"}, 1.0176e-3),
        ({**THERMAL, "operation.temperature": "358.15 K"}, 2.2237e-3),
        ({"write.error_sigma": "5 mV"}, 5e-3),
        ({**THERMAL, "write.error_sigma": "5 mV"}, 5.3982e-3),
    ],
    ids=["1fF", "4fF", "85C", "driver", "both"],
)  # fmt: skip
def test_noise_of_a_write(settings: dict, sigma: float) -> None:
    """2.04 mV rms at 1 fF and 300 K; over sequences, heads, tokens and dimensions."""
    device = quiet(**settings)
    error = value_currents(device, 0.8, keys=MANY, shape=(24, 8, 8, 16)) / SLOPE - 0.35
    assert_normal(error, 0.0, sigma)
    assert_unrelated_along_axes(error)


def test_both_arrays_are_written_with_noise_of_their_own() -> None:
    device = quiet(**{"write.error_sigma": "5 mV"})
    value = value_currents(device, 0.8, keys=MANY, shape=(24, 16, 8, 1))[..., 0] / SLOPE - 0.35
    key = key_currents(device, 0.8, keys=MANY, shape=(24, 16, 8))[:, :, -1] / SLOPE - 0.35
    assert_normal(key, 0.0, 5e-3)
    assert_unrelated(value, key)


def test_noise_of_a_write_lasts_as_long_as_the_token() -> None:
    device = quiet(**{"write.error_sigma": "5 mV", "window.tokens": 5, "tile.slots": 5})
    currents = key_currents(device, 0.8, keys=MANY, shape=(24, 8, 12))
    for s in range(12):
        life = currents[:, :, s : s + 5, s]
        np.testing.assert_array_equal(life, np.broadcast_to(life[:, :, :1], life.shape))
    first, second = currents[:, :, 4, 0], currents[:, :, 9, 5]  # the same slot, one lap later
    assert (first != second).all()
    assert_unrelated(currents[:, :, 4, :5], currents[:, :, 9, 5:10])


def test_a_refresh_is_a_write_again() -> None:
    """Rounding takes the former error away, and a new one of full size comes in its place."""
    device = quiet(**{
        "write.error_sigma": "5 mV", "storage.levels": 8, "retention.kind": "exponential", "retention.tau": "1 s",
        "retention.v_inf": "0.45 V", "refresh.kind": "periodic", "refresh.interval": "3 us",
    })  # fmt: skip
    currents = key_currents(device, 0.9 * 6 / 7, keys=MANY, shape=(24, 32, 8))
    error = currents[:, :, -1] / SLOPE - (0.9 * 6 / 7 - ZERO)  # tokens 7..0 periods old: refreshed 2, 2, 1, 1, 1, 0..
    assert_normal(error, 0.0, 5e-3)
    life = currents[:, :, :, 0] / SLOPE - (0.9 * 6 / 7 - ZERO)
    for start, stop in ((0, 3), (3, 6), (6, 8)):
        assert np.abs(np.diff(life[:, :, start:stop])).max() < 2e-6  # decay of 1 us out of 1 s
    assert_unrelated(life[:, :, 0], life[:, :, 3])
    assert_unrelated(life[:, :, 3], life[:, :, 6])


def test_refresh_does_not_bring_a_lost_level_back() -> None:
    """A level that faded beyond half a step stays lost; one that did not is restored exactly."""
    settings = {
        "storage.levels": 8, "retention.kind": "exponential", "retention.v_inf": "0 V", "retention.tau": "100 us",
        "refresh.kind": "periodic", "window.tokens": 64,
    }  # fmt: skip
    step = 0.9 / 7
    kept = key_currents(quiet(**settings, **{"refresh.interval": "7 us"}), 0.9, shape=(1, 1, 30))[0, 0, -1]
    lost = key_currents(quiet(**settings, **{"refresh.interval": "8 us"}), 0.9, shape=(1, 1, 30))[0, 0, -1]
    volts = [c / SLOPE + ZERO for c in (kept, lost)]  # token s is 29 - s periods of 1 us old
    ages = np.arange(29, -1, -1)
    np.testing.assert_allclose(volts[0], 7 * step * np.exp(-(ages % 7) / 100), rtol=1e-12)
    codes = np.array([7, 6, 6, 6])[ages // 8]  # 7 exp(-0.08) = 6.46, 6 exp(-0.08) = 5.54
    np.testing.assert_allclose(volts[1], codes * step * np.exp(-(ages % 8) / 100), rtol=1e-12)


# ---- reads


def reads(
    device: DeviceModel, pulses: torch.Tensor, volts: float = 0.9, batch: int = 6000, heads: int = 1
) -> np.ndarray:
    """Outputs over the ideal one of single tokens, (batch, heads, head_dim), for keys at the top of their range."""
    q = pulses.double().view(1, 1, 1, -1).expand(batch, heads, 1, -1)
    k = torch.full_like(q, 0.9)
    v = torch.full_like(q, volts)
    out = gain_cell_attention(q, k, v, device, read_key=torch.arange(batch))[:, :, 0].numpy()
    return out * device.saturation.av / (SLOPE * (volts - ZERO))


@pytest.mark.parametrize(
    ("white", "flicker"), [(0.02, 0.0), (0.0, 0.02), (0.012, 0.016)], ids=["white", "flicker", "both"]
)
def test_noise_of_bit_lines(white: float, flicker: float) -> None:
    """Score noise is common to all dimensions of the output, charge noise is not; both follow the pulses."""
    pulses = torch.tensor([1.0, 0.2, 0.0, 0.5, 0.1, 0.8, 0.4, 0.3])
    device = quiet(
        **{"noise.white": white, "noise.flicker": flicker, "saturation.qk": f"{2 * 3.3 * FULL_SCALE * 1e6} uA"}
    )
    out = reads(device, pulses)  # every score is half of the saturation
    own, common = out[:, 0] - out[:, 0].mean(-1, keepdims=True), out[:, 0].mean(-1)
    charge = read_noise_variance([0.5], 1.0, device.noise)  # one token of half a pulse
    # the pulse itself scatters: its mean square is larger than its square by the score's variance
    line = read_noise_variance(pulses.numpy(), 1.0, device.noise) / 6.6**2
    charge += flicker**2 * line
    assert_normal(own[:, 0] / (7 / 8) ** 0.5, 0.0, charge**0.5)
    assert_normal(common, 0.5, (line + charge / 8) ** 0.5)
    assert_unrelated(out[:, 0, 0] - common, common)


def test_white_noise_grows_with_the_pulse_and_flicker_with_its_square() -> None:
    found = {}
    for name in ("white", "flicker"):
        for pulse in (0.25, 1.0):
            device = quiet(**{f"noise.{name}": 0.02, **HALF_PULSE})
            found[name, pulse] = reads(device, torch.tensor([pulse] + [0.0] * 63)).mean(-1).std()
    # over all dimensions the noise of the score remains
    assert found["white", 1.0] / found["white", 0.25] == pytest.approx(2.0, rel=0.05)
    assert found["flicker", 1.0] / found["flicker", 0.25] == pytest.approx(4.0, rel=0.05)


def test_comparator_noise() -> None:
    """One draw for each head, query and column, alike for all dimensions behind the column."""
    device = quiet(**{"noise.comparator": 0.01, **HALF_PULSE})
    out = reads(device, torch.tensor([1.0, 0.0, 0.0]), batch=1000, heads=8)
    np.testing.assert_allclose(out, np.broadcast_to(out[..., :1], out.shape), atol=1e-12)
    assert_normal(out[..., 0], 0.5, 0.01)
    assert_unrelated_along_axes(out[..., 0])


def test_a_read_is_noisy_anew_each_time() -> None:
    """Sums of column noises at later queries: the variance grows by one column each, neighbours are unrelated."""
    device = quiet(**{"noise.comparator": 0.01, **HALF_PULSE})
    q = torch.zeros(3000, 2, 6, 2, dtype=torch.float64)
    q[..., 0] = 1.0
    k = torch.full_like(q, 0.9)
    out = gain_cell_attention(q, k, k, device, read_key=torch.arange(3000))[..., 0].numpy()
    pulses = out * device.saturation.av / FULL_SCALE
    columns = np.arange(1, 7)
    noise = (pulses - 0.5 * columns) / columns**0.5
    assert_normal(noise, 0.0, 0.01)
    assert_unrelated_along_axes(noise)


@pytest.mark.parametrize("which", ["queries", "scores"])
def test_jitter_of_pulses(which: str) -> None:
    """100 ps on 15 ns; an endless other pulse has no jitter to speak of."""
    other = "cost.time_av" if which == "queries" else "cost.time_qk"
    device = quiet(**{"input.jitter": "100 ps", other: "1 s", **HALF_PULSE})
    pulses = torch.tensor([0.5, 0.25, 0.0, 0.25])
    out = reads(device, pulses, batch=800, heads=8)
    share = 100e-12 / 15e-9
    expected = share * 3**0.5 / 2 if which == "queries" else share  # three pulses that each bring half
    np.testing.assert_allclose(out, np.broadcast_to(out[..., :1], out.shape), atol=1e-12)
    assert_normal(out[..., 0], 0.5, expected)
    assert_unrelated_along_axes(out[..., 0])


def test_noise_of_the_readout_moves_codes() -> None:
    """Half an LSB rms on the middle of a code: the share of each neighbour is that of the normal distribution."""
    device = quiet(**{"readout.codes": "counter", "readout.bits": 5, "readout.noise": 0.5, "saturation.av": "5 uA"})
    volts = ZERO + 6 / 15 * 5e-6 / SLOPE
    q = torch.ones(600, 4, 1, 16, dtype=torch.float64)
    out = gain_cell_attention(q, 0.9 * q, volts * q, device, read_key=torch.arange(600))[:, :, 0].numpy()
    codes = np.round(out * 15).astype(int)
    edges = np.array([-np.inf, -1.5, -0.5, 0.5, 1.5, np.inf])
    expected = np.diff(stats.norm.cdf(edges / 0.5)) * codes.size
    found = np.histogram(codes - 6, np.nan_to_num(edges, posinf=9, neginf=-9))[0]
    assert stats.chisquare(found, expected).pvalue > 1e-5
    moved = (codes != 6).astype(float)
    assert_unrelated_along_axes(moved)
    assert abs(moved.mean() - 2 * stats.norm.sf(1)) * (moved.size / 0.216) ** 0.5 < LARGEST


def test_first_and_second_read_of_a_token_are_unrelated() -> None:
    device = quiet(**{"noise.white": 0.02, "readout.codes": "counter", "readout.bits": 12, "saturation.av": "50 uA"})
    q = torch.ones(2000, 1, 2, 8, dtype=torch.float64)
    out = gain_cell_attention(q, 0.9 * q, 0.9 * q, device, read_key=torch.arange(2000))[:, 0].numpy()
    assert_unrelated(out[:, 0] - out[:, 0].mean(0), out[:, 1] - out[:, 1].mean(0))


def test_same_key_same_noise_other_key_other_noise() -> None:
    device = quiet(**{"noise.white": 0.02, "write.error_sigma": "5 mV", "noise.comparator": 0.01, **HALF_PULSE})
    q = torch.zeros(1, 2, 10, 4, dtype=torch.float64)
    q[..., 0] = 1.0
    v = torch.full_like(q, 0.8)
    one, again, other = (gain_cell_attention(q, v, v, device, read_key=key) for key in (1, 1, 2))
    assert torch.equal(one, again) and (one != other).all()
    both = gain_cell_attention(*(x.expand(2, -1, -1, -1) for x in (q, v, v)), device, read_key=7)
    assert torch.equal(both[0], both[1])  # one number is one life for all sequences
