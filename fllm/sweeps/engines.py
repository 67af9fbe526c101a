"""Where the tasks of a sweep run: processes of this machine, or a Ray cluster.

Both give finished tasks in the order in which they finish. A worker that dies takes its task with it: it is tried
once more, then recorded as failed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from multiprocessing.connection import wait
from typing import Any

from device_models import InputError
from fllm.processes import WorkerProcess
from fllm.sweeps.tasks import Done, Task, failed

Engine = Callable[[Sequence[Task], int], Iterator[Done]]
_TRIES = 2


def local(tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    """Run tasks in processes of this machine, one thread each; leaving the iterator ends them."""
    waiting = deque((task, 1) for task in tasks)
    idle = [WorkerProcess(quiet_worker) for _ in range(min(workers, len(tasks)))]
    busy: dict[WorkerProcess, tuple[Task, int]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                process = idle.pop()
                busy[process] = waiting.popleft()
                process.send(busy[process][0])
            ready = wait([process.pipe for process in busy])
            for process in [process for process in busy if process.pipe in ready]:
                task, tries = busy.pop(process)
                done = process.receive()
                idle.append(process if done is not None else WorkerProcess(quiet_worker))
                if done is not None:
                    yield done
                    continue
                code = process.end()
                if tries < _TRIES:
                    waiting.appendleft((task, tries + 1))
                else:
                    yield _died(task, f"exit code {code}")
    finally:
        for process in (*idle, *busy):
            process.end()


@cache
def quiet_worker() -> Callable[[Task], Done]:
    """Return this process's worker, whose libraries keep their log lines and warnings to themselves."""
    import warnings

    warnings.simplefilter("ignore")
    from fllm.sweeps.bench import Worker

    logging.getLogger("flwr").setLevel(logging.ERROR)
    return Worker()


def _died(task: Task, how: str) -> Done:
    return failed(task, f"its process died twice ({how}); with too little memory, fewer --workers help")


def on_ray(tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    """Run tasks on a Ray cluster: the one that this machine belongs to, else one started here for so many workers.

    Each task asks for one CPU. Files named in the configuration must be readable on every node.

    Raises:
        InputError: If Ray is not installed.
    """
    ray = _ray()
    started = _join_or_start(ray, workers)
    try:
        yield from _gathered(ray, tasks)
    finally:
        if started:
            ray.shutdown()


def check_engine(name: str) -> None:
    """Refuse an engine whose library is not there, before anything is computed; raises InputError."""
    if name == "ray":
        _ray()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "Ray is not installed", where="--engine ray", remedy="pip install 'fllm[ray]', or --engine local"
        ) from None
    return ray


def _join_or_start(ray: Any, workers: int) -> bool:
    """Connect to a cluster; return whether it was ours to start."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:  # not address="auto": that joins whatever runs here, also what another sweep has started for itself
        ray.init(num_cpus=workers, include_dashboard=False, **quiet)
    except ValueError:  # a cluster, by RAY_ADDRESS or `ray start`, has CPUs of its own
        ray.init(**quiet)
    return True


def _gathered(ray: Any, tasks: Sequence[Task]) -> Iterator[Done]:
    remote = ray.remote(num_cpus=1, max_retries=_TRIES - 1, max_calls=0)(_do)
    running = {remote.remote(task): task for task in tasks}
    try:
        while running:
            finished, _ = ray.wait(list(running), num_returns=1)
            task = running.pop(finished[0])
            try:
                yield ray.get(finished[0])
            except ray.exceptions.RayError as error:
                yield _died(task, type(error).__name__)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _do(task: Task) -> Done:
    return quiet_worker()(task)


ENGINES: dict[str, Engine] = {"local": local, "ray": on_ray}
