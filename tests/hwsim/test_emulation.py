"""A language model on a device: attention matters, it can be changed, copied and taken off again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from device_models import InputError
from hwsim import BitLinear, emulate, gain_cell_layers, restore, token_latency_s
from tests import tolerances
from tests.hwsim.models import (
    ARCHITECTURES,
    PERIOD,
    emulated_model,
    plain_model,
    set_scalers,
    small_device,
    token_ids,
    whole,
)

TOKENS = 20  # the ring of 12 wraps
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@every_architecture
@torch.no_grad()
def test_attention_matters(architecture: str, emulated: Callable) -> None:
    """A token changes later logits, not earlier ones; nothing reaches over the window through two layers."""
    model, ids = emulated(architecture), token_ids(1, 40)
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] - 1) % 38 + 2
    effect = (whole(model, changed) - whole(model, ids)).abs().amax(-1)[0]
    assert effect[:10].max() == 0
    assert (effect[11:22] > tolerances.MATTERS).double().mean() > 0.5
    assert effect[10 + 2 * 11 + 1 :].max() == 0


@every_architecture
@torch.no_grad()
def test_decay_matters(architecture: str) -> None:
    ids = token_ids(1, TOKENS)
    slow, fast = (whole(emulated_model(architecture, token_period=period), ids) for period in (1e-9, 1e-3))
    assert (slow - fast).abs().max() > tolerances.MATTERS


@every_architecture
@torch.no_grad()
def test_restore_gives_the_logits_back_bit_for_bit(architecture: str) -> None:
    model, ids = plain_model(architecture), token_ids(2, TOKENS)
    names, before, kind = set(model.state_dict()), whole(model, ids), model.config._attn_implementation
    emulate(model, small_device(), token_period=PERIOD)
    set_scalers(model)
    assert (whole(model, ids) - before).abs().max() > tolerances.MATTERS
    restore(model)
    assert torch.equal(whole(model, ids), before)
    assert set(model.state_dict()) == names
    assert model.config._attn_implementation == kind
    assert not gain_cell_layers(model)


# ---- changing and copying


@torch.no_grad()
def test_another_device_keeps_scalers_and_weights() -> None:
    model, ids = emulated_model("llama"), token_ids(1, TOKENS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = whole(model, ids)
    emulate(model, small_device("ideal"))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert (whole(model, ids) - first).abs().max() > tolerances.MATTERS
    emulate(model, small_device(), token_period=PERIOD)
    assert torch.equal(whole(model, ids), first)
    plain = whole(plain_model("llama"), ids)
    assert torch.equal(whole(restore(model), ids), plain)


@torch.no_grad()
def test_deepcopy_is_independent() -> None:
    model, ids = emulated_model("gpt2"), token_ids(1, TOKENS)
    before = whole(model, ids)
    twin = copy.deepcopy(model)
    assert torch.equal(whole(twin, ids), before)
    for parameter in twin.parameters():
        parameter.mul_(1.5)
    emulate(twin, small_device("ideal"))
    assert torch.equal(whole(model, ids), before)
    restore(twin)
    assert torch.equal(whole(model, ids), before)


@torch.no_grad()
def test_state_dict_keeps_its_names(tmp_path: Any) -> None:
    plain, model, ids = plain_model("llama"), emulated_model("llama"), token_ids(1, TOKENS)
    added = set(model.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(model.state_dict())
    assert added and all(".gain_cell." in name for name in added)
    model.save_pretrained(tmp_path)
    again = emulate(hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), small_device(), token_period=PERIOD)
    missing = again.load_state_dict(model.state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys
    assert torch.equal(whole(again, ids), whole(model, ids))


# ---- what cannot be emulated


def small(model: str, config: str, **settings: object) -> Any:
    return getattr(hf, model)(getattr(hf, config)(vocab_size=40, hidden_size=16, **settings))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: small(
                "BertForMaskedLM", "BertConfig", num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
            ),
            "not causal",
        ),
        (lambda: small("BloomForCausalLM", "BloomConfig", n_layer=1, n_head=2), "cannot be replaced"),
        (lambda: torch.nn.Linear(2, 2), "not a Hugging Face model"),
    ],
    ids=["bert", "bloom", "no-language-model"],
)
def test_unsupported_model_is_an_input_error_and_unchanged(make: Callable[[], Any], said: str) -> None:
    model = make()
    with pytest.raises(InputError, match=said) as caught:
        emulate(model, small_device())
    assert type(model).__name__ in str(caught.value)
    assert not any(isinstance(layer, BitLinear) for layer in model.modules())


@pytest.mark.parametrize(("period", "said"), [(None, "no token period"), (0.0, "> 0 s"), (-1e-6, "-1e-06")])
def test_wrong_token_period_changes_nothing(period: float | None, said: str) -> None:
    model = plain_model("llama")
    with pytest.raises(InputError, match=said):
        emulate(model, small_device(), token_period=period)
    assert not any(isinstance(layer, BitLinear) for layer in model.modules())


def test_attention_without_device_says_what_to_do() -> None:
    model = plain_model("llama")
    model.set_attn_implementation("gain_cell")
    with pytest.raises(ValueError, match=r"without a device: call hwsim\.emulate"):
        model(input_ids=token_ids(1, 4))


def test_dropout_of_attention_is_announced() -> None:
    model = emulated_model("gpt2").train()
    with pytest.warns(UserWarning, match="dropout is not applied"):
        model(input_ids=token_ids(1, 4))


# ---- token period


def test_auto_period_is_the_latency_of_one_token_with_a_full_window() -> None:
    model = emulated_model("llama", token_period="auto")
    device, config = small_device(), model.config
    attention = 5e-9 + 15e-9 + 15e-9 + 15e-9 + 1e-9 * (2 - 1) + (4 // 2 - 1) * 35e-9  # two sub-tiles, two queries share
    product = 8 * 6 * (0.00653 * 256 + 0.64) * 1e-9 + 10e-9  # eight conversions of 6 bits, one settling before them
    linears = 4 * product  # q k v together, o, gate and up together, down
    head = config.hidden_size * (config.vocab_size + 1) / 256e9  # and a row of the embedding
    hidden, inner, stored = 32, 48, 2 * 8
    layer = 2 * (2 * hidden + 2 * stored) + 3 * (hidden + stored)  # scalers a x + b, rotary x cos + y sin
    layer += 2 * (hidden + hidden + hidden + inner)  # inputs of four groups rounded to 8 bits
    layer += (hidden + 2 * stored) + hidden + 2 * inner + hidden  # outputs scaled
    layer += 4 * 2 * hidden + 4 * inner + inner + 2 * hidden  # norms, activation, gate, sums of the residual stream
    vector = (2 * layer + 4 * hidden) / 64e9
    expected = 2 * (attention + linears) + head + vector
    assert token_latency_s(model, device) == pytest.approx(expected, rel=1e-9, abs=0.0)
    emulate(model, device)
    periods = {cells.token_period_s for cells in gain_cell_layers(model)}
    assert len(periods) == 1 and periods.pop() == pytest.approx(expected, rel=1e-9, abs=0.0)


def test_device_without_decay_needs_no_period() -> None:
    model = emulated_model("llama", small_device("ideal"), token_period="auto")
    assert {cells.token_period_s for cells in gain_cell_layers(model)} == {None}
