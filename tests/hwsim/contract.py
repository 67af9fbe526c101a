"""The contract of a device with every effect, one scalar at a time, from the NumPy reference of ``device_models``.

Nothing of ``hwsim.functional`` computes here; only the deviates are those of the chip and of the sequence's key, asked
for one by one, by what they are, where they lie and when they are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from device_models import DeviceModel
from device_models.cell import cell_current
from device_models.converters import code_errors, highest_code, quantise_levels, read_out
from device_models.retention import stored_voltage, threshold_drift
from device_models.variability import bridge, read_noise_variance, wire_drop, written_voltage
from hwsim import Die
from hwsim.functional.reads import Place

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Chip:
    """A device, one layer of one chip of it, and the key of one sequence, as arrays of deviates."""

    device: DeviceModel
    die: Die
    key: int
    kv_heads: int
    head_dim: int
    period: float
    interval: float

    @cache  # noqa: B019
    def cell(self, what: str, array: str) -> NDArray:
        """(kv_heads, slots, head_dim)."""
        slots = torch.arange(self.device.window.tokens)
        return self.die.cells(what, array, self.kv_heads, slots, self.head_dim).double().numpy()  # type: ignore[arg-type]

    @cache  # noqa: B019
    def circuit(self, what: str, *sizes: int) -> NDArray:
        return self.die.circuits(what, CPU, *sizes).double().numpy()

    @cache  # noqa: B019
    def row(self, what: str, width: int, *indices: int) -> NDArray:
        place = Place(self.die, torch.tensor([self.key]), self.die.layer)
        drawn = place.draw(what, torch.float64, width, *(torch.full((1, 1, 1, 1), index) for index in indices))
        return drawn.flatten().numpy()

    def draw(self, what: str, *indices: int) -> float:
        """One of the dimensions of a row."""
        return float(self.row(what, self.head_dim, *indices[:-1])[indices[-1]])

    def draw_of_slot(self, what: str, head: int, t: int, slot: int) -> float:
        """One of the slots of a sub-tile's row."""
        tile, place = divmod(slot, self.device.tile.slots)
        return float(self.row(what, self.device.tile.slots, head, t, tile)[place])

    @property
    def tiles(self) -> int:
        return math.ceil(self.device.window.tokens / self.device.tile.slots)


@cache
def dac_errors(chip: Chip, array: str) -> NDArray:
    """Errors of the write converters in volts, (kv_heads, sub-tiles, head_dim, levels)."""
    storage, write = chip.device.storage, chip.device.write
    steps = chip.circuit(f"dac.{array}", chip.kv_heads, chip.tiles, chip.head_dim, storage.levels - 1)
    return bridge(steps) * write.dac_inl * (storage.v_max - storage.v_min) / (storage.levels - 1)


@cache
def voltage(chip: Chip, array: str, x: float, head: int, token: int, dim: int, age: float) -> float:
    """Gate voltage of a cell: written, relaxed and refreshed."""
    device, slot = chip.device, token % chip.device.window.tokens
    storage, tile = device.storage, slot // device.tile.slots
    step = (storage.v_max - storage.v_min) / (storage.levels - 1)
    table = dac_errors(chip, array)[head, tile, dim]
    z_tau = chip.cell("retention", array)[head, slot, dim]
    interval = chip.interval
    v, epoch = quantise_levels(np.float64(x), storage.levels, storage.v_min, storage.v_max), 0
    while True:
        v = float(written_voltage(
            v, device, inl=table[round((v - storage.v_min) / step)],
            z_write=chip.draw(f"write {array} {epoch}", head, token, dim),
            z_capacitor=chip.cell("capacitor", array)[head, slot, dim],
            z_pedestal=chip.cell("pedestal", array)[head, slot, dim],
        ))  # fmt: skip
        rest = min(interval, age)
        v = stored_voltage(v, rest, device.retention, temperature=device.operation.temperature, z=z_tau)
        if age < interval:
            offset = device.variability.offset_sigma * chip.cell("offset", array)[head, slot, dim]
            return float(v) + offset - threshold_drift(device)
        v, age, epoch = quantise_levels(v, storage.levels, storage.v_min, storage.v_max), age - interval, epoch + 1


def current(chip: Chip, array: str, x: float, head: int, token: int, dim: int, age: float) -> float:
    """Current of a cell while its pulse is high."""
    device, slot = chip.device, token % chip.device.window.tokens
    w = voltage(chip, array, x, head, token, dim, age) - device.storage.v_zero
    if array == "key":  # the bit line of a slot runs along the dimensions of a sub-tile
        position, cells = dim % device.tile.rows, min(device.tile.rows, chip.head_dim)
    else:
        position, cells = slot % device.tile.slots, device.tile.slots
    gain = device.variability.gain_sigma * chip.cell("gain", array)[head, slot, dim]
    lost = wire_drop(position, cells, device.wire)
    return float(cell_current(np.float64(w), device.cell) * (1 + gain) * (1 - lost))


