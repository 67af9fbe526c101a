"""What the configuration of a model folder says about its ternary layers.

Two conventions of ``weight_scale`` are in use: ``linear_class: autobitlinear`` stores mean |W|, ``bitlinear``, which an
absent key means too, the reciprocal. Nothing in the tensors tells one from the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from device_models import InputError

_KEY = "quantization_config"
_NORMS = (".rms_norm.weight", ".norm.weight")
"""How the norm inside a linear layer is named: by transformers, and in files of other origin."""


@dataclass(frozen=True)
class TernaryForm:
    """How a checkpoint stores its ternary layers.

    Attributes:
        inverse: Whether ``weight_scale`` is 1 / mean |W| instead of mean |W|.
        online: Whether a layer without a scale holds master weights.
        norms: Whether each ternary layer has a norm of its inputs.
        norm_eps: What such norms add to the mean square.
        plain: Layers that are not ternary, by name, start of name, ending or regular expression.
    """

    inverse: bool = False
    online: bool = True
    norms: bool = False
    norm_eps: float = 1e-6
    plain: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Say whether a linear layer of this name is ternary."""
        return bool(should_convert_module(name, list(self.plain)))


def read_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of a folder; code that comes with it is never run.

    Raises:
        InputError: If it cannot be read, or names a model that transformers does not know.
    """
    file = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a bad value fails wherever transformers first uses it
        kind = _raw(file).get("model_type")
        if isinstance(kind, str) and "auto_map" in _raw(file) and "trust_remote_code" in str(error):
            raise InputError(
                "transformers does not know this model, and code of a model folder is not run",
                where=f"{file}: model_type", received=kind,
            ) from None  # fmt: skip
        first = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise InputError(f"not a loadable causal language model ({first})", where=str(folder)) from None
    if hasattr(config, "auto_map"):  # names code that is not run, and must not come along into what is written
        del config.auto_map
    return config


def _raw(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def take_form(config: PretrainedConfig, names: Iterable[str], folder: Path) -> TernaryForm | None:
    """Return how the ternary layers of a checkpoint are stored, and take that out of its configuration.

    A BitNet model, and one with norms inside its linear layers, has ternary layers without saying so.

    Args:
        config: The configuration; it describes a plain model afterwards.
        names: Names of the stored tensors.
        folder: Where they are from, for messages.

    Returns:
        None for a model without ternary layers.

    Raises:
        InputError: If it is of a kind that is not known.
    """
    quantization = getattr(config, _KEY, None)
    if isinstance(quantization, dict) and quantization.get("quant_method") == "bitnet":
        delattr(config, _KEY)
        return _form(quantization, float(getattr(config, "rms_norm_eps", 1e-6)), f"{folder / 'config.json'}: {_KEY}")
    if quantization is None and (config.model_type == "bitnet" or any(inner_norms(names))):
        return TernaryForm(norm_eps=float(getattr(config, "rms_norm_eps", 1e-6)))
    return None


def _form(quantization: dict[str, Any], model_eps: float, where: str) -> TernaryForm:
    kind = _one_of(quantization, "linear_class", ("bitlinear", "autobitlinear"), where)
    mode = _one_of(quantization, "quantization_mode", ("offline", "online"), where)
    flag, plain = bool(quantization.get("use_rms_norm")), quantization.get("modules_to_not_convert") or ()
    try:  # transformers adds 1e-6 in norms that the flag calls for
        eps = float(quantization.get("rms_norm_eps") or (1e-6 if flag else model_eps))
        patterns = tuple(re.compile(str(name)).pattern for name in plain)
    except (TypeError, ValueError, re.error) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", where=where) from None
    return TernaryForm(kind == "bitlinear", mode == "online", flag, eps, patterns)


def _one_of(quantization: dict[str, Any], key: str, known: tuple[str, str], where: str) -> str:
    """Return the value of a key, whose first known value is meant where it is absent."""
    value = quantization.get(key, known[0])
    if value not in known:
        raise InputError(f"unknown {key}", where=f"{where}.{key}", expected=" or ".join(known), received=value)
    return str(value)


def inner_norms(names: Iterable[str]) -> dict[str, str]:
    """Return the name of the weight of each norm inside a linear layer, by the name of the layer."""
    known = set(names)
    found = {}
    for ending in _NORMS:
        for name in known:
            layer = name.removesuffix(ending)
            if layer != name and f"{layer}.weight" in known:
                found[layer] = name
    return found


def without_sub_norms(config: PretrainedConfig, names: Iterable[str]) -> PretrainedConfig:
    """Return the configuration under which a checkpoint computes what it was trained to.

    transformers' BitNet always normalises in front of two projections, and fills norms that a file lacks with ones.
    Without these norms the model is a Llama with another activation function.
    """
    if config.model_type != "bitnet" or any("_sub_norm." in name for name in names):
        return config
    given = config.to_dict()
    return LlamaConfig(**{key: given[key] for key in LlamaConfig().to_dict() if key in given and key != "model_type"})
