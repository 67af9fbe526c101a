"""Converters against truth tables; cell and retention against their equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_models import load_device
from device_models.cell import cell_current, shifted_polynomial
from device_models.converters import quantise_levels, readout_codes
from device_models.retention import decay_factor
from device_models.schema import Readout, Retention
from tests import tolerances

READOUTS = [Readout(5, "counter"), Readout(5, "published_33"), Readout(2, "counter"), Readout(8, "published_33")]
finite = st.floats(-10, 10)


def shape(readout: Readout) -> str:
    return f"{readout.codes}-{readout.bits}"


@pytest.mark.parametrize(("levels", "low", "high"), [(2, 0, 1), (8, 0, 0.9), (16, 0, 1), (5, -0.3, 0.2)])
def test_exactly_l_codes_with_both_ends(levels: int, low: float, high: float) -> None:
    codes = np.unique(quantise_levels(np.linspace(low - 1, high + 1, 20001), levels, low, high))
    expected = [low + (high - low) * n / (levels - 1) for n in range(levels)]
    np.testing.assert_allclose(codes, expected, atol=1e-15)


@pytest.mark.parametrize(
    ("x", "code"), [(0.0, 0), (0.49, 0), (0.5, 0), (0.51, 1), (1.5, 2), (2.5, 2), (3.7, 3), (-4.0, 0), (math.inf, 3)]
)
def test_levels_round_half_to_even(x: float, code: int) -> None:
    assert quantise_levels(np.array(x), 4, 0.0, 3.0) == code


def test_continuous_levels_only_clip() -> None:
    x = np.array([-0.1, 0.0, 0.123456, 0.9, 1.0])
    np.testing.assert_array_equal(quantise_levels(x, None, 0.0, 0.9), [0.0, 0.0, 0.123456, 0.9, 0.9])


def test_counter_of_four_bits_and_sign_has_31_codes() -> None:
    codes = np.unique(readout_codes(np.linspace(-1.5, 1.5, 30001), Readout(5, "counter")))
    np.testing.assert_allclose(codes, np.arange(-15, 16) / 15, atol=1e-15)


def test_published_rounding_has_33_codes_beyond_the_clip() -> None:
    codes = np.unique(readout_codes(np.linspace(-1.5, 1.5, 30001), Readout(5, "published_33")))
    assert len(codes) == 33
    np.testing.assert_allclose(codes, np.arange(-16, 17) * 2 / 31, atol=1e-15)
    assert codes.max() == pytest.approx(1.0323, abs=5e-5)  # as printed


def test_ideal_readout_only_clips() -> None:
    x = np.array([-1.01, -0.3337, 0.0, 0.5, 2.0])
    np.testing.assert_array_equal(readout_codes(x, Readout(None, "ideal")), [-1.0, -0.3337, 0.0, 0.5, 1.0])


@given(st.lists(finite, min_size=1, max_size=20), st.integers(2, 300), st.floats(-3, 2.9), st.floats(0.01, 5))
@settings(max_examples=100, deadline=None)
def test_levels_are_idempotent_monotone_bounded(x: list[float], levels: int, low: float, width: float) -> None:
    high = low + width
    ordered = np.sort(np.array(x))
    y = quantise_levels(ordered, levels, low, high)
    assert (np.diff(y) >= 0).all()
    assert (y >= low - 1e-12).all() and (y <= high + 1e-12).all()
    np.testing.assert_allclose(quantise_levels(y, levels, low, high), y, atol=1e-12)
    assert (np.abs(y - np.clip(ordered, low, high)) <= 0.5 * width / (levels - 1) + 1e-12).all()


@pytest.mark.parametrize("readout", READOUTS, ids=shape)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_readout_is_idempotent_monotone_odd(readout: Readout, x: list[float]) -> None:
    ordered = np.sort(np.array(x))
    y = readout_codes(ordered, readout)
    assert (np.diff(y) >= 0).all()
    np.testing.assert_allclose(readout_codes(y, readout), y, atol=1e-12)
    np.testing.assert_array_equal(readout_codes(-ordered, readout), -y)


@given(
    st.tuples(finite, finite, finite, finite), st.floats(-1, 1), st.floats(-1, 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_shifted_polynomial_is_the_same_polynomial(c: tuple[float, ...], shift: float, y: float) -> None:
    shifted = shifted_polynomial(c, shift)
    here = sum(a * y**n for n, a in enumerate(shifted))
    there = sum(a * (shift + y) ** n for n, a in enumerate(c))
    assert here == pytest.approx(there, rel=1e-12, abs=1e-11)


def test_currents_of_the_eight_stored_levels_are_the_published_ones() -> None:
    device = load_device("gaincell_28nm")
    levels = quantise_levels(np.linspace(0, 0.9, 8), 8, device.storage.v_min, device.storage.v_max)
    current = cell_current(levels - device.storage.v_zero, device.cell) * 1e6
    published = [-10.33, -5.65, -2.53, -0.377, 1.398, 3.379, 6.155, 10.31]
    np.testing.assert_allclose(current, published, atol=tolerances.PRINTED_CURRENT_UA)


def test_linear_cell_has_no_current_at_zero_weight() -> None:
    cell = load_device("ideal").cell
    np.testing.assert_allclose(cell_current(np.array([-0.45, 0.0, 0.45]), cell) * 1e6, [-8.685, 0.0, 8.685], atol=1e-12)


def test_decay_is_exponential() -> None:
    retention = Retention("exponential", tau=5e-3, v_inf=0.45)
    age = np.array([0.0, 5e-3 * math.log(2), 5e-3, 10e-3])
    np.testing.assert_allclose(decay_factor(age, retention), [1.0, 0.5, 1 / math.e, math.exp(-2)], rtol=1e-14)
    np.testing.assert_array_equal(decay_factor(age, Retention("none")), np.ones(4))


def test_negative_age_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"age must be >= 0 s.*-0\.001"):
        decay_factor(np.array([0.0, -1e-3]), Retention("exponential", tau=5e-3, v_inf=0.45))
