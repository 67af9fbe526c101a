"""What a forward pass did and on how much hardware: plain numbers, without a tensor library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

EVENTS: Mapping[str, str] = {
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
    "attention.scaler_value": "queries, keys, values and outputs through range scalers",
    "attention.rotary_value": "queries and keys turned by the rotary embedding",
    "linear.cell_mac": "cells of ternary arrays read, per input bit",
    "linear.adc_conversion": "column conversions of ternary arrays, per input bit",
    "linear.shift_add": "shift-and-adds behind those conversions",
    "linear.row_drive": "rows of ternary arrays driven, per input bit",
    "linear.layer_pass": "matrix-vector products on ternary arrays one after another (time)",
    "linear.input_value": "inputs of ternary arrays rounded to 8 bits, once for all arrays that they feed",
    "linear.output_value": "outputs of ternary arrays scaled",
    "digital.mac": "multiply-accumulates of LM head and other digital layers",
    "digital.adapter_mac": "multiply-accumulates of adapters",
    "digital.rms_norm_value": "values through norms without mean",
    "digital.layer_norm_value": "values through norms with mean",
    "digital.activation_value": "values through activation functions of feed-forward blocks",
    "digital.gate_value": "values multiplied by their gate",
    "digital.residual_value": "sums of residual streams and of adapters",
    "memory.weight_bit": "bits of digital weights and embeddings read",
    "wire.bit": "bits of residual streams sent to a block",
}
"""Every kind of event, with what one of it is."""


@dataclass
class EventCounts:
    """Counts of one ``with`` block, of one analytic workload, or of several added up.

    Attributes:
        by_layer: Number of events by layer and kind; None is what lies outside of the decoder's layers.
        tokens: Tokens that went through the model (through its first layer), padding excluded.
        subtiles: Sub-tiles built for attention, by layer (key/value heads x rows x tiles).
        arrays: Ternary arrays built, by matrix.
        weight_bits: Bits of digital weights kept, by matrix; shared ones once.
    """

    by_layer: dict[int | None, Counter[str]] = field(default_factory=dict)
    tokens: int = 0
    subtiles: dict[int, int] = field(default_factory=dict)
    arrays: dict[Hashable, int] = field(default_factory=dict)
    weight_bits: dict[Hashable, int] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Mapping[str, int], tokens: int = 0) -> EventCounts:
        """Make counts out of numbers by kind whose layers are not known."""
        return cls({None: Counter(events)} if events else {}, tokens)

    @property
    def events(self) -> Counter[str]:
        """Number of events by kind, all layers together; a copy."""
        total: Counter[str] = Counter()
        for events in self.by_layer.values():
            total.update(events)
        return total

    def __getitem__(self, event: str) -> int:
        """Return the count of one kind of event in all layers."""
        if event not in EVENTS:
            raise KeyError(f"unknown event {event!r}; known: {', '.join(EVENTS)}")
        return sum(events[event] for events in self.by_layer.values())

    def record(self, layer: int | None, events: Mapping[str, int]) -> None:
        """Add events of one layer; kinds that did not happen leave no trace."""
        counter = self.by_layer.setdefault(layer, Counter())
        for event, number in events.items():
            if number:
                counter[event] += number

    def add(self, other: EventCounts) -> None:
        """Add the counts of another block on the same hardware, for example of another batch."""
        for layer, events in other.by_layer.items():
            self.record(layer, events)
        self.tokens += other.tokens
        self.subtiles.update(other.subtiles)
        self.arrays.update(other.arrays)
        self.weight_bits.update(other.weight_bits)
