"""Load checkpoints whose linear layers are ternary already, whatever their layout.

Packed or not, both conventions of the scale, master weights, norms inside layers, biases, tied or own LM head, shards.
Tensors are read one after another into a model without weights, so that none is in memory twice.
"""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from device_models import InputError
from fllm.model.checkpoints.conversion import frozen_weight
from fllm.model.checkpoints.files import StoredTensors
from fllm.model.checkpoints.formats import TernaryForm, inner_norms
from fllm.model.checkpoints.sixteen_bits import keep_sixteen_bits
from hwsim import BitLinear
from hwsim.functional.packing import check_packed, unpack_codes

CHECKED = 1 << 16
"""Bytes of packed weights that are checked at a time: larger pieces leave holes in the heap that add up."""
_SIXTEEN_BITS = (torch.bfloat16, torch.float16)
_DERIVED = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
"""Endings of tensors in old files that follow from the configuration."""


def empty_model(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    """Make a causal language model without weights; raises InputError for a configuration of none."""
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # a bad value fails wherever transformers or torch first use it
        raise InputError(
            f"no usable configuration of a language model ({type(error).__name__})", where=str(folder / "config.json")
        ) from None
    return model.eval()


def load_ternary(
    config: PretrainedConfig, form: TernaryForm, tensors: StoredTensors, *, large: bool
) -> PreTrainedModel:
    """Load a checkpoint with ternary layers.

    Args:
        config: The configuration of the plain model.
        form: How its ternary layers are stored.
        tensors: What is stored.
        large: Keep ternary weights packed, and embedding and LM head in 16 bits; else everything is float32.

    Returns:
        The model in evaluation mode, with frozen BitLinear layers; layers that are not ternary are left as they are.

    Raises:
        InputError: If tensors are missing or left over, or do not fit the configuration.
    """
    model = empty_model(config, tensors.folder)
    taking = _Taking(tensors, inner_norms(tensors))
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not head and _is_ternary(name, form, tensors):
            model.set_submodule(name, _ternary_layer(name, layer, form, taking, large))
    kept = keep_sixteen_bits(model) if large else {}
    tied = next((f"{name}.weight" for name, part in model.named_modules() if part is head), "")
    for name in model.state_dict():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if not _of_ternary(model, owner) and not (config.tie_word_embeddings and name == tied):
            _set(module, leaf, taking.plain(name, getattr(module, leaf).shape, keep=owner in kept))
    taking.check_all_taken(tied if config.tie_word_embeddings else "")
    model.tie_weights()
    return model


def _of_ternary(model: nn.Module, owner: str) -> bool:
    """Say whether a module is a ternary layer, or the norm inside one."""
    return any(isinstance(model.get_submodule(name), BitLinear) for name in (owner, owner.rpartition(".")[0]))


def _set(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in module._parameters:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=tensor.dtype == torch.float32))
    else:
        setattr(module, leaf, tensor)


def _is_ternary(name: str, form: TernaryForm, tensors: StoredTensors) -> bool:
    return tensors.is_packed(f"{name}.weight") or f"{name}.weight_scale" in tensors or form.covers(name)


