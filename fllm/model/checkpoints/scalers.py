"""Range scalers of the attention, in a file of their own, ``gain_cell.safetensors``, beside a model.

Where they were learned, the ranges of the converters of ternary layers lie in it as well. So ``model.safetensors``
holds nothing that plain transformers does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from device_models import InputError
from fllm.model.checkpoints.files import read_tensors
from hwsim import BitLinear
from hwsim.integrations.transformers import NAME as GAIN_CELL

SCALERS = "gain_cell.safetensors"
OPTIONAL = {"full_scale", "logit_gain"}
"""Scalers that only some devices have."""
RANGE = "full_scale"
"""Name of the range of a ternary layer's converters."""
LINEAR = "linear range"
"""Kind of these ranges, beside the kinds of scalers."""


def read_scalers(folder: Path) -> dict[str, Tensor]:
    """Read the range scalers of a folder, by name; none without a file, InputError if it cannot be read."""
    return read_tensors(folder / SCALERS) if (folder / SCALERS).is_file() else {}


def set_scalers(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> frozenset[str]:
    """Set the range scalers of an emulated model.

    ``full_scale`` and ``logit_gain`` are those of devices that have them: a file may do without, and what a file has
    beyond the model's device is left out.

    Args:
        model: The model, on a device.
        state: What :func:`read_scalers` returned.
        folder: Where they are from, for messages.

    Returns:
        The kinds of scalers in the file, such as ``query`` and ``full_scale``, and ``LINEAR`` where it has ranges of
        ternary layers; none without a file.

    Raises:
        InputError: If they do not fit the model.
    """
    ranges = {name: tensor for name, tensor in state.items() if f".{GAIN_CELL}." not in name}
    state = {name: tensor for name, tensor in state.items() if name not in ranges}
    found = {LINEAR} if ranges else set()
    _set_ranges(model, ranges, folder)
    if not state:
        return frozenset(found)
    own = {name: tensor for name, tensor in model.state_dict().items() if f".{GAIN_CELL}." in name}
    heads = {name.rpartition("query.gain")[0]: t.shape for name, t in own.items() if name.endswith("query.gain")}
    wanted = {name: tensor.shape for name, tensor in own.items() if _last(name) not in OPTIONAL}
    stored = {_last(name) for name in state} & OPTIONAL
    wanted |= {prefix + kind: shape for prefix, shape in heads.items() for kind in stored}
    if wanted != {name: tensor.shape for name, tensor in state.items()}:
        raise InputError(
            "range scalers do not fit the model",
            where=str(folder / SCALERS),
            expected=f"{len(wanted)} tensors of its shapes",
            received=len(state),
        )
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)
    return frozenset(found | {name.rpartition(f".{GAIN_CELL}.")[2].partition(".")[0] for name in state})


def _set_ranges(model: nn.Module, ranges: Mapping[str, Tensor], folder: Path) -> None:
    """Set the ranges of the converters of ternary layers, where the device keeps them with the model."""
    if not ranges:
        return
    named = {name.removesuffix(".base_layer"): m for name, m in model.named_modules() if isinstance(m, BitLinear)}
    if set(ranges) != {f"{name}.{RANGE}" for name in named}:
        raise InputError(
            "ranges of converters do not fit the model", where=str(folder / SCALERS),
            expected=f"{len(named)}, one for each ternary layer", received=len(ranges),
        )  # fmt: skip
    for name, layer in named.items():
        if layer.array is not None and layer.array.adc_range in ("calibrated", "learned"):
            layer.set_range(float(ranges[f"{name}.{RANGE}"]), learned=layer.array.adc_range == "learned")


def _last(name: str) -> str:
    return name.rpartition(".")[2]
