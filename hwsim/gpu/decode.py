"""Decode: one program for a sub-tile of one head, whose query reads a ring where it lies."""

from __future__ import annotations

import triton
import triton.language as tl

from hwsim.gpu.parts import codes, gain_of, load_rows, noise_of, noisy_charge, store_rows, weighted


@triton.jit
def decode_kernel(
    scoring, charging, converting, z, position, out,
    IMAGES_K: tl.constexpr, IMAGES_V: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Fill ``out`` (n, tiles, dims) of one sub-tile with its codes; their sum over the sub-tiles is left to do."""
    n = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    now = tl.load(position + n)
    newest = (now % z.window).to(tl.int32)
    one = tl.arange(0, 1)
    query = load_rows(scoring.query + n * z.dims, one, one == 0, z.dims, D)
    charge = tl.zeros([1, D], dtype=tl.float32)
    constant = tl.zeros([1], dtype=tl.float32)
    power = tl.zeros([1], dtype=tl.float32)
    squares = tl.zeros([1], dtype=tl.float32)
    live = tl.zeros([1], dtype=tl.int32)
    high = tl.minimum((tile + 1) * z.slots, z.window)
    for first in range(tile * z.slots, high, C):
        slot = first + tl.arange(0, C)
        read = (slot < high) & ((slot <= newest) | (now >= z.window))
        age = tl.where(read, tl.where(slot <= newest, newest - slot, newest - slot + z.window), 0)
        score = tl.zeros([C], dtype=tl.float32)
        for i in range(IMAGES_K):
            key = load_rows(scoring.key + (n * IMAGES_K + i) * z.window * z.dims, slot, read, z.dims, D)
            weight = tl.load(scoring.weight + i * z.window + age, mask=read, other=0.0)
            score += tl.sum(query * key, 1) * weight
        if scoring.constant is not None:
            score += tl.sum(query, 1) * tl.load(scoring.constant + age, mask=read, other=0.0)
        if scoring.offset is not None:
            score += tl.load(scoring.offset + (n % z.heads) * z.window + slot, mask=read, other=0.0)
        if scoring.sigma is not None:
            inside = tl.where(read, slot - tile * z.slots, 0)
            z_score = noise_of(scoring.pool, scoring.place, n * z.tiles + tile + one, inside, one == 0)
            score += tl.load(scoring.sigma + n) * tl.sum(z_score, 0)
        phi = tl.where(read, tl.minimum(tl.maximum(score, 0.0), 1.0), 0.0)
        for i in range(IMAGES_V):
            value = load_rows(charging.value + (n * IMAGES_V + i) * z.window * z.dims, slot, read, z.dims, D)
            pulse = weighted(phi, charging.weight + i * z.window, age, read, charging.grid)
            charge += tl.sum(pulse[:, None] * value, 0)[None, :]
        if charging.constant is not None:
            constant += tl.sum(weighted(phi, charging.constant, age, read, None), 0)
        if charging.noise is not None:
            power += tl.sum(phi, 0)
            squares += tl.sum(phi * phi, 0)
        live += tl.sum(read.to(tl.int32), 0)
    x = noisy_charge(charge + constant[:, None], charging, z, n + one, one == 0, tile, power, squares, D)
    if converting.gain is not None:
        x = x * gain_of(converting, z, n, tile, D)
    x = tl.where((live > 0)[:, None], codes(x, converting, z, n, tile, D), 0.0)
    store_rows(out + n * z.tiles * z.dims, tile + one, one == 0, z.dims, x, D)
