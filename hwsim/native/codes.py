"""Kernels on whole numbers: converters, and the ring of one layer while tokens come one by one."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn.functional import pad

from hwsim.native.arguments import MULTIPLE, Converter, Unavailable, check, fresh
from hwsim.native.arguments import Ring as RingArguments
from hwsim.native.build import Built, load


def convert(x: Tensor, levels: int, low: float, high: float, *, centred: bool) -> Tensor | None:
    """Return the codes of numbers, None if one of them is not a number.

    Args:
        x: (batch, heads, tokens, head_dim) float32.
        levels: Levels of the converter on [low, high], both ends included; at most 128.
        low: Lowest level.
        high: Highest level.
        centred: Whether codes count half steps from the middle, as int8; else steps from ``low``, as uint8.

    Returns:
        (batch heads, tokens, width), with zeros beyond head_dim.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If the numbers are of another type or device.
    """
    built = load()
    if not isinstance(built, Built):
        raise Unavailable(built)
    check("numbers to convert", x, x.shape)
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, heads, tokens, dims = x.shape
    width = -(-dims // MULTIPLE) * MULTIPLE
    out = fresh(batch * heads, tokens, width, dtype=torch.int8 if centred else torch.uint8)
    step = (high - low) / (levels - 1)
    strides = (ctypes.c_int64 * 3)(*x.stride()[:3])
    given = Converter(
        batch, heads, tokens, dims, width, strides, low, high, step, levels - 1, x.data_ptr(), out.data_ptr(), centred
    )  # fmt: skip
    return None if built.library.convert_codes(ctypes.byref(given)) else out


class Ring:
    """Codes of one layer's cells while tokens come one by one.

    Args:
        shape: Sequences, query heads, arrays, dimensions.
        window: Tokens of an array.
        slots: Slots of a sub-tile.
        converters: Levels of the queries on [0, 1]; levels, lowest and highest value of the cells.
        weights: Weights of keys and of values by age, window - 1 .. 0, twice, and 16 zeros.
        readout: Step (0 is continuous), highest code, and charge of a step of the pulse grid (0 without).

    Raises:
        Unavailable: If there is no kernel.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], window: int, slots: int, converters: tuple[int, int, float, float],
        weights: tuple[Tensor, Tensor], readout: tuple[float, float, float],
    ) -> None:  # fmt: skip
        built = load()
        if not isinstance(built, Built):
            raise Unavailable(built)
        self._run = built.library.ring_step
        batch, heads, arrays, dims = shape
        width, padded = -(-dims // MULTIPLE) * MULTIPLE, -(-window // MULTIPLE) * MULTIPLE
        query_levels, levels, low, high = converters
        self._queries, self._cells = (batch, heads, 1, dims), (batch, arrays, 1, dims)
        self._kept = *weights, *(torch.zeros(batch * arrays, padded, width, dtype=torch.int8) for _ in range(2))
        self._arguments = RingArguments(
            batch=batch, heads=heads, kv_heads=arrays, dims=dims, width=width, window=window, slots=slots,
            padded=padded, weight_k=self._kept[0].data_ptr(), weight_v=self._kept[1].data_ptr(),
            keys=self._kept[2].data_ptr(), values=self._kept[3].data_ptr(), query_step=1.0 / (query_levels - 1),
            query_top=query_levels - 1, low=low, high=high, step=(high - low) / (levels - 1), cell_top=levels - 1,
            readout_step=readout[0], top=readout[1], grid=readout[2],
        )  # fmt: skip

    def write(self, key: Tensor, value: Tensor, slot: int) -> None:
        """Put codes (batch arrays, n, dims) int8 into slots one after another, from ``slot`` on."""
        keys, values = self._by_slot()
        for name, x in (("key", key), ("value", value)):
            check(name, x, (len(values), key.shape[1], self._cells[3]), torch.int8)
        slots = slot + torch.arange(key.shape[1])
        values[:, slots, : value.shape[2]] = value
        by_four = pad(key, (0, values.shape[2] - key.shape[2])).unflatten(2, (-1, 4))
        keys[:, slots // MULTIPLE, slots % MULTIPLE] = by_four

    def step(self, query: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor | None:
        """Write a token and let its query read; None if one of the numbers is none, whose codes are then worth nothing.

        Args:
            query: (batch, heads, 1, dims) float32 before the converter.
            key: (batch, arrays, 1, dims) likewise.
            value: As ``key``.
            position: Write index of the token.

        Raises:
            ValueError: If a tensor has another shape, type or device.
        """
        for name, x, shape in (
            ("query", query, self._queries),
            ("key", key, self._cells),
            ("value", value, self._cells),
        ):
            check(name, x, shape)
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, given = fresh(*self._queries), self._arguments
        given.position, given.out = position, out.data_ptr()
        given.query, given.key, given.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        failed = self._run(ctypes.byref(given))
        if failed == 2:
            raise MemoryError("ring_step: no memory for its pulses")
        return None if failed else out

    def codes(self) -> Tensor:
        """Return the codes of keys and values, (2, batch arrays, slots, dims) int8."""
        keys, values = self._by_slot()
        return torch.stack((keys.reshape(values.shape), values))[..., : self._cells[3]]

    def _by_slot(self) -> tuple[Tensor, Tensor]:
        """Return views: keys (arrays, slots / 16, 16, width / 4, 4), and values (arrays, slots, width)."""
        keys, values = self._kept[2:]
        arrays, padded, width = values.shape
        return keys.view(arrays, padded // MULTIPLE, width // 4, MULTIPLE, 4).permute(0, 1, 3, 2, 4), values
