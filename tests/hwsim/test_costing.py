"""Prices of events: each has one, nothing is lost, parts add up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from device_models import load_device, preset_names
from device_models.costs import PARTS, event_costs
from hwsim import EventCounts, price
from hwsim.counting import EVENTS
from tests import tolerances
from tests.hwsim.counted import counted, whole
from tests.hwsim.models import small_device, token_ids

TOKENS = 20


def test_unpriced_event_is_no_silent_zero() -> None:
    with pytest.raises(KeyError, match=r"attention\.teleport.*gaincell_28nm"):
        price(EventCounts(Counter({"attention.teleport": 1})), load_device("gaincell_28nm"))
    with pytest.raises(KeyError, match="unknown event"):
        _ = EventCounts()["qk_mac"]


@pytest.mark.parametrize("name", preset_names())
def test_every_event_has_a_price_and_every_price_a_key_of_the_file(name: str) -> None:
    device = load_device(name)
    costs = event_costs(device)
    assert set(costs) == set(EVENTS)
    for event, cost in costs.items():
        assert cost.key in device.provenance or (cost.key in DEFAULT_ZERO and cost.energy_j == 0.0), event
        assert cost.part is None or cost.part in PARTS
        assert cost.part is not None or cost.energy_j == 0.0


DEFAULT_ZERO = {"cost.refresh_conversion", "cost.softmax"}
"""Prices that a device needs only where it refreshes, or has a digital softmax."""


def test_parts_sum_to_the_total_and_to_counts_times_prices(llama: Any) -> None:
    device = small_device()
    counts = whole(llama, token_ids(2, TOKENS))
    cost, prices = price(counts, device), event_costs(device)
    by_hand = sum(n * prices[event].energy_j for event, n in counts.events.items())
    assert list(cost.energy_j) == list(PARTS)
    assert all(energy > 0 for energy in cost.energy_j.values())
    assert cost.total_energy_j == pytest.approx(by_hand, rel=tolerances.SUM)
    assert cost.energy_per_token_j == pytest.approx(by_hand / (2 * TOKENS), rel=tolerances.SUM)
    assert cost.latency_per_token_s == pytest.approx(cost.latency_s / (2 * TOKENS), rel=tolerances.SUM)


def test_system_multiplier_acts_on_the_linear_arrays_alone(llama: Any) -> None:
    counts = whole(llama, token_ids(1, TOKENS))
    once, twice = (price(counts, small_device(**{"linear.system_multiplier": f})).energy_j for f in (1.5, 3.0))
    assert twice["linear layers"] == pytest.approx(2 * once["linear layers"], rel=tolerances.SUM)
    others = set(PARTS) - {"linear layers", "converters"}
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
    assert price(total, device).total_energy_j == pytest.approx(summed, rel=tolerances.SUM)
    assert price(total, device).area_m2 == price(parts[0], device).area_m2


def test_no_tokens_no_rate() -> None:
    cost = price(EventCounts(), load_device("gaincell_28nm"))
    assert (cost.total_energy_j, cost.energy_per_token_j, cost.latency_per_token_s) == (0.0, None, None)
