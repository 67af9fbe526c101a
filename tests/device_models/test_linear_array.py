"""Formulas of the arrays of ternary layers: digits, converter, ranges; and keys that need each other."""

from __future__ import annotations

import numpy as np
import pytest

from device_models import InputError, load_device
from device_models.linear_array import CYCLES, convert, expected_range, full_range, input_digits


@pytest.mark.parametrize("cycles", CYCLES)
def test_digits_put_together_are_the_code(cycles: int) -> None:
    array = load_device("gaincell_28nm", {"linear.input_cycles": cycles}).linear
    codes = np.arange(-128, 128)
    digits = input_digits(codes, cycles)
    assert digits.shape == (cycles, 256)
    assert np.array_equal(np.array(array.digit_weights) @ digits, codes)
    assert np.abs(digits).max() == array.largest_digit
    assert (digits[:-1] >= 0).all() and len(np.unique(digits[0])) == 2**array.digit_bits


def test_one_bit_a_cycle_is_twos_complement() -> None:
    assert input_digits(np.array([5, -1, -128]), 8).T.tolist() == [
        [1, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, -1],
        [0, 0, 0, 0, 0, 0, 0, -1],
    ]


def test_converter_is_its_table() -> None:
    """Three bits: seven codes on [-6, 6], ties to even, ends clipped."""
    sums = np.array([-9.0, -6.0, -3.0, -1.0, 0.9, 1.0, 3.0, 5.1, 99.0])
    assert convert(sums, 6.0, 3).tolist() == [-6, -6, -4, 0, 0, 0, 4, 6, 6]


@pytest.mark.parametrize(
    ("cycles", "inputs", "largest"), [(8, 300, 256), (8, 100, 100), (2, 300, 256 * 15), (1, 10, 1280)]
)
def test_full_range_is_the_largest_sum(cycles: int, inputs: int, largest: float) -> None:
    array = load_device("gaincell_28nm", {"linear.input_cycles": cycles}).linear
    assert full_range(array, inputs) == largest
    worst = input_digits(np.full(min(inputs, 256), -128), cycles).sum(1)
    assert max(np.abs(worst).max(), input_digits(np.full(min(inputs, 256), 127), cycles).sum(1).max()) == largest


@pytest.mark.parametrize("cycles", CYCLES)
def test_expected_range_is_four_standard_deviations(cycles: int) -> None:
    """Monte Carlo of uniform digits and ternary weights; 5e4 sums know their spread to 0.3 %."""
    array = load_device("gaincell_28nm", {"linear.input_cycles": cycles}).linear
    rng = np.random.default_rng(cycles)
    digits = (
        rng.integers(-128, 128, (50_000, 64)) if cycles == 1 else rng.integers(0, 2**array.digit_bits, (50_000, 64))
    )
    weights = rng.integers(-1, 2, (50_000, 64))
    spread = (digits * weights).sum(1).std()
    assert expected_range(array, 64) == pytest.approx(4 * spread, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"linear.input_cycles": 3}, "one of 1, 2, 4, 8"),
        ({"linear.adc_bits": 1}, "adc_bits of 2 or more"),
        ({"linear.adc": "fixed", "linear.adc_conversion": "1 pJ", "linear.adc_bits": None}, "adc_bits of 2 or more"),
        ({"linear.noise": 17}, "from 0 to 16"),
        ({"linear.adc_range": "guessed"}, "ideal"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_device("gaincell_28nm", overrides)


def test_noise_without_a_converter_is_refused_but_an_override_takes_it_along() -> None:
    with pytest.raises(InputError, match="noise would do nothing"):
        load_device("ideal", {"linear.noise": 0.1})
    assert load_device("gaincell_28nm", {"linear.adc_range": "ideal"}).linear.noise == 0.0


def test_no_code_without_a_converter() -> None:
    assert load_device("gaincell_28nm").linear.highest_code == 31
    with pytest.raises(ValueError, match="not rounded"):
        load_device("ideal").linear.highest_code  # noqa: B018