def pulses(chip: Chip, q: NDArray, head: int, kv_head: int, t: int) -> NDArray:
    """Pulses of one query: level, error of its converter, jitter."""
    device, dims = chip.device, chip.head_dim
    levels = device.input.levels
    level = quantise_levels(q, levels, 0.0, 1.0)
    table = bridge(chip.circuit("input", chip.kv_heads, dims, levels - 1)[kv_head]) * device.input.inl / (levels - 1)
    made = level + table[np.arange(dims), np.round(level * (levels - 1)).astype(int)]
    z = np.array([chip.draw("query jitter", head, t, i) for i in range(dims)])
    return np.maximum(made + device.input.jitter / device.cost.time_qk * z * (made > 0), 0.0)


def score(chip: Chip, p: NDArray, currents: NDArray, head: int, kv_head: int, t: int, slot: int, read: str) -> float:
    """Score over its saturation, with the column's offset and the noise of line and comparator."""
    device = chip.device
    full = abs(float(cell_current(np.float64(device.storage.v_max - device.storage.v_zero), device.cell)))
    line = math.sqrt(read_noise_variance(p, full, device.noise)) / device.saturation.qk
    columns = chip.die.columns("phi", chip.kv_heads, torch.arange(device.window.tokens)).double().numpy()
    offset = device.variability.phi_offset_sigma * columns[kv_head, slot]
    noise = math.hypot(line, device.noise.comparator) * chip.draw_of_slot(read, head, t, slot)
    return math.fsum(p * currents) / device.saturation.qk + offset + noise


def weights(chip: Chip, q: NDArray, k: NDArray, head: int, kv_head: int, t: int, held: list[int]) -> NDArray:
    """Pulses between the products, of the tokens that query t reads."""
    device = chip.device
    bits, window = device.readout_qk.bits, device.window.tokens
    lines = [
        np.array([current(chip, "key", x, kv_head, s, i, (t - s) * chip.period) for i, x in enumerate(k[kv_head, s])])
        for s in held
    ]
    if device.activation.kind == "softmax":
        logits = np.zeros(len(held))
        for sign, read in ((1, "score"), (-1, "score of negative queries")):
            p = pulses(chip, np.maximum(sign * q[head, t], 0.0), head, kv_head, t)
            raw = [score(chip, p, i, head, kv_head, t, s % window, read) for s, i in zip(held, lines, strict=True)]
            logits += sign * quantise_levels(np.array(raw), 2**bits - 1, -1.0, 1.0)
        phi = np.exp(logits) / np.exp(logits).sum()
        phi = quantise_levels(phi, device.activation.levels, 0.0, 1.0)
    else:
        p = pulses(chip, q[head, t], head, kv_head, t)
        raw = [score(chip, p, i, head, kv_head, t, s % window, "score") for s, i in zip(held, lines, strict=True)]
        phi = quantise_levels(np.array(raw), None if bits is None else 2**bits, 0.0, 1.0)
    z = np.array([chip.draw_of_slot("phi jitter", head, t, s % window) for s in held])
    return np.maximum(phi + device.input.jitter / device.cost.time_av * z * (phi > 0), 0.0)


def columns_read_out(chip: Chip, charge: NDArray, head: int, kv_head: int, t: int, tile: int) -> NDArray:
    """Readout of the columns of one sub-tile."""
    readout, dims = chip.device.readout, chip.head_dim
    if readout.bits is None:
        return np.clip(charge, -1.0, 1.0)
    sizes, codes = (chip.kv_heads, chip.tiles), 2 * highest_code(readout) + 1
    shared = 1 if readout.circuit == "ramp" else dims
    inl = np.broadcast_to(chip.circuit("readout inl", *sizes, shared, codes)[kv_head, tile], (dims, codes))
    return read_out(
        charge, readout,
        errors=code_errors(inl, chip.circuit("readout dnl", *sizes, dims, codes)[kv_head, tile], readout),
        z_gain=chip.circuit("readout gain", *sizes, dims)[kv_head, tile],
        z_offset=chip.circuit("readout offset", *sizes, dims)[kv_head, tile],
        z_noise=[chip.draw("readout", head, t, tile, i) for i in range(dims)],
    )  # fmt: skip


def loop_of_the_contract(chip: Chip, q: NDArray, k: NDArray, v: NDArray) -> NDArray:
    """Attention of one sequence, (heads, tokens, head_dim), in the order of HARDWARE.md's steps 2-10."""
    device, (heads, tokens, dims) = chip.device, q.shape
    window, slots = device.window.tokens, device.tile.slots
    full = abs(float(cell_current(np.float64(device.storage.v_max - device.storage.v_zero), device.cell)))
    out = np.zeros_like(q)
    for head in range(heads):
        kv_head = head // (heads // chip.kv_heads)
        for t in range(tokens):
            held = list(range(max(0, t - window + 1), t + 1))
            phi = weights(chip, q, k, head, kv_head, t, held)
            for tile in sorted({s % window // slots for s in held}):
                here = [n for n, s in enumerate(held) if s % window // slots == tile]
                charge = np.zeros(dims)
                # jitter may leave less than no pulse where there was next to none
                noise = math.sqrt(max(read_noise_variance(phi[here], full, device.noise), 0.0))
                for i in range(dims):
                    aged = ((held[n], (t - held[n]) * chip.period) for n in here)
                    cells = [current(chip, "value", v[kv_head, s, i], kv_head, s, i, age) for s, age in aged]
                    charge[i] = math.fsum(phi[here] * cells) + noise * chip.draw("charge", head, t, tile, i)
                out[head, t] += columns_read_out(chip, charge / device.saturation.av, head, kv_head, t, tile)
    return out
