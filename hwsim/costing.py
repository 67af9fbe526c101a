"""Counts x prices: energy, latency and area of what an emulated model did."""

from __future__ import annotations

from dataclasses import dataclass

from device_models import DeviceModel
from device_models.costs import PARTS, event_costs
from hwsim.counting import EVENTS, EventCounts


@dataclass(frozen=True)
class Cost:
    """Cost of counted events on a device.

    Attributes:
        energy_j: [J] by part, in the order of reports; forward passes only.
        latency_s: [s] if all tokens counted follow one another on one device.
        area_m2: [m^2] attention arrays of the models seen; linear arrays and digital parts are not contained.
        tokens: Tokens counted.
    """

    energy_j: dict[str, float]
    latency_s: float
    area_m2: float
    tokens: int

    @property
    def total_energy_j(self) -> float:
        """Sum of all parts [J]."""
        return sum(self.energy_j.values())

    @property
    def energy_per_token_j(self) -> float | None:
        """Energy per token [J], or None where no token was counted."""
        return self.total_energy_j / self.tokens if self.tokens else None

    @property
    def latency_per_token_s(self) -> float | None:
        """Latency per token [s], or None where no token was counted."""
        return self.latency_s / self.tokens if self.tokens else None


def price(counts: EventCounts, device: DeviceModel) -> Cost:
    """Price counted events.

    Args:
        counts: Events of one or more forward passes.
        device: The device that they ran on.

    Returns:
        Energy by part, latency and area.

    Raises:
        KeyError: If an event was counted that has no price: nothing is dropped silently.
    """
    costs = event_costs(device)
    energy = dict.fromkeys(PARTS, 0.0)
    latency = 0.0
    for event, count in counts.events.items():
        if event not in costs or event not in EVENTS:
            raise KeyError(f"event {event!r} has no price on {device.name}")
        cost = costs[event]
        latency += count * cost.time_s
        if cost.part is not None:
            energy[cost.part] += count * cost.energy_j
    area = sum(counts.subtiles.values()) * device.cost.subtile_area
    return Cost(energy, latency, area, counts.tokens)
