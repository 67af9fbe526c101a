"""What goes to the workers of a sweep and what comes back; light, so that the process that waits needs no torch."""

from __future__ import annotations

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
    """

    point: int
    seed: int
    dies: tuple[int, ...]
    config: RunConfig
    adapter: Path
    train: Path | None = None


@dataclass(frozen=True)
class Done:
    """What came of a task: one row per die, or one that says why it failed; and what had no effect."""

    task: Task
    rows: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def failed(task: Task, reason: str) -> Done:
    """Return the row of a task that failed."""
    return Done(task, [{"point": task.point, "seed": task.seed, "die": None, "status": FAILED, "reason": reason}])
