"""Physical lower bounds of energy: thermal noise of ideal circuits."""

from __future__ import annotations

BOLTZMANN = 1.380649e-23
"""[J/K] exact in the SI."""


def output_limit(bits: float, temperature_k: float) -> float:
    """Return the least energy [J] of one dot product with its conversion: ``24 kT 4^B``.

    Half of it charges the capacitors that the product is summed on, half samples it, each at noise that equals the
    quantisation noise of ``bits``; it does not depend on how many terms are summed.

    Source: kT/C noise (Nyquist); ``12 kT 4^B`` for the sampling converter (8 kT SNR) and as much for the sum.
    """
    return 24.0 * BOLTZMANN * temperature_k * 4.0**bits


def storage_limit(bits: float, temperature_k: float) -> float:
    """Return the least energy [J] of storing a value of ``bits`` on a capacitor: ``12 kT 4^b``."""
    return 12.0 * BOLTZMANN * temperature_k * 4.0**bits
