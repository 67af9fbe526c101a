"""What all commands share: exit codes, the one line of an error, and quiet libraries."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress

from device_models import InputError

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


def print_error(line: str) -> None:
    """Print one line to the error stream as it is."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)


def folder_name(name: str | None) -> None:
    """Check the name of a folder to be made; raises InputError."""
    if name is not None and (not re.fullmatch(r"[\w.+-]+", name) or not name.strip(".")):
        raise InputError("not a folder name", where="--name", expected="letters, digits and . _ + -", received=name)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep other libraries' log lines and warnings off the terminal; ours are exceptions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="The PEFT config's")
        warnings.filterwarnings("ignore", message=".*no effect of")  # the summary says it
        yield


class ProgressTerminal:
    """A terminal with a progress bar that goes away at the end; its stages stand before the bar."""

    def __init__(self, console: Console, progress: Progress, **fields: Any) -> None:
        self._console, self._progress = console, progress
        self._task = progress.add_task("starting", total=None, **fields)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the progress bar away."""
        self._progress.stop()

    def stage(self, what: str) -> None:
        """Show what goes on."""
        self._progress.update(self._task, description=what)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
