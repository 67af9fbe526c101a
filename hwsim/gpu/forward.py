"""Forward direction: one program for a block of queries of one head, over all sub-tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from hwsim.gpu.parts import codes, gain_of, load_rows, noisy_charge, pulses, store_rows, weighted


@triton.jit
def block_of_queries(z, block, R: tl.constexpr):
    """Return write indices of a block, which lies within one lap, its lap, and which of them are queries."""
    in_lap = (z.window + R - 1) // R
    lap = block // in_lap
    base = lap * z.window + block % in_lap * R
    t = base + tl.arange(0, R)
    stop = tl.minimum(tl.minimum(base + R, (lap + 1) * z.window), z.query_start + z.queries)
    return t, (t >= z.query_start) & (t < stop), lap, tl.maximum(base, z.query_start), stop


@triton.jit
def piece_of_keys(z, piece, tile, lap, start, stop, C: tl.constexpr):
    """Return the tokens of a piece of a sub-tile, which of them there are, and whether any query may read any.

    The pieces of the lap before come first, then those of the block's own lap: they meet in one converter.
    """
    chunks = (z.slots + C - 1) // C
    base = (lap - 1 + piece // chunks) * z.window
    first = base + tile * z.slots + piece % chunks * C
    last = tl.minimum(tl.minimum(first + C, base + (tile + 1) * z.slots), base + z.window)
    oldest = tl.maximum(z.key_start, start - z.window + 1)
    last = tl.minimum(last, tl.minimum(z.key_start + z.keys, stop))
    s = first + tl.arange(0, C)
    return s, (s >= oldest) & (s < last), tl.maximum(first, oldest) < last


@triton.jit
def note_saturated(saturated, x, row, there, z, tile, D: tl.constexpr):
    """Store one bit for each charge (R, D) behind the gain that the converter clips."""
    R: tl.constexpr = x.shape[0]
    bit = tl.where(tl.abs(x) >= 1.0, 1, 0).to(tl.int32)
    byte = tl.sum(tl.reshape(bit, [R, D // 8, 8]) << tl.arange(0, 8)[None, None, :], 2)
    width = (z.dims + 7) // 8
    column = tl.arange(0, D // 8)
    at = (row * z.tiles + tile)[:, None] * width + column[None, :]
    tl.store(saturated + at, byte.to(tl.uint8), mask=there[:, None] & (column < width)[None, :])


@triton.jit
def forward_kernel(
    scoring, charging, converting, z, out, saturated, first_block,
    IMAGES_K: tl.constexpr, IMAGES_V: tl.constexpr, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Fill ``out`` (n, queries, dims) and ``saturated`` (n, queries, tiles, bytes) of one block."""
    n = tl.program_id(1).to(tl.int64)
    t, there, lap, start, stop = block_of_queries(z, first_block + tl.program_id(0), R)
    row = n * z.queries + t - z.query_start
    query = load_rows(scoring.query, row, there, z.dims, D)
    total = tl.zeros([R, D], dtype=tl.float32)
    tiles = tl.where(lap > 0, z.tiles, (stop - 1) // z.slots + 1)  # of the first lap, those written by now
    for tile in range(0, tiles):
        charge = tl.zeros([R, D], dtype=tl.float32)
        constant = tl.zeros([R], dtype=tl.float32)
        power = tl.zeros([R], dtype=tl.float32)
        squares = tl.zeros([R], dtype=tl.float32)
        live = tl.zeros([R], dtype=tl.int32)
        for piece in range(0, 2 * ((z.slots + C - 1) // C)):
            s, held, some = piece_of_keys(z, piece, tile, lap, start, stop, C)
            if some:
                phi, age, read = pulses(scoring, z, n, query, t, there, s, held, tile, IMAGES_K, D)
                for i in range(IMAGES_V):
                    value = load_rows(
                        charging.value + (n * IMAGES_V + i) * z.keys * z.dims, s - z.key_start, held, z.dims, D
                    )
                    pulse = weighted(phi, charging.weight + i * z.window, age, read, charging.grid)
                    charge += tl.dot(pulse, value, input_precision="ieee")
                if charging.constant is not None:
                    constant += tl.sum(weighted(phi, charging.constant, age, read, None), 1)
                if charging.noise is not None:
                    power += tl.sum(phi, 1)
                    squares += tl.sum(phi * phi, 1)
                live += tl.sum(read.to(tl.int32), 1)
        x = noisy_charge(charge + constant[:, None], charging, z, row, there, tile, power, squares, D)
        if converting.gain is not None:
            x = x * gain_of(converting, z, n, tile, D)
        if saturated is not None:
            note_saturated(saturated, x, row, there, z, tile, D)
        total += tl.where((live > 0)[:, None], codes(x, converting, z, n, tile, D), 0.0)
    store_rows(out, row, there, z.dims, total * converting.step, D)
