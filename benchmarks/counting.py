"""What counting costs: a training step of the shipped model with and without it, in one process, in turns.

Run: ``python benchmarks/counting.py``. Prints medians of processor time and their ratio.
"""

from __future__ import annotations

import statistics
import time

import torch

from device_models import load_device
from fllm.config import LoraSettings
from fllm.model.adapters import attach_adapter
from fllm.model.base import load_model
from hwsim import count_events, noise_key

ROUNDS, STEPS = 12, 10


def main() -> None:
    """Alternate blocks of steps without and with counting."""
    torch.set_num_threads(1)
    loaded = load_model(None, load_device("gaincell_28nm"), 1e-5, [])
    model = attach_adapter(loaded.model, LoraSettings(), base_name="base", seed=0).train()
    ids = torch.randint(5, 500, (8, 75), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        start = time.process_time()
        with noise_key(3):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad()
        return time.process_time() - start

    for _ in range(STEPS):
        step()
    plain: list[float] = []
    counted: list[float] = []
    for _ in range(ROUNDS):
        plain += [step() for _ in range(STEPS)]
        with count_events():
            counted += [step() for _ in range(STEPS)]
    before, after = statistics.median(plain), statistics.median(counted)
    print(f"step without counting  {before * 1e3:8.2f} ms\nstep with counting     {after * 1e3:8.2f} ms")
    print(f"ratio                  {after / before:8.4f}")


if __name__ == "__main__":
    main()
