"""A run that was recorded, told to a tracker again; imports neither torch nor transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fllm.observer import Observer


def example() -> dict[str, Any]:
    file = Path(__file__).parents[1] / "report" / "example_result.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def follow(tracker: Observer, record: Mapping[str, Any], folder: Path, rounds: int, status: str) -> None:
    """Tell a tracker about a run as fllm.runs does, up to so many rounds."""
    folder.mkdir(exist_ok=True)
    tracker.run_started(record, folder)
    for row in record["rounds"][: rounds + 1]:
        tracker.round_done(row, len(record["rounds"]) - 1)
    tracker.run_ended({**record, "status": status})
