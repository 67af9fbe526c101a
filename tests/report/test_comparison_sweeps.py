"""Sweeps are compared at their base devices and wherever they share settings, paired where the cases are the same."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path
from typing import Any

import pytest

from fllm.report.comparison.facts import settings_differences
from fllm.report.comparison.page import render_comparison
from fllm.report.comparison.sweep_figures import draw_all_points, draw_shared
from fllm.report.comparison.sweep_tables import base_table, shared_csv, shared_table, sweeps_table
from fllm.report.comparison.sweeps import Sweeps, read_sweeps
from fllm.report.drawing import own_style
from fllm.report.tables import Table
from tests.report.sweep_example import grid, make_sweep
from tests.report.test_energy_figures import cut_off
from tests.report.test_render import Page

Result = dict[str, Any]


@pytest.fixture
def one() -> Result:
    return make_sweep(grid(retention__tau=["0.2 ms", "1 ms", "5 ms"], readout__bits=[3, 5]))


@pytest.fixture
def two() -> Result:
    """Return a sweep whose second value of tau is the first sweep's, in another unit."""
    return make_sweep(grid(retention__tau=["0.3 ms", "1000 us", "5 ms"], readout__bits=[3, 5]))


def read(*results: Result) -> Sweeps:
    return read_sweeps(results, [f"sweep-{number}" for number in range(len(results))])


def rows_of(table: Table | None) -> list[tuple[str, ...]]:
    assert table is not None
    return [tuple(c.replace("\N{NO-BREAK SPACE}", " ") for c in row) for group in table.groups for row in group.rows]


def test_points_with_equal_settings_stand_together(one: Result, two: Result) -> None:
    shared = read(one, two).shared()
    assert [entry.text for entry in shared] == [
        "retention.tau = 1 ms, readout.bits = 3",
        "retention.tau = 1 ms, readout.bits = 5",
        "retention.tau = 5 ms, readout.bits = 3",
        "retention.tau = 5 ms, readout.bits = 5",
    ]
    assert all(list(entry.places) == [0, 1] for entry in shared)
    table = shared_table(read(one, two), shared)
    assert table is not None
    assert [group.heading[0] for group in table.groups if group.heading] == [entry.text for entry in shared]


def test_a_key_that_is_not_varied_has_its_base_value(one: Result) -> None:
    """Retention alone was swept; its device reads with 5 bits, so its points are those of 5 bits in the other."""
    narrow = make_sweep(grid(retention__tau=["1 ms", "2 ms"]))
    narrow["device"]["values"].append({"key": "readout.bits", "value": "5", "kind": "simulated"})
    shared = read(one, narrow).shared()
    assert [entry.text for entry in shared] == ["retention.tau = 1 ms, readout.bits = 5",
                                               "retention.tau = 5 ms, readout.bits = 5"]  # fmt: skip


def test_a_key_that_nobody_recorded_is_that_of_the_device_file(one: Result) -> None:
    wider = make_sweep(grid(retention__tau=["1 ms"], variability__gain_sigma=[0.0, 0.05]))
    assert read(one, wider).shared() == []
    assert len(read(one, one).shared()) == 6
    other_file = copy.deepcopy(one)
    other_file["device"]["file_sha256"] = "0" * 64
    assert len(read(one, other_file).shared()) == 6
    assert len(read(one, other_file, wider).shared()) == 0
    assert len(read(one, copy.deepcopy(one), wider).shared()) == 6


def test_another_device_file_has_its_own_values() -> None:
    """A sweep of retention shares only the base device with a sweep of device files, by whatever path it was named."""
    files = make_sweep(grid(device_model=["gaincell_28nm", "gaincell_igzo"]))
    retention = make_sweep(grid(retention__tau=["1 ms", "5 ms"]))
    for sweep in (files, retention):
        sweep["config"]["device_model"] = "configs/gaincell_28nm.yaml"
        sweep["device"]["values"].append({"key": "retention.tau", "value": "5 ms", "kind": "simulated"})
    shared = read(files, retention).shared()
    assert [entry.text for entry in shared] == ["device_model = gaincell_28nm, retention.tau = 5 ms"]
    first = shared_csv(read(files, retention), shared).content.decode().splitlines()[1]
    assert first.startswith("gaincell_28nm,0.005,sweep-0,")


def test_equal_sweeps_do_not_differ(one: Result) -> None:
    rows = rows_of(base_table(read(one, copy.deepcopy(one))))
    assert rows[0][7:] == ("–", "–", "–")  # noqa: RUF001
    assert rows[1][7:] == ("+0.0", "+0.0 to +0.0", "the same")


