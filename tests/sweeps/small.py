"""Small things that the tests of sweeps share: settings, plans, an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fllm.config import RunConfig
from fllm.model.base import SAMPLE_TOKENS, load_model
from fllm.sweeps.design import parse_vary
from fllm.sweeps.engines import Engine
from fllm.sweeps.plan import Plan, make_plan
from fllm.sweeps.tasks import Done, Task

SMALLEST: dict[str, Any] = {
    "num_cases": 40, "num_clients": 2, "num_rounds": 1, "local_steps": 1, "batch_size": 4, "threads": 1,
    "max_tokens": 32, "lora_baselines": [],
}  # fmt: skip
"""Settings of a run that is trained in seconds; 8 test cases of 32 tokens."""


def make(*varied: str, config: RunConfig | None = None, **options: Any) -> Plan:
    """Make a plan of ``--vary`` texts: a grid, one die, one seed, unless told otherwise."""
    usual: dict[str, Any] = {"design": "grid", "points": None, "mode": "evaluate", "dies": 1, "seeds": [0]}
    return make_plan(config or RunConfig(**SMALLEST), [parse_vary(text) for text in varied], **usual | options)


def settings(plan: Plan) -> list[Mapping[str, object]]:
    """Return the settings of the points that the design itself has."""
    return [point.settings for point in plan.points if not point.added]


def in_this_process(worker: Callable[[Task], Done]) -> Engine:
    """Return an engine that starts no process."""

    def run(tasks: Sequence[Task], workers: int) -> Iterator[Done]:
        return map(worker, tasks)

    return run


@contextmanager
def without_reports() -> Iterator[None]:
    """Draw no figures and pages; ``report.html`` holds the status alone."""

    def render(result: Mapping[str, Any], folder: Path) -> list[Path]:
        page = folder / "report.html"
        page.write_text(result["status"], encoding="utf-8")
        return [page]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", render)
        patch.setattr("fllm.sweeps.sweep.render", render)
        yield


@contextmanager
def short_samples() -> Iterator[None]:
    """Set scalers and ranges from two short texts: what they come to does not matter, only that it is the same."""

    def load(folder: Any, device: Any, period: Any, sample: list[str], adaptation: Any) -> Any:
        return load_model(folder, device, period, sample[:2], adaptation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.model.base.SAMPLE_TOKENS", 12)
        patch.setattr("fllm.preparation.load_model", load)
        yield


def whole_samples(patch: pytest.MonkeyPatch) -> None:
    """Set them as a process does that knows nothing of tests."""
    patch.setattr("fllm.model.base.SAMPLE_TOKENS", SAMPLE_TOKENS)
    patch.setattr("fllm.preparation.load_model", load_model)
