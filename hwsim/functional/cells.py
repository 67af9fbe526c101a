"""Gain cells in torch: the differentiable twins of ``device_models.retention`` and ``device_models.variability``.

Gradients pass through converters unchanged; every deviation is a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from device_models.cell import polynomial
from device_models.retention import arrhenius, threshold_drift
from device_models.schema import DeviceModel
from device_models.variability import bridge, capacitor_sigma, wire_drop, write_sigma
from hwsim.die import Array, Die
from hwsim.functional.quantise import quantise_levels


@dataclass(frozen=True, eq=False)
class CellDeviations:
    """Static deviations of the cells of one array; each broadcasts to (kv_heads, slots, head_dim), None is neutral.

    Attributes:
        factor: [1] of the current: gain mismatch and what the wire takes.
        offset: [V] of the gate voltage, threshold drift included.
        slowness: [1] of the retention time, temperature included.
        capacitor: [1] relative error of the capacitor.
        pedestal: [V] error of the charge injected.
        inl: [V] error of the write DAC at each level; (kv_heads, slots, head_dim, levels).
        manufactured: Whether there is a chip at all; the design alone has neither pedestal nor wire nor drift.
    """

    factor: Tensor | None = None
    offset: Tensor | None = None
    slowness: Tensor | None = None
    capacitor: Tensor | None = None
    pedestal: Tensor | None = None
    inl: Tensor | None = None
    manufactured: bool = False

    def at(self, slots: Tensor | slice) -> CellDeviations:
        """Return the deviations of some of the slots; a slice is no copy."""

        def pick(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[1] == 1 else x[:, slots]

        return CellDeviations(
            pick(self.factor), pick(self.offset), pick(self.slowness), pick(self.capacitor), pick(self.pedestal),
            pick(self.inl), self.manufactured,
        )  # fmt: skip


def cell_deviations(
    die: Die | None, array: Array, device: DeviceModel, heads: int, slots: Tensor, head_dim: int, dtype: torch.dtype
) -> CellDeviations:
    """Look up the static deviations of the cells at some slots.

    Args:
        die: The chip; None has no deviation at all.
        array: Array of keys or of values.
        device: The device.
        heads: Key/value heads.
        slots: (n,) physical slots.
        head_dim: Dimensions of a head.
        dtype: Of the tensors returned.
    """
    if die is None:
        return CellDeviations()

    def drawn(what: str, sigma: float) -> Tensor | None:
        return die.cells(what, array, heads, slots, head_dim).to(dtype) * sigma if sigma else None

    variability, write, retention = device.variability, device.write, device.retention
    gain, offset = drawn("gain", variability.gain_sigma), drawn("offset", variability.offset_sigma)
    if shift := threshold_drift(device):
        offset = torch.full((1, 1, 1), -shift, dtype=dtype, device=slots.device) if offset is None else offset - shift
    ln_slow = drawn("retention", retention.tau_sigma_ln) if device.decays else None
    return CellDeviations(
        factor=_current_factor(gain, array, device, slots, head_dim, dtype),
        offset=offset,
        slowness=None if ln_slow is None else ln_slow.exp(),
        capacitor=drawn("capacitor", capacitor_sigma(device)),
        pedestal=drawn("pedestal", write.pedestal_sigma),
        inl=_dac_errors(die, array, device, heads, slots, head_dim, dtype),
        manufactured=True,
    )


def _current_factor(
    gain: Tensor | None, array: Array, device: DeviceModel, slots: Tensor, head_dim: int, dtype: torch.dtype
) -> Tensor | None:
    if not device.wire.resistance * device.wire.cell_current:
        return None if gain is None else 1.0 + gain
    if array == "key":  # the bit line of a slot runs along the dimensions
        rows = min(device.tile.rows, head_dim)
        position = torch.arange(head_dim) % device.tile.rows
        drop = wire_drop(position.numpy(), rows, device.wire)[None, :]
    else:  # the bit line of a dimension runs along the slots of a sub-tile
        drop = wire_drop((slots.cpu() % device.tile.slots).numpy(), device.tile.slots, device.wire)[:, None]
    left = torch.from_numpy(1.0 - drop).to(slots.device, dtype)[None]
    return left if gain is None else left * (1.0 + gain)


def _dac_errors(
    die: Die, array: Array, device: DeviceModel, heads: int, slots: Tensor, head_dim: int, dtype: torch.dtype
) -> Tensor | None:
    """Return the errors of the write DACs, one per row and sub-tile, at the columns that they write."""
    levels, storage = device.storage.levels, device.storage
    if not device.write.dac_inl or levels is None:
        return None
    tiles = device.subtiles
    z = die.circuits(f"dac.{array}", slots.device, heads, tiles, head_dim, levels - 1)
    step = (storage.v_max - storage.v_min) / (levels - 1)
    errors = torch.from_numpy(bridge(z.cpu().numpy())).to(slots.device, dtype) * (device.write.dac_inl * step)
    return errors.index_select(1, slots // device.tile.slots % tiles)


def to_levels(x: Tensor, device: DeviceModel) -> Tensor:
    """Round voltages [V] to the storage levels, straight through."""
    storage = device.storage
    return quantise_levels(x, storage.levels, storage.v_min, storage.v_max)


def written_voltage(v: Tensor, device: DeviceModel, cells: CellDeviations, z_write: Tensor | None) -> Tensor:
    """Return the voltage of cells just after their write; twin of ``variability.written_voltage``.

    Args:
        v: [V] on the level grid, (b, kv_heads, slots, head_dim).
        device: The device.
        cells: Static deviations; without any, pedestal and mismatch are left out.
        z_write: [1] deviates of the writes, of the shape of ``v``; None leaves out what is random at each write.
    """
    write, zero = device.write, device.storage.v_zero
    if not cells.manufactured:
        return v if z_write is None else v + write_sigma(device) * z_write
    excursion = charged = v - zero
    if cells.inl is not None:
        storage = device.storage
        assert storage.levels is not None
        step = (storage.v_max - storage.v_min) / (storage.levels - 1)
        code = ((v.detach() - storage.v_min) / step).round().long().clamp(0, storage.levels - 1)
        table = cells.inl[None].expand(v.shape[0], -1, v.shape[2], -1, -1)
        charged = charged + table.gather(-1, code[..., None])[..., 0]
    if cells.capacitor is not None:
        charged = charged * (1.0 + cells.capacitor)
    out = charged + zero
    if write.pedestal_mean or write.pedestal_gain:
        out = out + write.pedestal_mean + write.pedestal_gain * excursion
    if cells.pedestal is not None:
        out = out + cells.pedestal
    if z_write is not None:
        out = out + write_sigma(device) * z_write
    return out


def relaxed_level(device: DeviceModel) -> float:
    """Return the level [V] that cells relax to; the zero level where nothing decays."""
    return device.storage.v_zero if device.retention.v_inf is None else device.retention.v_inf


def decays_in_proportion(device: DeviceModel, cells: CellDeviations) -> bool:
    """Whether one factor d(age) shrinks the excursion of every cell alike."""
    return device.retention.kind in ("none", "exponential", "stretched") and cells.slowness is None


def decay_factor(age: Tensor, device: DeviceModel, slowness: Tensor | float = 1.0) -> Tensor:
    """Return d(age) [1] of the laws that are linear in the excursion, in the shape that the arguments broadcast to.

    Args:
        age: [s] time since the write.
        device: The device.
        slowness: [1] of each cell, temperature left out.
    """
    retention = device.retention
    if not device.decays:
        return torch.ones_like(age)
    assert retention.tau is not None
    scaled = age * (_speed(device) / retention.tau) / slowness
    if retention.kind == "stretched":
        assert retention.beta is not None
        # pow has no gradient at 0 that anyone needs: ages and time constants are constants
        scaled = scaled**retention.beta
    return torch.exp(-scaled)


def relaxed_voltage(v0: Tensor, age: Tensor, device: DeviceModel, cells: CellDeviations) -> Tensor:
    """Return the voltage [V] of cells at an age [s]; twin of ``retention.stored_voltage``.

    Args:
        v0: [V] just after the write.
        age: [s] broadcasting against ``v0``.
        device: The device.
        cells: Supplies the slowness of each cell.
    """
    retention = device.retention
    if not device.decays:
        return v0.expand(torch.broadcast_shapes(v0.shape, age.shape))
    assert retention.v_inf is not None
    slowness: Tensor | float = 1.0 if cells.slowness is None else cells.slowness
    x = v0 - retention.v_inf
    if retention.kind in ("exponential", "stretched"):
        return retention.v_inf + x * decay_factor(age, device, slowness)
    magnitude = x.abs()
    if retention.kind == "log_self_limited":
        assert retention.v_scale is not None and retention.t0 is not None and retention.v_top is not None
        top = abs(retention.v_top - retention.v_inf)
        pace = age * (_speed(device) / retention.t0) / slowness
        lost = retention.v_scale * torch.log1p(pace * torch.exp((magnitude - top) / retention.v_scale))
    else:
        assert retention.rate is not None
        lost = age * (_speed(device) * retention.rate) / slowness
    return retention.v_inf + x.sign() * (magnitude - lost).clamp(min=0.0)


def _speed(device: DeviceModel) -> float:
    retention = device.retention
    return arrhenius(device.operation.temperature, retention.activation_energy, retention.reference_temperature)


def cell_current(v: Tensor, device: DeviceModel, cells: CellDeviations) -> Tensor:
    """Return the current [A] of cells at a gate voltage [V] while their pulse is high."""
    w = v - device.storage.v_zero
    if cells.offset is not None:
        w = w + cells.offset
    k0, k1, k2, k3 = polynomial(device.cell)
    current = k0 + w * (k1 + w * (k2 + w * k3))
    return current if cells.factor is None else current * cells.factor


def surrogate_current(v: Tensor, device: DeviceModel, cells: CellDeviations) -> Tensor:
    """Return the linear current [A] whose gradient the published code uses in place of the cell's own."""
    w = v - device.storage.v_zero
    if cells.offset is not None:
        w = w + cells.offset
    current = (device.cell.surrogate_slope or 0.0) * w
    return current if cells.factor is None else current * cells.factor


