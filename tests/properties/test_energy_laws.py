"""What holds of energy and latency for any counts, prices and texts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from operator import attrgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_models import DeviceModel, load_device
from device_models.costs import ACCELERATOR, ARRAYS, event_costs
from hwsim import EventCounts, price
from hwsim.analytic import analytic_events
from hwsim.costing import forward_terms
from hwsim.events import EVENTS
from tests import tolerances

MODEL = {
    "model_type": "llama", "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50,
}  # fmt: skip
SOFTMAX = {"activation.kind": "softmax", "readout_qk.bits": 6}
REFRESH = {"refresh.kind": "periodic", "refresh.interval": "300 us"}
DEVICES = [
    load_device("gaincell_28nm", {"window.tokens": 40, "tile.slots": 8}),
    load_device("gaincell_28nm", {"window.tokens": 40, "tile.slots": 8, **REFRESH}),
    load_device("gaincell_28nm", {"window.tokens": 40, "cost.av_adc": "survey", **SOFTMAX}),
    load_device("sram_dcim_28nm", {"window.tokens": 40}),
]
PERIOD = 1e-4  # [s]

devices = st.sampled_from(DEVICES)
texts = st.lists(st.integers(1, 90), min_size=1, max_size=5)
some = settings(max_examples=25, deadline=None)
counts_of_anything = st.dictionaries(st.sampled_from(sorted(EVENTS)), st.integers(0, 10**9))


def events(device: DeviceModel, tokens: int, start: int = 0) -> EventCounts:
    return analytic_events(MODEL, device, tokens=tokens, start=start, token_period_s=PERIOD)


def together(parts: list[EventCounts]) -> EventCounts:
    total = EventCounts()
    for part in parts:
        total.add(part)
    return total


def joules(counts: EventCounts, device: DeviceModel) -> float:
    return price(counts, device, token_period_s=PERIOD).total_energy_j


@given(devices, texts)
@some
def test_energy_is_additive_over_texts(device: DeviceModel, tokens: list[int]) -> None:
    parts = [events(device, n) for n in tokens]
    assert joules(together(parts), device) == pytest.approx(
        sum(joules(part, device) for part in parts), rel=tolerances.SUM, abs=0.0
    )


@given(devices, st.data())
@some
def test_energy_is_additive_over_chunks_of_a_text(device: DeviceModel, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 100))
    cuts = sorted({0, length, *data.draw(st.lists(st.integers(1, length - 1), max_size=4))})
    chunks = [events(device, end - start, start) for start, end in pairwise(cuts)]
    whole = events(device, length)
    assert together(chunks).events == whole.events
    assert sum(joules(chunk, device) for chunk in chunks) == pytest.approx(
        joules(whole, device), rel=tolerances.SUM, abs=0.0
    )


@given(devices, st.lists(st.integers(1, 90), min_size=2, max_size=5), st.randoms())
@some
def test_order_of_texts_does_not_matter(device: DeviceModel, tokens: list[int], shuffle: object) -> None:
    parts = [events(device, n) for n in tokens]
    there = price(together(parts), device, token_period_s=PERIOD)
    shuffle.shuffle(parts)  # type: ignore[attr-defined]
    back = price(together(parts), device, token_period_s=PERIOD)
    assert back.energy_j == there.energy_j
    assert back.latency_s == pytest.approx(there.latency_s, rel=tolerances.SUM, abs=0.0)
    assert back.area_parts_m2 == there.area_parts_m2


@given(devices, counts_of_anything)
@some
def test_parts_lines_and_terms_sum_to_the_total_and_none_is_negative(device: DeviceModel, n: dict[str, int]) -> None:
    counts = EventCounts.of(n, tokens=1)
    cost = price(counts, device)
    assert min(cost.energy_j.values()) >= 0.0 and cost.latency_s >= 0.0 and cost.interval_s >= 0.0
    assert set(cost.lines_j) == {ARRAYS, ACCELERATOR}
    assert sum(cost.lines_j.values()) == pytest.approx(cost.total_energy_j, rel=tolerances.SUM, abs=0.0)
    assert sum(term.energy_j for term in forward_terms(counts, device)) == pytest.approx(
        cost.total_energy_j, rel=tolerances.SUM, abs=0.0
    )


@given(devices, st.integers(1, 90), st.integers(0, 90))
@some
def test_a_token_takes_time(device: DeviceModel, tokens: int, start: int) -> None:
    cost = price(events(device, tokens, start), device)
    assert cost.latency_s >= tokens * cost.interval_s > 0.0
    one, all_known = cost.latency_per_token_s, cost.prefill_latency_s
    assert one is not None and all_known is not None
    assert one <= all_known * (1 + tolerances.SUM) <= cost.latency_s * (1 + 2 * tolerances.SUM)


# ---- each price, raised


def numbers(device: DeviceModel) -> list[str]:
    """Keys of the device that price an event, or leak."""
    return sorted({key for cost in event_costs(device).values() for key in cost.factors})


@given(devices, st.integers(1, 90), st.floats(1.0, 3.0), st.data())
@settings(max_examples=100, deadline=None)
def test_a_higher_price_never_lowers_the_total(
    device: DeviceModel, tokens: int, factor: float, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(numbers(device)))
    section, _, name = key.partition(".")
    raised = {name: attrgetter(key)(device) * factor}
    dearer = replace(device, **{section: replace(getattr(device, section), **raised)})
    counts = events(device, tokens)
    before, after = price(counts, device, token_period_s=PERIOD), price(counts, dearer, token_period_s=PERIOD)
    assert all(after.energy_j[part] >= before.energy_j[part] for part in before.energy_j)
    used = any(key in term.factors and term.energy_j > 0 for term in forward_terms(counts, device))
    if not used:
        assert after.energy_j == before.energy_j
    elif factor > 1.001:
        assert after.total_energy_j > before.total_energy_j
