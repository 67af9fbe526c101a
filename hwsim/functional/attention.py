"""Attention on gain cells, written as the equation reads: the oracle of every faster version."""

from __future__ import annotations

import torch
from torch import Tensor

from device_models.cell import polynomial
from device_models.schema import DeviceModel
from hwsim.functional.quantise import quantise_levels, read_out


def naive_gain_cell_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    device: DeviceModel,
    *,
    token_period_s: float | None = None,
    die: None = None,
    read_key: None = None,
) -> Tensor:
    """Compute causal attention of one sequence on gain-cell arrays, token by token.

    Token t is written into slot ``t mod M`` and reads the tokens ``t - M < s <= t``, itself included::

        q = convert(query)           k, v = convert(key), convert(value)      converters
        V(a) = v_inf + (V(0) - v_inf) d(a),  a = (t - s) token_period          decay
        f(w) = k0 + k1 w + k2 w^2 + k3 w^3,  w = V - v_zero                    cell
        S[t,s]   = sum_d q[t,d] f(k[s,d](a))                                   first product
        phi[t,s] = clip(S / s_qk, 0, 1)                                        hard sigmoid
        A_r[t,d] = sum_{s in sub-tile r} phi[t,s] f(v[s,d](a))                 second product
        out[t,d] = sum_r readout(clip(A_r / s_av, -1, 1))                      readout, digital sum

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
    batch, heads, tokens, head_dim = query.shape
    window, slots = device.window.tokens, device.tile.slots
    decay, decay_first = (decay_by_age(device, token_period_s, min(tokens, window), query, first=f) for f in (0, 1))

    q = quantise_levels(query, device.input.levels, 0.0, 1.0)
    stored_k = _repeat_heads(_write(key, device), heads)
    stored_v = _repeat_heads(_write(value, device), heads)

    rows = []
    for t in range(tokens):
        held = torch.arange(max(0, t - window + 1), t + 1, device=query.device)
        age = t - held
        score = _product("bhd,bhsd->bhs", q[:, :, t], stored_k[:, :, held], decay_first, age, device)
        phi = torch.nn.functional.hardtanh(score / device.saturation.qk, 0.0, 1.0)
        slot = held % window if device.tile.assignment == "ring" else held
        out = query.new_zeros(batch, heads, head_dim)
        for tile in torch.unique(slot // slots).tolist():
            inside = slot // slots == tile
            pulses, columns = phi[:, :, inside], stored_v[:, :, held[inside]]
            charge = _product("bhs,bhsd->bhd", pulses, columns, decay, age[inside], device)
            out = out + read_out(charge / device.saturation.av, device.readout)
        rows.append(out)
    return torch.stack(rows, dim=2)


def require_ideal_statistics(die: object, read_key: object) -> None:
    """Refuse random effects that no device file can describe yet, instead of ignoring them."""
    if die is not None or read_key is not None:
        raise ValueError("die and read_key must be None: this version has no mismatch and no read noise")


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
    if not device.decays or device.retention.tau is None:
        d = torch.ones_like(age)
    elif token_period_s is None:
        raise ValueError(f"{device.name} decays: give token_period_s, the time between two tokens in seconds")
    else:
        d = torch.exp(-age * (token_period_s / device.retention.tau))
    if device.parity.bfloat16_decay and first:
        d = d.float().to(torch.bfloat16)
    powers = [torch.ones_like(d), d, d * d, d * d * d]
    return [power.to(like.dtype) for power in powers]


def written_voltage_offset(device: DeviceModel) -> float:
    """Return v_inf - v_zero [V], about which the decaying part of a stored voltage is expanded."""
    v_inf = device.retention.v_inf
    return 0.0 if v_inf is None else v_inf - device.storage.v_zero


def _write(x: Tensor, device: DeviceModel) -> Tensor:
    storage = device.storage
    return quantise_levels(x, storage.levels, storage.v_min, storage.v_max)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    if heads % x.shape[1]:
        raise ValueError(f"{heads} query heads cannot share {x.shape[1]} key/value heads evenly")
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _product(equation: str, x: Tensor, stored: Tensor, decay: list[Tensor], age: Tensor, device: DeviceModel) -> Tensor:
    """Sum input times cell current over an array; ``stored`` (b, h, s, d) is read at ``age`` (s,) in tokens."""
    exact = torch.einsum(equation, x, _current(stored, decay, age, device))
    if device.cell.backward == "exact":
        return exact
    shift, decayed = written_voltage_offset(device), decay[1][age][:, None]
    w = shift + decayed * (stored - device.storage.v_zero - shift)
    surrogate = torch.einsum(equation, x, w) * (device.cell.surrogate_slope or 0.0)
    return surrogate + (exact - surrogate).detach()


def _current(stored: Tensor, decay: list[Tensor], age: Tensor, device: DeviceModel) -> Tensor:
    """Return the cell current [A] of stored voltages read at their age."""
    k0, k1, k2, k3 = polynomial(device.cell)
    if device.parity.bfloat16_decay:  # each power of the decay is rounded by itself, so they stay apart
        w, (_, d1, d2, d3) = stored - device.storage.v_zero, (power[age][:, None] for power in decay)
        return k0 + k1 * d1 * w + k2 * d2 * w**2 + k3 * d3 * w**3
    v_inf = device.storage.v_zero if device.retention.v_inf is None else device.retention.v_inf
    w = v_inf + (stored - v_inf) * decay[1][age][:, None] - device.storage.v_zero
    return k0 + w * (k1 + w * (k2 + w * k3))
