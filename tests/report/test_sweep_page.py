"""The report of a sweep: whole at any state, the same bytes every time, escaped, and honest on its first screen."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from fllm.report import render
from fllm.report.drawing import Picture
from fllm.report.sweep.facts import analyse
from fllm.report.sweep.figures import _figures
from fllm.report.sweep.page import render_sweep, sweep_markdown, sweep_page
from tests.report.sweep_example import TAUS, grid, hand_made, make_sweep
from tests.report.test_render import Page
from tests.report.test_sweep_figures import NASTY, SHAPES

Result = dict[str, Any]


def small(**options: Any) -> Result:
    return make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5]), **options)


def blank(result: Result) -> list[Picture]:
    """Pictures without drawing them, which takes most of the time."""
    names = _figures(analyse(result))
    return [
        Picture(name, f"Caption of {name}.", f"Description of the figure {name}.", b"<svg/>", b"") for name in names
    ]


def html_of(result: Result) -> str:
    return sweep_page(result, blank(result)).replace("\xa0", " ")


def markdown_of(result: Result) -> str:
    return sweep_markdown(result, blank(result)).replace("\xa0", " ")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shuffled(value: Any) -> Any:
    """The same JSON with all keys in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("shape", ["grid", "words", "three keys", "sobol", "failed", "train", "empty", "unfinished"])
def test_a_sweep_renders_whole(tmp_path: Path, shape: str) -> None:
    result = SHAPES[shape]()
    written = render_sweep(result, tmp_path)
    assert written[:2] == [tmp_path / "report.html", tmp_path / "report.md"]
    html = written[0].read_text(encoding="utf-8")
    page = Page(html)
    assert html.count("None") == 0 and "nan" not in re.sub(r"base64,[^\"]+", "", html)
    assert all(len(image["alt"] or "") > 20 for image in page.all("img"))
    names = {path.stem for path in written if path.suffix == ".png"}
    markdown = written[1].read_text(encoding="utf-8")
    assert set(re.findall(r"\(figures/(\w+)\.svg\)", markdown)) == names
    assert len(page.all("img")) == len(names)
    for name in names:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.fromstring((tmp_path / "figures" / f"{name}.svg").read_bytes()).tag.endswith("svg")


