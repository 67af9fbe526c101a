"""The two products where each cell has a time constant of its own: images at the nodes of a few ages.

Within a step the ages span R + C - 1 tokens, R its queries, C its columns. The current of a cell as a function of its
age follows there from its values at a few nodes ``a_j``::

    I(cell, a) ~ sum_j L_j(a) image_j(cell),   image_j = sum_n c_n z^n,  z = y exp(-rate a_j)

or, where cells lose charge by the self-limited law::

    z = sign(y) v_scale max(-ln(exp(-|y| / v_scale) + rate a_j), 0)

Short spans need few nodes. The weights L_j are those of ``age_weights`` in float32, and in float64 those of polynomials
through Chebyshev nodes, whose error ``arrays.nodes_needed`` bounds for the fastest cell.

Shapes as in ``cell_products``, whose interface this is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from hwsim.functional.age_weights import Family, fitted_weights, node_ages
from hwsim.functional.cell_products import Step, Workspace, add_product, band_of_ages

Coefficient = Tensor | float


@dataclass(frozen=True, eq=False)
class AgedCells:
    """Cells of one array with their rates.

    Attributes:
        states: [V] (n, s, d) excursions y just after the write, n heads of all sequences.
        coefficients: c_0 .. c_3 over the saturation; one number or (h, s, d), for the h heads of one sequence.
        rate: [1] loss of each cell per token, (h, s, d) or (h, 1, 1).
        nodes: Number of nodes.
        rows: Queries of the longest step.
        columns: Columns of a sub-tile.
        ages: Ages below this are read.
        family: The cells whose currents the weights fit; None for polynomials.
        scale: What the currents are multiplied by.
        kept: Weights that were made, shared by all layers of a pass.
    """

    states: Tensor
    coefficients: tuple[Coefficient, ...]
    rate: Tensor
    nodes: int
    rows: int
    columns: int
    ages: int
    family: Family | None = None
    scale: float = 1.0
    kept: dict[tuple[object, ...], Tensor] = field(default_factory=dict, repr=False)

    @property
    def v_scale(self) -> float | None:
        """Return the scale [V] of the self-limited law; None is exponential."""
        return None if self.family is None else self.family.v_scale

    @property
    def excursions_alone(self) -> bool:
        """Whether the current is the excursion itself, but for ``scale``."""
        return all(isinstance(c, float) for c in self.coefficients) and self.coefficients == (0.0, 1.0, 0.0, 0.0)

    @property
    def span(self) -> int:
        """Largest difference of two ages within a step."""
        return max(1, self.rows + self.columns - 2)

    def scores(self, q: Tensor, heads: slice, step: Step, space: Workspace, out: Tensor) -> None:
        """Write ``sum_j L_j (q @ image_j^T)`` of (n, R, d) queries into (n, R, C)."""
        images = self._images(heads, step, space)
        for j in range(self.nodes):
            each = out if j == 0 else space.take("each", *out.shape)
            torch.bmm(q, images.at(j).mT, out=each)
            if j == 0:
                out.mul_(self._weight(j, step))
            else:
                out.addcmul_(each, self._weight(j, step))

    def charge(self, pulses: Tensor, heads: slice, step: Step, space: Workspace, out: Tensor) -> None:
        """Write ``sum_j (L_j pulses) @ image_j`` of (n, R, C) pulses into (n, R, d)."""
        images = self._images(heads, step, space)
        for j in range(self.nodes):
            each = torch.mul(pulses, self._weight(j, step), out=space.take("each", *pulses.shape))
            if j == 0:
                torch.bmm(each, images.at(j), out=out)
            else:
                out.baddbmm_(each, images.at(j))

    def scores_backward(
        self, grad: Tensor, q: Tensor, heads: slice, step: Step, space: Workspace, dq: Tensor, d_states: Tensor,
        joint: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Add the gradients by queries to ``dq`` (n, R, d) and by excursions to ``d_states``; ``grad`` (n, R, C)."""
        assert joint is None
        images = self._images(heads, step, space)
        for j in range(self.nodes):
            each = torch.mul(grad, self._weight(j, step), out=space.take("each", *grad.shape))
            add_product(dq, each, images.at(j), space)
            d_image = torch.bmm(each.mT, q, out=space.take("d_image", q.shape[0], step.shape[1], q.shape[2]))
            d_states[heads, step.keys].add_(images.through(d_image))

    def charge_backward(
        self, grad: Tensor, pulses: Tensor, heads: slice, step: Step, space: Workspace, d_pulses: Tensor,
        d_states: Tensor, *, weighted: bool = True,
    ) -> None:  # fmt: skip
        """Write the gradient by pulses into ``d_pulses`` (n, R, C), add that by excursions; ``grad`` (n, R, d)."""
        assert weighted
        images = self._images(heads, step, space)
        for j in range(self.nodes):
            weight = self._weight(j, step)
            image = images.at(j)
            each = space.take("each", *pulses.shape)
            if j == 0:
                torch.bmm(grad, image.mT, out=d_pulses).mul_(weight)
            else:
                d_pulses.addcmul_(torch.bmm(grad, image.mT, out=each), weight)
            torch.mul(pulses, weight, out=each)
            d_image = torch.bmm(each.mT, grad, out=space.take("d_image", *image.shape))
            d_states[heads, step.keys].add_(images.through(d_image))

    def _images(self, heads: slice, step: Step, space: Workspace) -> _Images:
        h = self.rate.shape[0]
        whole = heads.start % h == 0 and heads.stop % h == 0
        which = None if whole else torch.arange(heads.start, heads.stop, device=self.rate.device) % h

        def of(x: Coefficient) -> Coefficient:
            if not isinstance(x, Tensor):
                return x
            part = x if x.shape[1] == 1 else x[:, step.keys]  # one for all slots, or a window of one
            return part if which is None else part.index_select(0, which)

        y = self.states[heads, step.keys].unflatten(0, (-1, h if whole else heads.stop - heads.start))
        youngest = step.above - self.columns + 1
        nodes = node_ages if self.family is None else self.family.node_ages
        ages, c = nodes(self.nodes, self.span, youngest), [of(c) for c in self.coefficients]
        return _Images(y, of(self.rate), c, ages, space, bare=self.excursions_alone, v_scale=self.v_scale)

    def _weight(self, j: int, step: Step) -> Tensor:
        """Return L_j at the ages of a step, zero where they are not read, (R, C)."""
        (rows, columns), above = step.shape, step.above
        plain = above >= self.columns - 1 and above + rows <= self.ages
        key = (self.family, self.nodes, self.rows, self.scale, j, above, rows, step.column, columns)
        if key not in self.kept:
            by_age = self._by_age(j, above - self.columns + 1) * self.scale
            made = by_age.to(self.states).contiguous().as_strided((rows, self.columns), (1, 1)).flip(1)
            made = made[:, step.column : step.column + columns]
            if not plain:
                made = made * step.of(band_of_ages(self.states.new_ones(self.ages), self.columns))
            self.kept[key] = made.contiguous()
        return self.kept[key]

    def _by_age(self, j: int, youngest: int) -> Tensor:
        if self.family is not None:
            return torch.from_numpy(fitted_weights(self.family, self.nodes, self.span, youngest)[0][j])
        angles = (torch.arange(self.nodes, dtype=torch.float64) + 0.5) * (math.pi / self.nodes)
        before = max(0, -youngest)
        return pad(interpolation_weights(angles, max(1, self.span - before))[: self.span - before + 1, j], (before, 0))


