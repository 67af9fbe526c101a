"""Energy between technology nodes."""

from __future__ import annotations

import pytest

from device_models import load_device
from device_models.scaling import energy_factor, gate_energy
from tests import tolerances

FITS = [  # [nm], gate energy at 1 V: a + b + c
    (65, 3.755 - 4.398 + 1.975), (45, 1.103 - 0.362 + 0.2767), (32, 0.9559 - 0.7823 + 0.471),
    (20, 0.373 - 0.1582 + 0.04104), (16, 0.2958 - 0.1241 + 0.03024), (14, 0.2363 - 0.09675 + 0.02239),
    (10, 0.2068 - 0.09311 + 0.02375), (7, 0.1776 - 0.09097 + 0.02447),
]  # fmt: skip


@pytest.mark.parametrize(("nm", "energy"), FITS)
def test_a_fitted_node_is_its_fit(nm: int, energy: float) -> None:
    assert gate_energy(nm * 1e-9, 1.0) == pytest.approx(energy, rel=tolerances.SUM, abs=0.0)


def test_between_two_fits_it_is_linear() -> None:
    low, high = dict(FITS)[20], dict(FITS)[32]
    assert gate_energy(28e-9, 1.0) == pytest.approx(low + (high - low) * 8 / 12, rel=tolerances.SUM, abs=0.0)


def test_smaller_nodes_and_lower_supplies_take_less() -> None:
    nodes = [gate_energy(nm * 1e-9, 0.9) for nm, _ in FITS]
    assert nodes == sorted(nodes, reverse=True)
    assert gate_energy(45e-9, 0.7) < gate_energy(45e-9, 0.9) < gate_energy(45e-9, 1.1)


def test_45_to_28_nm_is_the_factor_of_the_device_files() -> None:
    factor = energy_factor(45e-9, 0.9, 28e-9, 0.9)
    assert factor == pytest.approx(0.507, abs=0.0005)
    digital = load_device("gaincell_28nm").digital
    for price, at_45_nm in [(digital.mac, 1.5e-12), (digital.vector_op, 1.1e-12), (digital.sram_bit, 20e-12 / 64)]:
        assert price == pytest.approx(factor * at_45_nm, rel=tolerances.TWO_DIGITS, abs=0.0)
    assert energy_factor(45e-9, 0.9, 45e-9, 0.9) == 1.0


@pytest.mark.parametrize("nm", [6.9, 65.1, 130, 0, float("nan")])
def test_no_fit_for_other_nodes(nm: float) -> None:
    with pytest.raises(ValueError, match="expected 7 to 65 nm"):
        gate_energy(nm * 1e-9, 0.9)


@pytest.mark.parametrize("volts", [0.49, 1.21, float("nan")])
def test_no_fit_for_other_supplies(volts: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0.5 to 1.2 V"):
        energy_factor(45e-9, volts, 28e-9, 0.9)
