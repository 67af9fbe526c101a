"""Vectorised attention on gain cells: one physical sub-tile at a time; ``naive_gain_cell_attention`` is its oracle."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from device_models.schema import DeviceModel
from hwsim.die import ARRAYS, Array, Die
from hwsim.functional.arrays import CellArray, fades_smoothly, voltages_after_writes
from hwsim.functional.attention import READS, digitised
from hwsim.functional.cell_products import CellImages
from hwsim.functional.cells import CellDeviations, cell_deviations, decays_in_proportion, to_levels
from hwsim.functional.circuits import Circuits
from hwsim.functional.codes import Codes, attend_counts, codes_of
from hwsim.functional.layout import Block, SlotLayout, Stretch, causal_layout
from hwsim.functional.quantise import quantise_levels
from hwsim.functional.reads import (
    Place,
    has_read_noise,
    input_pulses,
    jittered,
    noisy_scores,
    on_pulse_grid,
    pulse_steps,
    read_out,
    scores_are_noisy,
    scores_to_pulses,
    sequence_keys,
)
from hwsim.functional.tables import AttentionTables
from hwsim.functional.tile_loop import Arrays, Cells, tile_loop

Watcher = Callable[[Tensor], None]
"""Is given the charges [1] (heads, reads) of one sub-tile before noise and readout, over the saturation."""

FEW_QUERIES = 8
"""Below this the current of each cell at each query costs less than those at the nodes."""
STORED_SCORES = 1 << 22
"""Scores of one sub-tile beyond which they are computed again in the backward pass instead of stored."""


def gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    device: DeviceModel,
    *,
    token_period_s: float | None = None,
    die: Die | None = None,
    read_key: int | Tensor | None = None,
) -> Tensor:
    """Compute causal attention of one sequence on gain-cell arrays; ``naive_gain_cell_attention`` is its oracle.

    Args:
        query: [1] pulse width in units of the full pulse, before its converter; (batch, heads, tokens, head_dim).
        key: [V] voltages to store, before their converter; (batch, kv_heads, tokens, head_dim).
        value: [V] as ``key``.
        device: The device.
        token_period_s: [s] time between two tokens; required when the device decays.
        die: The chip; None is the design without static deviations, drift and wire losses.
        read_key: Key of everything random at writes and reads: a number, or one int64 per sequence; None switches
            it off.

    Returns:
        (batch, heads, tokens, head_dim) before the output scaler, in units of the saturation.

    Raises:
        ValueError: If the device decays and no token period is given, or head counts do not divide.

    Source: leroux2025, Methods (equations 1-5).
    """
    layout = causal_layout(query.shape[2], device, query.device)
    tables = AttentionTables(layout, device, token_period_s, query.dtype)
    keys = sequence_keys(read_key, query.shape[0], query.device)
    place = Place(None, keys) if die is None else Place(die.on(device), keys, die.layer)
    return attend(query, key, value, device, tables, place)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    device: DeviceModel,
    tables: AttentionTables,
    place: Place | None = None,
    *,
    full_scale: Tensor | None = None,
    logit_gain: Tensor | None = None,
    watch: Watcher | None = None,
) -> Tensor:
    """Compute attention for any geometry: chunks, decode with a cache, padding, wrapped ring.

    Args:
        query: [1] (batch, heads, queries, head_dim), before its converter.
        key: [V] (batch, kv_heads, keys, head_dim), before its converter.
        value: [V] as ``key``.
        device: The device.
        tables: Geometry and decay of this forward pass.
        place: Chip, layer and noise keys; None is the design without anything random or static.
        full_scale: [1] (heads,) range of the readout in saturations.
        logit_gain: [1] (heads,) factor in front of the softmax; only used with ``activation.kind`` softmax.
        watch: Is shown the charges of each sub-tile on their way to the readout.

    Returns:
        (batch, heads, queries, head_dim) before the output scaler.

    Raises:
        ValueError: If the query heads cannot share the key/value heads evenly, or their dimensions differ.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        raise ValueError(
            f"query, key and value have {query.shape[-1]}, {key.shape[-1]} and {value.shape[-1]} dimensions: give all "
            "heads the same"
        )
    run = _Pass(query, key, value, device, tables, place or Place(), full_scale, watch)
    return run.softmax(logit_gain) if device.activation.kind == "softmax" else run.hard_sigmoid()


