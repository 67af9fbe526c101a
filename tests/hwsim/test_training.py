"""Training an emulated model: checkpointing, low-rank adapters."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from hwsim import BitLinear, count_events, emulate, gain_cell_layers, noise_key, restore
from tests import tolerances
from tests.hwsim.models import (
    PERIOD,
    emulated_model,
    full_device,
    plain_model,
    set_scalers,
    small_device,
    token_ids,
    whole,
)

TOKENS = 20  # the ring of 12 wraps


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_gradients_nor_counts(reentrant: bool) -> None:
    model, ids = emulated_model("llama", full_device()).train(), token_ids(2, TOKENS)
    with count_events() as plain:
        expected = gradients(model, ids)
    assert all(
        expected[f"model.layers.0.self_attn.gain_cell.{part}.gain"].abs().max() > 0
        for part in ("query", "key", "value", "output")
    )
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    with count_events() as checkpointed:
        got = gradients(model, ids)
    assert checkpointed.events == plain.events
    assert checkpointed.tokens == plain.tokens == 2 * TOKENS
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


def own_mask(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(2, 1, -1, -1)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        own_mask(TOKENS),
    ],
    ids=["no-mask", "own-mask"],
)
def test_recomputation_meets_the_noise_of_its_forward_pass(mask: Tensor | None) -> None:
    """The backward pass runs after the block of the noise key has ended, or inside the next one."""
    model, ids = emulated_model("llama", full_device()).train(), token_ids(2, TOKENS)
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        with noise_key(99):
            loss = model(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False).loss
        with noise_key(1):
            loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    plain, recomputed = found
    assert plain.keys() == recomputed.keys() and len(plain) > 20
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    model.zero_grad()
    model(input_ids=ids, labels=ids, attention_mask=mask, use_cache=False).loss.backward()
    other = model.model.layers[0].self_attn.v_proj.weight.grad
    assert not torch.equal(other, plain["model.layers.0.self_attn.v_proj.weight"])  # another key, another gradient


@torch.no_grad()
def test_training_and_evaluation_see_one_die() -> None:
    model, ids = emulated_model("llama", full_device()), token_ids(2, TOKENS)
    evaluated = whole(model.eval(), ids)
    assert torch.equal(whole(model.train(), ids), evaluated)
    assert torch.equal(whole(copy.deepcopy(model), ids), evaluated)


@torch.no_grad()
def test_no_step_of_training_changes_the_die() -> None:
    model, ids = emulated_model("llama", full_device()), token_ids(2, TOKENS)
    before = whole(model, ids)
    with torch.enable_grad():
        gradients(model.train(), ids)
    with noise_key(5):
        other = whole(model.eval(), ids)
    assert (other - before).abs().max() > tolerances.MATTERS
    assert torch.equal(whole(model, ids), before)


def test_lora_around_an_emulated_model() -> None:
    peft = pytest.importorskip("peft")
    model, ids = emulated_model("llama"), token_ids(1, TOKENS)
    with torch.no_grad(), count_events() as bare:
        before = whole(model, ids)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    ).double()
    with torch.no_grad(), count_events() as with_lora:
        assert (whole(wrapped, ids) - before).abs().max() <= tolerances.PATHS
    lora_macs = 2 * TOKENS * (4 * (32 + 32) + 4 * (32 + 16))
    added = {
        "digital.adapter_mac": lora_macs,
        "memory.weight_bit": 16 * lora_macs,
        "digital.residual_value": 2 * TOKENS * (32 + 16),
    }
    assert with_lora.events == bare.events + Counter(added)
    found = gradients(wrapped, ids)
    assert found and all("lora_" in name for name in found)
    assert any(g.abs().max() > 0 for g in found.values())
    emulate(wrapped, small_device("ideal"))
    restore(wrapped)
    assert not gain_cell_layers(wrapped)
    assert sum("lora_" in name for name in wrapped.state_dict()) == 2 * 2 * 2


def test_emulating_a_model_that_already_wears_lora() -> None:
    peft = pytest.importorskip("peft")
    ids = token_ids(1, TOKENS)
    wrapped = (
        peft.get_peft_model(plain_model("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        .double()
        .eval()
    )
    emulate(wrapped, small_device(), token_period=PERIOD)
    set_scalers(wrapped)
    with torch.no_grad():
        assert (whole(wrapped, ids) - whole(emulated_model("llama"), ids)).abs().max() <= tolerances.PATHS
    assert not any(isinstance(m, BitLinear) for n, m in wrapped.named_modules() if "lora_" in n or "lm_head" in n)
