"""Attention on gain cells, written as the equation reads: the oracle of every faster version."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from device_models.cell import polynomial
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel
from hwsim.die import ARRAYS, Array, Die
from hwsim.functional.cells import (
    CellDeviations,
    cell_current,
    cell_deviations,
    decay_factor,
    relaxed_level,
    relaxed_voltage,
    surrogate_current,
    to_levels,
    written_voltage,
)
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
    scores_to_pulses,
    sequence_keys,
    write_deviates,
)

READS = {1.0: "score", -1.0: "score of negative queries"}
"""Names of the two reads of a signed query, for their noise."""


@dataclass(frozen=True, eq=False)
class Steps:
    """What stands between the steps of the naive attention, for tests against other programs.

    Attributes:
        scores: [1] (b, h, t, s) first product over its saturation before noise and clip, zero where not read.
        charges: [1] (b, h, sub-tiles, t, d) second product over its saturation before noise and clip.
        output: (b, h, t, d).
    """

    scores: Tensor
    charges: Tensor
    output: Tensor


def naive_gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    device: DeviceModel,
    *,
    token_period_s: float | None = None,
    die: Die | None = None,
    read_key: int | Tensor | None = None,
) -> Tensor:
    """Compute causal attention of one sequence on gain-cell arrays, token by token.

    Token t is written into slot ``t mod M`` and reads the tokens ``t - M < s <= t``, itself included::

        q = convert(query)           k, v = convert(key), convert(value)      converters
        V(0) = written(k or v)                                                DAC, capacitor, pedestal, write error
        V(a) = relaxed(V(0), a),  a = (t - s) token_period                    decay; refreshed every interval
        f(w) = (k0 + k1 w + k2 w^2 + k3 w^3)(1 + g),  w = V - v_zero + offset cell
        S[t,s]   = sum_d q[t,d] f(k[s,d](a))                                  first product
        phi[t,s] = clip(S / s_qk + offset + noise, 0, 1) + jitter             hard sigmoid
        phi d(a) = round(P phi d(a)) / P                                      where there is a grid of P steps
        A_r[t,d] = sum_{s in sub-tile r} phi[t,s] f(v[s,d](a)) + noise        second product
        out[t,d] = sum_r readout(clip(A_r / s_av, -1, 1))                     readout, digital sum

    With ``activation.kind`` softmax, positive and negative queries are read apart, scores are digitised, and
    ``phi = softmax(gain (S+ - S-))`` in digital, S in units of the saturation.

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
    return naive_steps(query, key, value, device, token_period_s=token_period_s, die=die, read_key=read_key).output


