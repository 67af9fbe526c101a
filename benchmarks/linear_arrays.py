"""What ternary arrays cost to emulate: products on arrays beside a float32 linear layer, in one process, in turns.

Run: ``python benchmarks/linear_arrays.py [shipped | square]``. Prints the median of the ratio of processor time to the
linear layer's, and its quartiles behind it. Each way to compute is compared with the equations before it is timed.

Inputs come in one pulse (8-bit converters) or bit by bit (as the preset has them), without deviations or with mismatch
and noise. Shapes: those of the shipped model at 600 and 1500 tokens, and square ones with arrays of 64 and 256 rows.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from device_models import load_device
from device_models.linear_array import LinearArray, full_range
from hwsim.functional.conversion_noise import Conversions
from hwsim.functional.linear_arrays import ArrayWeights, array_product, made_weights, naive_array_product

ROUNDS, LEAST_SECONDS = 9, 0.004
FLIPS = 1e-3
"""Share of outputs that may differ from the equations in float64: a sum at the edge between two codes."""
SHIPPED = [(n, i, o, 256) for n in (600, 1500) for i, o in ((128, 128), (128, 384), (384, 128))]
SQUARE = [(n, d, d, rows) for rows in (64, 256) for d in (512, 1024, 2560) for n in (256, 2048)]
"""Tokens, inputs, outputs, rows of an array."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to compute a product.

    Attributes:
        array: The arrays.
        weights: What a chip made of the matrix.
        full_scale: [cell currents] range of the converters.
        keys: Of the noise; None without.
    """

    array: LinearArray
    weights: ArrayWeights
    full_scale: float
    keys: Conversions | None

    def product(self, x: Tensor) -> Tensor:
        """Compute the product."""
        return array_product(x, self.weights, self.array, self.full_scale, self.keys)

    def check(self, x: Tensor) -> None:
        """Compare some tokens with the equations; raises AssertionError."""
        tokens, cycles, outputs = min(len(x), 64), self.array.input_cycles, self.weights.codes.shape[0]
        noise, keys = None, None
        if self.keys is not None:
            keys = Conversions(self.keys.keys[:tokens], self.keys.name)
            tiles = range(-(-x.shape[1] // self.array.rows))
            noise = torch.stack([keys.noise(cycles, tile, outputs) for tile in tiles], 1).double()
        wanted = naive_array_product(x[:tokens], self.weights.values, self.array, self.full_scale, noise)
        got = self.product(x)[:tokens]
        differ = float(((got - wanted).abs() > 1e-5 * wanted.abs().max()).double().mean())
        assert differ <= FLIPS, f"{differ:.1e} of the outputs differ from the equations"


def main(which: str = "") -> None:
    """Time each way in turns."""
    torch.set_num_threads(1)
    shapes = {"shipped": SHIPPED, "square": SQUARE}.get(which, SHIPPED + SQUARE)
    for tokens, inputs, outputs, rows in shapes:
        rng = torch.Generator().manual_seed(0)
        x = torch.randint(-127, 128, (tokens, inputs), generator=rng).float()
        codes = torch.randint(-1, 2, (outputs, inputs), generator=rng)
        ways = dict(_ways(codes, tokens, rows))
        for way in ways.values():
            way.check(x)
        print(f"{tokens} tokens, {inputs} -> {outputs}, arrays of {rows} rows")
        for name, found in zip(ways, _ratios(x, codes.float(), list(ways.values())), strict=True):
            low, middle, high = statistics.quantiles(found, n=4)
            print(f"    {name:<36}{middle:6.2f}   ({low:.2f} .. {high:.2f})", flush=True)


def _ways(codes: Tensor, tokens: int, rows: int) -> Iterator[tuple[str, Way]]:
    preset = replace(load_device("gaincell_28nm").linear, rows=rows)
    keys = Conversions(torch.arange(tokens), "layer")
    for array, name in (
        (replace(preset, input_cycles=1, adc_bits=8), "one pulse"),
        (preset, "bit-serial"),
        (replace(preset, adc_bits=10), "bit-serial, nothing lost"),
    ):
        largest = full_range(array, codes.shape[1])
        full_scale = float(array.highest_code) if array.adc_bits == 10 else 0.15 * largest
        yield name, Way(array, ArrayWeights(codes.to(torch.int8)), full_scale, None)
        if array.adc_bits != 10:
            yield f"{name}, mismatch and noise", Way(array, made_weights(codes, array, 0, "layer"), full_scale, keys)


def _ratios(x: Tensor, weight: Tensor, ways: list[Way]) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in ways]
    times = [1 + int(LEAST_SECONDS / _seconds(way.product, x, 1)) for way in ways]
    for _ in range(ROUNDS):
        for way, ratios, repeated in zip(ways, found, times, strict=True):
            linear = _seconds(lambda x: torch.nn.functional.linear(x, weight), x, 4)
            ratios.append(_seconds(way.product, x, repeated) / linear)
    return found


def _seconds(work: Callable[[Tensor], object], x: Tensor, times: int) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    for _ in range(times):
        work(x)
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main(*sys.argv[1:])
