"""Arrays of the ternary linear layers: geometry, errors, price per action, and what they compute, in NumPy.

An input code ``x`` of 8 bits is applied in ``C = input_cycles`` digits of ``b = 8 / C`` bits, pulses of so many slots::

    x = sum_c 2^(b c) x_c        x_c = (x >> b c) mod 2^b, the last one with its sign

A column of an array adds up what ``rows`` of its cells let pass; its converter of B bits rounds the sum, shift-and-add
puts cycles and arrays together in digital::

    S[c, r] = sum_{i in array r} x_c[i] w[i] (1 + gain_sigma z[i])          w = -1, 0, 1; some stuck at 0
    y = sum_{c, r} 2^(b c) ADC(S[c, r] + noise F / n)                       n = 2^(B-1) - 1
    ADC(S) = F / n clip(round(S n / F), -n, n)

C = 8 is bit-serial input, C = 1 a pulse width. Without rounding, deviations and noise, y is the integer product.

Source: ma2024 (ternary weights, 8-bit activations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from device_models.fields import STRICT, Area, Duration, Energy, Factor, Power, Whole
from device_models.price_schema import AdcModel

INPUT_BITS = 8
"""Bits of an input code, its sign included."""
CYCLES = (1, 2, 4, 8)
"""Numbers of equal digits that an input can be cut into."""


@dataclass(frozen=True)
class Divisor:
    """Annotation of a number of input cycles: a divisor of the input's bits."""

    def parse(self, value: object) -> int:
        """Check one value; raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int) or value not in CYCLES:
            raise ValueError(f"expected one of {', '.join(map(str, CYCLES))}, as an input has {INPUT_BITS} bits")
        return int(value)

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> object:
        """Tell pydantic to check numbers of cycles."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.parse)


@dataclass(frozen=True)
class LinearArray:
    """Arrays of the ternary linear layers.

    Attributes:
        rows: Rows of one array; more inputs take a further array with its own conversions.
        columns: Columns of one array; more outputs take a further array whose rows are driven again.
        input_cycles: Digits of an input, applied one after another: 8 is bit-serial, 1 a pulse width.
        cell_mac: [J] one cell in one cycle, whatever its pulse: the swing of the bit line is the same.
        row_drive: [J] one row driven for one cycle.
        shift_add: [J] behind one conversion.
        system_multiplier: [1] whole network against the bare macro; multiplies every energy of this section.
        cycle_time: [s] drive and settling for one input bit; conversions run beside it.
        slot_time: [s] of each further slot of a pulse, where a digit has more than one bit.
        adc: Model of the column converter's price.
        adc_bits: Its resolution; needed by ``sar`` and ``survey``, and wherever sums are rounded.
        adc_range: Full scale F of the converter: ``fixed`` takes in the largest sum; ``calibrated`` and ``learned``
            keep one for each matrix with the model; ``ideal`` does not round.
        adc_conversion: [J] one conversion; with ``fixed``.
        gain_sigma: [1] relative error of a weight's current, static per die.
        stuck_at_zero: [1] share of weights that conduct nothing, static per die.
        noise: [LSB] rms at the converter's input, drawn at each conversion.
        leakage: [W] of one stored weight.
        cell_area: [m^2] of one stored weight.
        adc_area: [m^2] of one column converter; with ``fixed``.
    """

    __pydantic_config__: ClassVar = STRICT
    rows: Annotated[int, Whole(1, 65536)]
    columns: Annotated[int, Whole(1, 65536)]
    input_cycles: Annotated[int, Divisor()]
    cell_mac: Energy
    row_drive: Energy
    shift_add: Energy
    system_multiplier: Annotated[float, Factor(1.0, 100.0)]
    cycle_time: Duration
    adc: AdcModel
    slot_time: Duration = 0.0
    adc_bits: Annotated[int, Whole(1, 16)] | None = None
    adc_range: Literal["ideal", "fixed", "calibrated", "learned"] = "ideal"
    adc_conversion: Energy | None = None
    gain_sigma: Annotated[float, Factor(0.0, 2.0)] = 0.0
    stuck_at_zero: Annotated[float, Factor(0.0, 1.0)] = 0.0
    noise: Annotated[float, Factor(0.0, 16.0)] = 0.0
    leakage: Power = 0.0
    cell_area: Area = 0.0
    adc_area: Area = 0.0

    @property
    def digit_bits(self) -> int:
        """Bits of an input that one cycle applies."""
        return INPUT_BITS // self.input_cycles

    @property
    def digit_weights(self) -> tuple[int, ...]:
        """What the sum of each cycle counts, the least first."""
        return tuple(2 ** (self.digit_bits * cycle) for cycle in range(self.input_cycles))

    @property
    def largest_digit(self) -> int:
        """Largest magnitude of a digit: of an unsigned one, or of the signed one where it is the only one."""
        return 2 ** (INPUT_BITS - 1) if self.input_cycles == 1 else 2**self.digit_bits - 1

    @property
    def highest_code(self) -> int:
        """Return n, the largest code of the converter; raises ValueError without one."""
        if self.adc_range == "ideal" or self.adc_bits is None:
            raise ValueError("sums of these arrays are not rounded: adc_range is ideal")
        return 2 ** (self.adc_bits - 1) - 1


def input_digits(codes: NDArray[np.integer], cycles: int) -> NDArray[np.int64]:
    """Cut 8-bit codes [-128, 127] into digits, shape (cycles, ...), the least significant first.

    ``x_c = (x >> b c) mod 2^b``; the last digit keeps its sign. Two's complement where a digit is one bit.
    """
    bits = INPUT_BITS // cycles
    wide = np.asarray(codes, dtype=np.int64)
    lower = [(wide >> bits * cycle) & (2**bits - 1) for cycle in range(cycles - 1)]
    return np.stack([*lower, wide >> bits * (cycles - 1)])


def convert(sums: NDArray[np.floating], full_scale: float, highest: int) -> NDArray[np.floating]:
    """Round column sums [cell currents] to the converter's codes, clipped to its range.

    ``F / n clip(round(S n / F), -n, n)``
    """
    return full_scale / highest * np.clip(np.round(sums * (highest / full_scale)), -highest, highest)


def full_range(array: LinearArray, inputs: int) -> float:
    """Return the largest column sum [cell currents] that inputs can give: no sum is clipped, few codes are used."""
    return float(min(array.rows, inputs) * array.largest_digit)


def expected_range(array: LinearArray, inputs: int) -> float:
    """Return four standard deviations of a column sum [cell currents], before any statistics are at hand.

    ``4 sqrt(rows 2/3 E[x_c^2])``: a third of each weight -1, 0 and 1, digits uniform in magnitude.

    Approximation: inputs are independent of each other and of the weights.
    """
    top = array.largest_digit
    square = top * top / 3.0 if array.input_cycles == 1 else top * (2 * top + 1) / 6.0
    return min(full_range(array, inputs), 4.0 * float(np.sqrt(min(array.rows, inputs) * 2.0 / 3.0 * square)))
