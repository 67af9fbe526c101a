"""When each step of one token happens on the arrays of one attention layer.

::

    reset K | Q K^T ------------ | phi V ----------- | readout | add tile by tile
            | write V | reset V  | write next K

All heads and sub-tiles run this at the same time; queries that share a key/value array follow one interval apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from device_models.adc import sar_time
from device_models.errors import InputError
from device_models.price_schema import AdcModel
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel


@dataclass(frozen=True)
class Phase:
    """One step: name, when it starts and ends after the token's arrival [s], and the key its time comes from."""

    name: str
    start_s: float
    end_s: float
    key: str


@dataclass(frozen=True)
class AttentionTimeline:
    """Steps of one token in one layer.

    Attributes:
        phases: In the order of their start.
        interval_s: [s] until the first array takes the next query.
        latency_s: [s] until the sum over sub-tiles is there.
    """

    phases: tuple[Phase, ...]
    interval_s: float
    latency_s: float


def attention_timeline(device: DeviceModel, tiles: int = 1) -> AttentionTimeline:
    """Lay out one token's steps.

    ``second = reset + max(qk, write + reset)`` starts the second product: the value is written and the second array
    reset beside the first product. ``interval = second + max(av, write)``: the next key is written beside the second
    product. ``latency = second + av + readout + (tiles - 1) add``. Where positive and negative queries are read apart,
    ``reset + qk`` comes once more; a converter of scores stands before the second product.

    Args:
        device: The device.
        tiles: Sub-tiles along the tokens whose results are added.

    Source: leroux2025, Fig. 2c and p. 821.
    """
    cost = device.cost
    reset, write = cost.time_reset, cost.time_write
    phases = [Phase("reset first array", 0.0, reset, "cost.time_reset"),
              Phase("first product", reset, reset + cost.time_qk, "cost.time_qk")]  # fmt: skip
    ready = reset + cost.time_qk
    if device.activation.kind == "softmax" and not device.input.signed:
        phases += [Phase("reset first array again", ready, ready + reset, "cost.time_reset"),
                   Phase("first product, negative queries", ready + reset, ready + reset + cost.time_qk,
                         "cost.time_qk")]  # fmt: skip
        ready += reset + cost.time_qk
    if device.readout_qk.bits is not None and cost.phi_adc != "fixed":
        converted = ready + readout_time(device, cost.phi_adc, device.readout_qk.bits, device.tile.rows)
        phases.append(Phase("convert scores", ready, converted, "cost.phi_adc"))
        ready = converted
    written = reset + write
    phases += [Phase("write value", reset, written, "cost.time_write"),
               Phase("reset second array", written, written + reset, "cost.time_reset")]  # fmt: skip
    second = max(ready, written + reset)
    end = second + cost.time_av
    phases += [Phase("second product", second, end, "cost.time_av"),
               Phase("write next key", second, second + write, "cost.time_write")]  # fmt: skip
    read = end + readout_time(device, cost.av_adc, device.readout.bits or 1, device.tile.slots)
    key = "cost.time_counter" if cost.av_adc in ("counter", "fixed") else "cost.av_adc"
    phases.append(Phase("readout", end, read, key))
    summed = read + (tiles - 1) * cost.time_add
    phases.append(Phase("add sub-tiles", read, summed, "cost.time_add"))
    ordered = sorted((p for p in phases if p.end_s > p.start_s), key=lambda p: (p.start_s, p.end_s))
    return AttentionTimeline(tuple(ordered), second + max(cost.time_av, write), summed)


def readout_time(device: DeviceModel, model: AdcModel, bits: int, rows: int) -> float:
    """Return the time of one conversion [s]: counting, the model's, or one period of its rate."""
    if model == "sar":
        return sar_time(bits, rows)
    return 1.0 / device.adc.rate if model == "survey" else device.cost.time_counter


def refresh_share(device: DeviceModel) -> float:
    """Return the share [1] of time in which arrays refresh: ``slots * time_refresh / interval``.

    Sub-tiles, heads and layers refresh at the same time, the slots of a sub-tile one after another.

    Raises:
        InputError: If refreshing takes longer than the interval: the device cannot keep its values.
    """
    interval = refresh_interval(device)
    if interval is None:
        return 0.0
    busy = device.tile.slots * device.cost.time_refresh
    if busy >= interval:
        raise InputError(
            "no time is left to compute", where=f"{device.name}: refresh",
            expected=f"an interval above the {busy:.3g} s that refreshing {device.tile.slots} slots takes",
            received=f"{interval:.3g} s", remedy="a longer retention time or fewer slots",
        )  # fmt: skip
    return busy / interval


def with_refresh(device: DeviceModel, latency_s: float) -> float:
    """Return the time of a token [s] that waits for the refreshes due while it is computed.

    The period P holds the latency L and the refreshes due in P, so ``P = L + share P``: ``P = L / (1 - share)``.

    Raises:
        InputError: As :func:`refresh_share`.
    """
    return latency_s / (1.0 - refresh_share(device)) if math.isfinite(latency_s) else latency_s
