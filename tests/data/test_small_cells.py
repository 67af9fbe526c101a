from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fllm.data.small_cells import hide_small_cells, hide_small_totals

SMALLEST = 5

tables = st.integers(1, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.sampled_from([0, 1, 2, 4, 5, 6, 9, 30, 200]), min_size=columns, max_size=columns),
        min_size=1, max_size=5,
    )
)  # fmt: skip


def _possible(table: np.ndarray, hidden: np.ndarray, cell: tuple[int, int]) -> tuple[float, float]:
    """Return the least and the largest value of a hidden cell that a reader of all sums and shown cells finds."""
    cells = [(int(row), int(column)) for row, column in np.argwhere(hidden)]
    sums: list[list[float]] = []
    for axis, count in enumerate(table.shape):
        sums += [[float(place[axis] == index) for place in cells] for index in range(count)]
    known = [float(np.dot(row, [table[place] for place in cells])) for row in sums]
    aim = np.array([float(place == cell) for place in cells])
    found: list[Any] = [linprog(sign * aim, A_eq=sums, b_eq=known, bounds=(0, None)) for sign in (1, -1)]
    return found[0].fun, -found[1].fun


@given(rows=tables)
@settings(max_examples=60, deadline=None)
def test_no_small_count_can_be_computed_from_the_rest(rows: list[list[int]]) -> None:
    table = np.array(rows)
    shown = hide_small_cells(rows, SMALLEST)
    hidden = np.array([[count is None for count in row] for row in shown])
    small = (table > 0) & (table < SMALLEST)
    assert not (small & ~hidden).any()
    assert [[count for count in row if count is not None] for row in shown] == [
        [int(count) for count, gone in zip(*pair, strict=True) if not gone] for pair in zip(table, hidden, strict=True)
    ]
    if hidden.all():
        return
    for row, column in np.argwhere(small):
        least, most = _possible(table, hidden, (int(row), int(column)))
        assert least < 0.5 and most > SMALLEST - 0.5


def test_little_else_is_hidden() -> None:
    table = [[120, 80, 30, 60], [90, 3, 40, 20], [70, 50, 25, 44]]
    shown = hide_small_cells(table, SMALLEST)
    assert shown == [[120, 80, 30, 60], [90, None, 40, None], [70, None, 25, None]]


@pytest.mark.parametrize("smallest_cell", [0, 1])
def test_nothing_is_hidden_where_every_count_may_be_shown(smallest_cell: int) -> None:
    table = [[1, 0], [2, 3]]
    assert hide_small_cells(table, smallest_cell) == table
    assert hide_small_totals([1, 0, 2], smallest_cell) == [1, 0, 2]


@pytest.mark.parametrize(
    ("table", "shown"),
    [
        ([[7, 6], [0, 9]], [[7, 6], [0, 9]]),
        ([[7, 2]], [[None, None]]),
        ([[2, 2], [2, 2]], [[None, None], [None, None]]),
        ([[9, 2], [9, 0]], [[None, None], [None, None]]),
        ([], []),
        ([[], []], [[], []]),
    ],
)
def test_tables_that_are_shown_or_hidden_as_a_whole(table: list[list[int]], shown: list[list[int | None]]) -> None:
    assert hide_small_cells(table, SMALLEST) == shown


@pytest.mark.parametrize(
    ("totals", "shown"),
    [
        ([40, 3, 50, 60], [None, None, 50, 60]),
        ([40, 0, 50], [40, 0, 50]),
        ([1, 1, 2, 30], [None, None, None, None]),  # 1, 1 and 2 have a sum of 4, which tells that all are small
        ([1, 3, 3, 30], [None, None, None, 30]),
        ([3], [None]),
        ([], []),
    ],
)
def test_totals(totals: list[int], shown: list[int | None]) -> None:
    assert hide_small_totals(totals, SMALLEST) == shown


@given(totals=st.lists(st.sampled_from([0, 1, 2, 4, 5, 8, 40]), max_size=7))
@settings(max_examples=60, deadline=None)
def test_no_small_total_can_be_computed_from_the_sum(totals: list[int]) -> None:
    shown = hide_small_totals(totals, SMALLEST)
    hidden = [count for count, one in zip(totals, shown, strict=True) if one is None]
    assert all(one is None or one == 0 or one >= SMALLEST for one in shown)
    if hidden and any(one is not None and one > 0 for one in shown):
        assert len(hidden) >= 2 and sum(hidden) - len(hidden) + 1 >= SMALLEST
