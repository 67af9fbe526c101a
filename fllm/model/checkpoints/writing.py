"""Write ternary models packed, in a form that plain transformers reads.

``linear_class: autobitlinear`` with mean |W| as ``weight_scale``. Only a model with biases in its ternary layers takes
``bitlinear`` with the reciprocal, since transformers' AutoBitLinear multiplies biases by the scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from device_models import InputError
from fllm.model.checkpoints.files import INDEX, WEIGHTS
from fllm.model.checkpoints.loading import empty_model
from fllm.model.checkpoints.scalers import RANGE, SCALERS
from hwsim import BitLinear
from hwsim.functional.packing import pack_codes
from hwsim.integrations.transformers import NAME as GAIN_CELL

SHARD_BYTES = 4_000_000_000
"""Size above which weights are cut into several files."""


@dataclass(frozen=True)
class _Entry:
    """One tensor to write: its size is known before it is made."""

    name: str
    size: int
    make: Callable[[], Tensor]


def write_packed(
    model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.bfloat16, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a model whose linear layers are BitLinear as a packed checkpoint, its range scalers beside it.

    Master weights are frozen to codes first; the model computes the same. Packed weights are written as they are, and
    one shard after another, so that little memory is needed.

    Args:
        model: The model, on a device or not.
        folder: Where to write; it is made.
        dtype: Of everything that is not ternary. transformers 5.23 runs such a model in the dtype it is stored in and
            in no other: float32 is exact, bfloat16 half as large.
        shard_bytes: Size above which the weights are cut into several files.

    Raises:
        InputError: If the packed form cannot hold the model.
    """
    ternary = {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    _check(model, ternary)
    folder.mkdir(parents=True, exist_ok=True)
    inverse = any(layer.bias is not None for layer in ternary.values())
    entries, scalers = _entries(model, ternary, dtype, inverse=inverse)
    _write_shards(entries, folder, shard_bytes)
    if scalers:
        _save(scalers, folder / SCALERS)
    config = _config(model, dtype, inverse=inverse, norms=any(layer.norm is not None for layer in ternary.values()))
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")


def _check(model: PreTrainedModel, ternary: Mapping[str, BitLinear]) -> None:
    """Refuse what transformers would not read back."""
    where = type(model).__name__
    if not ternary:
        raise InputError("no ternary layer to pack", where=where, expected="a model with BitLinear layers")
    plain = empty_model(model.config, Path(where))
    for name, layer in ternary.items():
        if layer.out_features % 4:
            raise InputError(
                "packing needs a multiple of 4 outputs", where=f"{where}: {name}", expected="4, 8, 12, ...",
                received=layer.out_features,
            )  # fmt: skip
        if type(plain.get_submodule(name)) is not nn.Linear:
            raise InputError(
                "transformers has no packed form of this layer", where=f"{where}: {name}", expected="torch.nn.Linear",
                received=type(plain.get_submodule(name)).__name__,
            )  # fmt: skip
    norms = [layer.norm is not None for layer in ternary.values()]
    if any(norms) and not all(norms):
        raise InputError("some ternary layers have a norm inside", where=where, expected="all of them, or none")


def _entries(
    model: PreTrainedModel, ternary: Mapping[str, BitLinear], dtype: torch.dtype, *, inverse: bool
) -> tuple[list[_Entry], dict[str, Tensor]]:
    """Return what goes into the weights, by name, and the range scalers."""
    entries: list[_Entry] = []
    scalers: dict[str, Tensor] = {}
    for name, layer in ternary.items():
        layer.freeze_()
        entries += _of_layer(name, layer, dtype, inverse=inverse)
        if isinstance(layer.full_scale, nn.Parameter):  # a learned range; others follow from statistics
            scalers[f"{name}.{RANGE}"] = layer.full_scale.detach().float().reshape(1)
    head = model.get_output_embeddings()
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        owner = name.rpartition(".")[0]
        if f".{GAIN_CELL}." in name:
            scalers[name] = tensor.float().contiguous()
        elif owner in ternary or owner.rpartition(".")[0] in ternary or (tied and model.get_submodule(owner) is head):
            continue
        else:
            entries.append(_cast(name, tensor, dtype))
    return sorted(entries, key=lambda entry: entry.name), dict(sorted(scalers.items()))


def _of_layer(name: str, layer: BitLinear, dtype: torch.dtype, *, inverse: bool) -> Iterator[_Entry]:
    assert layer.weight_scale is not None
    scale = layer.weight_scale.detach().float().reshape(1)
    size = layer.in_features * layer.out_features // 4
    yield _Entry(f"{name}.weight", size, lambda: layer.weight if layer.packed else pack_codes(layer.weight))
    yield _cast(f"{name}.weight_scale", 1.0 / scale if inverse else scale, torch.float32)
    if layer.bias is not None:
        yield _cast(f"{name}.bias", layer.bias, dtype)
    if layer.norm is not None:
        for leaf, tensor in layer.norm.state_dict().items():
            yield _cast(f"{name}.rms_norm.{leaf}", tensor, dtype)  # transformers' name of it


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> _Entry:
    chosen = dtype if tensor.is_floating_point() else tensor.dtype
    return _Entry(name, tensor.numel() * chosen.itemsize, lambda: tensor.detach().to(chosen).contiguous())


def _write_shards(entries: list[_Entry], folder: Path, shard_bytes: int) -> None:
    """Write the weights in as many files as their size asks for, and their index; former ones go."""
    shards: list[list[_Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(other.size for other in shards[-1]) + entry.size > shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    width = len(shards)
    files = [f"model-{n:05d}-of-{width:05d}.safetensors" for n in range(1, width + 1)] if width > 1 else [WEIGHTS]
    for file, shard in zip(files, shards, strict=True):
        _save({entry.name: entry.make() for entry in shard}, folder / file)
    for former in (*folder.glob("model*.safetensors"), folder / INDEX):
        if former.name not in files:
            former.unlink(missing_ok=True)
    if width > 1:
        index = {
            "metadata": {"total_size": sum(entry.size for entry in entries)},
            "weight_map": {entry.name: file for file, shard in zip(files, shards, strict=True) for entry in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8", newline="\n")


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors beside a file and put them in its place: the model itself may be mapped from it."""
    made = file.with_name(f"{file.name}.part")
    try:
        save_file(dict(tensors), made, metadata={"format": "pt"})
        made.chmod(0o644)  # safetensors writes 0600, which a wheel would carry on
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)


def _config(model: PreTrainedModel, dtype: torch.dtype, *, inverse: bool, norms: bool) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_dict()
    config.pop("auto_map", None)
    config["_name_or_path"] = ""  # where it was loaded from is nobody's business
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if inverse else "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": None,
    } | ({"use_rms_norm": True, "rms_norm_eps": _norm_eps(model)} if norms else {})
    return config


def _norm_eps(model: PreTrainedModel) -> float:
    """Return what the norms inside the ternary layers add to the mean square."""
    layer = next(layer for layer in model.modules() if isinstance(layer, BitLinear))
    return float(getattr(layer.norm, "eps", None) or 1e-6)
