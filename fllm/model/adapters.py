"""LoRA adapters beside ternary layers: attach, read, set, save; merging is refused.

What an adapter consists of follows from its settings: A and B of each projection, of which A may be frozen, and the
range scalers of the emulated attention, which may be trained with it. All clients of a process share one model, so
whatever is trained is also set, by :func:`set_adapter`, before the next one trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from device_models import InputError
from device_models.errors import nearest
from fllm.model.digest import digest_of_arrays
from fllm.model.identity import SCALERS, WEIGHTS, AdapterIdentity, write_identity
from fllm.sections import LoraSettings
from hwsim import BitLinear, gain_cell_layers
from hwsim.integrations.transformers import NAME as GAIN_CELL
from hwsim.randomness import seed_of

_SETTINGS = "adapter_settings"
"""Attribute of an adapted model: what of its adapter is trained."""


class BitLoraLinear(LoraLinear):
    """LoRA beside a ternary layer. Ternary weights cannot hold the sum, so merging would destroy the model."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:  # noqa: ARG002
        """Refuse: rounding the sum to three values loses the adapter or the base."""
        raise RuntimeError(
            "a LoRA adapter cannot be merged into ternary weights: rounding the sum would change or lose it; "
            "keep the adapter beside the layer, where it runs in digital"
        )


def attach_adapter(model: nn.Module, settings: LoraSettings, *, base_name: str, seed: int) -> PeftModel:
    """Add one LoRA adapter to ternary layers; everything that its settings do not train is frozen.

    Args:
        model: The base model, on a device.
        settings: Rank, scale, targets, and what is trained.
        base_name: Name of the base model.
        seed: A is drawn from it; B is zero, so that nothing changes at first.

    Returns:
        The model with its adapter.

    Raises:
        InputError: If the model has no ternary layer, or none of a name that is a target.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=_targets(model, settings, base_name),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    config._register_custom_module({BitLinear: BitLoraLinear})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "adapter"))
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    setattr(adapted, _SETTINGS, settings)
    _freeze_all_but_trained(adapted)
    return adapted


def _targets(model: nn.Module, settings: LoraSettings, base_name: str) -> list[str]:
    known = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, BitLinear)}
    if not known:
        raise InputError("no ternary layer to adapt", where=base_name, expected="a model on arrays")
    for name in settings.targets:
        if name not in known:
            raise InputError(
                f"no ternary layer of {base_name} has this name", where="lora.targets",
                expected=f"some of {', '.join(sorted(known))}", received=name, remedy=nearest(name, known),
            )  # fmt: skip
    return sorted(set(settings.targets) or known)


def _settings_of(model: PeftModel) -> LoraSettings:
    found: LoraSettings = getattr(model, _SETTINGS, LoraSettings())  # plain PEFT has loaded one that has them not
    return found


def _freeze_all_but_trained(model: PeftModel) -> None:
    """Set what is trained; anew before each training, as PEFT and a change of the device set it for themselves."""
    settings = _settings_of(model)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(not settings.freeze_a)
    for layer in gain_cell_layers(model):
        for name, parameter in layer.named_parameters():
            fixed = name == "full_scale" and layer.device.readout.range != "learned"
            parameter.requires_grad_(settings.train_scalers and not fixed)


def _scalers(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the range scalers that are trained, under their names in the base model."""
    if not _settings_of(model).train_scalers:
        return {}
    named = model.get_base_model().named_parameters()
    found = {name: p for name, p in named if f".{GAIN_CELL}." in name}
    learned = gain_cell_layers(model)[0].device.readout.range == "learned"
    return {name: p for name, p in found.items() if learned or not name.endswith(".full_scale")}


