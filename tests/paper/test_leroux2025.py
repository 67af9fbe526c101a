"""Figures printed by Leroux et al. (2025), out of events counted while attention runs."""

from __future__ import annotations

import math

import pytest
import torch

from device_models import load_device
from device_models.retention import decay_factor
from hwsim import Cost, EventCounts, count_events, price
from hwsim.analytic import analytic_events
from hwsim.counting import record_attention
from hwsim.functional.attention_tiled import attend
from hwsim.functional.layout import SlotLayout, slot_layout
from hwsim.functional.tables import AttentionTables
from tests import tolerances

DEVICE = load_device("gaincell_28nm")
ATTENTION_PERIOD = 780e-9  # [s] 12 layers x 65 ns, as the paper counts


def one_token(window: int, heads: int = 1, laps: int = 1) -> Cost:
    """Run the last query of ``laps`` full windows and price what it did."""
    device = load_device("gaincell_28nm", {"window.tokens": window})
    keys = torch.arange(laps * window)
    layout = slot_layout(keys[None], (keys[-1] - keys)[None, None], device)
    assert int(layout.read.sum()) == window
    with count_events() as counts:
        _attend(layout, device, heads)
        record_attention(0, layout, heads, heads, 64, 1, device)
    assert counts.tokens == 1
    return price(published(counts), device)


def published(counts: EventCounts) -> EventCounts:
    """Leave the digital range scalers out, which the paper does not count."""
    kept = EventCounts(tokens=counts.tokens, subtiles=dict(counts.subtiles))
    for layer, events in counts.by_layer.items():
        kept.record(layer, {event: n for event, n in events.items() if event != "attention.scaler_value"})
    return kept


def _attend(layout: SlotLayout, device: object, heads: int) -> None:
    tokens = layout.age.shape[2]
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(1, heads, n, 64, generator=rng) for n in (1, tokens, tokens))
    tables = AttentionTables(layout, device, ATTENTION_PERIOD, torch.float32)
    assert attend(q, 0.9 * k, 0.9 * v, device, tables).abs().max() > 0


@pytest.mark.parametrize("laps", [1, 3])
def test_energy_of_one_head_and_token(laps: int) -> None:
    """1120 + 700 + 330 pJ + 4 nJ = 6.15 nJ (p. 819), also once the ring has wrapped."""
    cost = one_token(1024, laps=laps)
    about = {"rel": tolerances.SUM, "abs": 0.0}
    assert cost.energy_j["attention arrays"] == pytest.approx(1120e-12 + 700e-12, **about)
    assert cost.energy_j["writes"] == pytest.approx(330e-12, **about)
    assert cost.energy_j["digital control"] == pytest.approx(4e-9, **about)
    assert cost.total_energy_j == pytest.approx(6.15e-9, **about)
    assert cost.energy_per_token_j == cost.total_energy_j


@pytest.mark.parametrize(("event", "published"), [("attention.qk_mac", 1120e-12), ("attention.av_mac", 700e-12)])
def test_energy_of_each_array(event: str, published: float) -> None:
    with count_events() as counts:
        keys = torch.arange(1024)
        record_attention(0, slot_layout(keys[None], (keys[-1] - keys)[None, None], DEVICE), 1, 1, 64, 1, DEVICE)
    alone = EventCounts.of({event: counts[event]})
    assert price(alone, DEVICE).total_energy_j == pytest.approx(published, rel=tolerances.SUM, abs=0.0)


@pytest.mark.parametrize(("window", "nanoseconds"), [(64, 50), (1024, 65)])
def test_latency_of_one_token(window: int, nanoseconds: float) -> None:
    assert one_token(window).latency_s == pytest.approx(nanoseconds * 1e-9, rel=tolerances.SUM, abs=0.0)


def test_energy_of_a_layer_of_twelve_heads() -> None:
    layer = one_token(1024, heads=12)
    assert layer.total_energy_j == pytest.approx(73.8e-9, rel=tolerances.SUM, abs=0.0)
    assert layer.latency_s == pytest.approx(65e-9, rel=tolerances.SUM, abs=0.0)  # heads run in parallel


def test_energy_per_multiply_accumulate() -> None:
    assert one_token(1024).total_energy_j / (2 * 1024 * 64) == pytest.approx(
        46.9e-15, rel=tolerances.THREE_DIGITS, abs=0.0
    )


def test_control_power_is_its_energy_over_the_interval_between_tokens() -> None:
    """113.7 mW and 4 nJ agree at 35 ns (reset and two products), not at the latency of 65 ns."""
    energy = one_token(1024).energy_j["digital control"]
    interval = DEVICE.cost.time_reset + DEVICE.cost.time_qk + DEVICE.cost.time_av
    assert 113.7e-3 * interval == pytest.approx(energy, rel=2 * tolerances.THREE_DIGITS, abs=0.0)
    assert 1.5 * energy < 113.7e-3 * 65e-9