def test_rendering_twice_and_after_a_trip_through_a_file_gives_the_same_bytes(tmp_path: Path) -> None:
    result = small(failed={3: NASTY})
    render(result, tmp_path / "a")
    with matplotlib.rc_context({"font.size": 20}):
        render(json.loads(json.dumps(shuffled(result))), tmp_path / "b")
    render(json.loads(json.dumps(result, sort_keys=True)), tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_rows_may_come_in_any_order(tmp_path: Path) -> None:
    result = small()
    render(result, tmp_path / "a")
    render(result | {"rows": result["rows"][::-1], "points": result["points"][::-1]}, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("status", ["running", "interrupted"])
@pytest.mark.parametrize(("finished", "whole"), [(0, 0), (3, 0), (4, 1), (13, 3)])
def test_an_unfinished_sweep_says_how_far_it_is(status: str, finished: int, whole: int) -> None:
    html = html_of(small(status=status, finished=finished))
    Page(html)
    assert "Unfinished sweep." in html[: html.index("<h1>")]
    assert f"{whole} of 8 points are finished" in html
    assert ("There is nothing to compare yet." in html) is (finished == 0)
    assert "> **Unfinished sweep.**" in markdown_of(small(status=status, finished=finished))


def test_a_bare_sweep_renders(tmp_path: Path) -> None:
    bare = {"schema_version": 1, "kind": "sweep", "status": "running", "name": "bare", "config": {}, "data": {}}
    render_sweep(bare | {"model": {}, "device": {}, "keys": [], "points": [], "rows": []}, tmp_path)
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_first_screen_answers_the_question() -> None:
    result = small()
    html = html_of(result)
    first = html[html.index('<section id="answer"') : html.index('<section id="curves"')]
    sweep = analyse(result)
    base = sweep.points[sweep.base or 0]
    for expected in (
        "The device as published: retention.tau = 5 ms, readout.bits = 5",
        f"{100 * base.accuracy:.1f} %",
        f"{100 * base.drop:.1f} points below the ideal device",
        "78.5 %", "40.0 %", "83.3 %", "596 nJ", "2.69 µs", "200 test cases", "4 simulated dies",
        "Most accurate point, cheapest within 1 point of the most accurate:", "Required retention.tau, at least",
        "the majority class (40.0 %): above", "TF-IDF + logistic regression (83.3 %): below",
        "No swept retention.tau keeps accuracy within 1 point of the ideal device, with readout.bits held at 5",
        "Along retention.tau accuracy rises or stays",
    ):  # fmt: skip
        assert expected in first, expected


def test_the_required_value_is_the_answer_where_it_is_reached() -> None:
    values = ["0.1 ms", "1 ms", "10 ms", "100 ms"]
    html = html_of(hand_made("retention.tau", values, [[50, 50], [78, 78], [80, 80], [80, 80]], ideal=80))
    assert "To keep accuracy within 1 point of the ideal device, retention.tau must be at least 3.16 ms" in html
    assert re.search(r"Required retention.tau, at least</h3>\s*<p class=\"figure-number\"[^>]*>3.16 ms<", html)


def test_the_required_value_may_lie_below_the_sweep() -> None:
    hits = [[79, 80], [80, 79], [80, 80]]
    html = html_of(hand_made("variability.gain_sigma", [0.01, 0.02, 0.05], hits, ideal=80))
    assert "Any swept variability.gain_sigma keeps accuracy within 1 point" in html


def test_violations_of_monotony_are_listed() -> None:
    html = html_of(hand_made("readout.bits", [3, 4, 5, 6], [[40, 41], [70, 70], [58, 59], [75, 76]], ideal=80))
    minus = "\N{MINUS SIGN}"
    assert (
        f"1 of 3 neighbouring pairs go the other way: readout.bits = 4 to readout.bits = 5: {minus}11.5 points" in html
    )


def test_a_drop_that_is_none_is_not_claimed() -> None:
    html = html_of(hand_made("readout.bits", [4, 5, 6], [[79, 80], [80, 79], [79, 80]], ideal=80))
    assert re.search(
        r"0\.5 points below the ideal device \(95 % interval 0\.0 to \d\.\d\); the two cannot be told", html
    )


def test_one_die_and_one_seed_are_named_as_limits() -> None:
    html = html_of(small(dies=1))
    assert "Only one die was simulated" in html and "One seed:" in html
    html = html_of(small(dies=2, seeds=(0, 1)))
    assert "Only one die" not in html and "One seed:" not in html
    assert "200 test cases in each seed" in html


def test_points_are_listed_sortable_and_with_their_numbers() -> None:
    result = small(failed={3: "no memory"})
    html = html_of(result)
    table = html[html.index('<section id="points"') : html.index('<section id="failed"')]
    assert "data-sort" in table and "data-filter" in table
    assert table.count("<tr>") == 1 + 8
    assert 'data-value="0.0002"' in table and 'data-value="0.05"' in table
    assert "failed for 1 seed" in table
    sweep = analyse(result)
    low, high = sweep.points[0].accuracy_interval
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in table


def test_all_rows_can_be_downloaded_but_no_case() -> None:
    result = small(failed={3: '=cmd|"x"'})
    link = re.search(r'download="sweep_rows.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html_of(result))
    assert link
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(link[1]).decode())))
    assert len(rows) == len(result["rows"]) == 7 * 4 + 1
    assert list(rows[0])[:7] == ["point", "seed", "die", "status", "reason", "retention.tau_s", "readout.bits"]
    assert not {"correct", "correct_ideal"} & set(rows[0])
    assert set(result["rows"][0]) - {"correct", "correct_ideal"} <= set(rows[0])
    assert rows[12]["reason"] == '\'=cmd|"x"', "harmless in a spreadsheet"
    assert float(rows[0]["accuracy"]) == result["rows"][0]["accuracy"]
    assert "Download:" not in html_of(small(finished=0))


