"""Small checkpoints in the layouts that are in use, written without the package's own writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.integrations.bitnet import BitLinear as TheirBitLinear
from transformers.integrations.bitnet import pack_weights

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip

ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
OFFLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
INVERSE = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
ABSENT = {"quant_method": "bitnet", "modules_to_not_convert": None}
"""As the oldest files have it: no ``linear_class``, which means the reciprocal scale."""


def bitnet(**changes: Any) -> PretrainedConfig:
    return BitNetConfig(**SIZES | {"tie_word_embeddings": True, "rope_theta": 500000.0} | changes)


def llama(**changes: Any) -> PretrainedConfig:
    return LlamaConfig(**SIZES | {"tie_word_embeddings": False} | changes)


def plain_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Return a model of random weights, none of them at its first value, that fit bfloat16."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.02 if parameter.dim() == 2 else 0.3
            parameter.copy_((parameter + spread * torch.randn(parameter.shape)).bfloat16())
    return model


def projections(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "lm_head"]


def master_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of the ``-bf16`` layout."""
    tied = model.config.tie_word_embeddings
    state = {name: t.to(torch.bfloat16) for name, t in model.state_dict().items()}
    return {name: t.clone() for name, t in state.items() if not (tied and name == "lm_head.weight")}


def packed_tensors(model: PreTrainedModel, *, inverse: bool) -> dict[str, Tensor]:
    """Return the tensors of the packed layout, with the names and dtypes of real files."""
    tensors = master_tensors(model)
    for name in projections(model):
        weight = tensors[f"{name}.weight"].float()
        scale = weight.abs().mean()
        tensors[f"{name}.weight"] = pack_weights((weight / scale).round().clamp(-1, 1))
        tensors[f"{name}.weight_scale"] = (1 / scale if inverse else scale).to(torch.bfloat16).reshape(1)
    return tensors


def write_folder(
    folder: Path, config: PretrainedConfig, tensors: Mapping[str, Tensor], quantization: Mapping[str, Any] | None,
    **changes: Any,
) -> Path:  # fmt: skip
    """Write a model folder without a tokenizer."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    content = config.to_dict() | {"dtype": "bfloat16"} | changes
    if quantization is not None:
        content["quantization_config"] = dict(quantization)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def theirs_in_float32(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Load with plain transformers, then widen by hand, which it cannot do."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **kwargs)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for layer in model.modules():
        if isinstance(layer, TheirBitLinear):
            layer.dtype = torch.float32
    return model.eval()


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())
