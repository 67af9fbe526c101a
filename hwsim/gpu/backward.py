"""Backward direction: one program for the keys of a piece of a sub-tile, one for a block of queries; no sum is shared.

dX = dout gain [not saturated]        dphi = sum_i wv_i <dX, V_i> + cv sum_d dX, times the grid
dS = dphi [0 < phi < 1]               dQ   = sum_i (dS wk_i) K_i + sum_s dS ck
dK_i = (dS wk_i)^T Q                  dV_i = (phi wv_i)^T dX, of rounded pulses times the grid
"""

from __future__ import annotations

import triton
import triton.language as tl

from hwsim.gpu.forward import block_of_queries, piece_of_keys
from hwsim.gpu.parts import gain_of, load_rows, pulses, store_rows, weighted


@triton.jit
def passed(slopes, grad, converting, z, n, row, there, tile, D: tl.constexpr):
    """Return the gradient (R, D) by the charges of a sub-tile from that by the output."""
    if converting.gain is not None:
        grad = grad * gain_of(converting, z, n, tile, D)
    if slopes.saturated is not None:
        width = (z.dims + 7) // 8
        column = tl.arange(0, D)
        at = (row * z.tiles + tile)[:, None] * width + (column // 8)[None, :]
        byte = tl.load(slopes.saturated + at, mask=there[:, None] & (column < z.dims)[None, :], other=0)
        grad = tl.where((byte.to(tl.int32) >> (column % 8)[None, :]) & 1 == 0, grad, 0.0)
    return grad


@triton.jit
def slope_of_scores(slopes, charging, z, n, phi, age, read, s, held, dx, IMAGES: tl.constexpr, D: tl.constexpr):
    """Return the gradient (R, C) by the scores."""
    slope = tl.zeros(phi.shape, dtype=tl.float32)
    for i in range(IMAGES):
        value = load_rows(slopes.value + (n * IMAGES + i) * z.keys * z.dims, s - z.key_start, held, z.dims, D)
        weight = tl.load(slopes.weight_v + i * z.window + age, mask=read, other=0.0)
        slope += tl.dot(dx, tl.trans(value), input_precision="ieee") * weight
    if slopes.constant_v is not None:
        slope += tl.sum(dx, 1)[:, None] * tl.load(slopes.constant_v + age, mask=read, other=0.0)
    if charging.grid is not None:
        slope = slope * charging.grid
    return tl.where((phi > 0.0) & (phi < 1.0), slope, 0.0)


@triton.jit
def cells_kernel(
    scoring, charging, converting, slopes, z, grad_key, grad_value, first_piece,
    IMAGES_K: tl.constexpr, IMAGES_DK: tl.constexpr, IMAGES_DV: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Fill one image of ``grad_key`` and ``grad_value`` (n, images, keys, dims) at one piece of a sub-tile."""
    n = tl.program_id(1).to(tl.int64)
    image = tl.program_id(2)
    chunks = (z.slots + C - 1) // C
    piece = first_piece + tl.program_id(0)
    lap = piece // (z.tiles * chunks)
    tile = piece % (z.tiles * chunks) // chunks
    first = lap * z.window + tile * z.slots + piece % chunks * C
    last = tl.minimum(tl.minimum(first + C, lap * z.window + (tile + 1) * z.slots), (lap + 1) * z.window)
    last = tl.minimum(last, z.key_start + z.keys)
    s = first + tl.arange(0, C)
    held = (s >= z.key_start) & (s < last)
    grad_k = tl.zeros([C, D], dtype=tl.float32)
    grad_v = tl.zeros([C, D], dtype=tl.float32)
    begin = tl.maximum(tl.maximum(first, z.key_start), z.query_start)
    stop = tl.minimum(last - 1 + z.window, z.query_start + z.queries)
    for start in range(begin, stop, R):
        t = start + tl.arange(0, R)
        there = t < stop
        row = n * z.queries + t - z.query_start
        query = load_rows(scoring.query, row, there, z.dims, D)
        grad = load_rows(slopes.grad, row, there, z.dims, D)
        dx = passed(slopes, grad, converting, z, n, row, there, tile, D)
        phi, age, read = pulses(scoring, z, n, query, t, there, s, held, tile, IMAGES_K, D)
        slope = slope_of_scores(slopes, charging, z, n, phi, age, read, s, held, dx, IMAGES_DV, D)
        if image < IMAGES_DK:
            weight = tl.load(slopes.weight_k + image * z.window + age, mask=read, other=0.0)
            grad_k += tl.dot(tl.trans(slope * weight), query, input_precision="ieee")
        if image < IMAGES_DV:
            pulse = weighted(phi, slopes.weight_v + image * z.window, age, read, charging.grid)
            grad_v += tl.dot(tl.trans(pulse), dx, input_precision="ieee")
    if charging.grid is not None:
        grad_v = grad_v * charging.grid
    rows = s - z.key_start
    if image < IMAGES_DK:
        store_rows(grad_key + (n * IMAGES_DK + image) * z.keys * z.dims, rows, held, z.dims, grad_k, D)
    if image < IMAGES_DV:
        store_rows(grad_value + (n * IMAGES_DV + image) * z.keys * z.dims, rows, held, z.dims, grad_v, D)


@triton.jit
def queries_kernel(
    scoring, charging, converting, slopes, z, grad_query, first_block,
    IMAGES_K: tl.constexpr, IMAGES_DK: tl.constexpr, IMAGES_DV: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Fill ``grad_query`` (n, queries, dims) of one block."""
    n = tl.program_id(1).to(tl.int64)
    t, there, lap, start, stop = block_of_queries(z, first_block + tl.program_id(0), R)
    row = n * z.queries + t - z.query_start
    query = load_rows(scoring.query, row, there, z.dims, D)
    grad = load_rows(slopes.grad, row, there, z.dims, D)
    total = tl.zeros([R, D], dtype=tl.float32)
    constant = tl.zeros([R], dtype=tl.float32)
    tiles = tl.where(lap > 0, z.tiles, (stop - 1) // z.slots + 1)
    for tile in range(0, tiles):
        dx = passed(slopes, grad, converting, z, n, row, there, tile, D)
        for piece in range(0, 2 * ((z.slots + C - 1) // C)):
            s, held, some = piece_of_keys(z, piece, tile, lap, start, stop, C)
            if some:
                phi, age, read = pulses(scoring, z, n, query, t, there, s, held, tile, IMAGES_K, D)
                slope = slope_of_scores(slopes, charging, z, n, phi, age, read, s, held, dx, IMAGES_DV, D)
                for i in range(IMAGES_DK):
                    key = load_rows(
                        slopes.key + (n * IMAGES_DK + i) * z.keys * z.dims, s - z.key_start, held, z.dims, D
                    )
                    weight = tl.load(slopes.weight_k + i * z.window + age, mask=read, other=0.0)
                    total += tl.dot(slope * weight, key, input_precision="ieee")
                if slopes.constant_k is not None:
                    constant += tl.sum(slope * tl.load(slopes.constant_k + age, mask=read, other=0.0), 1)
    store_rows(grad_query, row, there, z.dims, total + constant[:, None], D)
