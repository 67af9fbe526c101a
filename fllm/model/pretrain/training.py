"""The training loop of a base model: two-stage schedule, device in the loop, state that survives an interruption.

Batches alternate between the device and the ideal device, so that the model works on both.

Source of the schedule: ma2024 for two-stage learning rate and weight decay of ternary models, at our size.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitNetForCausalLM

from device_models import load_device
from fllm.model.pretrain.network import put_on_design
from fllm.model.pretrain.recipe import Recipe

SAVE_EVERY_S = 300.0
"""[s] between two saves of the state."""


@dataclass(frozen=True)
class Progress:
    """One step of training, for a progress bar.

    Attributes:
        loss: [nat per token] mean of the step.
        summary_loss: Mean squared error of the latent semantic vectors of unit variance.
        tokens: Tokens predicted so far.
    """

    step: int
    steps: int
    loss: float
    summary_loss: float
    tokens: int = 0


@dataclass(frozen=True, eq=False)
class Losses:
    """What one step found.

    Attributes:
        tokens: (predicted tokens,) loss of each [nat].
        summary: Mean squared error of the summaries, or None without any.
    """

    tokens: Tensor
    summary: Tensor | None


class Stopped(KeyboardInterrupt):
    """Training was interrupted between two steps; its state is saved."""


def train(
    model: BitNetForCausalLM,
    reader: nn.Linear | None,
    lesson: Callable[[int], Losses],
    recipe: Recipe,
    report: Callable[[Progress], None],
    state: Path | None = None,
) -> int:
    """Train a model in place.

    Args:
        model: On its device, in float32.
        reader: Reads the summaries off the hidden states; thrown away afterwards.
        lesson: Returns the losses of a step, counted from 0; a function of the step and the weights alone.
        recipe: Schedule and device.
        report: Called after each step.
        state: File that keeps the state every few minutes and at the end; where it exists, training goes on from it.

    Returns:
        Tokens predicted.

    Raises:
        Stopped: On Ctrl-C, after the step in progress, with the state saved if it has a file.
    """
    weights = [*model.parameters(), *(() if reader is None else reader.parameters())]
    optimiser = torch.optim.AdamW(_groups(model, weights, recipe), lr=recipe.learning_rate, betas=(0.9, 0.95))
    parts = {"model": model, "optimiser": optimiser} | ({} if reader is None else {"reader": reader})
    first, tokens = _restored(state, parts) if state is not None and state.exists() else (0, 0)
    devices = [load_device(recipe.device), load_device("ideal")]
    model.train()
    saved = time.monotonic()
    with _patient() as interrupted:
        for step in range(first, recipe.steps):
            rate, decay = schedule(step, recipe)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["share"]
            optimiser.param_groups[0]["weight_decay"] = decay
            put_on_design(model, devices[step % 2], token_period=recipe.token_period_s)
            losses = lesson(step)
            loss = losses.tokens.mean()
            if losses.summary is not None:
                loss = loss + recipe.summary_weight * losses.summary
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            tokens += losses.tokens.numel()
            summary = 0.0 if losses.summary is None else losses.summary.item()
            report(Progress(step + 1, recipe.steps, losses.tokens.mean().item(), summary, tokens))
            last = step + 1 == recipe.steps
            if state is not None and (last or interrupted() or time.monotonic() - saved > SAVE_EVERY_S):
                _save(state, parts, step + 1, tokens)
                saved = time.monotonic()
            if interrupted():
                raise Stopped
    model.eval()
    return tokens


def _groups(model: BitNetForCausalLM, weights: Sequence[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Return the weights that decay, first, and those that do not, each with its share of the learning rate."""
    own = [] if recipe.embedding_rate == 1.0 else [model.get_input_embeddings().weight]
    matrices = [p for p in weights if p.dim() > 1 and all(p is not each for each in own)]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay, "share": 1.0},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0, "share": 1.0},
    ]
    return [*groups, {"params": own, "weight_decay": 0.0, "share": recipe.embedding_rate}] if own else groups


def schedule(step: int, recipe: Recipe) -> tuple[float, float]:
    """Return learning rate and weight decay: warm-up and slow fall, then a drop, a fall to zero and no decay."""
    share = step / recipe.steps
    warm = min(1.0, (step + 1) / recipe.warm_up)
    if share < recipe.stage_two:
        return recipe.learning_rate * warm * (1 - 0.5 * share / recipe.stage_two), recipe.weight_decay
    left = (1 - share) / (1 - recipe.stage_two)
    return recipe.learning_rate * warm * recipe.stage_two_rate * left, 0.0


def new_reader(recipe: Recipe) -> nn.Linear:
    """Return the head that reads a latent semantic vector off a hidden state, all zero."""
    reader = nn.Linear(recipe.hidden_size, recipe.summary_size)
    nn.init.zeros_(reader.weight)
    nn.init.zeros_(reader.bias)
    return reader


def _save(path: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], step: int, tokens: int) -> None:
    """Write beside the target, flush to disk, then put it in the target's place."""
    content = {name: part.state_dict() for name, part in parts.items()} | {"step": step, "tokens": tokens}
    beside = path.with_suffix(".tmp")
    with beside.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _restored(path: Path, parts: dict[str, nn.Module | torch.optim.Optimizer]) -> tuple[int, int]:
    content = torch.load(path, weights_only=True)  # optimisers move what they load to where their weights are
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return content["step"], content["tokens"]


@contextmanager
def _patient() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C instead of raising it, once: a step that is cut short would leave half an update behind."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    former = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, former)  # the second one is not waited for

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, former)
