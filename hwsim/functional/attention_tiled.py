"""Vectorised attention on gain cells: one sub-tile at a time, never tokens x tokens in memory.

The decaying voltage is ``w = u + y d`` with ``u = v_inf - v_zero`` and ``y = V(0) - v_inf``; re-expanding the cell
polynomial about u leaves powers of ``y`` with the matching power of the decay d, which only depends on the age::

    f(w) = sum_n c'_n y^n d^n      =>      sum_s x_s f(w_s) = sum_n [ (x d^n) @ (c'_n y^n) ]

so a product on an array is at most three matrix products and a row sum, with ages, causality, window and padding all
in the tables d^n (zero where a column is not read). The backward pass recomputes the sub-tile instead of storing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from device_models.cell import polynomial, shifted_polynomial
from device_models.converters import readout_step
from device_models.schema import DeviceModel
from hwsim.functional.attention import decay_by_age, require_ideal_statistics, written_voltage_offset
from hwsim.functional.layout import SlotLayout, causal_layout
from hwsim.functional.quantise import quantise_levels


@dataclass(frozen=True, eq=False)
class ProductTables:
    """Tables of one product on an array.

    Attributes:
        coefficients: c'_0..c'_3 of the forward pass, divided by the saturation [1/V^n].
        slopes: The same for the backward pass; differs only with the published surrogate.
        powers: d^n where a column is read, else 0, for n = 0..3; (b, queries, columns) each.
    """

    coefficients: tuple[float, ...]
    slopes: tuple[float, ...]
    powers: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class AttentionTables:
    """Everything of a forward pass that depends on ages and device alone; shared by layers and heads."""

    layout: SlotLayout
    first: ProductTables
    second: ProductTables
    step: float | None


def attention_tables(
    layout: SlotLayout, device: DeviceModel, token_period_s: float | None, dtype: torch.dtype
) -> AttentionTables:
    """Tabulate decay, causality and window for one geometry."""
    like = torch.empty(0, dtype=dtype, device=layout.age.device)
    ages = int(layout.age.max()) + 1 if layout.age.numel() else 1
    read = layout.read.to(dtype)

    def product(saturation: float, *, first: bool) -> ProductTables:
        by_age = decay_by_age(device, token_period_s, ages, like, first=first)
        shift = written_voltage_offset(device)
        law = shifted_polynomial(polynomial(device.cell), shift)
        slope = device.cell.surrogate_slope
        surrogate = law if slope is None else (slope * shift, slope)
        constant = not device.decays
        powers = tuple(read if n == 0 or constant else table[layout.age] * read for n, table in enumerate(by_age))
        return ProductTables(tuple(c / saturation for c in law), tuple(c / saturation for c in surrogate), powers)

    return AttentionTables(
        layout,
        product(device.saturation.qk, first=True),
        product(device.saturation.av, first=False),
        readout_step(device.readout),
    )


def gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    device: DeviceModel,
    *,
    token_period_s: float | None = None,
    die: None = None,
    read_key: None = None,
) -> Tensor:
    """Compute causal attention of one sequence on gain-cell arrays; ``naive_gain_cell_attention`` is its oracle.

    Args:
        query: [1] pulse width in units of the full pulse, before its converter; (batch, heads, tokens, head_dim).
        key: [V] voltages to store, before their converter; (batch, kv_heads, tokens, head_dim).
        value: [V] as ``key``.
        device: The device.
        token_period_s: [s] time between two tokens; required when the device decays.
        die: Static deviations; None, as no device file describes any yet.
        read_key: Key of the read noise; None likewise.

    Returns:
        (batch, heads, tokens, head_dim) before the output scaler, in units of the saturation.

    Raises:
        ValueError: If the device decays and no token period is given, or head counts do not divide.

    Source: leroux2025, Methods (equations 1-5).
    """
    require_ideal_statistics(die, read_key)
    layout = causal_layout(query.shape[2], device, query.device)
    return attend(query, key, value, device, attention_tables(layout, device, token_period_s, query.dtype))


def attend(query: Tensor, key: Tensor, value: Tensor, device: DeviceModel, tables: AttentionTables) -> Tensor:
    """Compute attention for any geometry: chunks, decode with a cache, padding, wrapped ring.

    Args:
        query: [1] (batch, heads, queries, head_dim), before its converter.
        key: [V] (batch, kv_heads, keys, head_dim), before its converter.
        value: [V] as ``key``.
        device: The device.
        tables: Geometry and decay of this forward pass.

    Returns:
        (batch, heads, queries, head_dim) before the output scaler.

    Raises:
        ValueError: If the query heads cannot share the key/value heads evenly.
    """
    batch, heads, queries, head_dim = query.shape
    kv_heads, storage, layout = key.shape[1], device.storage, tables.layout
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
    q = quantise_levels(query, device.input.levels, 0.0, 1.0).reshape(batch, kv_heads, -1, head_dim)
    v_inf = storage.v_zero if device.retention.v_inf is None else device.retention.v_inf
    stored = [
        _in_columns(quantise_levels(x, storage.levels, storage.v_min, storage.v_max) - v_inf, layout)
        for x in (key, value)
    ]
    out = _SubTiles.apply(q, *stored, tables, heads // kv_heads)
    return out.view(batch, heads, queries, head_dim)


def _in_columns(x: Tensor, layout: SlotLayout) -> Tensor:
    """Re-order (batch, kv_heads, keys, head_dim) into the columns of the layout."""
    if layout.identity:
        return x
    index = layout.key_of_column.expand(x.shape[0], -1)[:, None, :, None]
    return x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3]))


class _Block:
    """One sub-tile seen by the queries ``rows`` that read it: both products and their transposes."""

    def __init__(self, index: int, q: Tensor, k: Tensor, v: Tensor, tables: AttentionTables, group: int) -> None:
        slots = tables.layout.slots
        self.start, self.stop = tables.layout.spans[index]
        columns = slice(index * slots, (index + 1) * slots)
        batch, kv_heads, grouped, self.head_dim = q.shape
        queries = grouped // group
        rows = q.view(batch, kv_heads, group, queries, self.head_dim)[:, :, :, self.start : self.stop]
        self.shape = (batch, kv_heads, group, self.stop - self.start)
        self.q = rows.reshape(batch, kv_heads, -1, self.head_dim)
        self.k, self.v = k[:, :, columns], v[:, :, columns]
        self.first, self.second = tables.first, tables.second
        self.columns = columns

    def table(self, product: ProductTables, n: int) -> Tensor:
        """Return d^n for the rows of this block, shaped to multiply (batch, kv_heads, group, rows, columns)."""
        return product.powers[n][:, None, None, self.start : self.stop, self.columns]

    def scores(self) -> Tensor:
        """Return the first product over the saturation, S / s_qk."""
        product, total = self.first, None
        for n, c in enumerate(product.coefficients):
            if c == 0.0:
                continue
            term = self.q.sum(-1, keepdim=True) * c if n == 0 else self.q @ (self.k**n * c).mT
            term = term.view(*self.shape, -1) * self.table(product, n)
            total = term if total is None else total.add_(term)
        assert total is not None
        return total

    def charge(self, phi: Tensor) -> Tensor:
        """Return the second product over the saturation, A_r / s_av, of this block's columns."""
        product, total = self.second, None
        for n, c in enumerate(product.coefficients):
            if c == 0.0:
                continue
            pulses = (phi * self.table(product, n)).flatten(2, 3)
            term = pulses.sum(-1, keepdim=True) * c if n == 0 else pulses @ (self.v**n * c)
            total = term if total is None else total + term
        assert total is not None
        return total.view(*self.shape, self.head_dim)

    def backward(self, grad_charge: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of this block's queries (group unfolded), keys and values, given that of the charge."""
        phi = scores.clamp(0.0, 1.0)
        grad = grad_charge.flatten(2, 3)
        grad_phi, grad_v = torch.zeros_like(phi), torch.zeros_like(self.v)
        for n, c in enumerate(self.second.slopes):
            table = self.table(self.second, n)
            weight = grad.sum(-1, keepdim=True) * c if n == 0 else grad @ (self.v**n * c).mT
            grad_phi += (
                weight.view_as(phi.expand(*self.shape, -1)) * table if n else weight.view(*self.shape, 1) * table
            )
            if n and c:
                grad_v += ((phi * table).flatten(2, 3).mT @ grad) * (n * c * self.v ** (n - 1))
        grad_score = torch.ops.aten.hardtanh_backward(grad_phi, scores, 0.0, 1.0)
        grad_q, grad_k = torch.zeros_like(self.q), torch.zeros_like(self.k)
        for n, c in enumerate(self.first.slopes):
            scaled = (grad_score * self.table(self.first, n)).flatten(2, 3)
            grad_q += scaled.sum(-1, keepdim=True) * c if n == 0 else scaled @ (self.k**n * c)
            if n and c:
                grad_k += (scaled.mT @ self.q) * (n * c * self.k ** (n - 1))
        return grad_q.view(*self.shape, self.head_dim), grad_k, grad_v


class _SubTiles(torch.autograd.Function):
    """Sum over physical sub-tiles of their readout; the laps of one sub-tile meet before it."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: AttentionTables,
        group: int,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.tables, ctx.group = tables, group  # type: ignore[attr-defined]
        batch, kv_heads, grouped, head_dim = q.shape
        out = q.new_zeros(batch, kv_heads, group, grouped // group, head_dim)
        for blocks in _physical_tiles(tables.layout):
            charge, start, stop = _tile_charge(blocks, q, k, v, tables, group)[:3]
            charge.clamp_(-1.0, 1.0)
            if tables.step is not None:
                charge.div_(tables.step).round_().mul_(tables.step)
            out[:, :, :, start:stop] += charge
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors  # type: ignore[attr-defined]
        tables, group = ctx.tables, ctx.group  # type: ignore[attr-defined]
        grad_out = grads[0]
        grad_q = torch.zeros_like(grad_out, memory_format=torch.contiguous_format)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for blocks in _physical_tiles(tables.layout):
            charge, start, stop, parts = _tile_charge(blocks, q, k, v, tables, group)
            grad = torch.ops.aten.hardtanh_backward(grad_out[:, :, :, start:stop].contiguous(), charge, -1.0, 1.0)
            for block, scores in parts:
                rows = grad[:, :, :, block.start - start : block.stop - start]
                block_q, block_k, block_v = block.backward(rows, scores)
                grad_q[:, :, :, block.start : block.stop] += block_q
                grad_k[:, :, block.columns] += block_k
                grad_v[:, :, block.columns] += block_v
        return grad_q.view_as(q), grad_k, grad_v, None, None


def _physical_tiles(layout: SlotLayout) -> list[list[int]]:
    """Group the sub-tiles of a layout that are the same physical sub-tile on different laps."""
    groups: dict[int, list[int]] = {}
    for index, (start, stop) in enumerate(layout.spans):
        if stop > start:
            groups.setdefault(index % layout.tiles, []).append(index)
    return list(groups.values())


def _tile_charge(
    blocks: list[int], q: Tensor, k: Tensor, v: Tensor, tables: AttentionTables, group: int
) -> tuple[Tensor, int, int, list[tuple[_Block, Tensor]]]:
    """Return one physical sub-tile's charge over all laps, the queries it spans, and its blocks with their scores."""
    spans = [tables.layout.spans[index] for index in blocks]
    start, stop = min(s for s, _ in spans), max(e for _, e in spans)
    batch, kv_heads, _, head_dim = q.shape
    charge = q.new_zeros(batch, kv_heads, group, stop - start, head_dim)
    parts = []
    for index in blocks:
        block = _Block(index, q, k, v, tables, group)
        scores = block.scores()
        charge[:, :, :, block.start - start : block.stop - start] += block.charge(scores.clamp(0.0, 1.0))
        parts.append((block, scores))
    return charge, start, stop, parts
