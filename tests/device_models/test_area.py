"""Area of the chip by part."""

from __future__ import annotations

import pytest

from device_models import load_device, preset_names
from device_models.adc import sar_area, survey_area
from device_models.area import AREA_KEYS, part_areas
from tests import tolerances

NAME = "gaincell_28nm"


def areas(subtiles: int, arrays: int, name: str = NAME, **overrides: object) -> dict[str, float]:
    return part_areas(load_device(name, overrides), subtiles, arrays)


def exactly(value: float) -> object:
    return pytest.approx(value, rel=tolerances.SUM, abs=0.0)


def test_head_of_sixteen_sub_tiles() -> None:
    """0.5 mm2, of which the oxide cells of keys and values take 16 x 8192 um2."""
    found = areas(16, 0)
    assert sum(a for part, a in found.items() if part.startswith("attention")) == exactly(0.5e-6)
    assert found["attention cells"] == exactly(16 * 2 * 64 * 64 * 1e-12)
    assert found["attention readout"] + found["attention cells"] == exactly(16 * 70e-6 * 240e-6)  # Fig. 3b
    assert found["linear cells"] == found["linear converters"] == 0.0


def test_linear_arrays_have_a_converter_for_each_column() -> None:
    found = areas(0, 3)
    assert found["linear cells"] == exactly(3 * 256 * 256 * 0.508e-12)
    assert found["linear converters"] == exactly(3 * 256 * sar_area(6))
    survey = areas(0, 3, **{"linear.adc": "survey"})
    assert survey["linear converters"] == exactly(3 * 256 * survey_area(6, 1e8, 28e-9))
    fixed = {"linear.adc": "fixed", "linear.adc_conversion": "1 pJ", "linear.adc_area": "100 um**2"}
    assert areas(0, 3, **fixed)["linear converters"] == exactly(3 * 256 * 100e-12)


def test_digital_side_does_not_grow_with_the_arrays() -> None:
    found = areas(0, 0)
    assert found["digital arithmetic"] == exactly(256 * 1160e-12)
    assert found["digital memory"] == exactly(8 * 4194304 * 0.2e-12)
    both = ("digital arithmetic", "digital memory")
    assert [areas(99, 99)[part] for part in both] == [found[part] for part in both]


@pytest.mark.parametrize("name", preset_names())
def test_every_part_rests_on_a_key_of_the_file(name: str) -> None:
    device = load_device(name)
    assert list(part_areas(device, 1, 1)) == list(AREA_KEYS)
    assert set(AREA_KEYS.values()) <= set(device.provenance)


@pytest.mark.parametrize("part", [part for part, key in AREA_KEYS.items() if key != "linear.adc"])
def test_every_area_that_is_taken_names_its_technology(part: str) -> None:
    """A converter's is that of its model: 28 nm, or the node of the device."""
    for name in preset_names():
        device = load_device(name)
        if part_areas(device, 1, 1)[part] > 0:
            assert "technology:" in (device.provenance[AREA_KEYS[part]].note or ""), name


def test_converters_of_attention_take_area_where_they_are_modelled() -> None:
    """64 outputs of a sub-tile, and 64 scores where they are digitised; the published counter is part of the rest."""
    assert part_areas(load_device("gaincell_28nm"), 16, 0)["attention converters"] == 0.0
    outputs = load_device("gaincell_28nm", {"cost.av_adc": "sar"})
    assert part_areas(outputs, 16, 0)["attention converters"] == exactly(16 * 64 * sar_area(5))
    both = load_device("gaincell_28nm", {"cost.av_adc": "sar", "readout_qk.bits": 6, "adc.correction": 2.0})
    assert part_areas(both, 16, 0)["attention converters"] == exactly(2 * 16 * 64 * (sar_area(5) + sar_area(6)))
