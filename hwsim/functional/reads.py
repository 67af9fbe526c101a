"""Everything random and static between two products: pulses, charge-to-pulse stage, readout; and where draws come from.

Shapes: b sequences, h query heads, t queries, c columns (slots of one sub-tile or several), d dimensions. Query heads
that share an array share its circuits, and read it one after another, each with its own noise.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from device_models.converters import code_errors, highest_code, readout_step
from device_models.schema import DeviceModel
from device_models.variability import bridge
from hwsim.die import Die, readout_codes_of
from hwsim.functional.cells import (
    full_scale_current,
    pulse_jitter,
    read_noise_sigma,
    read_noise_variance,
    write_is_noisy,
)
from hwsim.functional.quantise import quantise_levels, round_straight_through
from hwsim.randomness import keyed, mixed, normal_pool, pool_places, pool_rows, seed_of


@dataclass(frozen=True, eq=False)
class Place:
    """Which chip, which layer of it, and which sequences: the keys of everything that is not the design.

    Attributes:
        die: The chip; None is the design itself, without static deviations.
        keys: (b,) int64, one key for the noise of each sequence, or one for all; None switches off what is random at
            writes and reads.
        layer: Layer of the model.
    """

    die: Die | None = None
    keys: Tensor | None = None
    layer: int = 0

    def places(self, what: str, width: int, *indices: Tensor) -> Tensor:
        """Return where in the pool the rows of every sequence (first axis) and combination of indices start.

        Args:
            what: Names the effect, so that two effects never share a draw.
            width: Numbers of a row.
            indices: int64, each broadcasting against the result including its sequence axis.
        """
        return pool_places(self.states(what, *indices), width)

    def states(self, what: str, *indices: Tensor) -> Tensor:
        """Return the 64-bit states behind :meth:`places`."""
        assert self.keys is not None
        dims = max(index.dim() for index in indices)
        return keyed(mixed(self.keys + seed_of(0, what, self.layer)).view(-1, *(1,) * (dims - 1)), *indices)

    def draw(self, what: str, dtype: torch.dtype, width: int, *indices: Tensor) -> Tensor:
        """Return rows of standard normals (..., width), one for each place; arguments as :meth:`places`."""
        places = self.places(what, width, *indices)
        return pool_rows(places.flatten(), width).view(*places.shape, width).to(dtype)


@dataclass(frozen=True, eq=False)
class TokenPlace(Place):
    """The same where one token comes after another: its keys are hashed for many tokens at once.

    A token has few draws of each effect; hashing their keys one token at a time would cost more than all else.
    """

    _ahead: dict[tuple[object, ...], tuple[int, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def places(self, what: str, width: int, *indices: Tensor) -> Tensor:
        """Return the same; the second index is that of the query or of the token written."""
        head, token, *more = indices
        if token.numel() > 1:
            return super().places(what, width, *indices)
        first, at = divmod(int(token), TOKENS_AHEAD)
        key = (what, width, *(index.shape for index in indices))
        known = self._ahead.get(key)
        if known is None or known[0] != first:
            tokens = torch.arange(TOKENS_AHEAD, device=token.device) + first * TOKENS_AHEAD
            all_of_them = super().places(what, width, head[..., None], tokens, *(index[..., None] for index in more))
            known = self._ahead[key] = (first, all_of_them.movedim(-1, 0).contiguous())
        return known[1][at]


TOKENS_AHEAD = 64
"""Tokens whose keys are hashed at once."""


def sequence_keys(read_key: int | Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    """Return (batch,) noise keys, or (1,) where all sequences share one.

    Sequences that share a key share their draws: what a sequence computes does not depend on the batch that it is in.
    """
    if read_key is None:
        return None
    if isinstance(read_key, Tensor):
        if read_key.numel() not in (1, batch):
            raise ValueError(f"{read_key.numel()} noise keys for a batch of {batch} sequences: give one for each")
        return read_key.to(device, torch.int64).expand(batch)
    return torch.tensor([seed_of(read_key, "sequence")], device=device)


def write_deviates(
    place: Place, what: str, device: DeviceModel, written: Tensor, epoch: int, like: Tensor
) -> Tensor | None:
    """Return the deviates of the writes that put tokens into cells; of the shape of ``like`` (b, kv_heads, c, d).

    Args:
        place: Keys.
        what: Array.
        device: The device.
        written: (b or 1, c) write index of each column's token.
        epoch: 0 for the write itself, n for the n-th refresh.
        like: Gives shape, dtype and device of the result.
    """
    if place.keys is None or not write_is_noisy(device):
        return None
    head = _counted(like.shape[1], like.device).view(1, -1, 1)
    return place.draw(f"write {what} {epoch}", like.dtype, like.shape[3], head, written[:, None])


def input_pulses(query: Tensor, device: DeviceModel, place: Place, query_index: Tensor, kv_heads: int) -> Tensor:
    """Return the pulses [1] that drive the rows: query levels, converter errors, jitter.

    Args:
        query: [1] (b, h, t, d) before its converter; signed values drive the same converters in two passes.
        device: The device.
        place: Chip and keys.
        query_index: (b or 1, t) write index of each query's token.
        kv_heads: Arrays; their row converters are shared by the query heads of a group.

    Returns:
        [1] (b, h, t, d) in full pulses.
    """
    levels = device.input.levels
    pulses = quantise_levels(query, levels, 0.0, 1.0)
    heads, dims = query.shape[1], query.shape[3]
    if place.die is not None and device.input.inl and levels is not None:
        die, step = place.die, 1.0 / (levels - 1)

        def errors() -> Tensor:
            z = die.circuits("input", query.device, kv_heads, dims, levels - 1)
            return torch.from_numpy(bridge(z.cpu().numpy())).to(query.device, query.dtype) * (device.input.inl * step)

        table = die.once(("input", kv_heads, dims, query.dtype, query.device), errors)
        code = (pulses.detach() / step).round().long()
        table = _per_head(table, heads)[None, :, None].expand(*code.shape, levels)
        pulses = pulses + table.gather(-1, code[..., None])[..., 0]
    jitter = pulse_jitter(device, device.cost.time_qk)
    if place.keys is not None and jitter:
        z = place.draw("query jitter", query.dtype, dims, *_head_query(query, query_index))
        pulses = pulses + jitter * z * (pulses.detach() > 0)
    return pulses.clamp(min=0.0)  # no pulse is shorter than none


def scores_to_pulses(
    scores: Tensor, pulses: Tensor, read: Tensor, device: DeviceModel, place: Place, query_index: Tensor,
    slots: Tensor | None, kv_heads: int,
) -> Tensor:  # fmt: skip
    """Return the pulses [1] of the charge-to-pulse stage: ``clip(S / s_qk + offset + noise, 0, 1)`` and jitter.

    Args:
        scores: [1] (b, h, t, c) first product over its saturation.
        pulses: [1] (b, h, t, d) pulses of the queries, which set the noise.
        read: (b or 1, t, c) whether the query reads the column, 1 or 0.
        device: The device.
        place: Chip and keys.
        query_index: (b or 1, t) write index of each query's token.
        slots: (c,) physical slots; None is all of them, in order.
        kv_heads: Arrays.

    Returns:
        [1] (b, h, t, c), zero where a column is not read.
    """
    phi = hardtanh(noisy_scores(scores, pulses, device, place, query_index, slots, kv_heads), 0.0, 1.0)
    if device.readout_qk.bits is not None:
        phi = quantise_levels(phi, 2**device.readout_qk.bits, 0.0, 1.0)
    return jittered(phi * read[:, None], device, place, query_index, slots)


def noisy_scores(
    scores: Tensor, pulses: Tensor, device: DeviceModel, place: Place, query_index: Tensor, slots: Tensor | None,
    kv_heads: int, what: str = "score",
) -> Tensor:  # fmt: skip
    """Add the column offsets and the noise of bit line and comparator to scores over their saturation.

    Noise of cells and comparator is Gaussian and independent: one draw of the summed variance. ``what`` names the
    read: two reads of the same query never share a draw.
    """
    heads = scores.shape[1]
    if place.die is not None and (sigma := device.variability.phi_offset_sigma):
        die, some = place.die, _counted(scores.shape[3], scores.device) if slots is None else slots

        def offsets() -> Tensor:
            return die.columns("phi", kv_heads, some).to(scores.dtype) * sigma

        key = ("phi offsets of all", kv_heads, some.numel(), scores.dtype, scores.device)
        offset = die.once(key, offsets) if slots is None else offsets()
        scores = scores + _per_head(offset, heads)[None, :, None]
    if scores_are_noisy(device, place):
        line = read_noise_sigma(pulses, device) / device.saturation.qk
        z = _by_slot(what, scores, device, place, query_index, slots)
        scores = scores + torch.hypot(line, line.new_tensor(device.noise.comparator))[..., None] * z
    return scores


def pulse_steps(device: DeviceModel) -> int | None:
    """Return the steps of the pulse grid in a full pulse; None where pulses are continuous."""
    bits = device.readout_qk.pulse_bits
    return None if bits is None else 2**bits - 1


def on_pulse_grid(phi: Tensor, decay: Tensor, device: DeviceModel) -> Tensor:
    """Return the pulses [1] whose product with the decay [1] of their cells lies on the grid, straight through."""
    steps = pulse_steps(device)
    if steps is None:
        return phi
    whole = round_straight_through(phi * decay * steps, 1.0)
    return torch.where(decay > 0, whole / (decay * steps).clamp(min=torch.finfo(phi.dtype).tiny), 0.0)


def jittered(phi: Tensor, device: DeviceModel, place: Place, query_index: Tensor, slots: Tensor | None) -> Tensor:
    """Add the jitter of the pulses between the products; a pulse drives all dimensions of its slot."""
    jitter = pulse_jitter(device, device.cost.time_av)
    if place.keys is None or not jitter:
        return phi
    z = _by_slot("phi jitter", phi, device, place, query_index, slots)
    return (phi + jitter * z * (phi.detach() > 0)).clamp(min=0.0)


def read_out(
    charge: Tensor, phi_power: tuple[Tensor, Tensor] | None, device: DeviceModel, place: Place, query_index: Tensor,
    tile: int | slice, kv_heads: int, full_scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Read physical sub-tiles out: ``ADC(clip(A / (s_av range)))`` in units of the saturation.

    Args:
        charge: [1] (b, h, t, d) second product over its saturation.
        phi_power: sum of the pulses and of their squares over the slots, (b, h, t) each, which set the noise; None
            without read noise.
        device: The device.
        place: Chip and keys.
        query_index: (b or 1, t) write index of each query's token.
        tile: Physical sub-tile along the tokens; with a slice, several for one query, which stand at t.
        kv_heads: Arrays.
        full_scale: [1] (h,) range of each head's readout in saturations; None is 1.

    Returns:
        (b, h, t, d); the gradient is that of the clipped value.
    """
    heads, dims = charge.shape[1], charge.shape[3]
    if phi_power is not None:
        z = place.draw("charge", charge.dtype, dims, *_head_query(charge, query_index), _numbers(tile, charge))
        charge = charge + charge_noise(phi_power, device)[..., None] * z
    scale = None if full_scale is None else full_scale.view(1, -1, 1, 1).to(charge.dtype)
    x = charge if scale is None else charge / scale
    readout = device.readout

    def column(what: str) -> Tensor:
        tiles = device.subtiles
        assert place.die is not None
        z = place.die.circuits(what, charge.device, kv_heads, tiles, dims)
        z = z[:, tile] if isinstance(tile, slice) else z[:, tile % tiles, None]
        return _per_head(z.to(charge.dtype), heads)[None]

    step = readout_step(readout)
    if step is not None and place.die is not None and readout.gain_sigma:
        x = x * (1.0 + readout.gain_sigma * column("readout gain"))
    clipped = hardtanh(x, -1.0, 1.0)
    if step is None:
        out = clipped
    else:
        with torch.no_grad():
            u = clipped / step
            if place.die is not None and readout.offset_sigma:
                u = u + readout.offset_sigma * column("readout offset")
            if place.keys is not None and readout.noise:
                z = place.draw("readout", charge.dtype, dims, *_head_query(charge, query_index), _numbers(tile, charge))
                u = u + readout.noise * z
            if place.die is not None and (readout.inl or readout.dnl):
                u = _with_code_errors(u.clamp(-1.0 / step, 1.0 / step), device, place.die, tile, kv_heads)
            top = highest_code(readout)
            code = u.round().clamp(-top, top) * step
        out = clipped + (code - clipped).detach()
    return out if scale is None else out * scale


