"""Where the random numbers of differential privacy come from: the seed of a run, or the operating system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from fllm.sections import PrivacySettings
from hwsim.randomness import generator, seed_of


@dataclass(frozen=True)
class NoiseSource:
    """Draws for keys.

    Attributes:
        seed: Of the run: equal keys give equal draws, and whoever knows it can repeat them. None: every draw is new
            entropy of the operating system.
    """

    seed: int | None

    def uniform(self, size: int, *key: str | int) -> Tensor:
        """Return numbers in (0, 1), (size,) in float64."""
        if self.seed is not None:
            return torch.rand(size, generator=generator(self.seed, *key), dtype=torch.float64)
        return torch.from_numpy(_uniform(size))

    def normal(self, shape: torch.Size, *key: str | int) -> Tensor:
        """Return standard normals in float64."""
        if self.seed is not None:
            return torch.randn(shape, generator=generator(self.seed, *key), dtype=torch.float64)
        return torch.from_numpy(ndtri(_uniform(shape.numel()))).reshape(shape)

    @contextmanager
    def global_numpy(self, *key: str | int) -> Iterator[None]:
        """Seed NumPy's global generator, from which Flower draws its noise, inside the block; then put it back."""
        if self.seed is None:
            words = np.frombuffer(os.urandom(4 * 624), np.uint32)  # as many as its state has
        else:
            words = np.frombuffer(seed_of(self.seed, *key).to_bytes(8, "little"), np.uint32)
        former = np.random.get_state()  # noqa: NPY002 - the generator is Flower's choice
        np.random.seed(words)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(former)  # noqa: NPY002


def noise_source(settings: PrivacySettings, seed: int) -> NoiseSource:
    """Return where the noise of a run comes from."""
    return NoiseSource(None if settings.secret_noise else seed)


def _uniform(size: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return (2 k + 1) / 2^53 of 52 random bits k: never 0 or 1, whose normals would be infinite."""
    bits = np.frombuffer(os.urandom(8 * size), np.uint64) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * 2.0**-52
