"""LoRA adapters beside ternary layers: attach, read, set, save; merging is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear as LoraLinear
from safetensors.torch import load_file
from torch import Tensor, nn

from device_models import InputError
from fllm.config import LoraSettings
from fllm.model.digest import digest_of_arrays
from hwsim import BitLinear
from hwsim.randomness import seed_of


class BitLoraLinear(LoraLinear):
    """LoRA beside a ternary layer. Ternary weights cannot hold the sum, so merging would destroy the model."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:  # noqa: ARG002
        """Refuse: rounding the sum to three values loses the adapter or the base."""
        raise RuntimeError(
            "a LoRA adapter cannot be merged into ternary weights: rounding the sum would change or lose it; "
            "keep the adapter beside the layer, where it runs in digital"
        )


def attach_adapter(model: nn.Module, settings: LoraSettings, *, base_name: str, seed: int) -> PeftModel:
    """Add one trainable LoRA adapter to every ternary layer; everything else is frozen.

    Raises:
        InputError: If the model has no ternary layer.
    """
    targets = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, BitLinear)})
    if not targets:
        raise InputError("no ternary layer to adapt", where=base_name, expected="a model on arrays")
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    config._register_custom_module({BitLinear: BitLoraLinear})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "adapter"))
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def get_adapter(model: PeftModel) -> dict[str, Tensor]:
    """Return copies of the adapter's tensors in float32, sorted by name."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" would ask the hub about the base
    return {name: state[name].detach().float().cpu().clone() for name in sorted(state)}


def set_adapter(model: PeftModel, adapter: Mapping[str, Tensor]) -> None:
    """Load adapter tensors; peft alone would skip a missing one without a word.

    Raises:
        ValueError: If names or shapes differ from the model's.
    """
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    given = {name: tuple(tensor.shape) for name, tensor in adapter.items()}
    if wanted != given:
        differing = sorted(set(wanted.items()) ^ set(given.items()))[0][0]
        raise ValueError(f"adapter does not fit the model, first at {differing}: {given.get(differing)!r}")
    set_peft_model_state_dict(model, dict(adapter))


def adapter_digest(adapter: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names and values: equal digests, equal adapters."""
    return digest_of_arrays({name: tensor.contiguous().numpy() for name, tensor in adapter.items()})


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT format with stable bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    file = folder / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
    (folder / "adapter_model.safetensors").chmod(0o644)
    (folder / "README.md").write_text(
        f"LoRA adapter trained by fllm on emulated in-memory hardware; PEFT {peft.__version__} format.\n\n"
        f"Base model: {config['base_model_name_or_path']}. Do not merge it: the base weights are ternary.\n"
        "An adapter trained on patients' notes is derived from them and stays as private as they are.\n",
        encoding="utf-8",
        newline="\n",
    )


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a saved adapter by the names that :func:`get_adapter` gives; raises InputError."""
    try:
        state = load_file(folder / "adapter_model.safetensors")
    except Exception as error:
        raise InputError(f"adapter cannot be read ({type(error).__name__})", where=str(folder)) from None
    return dict(sorted(state.items()))
