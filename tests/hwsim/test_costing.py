"""Prices of events: each has one, nothing is lost, parts add up."""

from __future__ import annotations

from typing import Any

import pytest

from device_models import DeviceModel, load_device, preset_names
from device_models.costs import PARTS, event_costs, price_notes
from hwsim import EventCounts, price
from hwsim.events import EVENTS
from tests import tolerances
from tests.hwsim.counted import counted, whole
from tests.hwsim.models import small_device, token_ids

TOKENS = 20


def test_unpriced_event_is_no_silent_zero() -> None:
    with pytest.raises(KeyError, match=r"attention\.teleport.*gaincell_28nm"):
        price(EventCounts.of({"attention.teleport": 1}), load_device("gaincell_28nm"))
    with pytest.raises(KeyError, match="unknown event"):
        _ = EventCounts()["qk_mac"]


@pytest.mark.parametrize("name", preset_names())
def test_every_event_has_a_price_and_every_price_a_key_of_the_file(name: str) -> None:
    device = load_device(name)
    costs = event_costs(device)
    assert set(costs) == set(EVENTS) | STATIC
    for event, cost in costs.items():
        assert cost.key in device.provenance or (cost.key in DEFAULT_ZERO and cost.energy_j == 0.0), event
        assert cost.part is None or cost.part in PARTS
        assert cost.part is not None or cost.energy_j == 0.0


DEFAULT_ZERO = {"cost.refresh_conversion", "cost.softmax"}
"""Prices that a device needs only where it refreshes, or has a digital softmax."""
STATIC = {"static.subtile_second", "static.linear_cell_second", "static.sram_bit_second"}
"""Amounts of hardware and time that leak; ``price`` derives them from counts."""


def test_parts_sum_to_the_total_and_to_counts_times_prices(llama: Any) -> None:
    device = small_device()
    counts = whole(llama, token_ids(2, TOKENS))
    cost, prices = price(counts, device), event_costs(device)
    by_hand = sum(n * prices[event].energy_j for event, n in counts.events.items())
    by_hand += leakage_by_hand(counts, device, cost.latency_s)
    assert list(cost.energy_j) == list(PARTS)
    unused = {"attention converters", "refresh", "adapter"}
    assert {part for part, energy in cost.energy_j.items() if not energy > 0} == unused
    assert cost.total_energy_j == pytest.approx(by_hand, rel=tolerances.SUM, abs=0.0)
    assert cost.energy_per_token_j == pytest.approx(by_hand / (2 * TOKENS), rel=tolerances.SUM, abs=0.0)
    assert cost.latency_per_token_s == pytest.approx(cost.latency_s / (2 * TOKENS), rel=tolerances.SUM, abs=0.0)


def leakage_by_hand(counts: EventCounts, device: DeviceModel, seconds: float) -> float:
    """Sub-tiles leak while another layer works; arrays of 256 x 256 weights and the digital weights leak throughout."""
    attention = 2 * TOKENS * (device.cost.time_reset + 15e-9 * 3 + 35e-9)  # of one layer: two queries share
    attention += 1e-9 * counts["attention.tile_add"] / LAYERS
    subtiles = sum(counts.subtiles.values()) * (seconds - attention) * device.cost.subtile_leakage
    cells = MATRICES * LAYERS * 256**2 * seconds * device.linear.leakage
    return subtiles + cells + 16 * 2 * 32 * 40 * seconds * device.digital.sram_leakage  # words and head


LAYERS, MATRICES = 2, 7


def test_leakage_follows_the_token_period(llama: Any) -> None:
    device, counts = small_device(), whole(llama, token_ids(2, TOKENS))
    for period in (1e-6, 1e-3):
        cost = price(counts, device, token_period_s=period)
        leaked = sum(energy for part, energy in cost.energy_j.items() if part.startswith("leakage"))
        assert leaked == pytest.approx(
            leakage_by_hand(counts, device, 2 * TOKENS * period), rel=tolerances.SUM, abs=0.0
        )
    assert cost.latency_s == price(counts, device).latency_s


def test_busy_arrays_do_not_leak_beside_the_price_of_their_work(llama: Any) -> None:
    device = small_device()
    cost = price(whole(llama, token_ids(1, TOKENS)), device, token_period_s=1e-12)
    linear = MATRICES * LAYERS * 256**2 * TOKENS * 1e-12 * device.linear.leakage
    assert cost.energy_j["leakage of linear arrays"] == pytest.approx(linear, rel=tolerances.SUM, abs=0.0)
    assert cost.energy_j["leakage of attention arrays"] == 0.0


def test_system_multiplier_acts_on_the_linear_arrays_alone(llama: Any) -> None:
    counts = whole(llama, token_ids(1, TOKENS))
    once, twice = (price(counts, small_device(**{"linear.system_multiplier": f})).energy_j for f in (1.5, 3.0))
    linears = {"linear arrays", "linear converters"}
    for part in linears:
        assert twice[part] == pytest.approx(2 * once[part], rel=tolerances.SUM, abs=0.0)
    others = set(PARTS) - linears
    assert {part: twice[part] for part in others} == {part: once[part] for part in others}


