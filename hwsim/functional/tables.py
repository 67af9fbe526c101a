"""Everything of a forward pass that depends on ages alone; shared by layers and heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from device_models.errors import InputError
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel
from hwsim.functional.attention import decay_by_age, require_period
from hwsim.functional.cells import decay_factor
from hwsim.functional.layout import Block, SlotLayout

MOST_REFRESHES = 256
"""Each refresh of a token is one more state of all cells to keep and to read."""


class AttentionTables:
    """Ages, refreshes and powers of the decay of one geometry.

    Args:
        layout: Geometry.
        device: The device.
        token_period_s: [s] time between two tokens; required when the device decays.
        dtype: Of the tables.

    Raises:
        ValueError: If the device decays and no token period is given.
        InputError: If tokens would be refreshed more often than can be emulated.
    """

    def __init__(
        self, layout: SlotLayout, device: DeviceModel, token_period_s: float | None, dtype: torch.dtype
    ) -> None:
        self.layout, self.device, self.dtype = layout, device, dtype
        self.period = require_period(device, token_period_s)
        self.interval = refresh_interval(device)
        self.read = layout.read.to(dtype)
        self.oldest = int(layout.age.max()) if layout.age.numel() else 0
        refreshes = 0 if self.interval is None else math.floor(self.oldest * self.period / self.interval)
        if refreshes > MOST_REFRESHES:
            raise InputError(
                "too many refreshes to emulate", where=f"{device.name}: refresh",
                expected=f"at most {MOST_REFRESHES} while a token is in the window", received=refreshes,
                remedy="a longer interval, a shorter token period or a smaller window",
            )  # fmt: skip
        self.epochs = refreshes + 1
        self._powers: dict[tuple[int, bool], tuple[Tensor, ...]] = {}
        self.node_weights: dict[tuple[Block, int, int], Tensor] = {}

    def epoch_and_rest(self, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return how often a column was refreshed, and the time [s] since then or its write, for ages in tokens."""
        seconds = age.to(torch.float64) * self.period
        if self.interval is None:
            return torch.zeros_like(age), seconds
        epoch = (seconds / self.interval).floor()
        return epoch.long(), seconds - epoch * self.interval

    def powers(self, epoch: int, *, first: bool) -> tuple[Tensor, ...]:
        """Return d^n, n = 0..3, of the median cell where a column is read in this epoch, else 0; (b, t, columns)."""
        key = (epoch, first and self.device.parity.bfloat16_decay)
        if key not in self._powers:
            like = torch.empty(0, dtype=self.dtype, device=self.read.device)
            age = self.layout.age
            if self.interval is None:
                here, table = self.read, decay_by_age(self.device, self.period, self.oldest + 1, like, first=first)
            else:
                whole = torch.arange(self.oldest + 1, device=age.device)
                epochs, rest = self.epoch_and_rest(whole)
                d = decay_factor(rest, self.device)
                table = [(d**n).to(self.dtype) for n in range(4)]
                here = self.read * (epochs == epoch)[age]
            plain = not self.device.decays
            self._powers[key] = tuple(here if n == 0 or plain else power[age] * here for n, power in enumerate(table))
        return self._powers[key]
