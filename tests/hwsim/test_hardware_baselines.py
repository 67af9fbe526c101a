"""The same work on other hardware: against hand counts and published figures."""

from __future__ import annotations

import pytest

from device_models import DeviceModel, load_device, preset_names, references
from device_models.costs import PARTS
from device_models.machines import load_baselines
from hwsim import EventCounts, price
from hwsim.analytic import analytic_events
from hwsim.baselines import ATTENTION, LINEAR, SCOPES, WHOLE, Baseline, baselines, in_scope, work
from tests import tolerances

DEVICE = load_device("gaincell_28nm", {"operation.temperature": "300 K"})
ONE_HEAD = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 1, "vocab_size": 10}
LAYER = ONE_HEAD | {"n_embd": 768, "n_head": 12}
GROUPED = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 100, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10,
}  # fmt: skip
PRINTED = {"rel": tolerances.THREE_DIGITS, "abs": 0.0}


def last_token(config: dict[str, object], device: DeviceModel = DEVICE) -> EventCounts:
    return analytic_events(config, device, tokens=1, start=1023)


def row(config: dict[str, object], name: str, scope: str = ATTENTION) -> Baseline:
    (found,) = [b for b in baselines(last_token(config), DEVICE) if name in b.name and b.scope == scope]
    return found


def test_work_of_a_head_and_token() -> None:
    asked = work(last_token(ONE_HEAD), DEVICE)
    assert (asked.tokens, asked.attention_macs, asked.scores) == (1, 65536, 1024)
    assert (asked.values_read, asked.values_written) == (2 * 65536, 128)
    assert asked.outputs == 1024 + 16 * 64
    assert asked.linear_macs == 12 * 64**2
    assert asked.digital_macs == 64 * 10


def test_work_does_not_depend_on_how_a_device_reads() -> None:
    """A softmax that reads signs apart, bit-serial inputs: the processor multiplies once."""
    plain = work(last_token(GROUPED), DEVICE)
    softmax = load_device("gaincell_28nm", {"activation.kind": "softmax", "readout_qk.bits": 6})
    assert work(last_token(GROUPED, softmax), softmax) == plain
    serial = load_device("gaincell_28nm", {"linear.input_cycles": 4, "linear.rows": 16})
    assert work(last_token(GROUPED, serial), serial) == plain


def test_grouped_heads_read_their_cache_once() -> None:
    asked = work(last_token(GROUPED), DEVICE)
    assert asked.attention_macs == 3 * 4 * 1024 * 64
    assert asked.values_read == 3 * 2 * 1024 * 2 * 64
    assert asked.values_written == 3 * 2 * 2 * 64


# ---- figures


def test_digital_compute_in_memory_of_a_head() -> None:
    """7.16 nJ of products, 2.05 nJ of softmax, 0.08 nJ of writes."""
    assert row(ONE_HEAD, "compute-in-memory").energy_j == pytest.approx(9.3e-9, **PRINTED)


def test_sram_window_of_a_head() -> None:
    """2 x 1024 x 64 values of 8 bits at 0.079 pJ and as many products at 0.15 pJ: 103 nJ; softmax and writes apart."""
    bank = load_baselines().sram_window
    apart = 1024 * bank.softmax + 128 * 8 * bank.kv_bit
    assert row(ONE_HEAD, "SRAM banks").energy_j - apart == pytest.approx(103e-9, **PRINTED)


def test_h100_of_a_layer_of_twelve_heads() -> None:
    """12 x 1024 x 2 x 64 values of 16 bits at 26.1 pJ per bit."""
    found = row(LAYER, "H100, fp16")
    assert found.energy_j == pytest.approx(657e-6, **PRINTED)
    assert found.latency_s == pytest.approx(found.energy_j / 700, rel=tolerances.SUM, abs=0.0)


def test_h100_reads_all_weights_for_a_whole_pass() -> None:
    whole, attention = row(LAYER, "H100, fp16, bandwidth", WHOLE), row(LAYER, "H100, fp16")
    weights = 16 * (12 * 768**2 + 768 * 10)
    assert whole.energy_j - attention.energy_j == pytest.approx(weights * 700 / 26.8e12, rel=1e-9, abs=0.0)


