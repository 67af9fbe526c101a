"""Energy and time of each kind of event on a device, the part of the device it belongs to, and what lies behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from device_models.adc import conversion_energy
from device_models.loading import key_units, range_ends
from device_models.price_schema import ADC_PRICES, AdcModel
from device_models.provenance import Provenance
from device_models.scaling import energy_factor
from device_models.schema import DeviceModel
from device_models.timeline import attention_timeline, linear_time

ARRAYS, ACCELERATOR = "arrays", "digital accelerator"
"""The two places where a forward pass spends energy; reports never add them without saying so."""

PARTS: Mapping[str, str] = {
    "attention arrays": ARRAYS,
    "attention converters": ARRAYS,
    "writes": ARRAYS,
    "refresh": ARRAYS,
    "digital control": ARRAYS,
    "linear arrays": ARRAYS,
    "linear converters": ARRAYS,
    "leakage of attention arrays": ARRAYS,
    "leakage of linear arrays": ARRAYS,
    "adapter": ACCELERATOR,
    "LM head and other digital layers": ACCELERATOR,
    "norms, activations, scalers": ACCELERATOR,
    "weight memory": ACCELERATOR,
    "wires": ACCELERATOR,
    "leakage of digital memory": ACCELERATOR,
}
"""Parts of the energy breakdown in the order of reports, each with the line that it is summed in."""

HALF_PRECISION = 16
"""[bit] of a digital weight, and of a value of the residual stream."""

VECTOR_OPS: Mapping[str, int] = {
    "attention.scaler_value": 2,  # a x + b
    "attention.rotary_value": 3,  # x cos + y sin
    "linear.input_value": 2,  # largest magnitude of the token, then scaled and rounded
    "linear.output_value": 1,  # times the scale of matrix and token
    "digital.rms_norm_value": 4,  # square, sum, times 1/rms, times gain
    "digital.layer_norm_value": 7,  # sum, less mean, square, sum, times 1/sigma, times gain, plus bias
    "digital.activation_value": 4,  # one segment of a cubic
    "digital.gate_value": 1,
    "digital.residual_value": 1,
}
"""Operations on one value of each kind of event that the vector unit does, counted from its formula."""


@dataclass(frozen=True)
class EventCost:
    """What one event costs: ``scale`` times the product of the device keys ``factors``.

    Attributes:
        part: Part of the breakdown, one of ``PARTS``; None for events that only take time.
        key: Key of the device file that tells the source of the price, or of the time.
        energy_j: [J] price of one event.
        time_s: [s] time of one event on the critical path.
        factors: Device keys whose product the price is proportional to.
        scale: [1] rest of the price, in the units that are left.
        shared: Whether all layers share what is busy, as the accelerator; else each layer has its own.
    """

    part: str | None
    key: str
    energy_j: float
    time_s: float = 0.0
    factors: tuple[str, ...] = ()
    scale: float = 1.0
    shared: bool = False


@dataclass(frozen=True)
class Activity:
    """Charge that inputs draw from the supply, relative to the stimulus that the prices were found with [1].

    Attributes:
        qk: In the first array: sum of pulse width times positive cell current.
        av: The same in the second array.
    """

    qk: float = 1.0
    av: float = 1.0


def event_costs(
    device: DeviceModel, *, activity: Activity | None = None, weights_in_sram: bool = True
) -> dict[str, EventCost]:
    """Return the cost of every kind of event.

    Args:
        device: The device.
        activity: Of the attention arrays; None is that of the published stimulus. A share of the price follows it:
            ``price (1 - share + share activity)``.
        weights_in_sram: Whether the weights of the digital layers fit on the chip; else they come from DRAM.

    Source: leroux2025, Fig. 2c and p. 819-821; the linear layers by the formula of zigzagimc2023.
    """
    activity = activity or Activity()
    return _attention(device, activity) | _linear(device) | _digital(device, weights_in_sram)


def _attention(device: DeviceModel, activity: Activity) -> dict[str, EventCost]:
    cost, one = device.cost, attention_timeline(device)
    phi_bits, out_bits = device.readout_qk.bits, device.readout.bits or 1
    qk = 1.0 - cost.qk_activity_share + cost.qk_activity_share * activity.qk
    av = 1.0 - cost.av_activity_share + cost.av_activity_share * activity.av
    phi = "counter" if phi_bits is None and cost.phi_adc != "fixed" else cost.phi_adc
    return {
        "attention.qk_mac": _price(device, "attention arrays", "cost.qk_mac", scale=qk),
        "attention.av_mac": _price(device, "attention arrays", "cost.av_mac", scale=av),
        "attention.phi_conversion": _conversion(device, "attention converters", "cost.phi_adc", phi, phi_bits or 1),
        "attention.av_conversion": _conversion(device, "attention converters", "cost.av_adc", cost.av_adc, out_bits),
        "attention.write_conversion": _price(device, "writes", "cost.write_conversion"),
        "attention.refresh_conversion": _price(device, "refresh", "cost.refresh_conversion"),
        "attention.softmax": _price(device, "digital control", "cost.softmax"),
        "attention.subtile_pass": _price(device, "digital control", "cost.digital_control"),
        "attention.layer_pass": EventCost(None, "cost.time_qk", 0.0, one.latency_s),
        "attention.tile_add": EventCost(None, "cost.time_add", 0.0, cost.time_add),
        "attention.shared_array_pass": EventCost(None, "cost.time_qk", 0.0, one.interval_s),
        "static.subtile_second": _price(device, "leakage of attention arrays", "cost.subtile_leakage"),
    }


def _linear(device: DeviceModel) -> dict[str, EventCost]:
    linear, system = device.linear, "linear.system_multiplier"
    part, converter = "linear arrays", "linear converters"
    return {
        "linear.cell_mac": _price(device, part, "linear.cell_mac", system),
        "linear.adc_conversion": _conversion(device, converter, "linear.adc", linear.adc, linear.adc_bits or 1, system),
        "linear.shift_add": _price(device, part, "linear.shift_add", system),
        "linear.row_drive": _price(device, part, "linear.row_drive", system),
        "linear.layer_pass": EventCost(None, "linear.cycle_time", 0.0, linear_time(device)),
        "static.linear_cell_second": _price(device, "leakage of linear arrays", "linear.leakage"),
    }


def _digital(device: DeviceModel, weights_in_sram: bool) -> dict[str, EventCost]:
    digital, system, logic = device.digital, "digital.system_multiplier", logic_factor(device)
    memory = "digital.sram_bit" if weights_in_sram else "digital.dram_bit"
    # A weight takes as long as the slower of its way from DRAM and its multiplication, which run at the same time
    multiplied = 1.0 / (HALF_PRECISION * digital.mac_rate)
    streamed = multiplied if weights_in_sram else max(multiplied, 1.0 / digital.dram_rate)
    vector = {
        event: _price(
            device, "norms, activations, scalers", "digital.vector_op", system,
            scale=operations * logic, time_s=operations / digital.vector_rate, shared=True,
        )
        for event, operations in VECTOR_OPS.items()
    }  # fmt: skip
    return vector | {
        "digital.mac": _price(
            device, "LM head and other digital layers", "digital.mac", system, scale=logic, shared=True
        ),
        "digital.adapter_mac": _price(device, "adapter", "digital.mac", system, scale=logic, shared=True),
        "memory.weight_bit": _price(
            device, "weight memory", memory, scale=logic if weights_in_sram else 1.0, time_s=streamed, shared=True
        ),
        "wire.bit": _price(device, "wires", "digital.wire_bit", "digital.hop_length"),
        "static.sram_bit_second": _price(device, "leakage of digital memory", "digital.sram_leakage"),
    }


def logic_factor(device: DeviceModel) -> float:
    """Return the factor [1] from the prices of the digital side, at 28 nm and 0.9 V, to its own node and supply."""
    return energy_factor(28e-9, 0.9, device.digital.node, device.digital.supply)


def _price(
    device: DeviceModel, part: str, *factors: str, scale: float = 1.0, time_s: float = 0.0, shared: bool = False
) -> EventCost:
    energy = scale * math.prod(attrgetter(key)(device) for key in factors)
    return EventCost(part, factors[0], energy, time_s, factors, scale, shared)


def _conversion(device: DeviceModel, part: str, key: str, model: AdcModel, bits: int, *more: str) -> EventCost:
    """Price a conversion by its model, or by the number of the file where the model is ``fixed``."""
    if model == "fixed":
        return _price(device, part, ADC_PRICES[key], *more)
    energy = conversion_energy(model, bits, device.adc)
    if not energy:
        return EventCost(part, key, 0.0)
    made = _price(device, part, "adc.correction", *more, scale=energy)
    return EventCost(part, key, made.energy_j, 0.0, made.factors, energy)


PRICED_AT: Mapping[str, Mapping[str, int]] = {
    "cost.qk_mac": {
        "input.levels": 16, "storage.levels": 8, "readout.bits": 5, "tile.rows": 64, "tile.slots": 64,
    },
    "linear.row_drive": {"linear.rows": 256, "linear.columns": 256},
}  # fmt: skip
"""Resolution and geometry that prices belong to, by a price of their section (leroux2025, p. 817; the linear part)."""


def price_notes(device: DeviceModel) -> list[str]:
    """Say where a device leaves the resolution or geometry that its prices belong to: they do not follow.

    Only for devices that take the published prices; others state their own.
    """
    notes = []
    for price, conditions in PRICED_AT.items():
        source = device.provenance.get(price)
        if source is None or source.source not in ("leroux2025", "project") or not attrgetter(price)(device):
            continue
        for key, priced in conditions.items():
            here = attrgetter(key)(device)
            if here != priced:
                shown = "continuous" if here is None else here
                notes.append(f"prices belong to {key} {priced} and do not follow it to {shown}")
    return notes


@dataclass(frozen=True)
class PriceRange:
    """Lowest, nominal and highest value of a device key, in SI units; all equal where the file gives no range."""

    low: float
    nominal: float
    high: float


def price_range(device: DeviceModel, key: str) -> PriceRange:
    """Return the range of a number that prices events, as its device file states it.

    A number that a user sets has no range: it is taken as exact.
    """
    return range_around(float(attrgetter(key)(device)), device.provenance.get(key), key_units()[key])


def range_around(nominal: float, source: Provenance | None, unit: str | None) -> PriceRange:
    """Return the range of a number in its SI unit, widened to hold the nominal value; exact where there is none."""
    if source is None or source.range is None:
        return PriceRange(nominal, nominal, nominal)
    low, high = range_ends(source, unit)
    return PriceRange(min(low, nominal), nominal, max(high, nominal))