def charge_noise(phi_power: tuple[Tensor, Tensor], device: DeviceModel) -> Tensor:
    """Return the deviation [1] of the second product's noise over the saturation, (b, h, t)."""
    variance = read_noise_variance(*phi_power, device)
    return full_scale_current(device) / device.saturation.av * variance.detach().clamp(min=0.0).sqrt()


def scores_are_noisy(device: DeviceModel, place: Place) -> bool:
    """Whether the bit lines of the first product, or the comparators behind them, are noisy."""
    noise = device.noise
    return place.keys is not None and bool(noise.white or noise.flicker or noise.comparator)


def has_read_noise(device: DeviceModel, place: Place) -> bool:
    """Whether the bit lines of the second product are noisy."""
    return place.keys is not None and bool(device.noise.white or device.noise.flicker)


def _with_code_errors(u: Tensor, device: DeviceModel, die: Die, tile: int | slice, kv_heads: int) -> Tensor:
    """Add to (b, h, t, d) values in LSB the static error of their column at the nearest code."""
    heads, dims = u.shape[1], u.shape[3]

    def errors(one: int) -> Tensor:
        return readout_errors(device, die, one, kv_heads, dims, u.dtype, u.device)

    if isinstance(tile, slice):
        key = ("readout errors of all", kv_heads, dims, u.dtype, u.device)
        made = die.once(key, lambda: torch.stack([errors(one) for one in range(device.subtiles)], 1))[:, tile]
    else:
        made = errors(tile)[:, None]
    codes = made.shape[-1]
    table = _per_head(made, heads)[None].expand(*u.shape, codes)
    nearest = u.round().long() + codes // 2
    return u + table.gather(-1, nearest[..., None])[..., 0]


