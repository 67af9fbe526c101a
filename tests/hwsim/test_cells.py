"""Gain cells in torch against their NumPy twins, elementwise; smooth parts against numerical derivatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from device_models import DeviceModel, load_device
from device_models.cell import cell_current as reference_current
from device_models.converters import quantise_levels
from device_models.retention import arrhenius, stored_voltage, threshold_drift
from device_models.schema import Wire
from device_models.variability import bridge, capacitor_sigma, write_sigma
from device_models.variability import wire_drop as reference_drop
from device_models.variability import written_voltage as reference_write
from hwsim import Die
from hwsim.functional import cells
from hwsim.functional.cells import CellDeviations, cell_deviations
from tests import tolerances
from tests.hwsim.comparison import every_effect

RNG = np.random.default_rng(3)
SHAPE = (2, 9, 5)  # kv_heads, slots, head_dim
SIZE = {"window.tokens": 9, "tile.slots": 4, "tile.rows": 3}
V = RNG.uniform(-0.2, 1.1, (3, *SHAPE))  # [V] three sequences
Z = RNG.standard_normal(V.shape)
LAWS: dict[str, dict[str, object]] = {
    "exponential": {},
    "median": {"retention.tau_sigma_ln": 0.0},
    "stretched": {"retention.kind": "stretched", "retention.beta": 0.35},
    "log_self_limited": {"retention.kind": "log_self_limited", "retention.v_scale": "45.6 mV", "retention.t0": "8.7 ns",
                         "retention.v_top": "0.9 V"},
    "constant_current": {"retention.kind": "constant_current", "retention.rate": "90 V/s"},
    "none": {"retention.kind": "none", "refresh.kind": "none"},
}  # fmt: skip
laws = pytest.mark.parametrize("law", LAWS)


def device(**overrides: object) -> DeviceModel:
    return every_effect(**{**SIZE, **overrides})


def deviations(device: DeviceModel, array: str = "value", dtype: torch.dtype = torch.float64) -> CellDeviations:
    return cell_deviations(Die(6, device), array, device, SHAPE[0], torch.arange(SHAPE[1]), SHAPE[2], dtype)  # type: ignore[arg-type]


def drawn(device: DeviceModel, what: str, array: str = "value") -> np.ndarray:
    slots = torch.arange(SHAPE[1])
    return Die(6, device).cells(what, array, SHAPE[0], slots, SHAPE[2]).double().numpy()  # type: ignore[arg-type]


def same(ours: Tensor, theirs: np.ndarray) -> None:
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=tolerances.FLOAT64 * max(1.0, np.abs(theirs).max()))


# ---- write


@pytest.mark.parametrize("array", ["key", "value"])
def test_written_voltage_is_its_twin(array: str) -> None:
    made, storage = device(), device().storage
    v = quantise_levels(V, storage.levels, storage.v_min, storage.v_max)
    step = (storage.v_max - storage.v_min) / (storage.levels - 1)
    steps = Die(6, made).circuits(f"dac.{array}", torch.device("cpu"), SHAPE[0], 3, SHAPE[2], storage.levels - 1)
    table = bridge(steps.double().numpy()) * made.write.dac_inl * step
    code = np.round((v - storage.v_min) / step).astype(int)
    h, s, d = np.indices(SHAPE)
    inl = table[h, s // 4, d, code]  # one converter per row and sub-tile of four slots
    expected = reference_write(
        v,
        made,
        inl=inl,
        z_capacitor=drawn(made, "capacitor", array),
        z_pedestal=drawn(made, "pedestal", array),
        z_write=Z,
    )
    same(cells.written_voltage(torch.from_numpy(v), made, deviations(made, array), torch.from_numpy(Z)), expected)
    assert np.abs(expected - v).max() > 0.02 and np.abs(inl).max() > 0.01


def test_design_and_quiet_write_change_nothing() -> None:
    v = torch.from_numpy(V)
    written = cells.written_voltage(v, device(), CellDeviations(), None)
    assert (written - v).abs().max() <= 1e-15


# ---- retention


@laws
@pytest.mark.parametrize("temperature", ["260 K", "300.15 K", "400 K"])
@pytest.mark.parametrize("v_inf", ["-0.5 V", "0 V", "0.45 V", "1.2 V"])
def test_stored_voltage_is_its_twin(law: str, temperature: str, v_inf: str) -> None:
    settings = {**LAWS[law], "operation.temperature": temperature}
    if law != "none":
        settings["retention.v_inf"] = v_inf
    made = device(**settings)
    ages = np.array([0.0, 1e-9, 3e-6, 4e-4, 2e-3, 0.1])
    z = drawn(made, "retention") if made.retention.tau_sigma_ln else 0.0
    for age in ages:
        ours = cells.relaxed_voltage(torch.from_numpy(V), torch.tensor(age), made, deviations(made))
        same(ours, stored_voltage(V, age, made.retention, temperature=made.operation.temperature, z=z))
    if law != "none" and temperature == "300.15 K":
        assert np.abs(ours.numpy() - V).max() > 0.1


def test_hot_cells_age_as_much_faster_as_arrhenius_says() -> None:
    hot, cold = device(**{"operation.temperature": "358.15 K"}), device(**{"operation.temperature": "300.15 K"})
    speed = arrhenius(358.15, hot.retention.activation_energy, 300.15)
    assert 20 < speed < 26  # tau(85 C) is 1/23 of tau(27 C) at 0.5 eV
    v, age = torch.from_numpy(V), torch.tensor(1e-4)
    same(
        cells.relaxed_voltage(v, age, hot, deviations(hot)),
        cells.relaxed_voltage(v, age * speed, cold, deviations(cold)).numpy(),
    )


# ---- current


@pytest.mark.parametrize("array", ["key", "value"])
def test_current_of_a_cell_is_the_law_with_gain_offset_drift_and_wire(array: str) -> None:
    made = device()
    gain, offset = (drawn(made, what, array) for what in ("gain", "offset"))
    w = V + made.variability.offset_sigma * offset - threshold_drift(made) - made.storage.v_zero
    _, s, d = np.indices(SHAPE)
    lost = reference_drop(d % 3, 3, made.wire) if array == "key" else reference_drop(s % 4, 4, made.wire)
    expected = reference_current(w, made.cell) * (1 + made.variability.gain_sigma * gain) * (1 - lost)
    ours = cells.cell_current(torch.from_numpy(V), made, deviations(made, array))
    same(ours * 1e6, expected * 1e6)
    assert threshold_drift(made) > 0.01 and lost.max() > 2e-5


@pytest.mark.parametrize(("rows", "dims"), [(64, 64), (64, 80), (8, 5), (1, 4)])
def test_wire_of_the_first_array_runs_along_the_dimensions(rows: int, dims: int) -> None:
    """Every sub-tile has a line of its own; a head smaller than a sub-tile leaves the rest of it empty."""
    made = replace(load_device("ideal", {"tile.rows": rows}), wire=Wire(9.47, 1.3e-6, 0.9))
    found = cell_deviations(Die(0, made), "key", made, 1, torch.arange(3), dims, torch.float64).factor
    assert found is not None
    expected = [1 - float(reference_drop(i % rows, min(rows, dims), made.wire)) for i in range(dims)]
    same(found.expand(1, 3, dims)[0, 1], np.array(expected))


def test_surrogate_has_the_slope_it_was_given() -> None:
    made = device(**{"cell.backward": "linear", "cell.surrogate_slope": "19.3 uA/V"})
    gain, offset = (drawn(made, what) for what in ("gain", "offset"))
    v = torch.from_numpy(V).requires_grad_()
    current = cells.surrogate_current(v, made, deviations(made))
    (slope,) = torch.autograd.grad(current.sum(), v)
    s = np.indices(SHAPE)[1]
    factor = (1 + 0.1 * gain) * (1 - reference_drop(s % 4, 4, made.wire))
    same(slope * 1e6, np.broadcast_to(19.3 * factor, V.shape))
    zero = made.storage.v_zero - made.variability.offset_sigma * offset + threshold_drift(made)
    same(1e6 * cells.surrogate_current(torch.from_numpy(zero), made, deviations(made)), np.zeros(SHAPE))


# ---- derivatives


@laws
def test_path_from_voltage_to_current_has_the_derivative_of_its_values(law: str) -> None:
    made = device(**{**LAWS[law], "retention.v_inf": "0.2 V"} if law != "none" else LAWS[law])
    found, z = deviations(made), torch.from_numpy(Z[:1])

    def through(v: Tensor) -> Tensor:
        stored = cells.written_voltage(v, made, found, z)
        return 1e6 * cells.cell_current(cells.relaxed_voltage(stored, torch.tensor(1e-4), made, found), made, found)

    v = torch.from_numpy(V[:1]).clamp(0.05, 0.85)
    v = v + 0.04 * (v - 0.2).sign() * ((v - 0.2).abs() < 0.15)  # laws with a magnitude have a corner at v_inf
    assert torch.autograd.gradcheck(through, (v.requires_grad_(),), atol=1e-6)


def test_level_grid_passes_the_gradient_where_it_does_not_clip() -> None:
    made = device()
    v = torch.from_numpy(V).requires_grad_()
    stored = cells.written_voltage(cells.to_levels(v, made), made, deviations(made), torch.from_numpy(Z))
    (found,) = torch.autograd.grad(stored.sum(), v)
    expected = 1 + capacitor_sigma(made) * drawn(made, "capacitor") + made.write.pedestal_gain
    same(found, np.where((V > 0) & (V < 0.9), expected, 0.0))


# ---- choices


def test_proportional_laws_are_told_from_others() -> None:
    for law, settings in LAWS.items():
        made = device(**settings)
        assert cells.decays_in_proportion(made, deviations(made)) == (law in ("median", "none")), law
        proportional = law not in ("log_self_limited", "constant_current")
        assert cells.decays_in_proportion(made, CellDeviations()) == proportional, law


def test_noise_of_writes_is_configured_by_either_part() -> None:
    quiet = {"write.error_sigma": "0 V", "write.ktc": False}
    assert cells.write_is_noisy(device()) and not cells.write_is_noisy(device(**quiet))
    thermal = device(**{**quiet, "write.ktc": True})
    assert cells.write_is_noisy(thermal)
    assert write_sigma(thermal) == pytest.approx((1.380649e-23 * 305 / 1e-15) ** 0.5, rel=tolerances.SUM)
