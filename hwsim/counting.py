"""Count the events of forward passes: what was written, multiplied, converted, controlled and moved.

``with count_events() as counts:`` collects from every emulated model that runs inside. Padding is never counted,
recomputation under activation checkpointing is not counted again. Counts are whole numbers; prices come later.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device_models.costs import HALF_PRECISION
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel
from hwsim.events import EventCounts

if TYPE_CHECKING:
    from hwsim.functional.layout import SlotLayout
    from hwsim.linear import BitLinear


@dataclass
class _Collector:
    """Counts of one block, with what it must remember of the pass that runs.

    Attributes:
        valid: (batch, tokens) which inputs are tokens, and how many they are.
        first_layer: The layer that counts tokens.
        layer: The decoder layer that runs now; None outside of them.
        attended: Whether its attention was counted.
        last_input: What the latest ternary layer took: layers fed by the same tensor run at the same time.
        looked_up: Bits of a row of each embedding table asked since the last pass.
        rows: What :meth:`values` found for each shape of the pass.
        each: Events of one row of each module: what a module does for a token does not change within a block.
        geometry: Counts of the layout that the layers of a pass share.
        watched: Modules whose parts have hooks by now.
        hooks: Of them, removed at the end of the block.
    """

    counts: EventCounts
    valid: Tensor | None = None
    tokens: int = 0
    first_layer: int | None = None
    layer: int | None = None
    attended: bool = False
    last_input: weakref.ref[Tensor] | None = None
    looked_up: dict[int, int] = field(default_factory=dict)
    rows: dict[torch.Size, int] = field(default_factory=dict)
    each: dict[Hashable, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    geometry: tuple[weakref.ref[SlotLayout], int, _Geometry] | None = None
    watched: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet)
    hooks: list[RemovableHandle] = field(default_factory=list)

    def values(self, shape: torch.Size) -> int:
        """Return how many rows of a tensor (..., width) belong to tokens rather than padding."""
        found = self.rows.get(shape)
        if found is None:
            found = self.rows[shape] = self._values(shape)
        return found

    def _values(self, shape: torch.Size) -> int:
        leading = tuple(shape[:-1])
        if self.valid is not None:
            batch = tuple(self.valid.shape)
            if leading[:2] == batch:  # (batch, tokens) or, for norms of heads, (batch, tokens, heads)
                return self.tokens * math.prod(leading[2:])
            if len(leading) == 3 and leading[::2] == batch:  # norms of heads behind a transpose, (batch, heads, tokens)
                return self.tokens * leading[1]
            if leading == (self.valid.numel(),):  # OPT flattens batch and tokens
                return self.tokens
        return math.prod(leading)

    def record(self, key: Hashable, rows: int, each: Callable[[], dict[str, int]]) -> None:
        """Add events of the layer that runs now: so many times those of one row, which are made once for each key."""
        found = self.each.get(key)
        if found is None:
            found = self.each[key] = tuple((event, number) for event, number in each().items() if number)
        if rows:
            counter = self.counts.by_layer.setdefault(self.layer, Counter())
            for event, number in found:
                counter[event] += rows * number


_ACTIVE: ContextVar[_Collector | None] = ContextVar("hwsim_event_counts", default=None)


@contextmanager
def count_events() -> Iterator[EventCounts]:
    """Collect the events of all forward passes inside the block; blocks may nest, the innermost counts."""
    collector = _Collector(EventCounts())
    token = _ACTIVE.set(collector)
    try:
        yield collector.counts
    finally:
        for hook in collector.hooks:
            hook.remove()
        _ACTIVE.reset(token)


def _collector() -> _Collector | None:
    """Return what collects now; None outside a block and while a backward pass recomputes."""
    collector = _ACTIVE.get()
    return None if collector is None or torch._C._current_graph_task_id() != -1 else collector


def record_tokens(valid: Tensor) -> None:
    """Tell the counter, before the layers of a forward pass run, which of its (batch, tokens) inputs are real."""
    collector = _collector()
    if collector is not None:
        collector.valid, collector.tokens, collector.geometry = valid, int(valid.sum()), None
        collector.rows.clear()


# ---- attention


@dataclass(frozen=True)
class _Geometry:
    """Sums over the real queries of one forward pass: cells' tokens read, sub-tiles that hold tokens, refreshes."""

    tokens: int
    pairs: int
    tiles: int
    refreshes: int