def readout_errors(
    device: DeviceModel, die: Die, tile: int, kv_heads: int, dims: int, dtype: torch.dtype, where: torch.device
) -> Tensor:
    """Return the static errors [LSB] of a sub-tile's columns at each code, (kv_heads, dims, codes)."""
    readout, tiles, codes = device.readout, device.subtiles, readout_codes_of(device)

    def made() -> Tensor:
        shared = 1 if readout.circuit == "ramp" else dims  # one ramp serves all columns of a sub-tile
        z = die.circuits("readout inl", where, kv_heads, tiles, shared, codes)[:, tile % tiles].expand(-1, dims, -1)
        z_dnl = die.circuits("readout dnl", where, kv_heads, tiles, dims, codes)[:, tile % tiles]
        return torch.from_numpy(code_errors(z.cpu().numpy(), z_dnl.cpu().numpy(), readout)).to(where, dtype)

    return die.once(("readout errors", tile, kv_heads, dims, dtype, where), made)


def _by_slot(
    what: str, like: Tensor, device: DeviceModel, place: Place, query_index: Tensor, slots: Tensor | None
) -> Tensor:  # fmt: skip
    """Return standard normals (b, h, t, c): one row of the pool for each query and sub-tile, cut at the slots."""
    width = device.tile.slots
    if slots is None:
        head, query = _head_query(like, query_index)
        tiles = _counted(like.shape[3] // width, like.device)
        return place.draw(what, like.dtype, width, head[..., None], query[..., None], tiles).flatten(-2)
    tiles, position = slots // width, slots % width
    first = tiles.min()
    some = torch.arange(int(tiles.max() - first) + 1, device=like.device) + first
    head, query = _head_query(like, query_index)
    start = place.places(what, width, head[..., None], query[..., None], some)[..., tiles - first]
    return normal_pool(like.device)[start + position].to(like.dtype)


def _head_query(like: Tensor, query_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return head and query indices that broadcast against (b, h, t)."""
    return _counted(like.shape[1], like.device).view(1, -1, 1), query_index[:, None]


def _numbers(tile: int | slice, like: Tensor) -> Tensor:
    """Return the numbers of the sub-tiles that stand at t in (b, h, t, d)."""
    if isinstance(tile, slice):
        return _counted(like.shape[2], like.device)
    return torch.tensor(tile, device=like.device).view(1, 1, 1)


def _per_head(x: Tensor, heads: int) -> Tensor:
    """Repeat (kv_heads, ...) for the query heads that share an array."""
    return x if x.shape[0] == heads else x.repeat_interleave(heads // x.shape[0], 0)


@functools.lru_cache(maxsize=64)
def _counted(number: int, where: torch.device) -> Tensor:
    """Return 0, 1, .. ``number - 1``, to be read alone: a token asks for it a dozen times in each layer."""
    with torch.inference_mode(False):
        return torch.arange(number, device=where)
