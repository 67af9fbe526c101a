"""LoRA adapters: neutral at first, copied in and out exactly, saved in PEFT's own format, never merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from device_models import InputError
from fllm.model.adapters import (
    adapter_digest,
    attach_adapter,
    get_adapter,
    read_adapter,
    save_adapter,
    set_adapter,
)
from fllm.sections import LoraSettings
from hwsim import BitLinear
from tests.fllm.small import IDENTITY, adapted_model, fresh_model, logits, scrambled


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return adapted_model()


@pytest.fixture(autouse=True)
def _known_adapter(model: PeftModel) -> None:
    set_adapter(model, scrambled(get_adapter(model)))


def test_new_adapter_changes_no_logit() -> None:
    base = fresh_model()
    before = logits(base)
    adapted = attach_adapter(base, LoraSettings(r=4), base_name="base", seed=0).eval()
    assert torch.equal(logits(adapted), before)
    set_adapter(adapted, scrambled(get_adapter(adapted)))
    assert not torch.equal(logits(adapted), before)


def test_every_ternary_layer_has_one_and_only_it_trains(model: PeftModel) -> None:
    ternary = sum(isinstance(layer, BitLinear) for layer in model.modules())
    assert len(get_adapter(model)) == 2 * ternary
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_adapter_at_first_depends_on_the_seed_alone() -> None:
    def first_adapter(seed: int, global_seed: int) -> dict[str, Tensor]:
        base = fresh_model()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        adapted = attach_adapter(base, LoraSettings(r=4), base_name="base", seed=seed)
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
        return get_adapter(adapted)

    digest = adapter_digest(first_adapter(5, global_seed=1))
    assert adapter_digest(first_adapter(5, global_seed=2)) == digest
    assert adapter_digest(first_adapter(6, global_seed=1)) != digest


def test_model_without_ternary_layers_is_refused() -> None:
    with pytest.raises(InputError, match="no ternary layer"):
        attach_adapter(nn.Sequential(nn.Linear(2, 2)), LoraSettings(), base_name="base", seed=0)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused_and_harmless(model: PeftModel, merge: str) -> None:
    before = logits(model)
    with pytest.raises(RuntimeError, match="cannot be merged into ternary weights"):
        getattr(model, merge)()
    assert torch.equal(logits(model), before)


def test_get_returns_sorted_copies(model: PeftModel) -> None:
    taken = get_adapter(model)
    assert list(taken) == sorted(taken)
    assert all(tensor.dtype == torch.float32 for tensor in taken.values())
    before = logits(model)
    for tensor in taken.values():
        tensor.fill_(7.0)
    assert torch.equal(logits(model), before)


def test_get_does_not_follow_later_training(model: PeftModel) -> None:
    taken = get_adapter(model)
    before = adapter_digest(taken)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert adapter_digest(taken) == before


def test_set_then_get_is_exact_in_any_order(model: PeftModel) -> None:
    given = scrambled(get_adapter(model), seed=9)
    set_adapter(model, dict(reversed(given.items())))
    assert adapter_digest(get_adapter(model)) == adapter_digest(given)


def test_set_keeps_no_hold_of_what_was_given(model: PeftModel) -> None:
    given = scrambled(get_adapter(model), seed=9)
    set_adapter(model, given)
    before = logits(model)
    for tensor in given.values():
        tensor.fill_(7.0)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("what", ["missing", "extra", "shape", "empty"])
def test_adapter_that_does_not_fit_is_refused(model: PeftModel, what: str) -> None:
    wrong = scrambled(get_adapter(model), seed=9)
    name = sorted(wrong)[3]
    if what == "missing":
        del wrong[name]
    elif what == "extra":
        name = wrong[name] = "base_model.model.extra.lora_A.weight"  # type: ignore[assignment]
        wrong[name] = torch.ones(1)
    elif what == "shape":
        wrong[name] = wrong[name].T.contiguous()
    else:
        wrong, name = {}, ""
    before = adapter_digest(get_adapter(model))
    with pytest.raises(ValueError, match="does not fit the model") as error:
        set_adapter(model, wrong)
    assert name in str(error.value)
    assert adapter_digest(get_adapter(model)) == before


def test_digest_follows_values_and_names_not_order() -> None:
    adapter = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    digest = adapter_digest(adapter)
    assert adapter_digest(dict(reversed(adapter.items()))) == digest
    assert adapter_digest({name: tensor.clone() for name, tensor in adapter.items()}) == digest
    assert adapter_digest({"a": torch.tensor([1.0, 2.0000002]), "b": adapter["b"]}) != digest
    assert adapter_digest({"a": adapter["a"], "c": adapter["b"]}) != digest
    assert adapter_digest({"a": adapter["a"]}) != digest


def test_digest_reads_values_not_memory() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert adapter_digest({"a": tensor.T}) == adapter_digest({"a": tensor.T.contiguous()})


def test_saving_twice_gives_the_same_bytes(model: PeftModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name, IDENTITY)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "fllm_adapter.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert (tmp_path / "one" / name).stat().st_mode & 0o444 == 0o444


def test_saved_targets_are_sorted(model: PeftModel, tmp_path: Path) -> None:
    """They are a set: within one process its order never changes, between two processes it does."""
    save_adapter(model, tmp_path, IDENTITY)
    targets = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert targets == sorted(targets)
    assert len(targets) == 7


def test_read_gives_what_was_saved(model: PeftModel, tmp_path: Path) -> None:
    save_adapter(model, tmp_path, IDENTITY)
    assert adapter_digest(read_adapter(tmp_path)) == adapter_digest(get_adapter(model))


@pytest.mark.parametrize("content", [None, b"", b"garbage that is no safetensors file"])
def test_adapter_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="adapter cannot be read"):
        read_adapter(tmp_path)


def test_plain_peft_loads_it_bit_for_bit(model: PeftModel, tmp_path: Path) -> None:
    save_adapter(model, tmp_path, IDENTITY)
    loaded = PeftModel.from_pretrained(fresh_model(), str(tmp_path)).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(fresh_model()))


@pytest.mark.filterwarnings("error")
def test_taking_the_adapter_asks_nobody_about_the_base(model: PeftModel, tmp_path: Path) -> None:
    """PEFT's default looks for the base on the hub, and warns when it cannot."""
    set_adapter(model, get_adapter(model))
    save_adapter(model, tmp_path, IDENTITY)
