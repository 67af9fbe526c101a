"""What all commands share: exit codes, the one line of an error, and quiet libraries."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator

from rich.console import Console

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
