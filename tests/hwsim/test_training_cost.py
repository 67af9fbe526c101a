"""Backward pass and optimiser: against a hand count of a tiny model, and what they must not depend on."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from device_models import load_device
from device_models.costs import ACCELERATOR
from device_models.machines import load_network
from device_models.scaling import energy_factor
from hwsim import EventCounts
from hwsim.analytic import analytic_events
from hwsim.training import (
    BACKWARD_PARTS,
    NETWORK,
    TrainingEvents,
    network_terms,
    training_events,
    training_terms,
    training_time,
)
from tests import tolerances

DEVICE = load_device("gaincell_28nm", {"window.tokens": 12, "tile.slots": 8})
HIDDEN, INNER, HEADS, STORED, DIM, VOCABULARY, RANK = 32, 48, 4, 2, 8, 40, 3
LAYERS, TOKENS, BATCH = 2, 20, 3
MODEL = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": STORED, "vocab_size": VOCABULARY,
}  # fmt: skip
SHAPES = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
TRAINED = LAYERS * RANK * sum(i + o for i, o in SHAPES)
FROZEN = LAYERS * sum(i * o for i, o in SHAPES)


def about(value: float) -> object:
    return pytest.approx(value, rel=tolerances.SUM, abs=0.0)


def forward(device: Any = DEVICE, batch: int = BATCH) -> EventCounts:
    return analytic_events(MODEL, device, tokens=TOKENS, batch=batch, adapter_rank=RANK)


def of(counts: EventCounts, device: Any = DEVICE, steps: int = 5) -> TrainingEvents:
    return training_events(counts, device, steps=steps, trained_parameters=TRAINED, frozen_weights=FROZEN)


def by_hand(steps: int = 5) -> TrainingEvents:
    tokens = BATCH * TOKENS
    pairs = BATCH * LAYERS * HEADS * sum(min(t + 1, 12) for t in range(TOKENS))
    each = tokens * LAYERS  # a value of one token in every layer
    outputs, inputs = sum(o for _, o in SHAPES), HIDDEN + HIDDEN + HIDDEN + INNER
    vector = each * (
        2 * 2 * (HEADS + STORED) * DIM  # scalers, a x + b
        + 3 * (HEADS + STORED) * DIM  # rotary
        + 2 * inputs + outputs  # rounding and scaling around the arrays
        + 4 * 2 * HIDDEN + 4 * INNER + INNER  # norms, activation, gate
        + 2 * HIDDEN + outputs  # sums of the residual stream and of the adapters
    ) + 4 * tokens * HIDDEN  # last norm  # fmt: skip
    digital = 16 * (2 * HIDDEN * VOCABULARY + TRAINED)  # words, LM head, adapter
    return TrainingEvents(
        macs=tokens * FROZEN + 5 * pairs * DIM + 2 * tokens * TRAINED + tokens * HIDDEN * VOCABULARY,
        operations=2 * vector + 2 * pairs,
        saved_bits=2 * each * (8 * inputs + 16 * 2 * (HEADS + STORED) * DIM),
        weight_bits=steps * (2 * FROZEN + digital),
        frozen_weights=FROZEN,
        optimiser_operations=14 * steps * TRAINED,
        optimiser_bits=224 * steps * TRAINED,
    )


def test_tiny_llama_by_hand() -> None:
    assert of(forward()) == by_hand()


def test_sgd_keeps_no_moments() -> None:
    found = training_events(
        forward(), DEVICE, steps=3, trained_parameters=TRAINED, frozen_weights=FROZEN, optimiser="sgd"
    )
    assert (found.optimiser_operations, found.optimiser_bits) == (2 * 3 * TRAINED, 3 * 32 * 3 * TRAINED)
    adam = training_events(forward(), DEVICE, steps=3, trained_parameters=TRAINED, frozen_weights=FROZEN)
    assert replace(adam, optimiser_operations=0, optimiser_bits=0) == replace(
        found, optimiser_operations=0, optimiser_bits=0
    )


def test_no_steps_no_optimiser() -> None:
    found = of(forward(), steps=0)
    assert (found.optimiser_operations, found.optimiser_bits, found.weight_bits) == (0, 0, 0)
    assert found.macs == by_hand().macs
    parts = {term.part: 0.0 for term in training_terms(found, forward(), DEVICE)}
    for term in training_terms(found, forward(), DEVICE):
        parts[term.part] += term.energy_j
    assert parts["optimiser"] == parts["weights of the backward pass"] == 0.0 < parts["backward pass"]


def test_no_forward_pass_no_backward_pass() -> None:
    found = training_events(EventCounts(), DEVICE, steps=2, trained_parameters=7, frozen_weights=5)
    assert asdict(found) == {
        "macs": 0, "operations": 0, "saved_bits": 0, "weight_bits": 20, "frozen_weights": 5,
        "optimiser_operations": 196, "optimiser_bits": 3136,
    }  # fmt: skip


def test_linear_in_counts_and_steps() -> None:
    once, twice = asdict(of(forward())), asdict(of(forward(batch=2 * BATCH), steps=10))
    assert once.pop("frozen_weights") == twice.pop("frozen_weights") == FROZEN
    assert twice == {name: 2 * number for name, number in once.items()}


def test_reading_signs_apart_does_not_train_twice() -> None:
    """A softmax reads scores twice; the accelerator goes back through them once."""
    softmax = {"activation.kind": "softmax", "readout_qk.bits": 6, "window.tokens": 12, "tile.slots": 8}
    device = load_device("gaincell_28nm", softmax)
    assert of(forward(device), device).macs == by_hand().macs
    assert of(forward(device), device).operations == by_hand().operations


# ---- prices


def test_terms_by_hand_and_all_on_the_accelerator() -> None:
    events, digital = by_hand(), DEVICE.digital
    terms = training_terms(events, forward(), DEVICE)
    assert {term.line for term in terms} == {ACCELERATOR}
    assert list(dict.fromkeys(term.part for term in terms)) == [
        "backward pass", "saved activations", "optimiser", "weights of the backward pass",
    ]  # fmt: skip
    assert set(BACKWARD_PARTS) == {term.part for term in terms}
    moved = (events.saved_bits + events.optimiser_bits) * 4e-12 + events.weight_bits * digital.sram_bit
    worked = events.macs * 2 * 0.76e-12 + (events.operations + events.optimiser_operations) * 2 * 0.56e-12
    assert sum(term.energy_j for term in terms) == about(moved + worked)


def test_weights_that_do_not_fit_come_from_dram() -> None:
    small = load_device("gaincell_28nm", {"digital.sram_bytes": 1000})
    (weights,) = [t for t in training_terms(by_hand(), forward(), small) if t.part == "weights of the backward pass"]
    assert weights.factors == ("digital.dram_bit",)
    assert weights.energy_j == about(by_hand().weight_bits * 4e-12)


def test_ternary_weights_have_to_fit_as_well() -> None:
    """The digital weights alone would fit."""
    digital = sum(forward().weight_bits.values()) // 8
    for spare, source in ((FROZEN // 4, "digital.sram_bit"), (FROZEN // 4 - 1, "digital.dram_bit")):
        device = load_device("gaincell_28nm", {"digital.sram_bytes": digital + spare})
        found = training_terms(by_hand(), forward(), device)
        assert [t.factors for t in found if t.part == "weights of the backward pass"] == [(source,)]


def test_another_node_scales_logic_and_memory_on_the_chip_alone() -> None:
    device = load_device("gaincell_28nm", {"digital.node": "7 nm", "digital.supply": "0.7 V"})
    before, after = (training_terms(by_hand(), forward(), d) for d in (DEVICE, device))
    factor = energy_factor(28e-9, 0.9, 7e-9, 0.7)
    for old, new in zip(before, after, strict=True):
        scale = 1.0 if old.factors == ("digital.dram_bit",) else factor
        assert new.energy_j == about(scale * old.energy_j)


def test_time_is_the_slower_of_arithmetic_and_memory() -> None:
    events = by_hand()
    moved = events.saved_bits + events.optimiser_bits
    arithmetic = events.macs / 256e9 + (events.operations + events.optimiser_operations) / 64e9
    assert training_time(events, forward(), DEVICE) == about(max(arithmetic, moved / 409.6e9))
    slow = load_device("gaincell_28nm", {"digital.dram_rate": "1e9 1/s", "digital.sram_bytes": 1000})
    assert training_time(events, forward(), slow) == about((moved + events.weight_bits) / 1e9)
    slow = load_device("gaincell_28nm", {"digital.vector_rate": "1e6 1/s"})
    assert training_time(events, forward(), slow) > 100 * training_time(events, forward(), DEVICE)


def test_network_is_a_line_of_its_own() -> None:
    terms = network_terms(load_network("5g"), uplink_bytes=1000, downlink_bytes=3000)
    assert [(t.part, t.line) for t in terms] == [("uplink", NETWORK), ("downlink", NETWORK)]
    assert [t.energy_j for t in terms] == [about(8e3 * 29.15e-9), about(24e3 * 13.52e-9)]
