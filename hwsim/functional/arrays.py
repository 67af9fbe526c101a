"""The two products of an array, for all queries at once.

The current of a cell depends on its state and on its age. An array is a list of *images*: states of all cells,
elementwise, each with a weight that depends on the age alone::

    I(cell, a) = sum_j weight_j(a) image_j(cell)   =>   sum_s x_s I_s(a_s) = sum_j (x weight_j) @ image_j

so each image costs one matrix product, with ages, causality, window and padding all in the weights. Three kinds:

- *powers*: where one factor d(a) shrinks all excursions alike, ``w = u + y d`` and the polynomial re-expands about u:
  ``image_n = c'_n y^n``, ``weight_n = d^n``. Exact.
- *nodes*: where each cell has its own time constant, the currents at Chebyshev nodes of the ages in a block, with
  their interpolation weights. Error bounded, see :func:`nodes_needed`.
- *exact*: any law, each (query, column, dimension) by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from device_models.cell import polynomial, shifted_polynomial
from device_models.retention import slowness, threshold_drift
from device_models.schema import DeviceModel
from hwsim.die import Array, Die
from hwsim.functional.age_weights import IMAGE_COST, Family, steps_and_nodes
from hwsim.functional.aged_cells import AgedCells, interpolation_weights
from hwsim.functional.attention import written_voltage_offset
from hwsim.functional.cells import (
    CellDeviations,
    cell_current,
    decay_factor,
    decays_in_proportion,
    relaxed_level,
    relaxed_voltage,
    surrogate_current,
    to_levels,
    written_voltage,
)
from hwsim.functional.layout import Block
from hwsim.functional.reads import Place, write_deviates
from hwsim.functional.tables import AttentionTables

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-11}
"""Largest error of one cell's current that nodes may make, in full scales, for the fastest cell of a block."""
MOST_NODES = 24
KEPT_COEFFICIENTS = 1 << 22
"""Coefficients of nodes are kept with the die up to this size, and made anew at each use beyond it."""
CURRENTS_AT_ONCE = 1 << 20
"""Currents (rows x columns x dimensions, batch and heads included) held at once where each is computed by itself."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images of the cells of a block and their weights.

    Attributes:
        states: (b, kv_heads, images, columns, head_dim) over the saturation.
        weights: (b, rows, images, columns), zero where a column is not read.
        constant: The same current of every cell, with its weight (b, rows, columns); None if there is none.
    """

    states: Tensor
    weights: Tensor
    constant: tuple[float, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Powers:
    """Images of the cells by powers of their excursion.

    Attributes:
        states: (b, kv_heads, images, columns, head_dim).
        which: Epoch and power n of each image; it fades as d^n in its epoch.
        scales: What multiplies each image to a current over the saturation.
        constant: A current over the saturation that all cells have at any age; 0 where there is none.
    """

    states: Tensor
    which: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]
    constant: float


Product = Callable[[Tensor, Images | Tensor], Tensor]


def voltages_after_writes(
    levels: Tensor, cells: CellDeviations, tables: AttentionTables, place: Place, name: Array, written: Tensor
) -> list[Tensor]:
    """Return the voltages [V] (b, kv_heads, columns, d) just after the write, and after each refresh.

    Args:
        levels: [V] on the storage levels.
        cells: Static deviations of the columns.
        tables: Number and interval of the refreshes.
        place: Keys of what is random at writes.
        name: Array.
        written: (b or 1, columns) write index of each column's token.
    """
    device, v, epochs = tables.device, levels, list[Tensor]()
    for epoch in range(tables.epochs):
        if epoch:
            assert tables.interval is not None
            v = to_levels(relaxed_voltage(epochs[-1], v.new_tensor(tables.interval), device, cells), device)
        z = write_deviates(place, name, device, written, epoch, v)
        epochs.append(written_voltage(v, device, cells, z))
    return epochs


