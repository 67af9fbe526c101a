"""Count the events of forward passes: what was written, multiplied, converted and controlled.

``with count_events() as counts:`` collects from every emulated model that runs inside. Padding is never counted,
recomputation under activation checkpointing is not counted again. Counts are whole numbers; prices come later.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hwsim.functional.layout import SlotLayout
    from hwsim.modules import BitLinear

EVENTS = {
    "attention.qk_mac": "cells of the first array read by a query",
    "attention.av_mac": "cells of the second array read by a query",
    "attention.phi_conversion": "scores turned into pulses",
    "attention.av_conversion": "outputs of sub-tiles read out",
    "attention.write_conversion": "values converted and written to cells",
    "attention.refresh_conversion": "values read, rounded and written back",
    "attention.softmax": "scores normalised in digital",
    "attention.subtile_pass": "sub-tiles with tokens, per head and token",
    "attention.layer_pass": "tokens through an attention layer (time)",
    "attention.tile_add": "additions of sub-tile results one after another (time)",
    "attention.shared_array_pass": "further queries that share a key/value array (time)",
    "linear.cell_mac": "cells of ternary arrays read, per input bit",
    "linear.adc_conversion": "column conversions of ternary arrays, per input bit",
    "linear.shift_add": "shift-and-adds behind those conversions",
    "linear.row_drive": "rows of ternary arrays driven, per input bit",
    "linear.layer_pass": "matrix-vector products on ternary arrays one after another (time)",
    "digital.mac": "multiply-accumulates of adapter, LM head and other digital layers",
}
"""Every kind of event, with what one of it is."""


@dataclass
class EventCounts:
    """Counts of one ``with`` block.

    Attributes:
        events: Number of events by kind.
        tokens: Tokens that went through the model (through its first attention layer), padding excluded.
        subtiles: Sub-tiles built into the device for the models seen, by attention layer (heads x tiles).
    """

    events: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    subtiles: dict[int, int] = field(default_factory=dict)
    _valid: Tensor | None = field(default=None, repr=False)
    _last_input: weakref.ref[Tensor] | None = field(default=None, repr=False)
    _first_layer: int | None = field(default=None, repr=False)

    def __getitem__(self, event: str) -> int:
        """Return the count of one kind of event."""
        if event not in EVENTS:
            raise KeyError(f"unknown event {event!r}; known: {', '.join(EVENTS)}")
        return self.events[event]

    def add(self, other: EventCounts) -> None:
        """Add the counts of another block, for example of another client."""
        self.events.update(other.events)
        self.tokens += other.tokens
        self.subtiles.update(other.subtiles)


_ACTIVE: ContextVar[EventCounts | None] = ContextVar("hwsim_event_counts", default=None)


@contextmanager
def count_events() -> Iterator[EventCounts]:
    """Collect the events of all forward passes inside the block; blocks may nest, the innermost counts."""
    counts = EventCounts()
    token = _ACTIVE.set(counts)

    def count_digital(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if _ACTIVE.get() is counts:  # not in the hook of an outer block or of another thread
            _count_digital(module, inputs, output)

    hook = nn.modules.module.register_module_forward_hook(count_digital)
    try:
        yield counts
    finally:
        hook.remove()
        _ACTIVE.reset(token)


def active_counts() -> EventCounts | None:
    """Return the counts that collect now; None outside a block and while a backward pass recomputes."""
    counts = _ACTIVE.get()
    if counts is None or torch._C._current_graph_task_id() != -1:
        return None
    return counts


def record_tokens(valid: Tensor) -> None:
    """Tell the counter, before the layers of a forward pass run, which of its (batch, tokens) inputs are real."""
    counts = active_counts()
    if counts is not None:
        counts._valid = valid


def record_attention(
    layer: int, layout: SlotLayout, heads: int, kv_heads: int, head_dim: int, batch: int, *,
    refreshes: Tensor | None = None, softmax: bool = False,
) -> None:  # fmt: skip
    """Add the events of one attention layer in one forward pass.

    Args:
        layer: Index of the layer in its model.
        layout: Geometry: which cells each query reads.
        heads: Query heads.
        kv_heads: Heads whose keys and values are stored.
        head_dim: Size of one head.
        batch: Sequences of the forward pass.
        refreshes: (ages,) how often a slot is refreshed on its way to each age, from the age before.
        softmax: Whether scores are normalised in digital; positive and negative queries are then read apart.
    """
    counts = active_counts()
    if counts is None:
        return
    own = layout.query_index.expand(batch, -1)
    real = own >= 0
    if counts._valid is not None and counts._valid.shape == real.shape:
        real = real & counts._valid
    tokens = int(real.sum())
    pairs = int((layout.read.sum(-1) * real).sum())
    held = (own + 1).clamp(max=layout.window)
    tiles = int(((-(-held // layout.slots)) * real).sum())
    rows, passes = -(-head_dim // layout.rows), 2 if softmax else 1
    counts.events.update(
        {
            "attention.qk_mac": passes * pairs * heads * head_dim,
            "attention.av_mac": pairs * heads * head_dim,
            "attention.phi_conversion": passes * pairs * heads,
            "attention.av_conversion": tiles * heads * head_dim,
            "attention.write_conversion": tokens * 2 * kv_heads * head_dim,
            "attention.subtile_pass": tiles * heads * rows,
            "attention.layer_pass": tokens,
            "attention.tile_add": tiles - tokens,
            "attention.shared_array_pass": tokens * (heads // kv_heads - 1),
        }
    )
    if softmax:
        counts.events["attention.softmax"] += pairs * heads
    if refreshes is not None:
        refreshed = int((refreshes[layout.age] * layout.read * real[:, :, None]).sum())
        counts.events["attention.refresh_conversion"] += refreshed * 2 * kv_heads * head_dim
    counts.subtiles[layer] = kv_heads * rows * -(-layout.window // layout.slots)
    if counts._first_layer is None:
        counts._first_layer = layer
    if layer == counts._first_layer:
        counts.tokens += tokens


def _real_tokens(counts: EventCounts, leading: tuple[int, ...]) -> int:
    """Return how many positions of an input with this leading shape are tokens rather than padding."""
    valid = counts._valid
    if valid is not None and leading in (tuple(valid.shape), (valid.numel(),)):  # OPT flattens batch and tokens
        return int(valid.sum())
    return math.prod(leading)


def record_linear(layer: BitLinear, x: Tensor) -> None:
    """Add the events of one ternary layer on arrays; layers fed by the same tensor run at the same time.

    ``conversions = outputs x row tiles x input bits``, ``drives = inputs x column tiles x input bits``.
    """
    counts = active_counts()
    if counts is None or layer.array is None:
        return
    tokens = _real_tokens(counts, tuple(x.shape[:-1]))
    array, inputs, outputs = layer.array, layer.in_features, layer.out_features
    cycles = tokens * array.input_cycles
    counts.events["linear.cell_mac"] += cycles * inputs * outputs
    counts.events["linear.adc_conversion"] += cycles * outputs * -(-inputs // array.rows)
    counts.events["linear.shift_add"] += cycles * outputs * -(-inputs // array.rows)
    counts.events["linear.row_drive"] += cycles * inputs * -(-outputs // array.columns)
    previous = counts._last_input() if counts._last_input is not None else None
    if previous is not x:
        counts.events["linear.layer_pass"] += tokens
    counts._last_input = weakref.ref(x)


def _count_digital(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    """Count linear layers that run beside the arrays: adapters, LM head, layers that were not emulated."""
    counts = active_counts()
    if counts is None or not isinstance(module, nn.Linear) or getattr(module, "array", None) is not None:
        return
    tokens = _real_tokens(counts, tuple(inputs[0].shape[:-1]))
    counts.events["digital.mac"] += tokens * module.in_features * module.out_features
