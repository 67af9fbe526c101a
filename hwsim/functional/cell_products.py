"""The two products of an array for a stretch of queries and the columns of one sub-tile, forward and backward.

A cell's current is a sum of images of its state, each with a weight of its age (see ``arrays``)::

    I(cell, a) = sum_j w_j(a) image_j(cell) + c w_c(a)

Shapes: n heads (batch and heads flattened), R queries, C columns, d dimensions, s keys. Everything is written in
place into a :class:`Workspace`: on a CPU, fresh memory costs as much as the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class Workspace:
    """Memory by name that is used again; a tensor is valid until its name is asked for the next time."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._made: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return uninitialised contiguous memory of a shape."""
        size = 1
        for n in shape:
            size *= n
        held = self._made.get(name)
        if held is None or held.numel() < size:
            held = self._made[name] = self._like.new_empty(size)
        return held[:size].view(shape)


@dataclass(frozen=True)
class Step:
    """Queries and keys that meet in one sub-tile.

    Attributes:
        rows: Queries.
        keys: Keys.
        above: Write index of the first query less that of the token in the sub-tile's first column.
        column: Column of the sub-tile that holds the first key.
    """

    rows: slice
    keys: slice
    above: int
    column: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of queries and of keys."""
        return self.rows.stop - self.rows.start, self.keys.stop - self.keys.start

    def of(self, band: Tensor) -> Tensor:
        """Cut the (R, C) weights of this step out of a band (u, columns), u counting queries as ``above`` does."""
        rows, columns = self.shape
        return band[self.above : self.above + rows, self.column : self.column + columns]


def band_of_ages(weight: Tensor, columns: int) -> Tensor:
    """Spread weights by age (ages,) over queries and columns, (ages + columns - 1, columns).

    Row u, column c: a query u tokens after the token in column 0; ``weight[u - c]``, zero where that is no age.
    """
    ages = weight.numel()
    padded = torch.cat([weight.new_zeros(columns - 1), weight, weight.new_zeros(columns - 1)])
    # row u, column c reads padded[columns - 1 + u - c]
    return padded.as_strided((ages + columns - 1, columns), (1, 1)).flip(1).contiguous()


@dataclass(frozen=True, eq=False)
class CellImages:
    """Images of the cells of one array and their weights.

    Attributes:
        states: (n, images, s, d).
        bands: For each image its weights, see :func:`band_of_ages`.
        constant: A current that all cells have, and the band of its weights; None without.
        grid: Pulses times the weights of a single image are rounded to whole numbers; a unit of their product with it
            is the first number in saturations, the second times that in the units of charges. None without grid.
    """

    states: Tensor
    bands: tuple[Tensor, ...]
    constant: tuple[float, Tensor] | None = None
    grid: tuple[float, float] | None = None
    rows: ClassVar[None] = None
    """Queries of the longest step; any serves."""

    def scores(self, q: Tensor, heads: slice, step: Step, space: Workspace, out: Tensor) -> None:
        """Write ``sum_j w_j (q @ image_j^T)`` of (n, R, d) queries into (n, R, C)."""
        for j, band in enumerate(self.bands):
            image = self.states[heads, j, step.keys].mT
            if j == 0:
                torch.bmm(q, image, out=out).mul_(step.of(band))
            else:
                each = space.take("each", *out.shape)
                out.addcmul_(torch.bmm(q, image, out=each), step.of(band))
        if self.constant is not None:
            current, band = self.constant
            out.addcmul_(q.sum(-1, keepdim=True), step.of(band), value=current)

    @property
    def single(self) -> bool:
        """Whether one image is all."""
        return len(self.bands) == 1 and self.constant is None

    def scores_backward(
        self, grad: Tensor, q: Tensor, heads: slice, step: Step, space: Workspace, dq: Tensor, d_states: Tensor,
        joint: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Add the gradients by queries to ``dq`` (n, R, d) and by images to ``d_states``; ``grad`` (n, R, C).

        ``joint`` is the band of a single image times that which :meth:`charge_backward` left out.
        """
        for j, band in enumerate(self.bands if joint is None else (joint,)):
            last = j == len(self.bands) - 1 and self.constant is None
            each = grad if last else space.take("each", *grad.shape)
            torch.mul(grad, step.of(band), out=each)
            add_product(dq, each, self.states[heads, j, step.keys], space)
            add_product(d_states[heads, j, step.keys], each.mT, q, space)
        if self.constant is not None:
            current, band = self.constant
            each = space.take("each", *grad.shape)
            dq.add_(torch.mul(grad, step.of(band), out=each).sum(-1, keepdim=True), alpha=current)

    def charge(self, pulses: Tensor, heads: slice, step: Step, space: Workspace, out: Tensor) -> None:
        """Write ``sum_j (w_j pulses) @ image_j`` of (n, R, C) pulses into (n, R, d); the pulses may be lost."""
        constant = self._constant_charge(pulses, step, space)
        for j, band in enumerate(self.bands):
            last = j == len(self.bands) - 1
            each = pulses if last else space.take("each", *pulses.shape)
            torch.mul(pulses, step.of(band), out=each)
            if self.grid:
                each.round_()
            image = self.states[heads, j, step.keys]
            if j == 0:
                torch.bmm(each, image, out=out)
            else:
                out.baddbmm_(each, image)
        if constant is not None:
            out.add_(constant)
        if self.grid:
            out.mul_(self.grid[0]).mul_(self.grid[1])

    def _constant_charge(self, pulses: Tensor, step: Step, space: Workspace) -> Tensor | None:
        if self.constant is None:
            return None
        current, band = self.constant
        each = torch.mul(pulses, step.of(band), out=space.take("each", *pulses.shape))
        return each.sum(-1, keepdim=True).mul_(current)

    def charge_backward(
        self, grad: Tensor, pulses: Tensor, heads: slice, step: Step, space: Workspace, d_pulses: Tensor,
        d_states: Tensor, *, weighted: bool = True,
    ) -> None:  # fmt: skip
        """Write the gradient by pulses into ``d_pulses`` (n, R, C), add those by images; ``grad`` (n, R, d).

        The gradient of a single image may be left without its weight, which a gate does not ask for.
        """
        if self.grid:
            grad = torch.mul(grad, self.grid[0] * self.grid[1], out=space.take("of steps", *grad.shape))
        for j, band in enumerate(self.bands):
            image, weight = self.states[heads, j, step.keys], step.of(band)
            each = torch.mul(pulses, weight, out=space.take("each", *pulses.shape))
            if self.grid:
                each.round_()
            add_product(d_states[heads, j, step.keys], each.mT, grad, space)
            if j == 0:
                torch.bmm(grad, image.mT, out=d_pulses)
                if weighted:
                    d_pulses.mul_(weight)
            else:
                d_pulses.addcmul_(torch.bmm(grad, image.mT, out=each), weight)
        if self.constant is not None:
            current, band = self.constant
            d_pulses.addcmul_(grad.sum(-1, keepdim=True), step.of(band), value=current)


def add_product(total: Tensor, a: Tensor, b: Tensor, space: Workspace) -> None:
    """Add (n, i, j) @ (n, j, k) to a tensor that need not be contiguous: bmm alone would go head by head there."""
    if total.is_contiguous():
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b, out=space.take("product", *total.shape)))
