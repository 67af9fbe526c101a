"""How much charge a model's own queries and keys draw, against the stimulus behind the published prices.

``price`` takes the energy of an array as a fixed part and one that follows the charge drawn from the supply:
``E = (1 - s) p + V sum(pulse max(I, 0))``. The published numbers fit uniform random inputs; real texts differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from device_models.costs import Activity
from device_models.schema import DeviceModel
from hwsim.clipping import check_sequences, read_currents, sampled_queries
from hwsim.functional.reads import Place, input_pulses, scores_to_pulses
from hwsim.functional.tables import AttentionTables
from hwsim.modules import GainCellAttention, gain_cell_layers


def relative_activity(device: DeviceModel, qk_current: float, av_current: float) -> Activity:
    """Return activities from mean drawn currents.

    ``activity = V t mean(pulse max(I, 0)) / (share price)``: 1 is the charge that the share of the price stands for.

    Args:
        device: The device.
        qk_current: [A] mean over cells read of pulse (0 to 1) times positive cell current, first array.
        av_current: [A] the same of the second array.

    Returns:
        The activities; 1 for an array whose price follows no charge.
    """
    cost, supply = device.cost, device.wire.supply
    known_qk, known_av = cost.qk_activity_share * cost.qk_mac, cost.av_activity_share * cost.av_mac
    return Activity(
        supply * cost.time_qk * qk_current / known_qk if known_qk else 1.0,
        supply * cost.time_av * av_current / known_av if known_av else 1.0,
    )


@torch.no_grad()
def measure_activity(model: nn.Module, sequences: Sequence[Tensor]) -> Activity:
    """Run sequences through an emulated model and measure the charge that its arrays draw.

    At most 32 queries of each sequence are looked at, evenly spaced, all their keys and values exactly, with decay,
    mismatch and noise of the model's chip.

    Args:
        model: An emulated model.
        sequences: Token ids (1, tokens) each, without padding; no longer than the window, so that no ring wraps.

    Returns:
        Activity over all layers, heads, sequences and cells read; 1 where the device's price follows no charge.

    Raises:
        ValueError: If the model is not emulated, or a sequence is a batch, empty or longer than the window.
        InputError: If tokens are refreshed more often than can be followed.
    """
    layers = gain_cell_layers(model)
    check_sequences("activity needs", layers, sequences)
    device = layers[0].device
    if not device.cost.qk_activity_share and not device.cost.av_activity_share:
        return Activity()
    sums = torch.zeros(3, dtype=torch.float64)
    was_training = model.training
    model.eval()
    with ExitStack() as hooks:
        hooks.callback(model.train, was_training)
        for layer in layers:
            hook = layer.register_forward_pre_hook(partial(_watch, sums))
            hooks.callback(hook.remove)
        for ids in sequences:
            model(input_ids=ids, use_cache=False)
    qk, av, cells = sums.tolist()
    return relative_activity(device, qk / (device.reads_per_score * cells), av / cells)


def _watch(sums: Tensor, layer: GainCellAttention, given: tuple[Any, ...]) -> None:
    """Add what one forward pass of a layer draws: first array, second array, cells read."""
    query, key, value, tables, place = given
    sums += _drawn(layer, layer.query(query), layer.key(key), layer.value(value), tables, place)


def _drawn(
    layer: GainCellAttention, query: Tensor, key: Tensor, value: Tensor, tables: AttentionTables, place: Place
) -> Tensor:
    device, tokens, kv_heads = layer.device, key.shape[2], key.shape[1]
    at, slots = sampled_queries(tokens, query.device), torch.arange(tokens, device=query.device)
    read = (at[:, None] >= slots).to(query.dtype)
    group = query.shape[1] // kv_heads
    keys = read_currents(key, "key", device, tables, place, at).repeat_interleave(group, 1)
    values = read_currents(value, "value", device, tables, place, at).repeat_interleave(group, 1)
    signs = (1.0, -1.0) if device.reads_per_score == 2 else (1.0,)
    qk = av = torch.zeros((), dtype=torch.float64)
    for sign in signs:
        asked = (sign * query[:, :, at]).clamp(min=0.0) if len(signs) > 1 else query[:, :, at]
        pulses = input_pulses(asked, device, place, at[None], kv_heads)
        qk = qk + torch.einsum("hqd,qhsd,qs->", pulses[0], keys.clamp(min=0.0), read).double().cpu()
        scores = torch.einsum("hqd,qhsd->hqs", pulses[0], keys)[None] / device.saturation.qk
        if device.activation.kind == "hard_sigmoid":
            phi = scores_to_pulses(scores, pulses, read[None], device, place, at[None], slots, kv_heads)
        else:  # a softmax spreads one full pulse over the tokens that it reads
            phi = (read / read.sum(-1, keepdim=True)).expand_as(scores) / len(signs)
        av = av + torch.einsum("hqs,qhsd,qs->", phi[0], values.clamp(min=0.0), read).double().cpu()
    cells = read.sum().double().cpu() * query.shape[1] * query.shape[3]
    return torch.stack([qk, av, cells])
