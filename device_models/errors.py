"""The one kind of error that a user's input can cause.

Every check of a file, an option or a key raises :class:`InputError`. The command line prints it as one line and
ends with exit code 2; nothing else of ours is caught there, so a traceback always means a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ABSENT = object()


class InputError(ValueError):
    """Bad input: what is wrong, where, what was expected, what was received, and what to do.

    Never pass text, identifiers or labels of patients as ``received``: messages end in logs.

    Args:
        what: The thing that is wrong, as a short clause ("unknown key").
        where: File, key path, row or option.
        expected: What would have been accepted.
        received: What was found instead; shown with ``repr`` and cut to 80 characters.
        remedy: What the user can do.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        received: object = _ABSENT,
        remedy: str | None = None,
    ) -> None:
        parts = [f"{where}: {what}" if where else what]
        if expected is not None:
            parts.append(f"expected {expected}")
        if received is not _ABSENT:
            shown = repr(received)
            parts.append(f"received {shown if len(shown) <= 80 else shown[:77] + '...'}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__(" ".join("; ".join(parts).split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """List the known names closest to a mistyped one, or all of them when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return "did you mean " + " or ".join(close) + "?" if close else "known: " + ", ".join(known)
