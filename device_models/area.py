"""Area of the chip by part; the key behind each part names its technology."""

from __future__ import annotations

from collections.abc import Mapping

from device_models.adc import conversion_area
from device_models.schema import DeviceModel

AREA_KEYS: Mapping[str, str] = {
    "attention cells": "cost.cell_area",
    "attention readout": "cost.readout_area",
    "attention control": "cost.control_area",
    "attention converters": "cost.av_adc",
    "linear cells": "linear.cell_area",
    "linear converters": "linear.adc",
    "digital arithmetic": "digital.mac_area",
    "digital memory": "digital.sram_area",
}
"""Key of the device file that each part's area rests on, and whose note names its technology."""


def part_areas(device: DeviceModel, subtiles: int, arrays: int) -> dict[str, float]:
    """Return the area [m^2] of each part.

    ::

        cells      = sub-tiles x 2 x rows x slots x cell_area          keys and values
        readout    = sub-tiles x readout_area,  control likewise
        converters = sub-tiles x (rows x area of an output's + slots x area of a score's), of a model
        linear     = arrays x rows x columns x cell_area
        converters = arrays x columns x adc_area              of a model: times adc.correction
        arithmetic = mac_rate / 1 GHz x mac_area,  memory = 8 sram_bytes x sram_area

    Args:
        device: The device.
        subtiles: Sub-tiles of attention that are built, all layers and heads together.
        arrays: Arrays of the linear layers that are built.
    """
    cost, linear, digital, tile = device.cost, device.linear, device.digital, device.tile
    converter = linear.adc_area
    if linear.adc != "fixed":
        converter = device.adc.correction * conversion_area(linear.adc, linear.adc_bits or 1, device.adc)
    return {
        "attention cells": subtiles * 2 * tile.rows * tile.slots * cost.cell_area,
        "attention readout": subtiles * cost.readout_area,
        "attention control": subtiles * cost.control_area,
        "attention converters": subtiles * _attention_converters(device),
        "linear cells": arrays * linear.rows * linear.columns * linear.cell_area,
        "linear converters": arrays * linear.columns * converter,
        "digital arithmetic": digital.mac_rate / 1e9 * digital.mac_area,
        "digital memory": 8 * digital.sram_bytes * digital.sram_area,
    }


def _attention_converters(device: DeviceModel) -> float:
    """Return the area [m^2] of a sub-tile's modelled converters; a counter's is part of readout and control."""
    cost, tile, adc = device.cost, device.tile, device.adc
    area = tile.rows * conversion_area(cost.av_adc, device.readout.bits or 1, adc)
    if device.readout_qk.bits is not None:
        area += tile.slots * conversion_area(cost.phi_adc, device.readout_qk.bits, adc)
    return adc.correction * area
