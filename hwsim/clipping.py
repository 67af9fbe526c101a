"""How often a model's values leave the ranges of its converters, by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from device_models.converters import highest_code, readout_step
from device_models.schema import DeviceModel
from hwsim.die import Array
from hwsim.functional.cells import cell_current, cell_deviations
from hwsim.functional.reads import Place, input_pulses, noisy_scores
from hwsim.functional.tables import AttentionTables
from hwsim.modules import GainCellAttention, gain_cell_layers
from hwsim.snr import gate_voltage

QUERIES = 32
"""Queries of a sequence whose scores are counted, evenly spaced, the last one among them."""


@dataclass(frozen=True)
class LayerClipping:
    """Shares [1] of the values of one layer that lie outside of their range.

    Attributes:
        layer: Which layer.
        query: Queries beyond the full pulse or below none; of magnitudes where both signs are read.
        key: Keys outside of the storage range.
        value: Values outside of the storage range.
        score_below: Scores below 0, which the hard sigmoid switches off; None with a softmax, which keeps them.
        score_above: Scores above the saturation; with a softmax beyond the range of their converter.
        readout: Sub-tiles whose charge gives the lowest or the highest code.
    """

    layer: int
    query: float
    key: float
    value: float
    score_below: float | None
    score_above: float
    readout: float


Count = Callable[[str, Tensor], None]
"""Takes the name of a range, and which values lie outside of it."""


@torch.no_grad()
def clip_rates(model: nn.Module, sequences: Sequence[Tensor]) -> list[LayerClipping]:
    """Run sequences through an emulated model and count what its converters clip.

    Args:
        model: An emulated model.
        sequences: Token ids (1, tokens) each, without padding; no longer than the window, so that no ring wraps.

    Returns:
        One entry for each layer, over all sequences, heads and tokens.

    Raises:
        ValueError: If the model is not emulated, or a sequence is a batch, empty or longer than the window.
    """
    layers = gain_cell_layers(model)
    check_sequences("clip rates need", layers, sequences)
    outside: list[Counter[str]] = [Counter() for _ in layers]
    among: list[Counter[str]] = [Counter() for _ in layers]

    def count(index: int, what: str, which: Tensor) -> None:
        outside[index][what] += int(which.sum())
        among[index][what] += which.numel()

    was_training = model.training
    model.eval()
    with ExitStack() as watches:
        watches.callback(model.train, was_training)
        for index, layer in enumerate(layers):
            watches.enter_context(_watched(layer, partial(count, index)))
        for ids in sequences:
            model(input_ids=ids, use_cache=False)
    return [_shares(index, found, among[index]) for index, found in enumerate(outside)]


def check_sequences(what: str, layers: Sequence[GainCellAttention], sequences: Sequence[Tensor]) -> None:
    """Check what measurements on sequences ask for; raises ValueError, see :func:`clip_rates`."""
    if not layers or not sequences:
        raise ValueError(f"{what} an emulated model and at least one sequence of token ids")
    window = min(layer.device.window.tokens for layer in layers)
    for ids in sequences:
        if ids.dim() != 2 or ids.shape[0] != 1 or not 1 <= ids.shape[1] <= window:
            raise ValueError(f"expected token ids of shape (1, 1..{window}), received {tuple(ids.shape)}")


def _shares(layer: int, outside: Counter[str], among: Counter[str]) -> LayerClipping:
    share = {what: outside[what] / total for what, total in among.items()}
    return LayerClipping(
        layer, share["query"], share["key"], share["value"], share.get("score_below"), share["score_above"],
        share["readout"],
    )  # fmt: skip


@contextmanager
def _watched(layer: GainCellAttention, count: Count) -> Iterator[None]:
    """Count what each forward pass of a layer clips."""

    def inputs(_: nn.Module, given: tuple[Any, ...]) -> None:
        query, key, value, tables, place = given
        _count_inputs(layer, layer.query(query), layer.key(key), layer.value(value), count)
        _count_scores(layer, layer.query(query), layer.key(key), tables, place, count)

    former, hook = layer.watch, layer.register_forward_pre_hook(inputs)
    layer.watch = lambda charge: count("readout", charge.abs() >= _last_code(layer, charge))
    try:
        yield
    finally:
        layer.watch = former
        hook.remove()


def _count_inputs(layer: GainCellAttention, query: Tensor, key: Tensor, value: Tensor, count: Count) -> None:
    storage, signed = layer.device.storage, layer.device.activation.kind == "softmax"
    count("query", (query.abs() > 1.0) if signed else (query < 0.0) | (query > 1.0))
    for what, x in (("key", key), ("value", value)):
        count(what, (x < storage.v_min) | (x > storage.v_max))


def sampled_queries(tokens: int, where: torch.device) -> Tensor:
    """Return at most ``QUERIES`` of a sequence's queries, evenly spaced, the last one first."""
    return torch.arange(tokens - 1, -1, -max(1, tokens // QUERIES), device=where)[:QUERIES]


def _count_scores(
    layer: GainCellAttention, query: Tensor, key: Tensor, tables: AttentionTables, place: Place, count: Count
) -> None:
    """Compute the first product of some queries as it reaches the charge-to-pulse stage."""
    device, tokens = layer.device, key.shape[2]
    at = sampled_queries(tokens, query.device)
    scores = partial(_scores, key=key, layer=layer, tables=tables, place=place, at=at)
    read = (at[:, None] >= torch.arange(tokens, device=at.device)).expand(query.shape[1], -1, -1)
    if device.activation.kind == "softmax":
        for sign in (1.0, -1.0):  # read one after the other
            count("score_above", scores((sign * query).clamp(min=0.0)).abs()[read] > 1.0)
        return
    found = scores(query)[read]
    count("score_below", found < 0.0)
    count("score_above", found > 1.0)


def _scores(
    query: Tensor, *, key: Tensor, layer: GainCellAttention, tables: AttentionTables, place: Place, at: Tensor
) -> Tensor:
    """Return scores over the saturation, (heads, queries, tokens)."""
    device, kv_heads, slots = layer.device, key.shape[1], torch.arange(key.shape[2], device=key.device)
    pulses = input_pulses(query[:, :, at], device, place, at[None], kv_heads)
    current = read_currents(key, "key", device, tables, place, at).repeat_interleave(query.shape[1] // kv_heads, 1)
    product = torch.einsum("hqd,qhsd->hqs", pulses[0], current) / device.saturation.qk
    return noisy_scores(product[None], pulses, device, place, at[None], slots, kv_heads)[0]


def read_currents(
    x: Tensor, array: Array, device: DeviceModel, tables: AttentionTables, place: Place, at: Tensor
) -> Tensor:
    """Return the currents [A] of the cells of one sequence as the queries ``at`` meet them.

    Args:
        x: (1, kv_heads, tokens, head_dim) voltages to store, before their converter; no more tokens than the window.
        array: Which array they lie in.
        device: The device.
        tables: Of the forward pass, for the token period.
        place: Chip and noise.
        at: (queries,) tokens that read.

    Returns:
        (queries, kv_heads, tokens, head_dim); tokens after the query count as just written.
    """
    slots = torch.arange(x.shape[2], device=x.device)
    cells = cell_deviations(place.die, array, device, x.shape[1], slots, x.shape[3], x.dtype)
    ages = (at[:, None] - slots).clamp(min=0)[:, None, :, None]  # queries take the place of sequences
    gate = gate_voltage(x, ages.double() * tables.period, device, cells, place, array, slots[None])
    return cell_current(gate, device, cells)


def _last_code(layer: GainCellAttention, charge: Tensor) -> Tensor:
    """Return the charge (heads, 1) over the saturation from which on a readout shows its last code."""
    readout = layer.device.readout
    step = readout_step(readout)
    last = 1.0 if step is None else (highest_code(readout) - 0.5) * step
    if layer.full_scale is None or readout.range == "fixed":
        return charge.new_full((1, 1), last)
    return last * layer.full_scale[:, None].to(charge.dtype)
