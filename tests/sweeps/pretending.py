"""A worker that invents its rows, in no time: what a sweep does around its evaluations can be tested without any."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fllm.sweeps.table import FACTS, METRICS, OK
from fllm.sweeps.tasks import Done, Task, failed

FAILS = 7
"""``readout.bits`` of points that fail, until ``mend`` is called."""


EXACT = {"latency_per_token_s": 1e-6, "test_cases": 8, "cases_sha256": "0123456789ab"}


class Pretender:
    """Does tasks: numbers that follow from what decides a row, and a list of what was asked for."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.mended = False
        self.warnings: list[str] = []

    def __call__(self, task: Task) -> Done:
        self.tasks.append(task)
        if task.config.device.get("readout.bits") == FAILS and not self.mended:
            return failed(task, f"{FAILS} bits are not to be had")
        if task.train is not None:
            (task.train / "adapter").mkdir(parents=True, exist_ok=True)
        return Done(task, [self._row(task, die) for die in task.dies], self.warnings)

    def _row(self, task: Task, die: int) -> dict[str, Any]:
        config = task.config.model_dump(mode="json")
        text = json.dumps([config, die], sort_keys=True)
        share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
        numbers = {name: share + index for index, name in enumerate((*METRICS, *FACTS))}
        place = {"point": task.point, "seed": task.seed, "die": die, "status": OK}
        return place | numbers | {"correct": "5a", "correct_ideal": "ff", "token_period_s": 1e-5, **EXACT}

    @property
    def asked(self) -> list[tuple[int, int, tuple[int, ...]]]:
        return [(task.point, task.seed, task.dies) for task in self.tasks]


def files(folder: Path) -> set[str]:
    """Return everything in a folder, by its path below."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