def test_h100_with_a_large_batch_pays_its_arithmetic() -> None:
    """0.71 pJ for an operation, two for a multiply-accumulate."""
    macs = 2 * 12 * 1024 * 64 + 12 * 768**2 + 768 * 10
    assert row(LAYER, "compute-bound", WHOLE).energy_j == pytest.approx(2 * macs * 700 / 989e12, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(("name", "ratio"), [("RTX 4090", 97_000), ("Jetson Nano", 44_000), ("H100, as", 70_000)])
def test_published_ratios_to_73_nanojoules(name: str, ratio: float) -> None:
    assert row(LAYER, name).energy_j / 73.8e-9 == pytest.approx(ratio, rel=0.01, abs=0.0)
    assert row(ONE_HEAD, name).energy_j == pytest.approx(row(LAYER, name).energy_j / 12, rel=tolerances.SUM, abs=0.0)


def test_conversions_of_a_head_at_the_floor_of_the_survey() -> None:
    """1024 scores and 16 x 64 outputs at 0.267 pJ."""
    (row,) = [b for b in baselines(last_token(ONE_HEAD), DEVICE) if b.name.startswith("conversions alone")]
    assert row.energy_j == pytest.approx(2048 * 0.267e-12, rel=tolerances.SUM, abs=0.0)


def test_thermal_limit_of_a_head() -> None:
    assert row(ONE_HEAD, "thermal").energy_j == pytest.approx(0.209e-12, **PRINTED)


def test_ternary_processors_pay_per_weight() -> None:
    assert row(LAYER, "M2 Ultra", LINEAR).energy_j == pytest.approx(153e-12 * 12 * 768**2, rel=tolerances.SUM, abs=0.0)
    macro = row(LAYER, "compute-in-memory", LINEAR).energy_j / (12 * 768**2)
    assert 50e-15 < macro < 150e-15  # INT8 multiply-accumulate times the system factor


# ---- rows


def test_every_row_says_what_it_is() -> None:
    known = set(load_baselines().provenance or ())
    for b in baselines(last_token(GROUPED), DEVICE):
        assert b.caveat.strip() and b.sources and b.energy_j > 0, b.name
        assert b.kind in ("measured", "simulated", "derived", "assumed"), b.name
        assert all(s in known or s in preset_names() or "kT" in s for s in b.sources), b.name
    names = [(b.name, b.scope) for b in baselines(last_token(GROUPED), DEVICE)]
    assert len(names) == len(set(names)) == 15


def test_energy_is_linear_in_the_work() -> None:
    once, three = last_token(GROUPED), EventCounts()
    for _ in range(3):
        three.add(once)
    for one, many in zip(baselines(once, DEVICE), baselines(three, DEVICE), strict=True):
        assert many.energy_j == pytest.approx(3 * one.energy_j, rel=tolerances.SUM, abs=0.0), one.name
        assert many.latency_s == pytest.approx(one.latency_s), one.name  # per token


def test_rows_are_those_of_the_work_that_was_done() -> None:
    attention = EventCounts.of({e: n for e, n in last_token(LAYER).events.items() if e.startswith("attention.")}, 1)
    assert {b.scope for b in baselines(attention, DEVICE)} == {ATTENTION}
    linear = EventCounts.of({e: n for e, n in last_token(LAYER).events.items() if e.startswith("linear.")}, 1)
    assert {b.scope for b in baselines(linear, DEVICE)} == {LINEAR}


def test_scopes_part_the_energy_of_the_device() -> None:
    cost = price(last_token(LAYER), DEVICE)
    assert in_scope(cost.energy_j, ATTENTION) == pytest.approx(73.8e-9, rel=tolerances.SUM, abs=0.0)
    assert in_scope(cost.energy_j, WHOLE) == pytest.approx(cost.total_energy_j, rel=tolerances.SUM, abs=0.0)
    assert 0 < in_scope(cost.energy_j, LINEAR) < cost.total_energy_j
    listed = [part for parts in SCOPES.values() for part in parts]
    assert len(listed) == len(set(listed)) and set(listed) <= set(PARTS)


def test_sources_of_the_numbers_exist() -> None:
    provenance = load_baselines().provenance
    assert provenance and all(p.source in references() and p.where.strip() for p in provenance.values())
