"""Attention of consecutive tokens, one sub-tile at a time, in memory linear in the tokens; values and gradients.

A stretch of tokens needs no mask: sub-tile k of lap l holds the tokens from write index ``s0 = l M + k C`` on, the
queries ``s0 <= t < s0 + M`` read it before the next lap begins to overwrite it, and in the C - 1 queries after that
its last tokens meet the next lap's first ones before the readout. All that depends on a query and a token depends on
``t - s0`` and the column alone, so one band of weights (:func:`~hwsim.functional.cell_products.band_of_ages`) is
decay, causality and window for all sub-tiles. The backward pass computes scores and pulses again, from the same keys
of noise.

Source: Dao, FlashAttention-2, ICLR 2024: scores in blocks, computed again in the backward pass; without its softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from device_models.schema import DeviceModel
from hwsim.functional.aged_cells import AgedCells
from hwsim.functional.cell_products import CellImages, Step, Workspace
from hwsim.functional.circuits import Circuits
from hwsim.functional.kernel_loop import attention_kernel, kernel_loop
from hwsim.functional.layout import Stretch

Cells = CellImages | AgedCells

SCORES_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Scores in flight: on a CPU they stay in the second-level cache, on a GPU they fill it with work."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """What the two arrays of all heads hold, and what their gradients see.

    Attributes:
        keys: Images of the first product.
        values: Images of the second product.
        smooth: The images that stand in for both in the backward pass; None where they stand for themselves.
    """

    keys: Cells
    values: Cells
    smooth: tuple[Cells, Cells] | None = None

    def without_states(self) -> Arrays:
        """Return all but the cells' states."""
        none = torch.empty(0)
        return self.with_states(none, none, none, none)

    def with_states(self, behind_keys: Tensor, behind_values: Tensor, keys: Tensor, values: Tensor) -> Arrays:
        """Return the same arrays with other states."""
        smooth = self.smooth and (
            replace(self.smooth[0], states=behind_keys), replace(self.smooth[1], states=behind_values)
        )  # fmt: skip
        return Arrays(replace(self.keys, states=keys), replace(self.values, states=values), smooth)

    @property
    def behind(self) -> tuple[Cells, Cells]:
        """Return the images whose products the gradients are those of."""
        return self.smooth or (self.keys, self.values)


@dataclass(frozen=True)
class _Tile:
    """One lap of a sub-tile: its columns that hold keys, and the queries that read them."""

    number: int
    main: tuple[Step, ...]
    far: Step | None


def tile_loop(pulses: Tensor, arrays: Arrays, circuits: Circuits, stretch: Stretch) -> Tensor:
    """Return the sum of all sub-tiles' readouts, (n, queries, d); gradients flow to pulses and images.

    Args:
        pulses: [1] (n, queries, d) of the rows, n heads of all sequences.
        arrays: Images of all keys, in their order.
        circuits: Everything between the products.
        stretch: Which tokens these are.
    """
    behind = arrays.behind
    return _TileLoop.apply(pulses, behind[0].states, behind[1].states, arrays, circuits, stretch)


def refuse_second_derivative() -> None:
    """Raise a RuntimeError in a backward pass that is to be differentiated itself: its operations are not recorded."""
    if torch.is_grad_enabled():
        raise RuntimeError("attention on gain cells has no second derivative: leave out create_graph=True")