def test_differences_are_paired(one: Result, two: Result) -> None:
    """Sixteen of two hundred cases that turned wrong are a difference, though the two intervals overlap."""
    for row in two["rows"]:
        bits = f"{int(row['correct'], 16):0200b}".replace("1", "0", 16)
        row |= {"correct": f"{int(bits, 2):050x}", "accuracy": bits.count("1") / 200}
    sweeps = read(one, two)
    shared = sweeps.shared()[0]
    between, bounds = sweeps.difference((0, shared.places[0]), (1, shared.places[1]))
    assert between == pytest.approx(-0.08)
    assert bounds is not None
    assert bounds[0] < -0.08 < bounds[1] < 0
    own = sweeps.members[0].accuracy_interval(shared.places[0])
    assert own is not None
    assert own[0] + between < own[1]  # so the intervals of both overlap
    assert bounds[1] - bounds[0] < 0.75 * (own[1] - own[0])
    rows = rows_of(shared_table(sweeps, [shared]))
    assert rows[1][9] == "lower"
    assert rows[1][7] == "\N{MINUS SIGN}8.0"


def test_other_test_cases_are_not_told_apart(one: Result, two: Result) -> None:
    two["data"]["sha256"] = "0" * 64
    sweeps = read(one, two)
    assert all(row[9] in {"–", "other test cases"} for row in rows_of(base_table(sweeps)))  # noqa: RUF001
    assert sweeps.difference((0, 0), (1, 0))[1] is None
    seeds = make_sweep(grid(retention__tau=["1 ms", "5 ms"]), seeds=(0, 1))
    assert (
        rows_of(base_table(read(make_sweep(grid(retention__tau=["1 ms", "5 ms"])), seeds)))[1][9] == "other test cases"
    )


def test_settings_of_the_sweeps_themselves_are_compared(one: Result, two: Result) -> None:
    differing = settings_differences([one, two]).values
    assert differing == {"sweep.vary.retention.tau": ("0.2 ms,1 ms,5 ms", "0.3 ms,1000 us,5 ms")}
    rows = rows_of(sweeps_table(read(one, two)))
    assert rows[0][:6] == ("sweep-0", "completed", "evaluate", "retention.tau, readout.bits", "6 of 6", "4")


def test_csv_has_shared_points_in_si(one: Result, two: Result) -> None:
    sweeps = read(one, two)
    rows = list(csv.DictReader(io.StringIO(shared_csv(sweeps, sweeps.shared()).content.decode())))
    assert len(rows) == 8
    assert {row["retention.tau"] for row in rows} == {"0.001", "0.005"}
    assert [row["sweep"] for row in rows[:2]] == ["sweep-0", "sweep-1"]
    assert rows[0]["accuracy"] == repr(sweeps.members[0].points[2].accuracy)


@pytest.mark.parametrize("finished", [0, 5, None])
def test_page_is_whole_at_any_state(tmp_path: Path, one: Result, finished: int | None) -> None:
    other = make_sweep(
        grid(retention__tau=["1 ms", "5 ms"], readout__bits=[3, 5]), finished=finished, failed={0: "<b>it broke"},
        status="completed" if finished is None else "interrupted",
    )  # fmt: skip
    page = render_comparison([one, other], ["a", "b"], tmp_path)[0].read_text(encoding="utf-8")
    ids = [attributes["id"] for name, attributes in Page(page).elements if name == "section"]
    assert ids == ["compared", "differences", "base", "shared", "limits"]
    assert ("Unfinished sweep." in page) == (finished is not None)
    assert ("No settings of" in page) == (finished == 0)


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path, one: Result, two: Result) -> None:
    for name in ("x", "y"):
        render_comparison(copy.deepcopy([one, two]), ["a", "b"], tmp_path / name)
    for file in (tmp_path / "x").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "y" / file.relative_to(tmp_path / "x")).read_bytes()


def test_figures_show_every_sweep_and_cut_nothing_off(one: Result, two: Result) -> None:
    sweeps = read(*[one, two] * 7)
    with own_style():
        shared, everything = draw_shared(sweeps, sweeps.shared()), draw_all_points(sweeps)
        assert cut_off(shared.figure) == []
        assert [text for text in cut_off(everything.figure) if not text.isdigit()] == []  # a tick beyond the axis
    assert "The first 12 of 14 are shown." in everything.caption
    dots = [line for line in everything.figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert len(dots) == 12 * 6
    assert sum(line.get_markersize() == 10 for line in dots) == 12


def test_the_page_works_in_a_browser(tmp_path: Path, one: Result, two: Result, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from tests.report.browser import check_page, download, open_page

    browser = request.getfixturevalue("browser")
    path = render_comparison([one, two, one, two], ["a", "b", "c", "d"], tmp_path)[0]
    check_page(browser, path)
    with open_page(browser, path) as page:
        assert download(page, "comparison.csv").count(b"\n") == 1 + 4 * 4 + 4 * 2
