"""Randomness as a function of a key, never of call order."""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import torch
from torch import Tensor

POOL = 1 << 20
"""Standard normals that noise is cut from: drawing each anew would cost more than what it is added to."""

FEW = 1 << 15
"""Numbers that torch would not share out among threads either; NumPy's calls on them cost a quarter of torch's."""


def seed_of(seed: int, *key: str | int) -> int:
    """Return a 63-bit seed for ``(seed, what, where, when)``; equal keys give equal seeds on every platform."""
    digest = hashlib.sha256(repr((int(seed), *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """Return a fresh CPU generator for a key; build it anew at each use."""
    made = torch.Generator()
    made.manual_seed(seed_of(seed, *key))
    return made


def mixed(counter: Tensor) -> Tensor:
    """Scramble 64-bit counters so that neighbours become unrelated; a bijection, int64 to int64.

    Source: finaliser of SplitMix64 (steele2014), variant 13 of Stafford.
    """
    return _finalised(counter + _signed(0x9E3779B97F4A7C15))


def _finalised(z: Tensor) -> Tensor:
    """Scramble in place; the temporaries of a plain expression would cost more than its arithmetic."""
    if z.device.type == "cpu" and z.numel() < FEW:
        few = z.numpy().view(np.uint64)
        few ^= few >> np.uint64(30)
        few *= np.uint64(0xBF58476D1CE4E5B9)
        few ^= few >> np.uint64(27)
        few *= np.uint64(0x94D049BB133111EB)
        few ^= few >> np.uint64(31)
        return z
    t = torch.bitwise_right_shift(z, 30).bitwise_and_((1 << 34) - 1)
    z.bitwise_xor_(t).mul_(_signed(0xBF58476D1CE4E5B9))
    torch.bitwise_right_shift(z, 27, out=t)
    z.bitwise_xor_(t.bitwise_and_((1 << 37) - 1)).mul_(_signed(0x94D049BB133111EB))
    torch.bitwise_right_shift(z, 31, out=t)
    return z.bitwise_xor_(t.bitwise_and_((1 << 33) - 1))


def keyed(key: Tensor, *indices: Tensor) -> Tensor:
    """Return a 64-bit state for each combination of a key and indices; all broadcast against each other.

    A function of the values alone, so any blocking and order of evaluation meets the same state.
    """
    return extended(mixed(key), *indices)


def extended(state: Tensor, *indices: Tensor) -> Tensor:
    """Return the states of :func:`keyed` with more indices."""
    for index in indices:
        state = combined(state, scattered(index))
    return state


def scattered(index: Tensor) -> Tensor:
    """Return what :func:`keyed` adds for an index, for indices that many keys meet."""
    return mixed(index) + _signed(0x9E3779B97F4A7C15)


def combined(state: Tensor, scattered_index: Tensor) -> Tensor:
    """Return the states of :func:`keyed` from those of fewer indices: ``mixed(key)`` where there is none yet."""
    return _finalised(state + scattered_index)


def normal(state: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one standard normal for each 64-bit state.

    ``sqrt(-2 ln u) cos(2 pi v)`` with u from the upper 23 bits and v from the next 24, both exact in float32, so
    float32 and float64 agree to rounding. The largest deviate is 5.77.

    Source: box1958.
    """
    u = _shift(state, 41).to(dtype).add_(0.5).mul_(2.0**-23)
    v = _shift(state, 17).bitwise_and_(0xFFFFFF).to(dtype).mul_(2.0**-24 * 2.0 * math.pi)
    return u.log_().mul_(-2.0).sqrt_().mul_(v.cos_())


def uniform(state: Tensor) -> Tensor:
    """Return one number in [0, 1) for each 64-bit state, a multiple of 2^-24, in float32."""
    return _shift(state, 40).to(torch.float32).mul_(2.0**-24)


def below(state: Tensor, bound: int) -> Tensor:
    """Return one whole number in [0, bound) for each 64-bit state; uniform to 1e-7 for bounds up to 2^24."""
    return _shift(state, 16).remainder_(bound)


def pool_places(state: Tensor, width: int) -> Tensor:
    """Return for each 64-bit state the place in :func:`normal_pool` where a row of ``width`` numbers starts."""
    return below(state, POOL - width + 1)


def pool_rows(places: Tensor, width: int, out: Tensor | None = None) -> Tensor:
    """Return standard normals (n, width) in float32: successive numbers of the pool from each of n places.

    Approximation: two rows may share numbers, shifted against each other, by a chance of width / 2^19.

    Args:
        places: (n,) from :func:`pool_places`.
        width: Numbers of a row.
        out: (n, width) float32 that receives them; None makes it.
    """
    pool = normal_pool(places.device)
    windows = pool.as_strided((POOL - width + 1, width), (1, 1))
    return torch.index_select(windows, 0, places) if out is None else torch.index_select(windows, 0, places, out=out)


@functools.cache
def normal_pool(device: torch.device, size: int = POOL) -> Tensor:
    """Return standard normals in float32, of mean 0 and variance 1 exactly to rounding, equal on every machine."""
    drawn = normal(keyed(torch.tensor(seed_of(0, "pool of noise")), torch.arange(size)), torch.float64)
    drawn = (drawn - drawn.mean()) / drawn.std(correction=0)
    return drawn.float().to(device)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch alone repeats the sign."""
    return torch.bitwise_right_shift(z, bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
