"""Processes that are killed at a chosen moment: a copy of this one does something and never comes back."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fllm.sweeps.table import Row, Table

PATIENCE = 60


def killed(action: Callable[[], object]) -> None:
    """Do something in a copy of this process, which has to kill itself on the way."""
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        try:
            action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"ended by itself: {status}"


def die() -> NoReturn:
    """End this process as the kernel does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


def die_after_rows(number: int, share: float) -> None:
    """Let this process die when so many rows are in the table, and this share of the bytes of the next."""
    append = Table.append
    written = 0

    def append_or_die(self: Table, rows: Sequence[Row]) -> None:
        nonlocal written
        for row in rows:
            if written == number:
                text = self._lines([row]).encode()
                with self.path.open("ab") as file:
                    file.write(text[: int(share * len(text))])
                die()
            append(self, [row])
            written += 1

    Table.append = append_or_die  # type: ignore[method-assign]


def die_before_replacing(name: str, times: int = 1) -> None:
    """Let this process die when a new version of a file is written, just before it takes its place."""
    replace = Path.replace
    left = times

    def replace_or_die(self: Path, target: Path) -> Path:
        nonlocal left
        if Path(target).name == name:
            left -= 1
            if not left:
                die()
        return replace(self, target)

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]