class _Pass:
    """One layer's forward pass."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, device: DeviceModel, tables: AttentionTables, place: Place,
        full_scale: Tensor | None, watch: Watcher | None,
    ) -> None:  # fmt: skip
        self.device, self.tables, self.place, self.full_scale = device, tables, place, full_scale
        self.watch = watch
        self.layout = tables.layout
        self.batch, self.heads, self.queries, self.head_dim = query.shape
        self.kv_heads = key.shape[1]
        self.group = self.heads // self.kv_heads
        self.query = query
        self.given = dict(zip(ARRAYS, (key, value), strict=True))

    @cached_property
    def keys(self) -> CellArray:
        """The array of keys, in columns."""
        return self._array("key")

    @cached_property
    def values(self) -> CellArray:
        """The array of values, in columns."""
        return self._array("value")

    def _array(self, name: Array, *, in_order: bool = False) -> CellArray:
        """Write tokens into their columns, and refresh them; ``in_order`` keeps the order of the tokens."""
        device, layout, x = self.device, self.layout, self.given[name]
        cells = self._deviations(name, x.dtype, in_order=in_order)
        v = to_levels(x, device)
        v = v if in_order else in_columns(v, layout)
        written = layout.written_in_order if in_order else layout.written
        epochs = voltages_after_writes(v, cells, self.tables, self.place, name, written)
        return CellArray(epochs, device, cells, self.tables, name, self.place.die)

    def _deviations(self, name: Array, dtype: torch.dtype, *, in_order: bool) -> CellDeviations:
        """Return the deviations of the columns; a range of slots, so two numbers name it."""
        die, layout = self.place.die, self.layout
        slots = layout.slot_in_order if in_order else layout.slot_of_column

        def of(some: Tensor) -> CellDeviations:
            return cell_deviations(die, name, self.device, self.kv_heads, some, self.head_dim, dtype)

        if die is None:
            return of(slots)
        key = (name, in_order, self.kv_heads, self.head_dim, dtype, slots.device)
        if not in_order:
            return die.once((*key, layout.first_slot, slots.numel()), lambda: of(slots))
        # Few different lengths: a text that grows token by token must not leave a copy for each
        needed = int(slots.max()) + 1
        length = min(layout.slots << max(0, (needed - 1) // layout.slots).bit_length(), layout.period)
        cells = die.once((*key, length), lambda: of(torch.arange(length, device=slots.device)))
        if needed == slots.numel() and int(slots[0]) == 0:
            return cells.at(slice(needed))
        return cells.at(slots)

    def _pulses(self, query: Tensor) -> Tensor:
        return input_pulses(query, self.device, self.place, self.layout.query_index, self.kv_heads)

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.kv_heads, self.group))

    def hard_sigmoid(self) -> Tensor:
        """Return the sum of all sub-tiles' readouts; the laps of one sub-tile meet before it."""
        learned = self.full_scale is not None and self.full_scale.requires_grad
        stretch, looped = self.layout.stretch, None
        if stretch is not None and self.watch is None and not learned and self._loops(stretch):
            if (codes := codes_of(self.device, self.place)) is not None:
                return self._counted(codes, stretch)
            looped = self._looped(self._pulses(self.query), stretch)
        if looped is not None:
            return looped
        pulses = self._pulses(self.query)
        _ = self.keys, self.values  # made before a checkpoint would make them twice
        out = self.query.new_zeros(self.batch, self.heads, self.queries, self.head_dim)
        for tile, blocks in self.layout.blocks.items():
            start, stop = min(b.start for b in blocks), max(b.stop for b in blocks)
            size = self.batch * self.heads * sum((b.stop - b.start) * (b.last - b.first) for b in blocks)
            if torch.is_grad_enabled() and size > STORED_SCORES:
                part = checkpoint(self._tile, pulses, tile, blocks, start, stop, use_reentrant=False)
            else:
                part = self._tile(pulses, tile, blocks, start, stop)
            out = _added(out, part, start)
        return out

    def _loops(self, stretch: Stretch) -> bool:
        """Whether cells fade by one factor, or are worth interpolating; both arrays have the same laws."""
        cells = self._deviations("key", self.query.dtype, in_order=True)
        if decays_in_proportion(self.device, cells):
            return True
        dtype = self.query.dtype
        return stretch.queries >= FEW_QUERIES and fades_smoothly(self.device, cells, self.tables.epochs, dtype)

    def _circuits(self, pulses: Tensor, stretch: Stretch) -> Circuits:
        return Circuits(
            self.device, self.place, pulses.detach(), stretch.first_query, self.kv_heads, self.tables.oldest + 1,
            self.full_scale,
        )  # fmt: skip

    def _counted(self, codes: Codes, stretch: Stretch) -> Tensor:
        """Return the same on whole numbers."""
        noisy = scores_are_noisy(self.device, self.place)  # of the pulses, only noise wants more than their number
        circuits = self._circuits(self._pulses(self.query.detach()) if noisy else self.query, stretch)
        return attend_counts(
            self.query, self.given["key"], self.given["value"], codes, circuits, self.tables, stretch
        )  # fmt: skip

    def _looped(self, pulses: Tensor, stretch: Stretch) -> Tensor | None:
        """Return the same, sub-tile by sub-tile, without anything that grows with queries times keys.

        None where cells would need too many nodes.
        """
        keys, values = (self._array(name, in_order=True) for name in ARRAYS)
        circuits, steps = self._circuits(pulses, stretch), pulse_steps(self.device)

        def images(array: CellArray, *, surrogate: bool) -> Cells | None:
            if not array.proportional:
                unit = 1.0 if array.name == "key" else circuits.per_charge
                queries = min(stretch.queries, self.layout.window)
                other = values if array is keys else keys
                return array.aged(queries, other, surrogate=surrogate, group=self.group, scale=unit)
            made, first = array.powers(surrogate=surrogate), array.name == "key"
            unit = 1.0 if first else circuits.per_charge
            scales, grid = [unit * scale for scale in made.scales], None
            if steps is not None and not first:
                scales, grid = [float(steps)], (made.scales[0] / steps, unit)
            bands = tuple(
                self.tables.band((one,), scale, first=first) for one, scale in zip(made.which, scales, strict=True)
            )
            constant = None
            if made.constant:
                always = tuple((epoch, 0) for epoch in range(self.tables.epochs))
                constant = (made.constant, self.tables.band(always, unit, first=first))
            states = made.states if self.group == 1 else made.states.repeat_interleave(self.group, 1)
            return CellImages(states.flatten(0, 1), bands, constant, grid)

        exact = images(keys, surrogate=False), images(values, surrogate=False)
        straight = self.device.cell.backward == "exact"
        smooth = exact if straight else (images(keys, surrogate=True), images(values, surrogate=True))
        if exact[0] is None or exact[1] is None or smooth[0] is None or smooth[1] is None:
            return None
        arrays = Arrays(exact[0], exact[1], None if straight else (smooth[0], smooth[1]))
        return tile_loop(pulses.flatten(0, 1), arrays, circuits, stretch).view_as(pulses)

    def _tile(self, pulses: Tensor, tile: int, blocks: list[Block], start: int, stop: int) -> Tensor:
        parts = []
        for block in blocks:
            q = pulses[:, :, block.rows]
            scores = self.keys.scores(self._grouped(q), block).flatten(1, 2)
            phi = scores_to_pulses(
                scores, q, self.tables.read[:, block.rows, block.columns], self.device, self.place,
                self.layout.query_index[:, block.rows], self.layout.slot_of_column[block.columns], self.kv_heads,
            )  # fmt: skip
            parts.append((block, phi))
        return self._read_out(tile, parts, start, stop)

    def _on_grid(self, phi: Tensor, block: Block) -> Tensor:
        if pulse_steps(self.device) is None:
            return phi
        decay = self.tables.powers(0, first=False)[1][:, block.rows, block.columns]
        return on_pulse_grid(phi, decay[:, None], self.device)

    def _read_out(self, tile: int, parts: list[tuple[Block, Tensor]], start: int, stop: int) -> Tensor:
        noisy = has_read_noise(self.device, self.place)
        charge: Tensor | None = None
        power: tuple[Tensor, Tensor] | None = None
        for block, phi in parts:
            piece = self.values.charge(self._grouped(self._on_grid(phi, block)), block).flatten(1, 2)
            charge = _joined(charge, piece, block.start - start, stop - start)
            if noisy:
                sums = (phi.detach().sum(-1, keepdim=True), (phi.detach() ** 2).sum(-1, keepdim=True))
                before = (None, None) if power is None else power
                power = tuple(
                    _joined(b, s, block.start - start, stop - start) for b, s in zip(before, sums, strict=True)
                )  # type: ignore[assignment]
        assert charge is not None
        live = self.layout.live[tile]
        if self.watch is not None:
            by_head = charge.detach().transpose(0, 1)
            read = by_head if live is None else by_head[:, live.expand(self.batch, -1)]
            self.watch(read.flatten(1))
        flat = None if power is None else (power[0][..., 0], power[1][..., 0])
        out = read_out(
            charge, flat, self.device, self.place, self.layout.query_index[:, start:stop], tile, self.kv_heads,
            self.full_scale,
        )  # fmt: skip
        return out if live is None else out * live[:, None, :, None]

    def softmax(self, logit_gain: Tensor | None) -> Tensor:
        """Digitise scores of positive and negative queries, normalise them in digital, and read the values."""
        device, layout = self.device, self.layout
        logits = self.query.new_full((self.batch, self.heads, self.queries, layout.columns), -torch.inf)
        signed = [(1.0, self._pulses(self.query.clamp(min=0.0))), (-1.0, self._pulses((-self.query).clamp(min=0.0)))]
        everything = [block for blocks in layout.blocks.values() for block in blocks]
        for block in everything:
            total: Tensor | float = 0.0
            for sign, pulses in signed:
                q = pulses[:, :, block.rows]
                scores = self.keys.scores(self._grouped(q), block).flatten(1, 2)
                scores = noisy_scores(
                    scores, q, device, self.place, layout.query_index[:, block.rows],
                    layout.slot_of_column[block.columns], self.kv_heads, READS[sign],
                )  # fmt: skip
                total = total + sign * digitised(scores, device)
            unread = ~layout.read[:, None, block.rows, block.columns]
            logits[:, :, block.rows, block.columns] = torch.as_tensor(total).masked_fill(unread, -torch.inf)
        gain = 1.0 if logit_gain is None else logit_gain.view(1, -1, 1, 1)
        # A query that reads nothing (padding) has no maximum: keep it finite
        empty = ~layout.read.any(-1)[:, None, :, None]
        phi = torch.softmax((gain * logits).masked_fill(empty, 0.0), dim=-1) * layout.read[:, None]
        phi = quantise_levels(phi, device.activation.levels, 0.0, 1.0)
        out = torch.zeros_like(self.query)
        for tile, blocks in layout.blocks.items():
            start, stop = min(b.start for b in blocks), max(b.stop for b in blocks)
            parts = [
                (
                    block,
                    jittered(
                        phi[:, :, block.rows, block.columns], device, self.place, layout.query_index[:, block.rows],
                        layout.slot_of_column[block.columns],
                    ),
                )
                for block in blocks
            ]  # fmt: skip
            out = _added(out, self._read_out(tile, parts, start, stop), start)
        return out


def in_columns(x: Tensor, layout: SlotLayout) -> Tensor:
    """Re-order (batch, kv_heads, keys, head_dim) into the columns of the layout."""
    if layout.identity:
        return x
    index = layout.key_of_column.expand(x.shape[0], -1)[:, None, :, None]
    return x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))


def _added(out: Tensor, part: Tensor, start: int) -> Tensor:
    """Add rows ``start`` and following."""
    if part.shape[2] == out.shape[2]:
        return out + part
    return out + torch.nn.functional.pad(part, (0, 0, start, out.shape[2] - start - part.shape[2]))


def _joined(total: Tensor | None, part: Tensor, start: int, rows: int) -> Tensor:
    """Add a part to a sum of ``rows`` rows that may not have begun."""
    if part.shape[2] != rows:
        part = torch.nn.functional.pad(part, (0, 0, start, rows - start - part.shape[2]))
    return part if total is None else total + part
