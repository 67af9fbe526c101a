"""Counts x prices: energy, latency and area of what an emulated model did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from device_models.area import part_areas
from device_models.costs import PARTS, Activity, EventCost, event_costs
from device_models.schema import DeviceModel
from device_models.timeline import with_refresh
from hwsim.events import EVENTS, EventCounts


@dataclass(frozen=True)
class EnergyTerm:
    """Energy of one kind of event: what it belongs to, and the numbers that it is proportional to.

    Attributes:
        part: Part of the breakdown.
        line: Where it is spent: arrays, digital accelerator or network.
        energy_j: [J] at nominal prices.
        factors: Keys of the numbers whose product the price is.
    """

    part: str
    line: str
    energy_j: float
    factors: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Cost of counted events on a device.

    Attributes:
        energy_j: [J] by part, in the order of reports; forward passes only.
        latency_s: [s] if all tokens counted follow one another on one device, each waiting for the one before.
        area_m2: [m^2] attention arrays with readout and control.
        tokens: Tokens counted.
        interval_s: [s] between two tokens that are known beforehand (prefill): the busiest resource decides.
        area_parts_m2: [m^2] of the whole chip by part.
    """

    energy_j: dict[str, float]
    latency_s: float
    area_m2: float
    tokens: int
    interval_s: float = 0.0
    area_parts_m2: dict[str, float] = field(default_factory=dict)

    @property
    def total_energy_j(self) -> float:
        """Sum of all parts [J]."""
        return sum(self.energy_j.values())

    @property
    def lines_j(self) -> dict[str, float]:
        """Energy [J] of the arrays and of the digital accelerator."""
        lines: dict[str, float] = {}
        for part, energy in self.energy_j.items():
            lines[PARTS[part]] = lines.get(PARTS[part], 0.0) + energy
        return lines

    @property
    def energy_per_token_j(self) -> float | None:
        """Energy per token [J], or None where no token was counted."""
        return self.total_energy_j / self.tokens if self.tokens else None

    @property
    def latency_per_token_s(self) -> float | None:
        """Latency per token [s], or None where no token was counted."""
        return self.latency_s / self.tokens if self.tokens else None

    @property
    def prefill_latency_s(self) -> float | None:
        """Latency [s] of all tokens counted as one known text, layers working on different tokens at a time."""
        one = self.latency_per_token_s
        return None if one is None else one + (self.tokens - 1) * self.interval_s


def price(
    counts: EventCounts, device: DeviceModel, *, activity: Activity | None = None, token_period_s: float | None = None
) -> Cost:
    """Price counted events.

    Args:
        counts: Events of one or more forward passes.
        device: The device that they ran on.
        activity: Of the attention arrays; None is that of the stimulus behind the published prices.
        token_period_s: [s] between two tokens, for what leaks; None is the latency of a token.

    Returns:
        Energy by part, latency and area.

    Raises:
        KeyError: If an event was counted that has no price: nothing is dropped silently.
        InputError: If refreshing takes all the time that there is.
    """
    costs = event_costs(device, activity=activity, weights_in_sram=in_sram(counts, device))
    energy = dict.fromkeys(PARTS, 0.0)
    for term in _terms(amounts(counts, device, costs, token_period_s), costs):
        energy[term.part] += term.energy_j
    areas = part_areas(device, sum(counts.subtiles.values()), sum(counts.arrays.values()))
    attention = sum(area for part, area in areas.items() if part.startswith("attention"))
    latency = _latency(counts.events, device, costs)
    return Cost(energy, latency, attention, counts.tokens, _interval(counts, device, costs), areas)


def forward_terms(
    counts: EventCounts, device: DeviceModel, *, activity: Activity | None = None, token_period_s: float | None = None
) -> list[EnergyTerm]:
    """Return what the forward passes behind counts spend, event by event; arguments as for :func:`price`."""
    costs = event_costs(device, activity=activity, weights_in_sram=in_sram(counts, device))
    return _terms(amounts(counts, device, costs, token_period_s), costs)


