r"""Values as integers modulo 2^64, whose sums are exact and can be masked.

A value x of a client with weight w becomes :math:`w \, \mathrm{round}(2^f x)`, and the weight itself is one more number
behind the values, so that the sum over clients gives the weighted mean without any client's weight. Negative numbers
are two's complements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt64
from numpy import ndarray
from numpy.typing import NDArray


class ValueOutOfRange(ValueError):
    """A value or a weight that the fixed-point numbers of the masked sum have no room for."""


@dataclass(frozen=True)
class FixedPoint:
    """Range and resolution of masked values.

    The weighted mean is within :math:`2^{-f-1}` of that of the real values, beside the rounding of float64.

    Attributes:
        limit: Largest absolute value [1]; larger ones are refused, never cut.
        fraction_bits: f, bits behind the point. With both defaults, 16 clients may have 8,388,607 cases each.
    """

    limit: float = 64.0
    fraction_bits: int = 30

    def largest_weight(self, clients: int) -> int:
        """Return the largest weight with which no sum over so many clients can leave int64."""
        return (2**63 - 1) // (clients * math.ceil(math.ldexp(self.limit, self.fraction_bits)))

    def encode(self, values: Mapping[str, NDArray[Any]], weight: int, clients: int) -> UInt64[ndarray, " numbers"]:
        """Return all values in the order of their names, multiplied by the weight, and the weight behind them.

        Args:
            values: Arrays of real numbers by name.
            weight: Of the client, for example its number of cases.
            clients: Number of clients whose values are added up.

        Raises:
            ValueOutOfRange: If a value is above the limit or not finite, or the weight too large for so many clients.
        """
        if not 1 <= weight <= self.largest_weight(clients):
            largest = self.largest_weight(clients)
            raise ValueOutOfRange(f"a weight of {weight}: expected 1 to {largest} with {clients} clients")
        parts = []
        for name in sorted(values):
            real = np.asarray(values[name], dtype=np.float64).ravel()
            if not (np.abs(real) <= self.limit).all():  # not so for NaN
                raise ValueOutOfRange(f"{name} has a value beyond {self.limit:g}, which masked sums have no room for")
            parts.append(np.rint(np.ldexp(real, self.fraction_bits)).astype(np.int64) * weight)
        return np.concatenate([*parts, np.array([weight], dtype=np.int64)]).view(np.uint64)

    def decode(
        self, total: UInt64[ndarray, " numbers"], shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, Float64[ndarray, "..."]], int]:
        """Return the weighted means by name, and the sum of the weights.

        Args:
            total: Sum of what clients encoded.
            shapes: Shapes of the values.

        Raises:
            ValueError: If the sum has another number of values, or no weight.
        """
        if len(total) != numbers_of(shapes):
            raise ValueError(f"a sum of {len(total)} numbers for values of {numbers_of(shapes)}")
        signed = total.view(np.int64)
        weight, at, means = int(signed[-1]), 0, {}
        if weight < 1:
            raise ValueError(f"the weights add up to {weight}")
        for name in sorted(shapes):
            size = math.prod(shapes[name])
            mean = np.ldexp(signed[at : at + size].astype(np.float64) / weight, -self.fraction_bits)
            means[name] = mean.reshape(shapes[name])
            at += size
        return means, weight


def numbers_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many numbers values of these shapes and their weight become."""
    return sum(math.prod(shape) for shape in shapes.values()) + 1
