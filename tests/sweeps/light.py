"""Workers without torch: processes that start in a moment, and die when they are told to.

A task names its folder as adapter; files in it say what happens: ``kill-<point>`` kills the process that takes the task
(``kill-once-<point>`` the first time alone), ``hold`` keeps every process at its task until the file is gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fllm.config import RunConfig
from fllm.sweeps.tasks import Done, Task


def tasks(folder: Path, number: int) -> list[Task]:
    return [Task(point, 0, (0,), RunConfig(), folder) for point in range(number)]


def make_worker() -> Callable[[Task], Done]:
    """Stand in for ``engines.quiet_worker`` in a new process."""
    return do


def do(task: Task) -> Done:
    folder = task.adapter
    with (folder / "log").open("a", encoding="utf-8") as file:
        file.write(f"{task.point} {os.getpid()}\n")
    once = folder / f"kill-once-{task.point}"
    if once.exists():
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (folder / f"kill-{task.point}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    while (folder / "hold").exists():
        time.sleep(0.01)
    return Done(task, [{"point": task.point, "value": task.point**2 / 7}], [f"warning {task.point}"])


def log(folder: Path) -> list[tuple[int, int]]:
    """Return (point, process) of every attempt so far."""
    if not (folder / "log").exists():
        return []
    lines = (folder / "log").read_text(encoding="utf-8").splitlines()
    return [(int(point), int(pid)) for point, pid in map(str.split, lines)]


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def wait_for(what: object, seconds: float = 30.0) -> bool:
    """Wait until a condition holds; say whether it did in time."""
    assert callable(what)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return bool(what())
