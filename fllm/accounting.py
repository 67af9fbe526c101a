"""Events of a run's rounds, kept in its record so that a resumed run sums the same, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from device_models import InputError
from fllm.energy import energy_facts, training_facts
from fllm.federation.client_app import OUTSIDE
from fllm.local_clients import exchange_of
from fllm.preparation import Prepared
from hwsim import EventCounts, emulate, gain_cell_layers, measure_activity, price

TEXTS = 8
"""Test prompts whose charge is measured."""


def layers_of(counts: EventCounts) -> dict[str, dict[str, int]]:
    """Write counts by layer and kind for the record of a round."""
    return {
        OUTSIDE if layer is None else str(layer): dict(sorted(events.items()))
        for layer, events in sorted(counts.by_layer.items(), key=lambda item: str(item[0]))
    }


def on_chip(counts: EventCounts, prepared: Prepared) -> EventCounts:
    """Return counts with the hardware of one client's chip, which all clients have alike."""
    return with_hardware(counts, prepared.built)


def with_hardware(counts: EventCounts, built: EventCounts) -> EventCounts:
    """Return counts with the hardware of others."""
    return replace(counts, subtiles=built.subtiles, arrays=built.arrays, weight_bits=built.weight_bits)


def stored_counts(rows: Sequence[Mapping[str, Any]], prepared: Prepared) -> EventCounts:
    """Return the events of finished rounds from their record alone."""
    return on_chip(counts_in(rows), prepared)


def counts_in(rows: Sequence[Mapping[str, Any]]) -> EventCounts:
    """Return the events that rows of a record hold, without hardware."""
    counts = EventCounts(tokens=sum(row["tokens"] for row in rows))
    for row in rows:
        for layer, events in sorted(row["counts_by_layer"].items()):  # sums in one order, also of a record read back
            counts.record(None if layer == OUTSIDE else int(layer), events)
    return counts


def energy_of_token(counts: EventCounts, prepared: Prepared) -> dict[str, Any]:
    """Describe what one token of some counts costs on the run's device."""
    return energy_facts(
        counts, prepared.device, token_period_s=prepared.period_s, stored_heads=stored_heads(prepared.model),
        seed=prepared.config.seed,
    )  # fmt: skip


def stored_heads(model: nn.Module) -> int:
    """Return the key/value heads of all layers of an emulated model together."""
    return sum(layer.key.gain.numel() for layer in gain_cell_layers(model))


def training_of(rows: Sequence[Mapping[str, Any]], prepared: Prepared) -> dict[str, Any]:
    """Price the training of some rounds, all clients together, in its three places."""
    config, model = prepared.config, prepared.record["model"]
    return training_facts(
        stored_counts(rows, prepared), prepared.device, prepared.network, clients=config.asked,
        steps=config.local_steps * sum(row["clients"] for row in rows),
        trained_parameters=trained_parameters(rows, prepared), frozen_weights=model["ternary_weights"],
        uplink_bytes=sum(row["uplink_bytes"] for row in rows),
        downlink_bytes=sum(row["downlink_bytes"] for row in rows),
        token_period_s=prepared.period_s, optimiser=config.optimiser, seed=config.seed,
    )  # fmt: skip


def trained_parameters(rows: Sequence[Mapping[str, Any]], prepared: Prepared) -> float:
    """Return the weights of a client's adapter; where ranks differ, the mean over all that took part."""
    exchange = exchange_of(prepared.config)
    taken = [one["client"] for row in rows for one in row.get("participants", ()) if one["reason"] is None]
    if not exchange.ranks or not taken:
        return int(prepared.record["model"]["adapter_parameters"])
    adapter = prepared.first_adapter
    return sum(tensor.numel() for client in taken for tensor in exchange.cut(adapter, client).values()) / len(taken)


def activity_of_texts(counts: EventCounts, prepared: Prepared) -> dict[str, Any]:
    """Measure what test prompts draw from the supply, and price the tokens of some counts with it."""
    device = prepared.device
    texts = [torch.tensor([p.tokens]) for p in prepared.held_out.test if len(p.tokens) <= device.window.tokens][:TEXTS]
    unknown: dict[str, Any] = {"qk": None, "av": None, "texts": 0, "energy_per_token_j": None}
    if not texts:
        return unknown | {"reason": "no test prompt fits into the window"}
    emulate(prepared.model, device, die_seed=prepared.dies[0], token_period=prepared.period_s)
    try:
        found = measure_activity(prepared.model, texts)
    except InputError as error:  # more refreshes than can be followed: no reason to lose a finished run
        return unknown | {"reason": str(error)}
    cost = price(counts, device, activity=found, token_period_s=prepared.period_s)
    return {"qk": found.qk, "av": found.av, "texts": len(texts), "energy_per_token_j": cost.energy_per_token_j}
