"""How sure a total is: the ranges of the prices, drawn together, and one by one.

Each number of a device file has one value in a draw, wherever it acts: two events with one price move together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from device_models.area import AREA_KEYS, part_areas
from device_models.costs import ACCELERATOR, ARRAYS, PARTS, Activity, PriceRange, price_range, range_around
from device_models.errors import InputError
from device_models.machines import Network
from device_models.schema import DeviceModel
from hwsim.costing import EnergyTerm, forward_terms, price
from hwsim.events import EventCounts

SAMPLES = 10_000
"""Draws: the ends of a 95 % interval of a smooth distribution are then known to about 1 % of its width."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Energy with every price at its low end, nominal, with every price high; and the central 95 % of draws [J].

    Where the nominal price lies at an end of its range, the central part of the draws is widened to hold it.
    """

    low: float
    nominal: float
    high: float
    lower_95: float
    upper_95: float


@dataclass(frozen=True)
class Swing:
    """How far one number of the device moves the total.

    Attributes:
        key: Key of the device file.
        low_j: [J] total with this number at its low end, all others nominal.
        high_j: [J] at its high end.
    """

    key: str
    low_j: float
    high_j: float

    @property
    def width_j(self) -> float:
        """Distance of both ends [J]."""
        return abs(self.high_j - self.low_j)


@dataclass(frozen=True)
class Uncertainty:
    """Intervals of the total, of each line and of each part, and the numbers that matter most, widest first."""

    total: Interval
    lines: dict[str, Interval]
    parts: dict[str, Interval]
    tornado: tuple[Swing, ...]


def uncertainty(
    counts: EventCounts,
    device: DeviceModel,
    *,
    activity: Activity | None = None,
    token_period_s: float | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Uncertainty:
    """Tell how sure the energy of forward passes is; :func:`propagate` of their terms.

    Args:
        counts: Events.
        device: The device, whose file holds the ranges.
        activity: As for ``hwsim.price``.
        token_period_s: As for ``hwsim.price``.
        samples: Draws.
        seed: Of the draws; equal seeds give equal intervals.

    Raises:
        KeyError: If an event has no price.
    """
    terms = forward_terms(counts, device, activity=activity, token_period_s=token_period_s)
    return propagate(terms, device_ranges(terms, device), samples=samples, seed=seed)


def device_ranges(terms: Sequence[EnergyTerm], device: DeviceModel) -> dict[str, PriceRange]:
    """Return the range of every number of the device that the terms rest on."""
    return {key: price_range(device, key) for key in sorted({k for term in terms for k in term.factors})}


def network_ranges(network: Network) -> dict[str, PriceRange]:
    """Return the ranges of a network's energy per bit."""
    sources = network.provenance or {}
    return {
        f"network.{name}": range_around(getattr(network, name), sources.get(f"network.{name}"), "J")
        for name in ("uplink_bit", "downlink_bit")
    }


