"""Events of a forward pass in closed form: the same numbers as counting a run, for any size, in milliseconds."""

from __future__ import annotations

from collections import Counter

import numpy as np

from device_models.costs import HALF_PRECISION
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel
from hwsim.costing import price
from hwsim.events import EventCounts
from hwsim.shapes import Config, LayerShape, ModelShape, model_shape


def analytic_events(
    model: Config | ModelShape, device: DeviceModel, *, tokens: int, batch: int = 1, start: int = 0,
    token_period_s: float | None = None, adapter_rank: int | None = None, head_tokens: int | None = None,
) -> EventCounts:  # fmt: skip
    """Count what an emulated model would do, without running it.

    Args:
        model: Content of a ``config.json``, or a shape.
        device: The device.
        tokens: Tokens of each sequence that are processed.
        batch: Sequences.
        start: Tokens of each sequence that the arrays hold already: ``tokens=1, start=1023`` is one step of decoding.
        token_period_s: [s] time between two tokens, for refresh; required where the device refreshes.
        adapter_rank: Rank of a LoRA adapter beside every linear layer of the decoder; None without.
        head_tokens: Tokens of each sequence that the LM head is asked for; None is all.

    Returns:
        The counts, layer by layer.

    Raises:
        InputError: If the configuration is not known.
        ValueError: If a number is out of range, or a device that refreshes gets no token period.
    """
    if tokens < 1 or batch < 1 or start < 0 or (adapter_rank is not None and adapter_rank < 1):
        raise ValueError("tokens, batch and adapter_rank start at 1, start at 0")
    if head_tokens is not None and not 0 <= head_tokens <= tokens:
        raise ValueError(f"head_tokens is one of 0 to {tokens}, received {head_tokens}")
    if refresh_interval(device) is not None and token_period_s is None:
        raise ValueError(f"{device.name} refreshes: give token_period_s, the time between two tokens in seconds")
    shape = model if isinstance(model, ModelShape) else model_shape(model)
    passed = batch * tokens
    counts = EventCounts(tokens=passed)
    for index, layer in enumerate(shape.layers):
        events = _attention(layer, device, tokens, batch, start, token_period_s)
        _linears(events, layer, device, passed)
        if adapter_rank is not None:
            _adapters(events, layer, adapter_rank, passed)
        events[layer.norm] += passed * layer.norm_values
        events["digital.activation_value"] += passed * layer.activation
        events["digital.gate_value"] += passed * layer.gate
        events["digital.residual_value"] += 2 * passed * shape.hidden
        events["wire.bit"] += 2 * HALF_PRECISION * passed * shape.hidden
        counts.record(index, events)
        _build(counts, index, layer, device, adapter_rank)
    _outside(counts, shape, passed, batch * (tokens if head_tokens is None else head_tokens))
    return counts


