"""Products of input codes and ternary weights on in-memory arrays: cycles, tiles, converters, deviations, noise.

The equations stand in ``device_models.linear_array``. :func:`naive_array_product` reads like them and is the oracle of
:func:`array_product`, which runs in whole numbers: a die's gain errors lie on a grid (:func:`made_weights`), so that a
column sum is an integer, the same in any order, precision and number of threads.

Shapes: n tokens, i inputs, o outputs, c cycles, r arrays along the inputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from device_models.linear_array import INPUT_BITS, LinearArray
from hwsim.functional.conversion_noise import Conversions, PlacedNoise
from hwsim.functional.kernel_loop import arrays_in_c
from hwsim.functional.whole_products import (
    SCRATCH,
    TileWeights,
    int8_products,
    signed_digits,
    tile_weights,
    whole_product,
)
from hwsim.native.arrays import LARGEST_NUMBER, SUMMED, LaidOut, lay_out, multiplies_pairs, sum_of_codes
from hwsim.randomness import keyed, normal, seed_of, uniform

LARGEST_ERROR = 127
"""Steps of the grid of gain errors to either side, at most."""
CUT_OFF = 6.0
"""Standard deviations beyond which no weight errs."""
CHUNK = 1 << 19
"""Column sums computed at a time: they stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class ArrayWeights:
    """Weights of one matrix as a die made them: ``w (1 + error / units)``.

    Attributes:
        codes: (o, i) int8: -1, 0, 1.
        errors: (o, i) int8, zero where the code is; None without mismatch.
        units: Steps of the grid of errors in a whole weight.
    """

    codes: Tensor
    errors: Tensor | None = None
    units: int = 1
    _tiles: dict[tuple[int, int], list[TileWeights]] = field(default_factory=dict, init=False, repr=False)
    _laid_out: dict[tuple[int, int], LaidOut | None] = field(default_factory=dict, init=False, repr=False)

    def __deepcopy__(self, memo: object) -> ArrayWeights:
        """Share with a copy of the model what never changes."""
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Leave out of a file what can be made again."""
        return ArrayWeights, (self.codes, self.errors, self.units)

    def tiles(self, array: LinearArray) -> list[TileWeights]:
        """Return the weights of each array as 8-bit products want them, laid out once."""
        key = array.rows, array.largest_digit
        if key not in self._tiles:
            errors = None if self.errors is None else self.signed_errors
            self._tiles[key] = tile_weights(self.codes, errors, self.units, *key)
        return self._tiles[key]

    def laid_out(self, rows: int, cycles: int) -> LaidOut | None:
        """Return the weights as the kernels in C read them, laid out once; None where their sums would not fit."""
        key = rows, cycles
        if key not in self._laid_out:
            errors = None if self.errors is None else self.signed_errors
            self._laid_out[key] = lay_out(self.codes, errors, self.units, *key)
        return self._laid_out[key]

    @functools.cached_property
    def values(self) -> Tensor:
        """Return the weights in cell currents, (o, i) in float64."""
        made = self.codes.double()
        return made if self.errors is None else made * (1.0 + self.errors.double() / self.units)

    @functools.cached_property
    def whole(self) -> Tensor:
        """Return weights times units, (o, i) in float32: whole numbers."""
        made = self.codes.float() * self.units
        return made if self.errors is None else made.add_(self.signed_errors.float())

    @functools.cached_property
    def signed_errors(self) -> Tensor:
        """Return what the errors add to the weights, in their steps, (o, i) int8."""
        assert self.errors is not None
        return self.codes * self.errors


def made_weights(codes: Tensor, array: LinearArray, die_seed: int, name: str) -> ArrayWeights:
    """Return the weights of a matrix on one chip; a function of seed, name and place alone.

    Args:
        codes: (o, i) -1, 0, 1.
        array: Supplies ``gain_sigma`` and ``stuck_at_zero``.
        die_seed: Which chip.
        name: Path of the layer in its model.

    Approximation: gain errors lie on a grid of between a 21st and a quarter of sigma, cut off at six sigma.
    """
    codes = codes.to(torch.int8)
    rows, columns = (torch.arange(size, device=codes.device) for size in codes.shape)
    if array.stuck_at_zero:
        start = torch.tensor(seed_of(die_seed, "die", "stuck weights", name), device=codes.device)
        codes = codes * (uniform(keyed(start, rows[:, None], columns)) >= array.stuck_at_zero)
    if not array.gain_sigma:
        return ArrayWeights(codes)
    # Column sums stay below 2^30, in steps of the grid
    most = (1 << 30) // (array.rows * array.largest_digit)
    units = round(LARGEST_ERROR / (CUT_OFF * array.gain_sigma))
    narrow = int(LARGEST_NUMBER / SUMMED / (1.0 + CUT_OFF * array.gain_sigma))  # added up fastest in C, bit by bit
    if narrow * array.gain_sigma >= 4.0:
        units = min(units, narrow)
    units = max(1, min(most, units))
    largest = min(LARGEST_ERROR, int(CUT_OFF * array.gain_sigma * units))
    start = torch.tensor(seed_of(die_seed, "die", "weight gain", name), device=codes.device)
    errors = normal(keyed(start, rows[:, None], columns)).mul_(array.gain_sigma * units).round_()
    errors = errors.clamp_(-largest, largest).to(torch.int8)
    return ArrayWeights(codes, torch.where(codes == 0, 0, errors), units)


def naive_array_product(
    x: Tensor, weights: Tensor, array: LinearArray, full_scale: float | None = None, noise: Tensor | None = None
) -> Tensor:
    """Compute the product as the equations say, one cycle and array after another.

    Args:
        x: (n, i) codes of activations.
        weights: (o, i) cell currents of the weights.
        array: The arrays.
        full_scale: [cell currents] F; None where sums are not rounded.
        noise: (c, r, n, o) standard normals of the conversions.

    Returns:
        (n, o) in float64.
    """
    out = torch.zeros(x.shape[0], weights.shape[0], dtype=torch.float64, device=x.device)
    for cycle, digit in enumerate(input_digits(x, array.input_cycles)):
        for tile, start in enumerate(range(0, x.shape[1], array.rows)):
            part = slice(start, start + array.rows)
            column_sum = digit[:, part].double() @ weights[:, part].double().T
            if full_scale is not None:
                n = array.highest_code
                step = full_scale / n
                if noise is not None:
                    column_sum = column_sum + array.noise * step * noise[cycle, tile]
                column_sum = step * (column_sum / step).round().clamp(-n, n)
            out += array.digit_weights[cycle] * column_sum
    return out


def array_product(
    x: Tensor, weights: ArrayWeights, array: LinearArray, full_scale: float | None = None,
    conversions: Conversions | None = None,
) -> Tensor:  # fmt: skip
    """Compute :func:`naive_array_product`, cut into chunks of tokens; sums and codes are whole numbers.

    Rounding decides in float32 whatever the dtype of ``x``, so that models in float32 and float64 meet the same codes.

    Args:
        x: (..., i) codes of activations, whole numbers in any floating dtype.
        weights: What the chip made of the matrix.
        array: The arrays.
        full_scale: [cell currents] F; None where sums are not rounded.
        conversions: Keys of the noise, for the flattened tokens; None without noise.

    Returns:
        (..., o) in the dtype of ``x``.
    """
    out = _in_chunks(x, weights, array, full_scale, conversions, slope=False)
    return out.mul_(1.0 / weights.units if full_scale is None else full_scale / array.highest_code)


def range_slope(
    x: Tensor, weights: ArrayWeights, array: LinearArray, full_scale: float, conversions: Conversions | None = None
) -> Tensor:
    """Return the derivative of :func:`array_product` by the range F, (..., o), straight through the rounding.

    ``dADC/dF = (round(v) - v) / n`` inside the range with ``v = S n / F``, ``sign(v)`` outside.

    Source: Esser et al., Learned step size quantization, ICLR 2020, equation 3.
    """
    return _in_chunks(x, weights, array, full_scale, conversions, slope=True).div_(array.highest_code)


def _in_chunks(
    x: Tensor, weights: ArrayWeights, array: LinearArray, full_scale: float | None, conversions: Conversions | None,
    *, slope: bool,
) -> Tensor:  # fmt: skip
    tokens = x.flatten(0, -2)
    outputs = weights.codes.shape[0]
    if not slope and conversions is None and _loses_nothing(tokens, weights, array, full_scale):
        out = _integer_product(tokens, weights, array)
        return out.mul_(1.0 if full_scale is None else array.highest_code / full_scale).view(*x.shape[:-1], outputs)
    most = max(1, CHUNK // (array.input_cycles * outputs))
    size = -(-len(tokens) // max(1, -(-len(tokens) // most)))
    noise = None
    if conversions is not None:
        states = conversions.states(-(-tokens.shape[1] // array.rows))
        noise = PlacedNoise.of(states, array.input_cycles, outputs)
    if not slope and full_scale is not None and (made := _in_c(tokens, weights, array, full_scale, noise)) is not None:
        return made.to(x.dtype).view(*x.shape[:-1], outputs)
    out = tokens.new_zeros(len(tokens), outputs)
    for start in range(0, len(tokens), max(1, size)):
        part = slice(start, start + size)
        here = None if noise is None else PlacedNoise(noise.windows, noise.places[:, :, part])
        _add_shifted(out[part], tokens[part], weights, array, full_scale, here, slope=slope)
    return out.view(*x.shape[:-1], outputs)


def _in_c(
    x: Tensor, weights: ArrayWeights, array: LinearArray, full_scale: float, noise: PlacedNoise | None
) -> Tensor | None:
    """Compute the sum of codes with a kernel in C, the same bits; None where none computes it, or is to."""
    if not _whole_in_float32(array, x.shape[1]):
        return None
    if (laid_out := _laid_out_for_c(x, weights, array.rows, array.input_cycles)) is None:
        return None
    n = array.highest_code
    placed = None if noise is None else (array.noise, noise.windows, noise.places)
    return sum_of_codes(x.to(torch.int8), laid_out, (n / (full_scale * weights.units), n), placed)


def _laid_out_for_c(x: Tensor, weights: ArrayWeights, rows: int, cycles: int) -> LaidOut | None:
    """Return the weights for a kernel in C; None where there is none, or where torch's own products serve as well."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or not arrays_in_c():
        return None
    if cycles < INPUT_BITS and (not multiplies_pairs() or (cycles == 1 and int8_products())):
        return None
    return weights.laid_out(rows, cycles)


