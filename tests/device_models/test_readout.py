"""Converters with static errors: statistics of the errors, and what a column makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_models.converters import code_errors, highest_code, read_out, readout_codes, sar_weights
from device_models.schema import Readout

COUNTER = Readout(5, "counter")
CIRCUITS = ["counter", "ramp", "sar", "flash"]
DIES = 4000


def errors(readout: Readout, seed: int = 0, dies: int = DIES) -> np.ndarray:
    codes = 2 * highest_code(readout) + 1
    z = np.random.default_rng(seed).standard_normal((2, dies, codes))
    return code_errors(z[0], z[1], readout)


def lsb(y: np.ndarray, readout: Readout = COUNTER) -> np.ndarray:
    return np.round(y * highest_code(readout)).astype(int)


@pytest.mark.parametrize(
    ("readout", "top"),
    [(Readout(2, "counter"), 1), (COUNTER, 15), (Readout(12, "counter"), 2047), (Readout(5, "published_33"), 16),
     (Readout(8, "published_33"), 128)],
)  # fmt: skip
def test_highest_code(readout: Readout, top: int) -> None:
    assert highest_code(readout) == top
    assert np.abs(readout_codes(np.array([-1.0, 1.0]), readout)).max() == pytest.approx(
        top * (1 / top if readout.codes == "counter" else 2 / (2**readout.bits - 1)), rel=1e-15
    )


def test_continuous_readout_has_no_codes() -> None:
    with pytest.raises(ValueError, match="no codes"):
        highest_code(Readout(None, "ideal"))


@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("bits", [3, 5, 8])
def test_integral_error_has_the_rms_it_was_given(circuit: str, bits: int) -> None:
    e = errors(Readout(bits, "counter", circuit, inl=0.3), dies=1000)
    power = (e**2).mean(1)
    assert abs(power.mean() - 0.09) < 5 * power.std() / math.sqrt(len(power))
    if circuit != "flash":  # end-point fit
        np.testing.assert_allclose(e[:, [0, -1]], 0.0, atol=1e-13)


@pytest.mark.parametrize("circuit", CIRCUITS)
@pytest.mark.parametrize("codes", ["counter", "published_33"])
def test_strength_zero_is_no_error(circuit: str, codes: str) -> None:
    np.testing.assert_array_equal(errors(Readout(5, codes, circuit), dies=3), 0.0)


def test_binary_elements_err_most_where_most_of_them_switch() -> None:
    """A SAR steps hardest at the middle code, where all bits change; a counter steps alike everywhere."""
    for circuit, many in [("sar", True), ("counter", False)]:
        e = errors(Readout(5, "counter", circuit, inl=0.3))
        step = np.diff(e, axis=1).std(0)
        middle = 15  # from code 15 (01111) to code 16 (10000), counted from the lowest
        assert (step.argmax() == middle and step[middle] > 2 * np.median(step)) == many
        assert many or step.max() / step.min() < 1.15


def test_sar_weights_are_bits_without_their_line() -> None:
    w = sar_weights(8)
    n = np.arange(8)
    raw = np.stack([((n >> k) & 1) * math.sqrt(2**k) for k in range(3)])
    line = raw[:, -1:] * n / 7
    scale = math.sqrt(((raw - line) ** 2).sum(0).mean())
    np.testing.assert_allclose(w[:3], (raw - line) / scale, atol=1e-15)
    np.testing.assert_array_equal(w[3:], 0.0)


@pytest.mark.parametrize("dnl", [0.1, 0.3])
def test_differential_error_is_what_a_code_density_test_would_measure(dnl: float) -> None:
    """Slow ramp through 300 columns: the deviation of the code widths, ends left out."""
    readout = Readout(5, "counter", dnl=dnl)
    table = errors(readout, dies=300)
    x = np.linspace(-1, 1, 31 * 200)
    widths = []
    for e in table:
        hits = np.bincount(lsb(read_out(x, readout, errors=e)) + 15, minlength=31)
        widths.append(hits[1:-1] / (len(x) / 30))
    assert np.std(np.array(widths) - 1) == pytest.approx(dnl, rel=0.1)


readouts = st.sampled_from(
    [COUNTER, Readout(5, "published_33"), Readout(2, "counter"), Readout(8, "counter", "sar"), Readout(None, "ideal")]
)


@given(readouts, st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(-6, 6))
@settings(max_examples=100, deadline=None)
def test_readout_without_errors_is_the_plain_converter(readout: Readout, x: list[float], z: float) -> None:
    plain = readout_codes(np.array(x), readout)
    np.testing.assert_array_equal(read_out(x, readout, z_gain=z, z_offset=z, z_noise=z), plain)
    if readout.bits is not None:
        none = np.zeros(2 * highest_code(readout) + 1)
        np.testing.assert_array_equal(read_out(x, readout, errors=none), plain)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_outputs_are_codes_whatever_the_errors(x: list[float], seed: int) -> None:
    readout = Readout(5, "counter", gain_sigma=0.5, offset_sigma=3.0, inl=2.0, dnl=1.0, noise=1.0)
    z = np.random.default_rng(seed).standard_normal((3, len(x)))
    e = errors(readout, seed, dies=len(x))
    code = read_out(x, readout, errors=e, z_gain=z[0], z_offset=z[1], z_noise=z[2]) * 15
    np.testing.assert_allclose(code, np.round(code), atol=1e-12)
    assert np.abs(code).max() <= 15 + 1e-12


def test_offset_and_noise_are_in_steps() -> None:
    x = np.array([-0.6, 0.0, 0.2, 1.0])
    shifted = read_out(x, Readout(5, "counter", offset_sigma=0.5), z_offset=4.0)
    np.testing.assert_array_equal(lsb(shifted), [-7, 2, 5, 15])
    noisy = read_out(x, Readout(5, "counter", noise=0.5), z_noise=np.array([2.0, -2.0, 4.0, -4.0]))
    np.testing.assert_array_equal(lsb(noisy), [-8, -1, 5, 13])


def test_gain_acts_before_saturation() -> None:
    x = np.array([0.2, 0.8, 1.0])
    readout = Readout(5, "counter", gain_sigma=0.05)
    np.testing.assert_array_equal(lsb(read_out(x, readout, z_gain=4.0)), [4, 14, 15])
    np.testing.assert_array_equal(lsb(read_out(x, readout, z_gain=-4.0)), [2, 10, 12])
    np.testing.assert_array_equal(lsb(read_out(2 * x, readout, z_gain=-4.0)), [5, 15, 15])


def test_static_error_belongs_to_its_code_and_its_column() -> None:
    e = np.zeros((2, 31))
    e[1, 15 + 3] = 1.2  # code 3 of the second column reads as 4
    e[1, 15 + 15] = 5.0  # beyond the highest code
    x = np.array([[-1.0, 2.0, 3.0, 4.0, 15.0]]).T / 15 * np.ones((1, 2))
    got = lsb(read_out(x, COUNTER, errors=e))
    np.testing.assert_array_equal(got[:, 0], [-1, 2, 3, 4, 15])
    np.testing.assert_array_equal(got[:, 1], [-1, 2, 4, 4, 15])
