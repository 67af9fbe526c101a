"""Write errors, wires and read noise against published figures and dense references."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_models import DeviceModel, load_device
from device_models.converters import quantise_levels
from device_models.schema import Noise, Wire, Write
from device_models.variability import (
    bridge,
    capacitor_sigma,
    ktc_sigma,
    read_noise_variance,
    wire_drop,
    write_sigma,
    written_voltage,
)
from tests import tolerances

ROOM = 300.15
IDEAL = load_device("ideal")
SAMPLES = 200_000
FIVE_SIGMA = 5 / math.sqrt(2 * SAMPLES)
"""Relative error of a standard deviation out of so many samples."""


def device(**write: object) -> DeviceModel:
    """Return a device whose only errors are those given."""
    return replace(IDEAL, write=Write(**write))


def normals(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape or SAMPLES)


# ---- writes


@pytest.mark.parametrize(
    ("femtofarad", "millivolt"), [(0.1, 6.4), (0.5, 2.9), (1.0, 2.04), (2.0, 1.44), (5.0, 0.91), (8.0, 0.72)]
)
def test_thermal_noise_of_a_capacitor(femtofarad: float, millivolt: float) -> None:
    assert ktc_sigma(femtofarad * 1e-15, ROOM) * 1e3 == pytest.approx(millivolt, abs=0.05 if millivolt > 2.5 else 5e-3)


def test_thermal_noise_grows_nine_percent_to_85_celsius() -> None:
    assert ktc_sigma(1e-15, 358.15) / ktc_sigma(1e-15, ROOM) == pytest.approx(1.09, abs=0.005)


@pytest.mark.parametrize(("femtofarad", "percent"), [(0.5, 0.94), (1.0, 0.66), (5.0, 0.30)])
def test_mismatch_of_28_nm_capacitors(femtofarad: float, percent: float) -> None:
    overrides = {"write.capacitance": f"{femtofarad} fF"}
    assert capacitor_sigma(load_device("gaincell_28nm", overrides)) * 100 == pytest.approx(percent, abs=0.005)


def test_error_of_a_write_has_two_independent_parts() -> None:
    shipped = load_device("gaincell_28nm")
    assert write_sigma(shipped) == pytest.approx(math.hypot(5e-3, ktc_sigma(1e-15, ROOM)), rel=tolerances.SUM)
    assert write_sigma(device(error_sigma=5e-3)) == 5e-3
    assert write_sigma(device(capacitance=1e-15)) == 0.0  # kT/C is a choice of its own
    thermal = replace(device(capacitance=1e-15, ktc=True), operation=replace(IDEAL.operation, temperature=ROOM))
    assert write_sigma(thermal) == ktc_sigma(1e-15, ROOM)
    assert capacitor_sigma(IDEAL) == write_sigma(IDEAL) == 0.0


TERMS = [  # write errors, deviates, voltage in, voltage out
    ({}, {}, 0.8, 0.8),
    ({"error_sigma": 0.01}, {"z_write": 2.0}, 0.8, 0.82),
    ({"pedestal_mean": 0.025}, {}, 0.8, 0.825),
    ({"pedestal_sigma": 0.003}, {"z_pedestal": -2.0}, 0.8, 0.794),
    ({"pedestal_gain": 0.04}, {}, 0.8, 0.8 + 0.04 * 0.35),
    ({"pedestal_gain": 0.04}, {}, 0.1, 0.1 - 0.04 * 0.35),
    ({"capacitance": 4e-14, "capacitor_mismatch": 2e-9}, {"z_capacitor": 0.5}, 0.85, 0.45 + 0.4 * 1.005),
    ({}, {"inl": -0.013}, 0.8, 0.787),
    ({"capacitance": 1e-15, "capacitor_mismatch": 1e-9}, {"z_capacitor": 3.0, "z_write": 1.0}, 0.45, 0.45),
]  # fmt: skip


@pytest.mark.parametrize(("write", "deviates", "v", "expected"), TERMS)
def test_each_term_of_a_write(write: dict, deviates: dict, v: float, expected: float) -> None:
    assert written_voltage(v, device(**write), **deviates) == pytest.approx(expected, abs=1e-15)


@given(st.floats(0.0, 0.9), st.floats(-6, 6))
@settings(max_examples=50, deadline=None)
def test_write_of_strength_zero_changes_nothing(v: float, z: float) -> None:
    written = written_voltage(v, IDEAL, z_capacitor=z, z_pedestal=z, z_write=z)
    assert written == pytest.approx(v, abs=2e-16)


def test_spread_of_a_write_adds_in_squares() -> None:
    shipped = load_device("gaincell_28nm")
    v = written_voltage(0.9, shipped, z_capacitor=normals(1), z_pedestal=normals(2), z_write=normals(3))
    expected = math.sqrt(write_sigma(shipped) ** 2 + 3e-3**2 + (0.00664 * 0.45) ** 2)
    assert abs(v.mean() - 0.9) < 5 * expected / math.sqrt(SAMPLES)
    assert abs(v.std() / expected - 1) < FIVE_SIGMA


@pytest.mark.parametrize(
    ("write", "decibels"),
    [
        ({"capacitance": 0.5e-15, "ktc": True}, 39),
        ({"capacitance": 1e-15, "ktc": True}, 42),
        ({"capacitance": 5e-15, "ktc": True}, 49),
        ({"error_sigma": 5e-3}, 34),
        ({"error_sigma": 10e-3}, 28),
    ],
)
def test_signal_to_noise_of_a_dot_product_with_one_write_error(write: dict, decibels: int) -> None:
    """64 signed products of uniform numbers; an offset in front of a linear cell is an error of the same size."""
    rng = np.random.default_rng(0)
    q, v, z = rng.uniform(-1, 1, (4000, 64)), rng.uniform(0, 0.9, (4000, 64)), rng.standard_normal((4000, 64))
    error = (q * (written_voltage(v, device(**write), z_write=z) - v)).sum(1)
    signal = (q * (v - 0.45)).sum(1)
    assert 20 * math.log10(signal.std() / error.std()) == pytest.approx(decibels, abs=0.6)


def test_three_bits_of_storage_leave_17_decibels() -> None:
    rng = np.random.default_rng(0)
    q, v = rng.uniform(-1, 1, (4000, 64)), rng.uniform(0, 0.9, (4000, 64))
    error = (q * (quantise_levels(v, 8, 0.0, 0.9) - v)).sum(1)
    assert 20 * math.log10((q * (v - 0.45)).sum(1).std() / error.std()) == pytest.approx(17.0, abs=0.5)


# ---- integral non-linearity of unit elements


@pytest.mark.parametrize("levels", [2, 3, 8, 16, 31])
def test_bridge_is_zero_at_both_ends_and_of_unit_rms(levels: int) -> None:
    dies = 20_000
    e = bridge(normals(4, dies, levels - 1))
    assert e.shape == (dies, levels)
    np.testing.assert_allclose(e[:, [0, -1]], 0.0, atol=1e-14)
    if levels == 2:  # both ends and nothing between
        return
    power = (e**2).mean(1)
    assert abs(power.mean() - 1) < 5 * power.std() / math.sqrt(dies)
    n, steps = np.arange(levels), levels - 1
    shape = n * (steps - n) / steps
    np.testing.assert_allclose((e**2).mean(0), shape / shape.mean(), atol=0.1)


def test_bridge_along_another_axis() -> None:
    z = normals(5, 7, 3)
    np.testing.assert_array_equal(bridge(z, axis=0), bridge(z.T).T)


def test_bridge_of_equal_steps_is_straight() -> None:
    np.testing.assert_allclose(bridge(np.full(15, 0.3)), 0.0, atol=1e-15)


# ---- wires


WIRE = Wire(resistance=9.47, cell_current=1.3e-6, supply=0.9)


def test_far_end_of_64_cells_loses_25_millivolt_and_of_256_nearly_half_the_supply() -> None:
    """I n R / 2 of n cells and the whole line's R: 25 mV (2.7 %) and 0.39 V at the 1.27 uA of the published energy."""
    published = replace(WIRE, cell_current=1.27e-6)
    assert wire_drop(63, 64, WIRE) * 0.9 == pytest.approx(25e-3, abs=1e-3)
    assert wire_drop(63, 64, published) == pytest.approx(0.027, abs=1e-3)
    assert wire_drop(255, 256, published) * 0.9 == pytest.approx(0.39, abs=0.01)


