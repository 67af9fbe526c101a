"""Set range scalers and the range of the readout from statistics, for a model that was not trained with them.

Everything goes layer after layer, since a layer that was set changes what the next one sees. Nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from device_models.schema import Readout
from hwsim.functional.attention_tiled import in_columns
from hwsim.functional.cells import CellDeviations, cell_current, to_levels
from hwsim.functional.quantise import read_out
from hwsim.functional.reads import Place
from hwsim.functional.tables import AttentionTables
from hwsim.modules import GainCellAttention, gain_cell_layers

QUERY_SPREAD = 0.25
"""Standard deviation of the queries after scaling, in units of the full pulse; their mean comes to half a pulse."""
STORED_SPREAD = 0.25
"""Standard deviation of stored voltages after scaling, in units of the storage range around its zero level."""
COVERED = 99.9
"""[%] share of values that a converter's range takes without clipping, where its ends are set from percentiles."""
CANDIDATES = 64
"""Ranges of the readout tried by the method ``error``, from the largest charge down to 1/32 of it."""
SWINGS = tuple(2.0 ** (-0.5 * n) for n in range(8))
"""Shares of the storage range tried for keys and values that a softmax follows: fewer levels, but a straighter cell."""
SCALED_QUERIES = ("OPTAttention",)
"""Attention modules that multiply their queries by ``scaling`` themselves."""


Call = tuple[Tensor, Tensor, Tensor, AttentionTables, Place]
"""Arguments of one call of a :class:`GainCellAttention`: query, key, value, geometry, keys of its randomness."""


@torch.no_grad()
def calibrate_range_scalers(model: nn.Module, batches: Sequence[Tensor], *, covered: float = COVERED) -> None:
    """Set the range scalers of an emulated model from what its layers see.

    With ``activation.kind`` hard_sigmoid, query, key and value are set so that the converters are used without much
    clipping: ``gain = spread / std``, and ``offset`` moves the mean to the middle of the range; two standard
    deviations fit. The output scalers stay.

    With softmax all are set, so that a model trained with softmax runs as it is; x is what the model computes, p(x)
    the value below which ``covered`` percent of ``|x|`` lie, h half the storage range, s the swing of a head::

        query = x / p(x)      key, value = v_zero + s h x / p(x)        signed queries are read in two passes
        I(x) = g x + c                                                  least squares over what the cells store
        logit_gain = scaling s_qk / (query gain  g_key)                 c_key reaches all scores of a query alike
        output = (s_av y - c_value) / g_value                           as the weights of the softmax sum to one

    The swing of keys, then that of values, is the one of ``SWINGS`` with the least error of the layer's output beside
    its softmax attention: few levels want the whole range, many its straight middle.

    Approximation: what curvature is left within the swing stays, decay is not made up for, and a soft cap or sinks of
    the model's own attention are not followed.

    Args:
        model: An emulated model.
        batches: Token ids (batch, tokens), without padding.
        covered: [%] share of values inside the ranges; only with softmax.

    Raises:
        ValueError: If the model is not emulated or no batch is given.
    """
    layers = emulated_layers(model, batches)
    owners = {child: parent for parent in model.modules() for child in parent.children()}
    with evaluating(model):
        for layer in layers:
            calls = _calls_of(layer, model, batches)
            if layer.device.activation.kind == "softmax":
                _follow_softmax(layer, calls, _scaling(owners[layer], calls[0][0].shape[-1]), covered)
            else:
                _fill_ranges(layer, _scaler_inputs(calls))


