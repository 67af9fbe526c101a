"""Reference converters in NumPy. Truth tables first; the code below them is the tables.

``quantise_levels``: exactly L codes on [lo, hi], both ends included.

===========  ==========================  ======================
levels       step                        codes
===========  ==========================  ======================
L >= 2       (hi - lo)/(L - 1)           lo, lo + step, .., hi
None         continuous                  clipped to [lo, hi]
===========  ==========================  ======================

``readout_codes``: a value already divided by its saturation.

==============  =========================  =================================  ===============
codes           step                       codes                              5 bits
==============  =========================  =================================  ===============
counter         1/(2^(bits-1) - 1)         -(2^(bits-1) - 1) .. +(..)         31 on [-1, 1]
published_33    2/(2^bits - 1)             round half even, no second clip    33, +-1.032
ideal           continuous                 clipped to [-1, 1]                 -
==============  =========================  =================================  ===============

All rounding is half to even.

``read_out``: one column with its static errors; ``x`` in units of the full scale, ``n`` the nearest code::

    u = clip(x (1 + gain z_g)) / step + offset z_o + noise z_n        [LSB]
    n = round(clip(u));   code = clip(round(clip(u) + e[n]))          e: static error of the column at that code

The stage in front of the converter saturates, so a saturated column still shows the converter's offset and noise.

The shape of ``e`` follows the circuit: a counter's or a ramp's error walks from code to code (a ramp is shared by the
columns of a sub-tile), a SAR's is a sum over the bits of the code, a flash's is independent from code to code.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from device_models.schema import Readout
from device_models.variability import bridge


def quantise_levels(x: NDArray, levels: int | None, low: float, high: float) -> NDArray:
    """Clip to [low, high] and round to ``levels`` equidistant codes; any unit.

    Source: leroux2025, Methods (16 pulse widths, 8 voltages).
    """
    clipped = np.clip(x, low, high)
    if levels is None:
        return clipped
    step = (high - low) / (levels - 1)
    return low + step * np.round((clipped - low) / step)


def readout_step(readout: Readout) -> float | None:
    """Return the step between neighbouring codes in units of the saturation, or None for a continuous readout."""
    if readout.bits is None:
        return None
    if readout.codes == "published_33":
        return 2.0 / (2**readout.bits - 1)
    return 1.0 / (2 ** (readout.bits - 1) - 1)


def readout_codes(x: NDArray, readout: Readout) -> NDArray:
    """Read out a value [1] in units of its saturation.

    Source: leroux2025 p. 815 (16-level counter with sign) for ``counter``; the published code for ``published_33``.
    """
    clipped = np.clip(x, -1.0, 1.0)
    step = readout_step(readout)
    return clipped if step is None else step * np.round(clipped / step)


def highest_code(readout: Readout) -> int:
    """Return the largest code of a signed readout, for example 15 of 5 bits with a counter.

    Raises:
        ValueError: If the readout is continuous.
    """
    step = readout_step(readout)
    if step is None:
        raise ValueError("a continuous readout has no codes")
    return round(1.0 / step)


def code_errors(z: ArrayLike, z_dnl: ArrayLike, readout: Readout) -> NDArray:
    """Return the static error [LSB] of a column at each of its codes, lowest code first.

    Args:
        z: [1] deviates that shape the integral non-linearity, (..., codes).
        z_dnl: [1] deviates of single code widths, (..., codes).
        readout: Circuit and strengths.

    Returns:
        ``inl * shape + dnl * z_dnl``; the shape has unit rms over codes and dies.

    Source: Brownian bridge of converters of unit elements (counter, ramp); binary-weighted elements whose variance
        grows with their weight (SAR); independent comparators (flash).
    """
    z, codes = np.asarray(z, dtype=np.float64), 2 * highest_code(readout) + 1
    if readout.circuit == "flash":
        shape = z
    elif readout.circuit == "sar":
        shape = z @ sar_weights(codes)
    else:
        shape = bridge(z[..., : codes - 1])
    return readout.inl * shape + readout.dnl * np.asarray(z_dnl)


def sar_weights(codes: int) -> NDArray:
    """Return (codes, codes): how the error of each binary element enters each code, of unit mean power.

    Row k < bits holds bit k of the code times ``sqrt(2^k)``; a line through the end points is taken off.
    """
    bits = max(1, math.ceil(math.log2(codes)))
    n = np.arange(codes)
    weights = np.zeros((codes, codes))
    for k in range(bits):
        row = ((n >> k) & 1) * math.sqrt(2.0**k)
        weights[k] = row - row[0] - (row[-1] - row[0]) * n / (codes - 1)
    power = float((weights**2).sum(0).mean())
    return weights / math.sqrt(power) if power else weights


def read_out(
    x: ArrayLike,
    readout: Readout,
    *,
    errors: NDArray | None = None,
    z_gain: ArrayLike = 0.0,
    z_offset: ArrayLike = 0.0,
    z_noise: ArrayLike = 0.0,
) -> NDArray:
    """Read out values [1] in units of the full scale through columns with errors; equation at the top.

    Args:
        x: Values of any shape.
        readout: Converter.
        errors: [LSB] (..., codes) from :func:`code_errors`; its leading shape broadcasts against ``x``.
        z_gain: [1] deviate of each column's gain.
        z_offset: [1] deviate of each column's offset.
        z_noise: [1] deviate of each read.

    Returns:
        [1] values on the code grid.
    """
    step = readout_step(readout)
    x = np.asarray(x, dtype=np.float64)
    if step is None:
        return np.clip(x, -1.0, 1.0)
    top = highest_code(readout)
    limit = 1.0 / step
    gained = np.clip(x * (1.0 + readout.gain_sigma * np.asarray(z_gain)), -1.0, 1.0) / step
    u = gained + readout.offset_sigma * np.asarray(z_offset) + readout.noise * np.asarray(z_noise)
    u = np.clip(u, -limit, limit)
    if errors is not None:
        n = np.round(u).astype(int)
        table = np.broadcast_to(errors, (*u.shape, errors.shape[-1]))
        u = u + np.take_along_axis(table, (n + top)[..., None], axis=-1)[..., 0]
    return step * np.clip(np.round(u), -top, top)
