"""Processes do each task once, whatever dies; nothing outlives the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fllm.sweeps.engines
from device_models import InputError
from fllm.config import RunConfig
from fllm.processes import WorkerProcess
from fllm.runs import RunResult
from fllm.sweeps.bench import Worker
from fllm.sweeps.engines import ENGINES, local, on_ray
from fllm.sweeps.plan import with_settings
from fllm.sweeps.tasks import Done, Task
from tests.sweeps import light
from tests.sweeps.light import log, runs, tasks, wait_for
from tests.sweeps.small import SMALLEST, whole_samples

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the processes of ``local`` do light work; the process numbers that were started come here."""
    pids: list[int] = []
    first = WorkerProcess.__init__

    def init(self: Any, make_worker: Any) -> None:
        first(self, make_worker)
        pids.append(self._process.pid)

    monkeypatch.setattr(fllm.sweeps.engines, "quiet_worker", light.make_worker)
    monkeypatch.setattr(WorkerProcess, "__init__", init)
    return pids


def found(done: Iterator[Done]) -> dict[int, Any]:
    """Return what came of each point; each comes once."""
    everything = list(done)
    assert len({one.task.point for one in everything}) == len(everything)
    return {one.task.point: one.rows[0].get("value", one.rows[0].get("reason")) for one in everything}


RIGHT = {point: point**2 / 7 for point in range(6)}


@pytest.mark.parametrize("workers", [1, 3])
def test_results_do_not_depend_on_the_number_of_workers(workers: int, started: list[int], tmp_path: Path) -> None:
    done = list(local(tasks(tmp_path, 6), workers))
    assert {one.task.point: one.rows[0]["value"] for one in done} == RIGHT
    assert {one.task.point: one.warnings for one in done} == {point: [f"warning {point}"] for point in range(6)}
    assert sorted(point for point, _ in log(tmp_path)) == list(range(6))
    assert len(started) == min(workers, 6)
    assert not any(map(runs, started))


def test_nothing_to_do_starts_nothing(started: list[int]) -> None:
    assert list(local([], 3)) == []
    assert started == []


def test_task_whose_process_was_killed_is_done_again(started: list[int], tmp_path: Path) -> None:
    (tmp_path / "kill-once-2").touch()
    assert found(local(tasks(tmp_path, 6), 2)) == RIGHT
    assert sorted(point for point, _ in log(tmp_path)) == [0, 1, 2, 2, 3, 4, 5]
    assert len(started) == 3


def test_task_that_kills_twice_is_recorded_and_the_others_go_on(started: list[int], tmp_path: Path) -> None:
    """With ``concurrent.futures`` the pool would break, with ``multiprocessing.Pool`` it would wait for ever."""
    for point in (0, 3):
        (tmp_path / f"kill-{point}").touch()
    done = list(local(tasks(tmp_path, 6), 2))
    failures = {one.task.point: one.rows for one in done if one.rows[0].get("status") == "failed"}
    assert {one.task.point: one.rows[0]["value"] for one in done if one.task.point not in failures} == {
        point: value for point, value in RIGHT.items() if point not in (0, 3)
    }
    assert set(failures) == {0, 3}
    for point, (row,) in failures.items():
        assert (row["point"], row["seed"], row["die"]) == (point, 0, 0)
        assert row["reason"] == "its process died twice (exit code -9); with too little memory, fewer --workers help"
    assert sorted(point for point, _ in log(tmp_path)) == [0, 0, 1, 2, 3, 3, 4, 5]
    assert not any(map(runs, started))


def test_all_tasks_may_kill(started: list[int], tmp_path: Path) -> None:
    for point in range(3):
        (tmp_path / f"kill-{point}").touch()
    reasons = found(local(tasks(tmp_path, 3), 2))
    assert all("died twice" in reason for reason in reasons.values())
    assert len(reasons) == 3