def _attention(
    layer: LayerShape, device: DeviceModel, tokens: int, batch: int, start: int, token_period_s: float | None
) -> Counter[str]:
    """Sum over the queries of one layer, as ``hwsim.counting.record_attention`` does."""
    window, slots = device.window.tokens, device.tile.slots
    written = np.arange(start, start + tokens, dtype=np.int64) + 1
    held = np.minimum(written, window)
    pairs = batch * int(np.minimum(held, layer.window or window).sum())
    tiles = batch * int((-(-held // slots)).sum())
    interval, refreshes = refresh_interval(device), 0
    if interval is not None:
        refreshes = batch * int(np.floor((held - 1).astype(float) * (token_period_s or 0.0) / interval).sum())
    heads, kv_heads, dim, passed = layer.heads, layer.kv_heads, layer.head_dim, batch * tokens
    softmax, rows = device.activation.kind == "softmax", -(-dim // device.tile.rows)
    passes = device.reads_per_score
    return Counter(
        {
            "attention.qk_mac": passes * pairs * heads * dim,
            "attention.av_mac": pairs * heads * dim,
            "attention.phi_conversion": passes * pairs * heads,
            "attention.av_conversion": tiles * heads * dim,
            "attention.write_conversion": passed * 2 * kv_heads * dim,
            "attention.refresh_conversion": refreshes * 2 * kv_heads * dim,
            "attention.softmax": pairs * heads if softmax else 0,
            "attention.subtile_pass": tiles * heads * rows,
            "attention.layer_pass": passed,
            "attention.tile_add": tiles - passed,
            "attention.shared_array_pass": passed * (heads // kv_heads - 1),
            "attention.scaler_value": passed * 2 * (heads + kv_heads) * dim,
            "attention.rotary_value": passed * (heads + kv_heads) * layer.rotary_dim,
        }
    )


def _linears(events: Counter[str], layer: LayerShape, device: DeviceModel, passed: int) -> None:
    array = device.linear
    cycles = passed * array.input_cycles
    for group in layer.linears:
        row_tiles = -(-group.inputs // array.rows)
        for outputs in group.outputs:
            events["linear.cell_mac"] += cycles * group.inputs * outputs
            events["linear.adc_conversion"] += cycles * outputs * row_tiles
            events["linear.shift_add"] += cycles * outputs * row_tiles
            events["linear.row_drive"] += cycles * group.inputs * -(-outputs // array.columns)
            events["linear.output_value"] += passed * outputs
        events["linear.layer_pass"] += passed
        events["linear.input_value"] += passed * group.inputs


def _adapters(events: Counter[str], layer: LayerShape, rank: int, passed: int) -> None:
    for group in layer.linears:
        for outputs in group.outputs:
            macs = passed * rank * (group.inputs + outputs)
            events["digital.adapter_mac"] += macs
            events["memory.weight_bit"] += HALF_PRECISION * macs
            events["digital.residual_value"] += passed * outputs


def _build(counts: EventCounts, index: int, layer: LayerShape, device: DeviceModel, rank: int | None) -> None:
    """Note the hardware that the layer takes."""
    rows = -(-layer.head_dim // device.tile.rows)
    counts.subtiles[index] = layer.kv_heads * rows * device.subtiles
    for number, group in enumerate(layer.linears):
        for place, outputs in enumerate(group.outputs):
            tiles = -(-group.inputs // device.linear.rows) * -(-outputs // device.linear.columns)
            counts.arrays[index, number, place] = tiles
            if rank is not None:
                bits = HALF_PRECISION * rank * (group.inputs + outputs)
                counts.weight_bits["adapter", index, number, place] = bits


def _outside(counts: EventCounts, shape: ModelShape, passed: int, asked: int) -> None:
    """Count embeddings, the last norm and the LM head."""
    tables = 2 if shape.positions else 1
    head = asked * shape.hidden * shape.vocabulary
    counts.record(
        None,
        {
            shape.final_norm: passed * shape.hidden,
            "digital.mac": head,
            "memory.weight_bit": HALF_PRECISION * (head + passed * tables * shape.hidden),
        },
    )
    words = HALF_PRECISION * shape.vocabulary * shape.hidden
    counts.weight_bits["words"] = words
    if not shape.tied:
        counts.weight_bits["head"] = words
    if shape.positions:
        counts.weight_bits["positions"] = HALF_PRECISION * shape.positions * shape.hidden


def auto_token_period(model: Config | ModelShape, device: DeviceModel, *, adapter_rank: int | None = None) -> float:
    """Return the model's own latency of one token on the device [s] once its window is full.

    All layers one after another: attention, ternary arrays, digital layers; heads and sub-tiles in parallel. Where the
    device refreshes, the token waits for the refreshes due in this very period.

    Raises:
        InputError: If refreshing takes all the time that there is.
    """
    full = device.window.tokens - 1
    counts = analytic_events(model, device, tokens=1, start=full, token_period_s=0.0, adapter_rank=adapter_rank)
    return price(counts, device).latency_s
