"""Every shipped device file, every leaf of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import device_models
from device_models import load_device, preset_names, references
from device_models.cell import cell_current
from device_models.loading import key_units, preset_folder, read_device_file
from device_models.provenance import Kind
from device_models.quantities import parse_quantity
from device_models.retention import refresh_interval, stored_voltage
from device_models.schema import Drift, Noise, Refresh, Variability, Wire, Write
from tests import tolerances

PRESETS = preset_names()
GAIN_CELLS = [name for name in PRESETS if name.startswith("gaincell_")]


def leaves(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    tree, _ = read_device_file(preset_folder() / f"{name}.yaml")
    sections = {section: keys for section, keys in tree.items() if isinstance(keys, dict)}
    return [(f"{section}.{key}", leaf) for section, keys in sections.items() for key, leaf in keys.items()]


def number(path: str, value: object) -> float:
    """Magnitude of a value of the key ``path`` in its SI unit."""
    unit = key_units()[path]
    if unit is not None:
        return parse_quantity(value, unit)
    assert isinstance(value, int | float)
    return float(value)


def test_there_are_presets() -> None:
    assert set(GAIN_CELLS) == {"gaincell_28nm", "gaincell_28nm_4t1c", "gaincell_28nm_logic", "gaincell_igzo"}
    assert set(PRESETS) == {*GAIN_CELLS, "ideal", "parity_leroux2025", "sram_dcim_28nm"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_every_leaf_has_its_provenance(name: str) -> None:
    device = load_device(name)
    found = leaves(name)
    assert device.name == name
    assert set(device.provenance) == {path for path, _ in found}
    assert len(device.file_sha256) == 64
    for path, leaf in found:
        provenance = device.provenance[path]
        assert provenance.source == leaf["source"], path
        assert provenance.kind in get_args(Kind), path
        assert provenance.where.strip(), path


@pytest.mark.parametrize("name", PRESETS)
def test_sources_exist_and_assumptions_are_explained(name: str) -> None:
    for path, leaf in leaves(name):
        assert leaf["source"] in references(), path
        if leaf["kind"] == "assumed" or leaf["source"] == "project":
            assert leaf.get("note", "").strip(), path


@pytest.mark.parametrize("name", PRESETS)
def test_values_lie_within_their_ranges(name: str) -> None:
    ranged = [(path, leaf) for path, leaf in leaves(name) if leaf.get("range")]
    assert name == "ideal" or ranged
    for path, leaf in ranged:
        low, high = (number(path, bound) for bound in leaf["range"])
        assert low < high, path
        assert low <= number(path, leaf["value"]) <= high, path


def test_every_reference_is_used_by_some_preset_or_formula() -> None:
    text = "\n".join(f"{leaf['source']} {leaf.get('note', '')}" for name in PRESETS for _, leaf in leaves(name))
    package = Path(device_models.__file__).parent
    files = [
        *(preset_folder() / "parts").glob("*.yaml"), *(preset_folder() / "networks").glob("*.yaml"),
        *package.rglob("*.py"), package / "baselines.yaml", *(Path(__file__).parents[2] / "hwsim").rglob("*.py"),
    ]  # fmt: skip
    text += "".join(path.read_text(encoding="utf-8") for path in files)
    unused = {key for key in references() if not re.search(rf"\b{key}\b", text)} - {"project"}
    assert not unused


def test_citations_name_a_year_and_stand_on_one_line() -> None:
    for key, citation in references().items():
        assert "\n" not in citation
        undated = key in ("project", "leroux2025code") or citation.endswith("no date")
        assert undated or re.search(r"\b(19|20)\d\d\b", citation), key


def test_sources_of_the_formulas_are_cited() -> None:
    """``Source: key`` of a docstring names an entry; a key is a name and a year."""
    package = Path(device_models.__file__).parent
    named = {word for file in package.glob("*.py") for word in re.findall(r"\b[a-z]+(?:19|20)\d\d\b", file.read_text())}
    assert "edri2016" in named
    assert named <= set(references())


@pytest.mark.parametrize("name", PRESETS)
def test_every_price_is_zero_or_above(name: str) -> None:
    device = load_device(name)
    for section in (device.cost, device.linear, device.digital, device.adc):
        numbers = {field: value for field, value in vars(section).items() if isinstance(value, float)}
        assert len(numbers) >= 4
        for field, value in numbers.items():
            assert math.isfinite(value) and value >= 0, field


@pytest.mark.parametrize("name", PRESETS)
def test_cell_current_grows_with_the_stored_voltage(name: str) -> None:
    device = load_device(name)
    w = np.linspace(device.storage.v_min, device.storage.v_max, 101) - device.storage.v_zero
    assert (np.diff(cell_current(w, device.cell)) > 0).all()


# ---- what each preset must say


LAW_AND_OPTION = {
    "retention.tau", "retention.beta", "retention.v_scale", "retention.t0", "retention.v_top", "retention.rate",
    "cell.backward", "cell.surrogate_slope", "tile.assignment", "parity.bfloat16_decay",
    "readout_qk.bits", "readout_qk.pulse_bits", "activation.kind", "activation.levels", "refresh.interval",
    "refresh.droop", "input.signed",
    "linear.adc_conversion", "linear.adc_area", "cost.phi_conversion", "cost.av_conversion",
}  # fmt: skip
"""Keys that belong to another law or to an option that the gain cells do not take."""


@pytest.mark.parametrize("name", GAIN_CELLS)
def test_gain_cells_say_what_each_effect_is(name: str) -> None:
    """Also an effect that is absent: nothing is left to a default that nobody sees."""
    device = load_device(name)
    expected = set(key_units()) - LAW_AND_OPTION
    if not device.drift.amplitude:
        expected -= {key for key in expected if key.startswith("drift.")} - {"drift.amplitude"}
    assert expected <= set(device.provenance)
    assert not {"readout_qk.bits", "activation.kind"} & set(device.provenance)


@pytest.mark.parametrize("name", GAIN_CELLS)
def test_gain_cells_are_not_perfect(name: str) -> None:
    device = load_device(name)
    strengths = [
        device.input.inl, device.input.jitter, device.write.dac_inl, device.write.error_sigma,
        device.write.pedestal_sigma, device.write.capacitor_mismatch, device.retention.tau_sigma_ln,
        device.retention.activation_energy, *vars(device.variability).values(), *vars(device.noise).values(),
        device.wire.resistance, device.readout.gain_sigma, device.readout.inl, device.readout.dnl, device.readout.noise,
    ]  # fmt: skip
    assert all(strength > 0 for strength in strengths)
    assert device.write.ktc


@pytest.mark.parametrize("name", ["ideal", "parity_leroux2025", "sram_dcim_28nm"])
def test_exact_devices_have_nothing_random(name: str) -> None:
    device = load_device(name)
    for section, plain in [("write", Write()), ("variability", Variability()), ("noise", Noise()), ("wire", Wire()),
                           ("drift", Drift()), ("refresh", Refresh())]:  # fmt: skip
        assert getattr(device, section) == plain
    assert device.input.inl == device.input.jitter == device.retention.tau_sigma_ln == 0
    readout = device.readout
    assert readout.gain_sigma == readout.offset_sigma == readout.inl == readout.dnl == readout.noise == 0


HEADS = [  # [nJ] of one head and token, 1024 slots of 64 dimensions
    ("gaincell_28nm", 6.15),
    ("gaincell_28nm_4t1c", 6.15),
    ("gaincell_28nm_logic", 6.15),
    ("gaincell_igzo", 6.20),
    ("sram_dcim_28nm", 9.3),
]


@pytest.mark.parametrize(("name", "nanojoules"), HEADS)
def test_energy_of_one_head_and_token(name: str, nanojoules: float) -> None:
    device = load_device(name)
    cost, cells = device.cost, 1024 * 64
    energy = cells * (cost.qk_mac + cost.av_mac) + 128 * cost.write_conversion + 16 * cost.digital_control
    if device.activation.kind == "softmax":
        energy += 1024 * cost.softmax
    assert energy == pytest.approx(nanojoules * 1e-9, rel=tolerances.THREE_DIGITS, abs=0.0)


@pytest.mark.parametrize("name", GAIN_CELLS)
def test_latency_of_one_head_and_token(name: str) -> None:
    cost = load_device(name).cost
    latency = cost.time_reset + cost.time_qk + cost.time_av + cost.time_counter + 15 * cost.time_add
    assert latency == pytest.approx(65e-9, rel=tolerances.SUM, abs=0.0)


@pytest.mark.parametrize("name", GAIN_CELLS)
def test_refresh_of_a_value_is_its_write_and_one_conversion(name: str) -> None:
    cost = load_device(name).cost
    assert 0.3e-12 < cost.refresh_conversion - cost.write_conversion < 0.75e-12  # 5-bit converters of 28 nm


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("gaincell_28nm", 0.77e-3), ("gaincell_28nm_4t1c", 0.139e-3), ("gaincell_28nm_logic", 26.9e-9),
     ("gaincell_igzo", 154.0)],
)  # fmt: skip
def test_time_until_the_extreme_level_lost_half_a_step(name: str, seconds: float) -> None:
    device = load_device(name, {"refresh.kind": "on_droop", "refresh.droop": 0.5})
    assert refresh_interval(device) == pytest.approx(seconds, rel=tolerances.THREE_DIGITS, abs=0.0)


def test_logic_cell_loses_the_tabulated_droop() -> None:
    """10, 20, 30, 40 % of 0.9 V after 45 ns, 483 ns, 3.98 us, 19.2 us, to 0.8 % of VDD rms."""
    device = load_device("gaincell_28nm_logic")
    lost = 1 - stored_voltage(0.9, np.array([45e-9, 483e-9, 3.98e-6, 19.2e-6]), device.retention) / 0.9
    assert np.sqrt(np.mean((lost - [0.1, 0.2, 0.3, 0.4]) ** 2)) == pytest.approx(0.008, abs=0.0005)


def test_wire_of_each_cell_is_as_long_as_the_cell() -> None:
    """9.47 Ohm/um times the side of a cell (of a signed pair where one cell is unsigned)."""
    for name, area in [("gaincell_28nm", 1.0), ("gaincell_28nm_4t1c", 2 * 0.268), ("gaincell_28nm_logic", 2 * 0.186),
                       ("gaincell_igzo", 0.5)]:  # fmt: skip
        device = load_device(name)
        assert device.wire.resistance == pytest.approx(9.47 * math.sqrt(area), rel=tolerances.THREE_DIGITS, abs=0.0), (
            name
        )
        assert device.cost.cell_area == pytest.approx(area * 1e-12, rel=tolerances.SUM, abs=0.0), name
        whole = 8192 * device.cost.cell_area + device.cost.readout_area + device.cost.control_area
        assert whole == pytest.approx((31250 - 8192 * (1 - area)) * 1e-12, rel=1e-4, abs=0.0), name


def test_sram_is_practically_exact() -> None:
    device = load_device("sram_dcim_28nm")
    largest = 19.3e-6 * 0.45
    assert device.saturation.qk > 64 * largest  # no score of 64 dimensions is clipped
    assert device.saturation.av > largest  # nor an average of values
    assert device.readout.codes == "ideal" and not device.decays
    step = device.saturation.qk / (2 ** (device.readout_qk.bits or 0) / 2)
    assert step < 0.003 * largest
