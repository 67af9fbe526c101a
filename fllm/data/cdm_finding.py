"""One thing that ``fllm data check`` found, and how its figures by class are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fllm.data.cdm_cases import DIAGNOSES, Case
from fllm.data.cdm_counts import share_text

Level = Literal["ok", "note", "warning", "error"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
"""From what is as it should be to what would make a number wrong."""


@dataclass(frozen=True)
class Finding:
    """One line about one file: no text, identifier or content of it.

    Attributes:
        file: Name of the file, or ``cohort`` for what all of them give together.
        level: One of :data:`LEVELS`; an ``error`` would make a number wrong.
        what: What was found.
        meaning: What follows from it for a result.
    """

    file: str
    level: Level
    what: str
    meaning: str


def of_class(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return the cases of each class, in the order of the classes; a class may have none."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.diagnosis].append(case)
    return {name: groups[name] for name in DIAGNOSES}


def shares_by_class(groups: Mapping[str, Sequence[Case]], holds: Callable[[Case], bool], *, real: bool) -> str:
    """Return the share of each class for which something holds, such as ``appendicitis 40 %, ...``."""
    return by_class({name: share_text(sum(map(holds, cases)), len(cases), real=real) for name, cases in groups.items()})


def by_class(figures: Mapping[str, str]) -> str:
    """Join the figures of the classes, once when all are alike."""
    alike = set(figures.values())
    return f"{alike.pop()} in every class" if len(alike) == 1 else ", ".join(map(" ".join, figures.items()))
