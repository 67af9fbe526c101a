"""Thin modules that hold parameters around the functions of ``hwsim.functional``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from device_models.schema import DeviceModel
from hwsim.die import Die
from hwsim.functional.attention_tiled import Watcher, attend
from hwsim.functional.reads import Place
from hwsim.functional.ring import RingBuffer
from hwsim.functional.tables import AttentionTables


class RangeScaler(nn.Module):
    """Affine map ``y = gain * x + offset`` per head in front of a converter, digital and trainable.

    Args:
        heads: Number of heads.
        gain: Initial gain of every head.
        offset: Initial offset of every head, in the unit of the converter.

    Source: leroux2025, Methods, equation 5.
    """

    def __init__(self, heads: int, gain: float = 1.0, offset: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((heads,), gain))
        self.offset = nn.Parameter(torch.full((heads,), offset))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (batch, heads, tokens, head_dim)."""
        shape = (1, -1, 1, 1)
        return torch.addcmul(self.offset.view(shape).to(x.dtype), x, self.gain.view(shape).to(x.dtype))


class GainCellAttention(nn.Module):
    """Attention of one layer on gain-cell arrays: range scalers per head, device, chip, token period.

    Args:
        heads: Query heads.
        kv_heads: Key and value heads.
        device: The device whose arrays compute.
        token_period_s: [s] time between two tokens; None only for a device that does not decay.

    Attributes:
        die: The chip, seen from this layer; None is the design without static deviations.
        noise_seed: Key of what is random at writes and reads where no :func:`hwsim.noise_key` block says otherwise;
            None switches it off.
        full_scale: [1] (heads,) range of the readout in saturations, where the device does not fix it.
        logit_gain: [1] (heads,) factor in front of a digital softmax, where the device has one.
        watch: Is shown the charges on their way to the readout; for calibration.
        rotary_dim: Dimensions of a head that the model turns by its rotary embedding; for counting.
    """

    def __init__(self, heads: int, kv_heads: int, device: DeviceModel, token_period_s: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (RangeScaler(n) for n in (heads, kv_heads, kv_heads, heads))
        self.full_scale: nn.Parameter | None = None
        self.logit_gain: nn.Parameter | None = None
        self.die: Die | None = None
        self.noise_seed: int | None = None
        self.watch: Watcher | None = None
        self.rotary_dim = 0
        self.token_period_s = token_period_s
        self.reset_scalers(device)
        self.put_on(device)

    @torch.no_grad()
    def reset_scalers(self, device: DeviceModel) -> None:
        """Forget all scalers: gain 1, keys and values around the device's zero level, nothing beyond the four."""
        zero = device.storage.v_zero
        for scaler, offset in ((self.query, 0.0), (self.key, zero), (self.value, zero), (self.output, 0.0)):
            scaler.gain.fill_(1.0)
            scaler.offset.fill_(offset)
        self.full_scale = self.logit_gain = None

    def put_on(self, device: DeviceModel) -> None:
        """Change the device; scalers stay, and those that only this device needs are added at 1."""
        self.device = device
        like = self.query.gain
        if device.readout.range != "fixed" and self.full_scale is None:
            self.full_scale = nn.Parameter(torch.ones_like(like), requires_grad=device.readout.range == "learned")
        if device.activation.kind == "softmax" and self.logit_gain is None:
            self.logit_gain = nn.Parameter(torch.ones_like(like))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, tables: AttentionTables, place: Place) -> Tensor:
        """Attend (batch, heads, queries, head_dim) to (batch, kv_heads, keys, head_dim)."""
        fixed = self.device.readout.range == "fixed"
        out = attend(
            self.query(query), self.key(key), self.value(value), self.device, tables, place,
            full_scale=None if fixed else self.full_scale, logit_gain=self.logit_gain, watch=self.watch,
        )  # fmt: skip
        return self.output(out)

    def step(self, query: Tensor, key: Tensor, value: Tensor, ring: RingBuffer, first: int) -> Tensor:
        """Write (batch, kv_heads, n, head_dim), tokens ``first`` and following, and let the last one's query read."""
        key, value = self.key(key), self.value(value)
        if key.shape[2] > 1 or ring.tokens != first:
            ring.write(key[:, :, :-1], value[:, :, :-1], first)
        fixed = self.device.readout.range == "fixed"
        out = ring.step(
            self.query(query), key[:, :, -1:], value[:, :, -1:], full_scale=None if fixed else self.full_scale
        )  # fmt: skip
        return self.output(out)


def gain_cell_layers(model: nn.Module) -> list[GainCellAttention]:
    """Return the emulated attention layers of a model, first layer first."""
    return [layer for layer in model.modules() if isinstance(layer, GainCellAttention)]
