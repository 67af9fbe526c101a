"""What ternary arrays cost to emulate: products on arrays beside a float32 linear layer, in one process, in turns.

Run: ``python benchmarks/linear_arrays.py``. Prints medians of the ratio of processor time to the linear layer's: arrays
that round bit by bit, with mismatch, with noise as well; a pulse width with all of it; and the equations as they stand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from device_models import load_device
from hwsim.functional.linear_arrays import ArrayWeights, Conversions, array_product, made_weights, naive_array_product

ROUNDS = 15
SHAPES = ((1024, 128, 384), (1024, 384, 128), (256, 1024, 1024), (64, 2560, 2560))
"""Tokens, inputs, outputs."""


def main() -> None:
    """Time each way in turns."""
    torch.set_num_threads(1)
    device = load_device("gaincell_28nm").linear
    names = ("bit-serial", "+ mismatch", "+ noise", "pulse width", "naive")
    print(f"{'tokens inputs outputs':<24}" + "".join(f"{name:>12}" for name in names))
    for tokens, inputs, outputs in SHAPES:
        rng = torch.Generator().manual_seed(0)
        x = torch.randint(-127, 128, (tokens, inputs), generator=rng).float()
        codes = torch.randint(-1, 2, (outputs, inputs), generator=rng)
        weight = codes.float()
        plain, made = ArrayWeights(codes.to(torch.int8)), made_weights(codes, device, 0, "layer")
        keys, wide = Conversions(torch.arange(tokens), "layer"), replace(device, input_cycles=1)
        ways: list[Callable[[], object]] = [
            lambda: array_product(x, plain, device, 40.0),  # noqa: B023 - called before the next shape
            lambda: array_product(x, made, device, 40.0),  # noqa: B023
            lambda: array_product(x, made, device, 40.0, keys),  # noqa: B023
            lambda: array_product(x, made, wide, 2000.0, keys),  # noqa: B023
            lambda: naive_array_product(x, made.values, device, 40.0),  # noqa: B023
        ]
        ratios: list[list[float]] = [[] for _ in ways]
        for _ in range(ROUNDS):
            for way, found in zip(ways, ratios, strict=True):
                linear = _seconds(lambda: torch.nn.functional.linear(x, weight), 4)  # noqa: B023
                found.append(_seconds(way, 1) / linear)
        shape = f"{tokens} {inputs} {outputs}"
        print(f"{shape:<24}" + "".join(f"{statistics.median(found):>12.2f}" for found in ratios))


def _seconds(work: Callable[[], object], times: int) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main()