def test_failed_points_stand_with_their_reasons() -> None:
    assert "Failed points" not in html_of(small())
    html = html_of(small(failed={0: "InputError: a\nb", 5: "no memory"}, seeds=(0, 1), dies=2))
    table = html[html.index('<section id="failed"') :]
    assert table.count("InputError: a b") == 2 and table.count("no memory") == 2
    assert "The device as published failed." in html


def test_hostile_text_is_escaped() -> None:
    points = [{"device_model": word} for word in ("gaincell_28nm", "<script>alert('x')</script>|.yaml")]
    result = make_sweep(points, failed={0: NASTY})
    result["name"] = result["command"] = result["device"]["title"] = NASTY
    result["not_modelled"] = [NASTY]
    result["adapters"][0] |= {"run": NASTY, "sha256": NASTY, "device": NASTY}
    result["points"][1]["warnings"] = [NASTY]
    result["keys"][0] |= {"spec": NASTY}
    result["design"]["kind"] = NASTY
    result["config"] |= {NASTY: NASTY}
    html = html_of(result)
    assert html.count("<script") == 1, "our own"
    assert "&lt;script&gt;" in html
    Page(html)
    markdown = markdown_of(result)
    assert not re.search(r"(?<!\\)<script", re.sub(r"```text.*?```", "", markdown, flags=re.DOTALL))
    table = markdown[markdown.index("## Failed points") :].split("\n\n")[2].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {5}


def test_hostile_text_is_drawn_as_it_is(tmp_path: Path) -> None:
    points = [{"device_model": word} for word in ("gaincell_28nm", "$x_1$ <b>", "a" * 60)]
    for path in render_sweep(make_sweep(points), tmp_path):
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_bytes())


def test_how_it_was_done() -> None:
    html = html_of(small(seeds=(0, 1), dies=2))
    for expected in (
        "Mode evaluate", "Design: grid, 8 points. Each on 2 dies; seeds: 0, 1.", "trained-seed1", "11b2c3d411b2",
        "retention.tau: 0.2 ms,1 ms,5 ms,50 ms; base device: 5 ms.", "the LM head is asked",
    ):  # fmt: skip
        assert expected in html, expected
    html = html_of(small(mode="train"))
    assert "Mode train" in html and "price the test cases" in html
    assert "Adapters that were evaluated" not in html
    assert "seed 0, and the base device beside them" in html_of(
        make_sweep(grid(retention__tau=["1 ms", "2 ms"]), design="sobol")
    )


def test_page_is_accessible_and_asks_for_nothing() -> None:
    page = Page(html_of(small(failed={3: "no memory"})))
    assert len(page.all("h1")) == 1
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    links = [link["href"] or "" for link in page.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "https://doi.org/", "data:text/csv")) for link in links)
    assert all(cell["scope"] in {"col", "row", "rowgroup"} for cell in page.all("th"))


def test_markdown_has_the_same_content() -> None:
    result = small(failed={3: "no memory"})
    html, markdown = html_of(result), markdown_of(result)
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
    assert headings == re.findall(r"^## (.+)$", markdown, flags=re.MULTILINE)
    assert "| 0 | 0.2 ms | 3 |" in markdown
    assert "fllm sweep fabricated-run" in markdown


def test_synthetic_data_are_called_so() -> None:
    result = small()
    assert "SYNTHETIC DATA" in html_of(result) and "SYNTHETIC DATA" in markdown_of(result)
    result["data"]["synthetic"] = False
    assert "SYNTHETIC DATA" not in html_of(result)


def test_a_base_device_that_is_unknown_is_not_invented() -> None:
    result = small()
    for point in result["points"]:
        point["base"] = False
    for key in result["keys"]:
        key |= {"base": None, "base_si": None}
    html = html_of(result)
    Page(html)
    assert "The device as published:" not in html
    assert "over the points of this sweep" in html
    assert "base device: not known" in html
