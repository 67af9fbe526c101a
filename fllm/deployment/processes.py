"""Flower's programs as sub-processes: where they are, what they see, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType

import psutil

from device_models import InputError
from fllm.deployment.settings import LOOPBACK

STOP_SECONDS = 10.0
"""How long a program that was asked to stop may take."""
LEFT_SECONDS = 2.0
"""How long what it had started may take after it."""


def program(name: str) -> str:
    """Return the path of a program of the environment that this Python runs in; raises InputError."""
    file = name + (".exe" if os.name == "nt" else "")
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / file).is_file():
            return str(folder / file)
    raise InputError("is not installed", where=name, remedy="install fllm again; it comes with its dependency flwr")


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's programs: telemetry, update checks and installations are off.

    Args:
        home: Flower's own folder.
    """
    import fllm  # noqa: F401 - its import switches telemetry and look-ups off, unless the user set them

    folders = [str(Path(program("flwr")).parent), os.environ.get("PATH", "")]  # Flower looks for its programs there
    return os.environ | {
        "FLWR_HOME": str(home.resolve()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join(filter(None, folders)),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
    }


def start(
    command: Sequence[str], surroundings: Mapping[str, str], *, log: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs.

    Args:
        command: Name and arguments.
        surroundings: Its environment.
        log: File for what it prints; None leaves that on the terminal.
    """
    with contextlib.ExitStack() as stack:
        out = None if log is None else stack.enter_context(log.open("ab"))
        return subprocess.Popen(
            [program(command[0]), *command[1:]], env=dict(surroundings), stdin=subprocess.DEVNULL, stdout=out,
            stderr=None if out is None else subprocess.STDOUT,
        )  # fmt: skip


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a program to stop, end it if it does not, and then end what it has left behind.

    Flower's programs start each other, and its simulation finishes a run whose SuperLink is gone.
    """
    try:
        offspring = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        offspring = []
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, alive = psutil.wait_procs(offspring, timeout=LEFT_SECONDS)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def serve(
    process: subprocess.Popen[bytes],
    *,
    beside: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    when: Callable[[], bool] = lambda: True,
) -> int:
    """Wait for a program that runs until it is stopped, and hand on the request to stop.

    Args:
        process: The program.
        beside: Entered while the program runs, and left before it is stopped.
        when: Says whether the program is so far that this may be entered.

    Returns:
        0 if it was asked to stop, else the code that it ended with, or 1.
    """
    with stoppable() as asked:
        try:
            with contextlib.ExitStack() as stack:
                is_open = False
                while process.poll() is None and not asked:
                    if not is_open and when():
                        stack.enter_context(beside())
                        is_open = True
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.2)  # in pieces, as Windows tells of Ctrl-C only between waits
        finally:
            stop(process)
    return 0 if asked else process.returncode or 1


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """Collect the signals that ask this process to stop, instead of dying of them."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def free_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_taken(port: int, host: str = LOOPBACK) -> bool:
    """Return whether a port cannot be opened."""
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just closed may be opened again
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
