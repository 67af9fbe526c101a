"""Noise of the converters of linear arrays: rows of a pool of standard normals.

Shapes: n tokens, o outputs, c cycles, r arrays along the inputs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hwsim.functional.whole_products import SCRATCH
from hwsim.randomness import POOL, below, combined, mixed, normal_pool, scattered, seed_of


@dataclass(frozen=True, eq=False)
class Conversions:
    """Keys of the noise of a matrix's converters.

    Attributes:
        keys: (n,) int64, one of each token: of its sequence and its place in it.
        name: Names the matrix, so that no two share a draw.
        scattered: (n,) the keys, scrambled, where another matrix has seen to it.
    """

    keys: Tensor
    name: str
    scattered: Tensor | None = None

    def noise(self, cycles: int, tile: int, outputs: int) -> Tensor:
        """Return the standard normals of the conversions at one of the arrays, (c, n, o)."""
        return pool_noise(self.states(1 + tile)[tile], cycles, outputs)

    def states(self, tiles: int) -> Tensor:
        """Return the states of the tokens' draws at each array, (r, n)."""
        keys = scattered(self.keys) if self.scattered is None else self.scattered
        return combined(_states_of_arrays(self.name, tiles, self.keys.device), keys)


@functools.lru_cache(maxsize=4096)
def _states_of_arrays(name: str, tiles: int, device: torch.device) -> Tensor:
    """Return the states (r, 1) that the noise of a matrix begins with."""
    starts = [seed_of(0, "linear conversion", name, tile) for tile in range(tiles)]
    return mixed(torch.tensor(starts, device=device)[:, None])


def pool_noise(states: Tensor, cycles: int, outputs: int) -> Tensor:
    """Return standard normals (c, n, o) for n states: for each, successive numbers of a pool from a place of its own.

    Approximation: two states may share numbers, shifted against each other, by a chance of c o / 2^19.
    """
    placed = PlacedNoise.of(states[None], cycles, outputs)
    return placed.windows.index_select(0, placed.places.flatten()).view(cycles, -1, outputs)


@dataclass(frozen=True, eq=False)
class PlacedNoise:
    """Where :func:`pool_noise` of several arrays is found, so that it can be cut out for some tokens at a time.

    Attributes:
        windows: (places, o) views of the pool, one from each place.
        places: (r, c, n) which of them.
    """

    windows: Tensor
    places: Tensor

    @classmethod
    def of(cls, states: Tensor, cycles: int, outputs: int) -> PlacedNoise:
        """Place the noise of states (r, n)."""
        pool = _pool_for(states.device, cycles * outputs)
        steps = outputs * torch.arange(cycles, device=states.device)[:, None]
        places = below(states, len(pool) - cycles * outputs + 1)[:, None] + steps
        return cls(pool.as_strided((len(pool) - outputs + 1, outputs), (1, 1)), places)

    def at(self, tile: int) -> Tensor:
        """Return standard normals (c n, o) at one of the arrays; on a processor overwritten by the next ones."""
        places = self.places[tile].flatten()
        if self.windows.device.type != "cpu":
            return self.windows.index_select(0, places)
        out = SCRATCH.take("noise", (len(places), self.windows.shape[1]), torch.float32)
        return torch.index_select(self.windows, 0, places, out=out)


def _pool_for(device: torch.device, numbers: int) -> Tensor:
    """Return a pool twice as long as the numbers that a token takes from it, at least the common one."""
    return normal_pool(device) if 2 * numbers <= POOL else normal_pool(device, 1 << (2 * numbers - 1).bit_length())
