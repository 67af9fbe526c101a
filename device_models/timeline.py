"""When each step of one token happens on the arrays of one attention layer.

::

    reset K | Q K^T ------------ | phi V ----------- | readout | add tile by tile
            | write V | reset V  | write next K

All heads and sub-tiles run this at the same time; queries that share a key/value array follow one interval apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_models.adc import sar_time
from device_models.errors import InputError
from device_models.price_schema import AdcModel
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel

PUBLISHED_COUNTS = 15
"""Counts of the published counter, 4 bits and a sign, within its ``time_counter`` (leroux2025, p. 817)."""


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
    product, and no readout takes longer. ``latency = second + av + readout + (tiles - 1) add``. Where positive and
    negative queries are read apart, ``reset + qk`` comes once more; a converter of scores stands before the second
    product.

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
    if device.reads_per_score == 2:
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
    interval = max(second + max(cost.time_av, write), read - end)
    return AttentionTimeline(tuple(ordered), interval, summed)


def readout_time(device: DeviceModel, model: AdcModel, bits: int, rows: int) -> float:
    """Return the time of one conversion [s]: counting, the model's, or one period of its rate.

    A counter of B bits with its sign counts to ``2^(B - 1) - 1``; ``time_counter`` is that of 5 bits.
    """
    if model == "sar":
        return sar_time(bits, rows)
    if model == "survey":
        return 1.0 / device.adc.rate
    counts = 2 ** (bits - 1) - 1 if model == "counter" else PUBLISHED_COUNTS
    return device.cost.time_counter * counts / PUBLISHED_COUNTS


def linear_time(device: DeviceModel) -> float:
    """Return the time [s] of one matrix-vector product on the arrays of the linear layers.

    Input digits follow one another; one is converted while the next one settles:
    ``cycles max(settle, convert) + min(settle, convert)``, and settling takes as many slots as the longest pulse.
    """
    linear = device.linear
    converting = 0.0
    if linear.adc != "fixed":
        converting = readout_time(device, linear.adc, linear.adc_bits or 1, linear.rows)
    settling = linear.cycle_time + (2**linear.digit_bits - 2) * linear.slot_time
    return linear.input_cycles * max(settling, converting) + min(settling, converting)


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


def with_refresh(device: DeviceModel, attention_s: float) -> float:
    """Return the time [s] of attention that waits for the refreshes due while it is computed.

    A layer's arrays refresh also while other layers and the accelerator compute, so only work on these arrays waits:
    the time T holds the work A and the refreshes due in T, ``T = A + share T``, so ``T = A / (1 - share)``.

    Raises:
        InputError: As :func:`refresh_share`.
    """
    return attention_s / (1.0 - refresh_share(device))
