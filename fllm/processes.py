"""Worker processes of this machine, one task at a time each. Light: the process that waits needs no torch.

Not ``concurrent.futures``: there one process that is killed, as for want of memory, breaks all the others, and
``multiprocessing.Pool`` waits for its task for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


class WorkerProcess:
    """A worker in a process of its own, started afresh and not forked; it ends with this one.

    Args:
        make_worker: Is called there once, before the first task, and returns what does tasks; both are pickled.
    """

    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make_worker), daemon=True)
        with _deaf_to_ctrl_c():
            self._process.start()
        theirs.close()  # so that the pipe ends when the worker does

    def send(self, task: object) -> None:
        """Give it a task."""
        with contextlib.suppress(OSError):  # it died while it was idle: receive() finds out
            self.pipe.send(task)

    def lives(self) -> bool:
        """Say whether its process is there."""
        return self._process.is_alive()

    def receive(self) -> Any | None:
        """Wait for what came of a task; None if the process died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> int | None:
        """See it end, if need be by force, and return its exit code."""
        self._process.kill()
        self._process.join()
        self.pipe.close()
        return self._process.exitcode


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Hold back Ctrl-C; a process that starts meanwhile inherits this, and prints no traceback while it imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # starting it would lift what is held back
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _work(pipe: Connection, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """Do what comes through the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to every process; ours to end is the parent's
    _end_with_parent()
    worker = None
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        worker = worker or make_worker()
        pipe.send(worker(task))


def _end_with_parent() -> None:
    """End this process when its parent does, however that ended: no orphan may go on writing."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
