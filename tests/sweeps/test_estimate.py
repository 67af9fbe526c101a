"""What a dry run multiplies: evaluations, trainings, workers; and which points it tries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fllm.sweeps.estimate
from device_models import InputError
from fllm.sweeps.estimate import TRIED_POINTS, Estimate, estimate
from fllm.sweeps.tasks import Task
from tests.sweeps.small import make

TRIED = {
    "rows": 12, "evaluation_s": 3.0, "start_s": 5.0, "training_s": 100.0, "trainings": 2, "memory_bytes": 2_000_000_000,
}  # fmt: skip


def test_adapters_are_trained_one_after_another_before_the_workers_start() -> None:
    found = Estimate(**TRIED, one_after_another=True, workers=4)  # type: ignore[arg-type]
    assert found.seconds == 2 * 100 + 5 + 12 * 3 / 4


def test_runs_of_the_points_are_shared_among_the_workers() -> None:
    found = Estimate(**TRIED, one_after_another=False, workers=4)  # type: ignore[arg-type]
    assert found.seconds == 5 + (12 * 3 + 2 * 100) / 4


def test_lines_say_time_and_memory() -> None:
    found = Estimate(**TRIED, one_after_another=True, workers=4)  # type: ignore[arg-type]
    assert found.lines() == [
        "time      about 4 min with 4 workers",
        "          12 evaluations of 3.0 s",
        "          2 trainings of about 2 min, before, one after another",
        "memory    about 8.0 GB, 2.0 GB per worker",
    ]


def test_what_is_not_known_or_not_done_is_not_said() -> None:
    found = Estimate(12, 3.0, 5.0, 0.0, 0, True, 1, None)
    assert len(found.lines()) == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "7 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert f"about {text} with" in Estimate(1, 0.0, seconds, 0.0, 0, True, 1, None).lines()[0]


class Tries:
    """Stands in for the model: takes no time, and refuses some points."""

    points: list[int]
    refused: set[int]

    def __init__(self, *_: object) -> None:
        self.points.clear()

    def rows(self, task: Task) -> None:
        self.points.append(task.point)
        assert task.dies == (0,)
        assert task.train is None
        if task.point in self.refused:
            raise InputError(f"point {task.point} is no device")


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> type[Tries]:
    monkeypatch.setattr(Tries, "points", [], raising=False)
    monkeypatch.setattr(Tries, "refused", set(), raising=False)
    monkeypatch.setattr(fllm.sweeps.estimate, "Held", Tries)
    monkeypatch.setattr(
        fllm.sweeps.estimate, "prepare", lambda config, observer: SimpleNamespace(bench=None, held_out=None)
    )
    monkeypatch.setattr(fllm.sweeps.estimate, "_training", lambda prepared, evaluation_s: 100.0)
    return Tries


@pytest.mark.parametrize(
    ("options", "adapters", "rows", "trainings", "before"),
    [
        ({}, 1, 7, 0, True),
        ({}, 0, 7, 1, True),
        ({"dies": 3, "seeds": [0, 1]}, 2, 42, 0, True),
        ({"dies": 3, "seeds": [0, 1]}, 0, 42, 2, True),
        ({"mode": "train", "dies": 3, "seeds": [0, 1]}, 0, 42, 14, False),
    ],
)
def test_equal_points_count_once_and_the_added_one_counts(
    tries: type[Tries], options: dict[str, Any], adapters: int, rows: int, trainings: int, before: bool
) -> None:
    """Six values, one of them twice, and the base device."""
    plan = make("retention.tau=1 ms,2 ms,3 ms,4 ms,6 ms,7 ms,1000 us", **options)
    found = estimate(plan, 4, adapters=adapters)
    assert (found.rows, found.trainings, found.one_after_another) == (rows, trainings, before)
    assert found.training_s == (100.0 if trainings else 0.0)
    assert found.workers == 4


def test_no_more_workers_than_evaluations(tries: type[Tries]) -> None:
    assert estimate(make("readout.bits=3,5"), 64, adapters=1).workers == 2


def test_points_at_the_ends_and_in_the_middle_are_tried(tries: type[Tries]) -> None:
    estimate(make("readout.bits=3:8"), 1, adapters=1)
    assert sorted(set(tries.points)) == [0, 3, 5]
    assert len(set(tries.points)) == TRIED_POINTS
    estimate(make("readout.bits=5"), 1, adapters=1)
    assert set(tries.points) == {0}


def test_point_that_is_no_device_is_passed_over(tries: type[Tries]) -> None:
    tries.refused = {0, 5}
    assert estimate(make("readout.bits=3:8"), 1, adapters=1).rows == 6


def test_sweep_of_which_no_tried_point_is_a_device_is_refused(tries: type[Tries]) -> None:
    tries.refused = {0, 3, 5}
    with pytest.raises(InputError, match="point 5 is no device"):
        estimate(make("readout.bits=3:8"), 1, adapters=1)


def test_nothing_is_written(tries: type[Tries], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    estimate(make("readout.bits=3:8"), 1, adapters=0)
    assert list(tmp_path.iterdir()) == []
