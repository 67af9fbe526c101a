"""Runs that the user stops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fllm.config import RunConfig
from fllm.observer import Observer
from fllm.runs import Interrupted, run


class StopsAfter(Observer):
    """The user presses Ctrl-C when a round is shown."""

    def __init__(self, number: int) -> None:
        self.number = number

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        if row["round"] == self.number:
            raise KeyboardInterrupt


def interrupt(config: RunConfig, out: Path, observer: Observer) -> Path:
    """Start a run that is interrupted; return its folder."""
    with pytest.raises(Interrupted) as stopped:
        run(config, out=out, name="interrupted", observer=observer)
    return stopped.value.folder