def test_area_of_one_head() -> None:
    assert one_token(1024).area_m2 == pytest.approx(0.5e-6, rel=tolerances.SUM, abs=0.0)


def test_partly_filled_window_costs_the_tiles_that_hold_tokens() -> None:
    keys = torch.arange(65)
    with count_events() as counts:
        record_attention(0, slot_layout(keys[None], (64 - keys)[None, None], DEVICE), 1, 1, 64, 1, DEVICE)
    assert counts["attention.subtile_pass"] == 2
    assert price(published(counts), DEVICE).latency_s == pytest.approx(51e-9, rel=tolerances.SUM, abs=0.0)


def test_charge_left_at_the_oldest_of_1024_tokens() -> None:
    """exp(-0.78 us x 1023 / 5 ms) = 0.85; with 10 us between tokens 13 % is left."""
    left = decay_factor([1023 * ATTENTION_PERIOD, 1023 * 10e-6], DEVICE.retention)
    assert left.round(2).tolist() == [0.85, 0.13]
    assert pytest.approx(1.56e-4, rel=tolerances.THREE_DIGITS, abs=0.0) == ATTENTION_PERIOD / 5e-3


def test_retention_after_ten_milliseconds() -> None:
    """Fig. 1f: 0.9 V relaxes to about 0.51 V, 0 V to about 0.39 V."""
    left = float(decay_factor([10e-3], DEVICE.retention)[0])
    v_inf = DEVICE.retention.v_inf
    assert v_inf is not None
    assert v_inf + 0.45 * left == pytest.approx(0.51, abs=0.01)
    assert v_inf - 0.45 * left == pytest.approx(0.38, abs=0.015)
    assert math.isclose(left, math.exp(-2))


# ---- whole models and the figures that disagree

GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
GPT2_XL = GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25}
ONE_HEAD = GPT2 | {"n_embd": 64, "n_layer": 1, "n_head": 1}
PUBLISHED_PARTS = ("attention arrays", "writes", "digital control")


def last_token(config: dict[str, object], **overrides: object) -> float:
    """Energy [J] that the published parts spend on a token that finds the window full."""
    device = load_device("gaincell_28nm", overrides)
    cost = price(analytic_events(config, device, tokens=1, start=1023), device)
    return sum(cost.energy_j[part] for part in PUBLISHED_PARTS)


@pytest.mark.parametrize(
    ("config", "joules"), [(ONE_HEAD, 6.15e-9), (GPT2, 0.886e-6), (GPT2_XL, 7.38e-6)], ids=["head", "gpt2", "xl"]
)
def test_attention_of_whole_models(config: dict[str, object], joules: float) -> None:
    """12 layers of 12 heads, and 48 layers of 25, at 6.15 nJ."""
    assert last_token(config) == pytest.approx(joules, rel=tolerances.THREE_DIGITS, abs=0.0)


def test_dacs_of_the_pie_chart() -> None:
    """Fig. 5e: shares of 6.85 nJ, in which write DACs take 1030 pJ where the text says 330 pJ."""
    per_value = 1030e-12 / 128
    assert last_token(ONE_HEAD, **{"cost.write_conversion": f"{per_value!r} J"}) == pytest.approx(
        6.85e-9, rel=tolerances.THREE_DIGITS, abs=0.0
    )
    arrays, share = 1120e-12 / 6.85e-9, 0.163
    assert arrays == pytest.approx(share, rel=tolerances.THREE_DIGITS, abs=0.0)
    high = DEVICE.provenance["cost.write_conversion"].range
    assert high is not None and float(high[1].removesuffix(" pJ")) * 1e-12 == pytest.approx(per_value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("cost.write_conversion", ["1030 pJ", "Fig. 5e"]),
        ("cost.digital_control", ["35 ns", "65 ns", "462 pJ"]),
        ("cost.cell_area", ["oxide", "silicon cells"]),
        ("cost.qk_mac", ["990 pJ"]),
    ],
)
def test_file_names_what_disagrees(key: str, words: list[str]) -> None:
    note = DEVICE.provenance[key].note or ""
    assert all(word in note for word in words)


def test_refresh_takes_over_where_tokens_are_slow() -> None:
    """tau of 5 ms and a token each millisecond: half an LSB every 0.77 ms, 0.5 uJ per token and head."""
    device = load_device("gaincell_28nm", {"refresh.kind": "on_droop", "refresh.droop": 0.5})
    counts = analytic_events(ONE_HEAD, device, tokens=1, start=1023, token_period_s=1e-3)
    refreshes = 1023e-3 // (-5e-3 * math.log(1 - 1 / 7))
    assert counts["attention.refresh_conversion"] == 128 * refreshes
    cost = price(counts, device, token_period_s=1e-3)
    assert 0.5e-6 <= cost.energy_j["refresh"] < 0.52e-6
    assert cost.energy_j["refresh"] > 80 * sum(cost.energy_j[part] for part in PUBLISHED_PARTS)
