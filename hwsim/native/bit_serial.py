"""Kernel of ternary weights on arrays that take their inputs bit by bit."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hwsim.native.arguments import BitArrays, Unavailable, check, fresh
from hwsim.native.build import Built, load

CYCLES, FOUR, BLOCK = 8, 4, 32
AT_ONCE = 64
"""Inputs whose sums 16 bits have to hold for a weight to be taken whole."""
LARGEST_SUM, LARGEST_WHOLE = (1 << 15) - 1, (1 << 24) - 1


@dataclass(frozen=True, eq=False)
class BitWeights:
    """Weights ``units code + error`` of one matrix as the kernel reads them.

    Attributes:
        codes: (outputs / 32, arrays, fours, 4, 32) int8; int16 where they are whole weights.
        errors: int8, likewise; None beside whole weights.
        units: Of a code.
        shape: Outputs and inputs of the matrix.
        rows: Inputs of an array.
    """

    codes: Tensor
    errors: Tensor | None
    units: int
    shape: tuple[int, int]
    rows: int


def lay_out(codes: Tensor, errors: Tensor | None, units: int, rows: int) -> BitWeights | None:
    """Lay out weights for arrays of ``rows`` inputs; None where the sums of an array are too large.

    Args:
        codes: (outputs, inputs) int8: -1, 0, 1.
        errors: (outputs, inputs) int8, added to units times codes; None without.
        units: Of a code.
        rows: Inputs of an array.
    """
    outputs, inputs = codes.shape
    rows = min(rows, inputs)
    largest = 0 if errors is None or not errors.numel() else int(errors.to(torch.int16).abs().max())
    whole = AT_ONCE * (units + largest) <= LARGEST_SUM
    if not rows or rows * (units + largest) > LARGEST_WHOLE or (not whole and rows * max(1, largest) > LARGEST_SUM):
        return None
    errors = torch.zeros_like(codes) if errors is None else errors

    def blocks(x: Tensor) -> Tensor:
        arrays, fours = -(-inputs // rows), -(-rows // FOUR)
        x = pad(x, (0, arrays * rows - inputs, 0, -outputs % BLOCK))
        x = pad(x.unflatten(1, (arrays, rows)), (0, fours * FOUR - rows))
        return x.unflatten(0, (-1, BLOCK)).unflatten(3, (fours, FOUR)).permute(0, 2, 3, 4, 1).contiguous()

    if whole:
        return BitWeights(blocks(codes.to(torch.int16) * units + errors), None, units, (outputs, inputs), rows)
    return BitWeights(blocks(codes), blocks(errors), units, (outputs, inputs), rows)


def bit_serial_product(
    x: Tensor, weights: BitWeights, scale: float, top: int, noise: tuple[float, Tensor, Tensor] | None = None,
    *, variant: str | None = None,
) -> Tensor:  # fmt: skip
    """Return the shifted sum of all codes, (tokens, outputs) float32.

    Args:
        x: (tokens, inputs) int8.
        weights: Of the matrix.
        scale: Steps of the converters in a unit of the weights.
        top: Highest code.
        noise: Deviation [steps], pool of standard normals, and (arrays, 8, tokens) int64 places in it where the noise
            of the outputs begins; None without.
        variant: Key of ``build.VARIANTS``; None is the fastest.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    built = load(variant)
    if not isinstance(built, Built):
        raise Unavailable(built)
    (outputs, inputs), (_, arrays, fours, _, _) = weights.shape, weights.codes.shape
    tokens = len(x)
    check("x", x, (tokens, inputs), torch.int8)
    x, out = x.contiguous(), fresh(tokens, outputs)
    given = BitArrays(
        tokens=tokens, inputs=inputs, outputs=outputs, rows=weights.rows, tiles=arrays, fours=fours,
        threads=torch.get_num_threads(), x=x.data_ptr(), units=weights.units,
        codes=weights.codes.data_ptr() if weights.codes.dtype == torch.int8 else None,
        whole=weights.codes.data_ptr() if weights.codes.dtype == torch.int16 else None,
        errors=None if weights.errors is None else weights.errors.data_ptr(), out=out.data_ptr(), inverse=scale,
        top=top,
    )  # fmt: skip
    if noise is not None:
        given.noise, pool, places = noise
        check("places", places, (arrays, CYCLES, tokens), torch.int64)
        places = places.contiguous()
        given.pool, given.places = pool.data_ptr(), places.data_ptr()
    if built.library.bit_serial_product(ctypes.byref(given)):
        raise MemoryError("bit_serial_product: no memory for its tables")
    return out