def _loses_nothing(x: Tensor, weights: ArrayWeights, array: LinearArray, full_scale: float | None) -> bool:
    """Say whether cycles, arrays and converters add up to the integer product, in every bit."""
    if weights.errors is not None or x.dtype not in (torch.float32, torch.float64):
        return False
    largest, steps = array.largest_digit * min(array.rows, x.shape[1]), 1.0
    if full_scale is not None:
        steps = array.highest_code / full_scale  # of the converter, in a cell current
        if not steps.is_integer() or largest * steps > array.highest_code:
            return False
    return x.shape[1] * (1 << INPUT_BITS - 1) * steps < 1 << 24


def _integer_product(x: Tensor, weights: ArrayWeights, array: LinearArray) -> Tensor:
    """Multiply codes by codes, all cycles and arrays at once, (n, o) in the dtype of ``x``."""
    if (laid_out := _laid_out_for_c(x, weights, x.shape[1], 1)) is not None:
        return sum_of_codes(x.to(torch.int8), laid_out, None).to(x.dtype)
    whole = replace(array, rows=x.shape[1], input_cycles=1)
    return next(column_sums(x, weights, whole)).to(x.dtype)


def column_sums(x: Tensor, weights: ArrayWeights, array: LinearArray, *, overwrite: bool = False) -> Iterator[Tensor]:
    """Yield the sums of each array in front of its converters, (c n, o) in float32, in units of the weights.

    Args:
        x: (n, i) codes of activations.
        weights: What the chip made of the matrix.
        array: The arrays.
        overwrite: Whether the sums of the next array may take the place of the last one's.
    """
    if x.device.type == "cpu" and int8_products():
        narrow, shape = x.to(torch.int8), (array.input_cycles * len(x), weights.codes.shape[0])
        for tile in weights.tiles(array):
            out = SCRATCH.take("column sums", shape, torch.float32) if overwrite else torch.empty(shape)
            digits = signed_digits(narrow[:, tile.rows], array.input_cycles, tile.factor)
            yield whole_product(digits, tile, weights.units, out)
        return
    digits = input_digits(x, array.input_cycles)
    largest = array.largest_digit * min(array.rows, x.shape[1]) * (weights.units + LARGEST_ERROR)
    exact = torch.float32 if largest < 1 << 24 else torch.float64
    for start in range(0, x.shape[1], array.rows):
        part = slice(start, start + array.rows)
        yield (digits[..., part].flatten(0, 1).to(exact) @ weights.whole[:, part].T.to(exact)).float()


