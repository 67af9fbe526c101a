"""What a part is: formulas, parameters, sources and prices of devices. NumPy only, never torch."""

from device_models.errors import InputError
from device_models.loading import load_device, preset_names
from device_models.provenance import Provenance, references
from device_models.quantities import format_quantity, parse_quantity
from device_models.schema import DeviceModel

__all__ = [
    "DeviceModel",
    "InputError",
    "Provenance",
    "format_quantity",
    "load_device",
    "parse_quantity",
    "preset_names",
    "references",
]
