"""Clip rates against the steps of the naive attention."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from device_models.converters import readout_step
from hwsim import gain_cell_layers
from hwsim.clipping import LayerClipping, clip_rates
from hwsim.functional.attention import naive_steps
from hwsim.modules import GainCellAttention
from tests import tolerances
from tests.hwsim.models import emulated_model, plain_model, small_device, token_ids

QUIET = {"variability.phi_offset_sigma": 0.0, "noise.white": 0.0, "noise.flicker": 0.0, "noise.comparator": 0.0}
"""The naive steps show scores before what is added behind them."""


def counted_by_hand(model: Any, sequences: list[Tensor]) -> list[dict[str, float | None]]:
    """Count with the naive attention, over all pairs that are read."""
    found: list[dict[str, list[Tensor]]] = [{} for _ in gain_cell_layers(model)]

    def look(layer: GainCellAttention, inputs: tuple[Any, ...]) -> None:
        q, k, v, _, place = inputs
        q, k, v = layer.query(q), layer.key(k), layer.value(v)
        steps = naive_steps(
            q, k, v, layer.device, token_period_s=layer.token_period_s, die=place.die, read_key=place.keys
        )
        tokens, slots = q.shape[2], layer.device.tile.slots
        read = torch.ones(tokens, tokens).tril().bool()
        scores = steps.scores[:, :, read]
        step = readout_step(layer.device.readout)
        scale = 1.0 if layer.full_scale is None else layer.full_scale.view(1, -1, 1, 1, 1)
        charges = steps.charges / (scale if layer.device.readout.range != "fixed" else 1.0)
        ends = [charges[:, :, tile, t].flatten() for t in range(tokens) for tile in range(t // slots + 1)]
        store = found[gain_cell_layers(model).index(layer)]
        for what, outside in {
            "query": (q < 0) | (q > 1), "key": (k < 0) | (k > 0.9), "value": (v < 0) | (v > 0.9),
            "score_below": scores < 0, "score_above": scores > 1,
            "readout": (torch.cat(ends) / step).clamp(-1 / step, 1 / step).abs().round() >= round(1 / step),
        }.items():  # fmt: skip
            store.setdefault(what, []).append(outside.flatten())

    hooks = [layer.register_forward_pre_hook(look) for layer in gain_cell_layers(model)]
    with torch.no_grad():
        for ids in sequences:
            model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [{what: float(torch.cat(parts).double().mean()) for what, parts in layer.items()} for layer in found]


def shares(rates: list[LayerClipping]) -> list[dict[str, float | None]]:
    return [{key: value for key, value in asdict(layer).items() if key != "layer"} for layer in rates]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"readout.range": "calibrated"},
        {"refresh.kind": "periodic", "refresh.interval": "300 us"},
        {"retention.kind": "none"},
    ],
    ids=["plain", "calibrated", "refreshed", "no decay"],
)
def test_shares_are_those_of_the_naive_attention(architecture: str, settings: dict[str, object]) -> None:
    narrow = {"saturation.qk": "8 uA", "saturation.av": "4 uA"}
    model = emulated_model(architecture, small_device(**QUIET, **narrow, **settings))
    for layer in gain_cell_layers(model):
        for scaler in (layer.query, layer.key, layer.value):
            scaler.gain.data *= 2.0
        if layer.full_scale is not None:
            layer.full_scale.data = torch.linspace(0.3, 0.5, layer.heads, dtype=torch.float64)
    sequences = [token_ids(1, 12), token_ids(1, 7, seed=1), token_ids(1, 1, seed=2)]
    rates = clip_rates(model, sequences)
    assert [rate.layer for rate in rates] == [0, 1]
    for got, expected in zip(shares(rates), counted_by_hand(model, sequences), strict=True):
        assert got == pytest.approx(expected, rel=tolerances.SUM)
    assert all(share is not None and 0 < share < 1 for share in shares(rates)[0].values())


def test_long_sequences_count_some_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of scores of every third query, the last one among them, lie near those of all."""
    model = emulated_model("llama", small_device(**QUIET))
    sequences = [token_ids(1, 12, seed=seed) for seed in range(8)]
    every = clip_rates(model, sequences)
    monkeypatch.setattr("hwsim.clipping.QUERIES", 4)
    some = clip_rates(model, sequences)
    for a, b in zip(every, some, strict=True):
        assert (a.query, a.key, a.value, a.readout) == (b.query, b.key, b.value, b.readout)
        assert a.score_below == pytest.approx(b.score_below, abs=0.1)
        assert a.score_below != b.score_below


def test_softmax_keeps_scores_of_both_signs() -> None:
    model = emulated_model("llama", small_device("sram_dcim_28nm", **{"saturation.qk": "2 uA"}), token_period=None)
    for rate in clip_rates(model, [token_ids(1, 12)]):
        assert rate.score_below is None
        assert 0 < rate.score_above < 1
        assert 0 <= rate.query < 1


def test_noise_of_reads_is_counted() -> None:
    quiet, loud = (
        clip_rates(emulated_model("llama", small_device(**{**QUIET, "noise.comparator": sigma})), [token_ids(1, 12)])
        for sigma in (0.0, 1.0)
    )
    assert loud[0].score_above > quiet[0].score_above


def test_model_is_left_as_it_was() -> None:
    model = emulated_model("llama").train()
    layer = gain_cell_layers(model)[0]
    layer.watch = watch = [].append
    clip_rates(model, [token_ids(1, 5)])
    assert model.training
    assert layer.watch is watch
    assert not layer._forward_pre_hooks
    with pytest.raises(IndexError):
        clip_rates(model, [torch.full((1, 5), 10**6)])
    assert layer.watch is watch
    assert not layer._forward_pre_hooks
    assert model.training


@pytest.mark.parametrize("ids", [token_ids(2, 4), token_ids(1, 13), token_ids(1, 0), token_ids(1, 4)[0]])
def test_sequences_must_fit_the_window(ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected token ids of shape \(1, 1\.\.12\)"):
        clip_rates(emulated_model("llama"), [ids])


def test_there_must_be_something_to_count() -> None:
    with pytest.raises(ValueError, match="an emulated model and at least one sequence"):
        clip_rates(emulated_model("llama"), [])
    with pytest.raises(ValueError, match="an emulated model and at least one sequence"):
        clip_rates(plain_model("llama"), [token_ids(1, 4)])
