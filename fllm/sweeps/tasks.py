"""What goes to the workers of a sweep and what comes back; light, so that the process that waits needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fllm.config import RunConfig
from fllm.sweeps.table import FAILED


@dataclass(frozen=True)
class Task:
    """Some chips of one point and seed, for one worker.

    Attributes:
        point: Number of the point.
        seed: Seed of the run.
        dies: Chips, by their number among the run's evaluation dies.
        config: Configuration of the point.
        adapter: Folder of the trained adapter.
        train: Folder of the run to train, or to go on with, before; None where the adapter is trained already.
        model_sha256: Digest of the base model that the adapter was trained on; None where it is trained here.
    """

    point: int
    seed: int
    dies: tuple[int, ...]
    config: RunConfig
    adapter: Path
    train: Path | None = None
    model_sha256: str | None = None


@dataclass(frozen=True)
class Done:
    """What came of a task: one row per die, that it failed where it did; and what had no effect."""

    task: Task
    rows: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def failed(task: Task, reason: str) -> Done:
    """Return the rows of a task that failed; paths in the reason lose their folders."""
    shown = re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,']+)*[/\\](?=[^\s/\\:;,']+)", "", reason)
    row = {"point": task.point, "seed": task.seed, "status": FAILED, "reason": shown}
    return Done(task, [row | {"die": die} for die in task.dies])
