"""Everything between two products of a tile loop, in place: offsets, noise, clips, converters, and their gradients.

The same equations as ``reads``, which is their readable twin, on the heads and queries of one step at a time. Charges
are in steps of the readout here, in saturations where it is continuous.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from device_models.converters import highest_code, readout_step
from device_models.schema import DeviceModel
from hwsim.functional.cell_products import Step, Workspace, band_of_ages
from hwsim.functional.cells import pulse_jitter, read_noise_sigma
from hwsim.functional.reads import Place, charge_noise, has_read_noise, readout_errors, scores_are_noisy
from hwsim.randomness import extended, pool_places, pool_rows


class Circuits:
    """The circuits of one layer for the queries of a stretch.

    ``line`` is the deviation [1] of the scores' noise over the saturation, (n, queries); None without noise.

    Args:
        device: The device.
        place: Chip, layer and keys of the noise.
        query: [1] (b, h, t, d) pulses of the rows, which set the noise of their bit lines.
        first_query: Write index of the first query.
        kv_heads: Arrays; query heads that share one share its circuits.
        ages: How many ages the weights know.
        full_scale: [1] (h,) range of each head's readout in saturations; None is 1.
    """

    def __init__(
        self, device: DeviceModel, place: Place, query: Tensor, first_query: int, kv_heads: int, ages: int,
        full_scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.device, self.place, self.kv_heads, self.ages = device, place, kv_heads, ages
        self.batch, self.heads, self.queries, self.dims = query.shape
        self.first_query, self.like = first_query, query.new_empty(0)
        self.step = readout_step(device.readout)
        self.full_scale = None if full_scale is None else full_scale.detach().to(query.dtype)
        self.noisy_scores = scores_are_noisy(device, place)
        self.noisy_charge = has_read_noise(device, place)
        self.jitter = pulse_jitter(device, device.cost.time_av) if place.keys is not None else 0.0
        self.offset = device.variability.phi_offset_sigma if place.die is not None else 0.0
        stepped, readout = self.step is not None, device.readout
        self.code_errors = place.die is not None and stepped and bool(readout.inl or readout.dnl)
        self.readout_noise = readout.noise if place.keys is not None and stepped else 0.0
        self._states: dict[str, Tensor] = {}
        self.line: Tensor | None = None
        if self.noisy_scores:
            line = read_noise_sigma(query, device) / device.saturation.qk
            self.line = torch.hypot(line, line.new_tensor(device.noise.comparator)).flatten(0, 1)

    @property
    def per_charge(self) -> float:
        """Return the units of a charge in one saturation."""
        return 1.0 / (self.step or 1.0)

    # ---- between the first product and the second

    def pulses(self, scores: Tensor, out: Tensor, heads: slice, step: Step, tile: int, space: Workspace) -> None:
        """Add offsets and noise to scores (n, R, C) in place, and write the pulses into ``out``."""
        if self.offset:
            scores.add_(self._column_offsets(heads, step, tile))
        if self.line is not None:
            z = self._of_slots("score", heads, step, tile, space)
            scores.addcmul_(z, self.line[heads, step.rows, None])
        torch.clamp(scores, 0.0, 1.0, out=out)
        if self.device.readout_qk.bits is not None:
            top = 2**self.device.readout_qk.bits - 1
            out.mul_(top).round_().div_(top)
        if self.offset or self.noisy_scores:
            self._mask(out, step)
        if self.jitter:
            z = self._of_slots("phi jitter", heads, step, tile, space).mul_(out.sign())
            out.add_(z, alpha=self.jitter).clamp_(min=0.0)

    def pulses_backward(self, grad: Tensor, scores: Tensor, phi: Tensor) -> None:
        """Turn the gradient by pulses into that by scores, in place; arguments as :meth:`pulses` left them."""
        torch.ops.aten.hardtanh_backward.grad_input(grad, scores, 0.0, 1.0, grad_input=grad)
        if self.jitter:  # no gradient by a pulse that jitter ended before it began; none at all is no such pulse
            bits = self.device.readout_qk.bits
            none = 0.0 if bits is None else 0.5 / (2**bits - 1)
            grad.mul_((phi > 0) | (scores <= none))

    def _mask(self, phi: Tensor, step: Step) -> None:
        """Set the pulses of columns that a query does not read to zero."""
        rows, band = phi.shape[1], step.of(self._band)
        for part in (slice(0, self.device.tile.slots - 1 - step.above), slice(max(0, self.ages - step.above), rows)):
            if part.start < min(part.stop, rows):
                phi[:, part].mul_(band[part])

    @cached_property
    def _band(self) -> Tensor:
        return band_of_ages(self.like.new_ones(self.ages), self.device.tile.slots)

    def _column_offsets(self, heads: slice, step: Step, tile: int) -> Tensor:
        die, slots = self.place.die, self.device.tile.slots
        assert die is not None
        first = tile % self.device.subtiles * slots

        def made() -> Tensor:
            index = torch.arange(first, first + slots, device=self.like.device)
            return die.columns("phi", self.kv_heads, index).to(self.like.dtype).mul_(self.offset)

        key = ("phi offsets", self.kv_heads, first, self.like.dtype, self.like.device)
        columns = slice(step.column, step.column + step.shape[1])
        return self._of_heads(die.once(key, made)[:, columns], heads)[:, None]

    # ---- behind the second product

    def power(self, phi: Tensor) -> Tensor | None:
        """Return the sum of pulses (n, R, C) over the columns and that of their squares, (2, n, R)."""
        if not self.noisy_charge:
            return None
        return torch.stack([phi.sum(-1), torch.linalg.vector_norm(phi, dim=-1).square_()])

    def read_out(
        self, x: Tensor, power: Tensor | None, heads: slice, rows: slice, tile: int, space: Workspace, *, keep: bool
    ) -> Tensor | None:
        """Turn the charges (n, R, d) of a sub-tile into codes, in place.

        Returns:
            Where the stage did not clip, which backward asks for; None where it did nowhere, or ``keep`` is unset.
        """
        if power is not None:
            sigma = charge_noise((power[0], power[1]), self.device).mul_(self.per_charge)
            x.addcmul_(self._rows("charge", heads, rows, tile, self.dims, space), sigma[..., None])
        if (gain := self._gain(heads, tile)) is not None:
            x.mul_(gain)
        most = self.per_charge
        gate: Tensor | None = None
        if keep and (x.is_cuda or _largest(x) >= most):
            gate = x.abs() < most
        if self.step is None:
            x.clamp_(-most, most)
            return gate
        readout = self.device.readout
        offset = self.place.die is not None and bool(readout.offset_sigma)
        if offset or self.code_errors or self.readout_noise:
            x.clamp_(-most, most)
        if offset:
            x.add_(self._column("readout offset", heads, tile), alpha=readout.offset_sigma)
        if self.readout_noise:
            x.add_(self._rows("readout", heads, rows, tile, self.dims, space), alpha=self.readout_noise)
        if self.code_errors:
            x.clamp_(-most, most)
            self._add_code_errors(x, heads, tile)
        top = float(highest_code(readout))
        x.round_().clamp_(-top, top)
        return gate

    def read_out_backward(self, grad: Tensor, gate: Tensor | None, heads: slice, tile: int) -> None:
        """Turn the gradient by codes into that by charges, in place."""
        if gate is not None:
            grad.mul_(gate)
        if (gain := self._gain(heads, tile)) is not None:
            grad.mul_(gain)

    def scaled(self, out: Tensor) -> Tensor:
        """Scale the sum of codes (n, queries, d) to saturations, in place."""
        if self.step is not None:
            out.mul_(self.step)
        if self.full_scale is not None:
            out.view(self.batch, self.heads, -1).mul_(self.full_scale[:, None])
        return out

    def scaled_backward(self, grad: Tensor) -> Tensor:
        """Return the gradient by codes."""
        return self.scaled(grad.clone())

    def _gain(self, heads: slice, tile: int) -> Tensor | None:
        """Return what multiplies charges in front of the converter, (n, 1, d) or (n, 1, 1)."""
        sigma = self.device.readout.gain_sigma
        gain: Tensor | None = None
        if self.step is not None and self.place.die is not None and sigma:
            gain = self._column("readout gain", heads, tile).mul(sigma).add_(1.0)
        if self.full_scale is not None:
            scale = (1.0 / self.full_scale)[self._heads(heads)][:, None, None]
            gain = scale if gain is None else gain * scale
        return gain

    def _column(self, what: str, heads: slice, tile: int) -> Tensor:
        """Return deviates (n, 1, d) of the converters of a sub-tile."""
        die, tiles = self.place.die, self.device.subtiles
        assert die is not None
        z = die.circuits(what, self.like.device, self.kv_heads, tiles, self.dims)[:, tile % tiles]
        return self._of_heads(z.to(self.like.dtype), heads)[:, None]

    def _add_code_errors(self, x: Tensor, heads: slice, tile: int) -> None:
        die = self.place.die
        assert die is not None
        errors = readout_errors(self.device, die, tile, self.kv_heads, self.dims, x.dtype, x.device)
        codes = errors.shape[-1]
        table = self._of_heads(errors, heads)
        first = torch.arange(table.shape[0] * self.dims, device=x.device).mul_(codes).view(-1, 1, self.dims)
        nearest = x.round().add_(codes // 2).long().add_(first)
        x.add_(table.flatten().take(nearest))

    # ---- all of it at once, for the kernels in C

    def columns(self, what: str) -> Tensor:
        """Return deviates of the converters of all sub-tiles, (h, sub-tiles, d)."""
        die = self.place.die
        assert die is not None
        where = self.like.device
        return self.per_head(die.circuits(what, where, self.kv_heads, self.device.subtiles, self.dims)).to(self.like)

    def errors(self) -> Tensor:
        """Return the errors [steps] of the converters of all sub-tiles at each code, (h, sub-tiles, codes, d)."""
        die, like = self.place.die, self.like
        assert die is not None

        def of(tile: int) -> Tensor:
            return readout_errors(self.device, die, tile, self.kv_heads, self.dims, like.dtype, like.device).mT

        def made() -> Tensor:
            return self.per_head(torch.stack([of(tile) for tile in range(self.device.subtiles)], 1))

        return die.once(("errors of all codes", self.kv_heads, self.heads, self.dims, like.dtype, like.device), made)

    def per_head(self, x: Tensor) -> Tensor:
        """Repeat (kv_heads, ...) for the query heads of each group."""
        return x.repeat_interleave(self.heads // self.kv_heads, 0)

    def places(self, what: str, width: int) -> Tensor:
        """Return where in the pool each query's noise starts at each sub-tile, (n, queries, sub-tiles) int32.

        Sub-tiles that no token has come to yet have none.
        """
        reached = -(-(self.first_query + self.queries) // self.device.tile.slots)
        tiles = torch.arange(min(reached, self.device.subtiles), device=self.like.device)
        found = pool_places(extended(self._state(what)[..., None], tiles), width).to(torch.int32)
        return pad(found, (0, self.device.subtiles - len(tiles)))

    # ---- which head, which draw

    def _heads(self, heads: slice) -> Tensor:
        return torch.arange(heads.start, heads.stop, device=self.like.device) % self.heads

    def _of_heads(self, x: Tensor, heads: slice) -> Tensor:
        """Pick from (kv_heads, ...) what the flattened heads (n, ...) share."""
        return x.index_select(0, self._heads(heads) // (self.heads // self.kv_heads))

    def _of_slots(self, what: str, heads: slice, step: Step, tile: int, space: Workspace) -> Tensor:
        """Return the standard normals of some queries at the slots of a sub-tile, (n, R, C)."""
        width, columns = self.device.tile.slots, slice(step.column, step.column + step.shape[1])
        return self._rows(what, heads, step.rows, tile % self.device.subtiles, width, space)[..., columns]

    def _rows(self, what: str, heads: slice, rows: slice, tile: int, width: int, space: Workspace) -> Tensor:
        """Return the standard normals of some queries at a sub-tile, (n, R, width)."""
        state = self._state(what)[heads, rows]
        places = pool_places(extended(state, torch.tensor(tile, device=state.device)), width)
        out = space.take("normals", state.numel(), width) if self.like.dtype == torch.float32 else None
        return pool_rows(places.flatten(), width, out).view(*state.shape, width).to(self.like.dtype)

    def _state(self, what: str) -> Tensor:
        """Return the 64-bit states (n, queries) behind the draws of an effect."""
        if what not in self._states:
            head = torch.arange(self.heads, device=self.like.device).view(1, -1, 1)
            query = torch.arange(self.queries, device=self.like.device).view(1, 1, -1) + self.first_query
            states = self.place.states(what, head, query)
            self._states[what] = states.expand(self.batch, -1, -1).flatten(0, 1)
        return self._states[what]


def _largest(x: Tensor) -> float:
    return max(-float(x.amin()), float(x.amax()))  # a quarter faster than aminmax, and 20 times than a norm
