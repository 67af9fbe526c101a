"""Plain models made ternary: what is converted, and the loss that is stated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from device_models import InputError
from fllm.model.checkpoints import conversion, load_causal_lm
from fllm.model.checkpoints.conversion import Conversion, frozen_weight, read_record, ternarise, write_record
from hwsim import BitLinear
from tests.fllm.made_checkpoints import llama, plain_model, projections
from tests.fllm.small import logits

WIDTH = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
OTHERS: dict[str, tuple[PretrainedConfig, int]] = {
    "gpt2": (GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64), 8),
    "gpt_neox": (GPTNeoXConfig(**WIDTH, intermediate_size=48), 4),
    "opt": (OPTConfig(**WIDTH, ffn_dim=48, word_embed_proj_dim=32), 6),
    "qwen2": (Qwen2Config(**WIDTH, intermediate_size=48, num_key_value_heads=1), 7),
}


def texts(*lengths: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (1, length), generator=made) for length in lengths]


def loss(model: nn.Module, batches: list[Tensor]) -> float:
    """Return the mean loss over all predicted tokens, computed apart."""
    total = 0.0
    for ids in batches:
        with torch.no_grad():
            predicted = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= float(predicted.gather(1, ids[0, 1:, None]).sum())
    return total / sum(ids.shape[1] - 1 for ids in batches)


@pytest.mark.parametrize("name", OTHERS)
def test_linear_layers_of_any_architecture_become_ternary(tmp_path: Path, name: str) -> None:
    config, layers = OTHERS[name]
    model = plain_model(config)
    model.save_pretrained(tmp_path)
    batches = texts(20, 7)
    found = load_causal_lm(tmp_path, batches)
    assert found.conversion is not None and found.conversion.layers == layers
    assert sum(isinstance(layer, BitLinear) for layer in found.model.modules()) == layers
    assert found.conversion.tokens == 19 + 6
    assert found.conversion.loss_before_nat == pytest.approx(loss(model, batches), rel=1e-5)
    assert found.conversion.loss_after_nat == pytest.approx(loss(found.model, batches), rel=1e-5)
    assert found.conversion.loss_before_nat != found.conversion.loss_after_nat


def test_transposed_layers_are_turned(tmp_path: Path) -> None:
    """GPT-2 keeps its weights (inputs, outputs), in a class that is no ``nn.Linear``."""
    model = plain_model(OTHERS["gpt2"][0])
    with torch.no_grad():  # weights that lose nothing: then only the 8-bit activations differ
        for name, parameter in model.named_parameters():
            if "c_" in name and parameter.dim() == 2:
                parameter.copy_(0.05 * torch.randint(-1, 2, parameter.shape))
    model.save_pretrained(tmp_path)
    found = load_causal_lm(tmp_path)
    assert isinstance(found.model, GPT2LMHeadModel) and found.conversion is not None
    assert found.conversion.weight_error_largest < 1e-6
    layer, former = found.model.transformer.h[0].mlp.c_fc, model.transformer.h[0].mlp.c_fc
    x = torch.randint(-127, 128, (3, 32)).float() / 127
    x[:, 0] = 1.0  # nothing is rounded
    with torch.no_grad():
        torch.testing.assert_close(layer(x), former(x), rtol=1e-5, atol=1e-6)


def test_stated_error_is_that_of_the_weights(tmp_path: Path) -> None:
    model = plain_model(llama())
    model.save_pretrained(tmp_path)
    found = load_causal_lm(tmp_path)
    errors = []
    for name in projections(model):
        weight, layer = model.get_submodule(name).weight.detach(), found.model.get_submodule(name)
        kept = layer.weight * layer.weight_scale
        errors.append(float((weight - kept).norm() / weight.norm()))
        assert float(layer.weight_scale) == pytest.approx(float(weight.abs().mean()), rel=1e-6)
    assert found.conversion is not None
    assert found.conversion.weight_error_mean == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert found.conversion.weight_error_largest == pytest.approx(max(errors), rel=1e-5)
    assert min(errors) > 0.4 and max(errors) < 0.6  # normal weights: 0.51


@pytest.mark.parametrize("lengths", [(), (1,)])
def test_without_text_the_loss_is_not_stated(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    plain_model(llama()).save_pretrained(tmp_path)
    found = load_causal_lm(tmp_path, texts(*lengths)).conversion
    assert found is not None
    assert (found.tokens, found.loss_before_nat, found.loss_after_nat) == (0, None, None)


def test_measuring_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model(llama())
    monkeypatch.setattr(conversion, "MOST_PRODUCTS", 25 * sum(p.numel() for p in model.parameters()))
    found = ternarise(model, texts(20, 20, 5))
    assert found is not None and found.tokens == 19 + 4
    model = plain_model(llama())
    monkeypatch.setattr(conversion, "MOST_TOKENS", 4)
    found = ternarise(model, texts(20, 4))
    assert found is not None and found.tokens == 3


@pytest.mark.parametrize("shape", [(8, 8), (4, 1), (1, 1)])
def test_ternary_weights_keep_their_scale(shape: tuple[int, int]) -> None:
    weight = 0.3 * torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(2)).float()
    weight[0, 0] = 0.3
    codes, scale = frozen_weight(weight)
    assert float(scale) == pytest.approx(0.3) and torch.equal(codes * scale, weight)


def test_weights_of_zero_stay_zero() -> None:
    codes, scale = frozen_weight(torch.zeros(4, 4))
    assert not codes.any() and float(scale) > 0


def test_pickled_plain_model(tmp_path: Path) -> None:
    model = plain_model(llama())
    model.save_pretrained(tmp_path)
    expected = logits(load_causal_lm(tmp_path).model)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(logits(load_causal_lm(tmp_path).model), expected)


def test_record_of_a_conversion(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    made = Conversion(3, 0.5, 0.6, 10, 1.0, 2.0)
    write_record(made, tmp_path)
    assert read_record(tmp_path) == made
    assert made.facts()["ternarising_loss_after_nat"] == 2.0


def drop_a_key(file: Path) -> None:
    file.write_text('{"layers": 3}', encoding="utf-8")


def cut_off(file: Path) -> None:
    file.write_text('{"layers"', encoding="utf-8")


@pytest.mark.parametrize("edit", [drop_a_key, cut_off])
def test_broken_record(tmp_path: Path, edit: Callable[[Path], None]) -> None:
    edit(tmp_path / "conversion.json")
    with pytest.raises(InputError, match=r"conversion\.json: cannot be read"):
        read_record(tmp_path)