def propagate(
    terms: Sequence[EnergyTerm], ranges: Mapping[str, PriceRange], *, samples: int = SAMPLES, seed: int = 0
) -> Uncertainty:
    """Draw numbers from their ranges, together, and sum the terms with each draw.

    A number between ``low`` and ``high`` is drawn from a triangular distribution of its logarithm with its mode at the
    nominal value (of the number itself where the range starts at 0); without a range it is exact.

    Args:
        terms: What spends energy.
        ranges: Of each number that they name.
        samples: Draws.
        seed: Of the draws; equal seeds give equal intervals.
    """
    terms = [term for term in terms if term.energy_j > 0.0]
    keys = sorted({key for term in terms for key in term.factors})
    relative = {key: _draw(ranges[key], samples, seed, key) / ranges[key].nominal for key in keys}
    ends = {end: {key: getattr(ranges[key], end) / ranges[key].nominal for key in keys} for end in ("low", "high")}

    draws = [term.energy_j * np.prod([relative[key] for key in term.factors], axis=0) for term in terms]

    def interval(places: Sequence[int]) -> Interval:
        nominal = math.fsum(terms[i].energy_j for i in places)
        low, high = (math.fsum(_scaled(terms[i], ends[end]) for i in places) for end in ("low", "high"))
        sums = np.zeros(samples)
        for i in places:
            sums += draws[i]
        lower, upper = np.quantile(sums, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(low, nominal, high, min(float(lower), nominal), max(float(upper), nominal))

    lines = sorted({t.line for t in terms}, key=lambda line: (line != ARRAYS, line != ACCELERATOR, line))
    parts = _in_order(t.part for t in terms)
    return Uncertainty(
        interval(range(len(terms))),
        {line: interval([i for i, t in enumerate(terms) if t.line == line]) for line in lines},
        {part: interval([i for i, t in enumerate(terms) if t.part == part]) for part in parts},
        _tornado(terms, ends),
    )


def _in_order(parts: Iterable[str]) -> list[str]:
    """Return the parts in the order of reports, others behind them."""
    found = dict.fromkeys(parts)
    return [part for part in PARTS if part in found] + [part for part in found if part not in PARTS]


def _scaled(term: EnergyTerm, relative: Mapping[str, float]) -> float:
    return term.energy_j * math.prod(relative[key] for key in term.factors)


def _tornado(terms: Sequence[EnergyTerm], ends: Mapping[str, Mapping[str, float]]) -> tuple[Swing, ...]:
    total = math.fsum(term.energy_j for term in terms)
    swings = []
    for key in sorted({key for term in terms for key in term.factors}):
        share = math.fsum(term.energy_j for term in terms if key in term.factors)
        low, high = (total + share * (ends[end][key] - 1.0) for end in ("low", "high"))
        if low != high:
            swings.append(Swing(key, low, high))
    return tuple(sorted(swings, key=lambda swing: (-swing.width_j, swing.key)))


def _draw(found: PriceRange, samples: int, seed: int, key: str) -> NDArray[np.float64]:
    """Draw one number; its stream follows from seed and key alone."""
    low, nominal, high = found.low, found.nominal, found.high
    if low == high:
        return np.full(samples, nominal)
    stream = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    rng = np.random.Generator(np.random.Philox(key=[seed, stream]))
    if low <= 0.0:
        return rng.triangular(low, nominal, high, samples)
    return np.exp(rng.triangular(math.log(low), math.log(nominal), math.log(high), samples))


TIME_KEYS = ("linear.cycle_time", "cost.time_refresh", "digital.mac_rate", "digital.vector_rate", "digital.dram_rate")
"""Numbers of the timeline whose files give a range; a rate at its high end makes the time short."""


def latency_range(counts: EventCounts, device: DeviceModel) -> PriceRange:
    """Return the latency [s] of the counted tokens with every time at its short end, nominal, and at its long end.

    Where a long refresh would leave no time to compute, the refresh stays nominal at the long end.
    """
    fast, slow = ({key: _end(device, key, late) for key in TIME_KEYS} for late in (False, True))
    try:
        high = price(counts, _with(device, slow)).latency_s
    except InputError:
        del slow["cost.time_refresh"]
        high = price(counts, _with(device, slow)).latency_s
    return PriceRange(price(counts, _with(device, fast)).latency_s, price(counts, device).latency_s, high)


def area_range(counts: EventCounts, device: DeviceModel) -> PriceRange:
    """Return the area [m^2] of the whole chip with every area at its low end, nominal, and at its high end."""
    keys = ["adc.correction", *(key for key in AREA_KEYS.values() if key.endswith("_area"))]
    low, high = ({key: getattr(price_range(device, key), end) for key in keys} for end in ("low", "high"))
    built = sum(counts.subtiles.values()), sum(counts.arrays.values())
    areas = (sum(part_areas(made, *built).values()) for made in (_with(device, low), device, _with(device, high)))
    return PriceRange(*areas)


def _end(device: DeviceModel, key: str, slow: bool) -> float:
    found = price_range(device, key)
    return found.high if slow != key.endswith("_rate") else found.low


def _with(device: DeviceModel, values: Mapping[str, float]) -> DeviceModel:
    """Return the device with other numbers."""
    changed: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed.setdefault(section, {})[name] = value
    return replace(device, **{section: replace(getattr(device, section), **new) for section, new in changed.items()})
