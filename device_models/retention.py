"""Decay of a stored voltage with its age, and how often it must be refreshed.

With ``x = V - v_inf`` the excursion that decays, ``a`` the age and ``s = exp(sigma_ln z) / arrhenius`` the slowness of
one cell (z a standard normal, static per die)::

    exponential         x(a) = x exp(-a / (s tau))
    stretched           x(a) = x exp(-(a / (s tau))^beta)
    log_self_limited   |x(a)| = max(|x| - v_scale ln(1 + (a / (s t0)) exp((|x| - |v_top - v_inf|) / v_scale)), 0)
    constant_current   |x(a)| = max(|x| - rate a / s, 0)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from device_models.schema import DeviceModel, Retention

BOLTZMANN = 1.380649e-23
"""[J/K] SI definition."""

_LINEAR = ("none", "exponential", "stretched")


def arrhenius(temperature: float, energy: float, reference: float) -> float:
    """Return how much faster a thermally activated process runs than at its reference temperature [1].

    ``exp[-(energy / k)(1/T - 1/T_ref)]``

    Args:
        temperature: [K] of the device.
        energy: [J] activation energy.
        reference: [K] temperature at which the factor is 1.
    """
    return math.exp(-energy / BOLTZMANN * (1.0 / temperature - 1.0 / reference))


def slowness(retention: Retention, temperature: float | None = None, z: ArrayLike = 0.0) -> NDArray:
    """Return by what factor each cell's time constant exceeds the median at the reference temperature [1].

    ``exp(sigma_ln z) / arrhenius``

    Args:
        retention: Law and constants.
        temperature: [K] of the device; None is the reference temperature.
        z: [1] standard normal deviates of the cells.

    Source: edri2016 (log-normal retention, set by the threshold spread of the write transistor).
    """
    reference = retention.reference_temperature
    speed = arrhenius(reference if temperature is None else temperature, retention.activation_energy, reference)
    return np.exp(retention.tau_sigma_ln * np.asarray(z, dtype=np.float64)) / speed


def stored_voltage(
    v0: ArrayLike, age: ArrayLike, retention: Retention, *, temperature: float | None = None, z: ArrayLike = 0.0
) -> NDArray:
    """Return the voltage of cells at an age; the laws stand at the top of this module.

    Args:
        v0: [V] voltage just after the write.
        age: [s] time since then, >= 0; broadcasts against ``v0``.
        retention: Law and constants.
        temperature: [K] of the device; None is the reference temperature of the constants.
        z: [1] standard normal deviates of the cells.

    Returns:
        [V] of the broadcast shape.

    Raises:
        ValueError: If an age is negative.

    Source: leroux2025, Methods (exponential); bonetti2020 (log law and stretched law, fitted to its 28 nm droop
        table); iqbal2012 (relaxation towards the level of the write bit line). Approximation: one law for both signs
        of the excursion.
    """
    v0 = np.asarray(v0, dtype=np.float64)
    if retention.kind in _LINEAR:
        v_inf = 0.0 if retention.v_inf is None else retention.v_inf
        return v_inf + (v0 - v_inf) * decay_factor(age, retention, temperature, z)
    age = _checked(age)
    assert retention.v_inf is not None
    x, s = v0 - retention.v_inf, slowness(retention, temperature, z)
    if retention.kind == "log_self_limited":
        assert retention.v_scale is not None and retention.t0 is not None and retention.v_top is not None
        top = abs(retention.v_top - retention.v_inf)
        lost = retention.v_scale * np.log1p(age / (s * retention.t0) * np.exp((np.abs(x) - top) / retention.v_scale))
    else:
        assert retention.rate is not None
        lost = retention.rate * age / s
    return retention.v_inf + np.sign(x) * np.maximum(np.abs(x) - lost, 0.0)


def decay_factor(age: ArrayLike, retention: Retention, temperature: float | None = None, z: ArrayLike = 0.0) -> NDArray:
    """Return the fraction ``d(a)`` of the excursion that is left, for the laws that are linear in it.

    Args:
        age: [s] time since the value was written, >= 0; broadcasts against ``z``.
        retention: Law and constants; none, exponential or stretched.
        temperature: [K] of the device; None is the reference temperature of the constants.
        z: [1] standard normal deviates of the cells; 0 is the median cell.

    Returns:
        [1] factor from 0 to 1.

    Raises:
        ValueError: If an age is negative, or the law is not linear in the excursion.

    Source: leroux2025, Methods, leakage. Approximation: an off transistor far from equilibrium sinks a constant
        current; one exponential misses the only 28 nm droop table by 14 % rms.
    """
    if retention.kind not in _LINEAR:
        raise ValueError(f"{retention.kind} has no factor: its loss does not grow in proportion to the excursion")
    age = _checked(age)
    if retention.kind == "none":
        return np.ones_like(age)
    assert retention.tau is not None
    ratio = age / (slowness(retention, temperature, z) * retention.tau)
    if retention.kind == "exponential":
        return np.exp(-ratio)
    assert retention.beta is not None
    return np.exp(-(ratio**retention.beta))


def _checked(age: ArrayLike) -> NDArray:
    age = np.asarray(age, dtype=np.float64)
    if np.any(age < 0):
        raise ValueError(f"age must be >= 0 s, got minimum {age.min()!r}; was a slot read before it was written?")
    return age


def threshold_drift(device: DeviceModel) -> float:
    """Return the shift [V] of the read transistors' threshold after ``drift.stress_time``.

    ``amplitude (1 - exp(-(t / tau(T))^beta))``, ``tau(T) = tau / arrhenius``

    Source: bias stress of oxide transistors, stretched exponential (igzostress2009). Approximation: one shift for all
        cells, constant during a sequence.
    """
    drift = device.drift
    if drift.amplitude == 0.0 or drift.tau is None:
        return 0.0
    speed = arrhenius(device.operation.temperature, drift.activation_energy, drift.reference_temperature)
    return drift.amplitude * -math.expm1(-((drift.stress_time * speed / drift.tau) ** drift.beta))


def refresh_interval(device: DeviceModel) -> float | None:
    """Return the time [s] between two refreshes of a slot, None without refresh.

    ``on_droop``: the age at which the extreme level of the median cell has moved by ``droop`` storage steps, found by
    bisection.

    Raises:
        ValueError: If the extreme levels never droop that far.
    """
    refresh, storage, temperature = device.refresh, device.storage, device.operation.temperature
    if refresh.kind == "none":
        return None
    if refresh.kind == "periodic":
        return refresh.interval
    assert refresh.droop is not None and storage.levels is not None
    allowed = refresh.droop * (storage.v_max - storage.v_min) / (storage.levels - 1)
    ends = np.array([storage.v_min, storage.v_max])

    def droop(age: float) -> float:
        now = stored_voltage(ends, age, device.retention, temperature=temperature)
        return float(np.abs(now - ends).max())

    low, high = 0.0, 1e-12
    while droop(high) < allowed:
        low, high = high, 2.0 * high
        if high > 1e12:
            raise ValueError("the stored levels never droop that far: refresh on_droop would never act")
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if droop(middle) < allowed else (low, middle)
    return 0.5 * (low + high)


def signal_left(device: DeviceModel, age: float) -> float:
    """Return the share [1] of a full stored excursion that the median cell has left at an age [s].

    ``min over both ends of the storage range of (V(age) - v_inf) / (V(0) - v_inf)``; a refresh writes a value anew.
    """
    interval, storage, retention = refresh_interval(device), device.storage, device.retention
    rest = storage.v_zero if retention.v_inf is None else retention.v_inf
    ends = np.array([end for end in (storage.v_min, storage.v_max) if end != rest])
    now = stored_voltage(
        ends, age if interval is None else min(age, interval), retention, temperature=device.operation.temperature
    )
    return float(((now - rest) / (ends - rest)).min())
