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
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_models.schema import Readout


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
