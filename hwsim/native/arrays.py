"""Kernels of ternary weights on arrays: inputs bit by bit, or in digits of several bits."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from device_models.linear_array import INPUT_BITS
from hwsim.native.arguments import LinearArrays, Unavailable, check, fresh
from hwsim.native.build import Built, load

FOUR, TWO, BLOCK = 4, 2, 32
SUMMED = 64
"""Inputs whose sums 16 bits have to hold for a weight to be taken whole bit by bit."""
LARGEST_NUMBER, LARGEST_SUM, LARGEST_FLOAT = (1 << 15) - 1, (1 << 31) - 1, (1 << 24) - 1


@dataclass(frozen=True, eq=False)
class LaidOut:
    """Weights ``units code + error`` of one matrix as a kernel reads them.

    Attributes:
        weights: (outputs / 32, arrays, fours, 4, 32) where inputs come bit by bit, else
            (outputs / 32, arrays, twos, 32, 2): whole weights in int16, or codes in int8, one more than they are where
            inputs do not come bit by bit.
        errors: int8, beside codes bit by bit; None without.
        units: Of a code.
        shape: Outputs and inputs of the matrix.
        rows: Inputs of an array.
        cycles: Digits that an input is cut into.
    """

    weights: Tensor
    errors: Tensor | None
    units: int
    shape: tuple[int, int]
    rows: int
    cycles: int


def multiplies_pairs() -> bool:
    """Say whether this processor adds up products of small numbers in pairs: digits of several bits pay only then."""
    built = load()
    return isinstance(built, Built) and built.variant != "generic"


def lay_out(codes: Tensor, errors: Tensor | None, units: int, rows: int, cycles: int) -> LaidOut | None:
    """Lay out weights for arrays of ``rows`` inputs; None where they, or the sums of an array, are too large.

    Args:
        codes: (outputs, inputs) int8: -1, 0, 1.
        errors: (outputs, inputs) int8, added to units times codes; None without.
        units: Of a code.
        rows: Inputs of an array.
        cycles: Digits that an input is cut into.
    """
    outputs, inputs = codes.shape
    rows = min(rows, inputs)
    largest = 0 if errors is None or not errors.numel() else int(errors.to(torch.int16).abs().max())
    of = (units, (outputs, inputs), rows, cycles)
    if not rows:
        return None
    if cycles < INPUT_BITS:
        digit = 1 << (INPUT_BITS - 1 if cycles == 1 else INPUT_BITS // cycles)  # at most
        if units + largest > LARGEST_NUMBER or rows * digit * (units + largest) > LARGEST_SUM:
            return None
        if errors is None and units == 1:
            return LaidOut(_twos(codes, rows) + 1, None, *of)
        return LaidOut(_twos(_whole(codes, errors, units), rows), None, *of)
    whole = SUMMED * (units + largest) <= LARGEST_NUMBER
    if rows * (units + largest) > LARGEST_FLOAT or (not whole and rows * max(1, largest) > LARGEST_NUMBER):
        return None
    if whole:
        return LaidOut(_fours(_whole(codes, errors, units), rows), None, *of)
    return LaidOut(_fours(codes, rows), _fours(torch.zeros_like(codes) if errors is None else errors, rows), *of)


def _whole(codes: Tensor, errors: Tensor | None, units: int) -> Tensor:
    made = codes.to(torch.int16) * units
    return made if errors is None else made + errors


def _fours(x: Tensor, rows: int) -> Tensor:
    return _groups(x, rows, FOUR).permute(0, 2, 3, 4, 1).contiguous()


def _twos(x: Tensor, rows: int) -> Tensor:
    return _groups(x, rows, TWO).permute(0, 2, 3, 1, 4).contiguous()


def _groups(x: Tensor, rows: int, size: int) -> Tensor:
    """Cut (outputs, inputs) into (blocks, 32, arrays, groups, size), filled up with zeros."""
    outputs, inputs = x.shape
    arrays, groups = -(-inputs // rows), -(-rows // size)
    x = pad(x, (0, arrays * rows - inputs, 0, -outputs % BLOCK))
    x = pad(x.unflatten(1, (arrays, rows)), (0, groups * size - rows))
    return x.unflatten(0, (-1, BLOCK)).unflatten(3, (groups, size))


def sum_of_codes(
    x: Tensor, laid_out: LaidOut, converter: tuple[float, int] | None,
    noise: tuple[float, Tensor, Tensor] | None = None, *, variant: str | None = None,
) -> Tensor:  # fmt: skip
    """Return the shifted sum of all codes, (tokens, outputs) float32.

    Args:
        x: (tokens, inputs) int8.
        laid_out: Weights of the matrix.
        converter: Its steps in a unit of the weights, and its highest code; None adds up column sums as they are, not
            bit by bit.
        noise: Deviation [steps], pool of standard normals, and (arrays, cycles, tokens) int64 places in it where the
            noise of the outputs begins; None without.
        variant: Key of ``build.VARIANTS``; None is the fastest.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device, or there is no converter where one is needed.
    """
    if converter is None and (laid_out.cycles == INPUT_BITS or noise is not None):
        raise ValueError("converter: bit by bit, and for noise, there has to be one, received None")
    built = load(variant)
    if not isinstance(built, Built):
        raise Unavailable(built)
    (outputs, inputs), (_, arrays, groups, _, _) = laid_out.shape, laid_out.weights.shape
    tokens, whole = len(x), laid_out.weights.dtype == torch.int16
    check("x", x, (tokens, inputs), torch.int8)
    x, out, weights = x.contiguous(), fresh(tokens, outputs), laid_out.weights.data_ptr()
    steps, top = converter or (1.0, 0)
    given = LinearArrays(
        tokens=tokens, inputs=inputs, outputs=outputs, rows=laid_out.rows, tiles=arrays, groups=groups,
        cycles=laid_out.cycles, threads=torch.get_num_threads(), x=x.data_ptr(), units=laid_out.units,
        codes=None if whole else weights, whole=weights if whole else None,
        errors=None if laid_out.errors is None else laid_out.errors.data_ptr(), out=out.data_ptr(), inverse=steps,
        top=top,
    )  # fmt: skip
    if noise is not None:
        given.noise, pool, places = noise
        check("places", places, (arrays, laid_out.cycles, tokens), torch.int64)
        places = places.contiguous()
        given.pool, given.places = pool.data_ptr(), places.data_ptr()
    kernel = built.library.bit_serial_product if laid_out.cycles == INPUT_BITS else built.library.digit_product
    if kernel(ctypes.byref(given)):
        raise MemoryError("arrays: no memory for what their inputs are cut into")
    return out
