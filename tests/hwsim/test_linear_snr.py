"""Signal-to-noise ratios of ternary arrays against what the errors' sizes predict."""

from __future__ import annotations

import math

import pytest

from device_models import load_device
from hwsim.linear_snr import TOGETHER, LinearTrials, linear_products, linear_snr_by_effect

TRIALS = LinearTrials()


def snr(**overrides: object) -> dict[str, float]:
    device = load_device("gaincell_28nm", overrides)
    return {row.effect: row.snr_db for row in linear_snr_by_effect(device, TRIALS)}


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_mismatch_alone_is_its_spread(sigma: float) -> None:
    """Errors of single weights are independent: the ratio is 1 / sigma."""
    assert snr(**{"linear.gain_sigma": sigma})["weight gain mismatch"] == pytest.approx(
        -20 * math.log10(sigma), abs=0.3
    )


def test_stuck_weights_alone_are_their_share() -> None:
    found = snr(**{"linear.stuck_at_zero": 0.02})["stuck weights"]
    assert found == pytest.approx(10 * math.log10(0.98 / 0.02), abs=0.5)


@pytest.mark.parametrize(("bits", "optimum_db"), [(4, 19.38), (5, 24.57), (6, 29.83), (7, 35.17)])
def test_converter_of_a_pulse_width_comes_near_the_best_uniform_quantiser(bits: int, optimum_db: float) -> None:
    """Sums of 256 products are normal: Max, Quantizing for minimum distortion (1960), table II, for 2^bits levels.

    Ours has one level less and a range from other vectors.
    """
    found = snr(**{"linear.input_cycles": 1, "linear.adc_bits": bits})["linear converter"]
    assert optimum_db - 1.2 < found < optimum_db + 0.2


def test_noise_of_a_pulse_width_converter_adds_to_its_rounding() -> None:
    """0.3 LSB rms beside 1/sqrt(12) LSB, variances 0.09 and 0.083, and some clipping that noise does not change."""
    found = snr(**{"linear.input_cycles": 1, "linear.adc_bits": 7})
    most = 10 * math.log10((1 / 12 + 0.09) / (1 / 12))
    assert most - 1.0 < found["linear converter"] - found["linear converter and noise"] < most


def test_everything_together_is_below_each() -> None:
    found = snr()
    assert found.pop(TOGETHER) < min(found.values())
    assert set(found) == {"weight gain mismatch", "linear converter", "linear converter and noise"}


def test_exact_arrays_have_no_row_and_no_error() -> None:
    device = load_device("ideal")
    assert linear_snr_by_effect(device, TRIALS) == [] and linear_products(device, TRIALS).snr_db == math.inf
