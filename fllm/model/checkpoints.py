"""Packed ternary checkpoints in Hugging Face layout, written and read.

Four ternary codes share a byte; byte r of a column holds rows r, r + R, r + 2R, r + 3R with R = rows / 4, code + 1 in
bits 0-1, 2-3, 4-5, 6-7: the layout of transformers' BitNet integration (``linear_class: autobitlinear``,
``weight_scale`` = mean |W|). Range scalers of the attention lie in a file of their own, ``gain_cell.safetensors``, so
that ``model.safetensors`` holds nothing that plain transformers does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BitNetConfig, BitNetForCausalLM, PreTrainedModel

from device_models import InputError
from hwsim import BitLinear
from hwsim.integrations.transformers import NAME as GAIN_CELL

WEIGHTS = "model.safetensors"
SCALERS = "gain_cell.safetensors"
OPTIONAL = {"full_scale", "logit_gain"}
"""Scalers that only some devices have."""


def pack_codes(codes: Tensor) -> Tensor:
    """Pack codes -1, 0, 1 of shape (rows, columns) into uint8 of shape (rows / 4, columns).

    Raises:
        ValueError: If the rows are no multiple of four or a value is no code.
    """
    rows = codes.shape[0]
    if rows % 4:
        raise ValueError(f"packing needs a multiple of 4 rows, got {rows}")
    if not bool(((codes == -1) | (codes == 0) | (codes == 1)).all()):
        raise ValueError("packing needs the codes -1, 0, 1")
    parts = (codes + 1).to(torch.uint8).view(4, rows // 4, -1)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def unpack_codes(packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo :func:`pack_codes`.

    Raises:
        ValueError: If a code is 3, which stands for no weight.
    """
    if any(bool(((packed >> shift) & 3 == 3).any()) for shift in (0, 2, 4, 6)):
        raise ValueError("packed weights hold the code 3, which is no ternary weight")
    return torch.cat([(packed >> shift) & 3 for shift in (0, 2, 4, 6)]).to(dtype) - 1


def is_packed(folder: Path) -> bool:
    """Say whether a model folder holds a packed BitNet checkpoint."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == "bitnet"


def write_packed(model: PreTrainedModel, folder: Path) -> None:
    """Write a model whose linear layers are BitLinear as a packed checkpoint.

    Embeddings and norms are stored in bfloat16. Master weights are frozen to codes first; the model computes the same.
    """
    if not model.config.tie_word_embeddings:
        raise ValueError("write_packed stores no LM head of its own: the model must tie it to the embeddings")
    folder.mkdir(parents=True, exist_ok=True)
    ternary = {name for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    tensors: dict[str, Tensor] = {}
    scalers: dict[str, Tensor] = {}
    for name in sorted(ternary):
        layer = model.get_submodule(name)
        assert isinstance(layer, BitLinear)
        layer.freeze_()
        assert layer.weight_scale is not None
        tensors[f"{name}.weight"] = pack_codes(layer.weight)
        tensors[f"{name}.weight_scale"] = layer.weight_scale.float().reshape(1)
    for name, tensor in model.state_dict().items():
        owner = name.rpartition(".")[0]
        if f".{GAIN_CELL}." in name:
            scalers[name] = tensor.float().contiguous()
        elif owner not in ternary and name != "lm_head.weight":
            tensors[name] = tensor.to(torch.bfloat16).contiguous()
    for name, content in ((WEIGHTS, tensors), (SCALERS, scalers)):
        save_file(dict(sorted(content.items())), folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # safetensors writes 0600, which a wheel would carry on
    config = model.config.to_dict()
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": None,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")


def load_packed(folder: Path) -> BitNetForCausalLM:
    """Load a packed checkpoint with offline BitLinear layers, everything in float32.

    Range scalers are left to the caller, as they only exist on a device (:func:`set_scalers`).

    Raises:
        InputError: If weights are missing, unreadable, or do not fit the configuration.
    """
    tensors = _read_tensors(folder / WEIGHTS)
    try:
        config = BitNetConfig.from_pretrained(folder)
        linear_class = config.quantization_config.get("linear_class")
        del config.quantization_config
        model = BitNetForCausalLM(config)
    except Exception as error:  # a bad value fails wherever transformers or torch first use it
        raise InputError(
            f"no usable BitNet configuration ({type(error).__name__})", where=str(folder / "config.json")
        ) from None
    if linear_class != "autobitlinear":  # the other class of transformers stores the reciprocal scale
        raise InputError(
            "unknown convention of weight_scale", where=f"{folder / 'config.json'}: quantization_config.linear_class",
            expected="autobitlinear", received=linear_class,
        )  # fmt: skip
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            bit = BitLinear(layer.in_features, layer.out_features, layer.bias is not None, offline=True)
            model.set_submodule(name, bit)
    state = {name: _decoded(name, tensor, folder) for name, tensor in tensors.items()}
    _load_exactly(model, state, folder / WEIGHTS, may_miss={"lm_head.weight"} if config.tie_word_embeddings else set())
    model.tie_weights()
    return model.eval()


def _decoded(name: str, tensor: Tensor, folder: Path) -> Tensor:
    """Return one stored tensor in float32, codes unpacked."""
    if tensor.dtype != torch.uint8:
        return tensor.float().squeeze() if name.endswith("weight_scale") else tensor.float()
    try:
        return unpack_codes(tensor)
    except ValueError as error:
        raise InputError(str(error), where=f"{folder / WEIGHTS}: {name}", remedy="get the file again") from None


def read_scalers(folder: Path) -> dict[str, Tensor]:
    """Read the range scalers of a folder, by name; none without a file, InputError if it cannot be read."""
    return _read_tensors(folder / SCALERS) if (folder / SCALERS).is_file() else {}


def set_scalers(model: torch.nn.Module, state: Mapping[str, Tensor], folder: Path) -> frozenset[str]:
    """Set the range scalers of an emulated model.

    ``full_scale`` and ``logit_gain`` are those of devices that have them: a file may do without, and what a file has
    beyond the model's device is left out.

    Args:
        model: The model, on a device.
        state: What :func:`read_scalers` returned.
        folder: Where they are from, for messages.

    Returns:
        The kinds of scalers in the file, such as ``query`` and ``full_scale``; none without a file.

    Raises:
        InputError: If they do not fit the model.
    """
    if not state:
        return frozenset()
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
    return frozenset(name.rpartition(f".{GAIN_CELL}.")[2].partition(".")[0] for name in state)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError("no weights", where=str(path), expected="a safetensors file", remedy="check --model") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weights cannot be read ({type(error).__name__})", where=str(path), expected="a safetensors file"
        ) from None


def _load_exactly(model: torch.nn.Module, state: dict[str, Tensor], path: Path, *, may_miss: set[str]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(set(wanted) - set(state) - may_miss):
        raise InputError("a tensor is missing", where=f"{path}: {name}", expected=f"shape {wanted[name]}")
    for name, tensor in state.items():
        if wanted.get(name) != tuple(tensor.shape):
            raise InputError(
                "a tensor does not fit the configuration", where=f"{path}: {name}",
                expected=f"shape {wanted[name]}" if name in wanted else "no such tensor", received=tuple(tensor.shape),
            )  # fmt: skip
    model.load_state_dict(state, strict=False)
