"""The arrays of one layer while tokens come one after another: written in place, read at the cost of the window.

``gain_cell_attention`` writes and reads whole sequences; this is the same token by token. Each token goes into slot
``t mod M`` once, with all its refreshes; the weight of slot s at token t is that of the age ``(t - s) mod M``, a slice
of a table that holds all ages twice.

Shapes: b sequences, h query heads, g arrays (key/value heads), M slots, d dimensions.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from device_models.converters import highest_code, readout_step
from device_models.schema import DeviceModel
from hwsim.die import ARRAYS, Array
from hwsim.functional.arrays import CellArray, decay_time, interpolable, voltages_after_writes
from hwsim.functional.cells import (
    CellDeviations,
    cell_current,
    cell_deviations,
    relaxed_level,
    relaxed_voltage,
    to_levels,
)
from hwsim.functional.codes import codes_of
from hwsim.functional.counted_ring import CountedRing
from hwsim.functional.fading_cells import FadingCells
from hwsim.functional.layout import Stretch, stretch_layout
from hwsim.functional.reads import (
    Place,
    TokenPlace,
    has_read_noise,
    input_pulses,
    on_pulse_grid,
    pulse_steps,
    read_out,
    scores_to_pulses,
)
from hwsim.functional.tables import AttentionTables, ages_twice


class RingBuffer:
    """The cells of one layer, all sequences of a batch written at the same time.

    Args:
        device: The device; a hard sigmoid between the products.
        batch: Sequences.
        heads: Query heads.
        kv_heads: Arrays.
        head_dim: Dimensions of a head.
        token_period_s: [s] time between two tokens.
        place: Chip, layer and noise keys.
        dtype: Of everything.

    Attributes:
        tokens: How many were written.

    Raises:
        ValueError: If heads do not divide, scores are normalised in digital, or sub-tiles are cut by absolute index.
    """

    def __init__(
        self, device: DeviceModel, batch: int, heads: int, kv_heads: int, head_dim: int, *,
        token_period_s: float | None = None, place: Place | None = None, dtype: torch.dtype = torch.float32,
        where: torch.device | None = None,
    ) -> None:  # fmt: skip
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
        if device.activation.kind == "softmax" or device.tile.assignment != "ring":
            raise ValueError(f"{device.name}: a ring buffer needs a hard sigmoid and sub-tiles of physical slots")
        place = place or Place()
        self.device, self.tokens = device, 0
        self.place = TokenPlace(place.die, place.keys, place.layer)
        self.batch, self.heads, self.kv_heads, self.head_dim, self.dtype = batch, heads, kv_heads, head_dim, dtype
        self.window, self.slots = device.window.tokens, device.tile.slots
        layout = stretch_layout(Stretch(1, self.window), device, where)
        self.tables = AttentionTables(layout, device, token_period_s, dtype)
        self.padded = device.subtiles * self.slots
        self.index = torch.arange(self.padded, device=where)
        self._now = torch.zeros(1, 1, dtype=torch.long, device=where)
        codes = codes_of(device, self.place) if self.plain else None
        self.counted: CountedRing | None = None
        if codes is not None:
            self.counted = CountedRing(device, codes, (batch, heads, kv_heads, head_dim), self.tables, dtype)
        else:
            self.arrays = {name: _Ring(self, name) for name in ARRAYS}

    @torch.no_grad()
    def write(self, key: Tensor, value: Tensor, first: int | None = None) -> None:
        """Write consecutive tokens that no query reads yet; of more than a window, the last ones.

        Args:
            key: [V] (b, g, n, d) before its converter.
            value: [V] as ``key``.
            first: Write index of the first one; default is the one behind the last token. With another, the tokens
                must fill all slots but those that :meth:`step` and :meth:`write` fill before the next read.
        """
        end = (self.tokens if first is None else first) + key.shape[2]
        levels = torch.stack((key, value))[..., -self.window :, :]
        if self.counted is None:
            levels = to_levels(levels, self.device)
        at = begin = end - levels.shape[3]
        while at < end:  # up to the last slot, and from the first one on
            slot = at % self.window
            stop = min(end, at + self.window - slot)
            part = levels[..., at - begin : stop - begin, :].unbind()
            if self.counted is not None:
                self.counted.write(part[0], part[1], slot)
            else:
                written = torch.arange(at, stop, device=self.index.device)[None]
                for name, x in zip(ARRAYS, part, strict=True):
                    self.arrays[name].write(x, written, slot)
            at = stop
        self.tokens = end

    @torch.no_grad()
    def step(self, query: Tensor, key: Tensor, value: Tensor, *, full_scale: Tensor | None = None) -> Tensor:
        """Write a token and let its query read.

        Args:
            query: [1] (b, h, 1, d) before its converter.
            key: [V] (b, g, 1, d) before its converter.
            value: [V] as ``key``.
            full_scale: [1] (h,) range of the readout in saturations, where the device does not fix it; None is 1.

        Returns:
            (b, h, 1, d) before the output scaler.
        """
        device, now = self.device, self.tokens
        if self.counted is not None:
            out = self.counted.step(query, key, value, now)
            self.tokens += 1
            return out
        slot, written = now % self.window, self._now.fill_(now)
        levels = to_levels(torch.stack((key, value)), device)
        for name, x in zip(ARRAYS, levels.unbind(), strict=True):
            self.arrays[name].write(x, written, slot)
        self.tokens += 1
        pulses = input_pulses(query, device, self.place, written, self.kv_heads)
        rows = pulses.reshape(self.batch * self.kv_heads, -1, self.head_dim)
        scores = self.arrays["key"].product(rows, slot, first=True)
        if self.plain:
            phi = scores.clamp_(0.0, 1.0)
        else:
            wide = scores.view(self.batch, self.heads, 1, self.padded)
            live = (self.index < min(self.tokens, self.window)).to(self.dtype).view(1, 1, -1)
            phi = scores_to_pulses(wide, pulses, live, device, self.place, written, None, self.kv_heads)
            phi = phi.reshape(scores.shape)
        charge = self.arrays["value"].product(self._on_grid(phi, slot), slot, first=False)
        return self._read_out(charge, phi, written, full_scale)

    def _on_grid(self, phi: Tensor, slot: int) -> Tensor:
        """Round pulses (b g, group, M) times the decay of the values that they read, where the device asks for it."""
        if pulse_steps(self.device) is None:
            return phi
        decay = self.decay[self.window - 1 - slot :][: min(self.tokens, self.window)]
        out = torch.zeros_like(phi)
        out[..., : len(decay)] = on_pulse_grid(phi[..., : len(decay)], decay, self.device)
        return out

    @cached_property
    def decay(self) -> Tensor:
        """Return the one factor that fades all values, by age from ``window - 1`` to 0, twice."""
        return ages_twice(self.tables.by_age(0, first=False)[1])

    @cached_property
    def plain(self) -> bool:
        """Whether nothing but a clip stands between the products, and nothing but rounding behind them."""
        nothing = self.place.die is None and self.place.keys is None and self.device.readout_qk.bits is None
        return nothing and self.device.readout.range == "fixed"

    def _read_out(self, charge: Tensor, phi: Tensor, written: Tensor, full_scale: Tensor | None) -> Tensor:
        """Read out (b g, group, sub-tiles, d) charges and add them up."""
        device, step = self.device, readout_step(self.device.readout)
        shape = (self.batch, self.heads, 1, self.head_dim)
        if self.plain and self.arrays["value"].proportional:
            if step is None:
                return charge.clamp_(-1.0, 1.0).sum(2).view(shape)
            top = highest_code(device.readout)  # charges are in steps here
            return charge.round_().clamp_(-top, top).sum(2).mul_(step).view(shape)
        tiles = slice(-(-min(self.tokens, self.window) // self.slots))
        power = None
        if has_read_noise(device, self.place):
            p = phi.unflatten(-1, (-1, self.slots))[:, :, tiles]
            of_heads = (self.batch, self.heads, -1)
            power = (p.sum(-1).reshape(of_heads), p.square().sum(-1).reshape(of_heads))
        x = charge[:, :, tiles].reshape(self.batch, self.heads, -1, self.head_dim)
        read = read_out(x, power, device, self.place, written, tiles, self.kv_heads, full_scale)
        return read.sum(2, keepdim=True)


class _Ring:
    """One array: images of its cells where one factor fades them all, else their excursions or voltages."""

    def __init__(self, ring: RingBuffer, name: Array) -> None:
        self.ring, self.name, device = ring, name, ring.device
        self.cells = self._deviations()
        shape = (ring.batch, ring.kv_heads, ring.padded, ring.head_dim)
        probe = torch.zeros(ring.batch, ring.kv_heads, 1, ring.head_dim, dtype=ring.dtype, device=ring.index.device)
        blank = probe.expand(-1, -1, ring.window, -1)
        array = CellArray([blank] * ring.tables.epochs, device, self.cells, ring.tables, name)
        self.level = relaxed_level(device)
        step = readout_step(device.readout)
        unit = 1.0 / step if ring.plain and step is not None and name == "value" else 1.0
        self.proportional, self.saturation = array.proportional, array.saturation
        self.fading: FadingCells | None = None
        if self.proportional:
            made = array.powers(surrogate=False)
            self.which = made.which
            self.coefficients = array.coefficients(self.cells, surrogate=False)
            size = (ring.batch * ring.kv_heads, ring.padded, ring.head_dim)
            self.states = [probe.new_zeros(size) for _ in made.which]
            scaled = zip(made.which, made.scales, strict=True)
            first = name == "key"
            self.weights = [ages_twice(ring.tables.by_age(e, first=first)[n] * (c * unit)) for (e, n), c in scaled]
            always = torch.stack([ring.tables.by_age(e, first=name == "key")[0] for e in range(ring.tables.epochs)])
            self.constant = ages_twice(always.sum(0) * (made.constant * unit)) if made.constant else None
            return
        self.age = ages_twice(torch.arange(ring.window, device=ring.index.device))
        if interpolable(device, self.cells, ring.tables.epochs):  # one exponential for each cell
            assert self.cells.slowness is not None
            rates = ring.tables.period / decay_time(device) / self.cells.slowness
            self.fading = FadingCells(array.coefficients(self.cells, surrogate=False), rates, shape)
        else:
            self.voltages = [probe.new_full(shape, device.storage.v_zero) for _ in range(ring.tables.epochs)]

    def _deviations(self) -> CellDeviations:
        ring = self.ring
        slots = torch.arange(ring.window, device=ring.index.device)
        return cell_deviations(
            ring.place.die, self.name, ring.device, ring.kv_heads, slots, ring.head_dim, ring.dtype
        )  # fmt: skip

    def _at(self, table: Tensor, slot: int) -> Tensor:
        """Return what a table holds for the ages of all written slots, (written,)."""
        start = self.ring.window - 1 - slot
        return table[start : start + min(self.ring.tokens, self.ring.window)]

    def write(self, levels: Tensor, written: Tensor, slot: int) -> None:
        """Put the levels [V] of tokens (b, g, n, d), with their write indices (1, n), into slots from one on."""
        slots = slice(slot, slot + levels.shape[2])
        cells = self.cells.at(slots)
        epochs = voltages_after_writes(levels, cells, self.ring.tables, self.ring.place, self.name, written)
        if self.proportional:
            excursions = [voltage - self.level for voltage in epochs]
            for kept, (epoch, n) in zip(self.states, self.which, strict=True):
                y, c = excursions[epoch], self.coefficients[n]
                image = y**n if n > 1 else y if n else torch.ones_like(y)
                if isinstance(c, Tensor):
                    image = image * (c[:, slots] if c.shape[1] > 1 else c)
                kept[:, slots] = image.flatten(0, 1)
        elif self.fading is not None:
            self.fading.excursions[:, :, slots] = epochs[0] - self.level
        else:
            for kept, fresh in zip(self.voltages, epochs, strict=True):
                kept[:, :, slots] = fresh

    def product(self, x: Tensor, slot: int, *, first: bool) -> Tensor:
        """Multiply pulses by currents over the saturation, with the token in ``slot`` written last.

        Args:
            x: (b g, group, d) of the rows, or (b g, group, M) of the columns.
            slot: Physical slot.
            first: Whether it is the first product, (b g, group, M), or the second, (b g, group, sub-tiles, d).
        """
        if not self.proportional:
            return _product(x, self._currents(slot), self.ring.slots, first=first)
        held, total = min(self.ring.tokens, self.ring.window), None
        for table, image in zip(self.weights, self.states, strict=True):
            weight = self._at(table, slot)
            if first:
                part = torch.bmm(x, image.mT)
                part[..., :held].mul_(weight)
                if held < part.shape[-1]:
                    part[..., held:] = 0.0
            else:
                part = _product(_weighted(x, weight), image, self.ring.slots, first=False)
            total = part if total is None else total.add_(part)
        assert total is not None
        if self.constant is not None:
            weight = self._at(self.constant, slot)
            if first:
                total[..., :held].addcmul_(x.sum(-1, keepdim=True), weight)
            else:
                total.add_(_weighted(x, weight).unflatten(-1, (-1, self.ring.slots)).sum(-1, keepdim=True))
        return total

    def _currents(self, slot: int) -> Tensor:
        """Return the currents of all cells at their age, (b g, M, d), zero where nothing was written."""
        ring, device, held = self.ring, self.ring.device, min(self.ring.tokens, self.ring.window)
        if self.fading is not None:
            return self.fading.currents(self._at(self.age, slot)).flatten(0, 1)
        epoch, rest = ring.tables.epoch_and_rest(self._at(self.age, slot))
        cells = self.cells.at(slice(held))
        out = self.voltages[0].new_zeros(self.voltages[0].shape)
        for e, v0 in enumerate(self.voltages):
            v = relaxed_voltage(v0[:, :, :held], rest[:, None].to(v0.dtype), device, cells)
            out[:, :, :held] += cell_current(v, device, cells) * (epoch == e)[:, None] / self.saturation
        return out.flatten(0, 1)


def _weighted(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply the written slots of (n, group, M) and clear the others."""
    out = x.new_zeros(x.shape) if weight.numel() < x.shape[-1] else torch.empty_like(x)
    torch.mul(x[..., : weight.numel()], weight, out=out[..., : weight.numel()])
    return out


def _product(x: Tensor, cells: Tensor, slots: int, *, first: bool) -> Tensor:
    if first:
        return torch.bmm(x, cells.mT)
    n, group, padded = x.shape
    by_tile = x.view(n, group, -1, slots).transpose(1, 2).reshape(-1, group, slots)
    made = torch.bmm(by_tile, cells.view(-1, slots, cells.shape[-1]))
    return made.view(n, padded // slots, group, -1).transpose(1, 2)
