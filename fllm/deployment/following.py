"""Watch a run from the server's machine: its rounds from its record, its end from the SuperLink."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from device_models import InputError
from fllm.deployment.control import Control, FlowerRun
from fllm.observer import Observer
from fllm.results import read_result

LOOK_SECONDS, ASK_SECONDS = 0.5, 5.0
"""Between two looks at the record, and between two questions to the SuperLink, each of which starts a program."""


def follow(control: Control, number: str, record_file: Path, observer: Observer) -> FlowerRun:
    """Wait for the end of a run, and tell of each round.

    Args:
        control: The SuperLink.
        number: Flower's number of the run.
        record_file: Its ``result.json``, which may not be there yet.
        observer: Is told about rounds that were not there before.

    Returns:
        The run as it ended.
    """
    shown = len(rows_of(record_file)[0])
    ask_at = 0.0
    while True:
        run = None
        if time.monotonic() >= ask_at:
            run = control.runs(number)[0]
            observer.stage(f"{run.status}, {_kilobytes(run.received_bytes)} from sites")
            ask_at = time.monotonic() + ASK_SECONDS
        rows, total = rows_of(record_file)
        for row in rows[shown:]:
            observer.round_done(row, total)
        shown = max(shown, len(rows))
        if run is not None and run.is_over:
            return run
        time.sleep(LOOK_SECONDS)


def rows_of(record_file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rounds of a record and how many it will have; none where there is no record yet."""
    try:
        record = read_result(record_file)
    except InputError:
        return [], 0
    return list(record["rounds"]), int(record["config"]["num_rounds"])


def _kilobytes(number: int) -> str:
    return f"{number / 1e3:.0f} kB"
