"""Everything of a forward pass that depends on ages alone; shared by layers and heads."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from device_models.errors import InputError
from device_models.retention import refresh_interval
from device_models.schema import DeviceModel
from hwsim.functional.attention import decay_by_age, require_period
from hwsim.functional.cell_products import band_of_ages
from hwsim.functional.cells import decay_factor
from hwsim.functional.layout import Block, SlotLayout

MOST_REFRESHES = 256
"""Each refresh of a token is one more state of all cells to keep and to read."""


def ages_twice(by_age: Tensor, room: int = 0) -> Tensor:
    """Turn a table by age around and repeat it: from ``window - 1 - p`` on, slots 0, 1, .. with p written last.

    ``room`` zeros follow, for those who read a few at a time.
    """
    back = by_age.flip(0)
    return torch.cat([back, back, back.new_zeros(room)])


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
        self.oldest = layout.oldest
        refreshes = 0 if self.interval is None else math.floor(self.oldest * self.period / self.interval)
        if refreshes > MOST_REFRESHES:
            raise InputError(
                "too many refreshes to emulate", where=f"{device.name}: refresh",
                expected=f"at most {MOST_REFRESHES} while a token is in the window", received=refreshes,
                remedy="a longer interval, a shorter token period or a smaller window",
            )  # fmt: skip
        self.epochs = refreshes + 1
        self._by_age: dict[tuple[int, bool], tuple[Tensor, ...]] = {}
        self._powers: dict[tuple[int, bool], tuple[Tensor, ...]] = {}
        self._bands: dict[tuple[object, ...], Tensor] = {}
        self.kept_weights: dict[tuple[object, ...], Tensor] = {}
        self.node_weights: dict[tuple[Block, int, int], Tensor] = {}

    @cached_property
    def read(self) -> Tensor:
        """1 where a query reads a column, else 0; (b, t, columns)."""
        return self.layout.read.to(self.dtype)

    def epoch_and_rest(self, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return how often a column was refreshed, and the time [s] since then or its write, for ages in tokens."""
        seconds = age.to(torch.float64) * self.period
        if self.interval is None:
            return torch.zeros_like(age), seconds
        epoch = (seconds / self.interval).floor()
        return epoch.long(), seconds - epoch * self.interval

    def by_age(self, epoch: int, *, first: bool) -> tuple[Tensor, ...]:
        """Return d^n, n = 0..3, of the median cell at each age that falls into this epoch, else 0; (ages,)."""
        key = (epoch, first and self.device.parity.bfloat16_decay)
        if key not in self._by_age:
            like = torch.empty(0, dtype=self.dtype, device=self.layout.written.device)
            if self.interval is None:
                table = tuple(decay_by_age(self.device, self.period, self.oldest + 1, like, first=first))
            else:
                epochs, rest = self.epoch_and_rest(torch.arange(self.oldest + 1, device=like.device))
                d = decay_factor(rest, self.device)
                table = tuple((d**n * (epochs == epoch)).to(self.dtype) for n in range(4))
            self._by_age[key] = table
        return self._by_age[key]

    def powers(self, epoch: int, *, first: bool) -> tuple[Tensor, ...]:
        """Return :meth:`by_age` at each column that is read, else 0; (b, t, columns)."""
        key = (epoch, first and self.device.parity.bfloat16_decay)
        if key not in self._powers:
            age = self.layout.age
            self._powers[key] = tuple(table[age] * self.read for table in self.by_age(epoch, first=first))
        return self._powers[key]

    def band(self, which: tuple[tuple[int, int], ...], scale: float, *, first: bool) -> Tensor:
        """Return the sum of some powers (epoch, n) of the decay, spread over queries and columns of a sub-tile.

        See :func:`~hwsim.functional.cell_products.band_of_ages`; shared by all layers.
        """
        key = (which, scale, first and self.device.parity.bfloat16_decay)
        if key not in self._bands:
            weight = torch.stack([self.by_age(epoch, first=first)[n] for epoch, n in which]).sum(0) * scale
            self._bands[key] = band_of_ages(weight, self.layout.slots)
        return self._bands[key]