def naive_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    device: DeviceModel,
    *,
    token_period_s: float | None = None,
    die: Die | None = None,
    read_key: int | Tensor | None = None,
    logit_gain: Tensor | None = None,
) -> Steps:
    """Return the naive attention with what stands between its steps; arguments as there, ``logit_gain`` per head."""
    batch, heads, tokens, head_dim = query.shape
    kv_heads, window, slots = key.shape[1], device.window.tokens, device.tile.slots
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
    group, dtype, where = heads // kv_heads, query.dtype, query.device
    place = Place(die, sequence_keys(read_key, batch, where), 0 if die is None else die.layer)
    index = torch.arange(tokens, device=where)
    padded = device.subtiles * slots
    slot = index % window if device.tile.assignment == "ring" else index

    signed = device.activation.kind == "softmax"
    passes = [(1.0, query.clamp(min=0.0)), (-1.0, (-query).clamp(min=0.0))] if signed else [(1.0, query)]
    pulses = [(sign, input_pulses(q, device, place, index[None], kv_heads)) for sign, q in passes]
    stored: dict[Array, _Stored] = {}
    for name, x in zip(ARRAYS, (key, value), strict=True):
        cells = cell_deviations(die, name, device, kv_heads, slot % padded, head_dim, dtype)
        stored[name] = _Stored(x, name, device, cells, place, index[None], token_period_s)

    tiles = int(slot.max()) // slots + 1
    all_charges = query.new_zeros(batch, heads, tiles, tokens, head_dim)
    rows, all_scores = [], []
    for t in range(tokens):
        first = max(0, t - window + 1)
        held, now = index[first : t + 1], index[None, t : t + 1]
        age = t - held
        everywhere = torch.ones(1, 1, len(held), dtype=dtype, device=where)
        logits = signed_score = torch.zeros((), dtype=dtype, device=where)
        for sign, q in pulses:
            row = q[:, :, t : t + 1]
            score = _product("bhd,bhsd->bhs", row[:, :, 0], stored["key"], held, age, group)[:, :, None]
            score = score / device.saturation.qk
            signed_score = signed_score + sign * score
            if signed:
                noisy = noisy_scores(score, row, device, place, now, slot[held] % padded, kv_heads, READS[sign])
                logits = logits + sign * digitised(noisy, device)
        all_scores.append(pad(signed_score, (first, tokens - 1 - t)))
        if signed:
            gain = 1.0 if logit_gain is None else logit_gain.view(1, -1, 1, 1)
            phi = torch.softmax(gain * logits, dim=-1)
            phi = quantise_levels(phi, device.activation.levels, 0.0, 1.0)
            phi = jittered(phi, device, place, now, slot[held] % padded)
        else:
            phi = scores_to_pulses(score, row, everywhere, device, place, now, slot[held] % padded, kv_heads)
        out = query.new_zeros(batch, heads, 1, head_dim)
        for tile in torch.unique(slot[held] // slots).tolist():
            inside = slot[held] // slots == tile
            p = phi[..., inside]
            gridded = pulse_steps(device) is not None  # then one factor fades all cells
            p_read = on_pulse_grid(p, _decay(stored["value"], age[inside]), device) if gridded else p
            charge = _product("bhs,bhsd->bhd", p_read[:, :, 0], stored["value"], held[inside], age[inside], group)[
                :, :, None
            ]
            charge = charge / device.saturation.av
            all_charges[:, :, tile, t] = charge[:, :, 0].detach()
            power = (p.sum(-1), (p * p).sum(-1)) if has_read_noise(device, place) else None
            out = out + read_out(charge, power, device, place, now, tile, kv_heads)
        rows.append(out)
    return Steps(torch.cat(all_scores, dim=2), all_charges, torch.cat(rows, dim=2))


class _Stored:
    """The voltages of one array just after each token's write and after each of its refreshes."""

    def __init__(
        self, x: Tensor, name: Array, device: DeviceModel, cells: CellDeviations, place: Place, written: Tensor,
        token_period_s: float | None,
    ) -> None:  # fmt: skip
        self.device, self.cells, self.period = device, cells, require_period(device, token_period_s)
        self.interval = refresh_interval(device)
        oldest = (min(x.shape[2], device.window.tokens) - 1) * self.period
        refreshes = 0 if self.interval is None else math.floor(oldest / self.interval)
        v = to_levels(x, device)
        epochs = []
        for epoch in range(refreshes + 1):
            z = write_deviates(place, name, device, written, epoch, v)
            epochs.append(written_voltage(v, device, cells, z))
            if epoch < refreshes:
                assert self.interval is not None
                faded = relaxed_voltage(epochs[-1], torch.tensor(self.interval, dtype=x.dtype), device, cells)
                v = to_levels(faded, device)
        self.epochs = torch.stack(epochs)

    def at(self, held: Tensor, age: Tensor) -> tuple[Tensor, CellDeviations]:
        """Return the gate voltages (b, kv_heads, s, d) of the tokens ``held`` at their age in tokens."""
        cells = self.cells.at(held)
        seconds = age.to(torch.float64) * self.period
        epoch = torch.zeros_like(seconds) if self.interval is None else (seconds / self.interval).floor()
        rest = (seconds - epoch * (self.interval or 0.0)).to(self.epochs[0].dtype)
        start = self.epochs[epoch.long(), :, :, held].movedim(0, 2)
        return relaxed_voltage(start, rest[:, None], self.device, cells), cells


def _decay(stored: _Stored, age: Tensor) -> Tensor:
    """Return the factor that fades cells of these ages in tokens, where one fades them all."""
    return decay_factor(age.to(torch.float64) * stored.period, stored.device).to(stored.epochs[0].dtype)


def digitised(score: Tensor, device: DeviceModel) -> Tensor:
    """Return scores over the saturation as signed codes in [-1, 1]."""
    bits = device.readout_qk.bits
    return quantise_levels(score, None if bits is None else 2**bits - 1, -1.0, 1.0)


def require_period(device: DeviceModel, token_period_s: float | None) -> float:
    """Return the token period [s], any for a device that does not decay.

    Raises:
        ValueError: If the device decays and no period is given.
    """
    if token_period_s is None:
        if device.decays:
            raise ValueError(f"{device.name} decays: give token_period_s, the time between two tokens in seconds")
        return 0.0
    return token_period_s


def decay_by_age(
    device: DeviceModel, token_period_s: float | None, ages: int, like: Tensor, *, first: bool | int
) -> list[Tensor]:
    """Tabulate ``d(age)^n`` for n = 0..3 and age = 0..ages-1 tokens.

    Args:
        device: The device.
        token_period_s: [s] time between two tokens.
        ages: Number of entries.
        like: Tensor whose dtype and device the tables get.
        first: Whether the tables serve the first product, which the published code rounds to bfloat16.

    Returns:
        Four tensors of shape (ages,).

    Raises:
        ValueError: If the device decays and no token period is given.
    """
    age = torch.arange(ages, dtype=torch.float64, device=like.device)
    d = decay_factor(age * require_period(device, token_period_s), device)
    if device.parity.bfloat16_decay and first:
        d = d.float().to(torch.bfloat16)
    powers = [torch.ones_like(d), d, d * d, d * d * d]
    return [power.to(like.dtype) for power in powers]


def written_voltage_offset(device: DeviceModel) -> float:
    """Return v_inf - v_zero [V], about which the decaying part of a stored voltage is expanded."""
    return relaxed_level(device) - device.storage.v_zero


def _product(equation: str, x: Tensor, stored: _Stored, held: Tensor, age: Tensor, group: int) -> Tensor:
    """Sum pulse times cell current over an array, whose tokens ``held`` are ``age`` tokens old."""
    exact, surrogate = _currents(stored, held, age, first=equation.endswith("bhs"))
    out = torch.einsum(equation, x, exact.repeat_interleave(group, dim=1))
    if stored.device.cell.backward == "exact":
        return out
    smooth = torch.einsum(equation, x, surrogate.repeat_interleave(group, dim=1))
    return smooth + (out - smooth).detach()


def _currents(stored: _Stored, held: Tensor, age: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """Return the currents [A] of cells, and those whose gradient may stand in for theirs."""
    device = stored.device
    if device.parity.bfloat16_decay and first:  # each power of the decay is rounded by itself, so they stay apart
        w = stored.epochs[0][:, :, held] - device.storage.v_zero
        _, d1, d2, d3 = (
            power[age][:, None] for power in decay_by_age(device, stored.period, int(age.max()) + 1, w, first=True)
        )
        k0, k1, k2, k3 = polynomial(device.cell)
        return k0 + k1 * d1 * w + k2 * d2 * w**2 + k3 * d3 * w**3, (device.cell.surrogate_slope or 0.0) * d1 * w
    v, cells = stored.at(held, age)
    return cell_current(v, device, cells), surrogate_current(v, device, cells)
