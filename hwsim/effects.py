"""Every effect of a device that is not its ideal equation: what sets it, when it is drawn, and how to leave it out."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from device_models import DeviceModel
from device_models.retention import refresh_interval

Drawn = Literal["die", "write", "read", "design"]
"""Per chip, per write, per read, or nothing random at all."""
Part = Literal["attention", "linear"]
"""Gain cells of the attention, or arrays of the ternary linear layers."""
PARTS: tuple[Part, ...] = ("attention", "linear")


@dataclass(frozen=True)
class Effect:
    """One effect.

    Attributes:
        drawn: When it is drawn; ``die`` also stands for what only a manufactured chip has (wires, pedestal, drift).
        neutral: Values by dotted device key that leave it out.
        needs: Effects without which there is nothing for it to act on.
        part: Where it acts.
    """

    drawn: Drawn
    neutral: Mapping[str, object]
    needs: tuple[str, ...] = ()
    part: Part = "attention"


EFFECTS: Mapping[str, Effect] = {
    "input levels": Effect("design", {"input.levels": None}),
    "storage levels": Effect("design", {"storage.levels": None}),
    "readout levels": Effect("design", {"readout.bits": None, "readout.codes": "ideal"}),
    "score converter": Effect("design", {"readout_qk.bits": None}),
    "retention": Effect("design", {"retention.kind": "none"}),
    "refresh": Effect("design", {"refresh.kind": "none"}, ("retention", "storage levels")),
    "input INL": Effect("die", {"input.inl": 0.0}, ("input levels",)),
    "pulse jitter": Effect("read", {"input.jitter": 0.0}),
    "DAC INL": Effect("die", {"write.dac_inl": 0.0}, ("storage levels",)),
    "capacitor mismatch": Effect("die", {"write.capacitor_mismatch": 0.0}),
    "write error": Effect("write", {"write.error_sigma": 0.0}),
    "kT/C noise": Effect("write", {"write.ktc": False}),
    "pedestal": Effect("die", {"write.pedestal_mean": 0.0, "write.pedestal_gain": 0.0, "write.pedestal_sigma": 0.0}),
    "retention spread": Effect("die", {"retention.tau_sigma_ln": 0.0}, ("retention",)),
    "threshold drift": Effect("die", {"drift.amplitude": 0.0}),
    "gain mismatch": Effect("die", {"variability.gain_sigma": 0.0}),
    "cell offset": Effect("die", {"variability.offset_sigma": 0.0}),
    "wire drop": Effect("die", {"wire.resistance": 0.0, "wire.cell_current": 0.0}),
    "white read noise": Effect("read", {"noise.white": 0.0}),
    "flicker read noise": Effect("read", {"noise.flicker": 0.0}),
    "charge-to-pulse offset": Effect("die", {"variability.phi_offset_sigma": 0.0}),
    "comparator noise": Effect("read", {"noise.comparator": 0.0}),
    "readout gain": Effect("die", {"readout.gain_sigma": 0.0}, ("readout levels",)),
    "readout offset": Effect("die", {"readout.offset_sigma": 0.0}, ("readout levels",)),
    "readout INL": Effect("die", {"readout.inl": 0.0}, ("readout levels",)),
    "readout DNL": Effect("die", {"readout.dnl": 0.0}, ("readout levels",)),
    "readout noise": Effect("read", {"readout.noise": 0.0}, ("readout levels",)),
    "weight gain mismatch": Effect("die", {"linear.gain_sigma": 0.0}, part="linear"),
    "stuck weights": Effect("die", {"linear.stuck_at_zero": 0.0}, part="linear"),
    "linear converter": Effect("design", {"linear.adc_range": "ideal"}, part="linear"),
    "linear converter noise": Effect("read", {"linear.noise": 0.0}, ("linear converter",), part="linear"),
}
"""By name, in the order of each part's signal. The cell's law is the device's equation, not an effect: ``cell.law``."""


def is_configured(device: DeviceModel, effect: str) -> bool:
    """Say whether a device has an effect at all."""
    return any(_get(device, key) != value for key, value in EFFECTS[effect].neutral.items())


def without(device: DeviceModel, *effects: str) -> DeviceModel:
    """Return the device without some of its effects and those that need them; numbers keep their sources."""
    for name, effect in EFFECTS.items():
        if name in effects or any(need in effects for need in effect.needs):
            for key, value in effect.neutral.items():
                section, field = key.split(".")
                device = replace(device, **{section: replace(getattr(device, section), **{field: value})})
    return device


def only(device: DeviceModel, *effects: str) -> DeviceModel:
    """Return the device with some of its effects and those that they need alone."""
    kept = {*effects, *(need for effect in effects for need in EFFECTS[effect].needs)}
    return without(device, *(effect for effect in EFFECTS if effect not in kept))


def idle_effects(
    device: DeviceModel, *, die: bool, noise: bool, token_period_s: float | None, parts: Collection[str] = PARTS
) -> dict[str, str]:
    """Return the effects that a device describes but that cannot act as it is used, and why.

    Args:
        device: The device.
        die: Whether there is a chip.
        noise: Whether there is a noise key.
        token_period_s: [s] time between two tokens.
        parts: What is emulated: effects of a part that is asked to stay digital are not idle.
    """
    idle: dict[str, str] = {}
    for name, effect in EFFECTS.items():
        if effect.part not in parts or not is_configured(device, name):
            continue
        if effect.drawn == "die" and not die:
            idle[name] = "no die was given"
        elif effect.drawn in ("write", "read") and not noise:
            idle[name] = "no noise key was given"
    if "attention" not in parts:
        return idle
    if is_configured(device, "threshold drift") and device.drift.stress_time == 0.0:
        idle["threshold drift"] = "drift.stress_time is 0"
    if is_configured(device, "refresh") and token_period_s is not None:
        interval, oldest = refresh_interval(device), (device.window.tokens - 1) * token_period_s
        if interval is not None and interval > oldest:
            idle["refresh"] = f"the oldest token is {oldest:.3g} s old, the interval is {interval:.3g} s"
    return idle


def warn_of_idle_effects(
    device: DeviceModel, *, die: bool, noise: bool, token_period_s: float | None, parts: Collection[str] = PARTS
) -> None:
    """Warn once of each reason why configured effects cannot act: a setting must not do nothing without a word."""
    reasons: dict[str, list[str]] = {}
    found = idle_effects(device, die=die, noise=noise, token_period_s=token_period_s, parts=parts)
    for name, reason in found.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        warnings.warn(f"{device.name}: no effect of {', '.join(names)}: {reason}", stacklevel=3)


def _get(device: DeviceModel, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(device, section), name)