class _Images:
    """Images of the columns of a step, one node at a time; heads apart from sequences, which share the chip."""

    def __init__(
        self, y: Tensor, rate: Coefficient, c: list[Coefficient], ages: tuple[float, ...], space: Workspace, *,
        bare: bool, v_scale: float | None,
    ) -> None:  # fmt: skip
        self.y, self.rate, self.c, self.ages, self.space, self.v_scale = y, rate, c, ages, space, v_scale
        self.highest = max((n for n in range(4) if not _is_zero(c[n])), default=0)
        self.bare = bare
        self.kept = self.z = y
        if v_scale is not None:
            self.start = torch.abs(y, out=space.take("start", *y.shape)).mul_(-1.0 / v_scale).exp_()

    def at(self, j: int) -> Tensor:
        """Return the image (n, C, d) of a node; valid until the next one is asked for."""
        space, shape, c = self.space, self.y.shape, self.c
        z = self._fade(self.ages[j])
        image = space.take("image", *shape)
        if not self.highest:
            return image.zero_().add_(c[0]).flatten(0, 1)
        if self.bare:
            return z.flatten(0, 1)
        first = c[self.highest]
        for n in range(self.highest - 1, -1, -1):
            factor = first if n == self.highest - 1 else image
            _multiply_add(c[n], z, factor, image)
        return image.flatten(0, 1)

    def _fade(self, age: float) -> Tensor:
        """Return the excursions z at an age [tokens]."""
        assert isinstance(self.rate, Tensor)
        space, shape = self.space, self.y.shape
        if self.v_scale is None:
            self.kept = torch.mul(self.rate, -age, out=space.take("kept", *self.rate.shape)).exp_()
            self.z = torch.mul(self.y, self.kept, out=space.take("z", *shape))
            return self.z
        self.kept = torch.add(self.start, self.rate, alpha=age, out=space.take("kept", *shape))
        left = torch.log(self.kept, out=space.take("z", *shape)).mul_(-self.v_scale).clamp_(min=0.0)
        self.z = left.copysign_(self.y)
        return self.z

    def _slope(self) -> Tensor:
        """Return dz / dy of the node that was asked for last."""
        if self.v_scale is None:
            return self.kept
        return torch.where(self.kept < 1.0, self.start / self.kept, 0.0)

    def through(self, d_image: Tensor) -> Tensor:
        """Return the gradient by excursions, in place, of the node that was asked for last."""
        _, c1, c2, c3 = self.c
        wide = d_image.view(self.y.shape).mul_(self._slope())
        if self.highest < 2:
            if not self.bare:
                wide.mul_(c1)
            return d_image
        slope = self.space.take("image", *self.y.shape)
        _multiply_add(2.0 * c2, self.z, 3.0 * c3, slope)
        _multiply_add(c1, self.z, slope, slope)
        wide.mul_(slope)
        return d_image