@torch.no_grad()
def calibrate_readout(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    method: Literal["percentile", "error"] = "percentile",
    covered: float = COVERED,
    most: float = math.inf,
) -> None:
    """Set the full scale of each head's readout from the charges on their way to it, before noise.

    ``percentile`` takes in ``covered`` percent of the charges; ``error`` minimises the mean squared error of clipping
    and rounding together, over a grid that the percentile is part of. A model that was trained with a readout that
    saturates wants ``most=1``: what lies beyond is clipped in its own attention function.

    Args:
        model: An emulated model on a device whose ``readout.range`` is calibrated or learned.
        batches: Token ids (batch, tokens), without padding.
        method: Which.
        covered: [%] share of charges inside the range.
        most: [1] largest range, in saturations.

    Raises:
        ValueError: If the model is not emulated, no batch is given, or the device fixes the range.
    """
    layers = emulated_layers(model, batches)
    for layer in layers:
        if layer.full_scale is None or layer.device.readout.range == "fixed":
            raise ValueError(f"{layer.device.name} fixes readout.range: expected 'calibrated' or 'learned'")
    with evaluating(model):
        for layer in layers:
            assert layer.full_scale is not None
            charges = _charges_of(layer, model, batches).clamp(-most, most)
            chosen = _percentile(charges, covered)
            if method == "error":
                shrink = torch.logspace(-5, 0, CANDIDATES, base=2.0, dtype=charges.dtype, device=charges.device)
                tried = torch.cat([chosen[None], shrink[:, None] * charges.abs().amax(1)])
                errors = torch.stack([readout_error(charges, full_scale, layer.device.readout) for full_scale in tried])
                chosen = tried.gather(0, errors.argmin(0)[None])[0]
            layer.full_scale.copy_(_or_one(chosen))


