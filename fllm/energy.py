"""Energy, latency and area of a workload as plain data, for ``result.json``, ``fllm cost`` and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from device_models import Provenance, references
from device_models.area import AREA_KEYS
from device_models.costs import ARRAYS, PARTS, Activity, EventCost, PriceRange, event_costs, price_notes
from device_models.machines import Network, load_baselines
from device_models.provenance import KINDS
from device_models.schema import DeviceModel
from device_models.timeline import attention_timeline
from hwsim.baselines import DIGITAL_CIM, LEAKAGE, baselines, digital_cim, in_scope
from hwsim.costing import Cost, EnergyTerm, amounts, forward_terms, in_sram, price
from hwsim.events import EventCounts
from hwsim.training import TrainingEvents, network_terms, training_events, training_terms, training_time
from hwsim.uncertainty import (
    Interval,
    Uncertainty,
    area_range,
    device_ranges,
    latency_range,
    network_ranges,
    propagate,
    uncertainty,
)

DOMINATES = 0.5
"""Share of a line's energy from which on a part is said to dominate."""
WORST = 10
"""Numbers that a tornado shows."""

_REMEDIES = {
    "refresh": "a longer retention time, a shorter token period or a smaller window takes it away",
    "weight memory": "LM head, embeddings and adapter are read for every token",
    "leakage of attention arrays": "arrays wait for most of the token period",
    "leakage of linear arrays": "arrays keep their weights for the whole token period",
    "leakage of digital memory": "memory waits for most of the token period",
    "digital control": "the arrays themselves are the smaller part of the published head",
    "linear arrays": "attention is the smaller part",
    "linear converters": "attention is the smaller part",
}


_SINGULAR = ("refresh", "digital control", "adapter", "weight memory")