def _multiply_add(c: Coefficient, z: Tensor, factor: Coefficient, out: Tensor) -> None:
    """Write ``c + z factor``."""
    if isinstance(c, Tensor) and isinstance(factor, Tensor):
        torch.addcmul(c, z, factor, out=out)
        return
    torch.mul(z, factor, out=out)
    if not _is_zero(c):
        out.add_(c)


def interpolation_weights(angles: Tensor, high: int) -> Tensor:
    """Return (ages, nodes): Lagrange weights of Chebyshev nodes at the whole ages 0..high.

    ``L_j(x) = (2/R) sum_k' T_k(x_j) T_k(x)``, the first term halved.

    Args:
        angles: arccos of the nodes on [-1, 1].
        high: Age [tokens] at the upper end of the range; its lower end is 0.
    """
    count = angles.numel()
    x = (torch.arange(high + 1, dtype=torch.float64) * (2.0 / high) - 1.0).clamp(-1.0, 1.0)
    order = torch.arange(count, dtype=torch.float64)[:, None]
    scale = torch.full((count, 1), 2.0 / count, dtype=torch.float64)
    scale[0] = 1.0 / count
    return torch.cos(order * torch.arccos(x)).T @ (torch.cos(order * angles) * scale)


def _is_zero(c: Coefficient) -> bool:
    return isinstance(c, float) and c == 0.0