class _Taking:
    """Takes tensors out of a checkpoint, checks their shapes, and notes which."""

    def __init__(self, tensors: StoredTensors, norms: dict[str, str]) -> None:
        self.tensors, self.norms = tensors, norms
        self._taken: set[str] = set()

    def stored(self, name: str, *shapes: tuple[int, ...], keep: bool = False) -> Tensor:
        """Return a tensor of one of some shapes as it is stored; raises InputError if there is none."""
        where, expected = self.tensors.where(name), " or ".join(f"shape {tuple(shape)}" for shape in shapes)
        if name not in self.tensors:
            raise InputError("a tensor is missing", where=where, expected=expected)
        found = self.tensors.shape(name)
        if found not in [tuple(shape) for shape in shapes]:
            raise InputError("a tensor does not fit the configuration", where=where, expected=expected, received=found)
        self._taken.add(name)
        return self.tensors.mapped(name) if keep else self.tensors.read(name)

    def plain(self, name: str, shape: tuple[int, ...], *, keep: bool = False) -> Tensor:
        """Return a tensor in float32; ``keep`` leaves one of 16 bits as it is."""
        tensor = self.stored(name, shape, keep=keep)
        return tensor if keep and tensor.dtype in _SIXTEEN_BITS else tensor.to(torch.float32, copy=True)

    def check_all_taken(self, tied: str) -> None:
        """Refuse tensors that the model has no place for; a second copy of a tied one is none."""
        for name in sorted(set(self.tensors) - self._taken - {tied}):
            if not name.endswith(_DERIVED):
                raise InputError(
                    "a tensor does not fit the configuration", where=self.tensors.where(name),
                    expected="no such tensor", received=self.tensors.shape(name),
                )  # fmt: skip


def _ternary_layer(name: str, plain: nn.Linear, form: TernaryForm, taking: _Taking, large: bool) -> BitLinear:
    """Read one ternary layer."""
    inputs, outputs = plain.in_features, plain.out_features
    packed = taking.tensors.is_packed(f"{name}.weight")
    with torch.device("meta"):
        layer = BitLinear(inputs, outputs, plain.bias is not None, offline=True)
    if packed:
        codes, scale = _packed_weight(name, plain, taking, large and outputs % 4 == 0), _scale(name, form, taking)
    elif f"{name}.weight_scale" in taking.tensors or not form.online:
        scale = _scale(name, form, taking)
        codes = _unpacked_weight(f"{name}.weight", (outputs, inputs), taking)
    else:
        codes, scale = frozen_weight(taking.stored(f"{name}.weight", (outputs, inputs)))
    layer.weight = nn.Parameter(codes if codes.dtype == torch.uint8 else codes.float(), requires_grad=False)
    layer.weight_scale = scale
    if large and outputs % 4 == 0:
        layer.pack_()
    if plain.bias is not None:
        layer.bias = nn.Parameter(taking.plain(f"{name}.bias", (outputs,)))
    if form.norms or name in taking.norms:
        layer.norm = nn.RMSNorm(inputs, eps=form.norm_eps)
        stored = taking.norms.get(name, f"{name}.rms_norm.weight")
        layer.norm.weight = nn.Parameter(taking.plain(stored, (inputs,)))
    return layer.eval()


def _packed_weight(name: str, plain: nn.Linear, taking: _Taking, keep: bool) -> Tensor:
    """Return codes, packed if they are kept so; some packers fill up outputs that are no multiple of 4."""
    stored = f"{name}.weight"
    packed = taking.stored(stored, (-(-plain.out_features // 4), plain.in_features), keep=keep)
    try:
        for part in packed.flatten().split(CHECKED):
            check_packed(part)
    except ValueError as error:
        raise InputError(str(error), where=taking.tensors.where(stored), remedy="get the file again") from None
    return packed if keep else unpack_codes(packed)[: plain.out_features]


def _unpacked_weight(stored: str, shape: tuple[int, int], taking: _Taking) -> Tensor:
    weight = taking.plain(stored, shape)
    if not bool(((weight == 0) | (weight.abs() == 1)).all()):
        raise InputError(
            "a weight beside a scale is no code", where=taking.tensors.where(stored), expected="-1, 0 or 1"
        )
    return weight


def _scale(name: str, form: TernaryForm, taking: _Taking) -> Tensor:
    """Return mean |W| in float32."""
    stored = f"{name}.weight_scale"
    scale = taking.stored(stored, (1,), ()).to(torch.float32, copy=True).reshape(())
    if not (bool(scale.isfinite()) and float(scale) > 0):
        raise InputError(
            "a scale is no positive number", where=taking.tensors.where(stored), expected="> 0", received=float(scale)
        )
    return 1.0 / scale if form.inverse else scale
