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
        surrogate = law if slope is None else (slope * shift, slope, 0.0, 0.0)
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


def _terms(y: Tensor, law: tuple[float, ...]) -> tuple[Tensor | None, ...]:
    """Return c_n y^n for n = 1..3 at the places 1..3, None where c_n is 0; the constant needs no tensor."""
    square = y * y if law[2] or law[3] else y
    powers = (None, y, square, square * y if law[3] else None)
    return tuple(None if power is None or not c else power * c for power, c in zip(powers, law, strict=True))


def _derivatives(y: Tensor, law: tuple[float, ...]) -> tuple[Tensor | float, ...]:
    """Return n c_n y^(n-1) for n = 0..3."""
    return (0.0, law[1], y * (2.0 * law[2]) if law[2] else 0.0, y * y * (3.0 * law[3]) if law[3] else 0.0)


class _Array:
    """The cells of one product as columns of the layout: currents in powers of the decay, and their slopes."""

    def __init__(self, y: Tensor, product: ProductTables, *, backward: bool) -> None:
        self.product = product
        self.terms = _terms(y, product.coefficients)
        if backward:
            same = product.slopes == product.coefficients
            self.slope_terms = self.terms if same else _terms(y, product.slopes)
            self.derivatives = _derivatives(y, product.slopes)


class _Block:
    """One sub-tile seen by the queries ``rows`` that read it: both products and their transposes."""

    def __init__(self, index: int, q: Tensor, k: _Array, v: _Array, layout: SlotLayout, group: int) -> None:
        self.start, self.stop = layout.spans[index]
        self.columns = slice(index * layout.slots, (index + 1) * layout.slots)
        batch, kv_heads, grouped, self.head_dim = q.shape
        queries = grouped // group
        rows = q.view(batch, kv_heads, group, queries, self.head_dim)[:, :, :, self.start : self.stop]
        self.shape = (batch, kv_heads, group, self.stop - self.start)
        self.q = rows.reshape(batch, kv_heads, -1, self.head_dim)
        self.k, self.v = k, v

    def table(self, product: ProductTables, n: int) -> Tensor:
        """Return d^n for the rows of this block, shaped to multiply (batch, kv_heads, group, rows, columns)."""
        return product.powers[n][:, None, None, self.start : self.stop, self.columns]

    def cells(self, values: Tensor) -> Tensor:
        """Return the cells of this block out of (batch, kv_heads, columns, head_dim)."""
        return values[:, :, self.columns]

    def scores(self) -> Tensor:
        """Return the first product over the saturation, S / s_qk."""
        product = self.k.product
        total = self.q.new_zeros(())
        for n, (c, term) in enumerate(zip(product.coefficients, self.k.terms, strict=True)):
            if c:
                part = self.q.sum(-1, keepdim=True) * c if term is None else self.q @ self.cells(term).mT
                total = total + part.view(*self.shape, -1) * self.table(product, n)
        return total

    def charge(self, phi: Tensor) -> Tensor:
        """Return the second product over the saturation, A_r / s_av, of this block's columns."""
        product = self.v.product
        total = phi.new_zeros(())
        for n, (c, term) in enumerate(zip(product.coefficients, self.v.terms, strict=True)):
            if c:
                pulses = (phi * self.table(product, n)).flatten(2, 3)
                total = total + (pulses.sum(-1, keepdim=True) * c if term is None else pulses @ self.cells(term))
        return total.view(*self.shape, self.head_dim)

    def backward(self, grad_charge: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients of this block's queries (group unfolded), keys and values, given that of the charge."""
        phi = scores.clamp(0.0, 1.0)
        grad = grad_charge.flatten(2, 3)
        product = self.v.product
        grad_phi = torch.zeros_like(phi)
        grad_v: Tensor | float = 0.0
        for n, (c, term) in enumerate(zip(product.slopes, self.v.slope_terms, strict=True)):
            if c:
                table = self.table(product, n)
                weight = grad.sum(-1, keepdim=True) * c if term is None else grad @ self.cells(term).mT
                grad_phi.addcmul_(weight.view(*self.shape, -1), table)
                if n:
                    grad_v = grad_v + ((phi * table).flatten(2, 3).mT @ grad) * self._derivative(self.v, n)
        grad_score = torch.ops.aten.hardtanh_backward(grad_phi, scores, 0.0, 1.0)
        product = self.k.product
        grad_q, grad_k = torch.zeros_like(self.q), 0.0
        for n, (c, term) in enumerate(zip(product.slopes, self.k.slope_terms, strict=True)):
            if c:
                scaled = (grad_score * self.table(product, n)).flatten(2, 3)
                grad_q += scaled.sum(-1, keepdim=True) * c if term is None else scaled @ self.cells(term)
                if n:
                    grad_k = grad_k + (scaled.mT @ self.q) * self._derivative(self.k, n)
        return grad_q.view(*self.shape, self.head_dim), grad_k, grad_v

    def _derivative(self, array: _Array, n: int) -> Tensor | float:
        value = array.derivatives[n]
        return self.cells(value) if isinstance(value, Tensor) else value


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
        arrays = _Array(k, tables.first, backward=False), _Array(v, tables.second, backward=False)
        for blocks in _physical_tiles(tables.layout):
            charge, start, stop = _tile_charge(blocks, q, *arrays, tables.layout, group)[:3]
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
        arrays = _Array(k, tables.first, backward=True), _Array(v, tables.second, backward=True)
        for blocks in _physical_tiles(tables.layout):
            charge, start, stop, parts = _tile_charge(blocks, q, *arrays, tables.layout, group)
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
    blocks: list[int], q: Tensor, k: _Array, v: _Array, layout: SlotLayout, group: int
) -> tuple[Tensor, int, int, list[tuple[_Block, Tensor]]]:
    """Return one physical sub-tile's charge over all laps, the queries it spans, and its blocks with their scores."""
    spans = [layout.spans[index] for index in blocks]
    start, stop = min(s for s, _ in spans), max(e for _, e in spans)
    batch, kv_heads, _, head_dim = q.shape
    charge = q.new_zeros(batch, kv_heads, group, stop - start, head_dim)
    parts = []
    for index in blocks:
        block = _Block(index, q, k, v, layout, group)
        scores = block.scores()
        charge[:, :, :, block.start - start : block.stop - start] += block.charge(scores.clamp(0.0, 1.0))
        parts.append((block, scores))
    return charge, start, stop, parts
