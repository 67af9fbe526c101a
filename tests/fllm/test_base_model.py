"""Base models from any folder: what loads, what is refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from device_models import InputError, load_device
from fllm.model.base import load_model, model_facts
from hwsim import BitLinear
from tests.fllm.small import SHIPPED, copied, edit_json

DEVICE = load_device("gaincell_28nm")
SAMPLE = ["history: pain\ndiagnosis:", "exam: soft abdomen\ndiagnosis:"]


def save_llama(folder: Path, vocabulary: int = 2048) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, folder)
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def llama(llama_folder: Path, tmp_path: Path) -> Path:
    return copied(llama_folder, tmp_path / "llama")


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_model(folder, DEVICE, 1e-5, SAMPLE)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_shipped_model_is_known_as_such() -> None:
    loaded = load_model(None, DEVICE, 1e-5, [])
    assert (loaded.ternarised, loaded.calibrated) == (False, False)
    facts = model_facts(loaded)
    assert 0 < facts["ternary_parameters"] < facts["parameters"]  # type: ignore[operator]


def test_copy_of_the_shipped_model_is_the_shipped_model(model_copy: Path) -> None:
    assert load_model(model_copy, DEVICE, 1e-5, []).sha256 == load_model(None, DEVICE, 1e-5, []).sha256


def test_digest_changes_with_any_file(model_copy: Path) -> None:
    before = load_model(model_copy, DEVICE, 1e-5, []).sha256
    edit_json(model_copy / "tokenizer_config.json", remark="other")
    assert load_model(model_copy, DEVICE, 1e-5, []).sha256 != before


def test_plain_model_is_ternarised_and_calibrated(llama: Path) -> None:
    loaded = load_model(llama, DEVICE, 1e-5, SAMPLE)
    assert (loaded.ternarised, loaded.calibrated) == (True, True)
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, BitLinear)]
    assert layers
    assert all(layer.offline and not layer.weight.requires_grad for layer in layers)


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such model folder" in refused(tmp_path / "absent")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no such model folder" in refused(tmp_path / "model.safetensors")


def test_no_weights(llama: Path, model_copy: Path) -> None:
    for folder in (llama, model_copy):
        (folder / "model.safetensors").unlink()
        assert "no weights" in refused(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("keep", [0, 40])
def test_file_that_was_cut_off(llama: Path, cut: Callable[[Path, int], None], name: str, keep: int) -> None:
    cut(llama / name, keep)
    refused(llama)


def test_weights_cut_off_in_the_middle(llama: Path, cut: Callable[[Path, int], None]) -> None:
    cut(llama / "model.safetensors", (llama / "model.safetensors").stat().st_size // 2)
    refused(llama)


def test_pickled_weights_that_are_none(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"abc")
    refused(llama)


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "foo"}, {"model_type": "clip"}, {"hidden_size": "x"}, {"num_attention_heads": 0}],
    ids=str,
)
def test_configuration_of_no_language_model(llama: Path, changes: dict) -> None:
    edit_json(llama / "config.json", **changes)
    refused(llama)


def test_missing_tensor_is_not_made_up(llama: Path) -> None:
    """transformers fills a missing tensor with random numbers and goes on."""
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.self_attn.q_proj.weight: a tensor is missing" in refused(llama)


def test_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    assert "more tokens than the model" in refused(save_llama(tmp_path / "small", vocabulary=100))
