"""Every setting of an adapter acts: what is trained, what is sent, what is saved, and what stays as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from device_models import InputError, load_device
from fllm.model.adapters import (
    adapter_digest,
    attach_adapter,
    get_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
    set_adapter,
    whole_adapter,
)
from fllm.model.base import load_model
from fllm.sections import LoraSettings
from hwsim import emulate, gain_cell_layers
from tests.fllm.small import IDENTITY, NAME, SHIPPED, fresh_model, logits, scrambled

DEVICE = load_device("gaincell_28nm")


def adapted(**settings: Any) -> PeftModel:
    return attach_adapter(fresh_model(), LoraSettings(**{"r": 4} | settings), base_name=NAME, seed=0).eval()


def trained(model: PeftModel) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: PeftModel) -> set[str]:
    """Return what a backward pass gives a gradient, from an adapter whose factors all act."""
    set_adapter(model, near(whole_adapter(model)))
    model(input_ids=torch.arange(2, 22)[None], use_cache=False).logits.square().mean().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def near(adapter: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Scramble A and B; scalers only move a little, so that they stay where the converters see something."""
    lora = scrambled(adapter, seed)
    return {name: 1.02 * tensor if "gain_cell" in name else lora[name] for name, tensor in adapter.items()}


# Targets.


def test_only_the_named_projections_get_an_adapter() -> None:
    model = adapted(targets=("v_proj", "q_proj"))
    assert {name.split(".")[-3] for name in get_adapter(model)} == {"q_proj", "v_proj"}
    assert len(get_adapter(model)) == 2 * 2 * len(gain_cell_layers(model))
    assert len(get_adapter(adapted())) == 2 * 7 * len(gain_cell_layers(model))


def test_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(InputError) as error:
        adapted(targets=("q_proj", "k_prj"))
    message = str(error.value)
    assert "lora.targets" in message and "received 'k_prj'" in message and "did you mean k_proj" in message
    for name in ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"):
        assert name in message