def _terms(happened: Mapping[str, float], costs: Mapping[str, EventCost]) -> list[EnergyTerm]:
    return [
        EnergyTerm(cost.part, PARTS[cost.part], amount * cost.energy_j, cost.factors)
        for event, amount in happened.items()
        if (cost := costs[event]).part is not None
    ]


def in_sram(counts: EventCounts, device: DeviceModel) -> bool:
    """Say whether all digital weights fit into the memory on the chip."""
    return sum(counts.weight_bits.values()) <= 8 * device.digital.sram_bytes


def amounts(
    counts: EventCounts, device: DeviceModel, costs: Mapping[str, EventCost], token_period_s: float | None = None
) -> dict[str, float]:
    """Return how often each event happened, and for how long hardware was there to leak.

    A sub-tile leaks while its layer has nothing to do (its price of a pass holds the leakage of that time); arrays of
    the linear layers and the memory leak all the time: ``tokens x period``.

    Raises:
        KeyError: If an event has no price.
        ValueError: If the token period is negative.
    """
    if token_period_s is not None and token_period_s < 0:
        raise ValueError(f"the token period is no time: {token_period_s} s")
    happened: dict[str, float] = {}
    for event, number in counts.events.items():
        if event not in costs or event not in EVENTS:
            raise KeyError(f"event {event!r} has no price on {device.name}")
        happened[event] = float(number)
    busy = {layer: _attention_time(events, device, costs) for layer, events in counts.by_layer.items()}
    latency = _latency(counts.events, device, costs)
    total = latency if token_period_s is None else counts.tokens * token_period_s
    idle = sum(n * max(0.0, total - busy.get(layer, 0.0)) for layer, n in counts.subtiles.items())
    cells = sum(counts.arrays.values()) * device.linear.rows * device.linear.columns
    kept = min(sum(counts.weight_bits.values()), 8 * device.digital.sram_bytes)
    static = {
        "static.subtile_second": idle,
        "static.linear_cell_second": cells * total,
        "static.sram_bit_second": kept * total,
    }
    return happened | {event: amount for event, amount in static.items() if amount}


def _attention_time(events: Mapping[str, int], device: DeviceModel, costs: Mapping[str, EventCost]) -> float:
    """Return the time [s] that tokens spend on attention arrays, waiting for refreshes included."""
    return with_refresh(device, sum(n * costs[event].time_s for event, n in events.items() if event in _ON_ARRAYS))


def _latency(events: Mapping[str, int], device: DeviceModel, costs: Mapping[str, EventCost]) -> float:
    """Return the time [s] of all events, one after another."""
    others = sum(n * costs[event].time_s for event, n in events.items() if event not in _ON_ARRAYS)
    return others + _attention_time(events, device, costs)


_ON_ARRAYS = ("attention.layer_pass", "attention.tile_add", "attention.shared_array_pass")
"""Events that take time on attention arrays, which refresh."""


def _interval(counts: EventCounts, device: DeviceModel, costs: Mapping[str, EventCost]) -> float:
    """Return the time [s] between two tokens of a known text: that of the busiest resource.

    Each attention layer has its arrays, each group of linear layers has its own, all layers share the accelerator.
    """
    if not counts.tokens:
        return 0.0
    step = costs["attention.shared_array_pass"].time_s
    busiest = 0.0
    for events in counts.by_layer.values():
        if passes := events["attention.layer_pass"]:
            queries = 1.0 + events["attention.shared_array_pass"] / passes
            busiest = max(busiest, with_refresh(device, queries * step))
        if events["linear.layer_pass"]:
            busiest = max(busiest, costs["linear.layer_pass"].time_s)
    shared = sum(n * costs[event].time_s for event, n in counts.events.items() if costs[event].shared)
    return max(busiest, shared / counts.tokens)
