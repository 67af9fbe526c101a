"""Current of one gain cell."""

from __future__ import annotations

import math

from numpy.typing import NDArray

from device_models.schema import Cell


def polynomial(cell: Cell) -> tuple[float, float, float, float]:
    """Return the cell law as k0..k3 [A, A/V, A/V^2, A/V^3] of a polynomial in ``w = V - v_zero``."""
    if cell.law == "linear":
        return (0.0, cell.coefficients[0], 0.0, 0.0)
    k0, k1, k2, k3 = cell.coefficients
    return (k0, k1, k2, k3)


def cell_current(w: NDArray, cell: Cell) -> NDArray:
    """Return the current of a cell while its input pulse is high.

    ``f(w) = k0 + k1 w + k2 w^2 + k3 w^3``

    Args:
        w: [V] gate voltage minus the zero-weight level.
        cell: Law and coefficients.

    Returns:
        [A] current, of the shape of ``w``.

    Source: leroux2025, Methods (polynomial of Fig. 1e at V_in = 0.9 V); fitted for |w| <= 0.45 V.
    """
    k0, k1, k2, k3 = polynomial(cell)
    return k0 + w * (k1 + w * (k2 + w * k3))


def shifted_polynomial(coefficients: tuple[float, ...], shift: float) -> tuple[float, ...]:
    """Return c' with ``sum_n c'_n y^n == sum_n c_n (shift + y)^n``.

    With ``shift = v_inf - v_zero`` and ``y = (V(0) - v_inf) d`` the n-th power of the decay d multiplies the n-th
    power of the stored voltage, whatever level the cell relaxes to.
    """
    degree = len(coefficients)
    return tuple(
        sum(coefficients[m] * math.comb(m, n) * shift ** (m - n) for m in range(n, degree)) for n in range(degree)
    )