def test_energy_is_additive_over_batches(llama: Any) -> None:
    device, total = small_device(), EventCounts()
    parts = [whole(llama, token_ids(1, tokens, tokens)) for tokens in (3, 12, 20)]
    for part in parts:
        total.add(part)
    together = counted(lambda: [llama(input_ids=token_ids(1, n, n), use_cache=False) for n in (3, 12, 20)])
    assert total.events == together.events
    assert total.tokens == together.tokens == 35
    summed = sum(price(part, device).total_energy_j for part in parts)
    assert price(total, device).total_energy_j == pytest.approx(summed, rel=tolerances.SUM, abs=0.0)
    assert price(total, device).area_m2 == price(parts[0], device).area_m2


def test_negative_token_period_is_refused(llama: Any) -> None:
    with pytest.raises(ValueError, match="no time"):
        price(whole(llama, token_ids(1, 3)), small_device(), token_period_s=-1.0)


def test_no_tokens_no_rate() -> None:
    cost = price(EventCounts(), load_device("gaincell_28nm"))
    assert (cost.total_energy_j, cost.energy_per_token_j, cost.latency_per_token_s) == (0.0, None, None)


# ---- time of a known text


def test_tokens_of_a_known_text_follow_at_the_pace_of_the_busiest_resource() -> None:
    """Two queries share an array of 35 ns; a linear layer takes longer; all layers share the accelerator."""
    device, counts = small_device(), EventCounts(tokens=10)
    for layer in (0, 1):
        counts.record(layer, {"attention.layer_pass": 10, "attention.shared_array_pass": 10})
    assert price(counts, device).interval_s == pytest.approx(2 * 35e-9, rel=tolerances.SUM, abs=0.0)
    counts.record(1, {"linear.layer_pass": 40})
    linear = 8 * 6 * (0.00653 * 256 + 0.64) * 1e-9 + 10e-9  # eight conversions of 6 bits, one settling before them
    assert price(counts, device).interval_s == pytest.approx(linear, rel=tolerances.SUM, abs=0.0)
    counts.record(None, {"digital.residual_value": 128_000})
    cost = price(counts, device)
    shared = 200e-9  # 128000 of 64e9 a second, by ten tokens
    assert cost.interval_s == pytest.approx(shared, rel=tolerances.SUM, abs=0.0)
    one = cost.latency_s / 10
    assert cost.prefill_latency_s == pytest.approx(one + 9 * shared, rel=tolerances.SUM, abs=0.0)
    assert price(EventCounts.of({"linear.layer_pass": 1}), device).interval_s == 0.0


def test_weights_take_as_long_as_the_slower_of_their_way_and_their_product() -> None:
    """409.6 Gbit/s from DRAM, 256e9 products of 16 bits a second on the chip; 4 MiB fit."""
    device, bits = small_device(), {"memory.weight_bit": 10**9}
    counts = EventCounts.of(bits, tokens=1)
    counts.weight_bits["fits"] = 8 * 4194304
    inside = price(counts, device)
    assert inside.latency_s == pytest.approx(1e9 / (16 * 256e9), rel=tolerances.SUM, abs=0.0)
    assert inside.energy_j["weight memory"] == pytest.approx(1e9 * 0.16e-12, rel=tolerances.SUM, abs=0.0)
    counts.weight_bits["one more"] = 1
    outside = price(counts, device)
    assert outside.latency_s == pytest.approx(1e9 / 409.6e9, rel=tolerances.SUM, abs=0.0)
    assert outside.energy_j["weight memory"] == pytest.approx(1e9 * 4e-12, rel=tolerances.SUM, abs=0.0)
    fast = small_device(**{"digital.dram_rate": "1e15 1/s"})
    assert price(counts, fast).latency_s == pytest.approx(1e9 / (16 * 256e9), rel=tolerances.SUM, abs=0.0)


def test_refresh_holds_up_its_arrays_alone(llama: Any) -> None:
    """Refreshing takes 8 slots x 20 ns of every 320 ns: attention takes twice as long, all else as before."""
    quiet = small_device()
    busy = small_device(**{"refresh.kind": "periodic", "refresh.interval": "320 ns"})
    counts = whole(llama, token_ids(1, TOKENS))
    prices = event_costs(quiet)
    names = ("attention.layer_pass", "attention.tile_add", "attention.shared_array_pass")
    attention = sum(counts[event] * prices[event].time_s for event in names)
    before, after = price(counts, quiet), price(counts, busy)
    assert after.latency_s - before.latency_s == pytest.approx(attention, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [({"readout.bits": 8}, "readout.bits 5"), ({"storage.levels": 64}, "storage.levels 8"),
     ({"input.levels": None}, "to continuous"), ({"linear.columns": 512}, "linear.columns 256")],
)  # fmt: skip
def test_prices_that_do_not_follow_a_resolution_are_said(overrides: dict[str, object], said: str) -> None:
    assert price_notes(load_device("gaincell_28nm")) == price_notes(load_device("sram_dcim_28nm")) == []
    (note,) = price_notes(load_device("gaincell_28nm", overrides))
    assert said in note
