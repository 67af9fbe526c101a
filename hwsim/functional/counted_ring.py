"""The ring buffer of a device whose queries, keys and values are whole numbers, and whose circuits do not err.

Same results as the ring buffer of any device; a cell is a number of one byte in the kernels in C, one call a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from device_models.converters import highest_code, readout_step
from device_models.schema import DeviceModel
from hwsim import native
from hwsim.functional.codes import Codes
from hwsim.functional.kernel_loop import wants_c
from hwsim.functional.quantise import count_levels
from hwsim.functional.tables import AttentionTables, ages_twice


class CountedRing:
    """The cells of one layer.

    Args:
        device: The device.
        codes: Its codes.
        shape: Sequences, query heads, arrays (key/value heads), dimensions.
        tables: Decay by age.
        dtype: Of everything.
    """

    def __init__(
        self, device: DeviceModel, codes: Codes, shape: tuple[int, int, int, int], tables: AttentionTables,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.device, self.codes, self.window, self.slots = device, codes, device.window.tokens, device.tile.slots
        self.batch, self.heads, self.kv_heads, self.dims = shape
        self.step_of_readout = readout_step(device.readout)
        self.top = 0.0 if self.step_of_readout is None else float(highest_code(device.readout))
        self.decay = [tables.by_age(0, first=first)[1] for first in (True, False)]
        where, storage = self.decay[0].device, device.storage
        self.cells = codes.cell_levels, storage.v_min, storage.v_max
        self.native: native.Ring | None = None
        if where.type == "cpu" and dtype == torch.float32 and wants_c():
            self.native = native.Ring(
                shape, self.window, self.slots, (codes.query_levels, *self.cells), self._weights(1.0),
                (self.step_of_readout or 0.0, self.top, codes.grid or 0.0),
            )  # fmt: skip
        else:
            self._take_over(None)

    def _weights(self, unit: float) -> tuple[Tensor, Tensor]:
        """Return the weights of keys and values, ages as in :func:`ages_twice`; charges in ``unit`` saturations."""
        key = ages_twice(self.decay[0] * self.codes.key, native.MULTIPLE)
        return key, ages_twice(self.decay[1] * self.codes.value_weight(unit), native.MULTIPLE)

    def _take_over(self, held: Tensor | None) -> None:
        """Go on in PyTorch, with the codes (2, arrays, slots, d) that are held."""
        arrays, tiles, group = self.batch * self.kv_heads, self.device.subtiles, self.heads // self.kv_heads
        like = self.decay[0]
        self.native = None
        self.weight_k, self.weight_v = self._weights(1.0 / (self.step_of_readout or 1.0))
        self.stored = like.new_zeros(2, arrays, tiles * self.slots, self.dims)
        self.phi = like.new_empty(arrays, group, tiles * self.slots)
        self.charge = like.new_empty(arrays * tiles, group, self.dims)
        if held is not None:
            self.stored[:, :, : self.window] = held[:, :, : self.window]

    def write(self, key: Tensor, value: Tensor, slot: int) -> None:
        """Write tokens (b, g, n, d) into slots one after another, from ``slot`` on, which no query reads yet."""
        codes = count_levels(torch.stack((key, value)), *self.cells, centred=True).flatten(1, 2)
        if self.native is not None and bool(codes.isnan().any()):  # which no code of a byte stands for
            self._take_over(self.native.codes())
        if self.native is not None:
            narrow = codes.to(torch.int8)
            self.native.write(narrow[0], narrow[1], slot)
        else:
            self.stored[:, :, slot : slot + key.shape[2]] = codes

    def step(self, query: Tensor, key: Tensor, value: Tensor, now: int) -> Tensor:
        """Write the token with write index ``now`` and let its query read; shapes as ``RingBuffer.step``."""
        if self.native is not None:
            out = self.native.step(query, key, value, now)
            if out is not None:
                return out
            self._take_over(self.native.codes())
        slot, held = now % self.window, min(now + 1, self.window)
        levels = count_levels(torch.stack((key, value)), *self.cells, centred=True)
        self.stored[:, :, slot] = levels.view(2, -1, self.dims)
        keys, values = self.stored
        counts = count_levels(query, self.codes.query_levels, 0.0, 1.0, centred=False)
        first = self.window - 1 - slot
        phi = torch.bmm(counts.reshape(len(keys), -1, self.dims), keys.mT, out=self.phi)
        phi[..., held:] = 0.0
        read = phi[..., :held]
        read.mul_(self.weight_k[first : first + held]).clamp_(0.0, 1.0).mul_(self.weight_v[first : first + held])
        if self.codes.grid is not None:
            phi.round_()
        group, tiles = phi.shape[1], phi.shape[2] // self.slots
        by_tile = phi.view(-1, group, tiles, self.slots).transpose(1, 2).reshape(-1, group, self.slots)
        charge = torch.bmm(by_tile, values.view(-1, self.slots, self.dims), out=self.charge)
        return self._read_out(charge.view(-1, tiles, group, self.dims))

    def _read_out(self, charge: Tensor) -> Tensor:
        """Read out (arrays, tiles, group, d) charges and add them up."""
        step = self.step_of_readout
        if self.codes.grid is not None:
            charge.mul_(self.codes.grid).mul_(1.0 / (step or 1.0))
        shape = (self.batch, self.heads, 1, self.dims)
        if step is None:
            return charge.clamp_(-1.0, 1.0).sum(1).view(shape)
        return charge.round_().clamp_(-self.top, self.top).sum(1).mul_(step).view(shape)
