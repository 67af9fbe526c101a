"""Thermal bounds of energy at 300 K."""

from __future__ import annotations

import pytest

from device_models.limits import BOLTZMANN, output_limit, storage_limit
from tests import tolerances


def test_output_of_five_bits() -> None:
    assert output_limit(5, 300.0) == pytest.approx(102e-18, rel=tolerances.THREE_DIGITS, abs=0.0)


def test_stored_value_of_three_bits() -> None:
    assert storage_limit(3, 300.0) == pytest.approx(3.18e-18, rel=tolerances.THREE_DIGITS, abs=0.0)


def test_head_and_token() -> None:
    """1024 scores and 16 x 64 outputs of sub-tiles, 128 values written: 0.21 pJ, against 6.15 nJ of the device."""
    head = 2048 * output_limit(5, 300.0) + 128 * storage_limit(3, 300.0)
    assert head == pytest.approx(0.209e-12, rel=tolerances.THREE_DIGITS, abs=0.0)


def test_a_bit_takes_four_times_the_energy_and_a_warm_circuit_more() -> None:
    for limit in (output_limit, storage_limit):
        assert limit(6, 300.0) == pytest.approx(4 * limit(5, 300.0), rel=tolerances.SUM, abs=0.0)
        assert limit(5, 360.0) == pytest.approx(1.2 * limit(5, 300.0), rel=tolerances.SUM, abs=0.0)
    assert output_limit(0, 1.0) == 24 * BOLTZMANN == 2 * storage_limit(0, 1.0)
