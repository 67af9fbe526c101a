"""What the kernels in C and in Triton compute, written densely in float64, inputs for it, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hwsim.native import Cells, Circuits, Geometry, Noise, Readout
from tests import tolerances

POOL = 20000


def dense_attention(query: Tensor, cells: Cells, geometry: Geometry, circuits: Circuits) -> Tensor:
    """Return (n, queries, head_dim); differentiable in query and images."""
    count, queries, dims = query.shape
    t = geometry.query_start + torch.arange(queries)
    s = geometry.key_start + torch.arange(cells.key.shape[2])
    age = t[:, None] - s
    live = (age >= 0) & (age < geometry.window)
    at = age.clamp(0, geometry.window - 1)
    slot, readout, noise = s % geometry.window, circuits.readout, circuits.noise

    scores = sum(
        (query @ cells.key[:, i].mT) * cells.weight_k[i].double()[at] for i in range(cells.key.shape[1])
    )  # fmt: skip
    if cells.constant_k is not None:
        scores = scores + query.sum(-1, keepdim=True) * cells.constant_k.double()[at]
    if circuits.score_offset is not None:
        scores = scores + _of_heads(circuits.score_offset, count)[:, None, slot]
    if noise is not None and noise.score_sigma is not None:
        tile = slot // geometry.slots
        place = noise.score_start.long()[:, :, tile] + slot - tile * geometry.slots
        scores = scores + noise.score_sigma.double()[..., None] * noise.pool.double()[place]
    phi = torch.nn.functional.hardtanh(scores, 0, 1) * live  # no gradient at either end
    if noise is not None and noise.jitter is not None:
        deviation, start = noise.jitter
        tile = slot // geometry.slots
        z = noise.pool.double()[start.long()[:, :, tile] + slot - tile * geometry.slots]
        phi = (phi + deviation * z * (phi > 0)).clamp(min=0.0)
    out = torch.zeros_like(query)
    for j in range(geometry.tiles):
        inside = slot // geometry.slots == j
        p, read = phi[..., inside], live[:, inside].any(-1)
        pulses = [p * cells.weight_v[i].double()[at[:, inside]] for i in range(cells.value.shape[1])]
        if circuits.grid is not None:
            whole = (p.float() * cells.weight_v[0][at[:, inside]]).round()  # in float32, which decides at halves
            pulses = [x + (whole - x).detach() for x in pulses]
        charge = sum(x @ cells.value[:, i, inside] for i, x in enumerate(pulses)) * (circuits.grid or 1.0)
        if cells.constant_v is not None:
            charge = charge + (p * cells.constant_v.double()[at[:, inside]]).sum(-1, keepdim=True)
        if noise is not None and noise.charge is not None:
            full, white, flicker = noise.charge
            sigma = full * (white * p.sum(-1) + flicker * (p * p).sum(-1)).sqrt().detach()
            place = noise.charge_start.long()[:, :, j, None] + torch.arange(dims)
            charge = charge + sigma[..., None] * noise.pool.double()[place]
        if readout.gain is not None:
            charge = charge * _of_heads(readout.gain, count)[:, j, None]
        clipped = torch.nn.functional.hardtanh(charge)
        code = clipped
        if readout.step:
            code = clipped / readout.step
            if readout.offset is not None:
                code = code + _of_heads(readout.offset, count)[:, j, None]
            if noise is not None and noise.readout is not None:
                deviation, start = noise.readout
                code = code + deviation * noise.pool.double()[start.long()[:, :, j, None] + torch.arange(dims)]
            if readout.errors is not None:
                code = code.clamp(-1 / readout.step, 1 / readout.step)
                errors = _of_heads(readout.errors, count)[:, j]
                code = code + errors.gather(1, code.round().long() + errors.shape[1] // 2)
            code = code.round().clamp(-readout.top, readout.top) * readout.step
        out = out + (clipped + (code - clipped).detach()) * read[:, None]
    return out


def _of_heads(x: Tensor, count: int) -> Tensor:
    return x.double().repeat(count // x.shape[0], *([1] * (x.ndim - 1)))


def inputs(
    tokens: int, head_dim: int, geometry: Geometry, images: tuple[int, int] = (1, 1), heads: int = 2, batch: int = 2,
    seed: int = 0, *, constant: bool = False,
) -> tuple[Tensor, Cells]:  # fmt: skip
    """Draw queries and cells whose scores and charges overshoot their ranges now and then."""
    rng = torch.Generator().manual_seed(seed)
    n, age = batch * heads, torch.arange(geometry.window) / geometry.window

    def normal(count: int, size: float) -> Tensor:
        return torch.randn(n, count, tokens, head_dim, generator=rng) * size

    def decay(count: int) -> Tensor:
        return torch.stack([torch.exp(-(i + 1) * age) * (1 - 0.3 * i) for i in range(count)])

    query = torch.rand(n, tokens, head_dim, generator=rng)
    key = normal(images[0], 1.2 / head_dim**0.5) + 0.6 / head_dim
    constants = (0.002 * (1 - 0.5 * age), -0.01 * (1 - 0.5 * age)) if constant else (None, None)
    return query, Cells(key, normal(images[1], 0.2), decay(images[0]), decay(images[1]), *constants)


def circuits(
    tokens: int, head_dim: int, geometry: Geometry, *, mismatch: bool = False, noise: bool = False,
    late: bool = False, heads: int = 2, batch: int = 2, step: float = 1 / 15, seed: int = 1,
) -> Circuits:  # fmt: skip
    """Return circuits with or without static deviations and noise, and what the kernels in C alone know of them."""
    rng = torch.Generator().manual_seed(seed)
    shape = (heads, geometry.tiles, head_dim)
    found = Circuits(Readout(step, 15 if step else 0.0))
    if mismatch:
        readout = replace(
            found.readout,
            gain=1 + 0.1 * torch.randn(shape, generator=rng),
            offset=0.4 * torch.randn(shape, generator=rng),
        )
        found = Circuits(readout, None, 0.05 * torch.randn(heads, geometry.window, generator=rng))
    if noise:
        places = (batch * heads, tokens, geometry.tiles)
        width = max(min(geometry.slots, geometry.window), head_dim)
        start, start2 = (torch.randint(0, POOL - width + 1, places, generator=rng, dtype=torch.int32) for _ in range(2))
        start2[0] = POOL - head_dim  # the last row of the pool
        sigma = 0.05 * torch.rand(places[:2], generator=rng)
        drawn = Noise(torch.randn(POOL, generator=rng), sigma, start, (0.1, 0.04, 0.01), start2)
        found = replace(found, noise=drawn)
    if late:
        assert found.noise is not None
        readout = replace(found.readout, errors=0.4 * torch.randn(heads, geometry.tiles, 31, head_dim, generator=rng))
        drawn = replace(found.noise, jitter=(0.2, found.noise.score_start), readout=(0.3, found.noise.charge_start))
        found = replace(found, readout=readout, noise=drawn)
    return found


def newest(
    query: Tensor, cells: Cells, geometry: Geometry, around: Circuits
) -> tuple[Tensor, Cells, Tensor, Geometry, Circuits]:
    """Return what decodes the last query: rings that hold the tokens by slot, and the noise of that query alone."""
    tokens, window = query.shape[1], geometry.window
    last = torch.arange(max(0, tokens - window), tokens)
    rings = [torch.full((*x.shape[:2], window, x.shape[3]), 7.0) for x in (cells.key, cells.value)]
    for ring, x in zip(rings, (cells.key, cells.value), strict=True):
        ring[:, :, last % window] = x[:, :, last]
    n = around.noise
    if n is not None:
        assert n.score_sigma is not None and n.score_start is not None and n.charge_start is not None
        own = Noise(n.pool, n.score_sigma[:, -1:], n.score_start[:, -1:], n.charge, n.charge_start[:, -1:])
        around = replace(around, noise=own)
    position = torch.full((query.shape[0],), tokens - 1)
    return query[:, -1:], replace(cells, key=rings[0], value=rings[1]), position, geometry, around


def straight_through(
    query: Tensor, cells: Cells, slopes: Cells, geometry: Geometry, around: Circuits, weight: Tensor
) -> Tensor:
    """Return what has the gradient of the smooth products, with the clips of the exact ones."""
    t = torch.arange(query.shape[1])
    age = t[:, None] - t
    live, at = (age >= 0) & (age < geometry.window), age.clamp(0, geometry.window - 1)

    def scores(c: Cells) -> Tensor:
        parts = [(query @ c.key[:, i].mT) * c.weight_k[i].double()[at] for i in range(c.key.shape[1])]
        return torch.stack(parts).sum(0)

    exact, smooth = scores(cells).detach(), scores(slopes)
    phi = torch.nn.functional.hardtanh(smooth + (exact - smooth).detach(), 0, 1) * live
    total = query.new_zeros(())
    for j in range(geometry.tiles):
        inside = t % geometry.window // geometry.slots == j

        def charge(c: Cells, inside: Tensor = inside) -> Tensor:
            parts = [
                (phi * c.weight_v[i].double()[at])[..., inside] @ c.value[:, i, inside] for i in range(c.value.shape[1])
            ]
            return torch.stack(parts).sum(0)

        x, y = charge(cells).detach(), charge(slopes)
        total = total + (torch.nn.functional.hardtanh(y + (x - y).detach()) * weight).sum()
    return total


def weight_of(out: Tensor) -> Tensor:
    return torch.linspace(-1, 1, out.numel()).mul(7).cos().view_as(out)


def doubles(query: Tensor, cells: Cells) -> tuple[Tensor, Cells]:
    q, key, value = (x.double().requires_grad_() for x in (query, cells.key, cells.value))
    return q, replace(cells, key=key, value=value)


def assert_codes(found: Tensor, expected: Tensor, step: float, *, flips: int = 0) -> None:
    """Compare outputs; a share of them, or ``flips`` where that is more, may lie one step apart."""
    error = (found - expected).abs()
    apart = error > tolerances.FLOAT32 * expected.abs().max().clamp(min=1.0)
    allowed = max(flips, tolerances.NATIVE_FLIPS * apart.numel())
    assert apart.sum() <= allowed, f"{apart.sum()} of {apart.numel()} outputs differ"
    assert error.max() <= step * 1.001 + tolerances.FLOAT32 * expected.abs().max().clamp(min=1.0)


def assert_gradients(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("query", "key", "value"), found, expected, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        error = (a - b).square().mean().sqrt() / b.abs().max().clamp(min=1e-30)
        assert error <= tolerances.FLOAT32_GRADIENT, f"{name}: {error:.3g}"


def assert_wrong_tensors_are_named(forward: Callable[..., object], head_dim: int) -> None:
    """Kernels in C and in Triton refuse the same tensors in the same words."""
    geometry, plain = Geometry(70, 64), Circuits(Readout())
    query, cells = inputs(10, head_dim, geometry)
    with pytest.raises(ValueError, match=r"query: expected torch.float32 .* received torch.float64"):
        forward(query.double(), cells, geometry, plain)
    with pytest.raises(ValueError, match=r"weights of the keys: expected .* \(1, 71\).* received .*\(1, 70\)"):
        forward(query, cells, Geometry(71, 64), plain)
    with pytest.raises(ValueError, match="1 to 4 images, received 5"):
        forward(query, inputs(10, head_dim, geometry, (5, 1))[1], geometry, plain)
    with pytest.raises(ValueError, match="no multiple of the 3 heads"):
        forward(query, cells, geometry, Circuits(Readout(), None, torch.zeros(3, 70)))
    with pytest.raises(ValueError, match="score_start: expected the places"):
        noise = Noise(torch.zeros(100), torch.zeros(4, 10))
        forward(query, cells, geometry, Circuits(Readout(), noise))