@pytest.mark.parametrize("cells", [1, 2, 5, 64])
def test_drop_is_that_of_the_resistor_ladder(cells: int) -> None:
    """Dense reference: Kirchhoff's current law at each node, sense end grounded."""
    conductance = np.zeros((cells, cells))
    for node in range(cells):
        conductance[node, node] = (1 if node == cells - 1 else 2) / WIRE.resistance
        if node:
            conductance[node, node - 1] = conductance[node - 1, node] = -1 / WIRE.resistance
    voltage = np.linalg.solve(conductance, np.full(cells, WIRE.cell_current))
    np.testing.assert_allclose(wire_drop(np.arange(cells), cells, WIRE), voltage / WIRE.supply, rtol=1e-9)


def test_no_resistance_is_no_drop() -> None:
    np.testing.assert_array_equal(wire_drop(np.arange(64), 64, Wire()), np.zeros(64))


# ---- read noise


def test_noise_of_one_full_pulse() -> None:
    both = Noise(white=0.004, flicker=0.005)
    assert read_noise_variance([1.0], 10.3e-6, both) == pytest.approx(10.3e-6**2 * (0.004**2 + 0.005**2), rel=1e-12)
    assert read_noise_variance([0.25], 1.0, Noise(white=0.004)) == pytest.approx(0.25 * 0.004**2, rel=1e-12)
    assert read_noise_variance([0.25], 1.0, Noise(flicker=0.005)) == pytest.approx(0.25**2 * 0.005**2, rel=1e-12)


@given(st.lists(st.floats(0, 1), max_size=80))
@settings(max_examples=50, deadline=None)
def test_noise_of_a_line_is_that_of_its_cells(pulses: list[float]) -> None:
    noise = Noise(white=0.004, flicker=0.005)
    alone = math.fsum(float(read_noise_variance([p], 1e-5, noise)) for p in pulses)
    assert read_noise_variance(pulses, 1e-5, noise) == pytest.approx(alone, rel=1e-12, abs=1e-30)
    assert read_noise_variance(pulses, 1e-5, Noise()) == 0.0


def test_noise_along_another_axis() -> None:
    p = np.random.default_rng(0).uniform(size=(5, 3))
    noise = Noise(white=0.01, flicker=0.02)
    np.testing.assert_array_equal(read_noise_variance(p, 1.0, noise, axis=0), read_noise_variance(p.T, 1.0, noise))
