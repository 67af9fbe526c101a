"""The arguments of the kernels: checked, contiguous, in groups, and the sizes of blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwsim.native import MOST_IMAGES, Cells, Circuits, Geometry, Noise

SMALLEST = 16
"""Queries, slots and dimensions of a program, at least: there are no smaller products."""
BLOCK = 32
"""Queries of a program, and slots that it reads at once, at most: larger blocks spill registers on sm_90."""
WIDE = 128
"""Dimensions beyond which only the smallest blocks do not."""
LAUNCH = {"num_warps": 8, "num_stages": 1}
"""What leaves fewest registers spilled; chosen from compiled code, not from time."""


class Sizes(NamedTuple):
    """Sizes and starts; ``n mod heads`` is the head whose circuits are meant."""

    heads: int
    queries: int
    keys: int
    dims: int
    window: int
    slots: int
    tiles: int
    query_start: int
    key_start: int


class Scoring(NamedTuple):
    """What makes scores; None is left out."""

    query: Tensor
    key: Tensor
    weight: Tensor
    constant: Tensor | None
    offset: Tensor | None
    sigma: Tensor | None
    place: Tensor | None
    pool: Tensor | None


class Charging(NamedTuple):
    """What makes charges of pulses; ``noise`` is the full scale, white^2 and flicker^2."""

    value: Tensor
    weight: Tensor
    constant: Tensor | None
    grid: float | None
    noise: tuple[float, float, float] | None
    place: Tensor | None
    pool: Tensor | None


class Converting(NamedTuple):
    """The converter; ``inverse`` is one over its step, and None where it is continuous."""

    gain: Tensor | None
    offset: Tensor | None
    step: float
    inverse: float | None
    top: float


class Slopes(NamedTuple):
    """Cells whose products the gradients are those of, and what comes from behind."""

    key: Tensor
    value: Tensor
    weight_k: Tensor
    weight_v: Tensor
    constant_k: Tensor | None
    constant_v: Tensor | None
    grad: Tensor
    saturated: Tensor | None


class Call:
    """One call's arguments, in the groups that the kernels take.

    Args:
        query: (n, queries, head_dim); its device is that of all tensors.
        cells: As in the functions of this package, as are ``geometry`` and ``circuits``.
        geometry: Where tokens lie.
        circuits: Everything between the cells and the output.

    Attributes:
        count: n, heads of all sequences.
        images: How many images keys and values have.
        blocks: R queries, C slots and D dimensions of a program.

    Raises:
        ValueError: If a tensor has another shape, type or device, or more stands beside a pulse grid than it knows.
    """

    def __init__(self, query: Tensor, cells: Cells, geometry: Geometry, circuits: Circuits) -> None:
        readout, tiles, noise = circuits.readout, geometry.tiles, circuits.noise
        if readout.errors is not None or (noise and (noise.jitter or noise.readout)):
            raise ValueError("the kernels in Triton know neither jitter, nor noise and errors of codes")
        self.where, self.shape, self.window, self.keys = query.device, query.shape, geometry.window, cells.key.shape[2]
        self.count, queries, self.dims = query.shape
        per_head = [x for x in (readout.gain, readout.offset, circuits.score_offset) if x is not None]
        heads = per_head[0].shape[0] if per_head else 1
        if self.count % heads:
            raise ValueError(
                f"{self.count} heads of all sequences are no multiple of the {heads} heads of the circuits"
            )
        if circuits.grid is not None and (cells.value.shape[1] != 1 or cells.constant_v is not None):
            raise ValueError(
                f"grid: expected one image of the values and no constant, received {cells.value.shape[1]} images and "
                f"{'no' if cells.constant_v is None else 'a'} constant"
            )
        self.query, self.cells = self.checked("query", query, query.shape), self.checked_cells(cells)
        slots = min(geometry.slots, geometry.window)
        self.sizes = Sizes(
            heads, queries, self.keys, self.dims, geometry.window, slots, tiles, geometry.query_start,
            geometry.key_start,
        )  # fmt: skip
        offset = self._optional("score_offset", circuits.score_offset, (heads, geometry.window))
        of_scores, of_charges = self._noise(noise, (self.count, queries, tiles))
        self.scoring = Scoring(
            self.query, self.cells.key, self.cells.weight_k, self.cells.constant_k, offset, *of_scores
        )
        self.charging = Charging(
            self.cells.value, self.cells.weight_v, self.cells.constant_v, circuits.grid, *of_charges
        )
        columns, stepped = (heads, tiles, self.dims), readout.step > 0.0
        self.converting = Converting(
            self._optional("gain", readout.gain, columns), self._optional("offset", readout.offset, columns),
            float(readout.step) if stepped else 1.0, 1.0 / readout.step if stepped else None, float(readout.top),
        )  # fmt: skip
        self.images = cells.key.shape[1], cells.value.shape[1]
        width = _power_of_two(self.dims)
        block = BLOCK if width <= WIDE else SMALLEST
        self.blocks = {"R": block, "C": min(block, _power_of_two(slots)), "D": width}

    def query_blocks(self) -> tuple[int, int]:
        """Return the number of the first block of queries, counted over all laps, and how many there are."""
        rows = self.blocks["R"]
        in_lap = -(-self.window // rows)
        ends = (self.sizes.query_start, self.sizes.query_start + self.sizes.queries - 1)
        first, last = (t // self.window * in_lap + t % self.window // rows for t in ends)
        return first, last - first + 1

    def key_pieces(self) -> tuple[int, int]:
        """Return the number of the first piece of a sub-tile, counted over all laps, and how many there are."""
        z, chunks = self.sizes, -(-self.sizes.slots // self.blocks["C"])
        ends = (z.key_start, z.key_start + z.keys - 1)
        first, last = ((t // z.window * z.tiles + t % z.window // z.slots) * chunks for t in ends)
        return first, last - first + chunks

    def checked(self, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a contiguous tensor of the expected shape and type, on the device of the query."""
        if x.shape != shape or x.dtype != dtype or x.device != self.where:
            raise ValueError(
                f"{name}: expected {dtype} of shape {tuple(shape)} on {self.where}, received {x.dtype} of "
                f"{tuple(x.shape)} on {x.device}"
            )
        return x.contiguous()

    def checked_cells(self, cells: Cells) -> Cells:
        """Return contiguous images, weights and constants."""
        made = []
        for name, states, weights in (("key", cells.key, cells.weight_k), ("value", cells.value, cells.weight_v)):
            images = states.shape[1]
            if not 1 <= images <= MOST_IMAGES:
                raise ValueError(f"{name}: expected 1 to {MOST_IMAGES} images, received {images}")
            made += [self.checked(name, states, (self.count, images, self.keys, self.dims)),
                     self.checked(f"weights of the {name}s", weights, (images, self.window))]  # fmt: skip
        return Cells(
            made[0], made[2], made[1], made[3], self._optional("constant_k", cells.constant_k, (self.window,)),
            self._optional("constant_v", cells.constant_v, (self.window,)),
        )  # fmt: skip

    def _noise(self, noise: Noise | None, places: tuple[int, int, int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return deviation, places and pool of the noise of the scores, and likewise of the charges."""
        scores: tuple[Any, ...] = (None, None, None)
        charges = scores
        if noise is None:
            return scores, charges
        pool = self.checked("pool", noise.pool, noise.pool.shape)
        if noise.score_sigma is not None:
            sigma = self.checked("score_sigma", noise.score_sigma, places[:2])
            scores = sigma, self._places("score_start", noise.score_start, places), pool
        if noise.charge is not None:
            charges = noise.charge, self._places("charge_start", noise.charge_start, places), pool
        return scores, charges

    def _optional(self, name: str, x: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        return None if x is None else self.checked(name, x, shape)

    def _places(self, name: str, x: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if x is None:
            raise ValueError(f"{name}: expected the places of the noise in the pool, received None")
        return self.checked(name, x, shape, torch.int32)


def _power_of_two(x: int) -> int:
    return max(SMALLEST, 1 << (x - 1).bit_length())
