"""What a run tells while it goes on. Light: the command line imports it before torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Observer:
    """What a run tells while it goes on; the terminal overrides it, tests leave it silent."""

    def stage(self, what: str) -> None:
        """Take note of a stage that begins."""

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        """Take note of a finished round; round 0 is the evaluation before fine-tuning."""