class _TileLoop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pulses: Tensor, keys: Tensor, values: Tensor, arrays: Arrays, circuits: Circuits, stretch: Stretch
    ) -> Tensor:
        kernels = kernel_loop(pulses, (arrays.keys, arrays.values), arrays.behind, circuits, stretch)
        loop = kernels or _Loop(pulses, arrays, circuits, stretch)
        needed = any(ctx.needs_input_grad)
        out, ctx.gates = loop.forward(save=needed)
        if needed:  # tensors only as saved ones, which checkpoints drop and make again
            ctx.save_for_backward(pulses, keys, values, arrays.keys.states, arrays.values.states)
            ctx.arrays, ctx.facts = arrays.without_states(), (circuits, stretch, kernels.kind if kernels else "torch")
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        pulses, *states = ctx.saved_tensors
        circuits, stretch, kind = ctx.facts
        arrays = ctx.arrays.with_states(*states)
        with attention_kernel(kind):  # what the forward pass took: it made the gates
            again = kernel_loop(pulses, (arrays.keys, arrays.values), arrays.behind, circuits, stretch)
        loop: Any = again or _Loop(pulses, arrays, circuits, stretch)
        return (*loop.backward(grads[0].contiguous(), ctx.gates), None, None, None)


class _Loop:
    """The loop over heads and sub-tiles."""

    def __init__(self, pulses: Tensor, arrays: Arrays, circuits: Circuits, stretch: Stretch) -> None:
        self.pulses, self.arrays, self.circuits, self.stretch = pulses, arrays, circuits, stretch
        self.device: DeviceModel = circuits.device
        self.slots, self.window = self.device.tile.slots, self.device.window.tokens
        self.meets = self.device.tile.assignment == "ring"
        self.tiles = list(self._tiles())
        self.space = Workspace(pulses)

    def _tiles(self) -> Iterator[_Tile]:
        """Yield each lap of each sub-tile that some query reads, in the order of their tokens."""
        stretch, window = self.stretch, self.window
        end = stretch.first_key + stretch.keys
        s0, number = 0, 0
        while s0 < end:
            width = self.slots if not self.meets else min(self.slots, window - s0 % window)
            first, last = max(s0, stretch.first_key), min(s0 + width, end)
            after = s0 + window
            if last > first:
                reach = after if self.meets else after + width - 1
                begin = max(s0, stretch.first_query)  # the first step has all queries that meet the lap before
                most = self.arrays.keys.rows or reach - s0
                main = [self._step(s0, first, last, t, min(t + most, reach)) for t in range(begin, reach, most)]
                far = self._step(s0, first, last, after, after + width - 1) if self.meets else None
                if any(main) or far:
                    there = tuple(step for step in main if step)
                    yield _Tile(number % self.device.subtiles if self.meets else number, there, far)
            s0, number = s0 + width, number + 1

    def _step(self, s0: int, first: int, last: int, start: int, stop: int) -> Step | None:
        """Return the step of the keys first..last at the queries start..stop, cut to those that there are."""
        origin, key = self.stretch.first_query, self.stretch.first_key
        start, stop = max(start, origin), min(stop, origin + self.stretch.queries)
        if stop <= start:
            return None
        return Step(slice(start - origin, stop - origin), slice(first - key, last - key), start - s0, first - s0)

    @cached_property
    def joint(self) -> Tensor | None:
        """Weights of both products in one, for backward passes through single images: one multiplication less."""
        keys, values = self.arrays.behind
        if isinstance(keys, CellImages) and isinstance(values, CellImages) and keys.single and values.single:
            return keys.bands[0] * values.bands[0]
        return None

    def _chunks(self) -> Iterator[slice]:
        """Yield heads, as many at a time as the cache has room for."""
        n, rows, _ = self.pulses.shape
        at_once = SCORES_AT_ONCE.get(self.pulses.device.type, SCORES_AT_ONCE["cpu"])
        size = max(1, at_once // (min(rows, self.window, self.arrays.keys.rows or rows) * self.slots))
        heads = self.circuits.heads  # whole sequences share the chip
        if size > heads:
            size -= size % heads
        for start in range(0, n, size):
            yield slice(start, min(start + size, n))

    def forward(self, *, save: bool) -> tuple[Tensor, list[Tensor | None]]:
        """Return the output, and where each readout did not clip; None where none of a sub-tile's did."""
        out = torch.zeros_like(self.pulses, memory_format=torch.contiguous_format)
        gates: list[Tensor | None] = []
        for heads in self._chunks():
            waiting: dict[int, tuple[Tensor, Tensor | None]] = {}
            for tile in self.tiles:
                for step in tile.main:
                    charge, power = self._charge(heads, tile, step, "charge")
                    if (met := waiting.pop(tile.number, None)) is not None:
                        rows = met[0].shape[1]
                        charge[:, :rows].add_(met[0])
                        if power is not None and met[1] is not None:
                            power[:, :, :rows].add_(met[1])
                    gate = self.circuits.read_out(charge, power, heads, step.rows, tile.number, self.space, keep=save)
                    out[heads, step.rows].add_(charge)
                    gates.append(gate)
                if tile.far:
                    charge, power = self._charge(heads, tile, tile.far, f"far {tile.number}")
                    waiting[tile.number] = (charge, power)
        return self.circuits.scaled(out), gates

    def _charge(self, heads: slice, tile: _Tile, step: Step, name: str) -> tuple[Tensor, Tensor | None]:
        """Return the charge (n, R, d) of a step, and sum and squares (2, n, R) of its pulses where noise needs them."""
        n, dims = heads.stop - heads.start, self.pulses.shape[2]
        rows, columns = step.shape
        scores = self.space.take("scores", n, rows, columns)
        self.arrays.keys.scores(self.pulses[heads, step.rows], heads, step, self.space, scores)
        self.circuits.pulses(scores, scores, heads, step, tile.number, self.space)
        power = self.circuits.power(scores)
        charge = self.space.take(name, n, rows, dims)
        self.arrays.values.charge(scores, heads, step, self.space, charge)
        return charge, power

    def backward(self, grad: Tensor, gates: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by pulses, key images and value images."""
        grad = self.circuits.scaled_backward(grad)
        keys, values = self.arrays.behind
        dq, dk, dv = (torch.zeros_like(x) for x in (self.pulses, keys.states, values.states))
        each_gate = iter(gates)
        for heads in self._chunks():
            of_tile = [[next(each_gate) for _ in tile.main] for tile in self.tiles]
            after: dict[int, Tensor] = {}
            for tile, of_step in zip(reversed(self.tiles), reversed(of_tile), strict=True):
                if tile.far:
                    met = after.pop(tile.number)
                    self._step_backward(heads, tile, tile.far, met[:, : tile.far.shape[0]], dq, dk, dv)
                for step, gate in zip(tile.main, of_step, strict=True):
                    d_charge = self._kept(grad[heads, step.rows], "charge")
                    self.circuits.read_out_backward(d_charge, gate, heads, tile.number)
                    if self.meets and step is tile.main[0]:
                        after[tile.number] = self._kept(d_charge[:, : self.slots - 1], f"met {tile.number}")
                    self._step_backward(heads, tile, step, d_charge, dq, dk, dv)
        return dq, dk, dv

    def _kept(self, x: Tensor, name: str) -> Tensor:
        return self.space.take(name, *x.shape).copy_(x)

    def _step_backward(
        self, heads: slice, tile: _Tile, step: Step, d_charge: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
    ) -> None:
        n, (rows, columns) = d_charge.shape[0], step.shape
        q = self.pulses[heads, step.rows]
        keys, values = self.arrays.behind
        scores = self.space.take("scores", n, rows, columns)
        self.arrays.keys.scores(q, heads, step, self.space, scores)
        phi = self.space.take("phi", n, rows, columns)
        self.circuits.pulses(scores, phi, heads, step, tile.number, self.space)
        d_phi = self.space.take("d_phi", n, rows, columns)
        values.charge_backward(d_charge, phi, heads, step, self.space, d_phi, dv, weighted=self.joint is None)
        self.circuits.pulses_backward(d_phi, scores, phi)
        keys.scores_backward(d_phi, q, heads, step, self.space, dq[heads, step.rows], dk, self.joint)
