"""What counting costs: a training step of the shipped model with and without it, in one process, in turns.

Run: ``python benchmarks/counting.py``. Prints the quartiles of the ratio of processor time, counted steps over the
plain steps before and after them, and as a measure of noise those of plain steps over plain steps.
"""

from __future__ import annotations

import statistics
import time

import torch

from device_models import load_device
from fllm.model.adapters import attach_adapter
from fllm.model.base import load_model
from fllm.sections import LoraSettings
from hwsim import count_events, noise_key

ROUNDS, STEPS = 40, 4


def main() -> None:
    """Alternate blocks of steps without and with counting."""
    torch.set_num_threads(1)
    loaded = load_model(None, load_device("gaincell_28nm"), 1e-5, [])
    model = attach_adapter(loaded.model, LoraSettings(), base_name="base", seed=0).train()
    ids = torch.randint(5, 500, (8, 75), generator=torch.Generator().manual_seed(0))

    def steps() -> float:
        start = time.process_time()
        for _ in range(STEPS):
            with noise_key(3):
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad()
        return time.process_time() - start

    steps()
    ratios: list[float] = []
    noise: list[float] = []
    for _ in range(ROUNDS):
        before = steps()
        with count_events():
            steps()  # the first pass of a block finds out what there is to count
            counted = steps()
        after = steps()
        ratios.append(2 * counted / (before + after))
        noise.append(after / before)
    print(f"{STEPS} steps take {before:.3f} s")
    print("counted / plain:", *(f"{value:.4f}" for value in statistics.quantiles(ratios, n=4)))
    print("plain / plain:  ", *(f"{value:.4f}" for value in statistics.quantiles(noise, n=4)))


if __name__ == "__main__":
    main()
