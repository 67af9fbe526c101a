"""Counts of few patients, hidden in a table in such a way that they cannot be computed from what is left.

A reader knows the totals of rows and columns from elsewhere in a report. So beside every small count three more are
hidden, which stand with it at the corners of a rectangle: raising one corner, lowering its two neighbours and raising
the fourth changes no total, hence nobody can tell the true numbers from others.

Source: the hypercube method of statistical disclosure control (Repsilber 1994; Giessing and Repsilber, Inference
Control in Statistical Databases, LNCS 2316, 2002).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Shown = list[list[int | None]]


def hide_small_cells(table: Sequence[Sequence[int]], smallest_cell: int) -> Shown:
    """Return a table of counts in which every count of 1 to ``smallest_cell - 1`` is None, and cannot be inferred.

    Where no rectangle hides a small count, as in a single row, the whole table is hidden. Zeros may stay.

    Args:
        table: Rows of counts, such as clients by classes, of equal length.
        smallest_cell: The smallest count that may be shown; 0 or 1 hides nothing.
    """
    counts = np.array(table, dtype=int)
    hidden = np.zeros(counts.shape, dtype=bool)
    small = (counts > 0) & (counts < smallest_cell)
    for row, column in np.argwhere(small):
        corners = _rectangle(counts, hidden, (int(row), int(column)), smallest_cell)
        if corners is None:
            hidden[:] = True
            break
        for corner in corners:
            hidden[corner] = True
    return [
        [None if gone else int(count) for count, gone in zip(*pair, strict=True)]
        for pair in zip(counts, hidden, strict=True)
    ]


def hide_small_totals(totals: Sequence[int], smallest_cell: int) -> list[int | None]:
    """Return numbers whose sum a reader knows, without the small ones, nor the next larger ones that would tell them.

    Two or more numbers are hidden, unless all are, and each of them could be a number that is not small.

    Args:
        totals: Counts, such as the cases of each client.
        smallest_cell: The smallest count that may be shown; 0 or 1 hides nothing.
    """
    order = [index for _, index in sorted((count, index) for index, count in enumerate(totals) if count > 0)]
    size = sum(0 < count < smallest_cell for count in totals)
    # The largest that a hidden number can be, if the others are one each, must be no small one
    while 0 < size < len(order) and sum(totals[index] for index in order[:size]) - size + 1 < smallest_cell:
        size += 1
    hidden = set(order[:size])
    return [None if index in hidden else count for index, count in enumerate(totals)]


Cell = tuple[int, int]


def _rectangle(counts: np.ndarray, hidden: np.ndarray, cell: Cell, smallest_cell: int) -> list[Cell] | None:
    """Return the corners that hide a cell at the least loss of shown counts, or None when there are none."""
    row, column = cell
    best: tuple[int, list[Cell]] | None = None
    for other_row in range(counts.shape[0]):
        for other_column in range(counts.shape[1]):
            if other_row == row or other_column == column:
                continue
            beside, below, across = (row, other_column), (other_row, column), (other_row, other_column)
            # A reader must be unable to bound the cell within the range of small counts
            room_up = min(counts[beside], counts[below])
            if counts[cell] + room_up < smallest_cell or counts[across] < counts[cell]:
                continue
            corners = [cell, beside, below, across]
            loss = sum(int(counts[corner]) for corner in corners if not hidden[corner])
            if best is None or loss < best[0]:
                best = (loss, corners)
    return None if best is None else best[1]
