"""A language model with every effect on gives the same logits, however it is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from hwsim import gain_cell_layers
from tests import tolerances
from tests.hwsim.models import ARCHITECTURES, emulated_model, full_device, token_ids, whole

TOKENS = 20  # the ring of 12 wraps


# ---- the ways to run; each returns the logits (batch, tokens, vocabulary) of the same sequences


def chunked(model: Any, ids: Tensor, size: int, cache: object) -> Tensor:
    parts = [
        model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split(size, dim=1)
    ]  # fmt: skip
    return torch.cat(parts, dim=1)


def token_by_token(model: Any, ids: Tensor) -> Tensor:
    return chunked(model, ids, 1, hf.DynamicCache(config=model.config))


def chunks_of_seven(model: Any, ids: Tensor) -> Tensor:
    return chunked(model, ids, 7, hf.DynamicCache(config=model.config))


def static_cache(model: Any, ids: Tensor) -> Tensor:
    return chunked(model, ids, 5, hf.StaticCache(config=model.config, max_cache_len=32))


def left_padded(model: Any, ids: Tensor) -> Tensor:
    logits = []
    for row, pad in zip(ids, (3, 9), strict=True):  # beside a longer neighbour, so that geometries differ
        batch = torch.stack([torch.cat([torch.zeros(pad, dtype=torch.long), row]), token_ids(1, pad + len(row), 5)[0]])
        mask = torch.ones_like(batch)
        mask[0, :pad] = 0
        position = (mask.cumsum(1) - 1).clamp(min=0)
        logits.append(
            model(input_ids=batch, attention_mask=mask, position_ids=position, use_cache=False).logits[0, pad:]
        )
    return torch.stack(logits)


def left_padded_token_by_token(model: Any, ids: Tensor) -> Tensor:
    pads, cache = (2, 5), hf.DynamicCache(config=model.config)
    rows = [torch.cat([torch.zeros(p, dtype=torch.long), r, r[: 5 - p]]) for p, r in zip(pads, ids, strict=True)]
    batch = torch.stack(rows)
    mask = torch.ones_like(batch)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    position = (mask.cumsum(1) - 1).clamp(min=0)
    logits = [
        model(
            input_ids=batch[:, a:b], attention_mask=mask[:, :b], position_ids=position[:, a:b], past_key_values=cache
        ).logits
        for a, b in [(0, 8), *((n, n + 1) for n in range(8, batch.shape[1]))]
    ]  # fmt: skip
    together = torch.cat(logits, dim=1)
    return torch.stack([together[row, pad : pad + ids.shape[1]] for row, pad in enumerate(pads)])


def right_padded(model: Any, ids: Tensor) -> Tensor:
    batch = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    batch[1, -4:] = token_ids(1, 4, 3)
    mask = torch.ones_like(batch)
    mask[0, -4:] = 0
    return model(input_ids=batch, attention_mask=mask, use_cache=False).logits[:, : ids.shape[1]]


def own_4d_mask(model: Any, ids: Tensor) -> Tensor:
    tokens = ids.shape[1]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril().expand(len(ids), 1, -1, -1)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


WAYS = [
    token_by_token, chunks_of_seven, static_cache, left_padded, left_padded_token_by_token, right_padded
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_same_logits_however_it_runs(architecture: str, way: Callable[..., Tensor], emulated: Callable) -> None:
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    assert (way(model, ids) - whole(model, ids)).abs().max() <= tolerances.PATHS


LAWS: dict[str, dict[str, object]] = {
    "spread alone": {"refresh.kind": "none"},
    "median": {"refresh.kind": "none", "retention.tau_sigma_ln": 0.0},
    "log": {"retention.kind": "log_self_limited", "retention.v_scale": "60 mV", "retention.t0": "0.5 ms",
            "retention.v_top": "0.9 V", "refresh.kind": "on_droop", "refresh.droop": 0.5},
    "softmax": {"activation.kind": "softmax", "activation.levels": 64, "readout_qk.bits": 7},
    "learned range": {"readout.range": "learned", "readout.circuit": "sar"},
}  # fmt: skip


@pytest.mark.parametrize("law", LAWS)
@torch.no_grad()
def test_same_logits_on_other_devices(law: str) -> None:
    model, ids = emulated_model("mistral", full_device(**LAWS[law])), token_ids(2, TOKENS)
    for cells in gain_cell_layers(model):
        if cells.full_scale is not None:
            cells.full_scale.copy_(torch.linspace(0.5, 1.5, 4))
    expected = whole(model, ids)
    for way in (token_by_token, chunks_of_seven, left_padded):
        assert (way(model, ids) - expected).abs().max() <= tolerances.PATHS


@pytest.mark.parametrize("architecture", ["bitnet", "llama", "gpt2"])
@torch.no_grad()
def test_own_4d_mask_without_padding(architecture: str, emulated: Callable) -> None:
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    assert (own_4d_mask(model, ids) - whole(model, ids)).abs().max() <= tolerances.PATHS


# ---- generation


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
@torch.no_grad()
def test_generate_is_greedy_with_full_recomputation(architecture: str, emulated: Callable) -> None:
    """Of 24 prompts: a model whose embedding is its LM head repeats its last token after most of them."""
    model, ids = emulated(architecture), token_ids(24, 9, 1)
    generated = model.generate(ids, max_new_tokens=10, do_sample=False, attention_mask=torch.ones_like(ids))
    for _ in range(10):
        ids = torch.cat([ids, whole(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert generated.tolist() == ids.tolist()
    assert sum(len(set(row[9:])) > 1 for row in generated.tolist()) >= 6
    assert max(len(set(row[9:])) for row in generated.tolist()) > 2


@torch.no_grad()
def test_generate_of_a_left_padded_batch_is_that_of_each_row(emulated: Callable) -> None:
    model, long, short = emulated("llama"), token_ids(1, 11, 1), token_ids(1, 5, 2)
    alone = [
        model.generate(x, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(x)) for x in (long, short)
    ]
    batch = torch.cat([long, torch.nn.functional.pad(short, (6, 0))])
    mask = torch.ones_like(batch)
    mask[1, :6] = 0
    together = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert together[0].tolist() == alone[0][0].tolist()
    assert together[1, 6:].tolist() == alone[1][0].tolist()