def input_digits(x: Tensor, cycles: int) -> Tensor:
    """Cut codes of activations (..., i) into digits (c, ..., i) in int16; twin of ``device_models.linear_array``."""
    bits, wide = INPUT_BITS // cycles, x.to(torch.int16)
    lower = [(wide >> bits * cycle) & (2**bits - 1) for cycle in range(cycles - 1)]
    return torch.stack([*lower, wide >> bits * (cycles - 1)])


def _add_shifted(
    total: Tensor, x: Tensor, weights: ArrayWeights, array: LinearArray, full_scale: float | None,
    noise: PlacedNoise | None, *, slope: bool,
) -> None:  # fmt: skip
    """Add to (n, o) the shifted sum over cycles and arrays of codes, of their slopes, or of the sums themselves."""
    cycles, flat = array.input_cycles, total.view(-1)
    exact = full_scale is not None and not slope and _whole_in_float32(array, x.shape[1])
    dtype = torch.float32 if exact else x.dtype
    shift = torch.tensor(array.digit_weights, dtype=dtype, device=x.device)
    for tile, sums in enumerate(column_sums(x, weights, array, overwrite=True)):
        if full_scale is not None:
            n = array.highest_code
            sums.mul_(n / (full_scale * weights.units))
            if noise is not None:
                sums.add_(noise.at(tile), alpha=array.noise)
            before = sums.clone() if slope else None
            sums.round_().clamp_(-n, n)
            if before is not None:
                sums.sub_(torch.where(before.abs() < n, before, 0.0))
        of_cycles = sums.view(cycles, -1).to(dtype)
        if exact and total.dtype == dtype:
            flat.addmv_(of_cycles.T, shift) if cycles > 1 else flat.add_(of_cycles[0])
        else:
            flat += shift @ of_cycles