# Scale.


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6.0 / 4), (True, 6.0 / math.sqrt(4))])
def test_scale_of_the_adapter(rslora: bool, scale: float) -> None:
    model = adapted(alpha=6.0, rslora=rslora, targets=("q_proj",))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    set_adapter(model, scrambled(get_adapter(model)))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        added = layer(x) - layer.base_layer(x)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(added, scale * x @ a.T @ b.T, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone() -> None:
    model = adapted(dropout=0.5)
    set_adapter(model, scrambled(get_adapter(model)))
    still = logits(model)
    assert torch.equal(logits(model), still)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(logits(model), still)


# A frozen.


def test_frozen_a_is_neither_trained_nor_sent() -> None:
    free, frozen = adapted(), adapted(freeze_a=True)
    assert {name for name in get_adapter(free) if "lora_A" in name}
    assert set(get_adapter(frozen)) == {name for name in get_adapter(free) if "lora_B" in name}
    assert gradients(frozen) == {name for name in trained(free) if "lora_B" in name}
    assert gradients(free) == trained(free)
    whole = whole_adapter(frozen)
    assert set(whole) == set(get_adapter(free))


def test_setting_what_is_sent_leaves_a_as_drawn() -> None:
    model = adapted(freeze_a=True)
    first = whole_adapter(model)
    set_adapter(model, scrambled(get_adapter(model)))
    now = whole_adapter(model)
    assert all(torch.equal(now[name], first[name]) == ("lora_A" in name) for name in now)


def test_a_is_the_same_wherever_it_is_drawn_from_the_same_seed() -> None:
    one, two = whole_adapter(adapted(freeze_a=True)), whole_adapter(adapted(freeze_a=True))
    assert adapter_digest(one) == adapter_digest(two)
    assert all(bool(tensor.any()) for name, tensor in one.items() if "lora_A" in name)


def test_switching_the_adapter_off_and_on_does_not_thaw_a() -> None:
    """PEFT makes all of an adapter trainable when it is switched on again."""
    model = adapted(freeze_a=True)
    with model.disable_adapter():
        pass
    set_adapter(model, get_adapter(model))
    assert trained(model) == {name for name in trained(adapted()) if "lora_B" in name}


# Range scalers.


def scalers(model: PeftModel) -> set[str]:
    return {name for name in get_adapter(model) if ".gain_cell." in name}


def test_scalers_are_trained_and_sent_when_asked() -> None:
    model = adapted(train_scalers=True)
    layers = len(gain_cell_layers(model))
    assert len(scalers(model)) == 8 * layers
    assert len(gradients(model)) == len(trained(model)) == len(get_adapter(model))
    assert not scalers(adapted())
    assert not any("gain_cell" in name for name in trained(adapted()))


def test_scalers_are_set_exactly_and_do_not_stay_with_the_next() -> None:
    """All clients of a process share one model."""
    model = adapted(train_scalers=True)
    first = get_adapter(model)
    before = logits(model)
    for device in (load_device("ideal", {"window.tokens": 1024}), DEVICE):
        emulate(model, device, token_period=1e-5)
        set_adapter(model, near(first, seed=3))
        set_adapter(model, first)
        assert adapter_digest(get_adapter(model)) == adapter_digest(first)
    assert torch.equal(logits(model), before)


def test_scalers_alone_change_the_logits() -> None:
    model = adapted(train_scalers=True)
    before = logits(model)
    first = get_adapter(model)
    moved = {name: 1.5 * t if name.endswith("output.gain") else t for name, t in first.items()}
    set_adapter(model, moved)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize(("range_", "there"), [("fixed", False), ("calibrated", False), ("learned", True)])
def test_range_of_the_readout_is_trained_where_the_device_lets_it_be_learned(range_: str, there: bool) -> None:
    device = load_device("gaincell_28nm", {"readout.range": range_})
    loaded = load_model(None, device, 1e-5, ["a text to take statistics from"])
    model = attach_adapter(loaded.model, LoraSettings(r=2, train_scalers=True), base_name=NAME, seed=0)
    assert any(name.endswith("full_scale") for name in get_adapter(model)) is there
    assert any(name.endswith("full_scale") for name in trained(model)) is there


# Saved and loaded.


def test_folder_is_complete_whatever_is_trained(tmp_path: Path) -> None:
    model = adapted(freeze_a=True, train_scalers=True)
    set_adapter(model, near(get_adapter(model)))
    save_adapter(model, tmp_path, IDENTITY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "fllm_adapter.json", "gain_cell.safetensors",
    }  # fmt: skip
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_A" in name for name in stored) and not any("gain_cell" in name for name in stored)
    assert adapter_digest(read_adapter(tmp_path)) == adapter_digest(whole_adapter(model))
    assert "gain_cell.safetensors" in (tmp_path / "README.md").read_text(encoding="utf-8")
    identity = json.loads((tmp_path / "fllm_adapter.json").read_text(encoding="utf-8"))
    assert set(identity) == {"schema_version", "base", "device", "lora"}


def test_loading_gives_the_same_model(tmp_path: Path) -> None:
    model = adapted(freeze_a=True, train_scalers=True, rslora=True, targets=("q_proj", "up_proj"))
    set_adapter(model, near(get_adapter(model)))
    save_adapter(model, tmp_path, IDENTITY)
    settings = LoraSettings(r=4, freeze_a=True, train_scalers=True, rslora=True, targets=("q_proj", "up_proj"))
    other = attach_adapter(fresh_model(), settings, base_name=NAME, seed=9).eval()
    load_adapter(other, read_adapter(tmp_path), tmp_path)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("settings", [{}, {"freeze_a": True}, {"rslora": True}, {"targets": ("v_proj", "down_proj")}])
def test_plain_peft_loads_it_on_our_base_and_on_that_of_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    set_adapter(model, scrambled(whole_adapter(model)))
    save_adapter(model, tmp_path, IDENTITY)
    ours = PeftModel.from_pretrained(fresh_model(), str(tmp_path)).eval()
    assert torch.equal(logits(ours), logits(model))
    plain = AutoModelForCausalLM.from_pretrained(SHIPPED, local_files_only=True).eval()
    before = logits(plain)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    given, there = whole_adapter(model), dict(theirs.named_parameters())
    for name, tensor in given.items():
        assert torch.equal(there[name.replace(".weight", ".default.weight")], tensor), name
    assert not torch.equal(logits(theirs), before)


def test_adapter_of_a_model_with_transposed_layers_fits_transformers_own(tmp_path: Path) -> None:
    """GPT-2's Conv1D becomes a linear layer on arrays; PEFT's factors have the same shapes on both."""
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()
    plain.save_pretrained(tmp_path / "base")
    model = attach_adapter(
        emulate(plain, DEVICE, token_period=1e-5), LoraSettings(r=2), base_name="gpt2", seed=0
    )  # fmt: skip
    set_adapter(model, scrambled(whole_adapter(model)))
    save_adapter(model, tmp_path / "adapter", IDENTITY)
    fresh = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    there = dict(loaded.named_parameters())
    for name, tensor in whole_adapter(model).items():
        assert torch.equal(there[name.replace(".weight", ".default.weight")], tensor), name


def test_saved_range_of_a_readout_is_left_out_where_the_device_has_none(tmp_path: Path) -> None:
    learned = load_device("gaincell_28nm", {"readout.range": "learned"})
    loaded = load_model(None, learned, 1e-5, ["a text to take statistics from"])
    settings = LoraSettings(r=2, train_scalers=True)
    model = attach_adapter(loaded.model, settings, base_name=NAME, seed=0)
    set_adapter(model, near(get_adapter(model)))
    adapter = whole_adapter(model)
    other = attach_adapter(fresh_model(), settings, base_name=NAME, seed=1)
    load_adapter(other, adapter, tmp_path)
    now = whole_adapter(other)
    assert set(adapter) - set(now) == {name for name in adapter if name.endswith("full_scale")} != set()
    assert all(torch.equal(now[name], adapter[name]) for name in now)
    back = whole_adapter(model)
    load_adapter(model, now, tmp_path)  # and what the file has not stays
    assert adapter_digest(whole_adapter(model)) == adapter_digest(back)


@pytest.mark.parametrize("what", ["shape", "missing", "extra", "attention"])
def test_saved_adapter_that_does_not_fit_is_refused(tmp_path: Path, what: str) -> None:
    model = adapted(targets=("q_proj",), train_scalers=True)
    adapter = whole_adapter(model)
    name = next(name for name in adapter if "lora_B" in name)
    if what == "shape":
        adapter[name] = adapter[name][:, :1]
    elif what == "missing":
        del adapter[name]
    elif what == "extra":
        name = name.replace("q_proj", "k_proj")
        adapter[name] = torch.ones(1)
    else:
        name = "model.layers.0.self_attn.gain_cell.logit_gain"
        adapter[name] = torch.ones(2)
    with pytest.raises(InputError) as error:
        load_adapter(model, adapter, tmp_path)
    assert name in str(error.value)
    assert ("another attention" in str(error.value)) is (what == "attention")
