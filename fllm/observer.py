"""What a run tells while it goes on. Light: the command line imports it before torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Observer:
    """What a run tells while it goes on; the terminal overrides it, tests leave it silent."""

    def stage(self, what: str) -> None:
        """Take note of a stage that begins."""

    def run_started(self, record: Mapping[str, Any], folder: Path) -> None:
        """Take note of a run whose folder is there; rounds in its record were finished before it was interrupted."""

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        """Take note of a finished round; round 0 is the evaluation before fine-tuning."""

    def run_ended(self, record: Mapping[str, Any]) -> None:
        """Take note of the end: status ``completed``, ``interrupted``, or ``running`` where something broke."""


class SweepObserver(Observer):
    """What a sweep tells while it goes on; the terminal overrides it."""

    def rows_expected(self, total: int, done: int) -> None:
        """Take note of how many evaluations there are, and how many an earlier session finished."""

    def rows_done(self, number: int, reason: str | None) -> None:
        """Take note of finished evaluations, or of failed ones and why."""


class Observers(Observer):
    """Several observers as one, each told in turn."""

    def __init__(self, *members: Observer) -> None:
        self._members = members

    def stage(self, what: str) -> None:
        """Tell each of a stage that begins."""
        for member in self._members:
            member.stage(what)

    def run_started(self, record: Mapping[str, Any], folder: Path) -> None:
        """Tell each that a run began."""
        for member in self._members:
            member.run_started(record, folder)

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        """Tell each of a finished round."""
        for member in self._members:
            member.round_done(row, total)

    def run_ended(self, record: Mapping[str, Any]) -> None:
        """Tell each that the run is over."""
        for member in self._members:
            member.run_ended(record)
