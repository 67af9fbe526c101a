"""What a model is scored on: one text as token ids, with its class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """One case as token ids; ``repr`` shows none of them.

    Attributes:
        tokens: The prompt.
        label: Index into the classes of the task; None for language modelling.
        truncated: Whether text was cut out to fit.
    """

    tokens: tuple[int, ...]
    label: int | None
    truncated: bool

    def __repr__(self) -> str:
        return f"Prompt({len(self.tokens)} tokens)"
