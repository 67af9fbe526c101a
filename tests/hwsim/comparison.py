"""Inputs for attention, and one comparison of two ways to compute it: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from device_models import DeviceModel, load_device
from device_models.consistency import taken_along
from tests import tolerances

Attention = Callable[..., Tensor]
PERIOD = 2e-5  # [s] strong enough decay at 5 ms to show within 100 tokens

EVERY_EFFECT: Mapping[str, object] = {
    "input.inl": 0.2, "input.jitter": "100 ps", "write.dac_inl": 0.2, "write.error_sigma": "10 mV",
    "write.pedestal_mean": "6 mV", "write.pedestal_gain": 0.03, "write.capacitor_mismatch": "0.03 fF**0.5",
    "drift.amplitude": "30 mV", "drift.tau": "1e5 s", "drift.stress_time": "1e5 s", "operation.temperature": "305 K",
    "noise.white": 0.03, "noise.flicker": 0.03, "noise.comparator": 0.01, "variability.gain_sigma": 0.1,
    "variability.phi_offset_sigma": 0.02, "readout.gain_sigma": 0.05, "readout.offset_sigma": 0.3,
    "readout.noise": 0.2, "readout_qk.bits": 6, "refresh.kind": "periodic", "refresh.interval": "300 us",
    "linear.stuck_at_zero": 0.05, "linear.gain_sigma": 0.05,
}  # fmt: skip
"""What ``gaincell_28nm`` leaves out, and more of what it has: an effect lost on the way shall show."""
NO_REFRESH = {"refresh.kind": "none"}
CONTINUOUS_READOUT = {"readout.bits": None, "readout.codes": "ideal"}
SURROGATE = {"cell.backward": "linear", "cell.surrogate_slope": "19.3 uA/V"}
KNOWN = {
    "retention.tau_sigma_ln": 0.0, "input.jitter": "0 s", "readout.inl": 0.0, "readout.dnl": 0.0, "readout.noise": 0.0,
}  # fmt: skip
"""Without what the kernels in Triton leave to PyTorch."""

_LOADED: dict[str, DeviceModel] = {}


def every_effect(**overrides: object) -> DeviceModel:
    """Return a device with every effect on, but for what is overridden and what means nothing then."""
    wish = repr(overrides)
    if wish not in _LOADED:
        gone = {name for key, value in overrides.items() for name in taken_along(key, value)}
        kept = {key: value for key, value in EVERY_EFFECT.items() if key not in gone}
        _LOADED[wish] = load_device("gaincell_28nm", {**kept, **overrides})
    return _LOADED[wish]


def known(window: int, slots: int, **more: object) -> DeviceModel:
    """A device whose effects the kernels in C and in Triton know."""
    gone = {"readout.inl", "readout.dnl", "readout.noise"} if "readout.bits" in more else set()
    kept = {key: value for key, value in KNOWN.items() if key not in gone}
    return load_device("gaincell_28nm", {"window.tokens": window, "tile.slots": slots, **kept, **more})


def inputs(
    batch: int, heads: int, kv_heads: int, tokens: int, head_dim: int, dtype: torch.dtype = torch.float64,
    seed: int = 0, *, signed: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Draw pulses and voltages that overshoot every range a little, with few scores beyond saturation."""
    rng = torch.Generator().manual_seed(seed)
    q = torch.rand(batch, heads, tokens, head_dim, generator=rng, dtype=torch.float64) * 1.2 - 0.1
    k, v = (
        torch.rand(batch, kv_heads, tokens, head_dim, generator=rng, dtype=torch.float64) * 1.1 - 0.1 for _ in range(2)
    )
    return [x.to(dtype) for x in (2 * q - 1 if signed else q, k, v)]


def values_and_gradients(
    attention: Attention, tensors: list[Tensor], device: DeviceModel, period: float | None, **chip: Any
) -> list[Tensor]:
    """Return output and gradients; ``chip`` is ``die`` and ``read_key``."""
    q, k, v = (x.clone().requires_grad_() for x in tensors)
    out = attention(q, k, v, device, token_period_s=period, **chip)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).mul(7).cos().view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), (q, k, v))]


def assert_same(
    got: list[Tensor], expected: list[Tensor], relative: float, *, step: float = 0.0, flips: float = 0.0
) -> None:
    """Compare output and gradients; with ``flips`` that share of outputs may lie one step apart."""
    for name, a, b in zip(("output", "query", "key", "value"), got, expected, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all(), name
        scale = b.abs().max().item()
        error = (a - b).abs() / (scale or 1.0)
        if not flips:
            assert error.max() <= relative, f"{name}: {error.max():.3g}"
        elif name == "output":
            apart = (a - b).abs() > relative * scale
            assert apart.double().mean() <= flips, f"{apart.double().mean():.3g} of the outputs differ"
            assert (a - b).abs().max() <= step * (1 + 1e-3) + relative * scale
        else:
            assert error.double().square().mean().sqrt() <= tolerances.FLOAT32_GRADIENT, name
