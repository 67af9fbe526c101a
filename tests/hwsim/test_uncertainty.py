"""Intervals of energy, latency and area: their order, their ends, their quantiles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from device_models import DeviceModel, load_device
from device_models.area import AREA_KEYS
from device_models.costs import PriceRange, price_range
from device_models.machines import load_network
from hwsim import EventCounts, price
from hwsim.analytic import analytic_events
from hwsim.costing import EnergyTerm, forward_terms
from hwsim.training import network_terms
from hwsim.uncertainty import (
    TIME_KEYS,
    Interval,
    area_range,
    device_ranges,
    latency_range,
    network_ranges,
    propagate,
    uncertainty,
)
from tests import tolerances

MODEL = {
    "model_type": "llama", "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
}  # fmt: skip
NAME = "gaincell_28nm"
SURVEY: dict[str, object] = {"cost.av_adc": "survey", "readout_qk.bits": 5}
REFRESH: dict[str, object] = {"refresh.kind": "periodic", "refresh.interval": "1 ms"}
PERIOD = 1e-5


def about(value: float) -> object:
    return pytest.approx(value, rel=tolerances.SUM, abs=0.0)


def events(device: DeviceModel) -> EventCounts:
    return analytic_events(MODEL, device, tokens=200, token_period_s=PERIOD, adapter_rank=4)


def si(device: DeviceModel, key: str, end: str) -> object:
    """The end of a range as an override writes it."""
    found = device.provenance[key].range
    assert found is not None
    text = found[0 if end == "low" else 1]
    try:
        return float(text)
    except ValueError:
        return text


# ---- intervals


@pytest.mark.parametrize("overrides", [{}, SURVEY, REFRESH], ids=["plain", "survey", "refresh"])
def test_intervals_are_ordered_and_nominal_is_the_price(overrides: dict[str, object]) -> None:
    device = load_device(NAME, overrides)
    found = uncertainty(events(device), device, token_period_s=PERIOD, samples=2000)
    cost = price(events(device), device, token_period_s=PERIOD)
    assert found.total.nominal == about(cost.total_energy_j)
    assert {line: i.nominal for line, i in found.lines.items()} == {k: about(v) for k, v in cost.lines_j.items()}
    spent = {part: about(energy) for part, energy in cost.energy_j.items() if energy > 0}
    assert {part: i.nominal for part, i in found.parts.items()} == spent
    assert list(found.parts) == list(spent)
    for one in [found.total, *found.lines.values(), *found.parts.values()]:
        assert one.low <= one.lower_95 <= one.nominal <= one.upper_95 <= one.high
        assert one.lower_95 < one.upper_95 < one.high
    assert found.total.lower_95 < found.total.nominal < found.total.upper_95


def test_ends_are_the_prices_of_a_device_at_its_ends() -> None:
    device = load_device(NAME)
    found = uncertainty(events(device), device, token_period_s=PERIOD, samples=100)
    keys = [k for k, r in device_ranges(forward_terms(events(device), device), device).items() if r.low != r.high]
    assert len(keys) > 15
    for end in ("low", "high"):
        there = load_device(NAME, {key: si(device, key, end) for key in keys})
        expected = price(events(device), there, token_period_s=PERIOD).total_energy_j
        assert getattr(found.total, end) == about(expected)


def test_equal_seeds_give_equal_bytes_and_others_differ() -> None:
    device = load_device(NAME)
    one, same, other = (uncertainty(events(device), device, samples=500, seed=seed) for seed in (3, 3, 4))
    assert repr(one) == repr(same)
    assert one.total.lower_95 != other.total.lower_95
    assert one.total.low == other.total.low


def test_tornado_is_a_direct_repricing() -> None:
    device = load_device(NAME, SURVEY)
    counts = events(device)
    found = uncertainty(counts, device, token_period_s=PERIOD, samples=10)
    widths = [swing.width_j for swing in found.tornado]
    assert len(widths) > 15 and widths == sorted(widths, reverse=True)
    assert {"adc.correction", "digital.system_multiplier"} <= {swing.key for swing in found.tornado}
    for swing in found.tornado:
        for end, said in (("low", swing.low_j), ("high", swing.high_j)):
            there = load_device(NAME, {**SURVEY, swing.key: si(device, swing.key, end)})
            assert said == about(price(counts, there, token_period_s=PERIOD).total_energy_j), swing.key


def test_number_without_range_or_set_by_the_user_is_exact() -> None:
    device = load_device(NAME, {"cost.digital_control": "200 pJ"})
    assert price_range(device, "cost.digital_control") == PriceRange(200e-12, 200e-12, 200e-12)
    keys = {swing.key for swing in uncertainty(events(device), device, samples=10).tornado}
    assert "cost.digital_control" not in keys and "cost.qk_mac" in keys


def test_range_that_misses_the_number_is_widened_to_it() -> None:
    device = load_device(NAME)
    cost = replace(device.cost, qk_mac=30e-15, av_mac=1e-15)
    outside = replace(device, cost=cost)
    assert price_range(outside, "cost.qk_mac") == PriceRange(13.7e-15, 30e-15, 30e-15)
    assert price_range(outside, "cost.av_mac") == PriceRange(1e-15, 1e-15, 16e-15)


def test_nothing_happened() -> None:
    found = uncertainty(EventCounts(), load_device(NAME), samples=10)
    assert found.total == Interval(0.0, 0.0, 0.0, 0.0, 0.0)
    assert (found.lines, found.parts, found.tornado) == ({}, {}, ())


# ---- quantiles


def triangular_quantile(p: float, low: float, mode: float, high: float) -> float:
    rising = (mode - low) / (high - low)
    if p <= rising:
        return low + math.sqrt(p * (high - low) * (mode - low))
    return high - math.sqrt((1 - p) * (high - low) * (high - mode))


def density(x: float, low: float, mode: float, high: float) -> float:
    edge = (x - low) / (mode - low) if x <= mode else (high - x) / (high - mode)
    return 2 * edge / (high - low)


@pytest.mark.parametrize("samples", [1000, 10_000, 100_000])
@pytest.mark.parametrize("ends", [(0.5, 1.0, 3.0), (0.1, 1.0, 1.2), (0.0, 1.0, 2.5)], ids=str)
def test_quantiles_of_one_number_converge(ends: tuple[float, float, float], samples: int) -> None:
    """Triangular in the logarithm, in the number itself from 0; standard error ``sqrt(p (1 - p) / n) / density``."""
    terms = [EnergyTerm("writes", "arrays", 2e-9, ("a",)), EnergyTerm("refresh", "arrays", 1e-9, ("a",))]
    log = ends[0] > 0
    low, mode, high = (math.log(x) if log else x for x in ends)
    scores = []
    for seed in range(20):
        total = propagate(terms, {"a": PriceRange(*ends)}, samples=samples, seed=seed).total
        assert total.nominal == about(3e-9)  # one number, one draw: both terms move together
        for p, got in ((0.025, total.lower_95), (0.975, total.upper_95)):
            x = math.log(got / 3e-9) if log else got / 3e-9
            expected = triangular_quantile(p, low, mode, high)
            scores.append((x - expected) / (math.sqrt(p * (1 - p) / samples) / density(expected, low, mode, high)))
    assert abs(np.mean(scores)) < 4 / math.sqrt(len(scores))
    assert np.std(scores) == pytest.approx(1.0, abs=0.4)


def test_numbers_are_drawn_apart() -> None:
    """The sum of two equal independent numbers is narrower than twice one of them."""
    ranges = {key: PriceRange(0.5, 1.0, 2.0) for key in "ab"}
    one = [EnergyTerm("writes", "arrays", 2.0, ("a",))]
    two = [EnergyTerm("writes", "arrays", 1.0, (key,)) for key in "ab"]
    alone, apart = (propagate(terms, ranges, samples=20_000).total for terms in (one, two))
    ratio = (apart.upper_95 - apart.lower_95) / (alone.upper_95 - alone.lower_95)
    assert ratio == pytest.approx(1 / math.sqrt(2), abs=0.05)


# ---- latency, area, network


def test_latency_range_is_that_of_slow_and_fast_devices() -> None:
    device = load_device(NAME)
    counts = events(device)
    found = latency_range(counts, device)
    assert found.nominal == price(counts, device).latency_s
    for end, slow in ((found.low, "low"), (found.high, "high")):
        other = {"low": "high", "high": "low"}[slow]
        ends = {key: si(device, key, other if key.endswith("_rate") else slow) for key in TIME_KEYS}
        assert end == about(price(counts, load_device(NAME, ends)).latency_s)
    assert found.low < found.nominal < found.high


def test_area_range_moves_every_area_together() -> None:
    device = load_device(NAME)
    counts = events(device)
    keys = ["adc.correction", *(key for key in AREA_KEYS.values() if key.endswith("_area"))]
    found = area_range(counts, device)
    assert found.nominal == about(sum(price(counts, device).area_parts_m2.values()))
    for end in ("low", "high"):
        there = load_device(NAME, {key: si(device, key, end) for key in keys})
        assert getattr(found, end) == about(sum(price(counts, there).area_parts_m2.values()))


def test_network_terms_have_their_ranges() -> None:
    network = load_network("wifi")
    terms, ranges = network_terms(network, uplink_bytes=1000, downlink_bytes=500), network_ranges(network)
    total = propagate(terms, ranges, samples=100).total
    nominal = 8 * (1000 * network.uplink_bit + 500 * network.downlink_bit)
    assert total.nominal == about(nominal)
    assert ranges["network.uplink_bit"].low < network.uplink_bit < ranges["network.uplink_bit"].high
    assert total.low < nominal < total.high
    assert network_ranges(replace(network, provenance=None))["network.uplink_bit"].high == network.uplink_bit


def test_refresh_that_only_its_slow_end_forbids_still_has_a_range() -> None:
    """Refreshing takes 1.28 us of 2 us, 3.2 us at the slow end of its range."""
    device = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": "2 us"})
    counts = analytic_events(MODEL, device, tokens=4, token_period_s=1e-6)
    found = latency_range(counts, device)
    assert found.low < found.nominal == price(counts, device).latency_s < found.high


def test_range_of_a_network_that_misses_the_number_is_widened_to_it() -> None:
    network = replace(load_network("lan"), uplink_bit=1.0)
    found = network_ranges(network)["network.uplink_bit"]
    assert found.low < found.nominal == found.high == 1.0
