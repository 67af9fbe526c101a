"""Texts with their labels, whatever they were read from: what splits, clients, baselines and prompts work on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TaskKind = Literal["diagnosis", "classification", "language"]


@dataclass(frozen=True)
class Task:
    """What is asked of a model about a text.

    Attributes:
        kind: ``diagnosis`` of clinical cases, ``classification`` of any labelled text, or ``language`` modelling, where
            the text itself is what the model must predict.
        classes: Names of the classes in the order of every table; empty for language modelling.
        cue: What stands between a text and the name of its class, such as ``diagnosis:``; empty for language modelling.
    """

    kind: TaskKind
    classes: tuple[str, ...] = ()
    cue: str = ""


@dataclass(frozen=True)
class Example:
    """One text with its label; its ``repr`` shows neither text nor identifier.

    Attributes:
        key: Unique number, by which examples are sorted: an admission, or a row.
        sections: Name and text of each part that has any, in the order in which they are read; a part without a name
            is text alone.
        label: Index into the classes of the task; None where there are none.
        group: Hospital, folder, file, or value of the client column that it belongs to, or None.
        age: Age of the patient [years], or None where it is unknown.
        part: ``train``, ``validation`` or ``test`` where the data themselves say so, or None.
        rank: Position in the source's own list of the label's examples, or None; published splits depend on it.
    """

    key: int = field(repr=False)
    sections: tuple[tuple[str, str], ...] = field(repr=False)
    label: int | None
    group: str | None = None
    age: int | None = field(default=None, repr=False)
    part: str | None = None
    rank: int | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Corpus:
    """All examples of one source.

    Attributes:
        task: What is asked.
        examples: In the order of the source.
        synthetic: Whether every text is fabricated.
        sha256: Digest over the bytes of all files read.
        source: Name of the folder or file, without its path.
        warnings: What a reader of a result must know about the data, one sentence each, without text or identifiers.
    """

    task: Task
    examples: tuple[Example, ...] = field(repr=False)
    synthetic: bool
    sha256: str
    source: str
    warnings: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """Sorted names of all groups."""
        return tuple(sorted({example.group for example in self.examples if example.group is not None}))


def note_text(sections: tuple[tuple[str, str], ...], task: Task) -> str:
    """Write the parts of a text as one line each, and the cue for the answer at its end."""
    lines = [f"{name}: {text}" if name else text for name, text in sections]
    return "\n".join([*lines, task.cue] if task.cue else lines)


def answer_text(class_name: str) -> str:
    """Return what a model must write behind the cue: a blank and the name of the class."""
    return f" {class_name}"
