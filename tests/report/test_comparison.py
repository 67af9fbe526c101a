"""A comparison says what differs before what came of it, and claims no more than its intervals allow."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.container import BarContainer

from device_models import InputError
from device_models.costs import PARTS
from fllm.report.comparison.csv import comparison_csv
from fllm.report.comparison.facts import (
    cautions,
    device_differences,
    distinct,
    origin_differences,
    same_cases,
    settings_differences,
)
from fllm.report.comparison.figures import LOOKS, MOST, draw_accuracy, draw_energy, draw_rounds, fold
from fllm.report.comparison.page import render_comparison
from fllm.report.comparison.score_tables import scores_table
from fllm.report.comparison.sections import run_sections
from fllm.report.comparison.tables import accuracy_verdict, against_first_table, parts_table
from fllm.report.drawing import own_style
from fllm.report.energy_facts import parts_of
from tests.report.test_energy_figures import cut_off
from tests.report.test_render import Page

Result = dict[str, Any]
HOSTILE = "<script>alert('$x^2$')</script>\n| **a** [b](http://c) \udcff"


@pytest.fixture
def other(result: Result) -> Result:
    """Return a run of the same cases on another device: fewer bits, less accurate, dearer."""
    made = copy.deepcopy(result)
    made["config"]["device"] = {"readout.bits": 3}
    made["device"]["file_sha256"] = "f" * 64
    made["final"] |= {"accuracy_hardware": 0.5, "accuracy_interval_95": {"ideal": [0.6, 0.8], "hardware": [0.4, 0.6]}}
    made["final"]["energy_per_token_j"] *= 2
    made["final"]["evaluation"] = None  # as a run of an older version
    return made


@pytest.fixture
def render_pair(tmp_path: Path) -> Callable[..., str]:
    """Return a function that renders results and returns the page with plain spaces."""

    def render(*results: Result, names: list[str] | None = None) -> str:
        names = names or [f"run-{number}" for number in range(len(results))]
        page = render_comparison(results, names, tmp_path / "comparison")[0]
        return page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")

    return render


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def unfinished(result: Result, rounds: int) -> Result:
    return {**copy.deepcopy(result), "status": "interrupted", "final": None, "rounds": result["rounds"][:rounds]}


def test_rendering_twice_gives_the_same_bytes(tmp_path: Path, result: Result, other: Result) -> None:
    written = render_comparison([result, other], ["a", "b"], tmp_path / "one")
    shuffled = [dict(reversed(found.items())) for found in (result, other)]
    with matplotlib.rc_context({"font.size": 20}):
        render_comparison(copy.deepcopy(shuffled), ["a", "b"], tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == sorted(p.relative_to(tmp_path / "one").as_posix() for p in written)
    assert {"report.html", "report.md", "figures/accuracy.png", "figures/rounds.svg"} <= set(contents(tmp_path / "one"))


def test_what_is_compared_then_what_differs_then_results(
    render_pair: Callable[..., str], result: Result, other: Result
) -> None:
    html = render_pair(result, other)
    ids = [attributes["id"] for name, attributes in Page(html).elements if name == "section"]
    assert ids == ["compared", "differences", "accuracy", "cost", "training", "limits"]
    first = html[: html.index('id="accuracy"')]
    for expected in (
        "device.readout.bits",
        "2 runs compared",
        "ffffffffffffffff…",
        "120 test cases",
        "18 device numbers",
    ):
        assert expected in first, expected
    assert html.count("http") == html.count("http-equiv")


def test_order_is_kept_and_equal_names_get_numbers(result: Result, other: Result) -> None:
    assert distinct(["b", "a", "b"]) == ["b (1)", "a", "b (2)"]
    assert distinct(["a (1)", "a", "a"]) == ["a (1)", "a (2)", "a (3)"]
    assert distinct(["", HOSTILE])[0] == "unnamed"
    assert len(set(distinct(["x" * 70 + "1", "x" * 70 + "2"]))) == 2
    rows = scores_table([other, result], ["z", "a"]).groups[0].rows
    assert [row[0] for row in rows] == ["z", "a"]
    assert rows[0][3].replace("\N{NO-BREAK SPACE}", " ") == "50.0 %"


def test_settings_and_origins_that_differ_are_listed_and_no_others(result: Result, other: Result) -> None:
    settings = settings_differences([result, other])
    assert settings.values == {"device.readout.bits": (None, 3)}
    assert settings.equal == len([value for value in result["config"].values() if value not in (None, {})]) + 2
    origins = origin_differences([result, other])
    assert origins.values == {"device.file_sha256": (result["device"]["file_sha256"], "f" * 64)}
    assert not settings_differences([result, copy.deepcopy(result)]).values


def test_a_setting_that_an_older_run_lacks_is_as_good_as_null(result: Result, other: Result) -> None:
    del other["config"]["device"]
    other["config"].pop("data_dir")
    assert settings_differences([result, other]).values == {}


def test_device_numbers_are_compared_in_si(result: Result, other: Result) -> None:
    (top,) = [entry for entry in other["device"]["values"] if entry["key"] == "storage.v_max"]
    top["value"] = "900 mV"
    assert "storage.v_max" not in device_differences([result, other]).values
    top["value"] = "0.8 V"
    assert [entry["value"] for entry in device_differences([result, other]).values["storage.v_max"]] == [
        "0.9 V",
        "0.8 V",
    ]
    top |= {"value": "0.9 V", "kind": "assumed"}
    assert "storage.v_max" in device_differences([result, other]).values
    other["device"]["values"].remove(top)
    assert device_differences([result, other]).values["storage.v_max"][1] is None


def told(results: list[Result]) -> list[str]:
    return [what for what, _ in cautions(results, ["a", "b", "c"][: len(results)])]


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("data", "sha256", "0" * 64, ["Different data."]),
        ("config", "test_fraction", 0.5, ["Different test cases."]),
        ("config", "seed", 7, ["Different test cases.", "Different seeds."]),
        ("model", "sha256", "0" * 64, ["Different models."]),
        ("config", "max_tokens", 17, ["Different prompts."]),
        ("config", "cues", {"mask": "keep"}, ["Different prompts."]),
        ("config", "split", "holdout", []),
        ("config", "split", "kfold", ["Different test cases."]),
        ("data", "synthetic", False, ["Fabricated beside real patients."]),
        ("config", "dies", 9, []),
    ],
)
def test_what_makes_results_hard_to_compare_is_told(
    result: Result, section: str, key: str, value: object, expected: list[str]
) -> None:
    changed = copy.deepcopy(result)
    changed[section][key] = value
    assert told([result, changed]) == expected
    assert same_cases(result, changed) == (
        "Different data." not in expected and "Different test cases." not in expected
    )


def test_folds_are_different_test_cases(result: Result) -> None:
    result["config"] |= {"split": "kfold", "fold": 0, "num_folds": 5}
    changed = copy.deepcopy(result)
    assert same_cases(result, changed)
    changed["config"]["fold"] = 1
    assert not same_cases(result, changed)


def test_versions_of_the_program_that_differ_are_told(result: Result) -> None:
    changed = copy.deepcopy(result)
    changed["environment"]["packages"]["fllm"] = "9.9"
    assert told([result, changed]) == ["Different versions of this program."]


def test_runs_of_equal_data_are_named_together(result: Result) -> None:
    changed = copy.deepcopy(result)
    changed["data"]["sha256"] = "0" * 64
    (caution,) = cautions([result, changed, result], ["a", "b", "c"])
    assert caution[1].startswith("(a, c) and b were tested on different cases")
    assert "not comparable" in caution[1]


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [([0.4, 0.6], "apart"), ([0.4, 0.7], "overlap"), ([0.9, 0.95], "apart"), (None, "not known yet")],
)
def test_verdict_follows_the_intervals(result: Result, other: Result, bounds: list[float] | None, verdict: str) -> None:
    assert result["final"]["accuracy_interval_95"]["hardware"] == [0.666667, 0.820833]
    other["final"]["accuracy_interval_95"]["hardware"] = bounds
    assert accuracy_verdict(result, other) == verdict
    other["data"]["sha256"] = None
    assert accuracy_verdict(result, other) == "other test cases"


def test_sentences_are_honest(result: Result, other: Result) -> None:
    accuracy, cost, _ = run_sections([result, other, result], ["a", "b", "c"])
    assert "b: accuracy on hardware 24.6 points below a" in accuracy.lines[0]
    assert "do not overlap" in accuracy.lines[0]
    assert "c: the same accuracy on hardware as a" in accuracy.lines[1]
    assert "establish no difference" in accuracy.lines[1]
    assert "paired test, would be sharper" in accuracy.lines[-1]
    assert cost.lines[0].startswith("b against a: 2.00\N{NO-BREAK SPACE}× the energy per token")  # noqa: RUF001
    assert "about the same energy" in cost.lines[1]
    other["config"]["seed"] = 5
    accuracy, *_ = run_sections([result, other], ["a", "b"])
    assert "says nothing about what changed" in accuracy.lines[0]
    assert not any("sharper" in line for line in accuracy.lines)


def test_totals_that_lack_a_large_part_are_told(result: Result, other: Result) -> None:
    other["final"]["energy"]["parts_j"]["weight memory"] = {"nominal": 0.0}
    (line,) = [line for line in run_sections([result, other], ["a", "b"])[1].lines if "same things" in line]
    assert line.startswith("b spends nothing on weight memory")


def test_unfinished_runs_are_compared_as_far_as_they_are(render_pair: Callable[..., str], result: Result) -> None:
    html = render_pair(result, unfinished(result, 2), unfinished(result, 0))
    assert html.count("Unfinished run.") == 2
    assert "run-1: 1 of 3 rounds are finished" in html
    assert "There is nothing to compare yet" in html
    rows = against_first_table([result, unfinished(result, 2)], ["a", "b"]).groups[0].rows
    assert rows[0][2] == "not known yet"
    html = render_pair(unfinished(result, 0), unfinished(result, 0))
    assert "No run holds the energy of its training yet." in html


def test_hostile_names_stay_text(render_pair: Callable[..., str], tmp_path: Path, result: Result) -> None:
    hostile = copy.deepcopy(result)
    hostile["device"] |= {"name": HOSTILE.strip("\udcff"), "title": "<b>"}
    html = render_pair(result, hostile, names=[HOSTILE, HOSTILE])
    page = Page(html)
    assert len(page.all("script")) == 1
    assert not page.all("b")
    assert "&lt;script&gt;alert" in html
    markdown = (tmp_path / "comparison" / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown.replace("\\<script", "")
    rows = [line for line in markdown.splitlines() if line.startswith("| \\<script") and "completed" in line]
    assert len(rows) == 2
    assert all(line.count("|") - line.count("\\|") == 9 for line in rows)
    assert len({attributes["id"] for _, attributes in page.elements if "id" in attributes}) == len(
        [attributes for _, attributes in page.elements if "id" in attributes]
    )


def test_runs_and_sweeps_do_not_mix(tmp_path: Path, result: Result) -> None:
    with pytest.raises(InputError, match=r"runs only, or sweeps only.*a is a run, b is a sweep") as problem:
        render_comparison([result, result | {"kind": "sweep"}], ["a", "b"], tmp_path)
    assert "\n" not in str(problem.value)
    with pytest.raises(InputError, match="do not compare"):
        render_comparison([result | {"kind": "x"}, result | {"kind": "x"}], ["a", "b"], tmp_path)
    with pytest.raises(InputError, match="nothing to compare"):
        render_comparison([result], ["a"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_csv_has_every_number_in_full(result: Result, other: Result) -> None:
    download = comparison_csv([result, unfinished(result, 0), other], ["a", "=b", "c"])
    rows = list(csv.DictReader(io.StringIO(download.content.decode())))
    assert [row["run"] for row in rows] == ["a", "'=b", "c"]
    assert float(rows[0]["energy_per_token_j"]) == result["final"]["energy_per_token_j"]
    assert float(rows[2]["accuracy_hardware_lower_95"]) == 0.4
    assert rows[1]["accuracy_hardware"] == rows[1]["energy_per_token_j"] == ""
    assert int(rows[0]["uplink_bytes"]) == sum(row["uplink_bytes"] for row in result["rounds"])
    for part in PARTS:
        column = f"energy_per_token_{''.join(c if c.isalnum() else '_' for c in part)}_j"
        assert float(rows[0][column] or 0) == parts_of(result).get(part, {"nominal": 0.0})["nominal"]


def test_parts_of_both_devices_have_rows(result: Result, other: Result) -> None:
    other["final"]["energy"]["parts_j"] = {"refresh": {"nominal": 5e-9}}
    table = parts_table([result, other], ["a", "b"])
    assert table is not None
    rows = {row[0]: row[1:] for group in table.groups for row in group.rows}
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in rows["refresh"]][1] == "5.00 nJ"
    assert rows["adapter"][1] == "–"  # noqa: RUF001
    assert parts_table([unfinished(result, 0)], ["a"]) is None


# Figures.


def test_dots_and_intervals_stand_where_their_numbers_are(result: Result, other: Result) -> None:
    axes = draw_accuracy([result, other], ["a", "b"]).figure.axes[0]
    dots = {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert dots[-0.14] == result["final"]["accuracy_hardware"]
    assert dots[1 - 0.14] == 0.5
    bounds = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert [0.4, 0.6] in bounds and [0.6, 0.8] in bounds


def test_stacks_add_up_to_the_energy(result: Result, other: Result) -> None:
    axes = draw_energy([result, other], ["a", "b"]).figure.axes[0]
    bars = [bar for container in axes.containers if isinstance(container, BarContainer) for bar in container]
    total = sum(found["nominal"] for found in parts_of(result).values())
    unit = {"µ": 1e-6, "n": 1e-9}[axes.get_xlabel().split("[")[1][0]]
    assert max(bar.get_x() + bar.get_width() for bar in bars) * unit == pytest.approx(total)
    ends = sorted((round(bar.get_y()), bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars if bar.get_width())
    for (row, _, end), (next_row, start, _) in itertools.pairwise(ends):
        assert row != next_row or start == pytest.approx(end)


def test_rounds_have_a_solid_and_a_thin_dashed_line(result: Result, other: Result) -> None:
    lines = draw_rounds([result, other], ["a", "b"]).figure.axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["--", "-", "--", "-"]
    assert [line.get_linewidth() > 1.5 for line in lines] == [False, True, False, True]
    assert list(lines[1].get_ydata()) == [row["hardware"]["accuracy"]["mean"] for row in result["rounds"]]
    assert len(set(LOOKS)) == len(LOOKS) == MOST


def test_many_runs_fit_and_the_figures_say_what_they_leave_out(result: Result, other: Result) -> None:
    results = [result, other] * 7
    names = [f"a rather long name of a run_{number:02d}" for number in range(14)]
    with own_style():
        for draw in (draw_accuracy, draw_rounds, draw_energy):
            drawn = draw(results, names)
            assert "The first 12 of 14 are shown." in drawn.caption
            assert cut_off(drawn.figure) == [], draw.__name__
    assert len(scores_table(results, names).groups[0].rows) == 14


def test_empty_figures_say_so(result: Result) -> None:
    empty = [unfinished(result, 0)] * 2
    for draw in (draw_accuracy, draw_rounds, draw_energy):
        assert "no data" in draw(empty, ["a", "b"]).alt


def test_names_break_behind_their_signs() -> None:
    assert fold("gaincell_28nm_4t1c") == "gaincell_28nm_\n4t1c"
    assert fold("x" * 20) == f"{'x' * 17}\n{'x' * 3}"
    assert fold("short") == "short"


def test_the_page_works_in_a_browser(
    tmp_path: Path, result: Result, other: Result, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from tests.report.browser import check_page, download, open_page

    browser = request.getfixturevalue("browser")
    other["config"]["seed"] = 3
    path = render_comparison([result, other, unfinished(result, 2)], ["a", "b", "c"], tmp_path)[0]
    check_page(browser, path)
    with open_page(browser, path) as page:
        saved = download(page, "comparison.csv")
    assert saved == comparison_csv([result, other, unfinished(result, 2)], ["a", "b", "c"]).content
