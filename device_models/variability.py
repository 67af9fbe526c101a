"""Errors of writing and reading a cell, as formulas of standard normal deviates ``z`` that the caller draws.

In the order of the signal, for a value on the level grid ``v`` (V, counted as a voltage)::

    written  = v_zero + (v + inl - v_zero)(1 + c z_c)
                      + pedestal_mean + pedestal_gain (v - v_zero) + pedestal_sigma z_p + sigma_w z_w
    gate     = decayed written voltage + offset z_o - threshold drift
    current  = f(gate - v_zero) (1 + gain z_g) (1 - wire drop)

with ``c = capacitor_mismatch / sqrt(C)`` and ``sigma_w^2 = error_sigma^2 + kT/C``: two independent Gaussian errors of
one write are one draw.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from device_models.retention import BOLTZMANN
from device_models.schema import DeviceModel, Noise, Wire


def ktc_sigma(capacitance: float, temperature: float) -> float:
    """Return the rms noise voltage [V] that opening a switch leaves on a capacitor.

    ``sqrt(k T / C)``

    Args:
        capacitance: [F].
        temperature: [K].

    Source: Nyquist; 2.04 mV at 1 fF and 300 K.
    """
    return math.sqrt(BOLTZMANN * temperature / capacitance)


def capacitor_sigma(device: DeviceModel) -> float:
    """Return the relative spread of the storage capacitors [1].

    ``capacitor_mismatch / sqrt(C)``

    Source: kavishwar2025 (28 nm metal capacitors, 0.66 % at 1 fF); area law of mismatch.
    """
    write = device.write
    return 0.0 if write.capacitance is None else write.capacitor_mismatch / math.sqrt(write.capacitance)


def write_sigma(device: DeviceModel) -> float:
    """Return the rms random error of one write [V]: driver and kT/C together.

    ``sqrt(error_sigma^2 + k T / C)``
    """
    write = device.write
    thermal = ktc_sigma(write.capacitance, device.operation.temperature) if write.ktc and write.capacitance else 0.0
    return math.hypot(write.error_sigma, thermal)


def written_voltage(
    v: ArrayLike,
    device: DeviceModel,
    *,
    inl: ArrayLike = 0.0,
    z_capacitor: ArrayLike = 0.0,
    z_pedestal: ArrayLike = 0.0,
    z_write: ArrayLike = 0.0,
) -> NDArray:
    """Return the voltage of a cell just after its write; the equation stands at the top of this module.

    Args:
        v: [V] target on the level grid.
        device: Supplies ``write`` and ``storage.v_zero``.
        inl: [V] error of the DAC at this level.
        z_capacitor: [1] deviate of the cell's capacitor, static.
        z_pedestal: [1] deviate of the cell's pedestal, static.
        z_write: [1] deviate of this write.

    Source: charge injection after kT/C, as in any sampled circuit; write spread of 2T0C cells up to 7 % of the written
        charge. Approximation: the capacitor error scales the excursion from the zero level (a charge-limited write).
    """
    write, zero = device.write, device.storage.v_zero
    excursion = np.asarray(v, dtype=np.float64) - zero
    charged = (excursion + np.asarray(inl)) * (1.0 + capacitor_sigma(device) * np.asarray(z_capacitor))
    pedestal = write.pedestal_mean + write.pedestal_gain * excursion + write.pedestal_sigma * np.asarray(z_pedestal)
    return zero + charged + pedestal + write_sigma(device) * np.asarray(z_write)


def bridge(z: ArrayLike, axis: int = -1) -> NDArray:
    """Return integral non-linearity of unit rms over codes and dies from the deviates of the code widths [1].

    A converter whose unit elements scatter independently has an error that walks from code to code and is zero at
    both ends (end-point fit), ``e_n = sum_{m<n} z_m - n/(L-1) sum_m z_m``; its variance is ``n (L-1-n)/(L-1)``, here
    scaled to a mean of one over the L codes.

    Args:
        z: [1] deviates of the L - 1 steps along ``axis``.
        axis: Axis of the steps.

    Returns:
        [1] L errors along ``axis``.

    Source: Brownian bridge of a thermometer-coded converter.
    """
    z = np.moveaxis(np.asarray(z, dtype=np.float64), axis, -1)
    steps = z.shape[-1]
    n = np.arange(steps + 1)
    walk = np.concatenate([np.zeros((*z.shape[:-1], 1)), np.cumsum(z, axis=-1)], axis=-1)
    pinned = walk - n / steps * walk[..., -1:]
    power = float(np.mean(n * (steps - n) / steps))
    return np.moveaxis(pinned / math.sqrt(power) if power else pinned, -1, axis)


def wire_drop(position: ArrayLike, cells: int, wire: Wire) -> NDArray:
    """Return the fraction of a cell's current that the bit line's resistance costs [1].

    With all ``n`` cells drawing the mean current I, cell i (counted from the sense end) sees the drop of the currents
    of itself and all others: ``sum_j min(i, j) r I / supply``, ``i, j = 1..n``.

    Args:
        position: Cells between this one and the sense end, 0..cells - 1.
        cells: Cells of the line.
        wire: Resistance per cell, mean current, supply.

    Source: Kirchhoff. Approximation: first order, the mean current instead of the data's own; 64 cells of 9.47 Ohm at
        1.3 uA lose 25 mV at the far end.
    """
    i = np.asarray(position, dtype=np.float64) + 1.0
    return wire.resistance * wire.cell_current / wire.supply * (i * (i + 1) / 2 + i * (cells - i))


def read_noise_variance(pulses: ArrayLike, full_scale: float, noise: Noise, axis: int = -1) -> NDArray:
    """Return the variance of one bit line's read noise [A^2], summed over the cells that drive it.

    ``I_fs^2 sum_i (white^2 p_i + flicker^2 p_i^2)``. Independent Gaussian noise of the cells of one line adds to one
    Gaussian with this variance, so one draw per output is exact in distribution.

    Args:
        pulses: [1] pulse widths in full pulses, cells along ``axis``.
        full_scale: [A] current of a cell at the top of its range.
        noise: Strengths.
        axis: Axis of the cells.

    Source: thermal charge noise ``2 k T gamma gm t`` grows with the pulse t; flicker and telegraph noise are constant
        during one pulse. Approximation: flicker noise of two reads is independent.
    """
    p = np.asarray(pulses, dtype=np.float64)
    return full_scale**2 * (noise.white**2 * p.sum(axis) + noise.flicker**2 * (p**2).sum(axis))