def full_scale_current(device: DeviceModel) -> float:
    """Return the current [A] of a cell at the top of its range, to which read noise refers."""
    w = device.storage.v_max - device.storage.v_zero
    k0, k1, k2, k3 = polynomial(device.cell)
    return abs(k0 + w * (k1 + w * (k2 + w * k3)))


def write_is_noisy(device: DeviceModel) -> bool:
    """Whether writes have a random part."""
    return write_sigma(device) > 0.0


def pulse_jitter(device: DeviceModel, full_pulse_s: float) -> float:
    """Return the rms error of a pulse [1] in full pulses."""
    return device.input.jitter / full_pulse_s if device.input.jitter else 0.0


def read_noise_variance(total: Tensor, squares: Tensor, device: DeviceModel) -> Tensor:
    """Return the variance of a bit line's noise, in full-scale currents squared, from its pulses' sum and squares."""
    return device.noise.white**2 * total + device.noise.flicker**2 * squares


def read_noise_sigma(pulses: Tensor, device: DeviceModel, dim: int = -1) -> Tensor:
    """Return the deviation [A] of a bit line's noise; twin of ``variability.read_noise_variance``."""
    p = pulses.detach()
    return full_scale_current(device) * read_noise_variance(p.sum(dim), (p * p).sum(dim), device).sqrt()
