"""Counts of patients as words, with small ones of real data held back.

A count of one to four patients can point to a person, and so can a count of all but one to four. Both are held back
unless the data are fabricated. Counts of rows, of tests and of faulty cells are no counts of patients with something.
"""

from __future__ import annotations

from collections.abc import Sequence

from fllm.data.small_cells import hide_small_totals

SMALLEST = 5
"""Smallest count of patients that is shown of real data."""


def _is_small(count: int, real: bool) -> bool:
    return real and 0 < count < SMALLEST


def count_text(count: int, *, real: bool) -> str:
    """Return a count, or ``< 5`` for a small one of real data."""
    return f"< {SMALLEST}" if _is_small(count, real) else f"{count:,}"


def number_of(count: int, thing: str) -> str:
    """Return a count of things that are no patients, such as ``1 row`` or ``2,400 rows``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def share_text(count: int, total: int, *, real: bool) -> str:
    """Return a share in whole percent; few and all but few are not told in numbers where that is held back."""
    if _is_small(total, real):
        return "not shown"
    if count == 0 or total == 0:
        return "0 %"
    if _is_small(count, real):
        return f"< {SMALLEST} cases"
    if _is_small(total - count, real):
        return f"all but < {SMALLEST} cases"
    percent = 100 * count / total
    return "< 1 %" if percent < 0.5 else "> 99 %" if 99.5 <= percent < 100 else f"{percent:.0f} %"


def partition_texts(counts: Sequence[int], *, real: bool) -> list[str]:
    """Return the counts of groups whose sum is known, without those from which a small one could be told."""
    shown = hide_small_totals(counts, SMALLEST if real else 0)
    return ["not shown" if count is None else f"{count:,}" for count in shown]
