"""What a model would cost on a device, from its configuration alone: facts for ``fllm cost``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from device_models.costs import Activity
from device_models.loading import load_device
from device_models.schema import DeviceModel
from fllm.energy import cost_sources, energy_facts, price_rows, provenance_rows
from hwsim.analytic import analytic_events, auto_token_period
from hwsim.costing import price
from hwsim.events import EventCounts
from hwsim.shapes import ModelShape

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Question:
    """What is asked of each device.

    Attributes:
        shape: The model.
        tokens: Length of the text: decoding its last token, and prefilling all of it, are priced.
        token_period_s: [s] between two tokens, at least the model's own latency on the device; None is that latency.
        adapter_rank: Of a LoRA adapter beside every linear layer; None without.
        activity: Of the attention arrays.
    """

    shape: ModelShape
    tokens: int
    token_period_s: float | None
    adapter_rank: int | None
    activity: Activity


def cost_facts(asked: Question, device: DeviceModel) -> dict[str, Any]:
    """Answer for one device: one token of decoding at the end of the text, and the prefill of the whole text.

    Raises:
        InputError: If the device cannot keep up with its refresh.
    """
    shape, rank = asked.shape, asked.adapter_rank
    own = auto_token_period(shape, device, adapter_rank=rank)
    period = own if asked.token_period_s is None else max(asked.token_period_s, own)

    def counted(tokens: int, start: int, pace: float) -> EventCounts:
        return analytic_events(
            shape, device, tokens=tokens, start=start, token_period_s=pace, adapter_rank=rank, head_tokens=1
        )

    def facts(counts: EventCounts, pace: float) -> dict[str, Any]:
        return {"prices": price_rows(counts, device, pace)} | energy_facts(
            counts, device, token_period_s=pace, stored_heads=sum(layer.kv_heads for layer in shape.layers),
            activity=asked.activity,
        )  # fmt: skip

    text_s = price(counted(asked.tokens, 0, 0.0), device).prefill_latency_s or 0.0
    pace = text_s / asked.tokens
    decode = facts(counted(1, asked.tokens - 1, period), period)
    prefill = facts(counted(asked.tokens, 0, pace), pace) | {"latency_s": text_s}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": _model(shape, rank),
        "device": {
            "name": device.name,
            "title": device.title,
            "window_tokens": device.window.tokens,
            "file_sha256": device.file_sha256,
        },
        "tokens": asked.tokens,
        "token_period_s": period,
        "token_period_auto": asked.token_period_s is None,
        "too_slow": asked.token_period_s is not None and period > asked.token_period_s,
        "activity": {"qk": asked.activity.qk, "av": asked.activity.av},
        "decode": decode,
        "prefill": prefill,
        "device_values": provenance_rows(device.provenance),
        "sources": cost_sources(device),
    }


def _model(shape: ModelShape, rank: int | None) -> dict[str, Any]:
    layer = shape.layers[0]
    return {
        "name": shape.name,
        "layers": len(shape.layers),
        "hidden": shape.hidden,
        "heads": layer.heads,
        "kv_heads": layer.kv_heads,
        "head_dim": layer.head_dim,
        "vocabulary": shape.vocabulary,
        "linear_weights": shape.linear_weights,
        "adapter_rank": rank,
    }


def device_of(name: str, overrides: dict[str, object], window: int | None) -> DeviceModel:
    """Load a device with overrides and a window; raises InputError."""
    return load_device(name, overrides | ({} if window is None else {"window.tokens": window}))
