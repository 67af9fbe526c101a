"""What actions of a device's parts cost: the typed sections of energy, time and area of a device file.

Formulas that turn them into prices of events: ``device_models.costs``, ``adc``, ``timeline``, ``area``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from device_models.fields import STRICT, Area, Duration, Energy, Factor, Power, Quantity, Rate, Whole

AdcModel = Literal["counter", "fixed", "survey", "sar"]
"""``counter``: charge-to-pulse and counter, contained in the prices of array and control; ``fixed``: the number beside
it; ``survey``: regression of published converters (andrulis2024); ``sar``: capacitive SAR (zigzagimc2023)."""

ADC_PRICES: Mapping[str, str] = {
    "linear.adc": "linear.adc_conversion",
    "cost.phi_adc": "cost.phi_conversion",
    "cost.av_adc": "cost.av_conversion",
}
"""Key of each converter's model, and that of its price where the model is ``fixed``."""


@dataclass(frozen=True)
class Adc:
    """What the models of converters need to know.

    Attributes:
        node: [m] technology node.
        supply: [V] of the converters.
        rate: [1/s] conversions of one converter per second.
        correction: [1] factor on energy and area that a model gives; its range is the spread of models of a kind.
    """

    __pydantic_config__: ClassVar = STRICT
    node: Annotated[float, Quantity("m", least=5e-9, most=2e-7)]
    supply: Annotated[float, Quantity("V", above=0.0, most=5.0)]
    rate: Rate
    correction: Annotated[float, Factor(0.01, 100.0)]


@dataclass(frozen=True)
class Cost:
    """Energy per event of attention, its timeline, and its area.

    Attributes:
        qk_mac: [J] one cell of the first array read once, with its share of the charge-to-pulse converter, under the
            stimulus that the price was found with.
        av_mac: [J] the same of the second array.
        qk_activity_share: [1] share of ``qk_mac`` that follows the charge which inputs draw from the supply.
        av_activity_share: [1] the same of ``av_mac``.
        phi_adc: Model of the converter of scores; acts where ``readout_qk.bits`` digitises them, ``fixed`` always.
        phi_conversion: [J] one score converted; with ``fixed``.
        av_adc: Model of the converter of outputs.
        av_conversion: [J] one output of one sub-tile read out; with ``fixed``.
        write_conversion: [J] one value written: its DAC and the write.
        digital_control: [J] control, counters, adders and routing, per sub-tile that holds tokens, head and token.
        time_reset: [s] reset of the charge-to-pulse capacitors of one array.
        time_qk: [s] longest pulse of the first product.
        time_av: [s] longest pulse of the second product.
        time_counter: [s] counting the output pulses.
        time_add: [s] adding one more sub-tile's result.
        time_write: [s] writing one slot.
        time_refresh: [s] refreshing one slot; all sub-tiles at once, each slot after slot.
        cell_area: [m^2] one signed cell.
        readout_area: [m^2] converters, drivers and decoders of one sub-tile.
        control_area: [m^2] digital control of one sub-tile.
        subtile_leakage: [W] one sub-tile while its layer has nothing to do.
        refresh_conversion: [J] one value read, rounded to its levels and written back.
        softmax: [J] one score normalised in digital; only with ``activation.kind: softmax``.
    """

    __pydantic_config__: ClassVar = STRICT
    qk_mac: Energy
    av_mac: Energy
    write_conversion: Energy
    digital_control: Energy
    phi_adc: AdcModel
    av_adc: AdcModel
    time_reset: Duration
    time_qk: Duration
    time_av: Duration
    time_counter: Duration
    time_add: Duration
    time_write: Duration
    cell_area: Area
    readout_area: Area
    control_area: Area
    subtile_leakage: Power
    qk_activity_share: Annotated[float, Factor(0.0, 1.0)] = 0.0
    av_activity_share: Annotated[float, Factor(0.0, 1.0)] = 0.0
    phi_conversion: Energy | None = None
    av_conversion: Energy | None = None
    time_refresh: Duration = 0.0
    refresh_conversion: Energy = 0.0
    softmax: Energy = 0.0


@dataclass(frozen=True)
class Digital:
    """The digital side: accelerator, memory of its weights, wires between blocks.

    Attributes:
        node: [m] where it is built; prices are those at 28 nm and 0.9 V and scale from there.
        supply: [V] of its logic.
        mac: [J] one multiply-accumulate in half precision.
        vector_op: [J] one operation on one element.
        system_multiplier: [1] everything around the bare arithmetic; multiplies ``mac`` and ``vector_op``.
        mac_rate: [1/s] multiply-accumulates per second.
        vector_rate: [1/s] element operations per second.
        sram_bytes: Memory on the chip; digital weights that need more lie in DRAM.
        sram_bit: [J] one bit read from it.
        sram_leakage: [W] one bit kept in it.
        dram_bit: [J] one bit read from or written to DRAM.
        dram_rate: [1/s] bits per second from or to DRAM.
        wire_bit: [J/m] one bit over one metre of wire.
        hop_length: [m] way of the residual stream to one block.
        mac_area: [m^2] one lane of ``mac_rate`` at 1 GHz.
        sram_area: [m^2] one bit of SRAM.
    """

    __pydantic_config__: ClassVar = STRICT
    node: Annotated[float, Quantity("m", least=7e-9, most=65e-9)]
    supply: Annotated[float, Quantity("V", least=0.5, most=1.2)]
    mac: Energy
    vector_op: Energy
    system_multiplier: Annotated[float, Factor(1.0, 100.0)]
    mac_rate: Rate
    vector_rate: Rate
    sram_bytes: Annotated[int, Whole(0, 1 << 40)]
    sram_bit: Energy
    sram_leakage: Power
    dram_bit: Energy
    dram_rate: Rate
    wire_bit: Annotated[float, Quantity("J/m", least=0.0, most=1.0)]
    hop_length: Annotated[float, Quantity("m", least=0.0, most=1.0)]
    mac_area: Area
    sram_area: Area