def whole_adapter(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of all of the adapter's tensors in float32, sorted by name: what is saved."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" would ask the hub about the base
    state |= _scalers(model)
    return {name: state[name].detach().float().cpu().clone() for name in sorted(state)}


def get_adapter(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of the adapter's trained tensors in float32, sorted by name: what clients send."""
    frozen = _settings_of(model).freeze_a
    return {name: t for name, t in whole_adapter(model).items() if not (frozen and "lora_A" in name)}


def frozen_adapter(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of the adapter's other tensors: what all clients have without its being sent."""
    sent = get_adapter(model)
    return {name: tensor for name, tensor in whole_adapter(model).items() if name not in sent}


def set_adapter(model: PeftModel, adapter: Mapping[str, Tensor]) -> None:
    """Set the tensors of an adapter, all or those that are trained; peft alone would skip a missing one without a word.

    Raises:
        ValueError: If names or shapes differ from the model's.
    """
    given = _shapes(adapter)
    whole = _shapes(whole_adapter(model))
    wanted = whole if len(given) == len(whole) else _shapes(get_adapter(model))
    if wanted != given:
        differing = sorted(set(wanted.items()) ^ set(given.items()))[0][0]
        raise ValueError(f"adapter does not fit the model, first at {differing}: {given.get(differing)!r}")
    scalers = _scalers(model)
    set_peft_model_state_dict(model, {name: t for name, t in adapter.items() if name not in scalers})
    with torch.no_grad():
        for name, parameter in scalers.items():
            parameter.copy_(adapter[name])
    _freeze_all_but_trained(model)


def load_adapter(model: PeftModel, adapter: Mapping[str, Tensor], folder: Path) -> None:
    """Set a saved adapter on a model that may be on another device than the one it was trained on.

    The range of the readout is the device's own matter: one that this device has not is left out, and one that the
    adapter has not stays as it is.

    Args:
        model: The model, with an adapter of the same settings.
        adapter: What :func:`read_adapter` returned.
        folder: Where it is from, for messages.

    Raises:
        InputError: If it does not fit the model.
    """
    own = whole_adapter(model)
    given = {name: tensor for name, tensor in adapter.items() if name in own or not name.endswith(".full_scale")}
    given |= {name: tensor for name, tensor in own.items() if name not in given and name.endswith(".full_scale")}
    wrong = sorted(set(_shapes(own).items()) ^ set(_shapes(given).items()))
    if wrong:
        name = wrong[0][0]
        attention = name.endswith(".logit_gain")
        raise InputError(
            "the adapter's range scalers are made for another attention" if attention
            else "the adapter does not fit the model",
            where=f"{folder}: {name}", expected=_shape_of(own, name), received=_shape_of(given, name),
            remedy="set activation.kind to that of its device" if attention else "give the base that it was trained on",
        )  # fmt: skip
    set_adapter(model, given)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _shape_of(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"shape {tuple(tensors[name].shape)}" if name in tensors else "no such tensor"


def adapter_digest(adapter: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and values: equal digests, equal adapters."""
    return digest_of_arrays({name: tensor.contiguous().numpy() for name, tensor in adapter.items()})


def save_adapter(model: PeftModel, folder: Path, identity: AdapterIdentity) -> None:
    """Write the adapter in PEFT format with stable bytes, its range scalers and its identity beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    file = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    scalers = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(_scalers(model).items())}
    if scalers:
        save_file(scalers, folder / SCALERS, metadata={"format": "pt"})
    for name in (WEIGHTS, SCALERS) if scalers else (WEIGHTS,):
        (folder / name).chmod(0o644)  # safetensors writes 0600
    write_identity(folder, identity)
    (folder / "README.md").write_text(_readme(config["base_model_name_or_path"], bool(scalers)), encoding="utf-8",
                                      newline="\n")  # fmt: skip


def _readme(base: str, scalers: bool) -> str:
    trained = f"Its range scalers lie in {SCALERS}; plain PEFT does not load them.\n" if scalers else ""
    return (
        f"LoRA adapter trained by fllm on emulated in-memory hardware; PEFT {peft.__version__} format.\n\n"
        f"Base model: {base}. Do not merge it: the base weights are ternary.\n{trained}"
        "An adapter trained on patients' notes is derived from them and stays as private as they are.\n"
    )


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a saved adapter by the names that :func:`whole_adapter` gives; raises InputError."""
    try:
        state = load_file(folder / WEIGHTS)
        if (folder / SCALERS).is_file():
            state |= load_file(folder / SCALERS)
    except Exception as error:
        raise InputError(f"adapter cannot be read ({type(error).__name__})", where=str(folder)) from None
    return dict(sorted(state.items()))
