"""What a sweep will take, tried out on this machine: a few evaluations, and for training a few steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from device_models import InputError
from fllm.memory import peak_memory_bytes
from fllm.model.adapters import get_adapter
from fllm.observer import Observer
from fllm.preparation import Prepared, prepare
from fllm.sweeps.bench import Held
from fllm.sweeps.plan import Plan, Point
from fllm.sweeps.sweep import DIES_PER_TASK
from fllm.sweeps.tasks import Task

TRIED_POINTS = 3
TRIED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """Time [s] and memory [byte] of a sweep.

    Attributes:
        rows: Evaluations of a die.
        evaluation_s: One of them.
        start_s: Of a worker, before its first.
        training_s: One federated run; 0 where none is trained.
        trainings: How many of them.
        one_after_another: Whether they are trained before the workers start.
        workers: Processes.
        memory_bytes: Of one worker; None where the system does not tell.
    """

    rows: int
    evaluation_s: float
    start_s: float
    training_s: float
    trainings: int
    one_after_another: bool
    workers: int
    memory_bytes: int | None

    @property
    def seconds(self) -> float:
        """Time of the whole sweep [s]."""
        training = self.trainings * self.training_s
        shared = self.rows * self.evaluation_s + (0.0 if self.one_after_another else training)
        return (training if self.one_after_another else 0.0) + self.start_s + shared / self.workers

    def lines(self) -> list[str]:
        """Say it."""
        lines = [f"time      about {_duration(self.seconds)} with {self.workers} workers"]
        lines.append(f"          {self.rows} evaluations of {self.evaluation_s:.1f} s")
        if self.trainings:
            when = "before, one after another" if self.one_after_another else "on the workers"
            lines.append(f"          {self.trainings} trainings of about {_duration(self.training_s)}, {when}")
        if self.memory_bytes is not None:
            lines.append(f"memory    about {self.memory_bytes * self.workers / 1e9:.1f} GB, "
                         f"{self.memory_bytes / 1e9:.1f} GB per worker")  # fmt: skip
        return lines


def estimate(plan: Plan, workers: int, *, adapters: int) -> Estimate:
    """Try some points and steps, and multiply; points whose devices cost more than those tried make it longer.

    Args:
        plan: The sweep.
        workers: Processes.
        adapters: Adapters that are given; without any, they are trained.

    Raises:
        InputError: If the base run cannot be prepared, or no point that was tried is a valid one.
    """
    began = time.perf_counter()
    distinct = [point for point in plan.points if point.same_as is None]
    prepared = prepare(plan.config.model_copy(update={"threads": 1, "dies": 1}), Observer())
    start = time.perf_counter() - began
    evaluation = _evaluation(plan, prepared, distinct)
    seeds = len(plan.seeds)
    trainings = seeds * len(distinct) if plan.mode == "train" else seeds - adapters
    rows = len(distinct) * seeds * plan.dies
    training = _training(prepared, evaluation) if trainings else 0.0
    tasks = len(distinct) * seeds * (1 if plan.mode == "train" else -(-plan.dies // DIES_PER_TASK))
    return Estimate(
        rows, evaluation, start, training, trainings, plan.mode == "evaluate", min(workers, tasks), peak_memory_bytes()
    )


def _evaluation(plan: Plan, prepared: Prepared, points: list[Point]) -> float:
    """Time one evaluation of a die, the mean over points at the ends and in the middle of the design."""
    chosen = sorted({0, len(points) // 2, len(points) - 1})[:TRIED_POINTS]
    held = Held(prepared.bench, prepared.held_out, "")
    seconds, problem = [], None
    for index in chosen:
        try:
            config = plan.config_of(points[index], plan.seeds[0])
            task = Task(points[index].number, plan.seeds[0], (0,), config, Path())
            held.rows(task)  # draws what a die is made of
            began = time.perf_counter()
            held.rows(task)
            seconds.append(time.perf_counter() - began)
        except InputError as error:
            problem = error
    if not seconds:
        raise problem or InputError("zero points", where="--vary")
    return sum(seconds) / len(seconds)


def _training(prepared: Prepared, evaluation_s: float) -> float:
    """Time a few steps of one client, and multiply; each round is evaluated on one die and the ideal device."""
    config, hospital = prepared.config, prepared.hospitals[0]
    hospital.training = replace(hospital.training, steps=TRIED_STEPS)
    began = time.perf_counter()
    hospital.train(get_adapter(prepared.model), 1)
    step = (time.perf_counter() - began) / TRIED_STEPS
    return config.num_rounds * (config.num_clients * config.local_steps * step + 2 * evaluation_s)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