def _geometry(
    collector: _Collector, layout: SlotLayout, batch: int, device: DeviceModel, token_period_s: float | None
) -> _Geometry:
    """Sum over the queries of a layout, once for all layers that share it."""
    known = collector.geometry
    if known is not None and known[0]() is layout and known[1] == batch:
        return known[2]
    own = layout.query_index.expand(batch, -1)
    real = own >= 0
    if collector.valid is not None and collector.valid.shape == real.shape:
        real = real & collector.valid
    held = (own + 1).clamp(max=layout.window)
    interval, refreshes = refresh_interval(device), 0
    if interval is not None:
        # A token is refreshed when its age passes a multiple of the interval: together, the tokens held at a query
        # pass as many as the oldest has behind it
        seconds = (held - 1).clamp(min=0).to(torch.float64) * (token_period_s or 0.0)
        refreshes = int(((seconds / interval).floor().long() * real).sum())
    found = _Geometry(
        int(real.sum()),
        int((layout.tokens_read() * real).sum()),
        int(((-(-held // layout.slots)) * real).sum()),
        refreshes,
    )
    collector.geometry = (weakref.ref(layout), batch, found)
    return found


def record_attention(
    layer: int, layout: SlotLayout, heads: int, kv_heads: int, head_dim: int, batch: int, device: DeviceModel, *,
    token_period_s: float | None = None, rotary_dim: int = 0,
) -> None:  # fmt: skip
    """Add the events of one attention layer in one forward pass.

    Args:
        layer: Index of the layer in its model.
        layout: Geometry: which cells each query reads.
        heads: Query heads.
        kv_heads: Heads whose keys and values are stored.
        head_dim: Size of one head.
        batch: Sequences of the forward pass.
        device: The device, for its sub-tiles, its refresh, and whether scores are normalised in digital.
        token_period_s: [s] time between two tokens, for refresh.
        rotary_dim: Dimensions of a head that a rotary embedding turned.
    """
    collector = _collector()
    if collector is None:
        return
    sums = _geometry(collector, layout, batch, device, token_period_s)
    rows, softmax = -(-head_dim // layout.rows), device.activation.kind == "softmax"
    passes = device.reads_per_score
    events = {
        "attention.qk_mac": passes * sums.pairs * heads * head_dim,
        "attention.av_mac": sums.pairs * heads * head_dim,
        "attention.phi_conversion": passes * sums.pairs * heads,
        "attention.av_conversion": sums.tiles * heads * head_dim,
        "attention.write_conversion": sums.tokens * 2 * kv_heads * head_dim,
        "attention.refresh_conversion": sums.refreshes * 2 * kv_heads * head_dim,
        "attention.softmax": sums.pairs * heads if softmax else 0,
        "attention.subtile_pass": sums.tiles * heads * rows,
        "attention.layer_pass": sums.tokens,
        "attention.tile_add": sums.tiles - sums.tokens,
        "attention.shared_array_pass": sums.tokens * (heads // kv_heads - 1),
        "attention.scaler_value": sums.tokens * 2 * (heads + kv_heads) * head_dim,
        "attention.rotary_value": sums.tokens * (heads + kv_heads) * rotary_dim,
    }
    counts = collector.counts
    counts.record(layer, events)
    counts.subtiles[layer] = kv_heads * rows * -(-layout.window // layout.slots)
    collector.attended = True
    if collector.first_layer is None:
        collector.first_layer = layer
    if layer == collector.first_layer:
        counts.tokens += sums.tokens


# ---- ternary layers


def record_linear(layer: BitLinear, x: Tensor) -> None:
    """Add the events of one ternary layer on arrays; layers fed by the same tensor run at the same time.

    ``conversions = outputs x row tiles x input bits``, ``drives = inputs x column tiles x input bits``.
    """
    collector = _collector()
    if collector is None or layer.array is None:
        return
    previous = collector.last_input() if collector.last_input is not None else None
    first = previous is not x
    collector.record((id(layer), first), collector.values(x.shape), lambda: _products(collector, layer, first))
    collector.last_input = weakref.ref(x)


def _products(collector: _Collector, layer: BitLinear, first: bool) -> dict[str, int]:
    """Return the events of one token in a ternary layer, and note the arrays that it takes."""
    array, inputs, outputs = layer.array, layer.in_features, layer.out_features
    assert array is not None
    row_tiles, column_tiles = -(-inputs // array.rows), -(-outputs // array.columns)
    collector.counts.arrays[id(layer)] = row_tiles * column_tiles
    return {
        "linear.cell_mac": array.input_cycles * inputs * outputs,
        "linear.adc_conversion": array.input_cycles * outputs * row_tiles,
        "linear.shift_add": array.input_cycles * outputs * row_tiles,
        "linear.row_drive": array.input_cycles * inputs * column_tiles,
        "linear.layer_pass": int(first),
        "linear.input_value": first * inputs,
        "linear.output_value": outputs,
    }


# ---- modules beside the arrays, met by hooks

Exit = Callable[[_Collector, Any, Any], None]


def decoders(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold a model's decoder layers, and with them embeddings and the last norm."""
    return [
        module
        for module in model.modules()
        if any(
            isinstance(part, nn.ModuleList) and len(part) and _is_decoder_layer(part[0]) for part in module.children()
        )
    ]


def watch(module: nn.Module, _: tuple[Any, ...]) -> None:
    """Have the parts of a module counted, for the rest of the block; a forward pre-hook of emulated models.

    Only parts that do something countable get hooks, when their model first runs in a block: a hook on every module
    of a model would cost more than counting may.
    """
    collector = _collector()
    if collector is None or module in collector.watched:
        return
    collector.watched.add(module)
    _watch(collector, module)


def _watch(collector: _Collector, module: nn.Module) -> None:
    """Put hooks on a module and what lies below it; an adapter's parts are counted with the layer that they adapt."""
    leave = next((leave for applies, leave in _KINDS if applies(module)), None)
    if leave is not None:

        def left(part: nn.Module, _: tuple[Any, ...], output: Any) -> None:
            if _collector() is collector:  # not an outer block's, another thread's, or a recomputation
                leave(collector, part, output)

        collector.hooks.append(module.register_forward_hook(left))
    if _is_decoder_layer(module):

        def entered(part: nn.Module, _: tuple[Any, ...]) -> None:
            if _collector() is collector:
                _enter_layer(collector, part)

        collector.hooks.append(module.register_forward_pre_hook(entered))
    for name, part in module.named_children():
        if not (_has_adapter(module) and name.startswith("lora_")):
            _watch(collector, part)


def _is_decoder_layer(module: nn.Module) -> bool:
    return any(type(part).__name__.endswith("Attention") and hasattr(part, "layer_idx") for part in module.children())


def _has_adapter(module: nn.Module) -> bool:
    return isinstance(getattr(module, "lora_A", None), nn.ModuleDict)


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    return home in ("transformers.activations", "torch.nn.modules.activation") and not list(module.children())


def _enter_layer(collector: _Collector, layer: Any) -> None:
    attention = next(part for part in layer.children() if type(part).__name__.endswith("Attention"))
    collector.layer, collector.attended = attention.layer_idx, False


def _leave_layer(collector: _Collector, _: Any, output: Any) -> None:
    """Count two sums and two hops of the residual stream, and the embeddings behind the first layer."""
    hidden = output[0] if isinstance(output, tuple) else output
    width, tokens = hidden.shape[-1], collector.values(hidden.shape)
    collector.record(
        ("residual", width),
        tokens,
        lambda: {"digital.residual_value": 2 * width, "wire.bit": 2 * HALF_PRECISION * width},
    )
    if not collector.attended:
        warnings.warn("attention that is not emulated is not counted", stacklevel=2)
        if collector.first_layer is None:
            collector.first_layer = collector.layer
        if collector.layer == collector.first_layer:
            collector.counts.tokens += tokens
    if collector.layer == collector.first_layer:
        collector.counts.record(None, {"memory.weight_bit": tokens * sum(collector.looked_up.values())})
        collector.looked_up.clear()
    collector.layer = None


def _leave_adapter(collector: _Collector, layer: Any, output: Any) -> None:
    """Count the two factors of each adapter that acts, and its sum with the layer's output."""
    acting = () if layer.disable_adapters else tuple(layer.active_adapters)
    collector.record(
        (id(layer), *acting),
        collector.values(output.shape),
        lambda: _factors(collector, layer, acting, output.shape[-1]),
    )


def _factors(collector: _Collector, layer: Any, acting: tuple[str, ...], width: int) -> dict[str, int]:
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in acting if name in layer.lora_A]
    for weight in itertools.chain(*pairs):
        _keep(collector, weight)
    macs = sum(weight.numel() for pair in pairs for weight in pair)
    return {
        "digital.adapter_mac": macs,
        "memory.weight_bit": macs * HALF_PRECISION,
        "digital.residual_value": len(pairs) * width,
    }


def _leave_linear(collector: _Collector, layer: Any, output: Any) -> None:
    """Count linear layers that run beside the arrays: LM head, layers that were not emulated."""

    def each() -> dict[str, int]:
        _keep(collector, layer.weight)
        macs = layer.in_features * layer.out_features
        return {"digital.mac": macs, "memory.weight_bit": macs * HALF_PRECISION}

    collector.record(id(layer), collector.values(output.shape), each)


def _leave_embedding(collector: _Collector, table: Any, _: Any) -> None:
    collector.looked_up[id(table.weight)] = table.embedding_dim * HALF_PRECISION
    _keep(collector, table.weight)


def _leave_gated(collector: _Collector, block: Any, output: Any) -> None:
    def each() -> dict[str, int]:
        joined = getattr(block, "gate_up_proj", None)
        return {"digital.gate_value": block.up_proj.out_features if joined is None else joined.out_features // 2}

    collector.record(id(block), collector.values(output.shape), each)


def _keep(collector: _Collector, weight: Tensor) -> None:
    """Note that a weight matrix takes memory; tied ones take it once."""
    collector.counts.weight_bits[id(weight)] = weight.numel() * HALF_PRECISION


def _per_value(event: str) -> Exit:
    def leave(collector: _Collector, _: Any, output: Any) -> None:
        width = output.shape[-1]
        collector.record((event, width), collector.values(output.shape), lambda: {event: width})

    return leave


_KINDS: tuple[tuple[Callable[[Any], bool], Exit], ...] = (
    (_is_decoder_layer, _leave_layer),
    (_has_adapter, _leave_adapter),
    (lambda m: isinstance(m, nn.Linear) and getattr(m, "array", None) is None, _leave_linear),
    (lambda m: isinstance(m, nn.Embedding), _leave_embedding),
    (lambda m: isinstance(m, nn.LayerNorm), _per_value("digital.layer_norm_value")),
    (lambda m: type(m).__name__.endswith("Norm"), _per_value("digital.rms_norm_value")),
    (_is_activation, _per_value("digital.activation_value")),
    (lambda m: hasattr(m, "gate_up_proj") or (hasattr(m, "gate_proj") and hasattr(m, "up_proj")), _leave_gated),
)
"""What is counted behind a module, by the first test that it passes."""
