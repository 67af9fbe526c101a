"""Queries, keys and values as whole numbers, where the device leaves them whole; and the kernels in C on them.

On a design without errors of cells and pulses, a query is a count of pulse steps, and a linear cell's current an odd
count of half voltage steps::

    q = n / (levels - 1)            V - v_zero = m half_step,    half_step = (v_max - v_min) / (levels - 1) / 2
    S = d(age) (k1 half_step / (levels - 1) / s_qk) <n, m>

so ``<n, m>`` is exact in any order and precision. With a pulse grid of P steps the second product is as well::

    X = (k1 half_step / s_av / P) sum_s round(P d(age) phi_s) m_s
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from device_models.cell import polynomial
from device_models.retention import threshold_drift
from device_models.schema import DeviceModel
from device_models.variability import capacitor_sigma
from hwsim import native
from hwsim.functional.attention import written_voltage_offset
from hwsim.functional.cell_products import CellImages
from hwsim.functional.cells import CellDeviations, decays_in_proportion, pulse_jitter, write_is_noisy
from hwsim.functional.circuits import Circuits
from hwsim.functional.kernel_loop import attention_kernel, circuits_for_kernels, in_c
from hwsim.functional.layout import Stretch
from hwsim.functional.quantise import count_levels
from hwsim.functional.reads import Place, pulse_steps
from hwsim.functional.tables import AttentionTables
from hwsim.functional.tile_loop import Arrays, refuse_second_derivative, tile_loop

MOST_LEVELS = 128
"""Products of codes and sums of two of them fit the 16 bits that some processors add them in."""


@dataclass(frozen=True)
class Codes:
    """What whole numbers stand for.

    Attributes:
        query_levels: Pulse widths of a query.
        cell_levels: Voltages of a cell.
        half_step: [V] half of the distance of two voltages.
        key: [1] score over the saturation that one unit of ``<n, m>`` makes without decay.
        value: [1] charge over the saturation that a full pulse at one unit of m makes without decay.
        steps: Steps of the pulse grid in a full pulse; None where pulses are continuous.
    """

    query_levels: int
    cell_levels: int
    half_step: float
    key: float
    value: float
    steps: int | None = None

    @property
    def grid(self) -> float | None:
        """Return the charge [1] of one step of the pulse grid at one unit of m; None without."""
        return None if self.steps is None else self.value / self.steps

    def value_weight(self, unit: float = 1.0) -> float:
        """Return what pulses are multiplied by beside the decay: to ``unit`` charges, or to steps of the grid."""
        return self.value * unit if self.steps is None else float(self.steps)


def codes_of(device: DeviceModel, place: Place) -> Codes | None:
    """Return the codes of a device; None where queries, keys or values are no whole numbers, or cells not linear."""
    levels, storage = device.input.levels, device.storage
    if levels is None or storage.levels is None or max(levels, storage.levels) > MOST_LEVELS or device.input.signed:
        return None
    jitters = device.input.jitter and pulse_jitter(device, device.cost.time_qk)
    if (place.die is not None and _deviates(device)) or (
        place.keys is not None and (jitters or write_is_noisy(device))
    ):
        return None
    k0, k1, k2, k3 = polynomial(device.cell)
    one_factor = decays_in_proportion(device, CellDeviations()) and device.refresh.kind == "none"
    if k0 or k2 or k3 or not one_factor or written_voltage_offset(device) or device.cell.backward != "exact":
        return None
    half = (storage.v_max - storage.v_min) / (storage.levels - 1) / 2
    middle = (storage.v_max + storage.v_min) / 2
    if abs(middle - storage.v_zero) > 1e-9 * half:
        return None
    unit = k1 * half
    key, value = unit / (levels - 1) / device.saturation.qk, unit / device.saturation.av
    return Codes(levels, storage.levels, half, key, value, pulse_steps(device))


def _deviates(device: DeviceModel) -> bool:
    """Whether cells or row converters of a chip differ from the design in any way."""
    variability, write, retention = device.variability, device.write, device.retention
    return bool(
        variability.gain_sigma or variability.offset_sigma or threshold_drift(device)
        or write.dac_inl or capacitor_sigma(device) or write.pedestal_mean or write.pedestal_gain
        or write.pedestal_sigma or device.input.inl or device.wire.resistance * device.wire.cell_current
        or (device.decays and retention.tau_sigma_ln)
    )  # fmt: skip


def attend_counts(
    query: Tensor, key: Tensor, value: Tensor, codes: Codes, circuits: Circuits, tables: AttentionTables,
    stretch: Stretch,
) -> Tensor:  # fmt: skip
    """Compute attention of consecutive tokens, converters included; gradients flow to all three.

    Args:
        query: [1] (b, h, queries, d) before its converter.
        key: [V] (b, g, keys, d) before its converter.
        value: [V] as ``key``.
        codes: Of the device.
        circuits: Everything between the products.
        tables: Decay by age.
        stretch: Which tokens.

    Returns:
        (b, h, queries, d) before the output scaler.
    """
    if in_c(circuits, query):
        made = _in_c(query, key, value, codes, circuits, tables, stretch)
        if made is not None:
            return made
        with attention_kernel("torch"):  # which hands on what is not a number
            return attend_counts(query, key, value, codes, circuits, tables, stretch)
    device, group = circuits.device, query.shape[1] // key.shape[1]
    cells = codes.cell_levels, device.storage.v_min, device.storage.v_max
    linear, unit = ((0, 1),), circuits.per_charge
    grid = None if codes.grid is None else (codes.grid, unit)

    def images(x: Tensor, band: Tensor, grid: tuple[float, float] | None) -> CellImages:
        states = count_levels(x, *cells, centred=True)[:, :, None]
        states = states if group == 1 else states.repeat_interleave(group, 1)
        return CellImages(states.flatten(0, 1), (band,), grid=grid)

    arrays = Arrays(
        images(key, tables.band(linear, codes.key, first=True), None),
        images(value, tables.band(linear, codes.value_weight(unit), first=False), grid),
    )
    counts = count_levels(query, codes.query_levels, 0.0, 1.0, centred=False)
    return tile_loop(counts.flatten(0, 1), arrays, circuits, stretch).view_as(query)


def _in_c(
    query: Tensor, key: Tensor, value: Tensor, codes: Codes, circuits: Circuits, tables: AttentionTables,
    stretch: Stretch,
) -> Tensor | None:  # fmt: skip
    """Compute the same with the kernels, which convert themselves; None where something is not a number."""
    device, storage = circuits.device, circuits.device.storage
    cells = codes.cell_levels, storage.v_min, storage.v_max
    with torch.no_grad():
        counts = native.convert(query, codes.query_levels, 0.0, 1.0, centred=False)
        found = [native.convert(x, *cells, centred=True) for x in (key, value)]
    stored = [x for x in found if x is not None]
    if counts is None or len(stored) < 2:
        return None
    group = query.shape[1] // key.shape[1]
    images = [x.unflatten(0, key.shape[:2]).repeat_interleave(group, 1).flatten(0, 1)[:, None] for x in stored]
    weights = [
        _by_age(tables, device.window.tokens, scale, first=first)
        for scale, first in ((codes.key, True), (codes.value_weight(), False))
    ]
    geometry = native.Geometry(device.window.tokens, device.tile.slots, stretch.first_query, stretch.first_key)
    call = _Call(weights[0], weights[1], geometry, circuits_for_kernels(circuits, geometry, codes.grid), codes, device)
    return _InC.apply(query, key, value, counts, *images, call)


def _by_age(tables: AttentionTables, window: int, scale: float, *, first: bool) -> Tensor:
    """Return decay times ``scale`` by age, (1, window), zero at ages that no query meets."""
    decay = tables.by_age(0, first=first)[1]
    weight = decay.new_zeros(1, window)
    weight[0, : decay.numel()] = decay * scale
    return weight


@dataclass(frozen=True, eq=False)
class _Call:
    """What the kernels are given beside counts and images."""

    weight_k: Tensor
    weight_v: Tensor
    geometry: native.Geometry
    circuits: native.Circuits
    codes: Codes
    device: DeviceModel

    def cells(self, key: Tensor, value: Tensor) -> native.Cells:
        """Return the arrays."""
        return native.Cells(key, value, self.weight_k, self.weight_v)


class _InC(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, counts: Tensor, keys: Tensor, values: Tensor, call: _Call
    ) -> Tensor:
        needed = any(ctx.needs_input_grad)
        cells = call.cells(keys, values)
        out, saturated = native.attention_forward(counts, cells, call.geometry, call.circuits, save=needed)
        if needed:
            ctx.save_for_backward(query, key, value, counts, keys, values, saturated)
            ctx.call = call
        return out[..., : query.shape[-1]].reshape(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        query, key, value, counts, keys, values, saturated = ctx.saved_tensors
        call: _Call = ctx.call
        codes, storage = call.codes, call.device.storage
        grad = pad(grads[0].flatten(0, 1), (0, counts.shape[-1] - query.shape[-1])).contiguous()
        by_code = native.attention_backward(
            grad, counts, call.cells(keys, values), call.geometry, call.circuits, saturated
        )  # fmt: skip
        ranges = (0.0, 1.0), (storage.v_min, storage.v_max), (storage.v_min, storage.v_max)
        steps = 1.0 / (codes.query_levels - 1), codes.half_step, codes.half_step
        found = []
        for x, slope, step, clip in zip((query, key, value), by_code, steps, ranges, strict=True):
            each = slope[..., : x.shape[-1]].reshape(*x.shape[:2], -1, *x.shape[2:])  # heads that share an array
            each = each[:, :, 0] if each.shape[2] == 1 else each.sum(2)
            found.append(torch.ops.aten.hardtanh_backward(each.mul_(1.0 / step), x, *clip))
        return (*found, None, None, None, None)
