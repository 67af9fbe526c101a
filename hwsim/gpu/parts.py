"""What the kernels share: loads of rows, pulses of some queries at some slots, and the converter.

Shapes: R queries and C slots of one program, D dimensions, padded to a power of two. ``hwsim/native/attention.h`` has
the equations.
"""

from __future__ import annotations

import triton
import triton.language as tl

SHIFT = tl.constexpr(12582912.0)
"""1.5 * 2^23: a sum with it has no room for a fraction, so that adding and subtracting it rounds half to even."""
MOST_PULSES = tl.constexpr(4194304.0)
"""2^22, up to which that holds."""


@triton.jit
def rounded(x):
    """Round half to even between -2^22 and 2^22; ``x`` is no bare product, which would be fused with the sum."""
    return (x + SHIFT) - SHIFT


@triton.jit
def load_rows(base, rows, there, dims, D: tl.constexpr):
    """Load rows (R, D) of a contiguous (any, dims), zero where there is none."""
    column = tl.arange(0, D)
    mask = there[:, None] & (column < dims)[None, :]
    return tl.load(base + rows[:, None].to(tl.int64) * dims + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(base, rows, there, dims, x, D: tl.constexpr):
    """Store what :func:`load_rows` loads."""
    column = tl.arange(0, D)
    mask = there[:, None] & (column < dims)[None, :]
    tl.store(base + rows[:, None].to(tl.int64) * dims + column[None, :], x, mask=mask)


@triton.jit
def noise_of(pool, place, row, columns, mask):
    """Load standard normals (R, C): those that begin at the place of each row."""
    first = tl.load(place + row, mask=mask, other=0)
    return tl.load(pool + first[:, None] + columns[None, :])


@triton.jit
def pulses(scoring, z, n, query, t, there, s, held, tile, IMAGES: tl.constexpr, D: tl.constexpr):
    """Return phi (R, C) of queries at tokens of a sub-tile, the ages of the tokens, and which are read.

    The queries are (R, D), with write indices ``t`` where they are ``there``; the tokens have write indices ``s``
    where they are ``held``.
    """
    age = t[:, None] - s[None, :]
    read = (age >= 0) & (age < z.window) & there[:, None] & held[None, :]
    age = tl.where(read, age, 0)
    score = tl.zeros([t.shape[0], s.shape[0]], dtype=tl.float32)
    for i in range(IMAGES):
        key = load_rows(scoring.key + (n * IMAGES + i) * z.keys * z.dims, s - z.key_start, held, z.dims, D)
        weight = tl.load(scoring.weight + i * z.window + age, mask=read, other=0.0)
        score += tl.dot(query, tl.trans(key), input_precision="ieee") * weight
    if scoring.constant is not None:
        score += tl.sum(query, 1)[:, None] * tl.load(scoring.constant + age, mask=read, other=0.0)
    slot = s % z.window
    if scoring.offset is not None:
        score += tl.load(scoring.offset + (n % z.heads) * z.window + slot, mask=held, other=0.0)[None, :]
    if scoring.sigma is not None:
        row = n * z.queries + t - z.query_start
        sigma = tl.load(scoring.sigma + row, mask=there, other=0.0)
        inside = tl.where(held, slot - tile * z.slots, 0)
        score += sigma[:, None] * noise_of(scoring.pool, scoring.place, row * z.tiles + tile, inside, there)
    phi = tl.minimum(tl.maximum(score, 0.0), 1.0)
    return tl.where(read, phi, 0.0), age, read


@triton.jit
def weighted(phi, table, age, read, grid):
    """Return pulses times the weight of their value by age; whole numbers where there is a grid."""
    made = phi * tl.load(table + age, mask=read, other=0.0)
    if grid is not None:
        made = rounded(tl.minimum(made, MOST_PULSES))
    return made


@triton.jit
def noisy_charge(x, charging, z, row, there, tile, power, squares, D: tl.constexpr):
    """Scale charges (R, D) to saturations and add their noise, from the sums of phi and phi^2 (R,)."""
    if charging.grid is not None:
        x = x * charging.grid
    if charging.noise is not None:
        full, white, flicker = charging.noise
        spread = full * tl.sqrt(white * power + flicker * squares)
        column = tl.arange(0, D)
        inside = tl.where(column < z.dims, column, 0)
        x += spread[:, None] * noise_of(charging.pool, charging.place, row * z.tiles + tile, inside, there)
    return x


@triton.jit
def gain_of(converting, z, n, tile, D: tl.constexpr):
    """Load what multiplies the charges of a sub-tile, (1, D)."""
    column = tl.arange(0, D)
    at = ((n % z.heads) * z.tiles + tile) * z.dims + column
    return tl.load(converting.gain + at, mask=column < z.dims, other=0.0)[None, :]


@triton.jit
def codes(x, converting, z, n, tile, D: tl.constexpr):
    """Convert charges (R, D) behind the gain: codes, or clipped charges where the converter is continuous."""
    x = tl.minimum(tl.maximum(x, -1.0), 1.0)
    if converting.inverse is not None:
        x = x * converting.inverse
        if converting.offset is not None:
            column = tl.arange(0, D)
            at = ((n % z.heads) * z.tiles + tile) * z.dims + column
            x += tl.load(converting.offset + at, mask=column < z.dims, other=0.0)[None, :]
        x = rounded(tl.minimum(tl.maximum(x, -converting.top), converting.top))
    return x


INTERPRETED = not any(isinstance(function, triton.JITFunction) for function in (rounded, tl.sum))
"""Whether Triton's interpreter runs the kernels; it was decided when Triton was imported."""