def readout_error(charges: Tensor, full_scale: Tensor, readout: Readout) -> Tensor:
    """Return the mean squared error [1] (heads,) that clipping and rounding add to charges (heads, n)."""
    scale = _or_one(full_scale)[:, None]
    return (read_out(charges / scale, readout) * scale - charges).square().mean(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each part of it back into its own afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def emulated_layers(model: nn.Module, batches: Sequence[Tensor]) -> list[GainCellAttention]:
    """Return the emulated layers of a model, first layer first.

    Raises:
        ValueError: If the model is not emulated or no batch is given.
    """
    layers = gain_cell_layers(model)
    if not layers or not batches:
        raise ValueError("calibration needs an emulated model and at least one batch of token ids")
    return layers


def _calls_of(layer: GainCellAttention, model: nn.Module, batches: Sequence[Tensor]) -> list[Call]:
    """Return the arguments that a layer is called with."""
    calls: list[Call] = []

    def keep(_: nn.Module, inputs: Call) -> None:
        calls.append(inputs)

    hook = layer.register_forward_pre_hook(keep)
    try:
        run(model, batches)
    finally:
        hook.remove()
    return calls


def _scaler_inputs(calls: list[Call]) -> list[Tensor]:
    """Return what query, key and value scalers see, (heads, n) each."""
    arrays = zip(*((query, key, value) for query, key, value, _, _ in calls), strict=True)
    return [torch.cat([x.transpose(0, 1).flatten(1) for x in array], dim=1).double() for array in arrays]


def _charges_of(layer: GainCellAttention, model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return all charges [1] on their way to a layer's readout, (heads, n)."""
    charges: list[Tensor] = []
    layer.watch = charges.append
    try:
        run(model, batches)
    finally:
        layer.watch = None
    return torch.cat(charges, dim=1).double()


def run(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Pass batches of token ids through a model, for what can be seen inside."""
    for batch in batches:
        model(input_ids=batch, use_cache=False)


def _fill_ranges(layer: GainCellAttention, seen: list[Tensor]) -> None:
    storage = layer.device.storage
    width = storage.v_max - storage.v_min
    for values, scaler, spread, middle in (
        (seen[0], layer.query, QUERY_SPREAD, 0.5),
        (seen[1], layer.key, STORED_SPREAD * width, storage.v_zero),
        (seen[2], layer.value, STORED_SPREAD * width, storage.v_zero),
    ):
        gain = spread / values.std(dim=1).clamp(min=1e-9)
        scaler.gain.copy_(gain)
        scaler.offset.copy_(middle - gain * values.mean(dim=1))


def _follow_softmax(layer: GainCellAttention, calls: list[Call], scaling: float, covered: float) -> None:
    seen = _scaler_inputs(calls)
    layer.query.gain.copy_(1.0 / _or_one(_percentile(seen[0], covered)))
    layer.query.offset.zero_()
    wanted = [_softmax_attention(call, scaling) for call in calls]
    one = torch.ones(seen[1].shape[0], dtype=torch.float64, device=seen[1].device)
    swings = [one, one]
    for array in (0, 1):
        errors = []
        for swing in SWINGS:
            swings[array] = one * swing
            _store(layer, seen, swings, scaling, covered)
            off = [(layer(*call) - out).double().square() for call, out in zip(calls, wanted, strict=True)]
            errors.append(sum(x.sum((0, 2, 3)) for x in off).unflatten(0, (len(one), -1)).sum(1))
        swings[array] = one.new_tensor(SWINGS)[torch.stack(errors).argmin(0)]
    _store(layer, seen, swings, scaling, covered)


def _store(layer: GainCellAttention, seen: list[Tensor], swings: list[Tensor], scaling: float, covered: float) -> None:
    """Set the scalers of keys and values to swings of each head, and what undoes them behind the products."""
    device, group = layer.device, layer.heads // len(swings[0])
    storage = device.storage
    half = min(storage.v_max - storage.v_zero, storage.v_zero - storage.v_min)
    lines = []
    for scaler, x, swing in zip((layer.key, layer.value), seen[1:], swings, strict=True):
        scaler.gain.copy_(swing * half / _or_one(_percentile(x, covered)))
        scaler.offset.fill_(storage.v_zero)
        stored = to_levels(scaler.gain.double()[:, None] * x + storage.v_zero, device)
        slope, constant = _line(x, cell_current(stored, device, CellDeviations()))
        lines.append((slope.repeat_interleave(group), constant.repeat_interleave(group)))
    (key_slope, _), (value_slope, value_constant) = lines
    assert layer.logit_gain is not None
    layer.logit_gain.copy_(scaling * device.saturation.qk / (layer.query.gain * key_slope))
    layer.output.gain.copy_(device.saturation.av / value_slope)
    layer.output.offset.copy_(-value_constant / value_slope)


def _softmax_attention(call: Call, scaling: float) -> Tensor:
    """Return what a layer would compute in digital, (batch, heads, queries, head_dim)."""
    query, key, value, tables, _ = call
    layout, group = tables.layout, query.shape[1] // key.shape[1]
    k, v = (in_columns(x, layout).repeat_interleave(group, 1) for x in (key, value))
    scores = (scaling * query @ k.mT).masked_fill(~layout.read[:, None], -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and constant (heads,) of the least-squares line through (heads, n) points."""
    mean_x, mean_y = x.mean(1), y.mean(1)
    dx = x - mean_x[:, None]
    slope = (dx * y).sum(1) / dx.square().sum(1)
    return slope, mean_y - slope * mean_x


def _scaling(attention: nn.Module, head_dim: int) -> float:
    """Return the factor in front of q.k that an attention module of transformers asks for."""
    if type(attention).__name__ in SCALED_QUERIES:
        return 1.0
    own = getattr(attention, "scaling", None)
    return head_dim**-0.5 if own is None else float(own)


def _percentile(x: Tensor, percent: float) -> Tensor:
    """Return the value (heads,) that ``percent`` percent of the magnitudes (heads, n) do not exceed."""
    rank = max(1, math.ceil(percent / 100.0 * x.shape[1]))
    return x.abs().kthvalue(rank, dim=1).values


def _or_one(x: Tensor) -> Tensor:
    """Replace zeros, of a head that is silent, by one."""
    return torch.where(x > 0, x, 1.0)