def _whole_in_float32(array: LinearArray, inputs: int) -> bool:
    """Say whether shifted sums of codes stay whole numbers in float32, whatever their order."""
    return array.highest_code * sum(array.digit_weights) * -(-inputs // array.rows) < 1 << 24


def best_range(sums: Tensor, array: LinearArray, candidates: int = 32) -> float:
    """Return the full scale [cell currents] that rounds the output with the least mean squared error.

    The errors of the cycles add up as ``sum_c 4^(b c) error_c^2``, as if they were independent.

    Args:
        sums: (c, ...) sums in front of the converters [cell currents].
        array: The arrays.
        candidates: Ranges tried, from the largest sum down to a sixteenth of it.

    Raises:
        ValueError: If a sum is not finite.
    """
    sums = sums.flatten(1).float()
    largest = float(sums.abs().max())
    if not math.isfinite(largest):
        raise ValueError("column sums are not finite")
    if not largest:
        return 1.0
    n = array.highest_code
    weight = torch.tensor(array.digit_weights, dtype=torch.float64, device=sums.device).square()
    tried = [largest * 2.0 ** (-4.0 * k / (candidates - 1)) for k in range(candidates)]
    errors = []
    for full_scale in tried:
        rounded = (sums * (n / full_scale)).round_().clamp_(-n, n).mul_(full_scale / n)
        errors.append(float(weight @ rounded.sub_(sums).square_().mean(1).double()))
    return tried[min(range(candidates), key=errors.__getitem__)]


def range_of_design(x: Tensor, codes: Tensor, array: LinearArray) -> float:
    """Return :func:`best_range` of a matrix without a chip's deviations.

    Args:
        x: (n, i) codes of activations.
        codes: (o, i) -1, 0, 1.
        array: The arrays.
    """
    weights = ArrayWeights(codes.to(torch.int8))
    return best_range(torch.cat([s.view(array.input_cycles, -1) for s in column_sums(x, weights, array)], 1), array)