def test_process_that_dies_while_it_waits_is_replaced(started: list[int], tmp_path: Path) -> None:
    done = local(tasks(tmp_path, 3), 1)
    first = next(done)
    os.kill(started[0], signal.SIGKILL)
    assert wait_for(lambda: not runs(started[0]))
    rest = found(done)
    assert rest | {first.task.point: first.rows[0]["value"]} == {point: RIGHT[point] for point in range(3)}
    assert len(started) == 2


def test_leaving_the_iterator_ends_the_processes(started: list[int], tmp_path: Path) -> None:
    done = local(tasks(tmp_path, 6), 2)
    next(done)
    (tmp_path / "hold").touch()
    done.close()  # type: ignore[attr-defined]
    assert len(started) == 2
    assert not any(map(runs, started))


def test_processes_leave_ctrl_c_to_their_parent(started: list[int], tmp_path: Path) -> None:
    """The terminal sends it to all of them; the task that goes on is finished, or ended by the parent."""
    (tmp_path / "hold").touch()
    done = local(tasks(tmp_path, 2), 1)
    processes = fllm.sweeps.engines.wait

    def interrupt_once(pipes: Any) -> Any:
        if (tmp_path / "hold").exists():
            assert wait_for(lambda: len(log(tmp_path)) == 1)
            os.kill(started[0], signal.SIGINT)
            (tmp_path / "hold").unlink()
        return processes(pipes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fllm.sweeps.engines, "wait", interrupt_once)
        assert found(done) == {0: 0.0, 1: 1 / 7}
    assert len(started) == 1


def test_ctrl_c_while_a_process_starts_says_nothing(tmp_path: Path) -> None:
    """A process that is still importing must not answer the terminal's Ctrl-C with a traceback."""
    code = (
        "import os, signal, time\n"
        "from fllm.processes import WorkerProcess\n"
        "if __name__ == '__main__':\n"
        "    process = WorkerProcess(dict)\n"
        "    for _ in range(60):\n"
        "        os.kill(process._process.pid, signal.SIGINT)\n"
        "        time.sleep(0.005)\n"
        "    print(process._process.is_alive())\n"
        "    process.end()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    (tmp_path / "start.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, tmp_path / "start.py"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.stdout == "True\n"
    assert done.stderr.count("Traceback") == 1, "the parent itself hears it"
    assert done.returncode == -signal.SIGINT


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_processes_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    """However it ends: out of memory, by an administrator, with its terminal."""
    (tmp_path / "hold").touch()
    code = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # under nohup it is ignored, and inherited so
        "import fllm.sweeps.engines as engines\n"
        "from tests.sweeps import light\n"
        "if __name__ == '__main__':\n"
        "    engines.quiet_worker = light.make_worker\n"
        "    list(engines.local(light.tasks(Path(sys.argv[1]), 4), 2))\n"
    )
    (tmp_path / "parent.py").write_text(code, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path], cwd=ROOT,
                              env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        assert wait_for(lambda: len(log(tmp_path)) == 2)
        pids = [pid for _, pid in log(tmp_path)]
        assert all(map(runs, pids))
        parent.send_signal(how)
        assert parent.wait(30) == -how
        assert wait_for(lambda: not any(map(runs, pids)), 10), "a process outlived its parent"
    finally:
        parent.kill()
        for _, pid in log(tmp_path):
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


# Ray.


def test_missing_ray_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError) as error:
        list(on_ray(tasks(tmp_path, 1), 1))
    assert str(error.value) == (
        "--engine ray: Ray is not installed; pip install 'fllm[ray]', or --engine local"
    )  # fmt: skip


