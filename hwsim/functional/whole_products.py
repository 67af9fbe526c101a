"""Exact products of input digits and whole weights, on the 8-bit units of a processor where it has them.

A whole weight ``w = factor a + b`` has more than eight bits where gain errors count; ``a`` and ``b`` have eight. With
the digits beside themselves, times ``factor``, one product of twice the length adds it all up in 32 bits::

    sum_i x[i] w[i] = sum_i (factor x[i]) a[i] + sum_i x[i] b[i]

Shapes: n tokens, i inputs, o outputs, c cycles, k rows of an array, m = c n.
"""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from device_models.linear_array import INPUT_BITS

MOST = 127
"""Largest magnitude of an operand used here."""


@functools.cache
def int8_products() -> bool:
    """Say whether this processor multiplies 8-bit integers fast and without saturation on the way."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None) or getattr(torch.cpu, "_is_avx512_vnni_supported", None)
    if supported is None or not supported() or not torch.backends.mkldnn.is_available():
        return False
    a = torch.full((32, 512), -128, dtype=torch.int8)
    b = torch.full((512, 16), MOST, dtype=torch.int8)
    try:
        return bool((torch._int_mm(a, b) == -128 * MOST * 512).all())
    except RuntimeError:
        return False


@dataclass(frozen=True, eq=False)
class TileWeights:
    """Weights of one array in the layout that the 8-bit product wants.

    Attributes:
        rows: Which inputs of the matrix the array takes.
        first: (k, o) or (2k, o) int8: weights, or ``a`` above ``b``.
        second: (k, o) int8, added to units times the first product; None where that is all.
        factor: What the digits are multiplied by for ``a``; 0 where they are not repeated.
    """

    rows: slice
    first: Tensor
    second: Tensor | None = None
    factor: int = 0


def tile_weights(
    codes: Tensor, signed_errors: Tensor | None, units: int, rows: int, largest_digit: int
) -> list[TileWeights]:
    """Cut a matrix into arrays and lay out each for its products.

    Args:
        codes: (o, i) int8: -1, 0, 1.
        signed_errors: (o, i) int8, added to codes times units; None without.
        units: Whole number that a code counts.
        rows: Rows of one array.
        largest_digit: Largest magnitude of a digit.
    """
    factor = MOST // largest_digit
    parts = [slice(start, min(start + rows, codes.shape[1])) for start in range(0, codes.shape[1], rows)]
    if signed_errors is None:
        return [TileWeights(part, codes[:, part].T.contiguous()) for part in parts]
    if not factor or units + MOST > factor * MOST:
        return [
            TileWeights(part, codes[:, part].T.contiguous(), signed_errors[:, part].T.contiguous()) for part in parts
        ]
    whole = codes.to(torch.int16) * units + signed_errors
    a = torch.div(whole + factor // 2, factor, rounding_mode="floor")
    halves = torch.stack([a, whole - factor * a]).to(torch.int8)
    return [TileWeights(part, halves[:, :, part].mT.flatten(0, 1).contiguous(), None, factor) for part in parts]


class Scratch(threading.local):
    """Buffers of one thread that live on: memory fresh from the system costs more than the sums put there."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor; it is overwritten where its name is taken again."""
        size = math.prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < size:
            with torch.inference_mode(False):  # a buffer made in inference could not be written to in training
                kept = self._kept[name, dtype] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)


SCRATCH = Scratch()


def signed_digits(x: Tensor, cycles: int, factor: int) -> Tensor:
    """Cut codes of activations (n, k) in int8 into digits (m, k) in int8; (m, 2k), first times ``factor``, unless 0.

    In a buffer of :data:`SCRATCH`.
    """
    if cycles == 1 and not factor:
        return x.contiguous()
    n, k = x.shape
    made = SCRATCH.take("digits", (cycles, n, 2 if factor else 1, k), torch.int8)
    digits, bits = made[:, :, -1], INPUT_BITS // cycles
    if bits == 1:
        torch.bitwise_and(x.view(torch.uint8), _bits()[:, None, None], out=digits.view(torch.uint8))
        digits.view(torch.uint8).clamp_(max=1)
        digits[-1].neg_()
    else:
        for cycle in range(cycles):
            torch.bitwise_right_shift(x, bits * cycle, out=digits[cycle])
        digits[:-1].bitwise_and_(2**bits - 1)
    if factor:
        torch.mul(digits, factor, out=made[:, :, 0])
    return made.view(cycles * n, -1)


@functools.cache
def _bits() -> Tensor:
    return (1 << torch.arange(INPUT_BITS)).to(torch.uint8)


def whole_product(digits: Tensor, weights: TileWeights, units: int, out: Tensor) -> Tensor:
    """Multiply digits by the weights of one array, exactly; (m, o) in float32, rounded once.

    Args:
        digits: (m, k) or (m, 2k) int8.
        weights: Of the array.
        units: What the first product counts where there is a second.
        out: (m, o) float32, filled and returned.
    """
    sums = torch._int_mm(digits, weights.first, out=out.view(torch.int32))
    if weights.second is not None:
        more = SCRATCH.take("more sums", tuple(out.shape), torch.int32)
        sums = torch.add(torch._int_mm(digits, weights.second, out=more), sums, alpha=units, out=sums)
    return out.copy_(sums)  # in place: as wide as what it overwrites