def energy_facts(
    counts: EventCounts, device: DeviceModel, *, token_period_s: float | None, stored_heads: int,
    activity: Activity | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Describe what one token costs on a device: by part, with intervals, beside baselines.

    Args:
        counts: Events of forward passes.
        device: The device.
        token_period_s: [s] between two tokens, for what leaks; None is the latency of a token.
        stored_heads: Key/value heads of all layers together, for the area of one.
        activity: Of the attention arrays; None is that of the stimulus behind the published prices.
        seed: Of the draws behind the intervals.

    Returns:
        Plain values; keys carry their unit.
    """
    tokens = counts.tokens
    cost = price(counts, device, activity=activity, token_period_s=token_period_s)
    sure = uncertainty(counts, device, activity=activity, token_period_s=token_period_s, seed=seed)
    return {
        "tokens": tokens,
        "energy_per_token_j": _shared(sure.total, tokens),
        "parts_j": {part: _shared(sure.parts[part], tokens) for part in sure.parts},
        "lines_j": {line: _shared(found, tokens) for line, found in sure.lines.items()},
        "tornado": _tornado(sure, device, tokens),
        "dominates": dominating(cost),
        "price_notes": price_notes(device),
        "baselines": baseline_rows(counts, device, cost),
        "latency_per_token_s": _shared(latency_range(counts, device), tokens),
        "interval_per_token_s": cost.interval_s,
        "area_m2": {
            "parts": cost.area_parts_m2,
            "total": _shared(area_range(counts, device), 1),
            "attention_head": cost.area_m2 / stored_heads,
        },
        "area_technology": _technologies(device),
        "timeline": [asdict(phase) for phase in attention_timeline(device, device.subtiles).phases],
        "digital_weights_in": "SRAM" if in_sram(counts, device) else "DRAM",
    }


def price_rows(counts: EventCounts, device: DeviceModel, token_period_s: float | None = None) -> list[dict[str, Any]]:
    """List the price, source and energy of each kind of event that happened, for a table."""
    costs = event_costs(device, weights_in_sram=in_sram(counts, device))
    rows = []
    for event, amount in amounts(counts, device, costs, token_period_s).items():
        cost = costs[event]
        behind = [device.provenance[key] for key in _keys(cost) if key in device.provenance]
        if cost.part is None or not cost.energy_j or not behind or not counts.tokens:
            continue  # what is contained in another price has no place in the table
        rows.append(
            {
                "event": event,
                "part": cost.part,
                "count_per_token": amount / counts.tokens,
                "price_j": cost.energy_j,
                "kind": min((found.kind for found in behind), key=KINDS.index),
                "source": ", ".join(dict.fromkeys(found.source for found in behind)),
                "energy_per_token_j": amount * cost.energy_j / counts.tokens,
            }
        )
    return rows


def _keys(cost: EventCost) -> list[str]:
    """Return the numbers that a price rests on; the correction of a converter model is 1 unless somebody sets it."""
    return [key for key in dict.fromkeys((cost.key, *cost.factors)) if key != "adc.correction"]


def provenance_rows(provenance: Mapping[str, Provenance]) -> list[dict[str, Any]]:
    """List numbers with their sources."""
    return [
        {
            "key": key,
            "value": found.text,
            "kind": found.kind,
            "source": found.source,
            "where": found.where,
            "note": found.note,
            "range": list(found.range) if found.range else None,
        }
        for key, found in provenance.items()
    ]


def cost_sources(device: DeviceModel, network: Network | None = None) -> dict[str, str]:
    """Return the citations behind a device, its baselines and a network."""
    others = [load_baselines().provenance or {}, digital_cim().provenance]
    others += [network.provenance or {}] if network else []
    used = {found.source for provenance in (device.provenance, *others) for found in provenance.values()}
    known = references()
    return {key: known[key] for key in sorted(used) if key in known}


def dominating(cost: Cost) -> list[str]:
    """Say of arrays and accelerator which part takes more than half of their energy, and what would change it."""
    sentences = []
    for line, total in cost.lines_j.items():
        own = {part: energy for part, energy in cost.energy_j.items() if PARTS[part] == line}
        part = max(own, key=lambda name: own[name])
        if total and own[part] > DOMINATES * total:
            verb = "dominates" if part in _SINGULAR or part.startswith("leakage") else "dominate"
            whose = "their" if line == ARRAYS else "its"
            remedy = f"; {_REMEDIES[part]}" if part in _REMEDIES else ""
            sentences.append(
                f"{part[0].upper()}{part[1:]} {verb} the {line}: {100 * own[part] / total:.0f} % of {whose} energy per "
                f"token{remedy}"
            )
    return sentences


def baseline_rows(counts: EventCounts, device: DeviceModel, cost: Cost) -> list[dict[str, Any]]:
    """Put each baseline beside the device's energy in the same scope, per token."""
    rows = []
    for found in baselines(counts, device):
        own = in_scope(cost.energy_j, found.scope)
        leaks = cost.energy_j[LEAKAGE[found.scope]] if found.scope in LEAKAGE else 0.0
        rows.append(
            {
                "name": found.name,
                "scope": found.scope,
                "energy_per_token_j": found.energy_j / counts.tokens,
                "device_energy_per_token_j": own / counts.tokens,
                "device_leakage_per_token_j": leaks / counts.tokens,
                "ratio": found.energy_j / own if own else None,
                "latency_per_token_s": found.latency_s,
                "kind": found.kind,
                "sources": list(found.sources),
                "citations": list(dict.fromkeys(map(_citation, found.sources))),
                "design": found.design,
                "caveat": found.caveat,
            }
        )
    return rows


def _citation(key: str) -> str:
    """Return the source behind a number of a baseline, or behind a device that stands for one."""
    provenance = load_baselines().provenance or {}
    if key in provenance:
        return provenance[key].source
    return digital_cim().provenance["cost.qk_mac"].source if key == DIGITAL_CIM else key


def training_facts(
    counts: EventCounts, device: DeviceModel, network: Network, *, clients: int, steps: int, trained_parameters: float,
    frozen_weights: int, uplink_bytes: int, downlink_bytes: int, token_period_s: float | None, optimiser: str = "adamw",
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Describe what training cost so far in its three places, which are not one system: arrays, accelerator, network.

    Args:
        counts: Events of the forward passes of training, all clients and rounds.
        device: The device of every client.
        network: Link of every client.
        clients: Clients, which work at the same time.
        steps: Optimiser steps, all clients and rounds.
        trained_parameters: Weights of a client's adapter, a mean where clients differ.
        frozen_weights: Ternary weights of the model.
        uplink_bytes: Sent by all clients.
        downlink_bytes: Received by all clients.
        token_period_s: As for :func:`energy_facts`.
        optimiser: Of the clients.
        seed: Of the draws behind the intervals.
    """
    events = training_events(
        counts, device, steps=steps, trained_parameters=trained_parameters, frozen_weights=frozen_weights,
        optimiser=optimiser,
    )  # fmt: skip
    on_chip = forward_terms(counts, device, token_period_s=token_period_s) + training_terms(events, counts, device)
    sent = network_terms(network, uplink_bytes=uplink_bytes, downlink_bytes=downlink_bytes)
    terms: list[EnergyTerm] = on_chip + sent
    sure = propagate(terms, device_ranges(on_chip, device) | network_ranges(network), seed=seed)
    line_of = {term.part: term.line for term in terms}
    parts: dict[str, dict[str, Any]] = {line: {} for line in sure.lines}
    for part, found in sure.parts.items():
        parts[line_of[part]][part] = _shared(found, 1)
    return {
        "tokens": counts.tokens,
        "steps": steps,
        "network": network.name,
        "network_title": network.title,
        "lines_j": {line: _shared(found, 1) for line, found in sure.lines.items()},
        "parts_j": parts,
        "time_s": training_times(
            counts, events, device, network, clients=clients, uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes, token_period_s=token_period_s,
        ),
    }  # fmt: skip


def training_times(
    counts: EventCounts, events: TrainingEvents, device: DeviceModel, network: Network, *, clients: int,
    uplink_bytes: int, downlink_bytes: int, token_period_s: float | None,
) -> dict[str, float]:  # fmt: skip
    """Return the time [s] of one of so many like clients in each place, one after another; as :func:`training_facts`.

    Args:
        counts: Events of the forward passes of all of them.
        events: What they do beside.
        device: The device of each.
        network: Its link.
        clients: How many they are.
        uplink_bytes: Sent by all of them.
        downlink_bytes: Received by all of them.
        token_period_s: As for :func:`energy_facts`.
    """
    pace = token_period_s
    if pace is None:
        pace = price(counts, device).latency_per_token_s or 0.0
    return {
        "forward": counts.tokens / clients * pace,
        "backward pass and optimiser": training_time(events, counts, device) / clients,
        "network": 8 * (uplink_bytes / network.uplink_rate + downlink_bytes / network.downlink_rate) / clients,
    }


def _technologies(device: DeviceModel) -> dict[str, str]:
    """Say of each part's area which technology its number is from."""
    found = {}
    for part, key in AREA_KEYS.items():
        if key.endswith("adc"):
            model = attrgetter(key)(device)
            made = {"fixed": "no converter of its own", "counter": "contained in readout and control"}
            where = f"technology: {device.adc.node * 1e9:g} nm CMOS, converter model {model}"
            found[part] = made.get(model, where)
        elif key in device.provenance:
            found[part] = device.provenance[key].note or ""
    return found


def _shared(found: Interval | PriceRange, tokens: int) -> dict[str, float]:
    """Return the ends of an interval by name, each shared among tokens."""
    return {name: value / tokens for name, value in asdict(found).items()} if tokens else {}


def _tornado(sure: Uncertainty, device: DeviceModel, tokens: int) -> list[dict[str, Any]]:
    rows = []
    for swing in sure.tornado[:WORST]:
        source = device.provenance[swing.key]
        low, high = source.range or (source.text, source.text)
        rows.append(
            {
                "key": swing.key,
                "low_j": swing.low_j / tokens,
                "high_j": swing.high_j / tokens,
                "low": low,
                "value": source.text,
                "high": high,
                "kind": source.kind,
            }
        )
    return rows
