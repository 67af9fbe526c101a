r"""Shares of a secret of which any t show it and fewer show nothing (Shamir 1979, doi:10.1145/359168.359176).

A secret s is the value at 0 of a polynomial of degree t - 1 whose other coefficients are random, and a share is its
value at another place, all modulo a prime. From t shares :math:`s = \sum_i y_i \prod_{j \ne i} x_j / (x_j - x_i)`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

PRIME = 2**256 + 297
"""The smallest prime above all secrets of 32 bytes."""
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, threshold: int, holders: Iterable[int]) -> dict[int, bytes]:
    """Return a share of a secret of 32 bytes for each holder, by the holder's number, which is 0 or above."""
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [int.from_bytes(secret)]
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in coefficients:
            value = (value * _place(holder) + coefficient) % PRIME
        shares[holder] = value.to_bytes(SHARE_BYTES)
    return shares


def factors_at_zero(holders: Iterable[int]) -> dict[int, int]:
    """Return the factor of each holder's share in the secret; the same for all secrets that they hold shares of."""
    places = [_place(holder) for holder in holders]
    factors = {}
    for x in places:
        above = below = 1
        for other in places:
            if other != x:
                above, below = above * other % PRIME, below * (other - x) % PRIME
        factors[x - 1] = above * pow(below, -1, PRIME) % PRIME
    return factors


def combine(shares: Mapping[int, bytes], factors: Mapping[int, int]) -> bytes:
    """Return the secret.

    Args:
        shares: By holder.
        factors: Of as many holders as the threshold says, from :func:`factors_at_zero`.

    Raises:
        ValueError: If the shares cannot be those of one secret; wrong shares mostly give a wrong secret instead.
    """
    value = sum(factor * int.from_bytes(shares[holder]) for holder, factor in factors.items()) % PRIME
    if value >= 1 << 8 * SECRET_BYTES:
        raise ValueError("shares do not belong together")
    return value.to_bytes(SECRET_BYTES)


def _place(holder: int) -> int:
    """Return where a holder's share is taken: never at 0, which is the secret itself."""
    return holder + 1