class PretendedRay:
    """A cluster that is there already, or none, and tasks that are done at once or whose process died."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, *, cluster: bool = False, connected: bool = False, kills: bool = False) -> None:
        self.cluster, self.connected, self.kills = cluster, connected, kills
        self.started: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.cancelled: list[Any] = []
        self.shut_down = False

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **options: Any) -> None:
        if self.cluster and "num_cpus" in options:
            raise ValueError("When connecting to an existing cluster, num_cpus and num_gpus must not be provided.")
        self.started.append(options)

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options = options
        return lambda function: type("Remote", (), {"remote": staticmethod(lambda task: (task.point, task))})

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Any) -> Done:
        if self.kills:
            raise self.exceptions.RayError("a message that may quote anything")
        return light.do(reference[1])

    def cancel(self, reference: Any, force: bool) -> None:
        self.cancelled.append(reference[0])

    def shutdown(self) -> None:
        self.shut_down = True


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PretendedRay]:
    def made(**options: bool) -> PretendedRay:
        ray = PretendedRay(**options)
        monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
        monkeypatch.setattr(Task, "__hash__", lambda task: task.point)
        return ray

    return made


@pytest.mark.parametrize(
    ("options", "cpus"), [({}, [3]), ({"cluster": True}, [None]), ({"connected": True}, [])]
)  # fmt: skip
def test_ray_cluster_is_joined_or_started(
    pretend: Callable[..., PretendedRay], options: dict[str, bool], cpus: list[int | None], tmp_path: Path
) -> None:
    """Never one that another process has started for itself, as ``address="auto"`` would: it may end at any time."""
    ray = pretend(**options)
    assert found(on_ray(tasks(tmp_path, 4), 3)) == {point: RIGHT[point] for point in range(4)}
    assert [started.get("num_cpus") for started in ray.started] == cpus
    assert not any("address" in started for started in ray.started)
    assert ray.shut_down == (not options.get("connected"))
    assert (ray.options["num_cpus"], ray.options["max_retries"]) == (1, 1)


def test_task_whose_process_died_on_ray_is_recorded(pretend: Callable[..., PretendedRay], tmp_path: Path) -> None:
    pretend(kills=True)
    reasons = found(on_ray(tasks(tmp_path, 2), 1))
    assert all("died twice" in reason and "quote" not in reason for reason in reasons.values())
    assert len(reasons) == 2


def test_leaving_ray_cancels_what_runs(pretend: Callable[..., PretendedRay], tmp_path: Path) -> None:
    ray = pretend()
    done = on_ray(tasks(tmp_path, 4), 1)
    next(done)
    done.close()  # type: ignore[attr-defined]
    assert (sorted(ray.cancelled), ray.shut_down) == ([1, 2, 3], True)


@pytest.fixture
def no_ray_left() -> Iterator[Callable[[], list[str]]]:
    """Return a function that lists this session's processes of Ray."""
    pytest.importorskip("ray")

    def left() -> list[str]:
        mine = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and runs(int(entry.name)):
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if (("ray" in command and "raylet" in command) or command.startswith("ray::")) and MARK in environment:
                    mine.append(f"{entry.name} {command[:80]}")
        return mine

    yield left


MARK = f"FLLM_TEST_OF_RAY={os.getpid()}".encode()


def test_ray_gives_the_rows_of_this_process(
    no_ray_left: Callable[[], list[str]], trained: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    whole_samples(monkeypatch)
    worker = Worker()
    monkeypatch.setenv(*MARK.decode().split("="))
    configs = [with_settings(RunConfig(**SMALLEST), {"device.readout.bits": bits}) for bits in (5, 3)]
    given = [Task(point, 0, (0, 1), config, trained.folder / "adapter") for point, config in enumerate(configs)]
    broken = Task(2, 0, (0,), configs[0], trained.folder / "absent")
    assert not ray.is_initialized()
    done = {one.task.point: one for one in ENGINES["ray"]([*given, broken], 1)}
    assert {point: one.rows for point, one in done.items() if point < 2} == {
        task.point: worker(task).rows for task in given
    }  # fmt: skip
    assert "absent: adapter cannot be read" in done[2].rows[0]["reason"]
    assert not ray.is_initialized()
    assert wait_for(lambda: no_ray_left() == [], 15), no_ray_left()
