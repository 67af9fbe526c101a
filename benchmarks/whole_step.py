"""What emulation costs of a whole step: the shipped model on a device beside itself with softmax and digital layers.

Run: ``python benchmarks/whole_step.py``. Prints medians of ratios of processor time, one thread, of a training step
(forward and backward pass of 8 texts) and of an evaluation, with everything on and with exact linear arrays.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from device_models import load_device
from fllm.model.adapters import attach_adapter
from fllm.model.base import load_model
from fllm.sections import LoraSettings
from hwsim import noise_key, restore

ROUNDS, TEXTS, LENGTHS = 15, 8, (75, 180)
EXACT_ARRAYS: Mapping[str, object] = {"linear.adc_range": "ideal", "linear.gain_sigma": 0.0, "linear.noise": 0.0}


def model_on(overrides: Mapping[str, object]) -> nn.Module:
    """Return the shipped model with an adapter on ``gaincell_28nm``."""
    loaded = load_model(None, load_device("gaincell_28nm", overrides), 1e-5, [])
    return attach_adapter(loaded.model, LoraSettings(), base_name="base", seed=0).train()


def seconds(model: nn.Module, ids: torch.Tensor, *, train: bool) -> float:
    """Return the processor time of a step."""
    model.train(train)
    start = time.process_time()
    with noise_key(3), torch.set_grad_enabled(train):
        out = model(input_ids=ids, labels=ids, use_cache=False)
        if train:
            out.loss.backward()
    taken = time.process_time() - start
    model.zero_grad()
    return taken


def main() -> None:
    """Time all models in turns."""
    torch.set_num_threads(1)
    plain = model_on({})
    restore(plain)
    models = {"everything on": model_on({}), "exact linear arrays": model_on(EXACT_ARRAYS)}
    for length in LENGTHS:
        ids = torch.randint(5, 500, (TEXTS, length), generator=torch.Generator().manual_seed(0))
        for train, what in ((True, "training step"), (False, "evaluation")):
            ratios: dict[str, list[float]] = {name: [] for name in models}
            for turn in range(ROUNDS + 2):
                before = seconds(plain, ids, train=train)
                for name, model in models.items():
                    ratio = seconds(model, ids, train=train) / before
                    if turn >= 2:  # the first ones make what is kept of a chip
                        ratios[name].append(ratio)
            found = ", ".join(f"{name} {statistics.median(each):.2f}" for name, each in ratios.items())
            print(f"{what}, {TEXTS} x {length} tokens: {found}", flush=True)


if __name__ == "__main__":
    main()
