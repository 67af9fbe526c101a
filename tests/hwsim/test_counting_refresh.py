"""Events of refresh and of a digital softmax: brute force and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from device_models.retention import refresh_interval
from hwsim import EventCounts, count_events, price
from hwsim.events import EVENTS
from tests import tolerances
from tests.hwsim.models import PERIOD, emulated_model, full_device, small_device, token_ids

LAYERS, HEADS, STORED, DIM, WINDOW = 2, 4, 2, 8, 12
TOKENS = 30
SOFTMAX = {"activation.kind": "softmax", "readout_qk.bits": 6}


def counted(model: Any, ids: Tensor, **more: Any) -> EventCounts:
    with torch.no_grad(), count_events() as counts:
        model(input_ids=ids, use_cache=False, **more)
    return counts


def simulated_refreshes(tokens: int, interval: float, window: int = WINDOW) -> int:
    """Walk through time: refresh a slot an interval after it was written or refreshed, until it is overwritten."""
    done, last, total = {}, {}, 0
    for t in range(tokens):
        slot = t % window
        last[slot], done[slot] = t, 0
        for other in last:
            while (t - last[other]) * PERIOD >= (done[other] + 1) * interval:
                done[other] += 1
                total += 1
    return total


@pytest.mark.filterwarnings("ignore:.*no effect of refresh")
@pytest.mark.parametrize("interval", ["37 us", "90 us", "250 us", "0.45 ms", "1.05 ms", "1.15 ms"])
def test_refreshes_are_those_of_a_walk_through_time(interval: str) -> None:
    device = full_device(**{"refresh.interval": interval})
    counts = counted(emulated_model("llama", device), token_ids(2, TOKENS))
    expected = 2 * LAYERS * simulated_refreshes(TOKENS, device.refresh.interval or 0.0) * 2 * STORED * DIM
    assert counts["attention.refresh_conversion"] == expected
    assert (expected == 0) == (interval == "1.15 ms")  # no token grows older than 1.1 ms


def test_refreshes_on_droop_follow_the_interval_of_the_device() -> None:
    device = full_device(**{"refresh.kind": "on_droop", "refresh.droop": 0.2})
    interval = refresh_interval(device)
    assert interval is not None and PERIOD < interval < 8 * PERIOD
    counts = counted(emulated_model("llama", device), token_ids(1, TOKENS))
    assert counts["attention.refresh_conversion"] == LAYERS * simulated_refreshes(TOKENS, interval) * 2 * STORED * DIM


def test_padding_is_not_refreshed() -> None:
    model, ids = emulated_model("llama", full_device()), token_ids(2, TOKENS)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    padded = counted(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    interval = full_device().refresh.interval or 0.0
    values = (simulated_refreshes(TOKENS, interval) + simulated_refreshes(TOKENS - 9, interval)) * 2 * STORED * DIM
    assert padded["attention.refresh_conversion"] == LAYERS * values


def test_device_without_refresh_counts_none() -> None:
    counts = counted(emulated_model("llama", small_device()), token_ids(1, TOKENS))
    assert "attention.refresh_conversion" not in counts.events and counts["attention.refresh_conversion"] == 0


def test_a_softmax_reads_every_score_twice() -> None:
    """Positive and negative queries; each score is converted twice and normalised once."""
    plain = counted(emulated_model("llama", small_device()), token_ids(1, TOKENS))
    soft = counted(emulated_model("llama", small_device(**SOFTMAX)), token_ids(1, TOKENS))
    read = LAYERS * HEADS * sum(min(t + 1, WINDOW) for t in range(TOKENS))
    assert soft["attention.softmax"] == read
    assert soft["attention.phi_conversion"] == 2 * read == 2 * plain["attention.phi_conversion"]
    assert soft["attention.qk_mac"] == 2 * read * DIM
    assert soft["attention.av_mac"] == read * DIM
    twice = {"attention.phi_conversion", "attention.qk_mac", "attention.softmax"}
    assert {e: soft[e] for e in EVENTS if e not in twice} == {e: plain[e] for e in EVENTS if e not in twice}


def test_all_kinds_of_events_are_met() -> None:
    device = full_device(**SOFTMAX)
    counts = counted(emulated_model("llama", device), token_ids(1, TOKENS))
    absent = {"digital.adapter_mac", "digital.layer_norm_value"}  # tests/hwsim/test_analytic.py meets them
    assert set(counts.events) == set(EVENTS) - absent and min(counts.events.values()) > 0


def test_refresh_is_a_part_of_its_own_and_softmax_digital_control() -> None:
    ids = token_ids(1, TOKENS)
    device = full_device(**SOFTMAX, **{"cost.refresh_conversion": "3 pJ", "cost.softmax": "2 pJ"})
    free = full_device(**SOFTMAX, **{"cost.refresh_conversion": "0 J", "cost.softmax": "0 J"})
    counts = counted(emulated_model("llama", device), ids)
    paid, unpaid = price(counts, device).energy_j, price(counts, free).energy_j
    extra = {part: paid[part] - unpaid[part] for part in paid if paid[part] != unpaid[part]}
    assert extra == {
        "refresh": pytest.approx(3e-12 * counts["attention.refresh_conversion"], rel=tolerances.SUM * 100, abs=0.0),
        "digital control": pytest.approx(2e-12 * counts["attention.softmax"], rel=tolerances.SUM * 100, abs=0.0),
    }
