"""Cells that fade at paces of their own, as the kernels in C take them."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from hwsim.native.arguments import AgedCells as _Struct
from hwsim.native.arguments import check, padded

if TYPE_CHECKING:
    from hwsim.native import Geometry

BLOCK = 64
"""Queries of a block, and keys of a piece, at most; as in ``tiles.h``."""
BESIDE = 16
"""Weights beside those of a range, on either side; as in ``aged.h``."""
MOST_NODES = 12
"""Images of a cell at most; as in ``attention.h``."""


@dataclass(frozen=True)
class Ranges:
    """The ranges of ages at which blocks of queries read pieces of keys.

    Attributes:
        unit: Tokens from one range to the next.
        below: A range begins this many tokens before the age between a block's first query and a piece's first key.
        span: Difference of a range's ages.
        count: Number of ranges.
    """

    unit: int
    below: int
    span: int
    count: int

    @classmethod
    def of(cls, geometry: Geometry, queries: int) -> Ranges:
        """Return the ranges in which some queries meet the keys."""
        slots = min(geometry.slots, geometry.window)
        unit = math.gcd(BLOCK, slots, geometry.window)
        beside = 0  # blocks and pieces that begin anywhere need longer ranges
        if unit < BESIDE:
            unit, beside = BESIDE, BESIDE - 1
        below = min(BLOCK, slots) - 1
        between = geometry.query_start + queries - 1 - geometry.key_start
        most = min(between, geometry.window - 1) + BLOCK - 1
        return cls(unit, below, below + BLOCK - 1 + beside, (most + BLOCK) // unit + 1)

    def youngest(self, number: int) -> int:
        """Return the first age of a range; negative where a key may be younger than the query."""
        return number * self.unit - BLOCK - self.below


@dataclass(frozen=True, eq=False)
class AgedArray:
    """Cells of one array.

    Attributes:
        states: (n, keys, head_dim) excursions just after the write.
        rate: [1] (heads, keys, head_dim) loss of each cell per token; of the self-limited law, what exp(-|y| / v_scale)
            grows by.
        coefficients: c_0, c_1, .. of the current as a polynomial of the excursion, over the saturation, each
            (heads, keys or 1, head_dim); none is the excursion itself.
        ranges: Of the ages.
        ages: (ranges, nodes) at which the currents are taken.
        weights: (ranges, nodes, span + 1) of those currents at the ages of a range.
        counts: (ranges,) int64 how many nodes a range has, the first ones.
        v_scale: [V] of the self-limited law; None is exponential.
    """

    states: Tensor
    rate: Tensor
    coefficients: tuple[Tensor, ...]
    ranges: Ranges
    ages: Tensor
    weights: Tensor
    counts: Tensor
    v_scale: float | None = None

    def packed(self, name: str, heads: int, ranges: Ranges, width: int) -> Packed:
        """Check the tensors, and pad them to whole vectors.

        Args:
            name: What it holds, for messages.
            heads: Of one sequence.
            ranges: In which queries and keys meet.
            width: Dimensions with the padding.

        Raises:
            ValueError: If a tensor has another shape, type or device, or ranges are not those of the geometry.
        """
        (_, keys, dims), nodes = self.states.shape, self.ages.shape[-1]
        if not 1 <= nodes <= MOST_NODES or len(self.coefficients) > 4:
            raise ValueError(
                f"{name}: expected 1 to {MOST_NODES} nodes and up to 4 coefficients, received {nodes} and "
                f"{len(self.coefficients)}"
            )
        if self.ranges != ranges:
            raise ValueError(f"{name}: expected {ranges}, received {self.ranges}")
        check(f"rates of the {name}s", self.rate, (heads, keys, dims))
        check(f"ages of the {name}s", self.ages, (self.ranges.count, nodes))
        check(f"weights of the {name}s", self.weights, (*self.ages.shape, self.ranges.span + 1))
        check(f"numbers of nodes of the {name}s", self.counts, (self.ranges.count,), torch.int64)
        if not 0 <= int(self.counts.min()) <= int(self.counts.max()) <= nodes:
            raise ValueError(f"{name}: expected 0 to {nodes} nodes in each range, received {self.counts.tolist()}")
        for c in self.coefficients:
            check(f"coefficients of the {name}s", c, (heads, keys if c.shape[1] == keys else 1, dims))

        coefficients = [padded(c, width) for c in self.coefficients]
        kept = [
            padded(self.states, width), padded(self.rate, width), self.ages.contiguous(), self.counts.contiguous(),
            pad(self.weights, (BESIDE, BESIDE)),
        ]  # fmt: skip
        states, rate, ages, counts, weights = (x.data_ptr() for x in kept)
        struct = _Struct(
            states=states, rate=rate, ages=ages, counts=counts, weights=weights, nodes=nodes,
            degree=len(coefficients) - 1 if coefficients else 1, length=kept[-1].shape[-1], unit=self.ranges.unit,
            v_scale=self.v_scale or 0.0,
        )  # fmt: skip
        for n, c in enumerate(coefficients):
            struct.coefficient[n], struct.each[n] = c.data_ptr(), c.shape[1] > 1
        return Packed(struct, nodes, (*kept, *coefficients))


@dataclass(frozen=True, eq=False)
class Packed:
    """The struct of an array, and what keeps its memory."""

    struct: _Struct
    nodes: int
    kept: tuple[Tensor, ...]

    @property
    def address(self) -> int:
        """Return where the struct lies."""
        return ctypes.addressof(self.struct)


@dataclass(frozen=True, eq=False)
class AgedCells:
    """Both arrays of all heads."""

    key: AgedArray
    value: AgedArray
