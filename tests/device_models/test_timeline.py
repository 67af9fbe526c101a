"""When each step of a token happens: Fig. 2c, and what stretches it."""

from __future__ import annotations

import math

import pytest

from device_models import InputError, load_device
from device_models.timeline import attention_timeline, linear_time, readout_time, refresh_share, with_refresh
from tests import tolerances

NAME = "gaincell_28nm"
PUBLISHED = [  # [ns] Fig. 2c
    ("reset first array", 0, 5),
    ("first product", 5, 20),
    ("write value", 5, 15),
    ("reset second array", 15, 20),
    ("second product", 20, 35),
    ("write next key", 20, 30),
    ("readout", 35, 50),
]


def steps(tiles: int = 1, **overrides: object) -> dict[str, tuple[float, float]]:
    line = attention_timeline(load_device(NAME, overrides), tiles)
    return {p.name: (round(p.start_s * 1e9, 9), round(p.end_s * 1e9, 9)) for p in line.phases}


def times(tiles: int = 1, **overrides: object) -> tuple[float, float]:
    line = attention_timeline(load_device(NAME, overrides), tiles)
    return line.interval_s * 1e9, line.latency_s * 1e9


def exactly(*nanoseconds: float) -> object:
    return pytest.approx(nanoseconds, rel=tolerances.SUM, abs=0.0)


def test_one_tile_is_the_published_figure() -> None:
    assert steps() == {name: (start, end) for name, start, end in PUBLISHED}
    assert times() == exactly(35, 50)


def test_sixteen_tiles_are_added_one_by_one() -> None:
    found = steps(16)
    assert found.pop("add sub-tiles") == (50, 65)
    assert found == steps()
    assert times(16) == exactly(35, 65)


def test_phases_stand_in_the_order_of_their_start_and_name_their_key() -> None:
    device = load_device(NAME)
    phases = attention_timeline(device, 16).phases
    assert [p.start_s for p in phases] == sorted(p.start_s for p in phases)
    assert all(p.end_s > p.start_s and p.key in device.provenance for p in phases)


def test_slow_write_stretches_both_products() -> None:
    """Reset of the second array waits for the value, the next query for the next key."""
    found = steps(**{"cost.time_write": "30 ns"})
    assert found["write value"] == (5, 35)
    assert found["second product"] == (40, 55)
    assert found["write next key"] == (40, 70)
    assert times(**{"cost.time_write": "30 ns"}) == exactly(70, 70)


def test_write_of_ten_nanoseconds_just_hides() -> None:
    assert times(**{"cost.time_write": "1 ns"}) == times() == times(**{"cost.time_write": "10 ns"})
    assert times(**{"cost.time_write": "11 ns"}) == exactly(36, 51)


def test_softmax_reads_twice_and_converts_its_scores() -> None:
    softmax = {"activation.kind": "softmax", "readout_qk.bits": 6}
    found = steps(**softmax)
    assert found["reset first array again"] == (20, 25)
    assert found["first product, negative queries"] == (25, 40)
    sar = 6 * (0.00653 * 64 + 0.640)
    assert found["convert scores"] == pytest.approx((40, 40 + sar))
    assert times(**softmax) == exactly(40 + sar + 15, 40 + sar + 15 + 15)
    assert times(**softmax, **{"input.signed": True}) == exactly(20 + sar + 15, 20 + sar + 15 + 15)


@pytest.mark.parametrize(
    ("overrides", "nanoseconds"),
    [
        ({}, 15),
        ({"cost.av_adc": "sar"}, 5 * (0.00653 * 64 + 0.640)),
        ({"cost.av_adc": "sar", "readout.bits": 8}, 8 * (0.00653 * 64 + 0.640)),
        ({"cost.av_adc": "survey"}, 10),  # one period of 100 MHz
        ({"cost.av_adc": "survey", "adc.rate": "1 GHz"}, 1),
        ({"cost.av_adc": "fixed", "cost.av_conversion": "1 pJ"}, 15),
        ({"cost.av_adc": "fixed", "cost.av_conversion": "1 pJ", "cost.time_counter": "4 ns"}, 4),
    ],
    ids=str,
)
def test_readout_takes_the_time_of_its_model(overrides: dict[str, object], nanoseconds: float) -> None:
    assert times(**overrides) == exactly(35, 35 + nanoseconds)
    device = load_device(NAME, overrides)
    found = readout_time(device, device.cost.av_adc, device.readout.bits or 1, device.tile.slots)
    assert found * 1e9 == pytest.approx(nanoseconds, rel=tolerances.SUM, abs=0.0)


# ---- refresh


def test_refresh_takes_its_share_of_time() -> None:
    """64 slots of 20 ns every 10 us are 12.8 %; a latency of 1 us then takes 1 / (1 - 0.128) us."""
    device = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": "10 us"})
    assert refresh_share(device) == pytest.approx(64 * 20e-9 / 10e-6, rel=tolerances.SUM, abs=0.0)
    period = with_refresh(device, 1e-6)
    assert period == pytest.approx(1e-6 / 0.872, rel=tolerances.SUM, abs=0.0)
    assert period == pytest.approx(1e-6 + period / 10e-6 * 64 * 20e-9, rel=tolerances.SUM, abs=0.0)
    assert with_refresh(device, math.inf) == math.inf


def test_no_refresh_no_share() -> None:
    device = load_device(NAME)
    assert refresh_share(device) == 0.0
    assert with_refresh(device, 1e-6) == 1e-6


@pytest.mark.parametrize("interval", ["1.28 us", "1 us"])
def test_refresh_that_leaves_no_time_is_refused(interval: str) -> None:
    device = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": interval})
    with pytest.raises(InputError, match=r"above the 1.28e-06 s that refreshing 64 slots takes"):
        with_refresh(device, 1e-6)


# ---- what resolution and linear arrays take


@pytest.mark.parametrize(("bits", "nanoseconds"), [(5, 15), (6, 31), (8, 127)])
def test_counter_counts_as_far_as_its_bits(bits: int, nanoseconds: float) -> None:
    """15 counts in 15 ns at 5 bits with the sign; the next query waits for a readout that takes longer."""
    device = load_device("gaincell_28nm", {"readout.bits": bits})
    counted = readout_time(device, "counter", bits, 64)
    assert counted == pytest.approx(nanoseconds * 1e-9, rel=tolerances.SUM, abs=0.0)
    interval = attention_timeline(device).interval_s
    assert interval == pytest.approx(max(35e-9, counted), rel=tolerances.SUM, abs=0.0)


@pytest.mark.parametrize(
    ("overrides", "nanoseconds"),
    [
        ({}, 8 * 6 * (0.00653 * 256 + 0.64) + 10),
        ({"linear.cycle_time": "20 ns"}, 8 * 20 + 6 * (0.00653 * 256 + 0.64)),
        ({"linear.input_cycles": 1}, 6 * (0.00653 * 256 + 0.64) + 10 + 254 * 1),
        ({"linear.input_cycles": 4, "linear.slot_time": "3 ns"}, 4 * (10 + 2 * 3) + 6 * (0.00653 * 256 + 0.64)),
        ({"linear.adc": "survey"}, 8 * 10 + 10),
        ({"linear.adc": "fixed", "linear.adc_conversion": "1 pJ"}, 8 * 10),
    ],
    ids=str,
)
def test_linear_product_takes_the_slower_of_settling_and_converting(
    overrides: dict[str, object], nanoseconds: float
) -> None:
    found = linear_time(load_device("gaincell_28nm", overrides))
    assert found == pytest.approx(nanoseconds * 1e-9, rel=tolerances.SUM, abs=0.0)
