"""What clients on devices of several kinds spend: each client's own counts, at the prices of its own device.

Clients work at the same time, so a round takes as long as its slowest client. Devices differ in their prices, not in
what is uncertain about them: intervals of several devices are added end by end, as if all erred to the same side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fllm.accounting import counts_in, layers_of, trained_parameters, training_of, with_hardware
from fllm.energy import training_facts, training_times
from fllm.federation.participants import Participant
from fllm.federation.server_app import Round
from fllm.preparation import Bench, Prepared
from hwsim import EventCounts, price
from hwsim.training import training_events

Facts = dict[str, Any]


def training_cost(rows: Sequence[Mapping[str, Any]], prepared: Prepared) -> Facts:
    """Price the training of some rounds, all clients together; see :func:`fllm.accounting.training_of`.

    Where clients have devices of their own, ``devices`` holds the share of each kind, and ``time_s`` is that of the
    slowest client of each round.
    """
    if not prepared.chips.mixed:
        return training_of(rows, prepared)
    shares = []
    for device, clients in prepared.chips.kinds():
        own = [part for row in rows for part in row.get("devices", ()) if part["clients"] == clients]
        facts = training_facts(
            with_hardware(counts_in(own), prepared.chips.bench(clients[0]).built), device, prepared.network,
            clients=len(clients), steps=sum(part["steps"] for part in own),
            trained_parameters=trained_parameters(_of(clients, rows), prepared),
            frozen_weights=prepared.record["model"]["ternary_weights"],
            uplink_bytes=sum(part["uplink_bytes"] for part in own),
            downlink_bytes=sum(part["downlink_bytes"] for part in own),
            token_period_s=_period_s(prepared.chips.bench(clients[0])), optimiser=prepared.config.optimiser,
            seed=prepared.config.seed,
        )  # fmt: skip
        shares.append({"name": device.name, "clients": clients} | facts)
    return _together(shares) | {"time_s": _summed(row["slowest"]["time_s"] for row in rows if row.get("slowest"))}


def with_costs(row: Mapping[str, Any], outcome: Round, prepared: Prepared) -> Facts:
    """Return the row of a round of clients with devices of their own, each priced on its own.

    Its energy is the sum over clients, its latency that of the slowest device that took part. ``devices`` holds what
    training is priced from: events, steps and bytes of each kind of device.
    """
    one_each = [_spent(one, prepared) for one in outcome.participants]
    worked = [found for found in one_each if found["energy_j"] is not None]
    parts = _summed(found["energy_j"]["parts"] for found in worked)
    total, tokens = math.fsum(found["energy_j"]["total"] for found in worked), sum(one["tokens"] for one in worked)
    slowest = max(worked, key=lambda found: math.fsum(found["time_s"].values()))
    spent = [found | {"energy_j": (found["energy_j"] or {}).get("total")} for found in one_each]
    return dict(row) | {
        "energy_j": {"total": total, "parts": parts},
        "energy_per_token_j": total / tokens if tokens else None,
        "latency_per_token_s": max(found["latency_per_token_s"] for found in worked),
        "slowest": {"client": slowest["client"], "time_s": slowest["time_s"]},
        "participants": [
            one | {key: found[key] for key in _OF_CLIENT} for one, found in zip(row["participants"], spent, strict=True)
        ],
        "devices": [_of_device(clients, outcome, prepared) for _, clients in prepared.chips.kinds()],
    }


_OF_CLIENT = ("device", "tokens", "energy_j", "time_s")


def _spent(one: Participant, prepared: Prepared) -> Facts:
    """Price one client's round on its own device; nothing is known of one whose update was left out."""
    chips, client = prepared.chips, one.partition
    device, bench = chips.device(client), chips.bench(client)
    facts: Facts = {"client": client, "device": device.name, "tokens": 0, "energy_j": None, "time_s": None}
    if one.counts is None or one.reason is not None:
        return facts
    counts = with_hardware(one.counts, bench.built)
    cost = price(counts, device, token_period_s=_period_s(bench))
    events = training_events(
        counts, device, steps=prepared.config.local_steps,
        trained_parameters=trained_parameters([{"participants": [{"client": client, "reason": None}]}], prepared),
        frozen_weights=prepared.record["model"]["ternary_weights"], optimiser=prepared.config.optimiser,
    )  # fmt: skip
    times = training_times(
        counts, events, device, prepared.network, clients=1, uplink_bytes=one.uplink_bytes,
        downlink_bytes=one.downlink_bytes, token_period_s=_period_s(bench),
    )  # fmt: skip
    return facts | {
        "tokens": counts.tokens,
        "energy_j": {"total": cost.total_energy_j, "parts": cost.energy_j},
        "latency_per_token_s": cost.latency_per_token_s,
        "time_s": times,
    }


def _of_device(clients: Sequence[int], outcome: Round, prepared: Prepared) -> Facts:
    """Return events, steps and bytes of the clients of one kind of device."""
    mine = [one for one in outcome.participants if one.partition in clients]
    worked = [one for one in mine if one.reason is None]
    counts = EventCounts()
    for one in worked:
        counts.add(one.counts or EventCounts())
    return {
        "name": prepared.chips.device(clients[0]).name,
        "clients": list(clients),
        "steps": prepared.config.local_steps * len(worked),
        "tokens": counts.tokens,
        "counts_by_layer": layers_of(counts),
        "uplink_bytes": sum(one.uplink_bytes for one in mine),
        "downlink_bytes": sum(one.downlink_bytes for one in mine),
    }


def _of(clients: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> list[Facts]:
    """Return what rows say of some clients."""
    return [{"participants": [one for one in row["participants"] if one["client"] in clients]} for row in rows]


def _together(shares: Sequence[Facts]) -> Facts:
    """Add up the training of several kinds of devices."""
    first = shares[0]
    places = list(dict.fromkeys(place for share in shares for place in share["lines_j"]))
    return {
        "tokens": sum(share["tokens"] for share in shares),
        "steps": sum(share["steps"] for share in shares),
        "network": first["network"],
        "network_title": first["network_title"],
        "lines_j": _nested(share["lines_j"] for share in shares),
        "parts_j": {place: _nested(share["parts_j"].get(place, {}) for share in shares) for place in places},
        "devices": [
            {key: share[key] for key in ("name", "clients", "tokens", "steps", "lines_j", "time_s")} for share in shares
        ],
    }


def _nested(found: Iterable[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Add up intervals of equal names, end by end."""
    each = list(found)
    names = list(dict.fromkeys(name for one in each for name in one))
    return {name: _summed(one[name] for one in each if one.get(name)) for name in names}


def _summed(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add up numbers of equal names."""
    each = list(found)
    names = list(dict.fromkeys(name for one in each for name in one))
    return {name: math.fsum(one[name] for one in each if name in one) for name in names}


def _period_s(bench: Bench) -> float | None:
    return bench.loaded.placing.token_period_s