class CellArray:
    """The cells of all columns of a layout, just after their writes and refreshes, ready to be read at any age.

    Args:
        epochs: [V] (b, kv_heads, columns, head_dim) just after the write, and after each refresh.
        device: The device.
        cells: Static deviations of the columns.
        tables: Ages of this forward pass.
        name: Array of keys (first product) or of values (second product).
        die: The chip that the deviations belong to.
    """

    def __init__(
        self, epochs: list[Tensor], device: DeviceModel, cells: CellDeviations, tables: AttentionTables, name: Array,
        die: Die | None = None,
    ) -> None:  # fmt: skip
        self.epochs, self.device, self.cells, self.tables, self.name, self.die = (
            epochs, device, cells, tables, name, die,
        )  # fmt: skip
        self.saturation = device.saturation.qk if name == "key" else device.saturation.av
        self.straight = device.cell.backward == "exact"
        self.proportional = decays_in_proportion(device, cells)
        self._powers: dict[bool, tuple[Tensor, Tensor, tuple[float, Tensor] | None]] = {}

    def scores(self, q: Tensor, block: Block) -> Tensor:
        """Return the first product over its saturation, (b, kv_heads, group, rows, columns) of the block.

        Args:
            q: [1] pulses, (b, kv_heads, group, rows, head_dim).
            block: Queries and columns.
        """
        return self._through(q, block, _scores)

    def charge(self, pulses: Tensor, block: Block) -> Tensor:
        """Return the second product over its saturation, (b, kv_heads, group, rows, head_dim)."""
        return self._through(pulses, block, _charge)

    def _through(self, x: Tensor, block: Block, product: Product) -> Tensor:
        """Multiply in as many steps as memory wants; (..., rows, any) to (..., rows, any)."""
        if self.proportional:
            return self._multiplied(x, product, partial(self._power_images, block))
        cells = self.cells.at(block.columns)
        nodes = self._nodes(block, cells)
        if nodes is None or nodes[0] >= block.stop - block.start:
            return self._in_steps(x, block, cells, product)
        return self._multiplied(x, product, partial(self._node_images, block, cells, nodes))

    def _multiplied(self, x: Tensor, product: Product, read: Callable[..., Images | Tensor]) -> Tensor:
        """Return the product, with the gradient of the surrogate's where the device asks for it."""
        out = product(x, read(surrogate=False))
        if self.straight:
            return out
        smooth = product(x, read(surrogate=True))
        return smooth + (out - smooth).detach()

    def _in_steps(self, x: Tensor, block: Block, cells: CellDeviations, product: Product) -> Tensor:
        """Multiply with the currents of each (row, column, dimension), a few rows at a time."""

        def some(rows: Tensor, part: Block) -> Tensor:
            return self._multiplied(rows, product, partial(self._exact, part, cells))

        of_a_row = self.epochs[0][:, :, block.columns].numel()
        step = max(1, CURRENTS_AT_ONCE // of_a_row)
        if step >= block.stop - block.start:
            return some(x, block)
        parts = []
        for start in range(block.start, block.stop, step):
            part = Block(start, min(start + step, block.stop), block.first, block.last)
            rows = x[..., start - block.start : part.stop - block.start, :]
            # Computed again in the backward pass: all currents of all rows would not fit
            parts.append(
                checkpoint(some, rows, part, use_reentrant=False) if torch.is_grad_enabled() else some(rows, part)
            )
        return torch.cat(parts, dim=-2)

    def _current(self, *, surrogate: bool) -> tuple[float, ...]:
        """Return the polynomial of the current [A], in volts from the zero level."""
        slope = self.device.cell.surrogate_slope or 0.0
        return (0.0, slope, 0.0, 0.0) if surrogate else polynomial(self.device.cell)

    def _law(self, *, surrogate: bool) -> tuple[float, ...]:
        """Return the same over the saturation."""
        return tuple(c / self.saturation for c in self._current(surrogate=surrogate))

    def coefficients(self, cells: CellDeviations, *, surrogate: bool) -> list[Tensor | float]:
        """Return c'_n of the current as a polynomial in the excursion y; one number, or one for each cell."""
        shift: Tensor | float = written_voltage_offset(self.device)
        if cells.offset is not None:
            shift = cells.offset + shift
        law = self._law(surrogate=surrogate)
        found = [_shifted_coefficient(law, n, shift) for n in range(4)]
        if cells.factor is None:
            return found
        return [c if isinstance(c, float) and c == 0.0 else cells.factor * c for c in found]

    def _excursion(self, epoch: int) -> Tensor:
        return self.epochs[epoch] - relaxed_level(self.device)

    def powers(self, *, surrogate: bool) -> Powers:
        """Return the images c'_n y^n of each epoch; exact where all excursions shrink by one factor."""
        states: list[Tensor] = []
        which: list[tuple[int, int]] = []
        scales: list[float] = []
        constant = 0.0
        coefficients = self.coefficients(self.cells, surrogate=surrogate)
        for epoch in range(len(self.epochs)):
            y = self._excursion(epoch)
            power: Tensor | None = None
            for n, c in enumerate(coefficients):
                power = y if n == 1 else None if power is None else power * y
                if isinstance(c, Tensor):
                    states.append(c.expand_as(y) if power is None else power * c)
                elif c == 0.0:
                    continue
                elif power is None:
                    constant = c
                    continue
                else:
                    states.append(power)
                which.append((epoch, n))
                scales.append(1.0 if isinstance(c, Tensor) else c)
        whole = states[0].unsqueeze(2) if len(states) == 1 else torch.stack(states, 2)
        return Powers(whole, tuple(which), tuple(scales), constant)

    def aged(
        self, queries: int, other: CellArray, *, surrogate: bool, group: int, scale: float = 1.0
    ) -> AgedCells | None:  # fmt: skip
        """Return cells with their rates, see :func:`fades_smoothly`; None where too many nodes would be needed.

        Steps are as long as costs least: a step of R queries makes C x d images of each node, and longer steps have
        more nodes.

        Args:
            queries: How many there are.
            other: The other array of the head; both have the same steps.
            surrogate: Whether for the gradient's current.
            group: Query heads that share an array.
            scale: What multiplies the currents.
        """
        slowness, others, slots = self.cells.slowness, other.cells.slowness, self.tables.layout.slots
        y = self._excursion(0)
        rate = self.tables.period * loss_rate(self.device)
        family = None
        if y.dtype == torch.float64:
            assert slowness is not None and others is not None
            best = self._steps_and_nodes(queries, rate / min(float(slowness.min()), float(others.min())))
        else:
            family = self._family(rate, surrogate=surrogate)
            chosen_for = self._family(rate, surrogate=False)
            best = steps_and_nodes(chosen_for, queries, self.tables.layout.window, slots)
        if best is None:
            return None
        rows, nodes = best

        def of_heads(x: Tensor) -> Tensor:
            return x if group == 1 else x.repeat_interleave(group, -3)

        made = self.coefficients(self.cells, surrogate=surrogate)
        coefficients = [of_heads(c) if isinstance(c, Tensor) else c for c in made]
        rates = of_heads(y.new_full((y.shape[1], 1, 1), rate) if slowness is None else rate / slowness)
        slope = coefficients[1]
        if isinstance(slope, float) and not any(
            isinstance(c, Tensor) or c for c in (coefficients[0], *coefficients[2:])
        ):
            scale, coefficients = scale * slope, [0.0, 1.0, 0.0, 0.0]  # one factor of all weights
        return AgedCells(
            of_heads(y).flatten(0, 1), tuple(coefficients), rates, nodes, rows, slots, self.tables.oldest + 1,
            family, scale, self.tables.kept_weights,
        )  # fmt: skip

    def _family(self, rate: float, *, surrogate: bool) -> Family:
        """Return the cells of the device as functions of age."""
        device, storage = self.device, self.device.storage
        offset = device.variability.offset_sigma
        middle = written_voltage_offset(device) - threshold_drift(device)
        law = self._current(surrogate=surrogate)  # not over the saturation, so that both arrays are of one family
        laws = [shifted_polynomial(law, middle + by) for by in sorted({-offset, offset})]
        v_inf, sigma = relaxed_level(device), device.retention.tau_sigma_ln
        v_scale = device.retention.v_scale if device.retention.kind == "log_self_limited" else None
        return Family(tuple(laws), storage.v_min - v_inf, storage.v_max - v_inf, rate, sigma, v_scale)

    def _steps_and_nodes(self, queries: int, fastest: float) -> tuple[int, int] | None:
        """Return the same for polynomials, given the loss per token of the fastest cell."""
        slots, best = self.tables.layout.slots, (math.inf, 0, 0)
        for rows in sorted({min(slots * 2**n, queries) for n in range(12)}):
            nodes = nodes_needed(max(1, rows + slots - 2) * fastest, self.device, self.epochs[0].dtype)
            if nodes is not None:
                best = min(best, (nodes * (1.0 + IMAGE_COST / rows), rows, nodes))
        return None if not best[1] else best[1:]

    def _power_images(self, block: Block, *, surrogate: bool) -> Images:
        """Return the images of a block with the weights d^n; made once for all blocks."""
        if surrogate not in self._powers:
            made, first = self.powers(surrogate=surrogate), self.name == "key"
            weights = torch.stack([self.tables.powers(epoch, first=first)[n] for epoch, n in made.which], 2)
            constant = None
            if made.constant:
                read = [self.tables.powers(epoch, first=first)[0] for epoch in range(len(self.epochs))]
                constant = (made.constant, torch.stack(read).sum(0))
            scale = made.states.new_tensor(made.scales)[:, None, None]
            self._powers[surrogate] = (made.states * scale, weights, constant)
        whole, weight, constant = self._powers[surrogate]
        part = None if constant is None else (constant[0], constant[1][:, block.rows, block.columns])
        return Images(whole[:, :, :, block.columns], weight[:, block.rows, :, block.columns], part)

    def _nodes(self, block: Block, cells: CellDeviations) -> tuple[int, int] | None:
        """Return number and highest age [tokens] of the nodes of a block; None where they cannot serve."""
        if not interpolable(self.device, cells, len(self.epochs)):
            return None
        oldest = int(self.tables.layout.age[:, block.rows, block.columns].max())
        high = -(-(oldest + 1) // 64) * 64  # few different ranges, so that coefficients can be kept
        fastest = high * self.tables.period / decay_time(self.device) / self._shortest()
        needed = nodes_needed(fastest, self.device, self.epochs[0].dtype)
        return None if needed is None else (needed, high)

    def _shortest(self) -> float:
        """Return the time constant of the fastest cell, in those of the median."""
        slowness = self.cells.slowness
        assert slowness is not None
        if self.die is None:
            return float(slowness.min())
        key = ("fastest cell", self.name, self.tables.layout.first_slot, slowness.shape, slowness.dtype)
        return self.die.once(key, lambda: float(slowness.min()))

    def _node_images(self, block: Block, cells: CellDeviations, nodes: tuple[int, int], *, surrogate: bool) -> Images:
        count, high = nodes
        y = self._excursion(0)[:, :, block.columns]
        angles = (torch.arange(count, dtype=torch.float64) + 0.5) * (math.pi / count)
        ages = 0.5 * high * (1.0 + angles.cos())

        def coefficients() -> Tensor:
            """Return c'_n d^n of each cell at each node, (4, kv_heads, nodes, columns, head_dim)."""
            seconds = (ages * self.tables.period).to(y.device, y.dtype)[None, :, None, None]
            assert cells.slowness is not None
            d = decay_factor(seconds, self.device, cells.slowness[:, None])
            made = []
            for n, c in enumerate(self.coefficients(cells, surrogate=surrogate)):
                made.append(d**n * (c[:, None] if isinstance(c, Tensor) else c))
            return torch.stack(made)

        size = 4 * count * y[0].numel()
        if self.die is not None and size <= KEPT_COEFFICIENTS:
            key = (
                "nodes", self.name, self.tables.layout.first_slot, block.first, y.shape[1:], high, count, surrogate,
                self.tables.period, y.device, y.dtype,
            )  # fmt: skip
            kept = self.die.once(key, coefficients)
        else:
            kept = coefficients()
        states = _NodeImages.apply(y, kept)
        return Images(states, self._node_weights(block, angles, high))

    def _node_weights(self, block: Block, angles: Tensor, high: int) -> Tensor:
        """Return the weights of a block's nodes: ages alone decide them, so all layers and both arrays share them."""
        tables = self.tables
        key = (block, angles.numel(), high)
        if key not in tables.node_weights:
            age = tables.layout.age[:, block.rows, block.columns]
            weights = interpolation_weights(angles, high).to(age.device, tables.dtype)[age]
            tables.node_weights[key] = (weights * tables.read[:, block.rows, block.columns, None]).movedim(-1, 2)
        return tables.node_weights[key]

    def _exact(self, block: Block, cells: CellDeviations, *, surrogate: bool) -> Tensor:
        """Return currents over the saturation, (b, kv_heads, rows, columns, head_dim), zero where not read."""
        age = self.tables.layout.age[:, block.rows, block.columns]
        read = self.tables.read[:, block.rows, block.columns]
        epoch, rest = self.tables.epoch_and_rest(age)
        law, wide = surrogate_current if surrogate else cell_current, _over_rows(cells)
        total: Tensor | None = None
        for e, v0 in enumerate(self.epochs):
            here = read if len(self.epochs) == 1 else read * (epoch == e)
            seconds = rest[:, None, :, :, None].to(v0.dtype)
            v = relaxed_voltage(v0[:, :, None, block.columns], seconds, self.device, wide)
            part = law(v, self.device, wide) * (here[:, None, :, :, None] / self.saturation)
            total = part if total is None else total + part
        assert total is not None
        return total


class _NodeImages(torch.autograd.Function):
    """``image_j = sum_n C_jn y^n`` for all nodes j at once; the coefficients are constants."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, y: Tensor, coefficients: Tensor) -> Tensor:
        ctx.save_for_backward(y, coefficients)
        c0, c1, c2, c3 = coefficients
        wide = y[:, :, None]
        return (wide * c3).add_(c2).mul_(wide).add_(c1).mul_(wide).add_(c0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        y, coefficients = ctx.saved_tensors  # type: ignore[attr-defined]
        _, c1, c2, c3 = coefficients
        wide = y[:, :, None]
        slope = (wide * (3.0 * c3)).add_(2.0 * c2).mul_(wide).add_(c1)
        return slope.mul_(grads[0]).sum(2), None


def interpolable(device: DeviceModel, cells: CellDeviations, epochs: int) -> bool:
    """Whether currents follow from those at a few ages: each cell its own time constant, no refresh on the way."""
    return device.retention.kind == "exponential" and cells.slowness is not None and epochs == 1


def fades_smoothly(device: DeviceModel, cells: CellDeviations, epochs: int, dtype: torch.dtype) -> bool:
    """Whether currents follow from those at a few ages by fitted weights, or by polynomials in float64."""
    if device.retention.kind == "log_self_limited" and epochs == 1 and dtype == torch.float32:
        return True
    return interpolable(device, cells, epochs)


def loss_rate(device: DeviceModel) -> float:
    """Return what the median cell loses in a second [1/s], as in ``Family``, at the device's temperature."""
    retention = device.retention
    if retention.kind != "log_self_limited":
        return 1.0 / decay_time(device)
    assert retention.v_scale and retention.t0 and retention.v_top is not None and retention.v_inf is not None
    top = abs(retention.v_top - retention.v_inf)
    return math.exp(-top / retention.v_scale) / (
        retention.t0 * float(slowness(retention, device.operation.temperature))
    )


def decay_time(device: DeviceModel) -> float:
    """Return the time constant [s] of the median cell at the device's temperature."""
    tau = device.retention.tau
    assert tau is not None
    left = decay_factor(torch.tensor(tau, dtype=torch.float64), device)
    return -tau / math.log(float(left))


def nodes_needed(fastest: float, device: DeviceModel, dtype: torch.dtype) -> int | None:
    """Return how many nodes keep the error of the fastest cell's current below the tolerance, None if too many.

    Chebyshev interpolation of ``sum_n c'_n y^n exp(-n x)`` over a range L of x with R nodes errs by at most
    ``2 sum_n |c'_n y^n| (n L / 4)^R / R!``.

    Args:
        fastest: [1] L, range of ages in the block over the time constant of its fastest cell.
        device: Supplies the polynomial.
        dtype: Sets the tolerance.
    """
    storage = device.storage
    v_inf = relaxed_level(device)
    law = polynomial(device.cell)
    swing = max(storage.v_max - storage.v_zero, storage.v_zero - storage.v_min)
    allowed = TOLERANCE.get(dtype, 1e-3) * sum(abs(c) * swing**n for n, c in enumerate(law))
    reach = max(abs(storage.v_max - v_inf), abs(v_inf - storage.v_min))
    size = [abs(c) * reach**n for n, c in enumerate(shifted_polynomial(law, v_inf - storage.v_zero))]
    for count in range(1, MOST_NODES + 1):
        error = sum(2.0 * c * (n * fastest / 4.0) ** count / math.factorial(count) for n, c in enumerate(size))
        if error <= allowed:
            return count
    return None


def _shifted_coefficient(k: tuple[float, ...], n: int, shift: Tensor | float) -> Tensor | float:
    """Return c'_n of ``sum_m k_m (shift + y)^m`` for one shift or one per cell."""
    total: Tensor | float = 0.0
    for m in range(n, len(k)):
        if k[m]:
            total = total + k[m] * math.comb(m, n) * shift ** (m - n)
    return total


def _over_rows(cells: CellDeviations) -> CellDeviations:
    """Let the deviations (kv_heads, columns, head_dim) broadcast over rows: (kv_heads, 1, columns, head_dim)."""

    def widen(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, None]

    return CellDeviations(factor=widen(cells.factor), offset=widen(cells.offset), slowness=widen(cells.slowness))


def _scores(q: Tensor, read: Images | Tensor) -> Tensor:
    if isinstance(read, Tensor):
        return torch.einsum("bkgrd,bkrcd->bkgrc", q, read)
    batch, kv_heads, group, rows, _ = q.shape
    count, columns = read.states.shape[2:4]
    flat = q.flatten(2, 3)
    each = (flat @ read.states.flatten(2, 3).mT).view(batch, kv_heads, group, rows, count, columns)
    total = (each * read.weights[:, None, None]).sum(-2)
    if read.constant is not None:
        current, weight = read.constant
        total = total + (q.sum(-1, keepdim=True) * current) * weight[:, None, None]
    return total


def _charge(pulses: Tensor, read: Images | Tensor) -> Tensor:
    if isinstance(read, Tensor):
        return torch.einsum("bkgrc,bkrcd->bkgrd", pulses, read)
    batch, kv_heads, group, rows, _ = pulses.shape
    weighted = pulses.unsqueeze(-2) * read.weights[:, None, None]
    total = weighted.flatten(-2).flatten(2, 3) @ read.states.flatten(2, 3)
    total = total.view(batch, kv_heads, group, rows, -1)
    if read.constant is not None:
        current, weight = read.constant
        total = total + (pulses * weight[:, None, None]).sum(-1, keepdim=True) * current
    return total
