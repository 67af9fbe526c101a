"""Energy and time of each kind of event on a device, and the part of the device it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from device_models.schema import DeviceModel

PARTS = ("attention arrays", "converters", "writes", "digital control", "linear layers", "digital (adapter, LM head)")
"""Parts of the energy breakdown, in the order of reports."""


@dataclass(frozen=True)
class EventCost:
    """What one event costs.

    Attributes:
        part: Part of the breakdown, one of ``PARTS``; None for events that only take time.
        energy_j: [J] price of one event.
        time_s: [s] time of one event on the critical path.
        key: Key of the device file that holds the price, for its source.
    """

    part: str | None
    energy_j: float
    time_s: float
    key: str


def event_costs(device: DeviceModel) -> dict[str, EventCost]:
    """Return the cost of every kind of event.

    Latency of one token through one attention layer with T sub-tiles along the tokens:
    ``reset + qk + av + counter + (T - 1) add``; queries that share a key/value array follow one initiation interval
    ``reset + qk + av`` apart. Layers run one after another, heads and sub-tiles in parallel.

    Source: leroux2025, Fig. 2c and p. 821; the linear layers by the formula of zigzagimc2023.
    """
    cost, linear = device.cost, device.linear
    interval = cost.time_reset + cost.time_qk + cost.time_av
    system = linear.system_multiplier
    return {
        "attention.qk_mac": EventCost("attention arrays", cost.qk_mac, 0.0, "cost.qk_mac"),
        "attention.av_mac": EventCost("attention arrays", cost.av_mac, 0.0, "cost.av_mac"),
        "attention.phi_conversion": EventCost("converters", cost.phi_conversion, 0.0, "cost.phi_conversion"),
        "attention.av_conversion": EventCost("converters", cost.av_conversion, 0.0, "cost.av_conversion"),
        "attention.write_conversion": EventCost("writes", cost.write_conversion, 0.0, "cost.write_conversion"),
        "attention.refresh_conversion": EventCost("writes", cost.refresh_conversion, 0.0, "cost.refresh_conversion"),
        "attention.softmax": EventCost("digital control", cost.softmax, 0.0, "cost.softmax"),
        "attention.subtile_pass": EventCost("digital control", cost.digital_control, 0.0, "cost.digital_control"),
        "attention.layer_pass": EventCost(None, 0.0, interval + cost.time_counter, "cost.time_qk"),
        "attention.tile_add": EventCost(None, 0.0, cost.time_add, "cost.time_add"),
        "attention.shared_array_pass": EventCost(None, 0.0, interval, "cost.time_qk"),
        "linear.cell_mac": EventCost("linear layers", system * linear.cell_mac, 0.0, "linear.cell_mac"),
        "linear.adc_conversion": EventCost("converters", system * linear.adc_conversion, 0.0, "linear.adc_conversion"),
        "linear.shift_add": EventCost("linear layers", system * linear.shift_add, 0.0, "linear.shift_add"),
        "linear.row_drive": EventCost("linear layers", system * linear.row_drive, 0.0, "linear.row_drive"),
        "linear.layer_pass": EventCost(None, 0.0, linear.mvm_time, "linear.mvm_time"),
        "digital.mac": EventCost(
            "digital (adapter, LM head)", cost.digital_mac, 1 / cost.digital_mac_rate, "cost.digital_mac"
        ),
    }
