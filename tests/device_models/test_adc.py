"""Models of converters against their tables, and which of them prices a device."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from device_models import InputError, load_device
from device_models.adc import (
    conversion_area,
    conversion_energy,
    sar_area,
    sar_energy,
    sar_time,
    survey_area,
    survey_energy,
)
from device_models.costs import event_costs
from tests import tolerances

TABLE = Path(__file__).parents[2].parent / "shared" / "reference" / "adc_energy_table.csv"
ADC = load_device("gaincell_28nm").adc
ABOUT = {"rel": tolerances.ADC_TABLE, "abs": 0.0}


def rows() -> list[dict[str, float]]:
    if not TABLE.is_file():
        pytest.skip("no shared/ folder: the table of the regression lies outside of the repository")
    with TABLE.open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_survey_is_the_table() -> None:
    found = rows()
    assert len(found) >= 20
    for row in found:
        node = (row["bits"], row["fs_Hz"], row["nm"] * 1e-9)
        assert survey_energy(*node) == pytest.approx(row["andrulis_pJ"] * 1e-12, **ABOUT), row
        assert survey_area(*node) == pytest.approx(row["andrulis_um2"] * 1e-12, **ABOUT), row


def test_sar_is_the_table() -> None:
    for row in rows():
        assert sar_energy(row["bits"], 0.9) == pytest.approx(row["zigzag28_pJ"] * 1e-12, **ABOUT), row
        assert sar_area(row["bits"]) == pytest.approx(row["zigzag28_um2"] * 1e-12, **ABOUT), row


@pytest.mark.parametrize(("bits", "pj"), [(4, 0.72), (5, 0.73), (6, 0.83), (8, 1.33)])
def test_survey_at_28_nm(bits: int, pj: float) -> None:
    assert survey_energy(bits, 1e8, 28e-9) == pytest.approx(pj * 1e-12, **ABOUT)


@pytest.mark.parametrize(("bits", "pj"), [(4, 0.324), (5, 0.406), (6, 0.489), (8, 0.701)])
def test_sar_at_28_nm(bits: int, pj: float) -> None:
    assert sar_energy(bits, 0.9) == pytest.approx(pj * 1e-12, **ABOUT)


def test_sar_by_its_formula() -> None:
    assert sar_energy(1, 1.0) == pytest.approx(100.004e-15, rel=tolerances.SUM, abs=0.0)
    assert sar_area(0) == pytest.approx(10**1.206 * 1e-12, rel=tolerances.SUM, abs=0.0)
    assert sar_time(5, 64) == pytest.approx(5 * (0.41792 + 0.640) * 1e-9, rel=tolerances.SUM, abs=0.0)


def test_speed_costs_only_beyond_what_the_resolution_allows() -> None:
    """FOM_f falls below FOM_b where ``2.871903 ln f > 213.7807 - 128.3068 - 3.2205115 b``: 10 GHz at 6 bits."""
    assert survey_energy(6, 1e6, 28e-9) == survey_energy(6, 1e9, 28e-9)
    assert survey_energy(6, 1e11, 28e-9) > 1.1 * survey_energy(6, 1e9, 28e-9)
    assert survey_area(6, 1e9, 28e-9) / survey_area(6, 1e8, 28e-9) == pytest.approx(10**0.1807154, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(
    ("bits", "rate", "node", "said"),
    [
        (3, 1e8, 28e-9, "starts at 4 bits, received 3: take the model sar or fixed"),
        (3.9, 1e8, 28e-9, "starts at 4 bits"),
        (5, 0.0, 28e-9, "rate and node must be positive"),
        (5, 1e8, -1e-9, "rate and node must be positive"),
        (5, float("nan"), 28e-9, "rate and node must be positive"),
    ],
)
def test_outside_of_the_survey(bits: float, rate: float, node: float, said: str) -> None:
    for model in (survey_energy, survey_area):
        with pytest.raises(ValueError, match=said):
            model(bits, rate, node)


def test_models_by_name() -> None:
    assert conversion_energy("counter", 5, ADC) == conversion_area("counter", 5, ADC) == 0.0
    assert conversion_area("fixed", 5, ADC) == 0.0
    assert conversion_energy("survey", 5, ADC) == survey_energy(5, 1e8, 28e-9)
    assert conversion_area("survey", 5, ADC) == survey_area(5, 1e8, 28e-9)
    assert conversion_energy("sar", 5, ADC) == sar_energy(5, 0.9)
    assert conversion_area("sar", 5, ADC) == sar_area(5)
    with pytest.raises(ValueError, match="stands in the device file"):
        conversion_energy("fixed", 5, ADC)


# ---- which model prices a device

AV, PHI, LINEAR = "attention.av_conversion", "attention.phi_conversion", "linear.adc_conversion"


def priced(event: str, **overrides: object) -> float:
    return event_costs(load_device("gaincell_28nm", overrides))[event].energy_j


def test_each_converter_is_selectable() -> None:
    assert priced(AV) == 0.0  # a counter, contained in array and control
    assert priced(AV, **{"cost.av_adc": "survey"}) == survey_energy(5, 1e8, 28e-9)
    assert priced(AV, **{"cost.av_adc": "sar", "readout.bits": 7}) == sar_energy(7, 0.9)
    assert priced(AV, **{"cost.av_adc": "fixed", "cost.av_conversion": "0.3 pJ"}) == 0.3e-12
    assert priced(LINEAR) == 2 * sar_energy(6, 0.9)  # twice by the system multiplier
    assert priced(LINEAR, **{"linear.adc": "survey", "linear.adc_bits": 8}) == 2 * survey_energy(8, 1e8, 28e-9)
    assert priced(LINEAR, **{"linear.adc": "fixed", "linear.adc_conversion": "1 pJ"}) == 2e-12


def test_scores_have_a_converter_only_where_they_are_digitised() -> None:
    assert priced(PHI) == priced(PHI, **{"cost.phi_adc": "survey"}) == 0.0
    assert priced(PHI, **{"readout_qk.bits": 6}) == sar_energy(6, 0.9)
    assert priced(PHI, **{"readout_qk.bits": 6, "cost.phi_adc": "survey"}) == survey_energy(6, 1e8, 28e-9)
    assert priced(PHI, **{"cost.phi_adc": "fixed", "cost.phi_conversion": "1 pJ"}) == 1e-12


def test_node_supply_and_correction_act() -> None:
    assert priced(AV, **{"cost.av_adc": "survey", "adc.node": "65 nm"}) == survey_energy(5, 1e8, 65e-9)
    assert priced(AV, **{"cost.av_adc": "sar", "adc.supply": "1.2 V"}) == sar_energy(5, 1.2)
    assert priced(AV, **{"cost.av_adc": "sar", "adc.correction": 0.6}) == 0.6 * sar_energy(5, 0.9)


def test_own_price_is_dropped_with_the_model_that_needed_it() -> None:
    fixed = load_device("sram_dcim_28nm")
    assert fixed.linear.adc == "fixed" and fixed.linear.adc_conversion == 0.0
    modelled = load_device("sram_dcim_28nm", {"linear.adc": "sar", "linear.adc_bits": 6})
    assert modelled.linear.adc_conversion is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"cost.av_adc": "fixed"}, ["cost.av_adc: ", "cost.av_conversion is missing", "exactly with the model fixed"]),
        ({"cost.phi_adc": "fixed"}, ["cost.phi_conversion is missing"]),
        ({"linear.adc": "fixed"}, ["linear.adc_conversion is missing"]),
        ({"cost.av_conversion": "1 pJ"}, ["cost.av_conversion would do nothing", "received 'counter'"]),
        ({"cost.phi_conversion": "1 pJ"}, ["cost.phi_conversion would do nothing"]),
        ({"linear.adc_conversion": "1 pJ"}, ["linear.adc_conversion would do nothing", "received 'sar'"]),
        ({"linear.adc": "counter"}, ["linear.adc: ", "no charge-to-pulse stage", "fixed, survey or sar"]),
        ({"linear.adc_bits": None}, ["the model sar needs a resolution", "1 bits or more", "None"]),
        ({"linear.adc": "survey", "linear.adc_bits": 3}, ["the model survey needs a resolution", "4 bits", "3"]),
        ({"cost.av_adc": "survey", "readout.bits": 3}, ["cost.av_adc: ", "model survey needs a resolution"]),
        ({"cost.av_adc": "sar", "readout.bits": None, "readout.codes": "ideal"}, ["model sar needs a resolution"]),
        ({"cost.phi_adc": "survey", "readout_qk.bits": 3}, ["cost.phi_adc: ", "model survey needs a resolution"]),
        ({"cost.av_adc": "flash"}, ["cost.av_adc: ", "'flash'"]),
    ],
    ids=str,
)  # fmt: skip
def test_contradiction_is_one_line(overrides: dict[str, object], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_device("gaincell_28nm", overrides)
    assert "\n" not in str(caught.value)
    for words in said:
        assert words in str(caught.value)
