"""The page and its figures: reproducible, self-contained, accessible, escaped, and whole at any state of a run."""

import base64
import copy
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from fllm.report import render
from fllm.report.answer import activation_line, limits
from fllm.report.drawing import Picture
from fllm.report.figures import figure_names
from fllm.report.formatting import NOTHING
from fllm.report.markdown import run_markdown
from fllm.results import read_result, write_result
from tests.report.conftest import ALWAYS, FIGURES

HtmlOf = Callable[[dict[str, Any]], str]
_VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page with their attributes; complains about tags that do not pair up."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the example's report."""
    folder = tmp_path_factory.mktemp("report")
    render(read_result(Path(__file__).with_name("example_result.json")), folder)
    return folder


@pytest.fixture
def html(drawn: Path) -> str:
    return (drawn / "report.html").read_text(encoding="utf-8")


def _html(result: dict[str, Any], folder: Path) -> str:
    return render(result, folder)[0].read_text(encoding="utf-8")


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_rendering_again_gives_the_same_bytes_whatever_the_order_of_keys(
    drawn: Path, tmp_path: Path, result: dict[str, Any]
) -> None:
    shuffled = dict(reversed(copy.deepcopy(result).items()))
    shuffled["final"] = dict(reversed(shuffled["final"].items()))
    shuffled["final"]["energy_per_token_parts_j"] = dict(
        reversed(shuffled["final"]["energy_per_token_parts_j"].items())
    )
    shuffled["baselines"] = dict(reversed(shuffled["baselines"].items()))
    shuffled["sources"] = dict(reversed(shuffled["sources"].items()))
    write_result(tmp_path / "result.json", shuffled)
    read = read_result(tmp_path / "result.json")
    assert json.dumps(read, sort_keys=True) == json.dumps(result, sort_keys=True)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):  # a user's matplotlibrc does not matter
        written = render(shuffled, tmp_path / "a")
    assert _contents(tmp_path / "a") == _contents(drawn)
    assert sorted(_contents(tmp_path / "a")) == sorted(path.relative_to(tmp_path / "a").as_posix() for path in written)


def test_figures_are_real_pictures(drawn: Path) -> None:
    for name in FIGURES:
        png = (drawn / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(png) > 5000
        svg = ElementTree.fromstring((drawn / "figures" / f"{name}.svg").read_bytes())
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(svg.iter())) > 30


def test_page_asks_the_network_for_nothing(html: str) -> None:
    page = Page(html)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    for link in page.all("a"):
        allowed = ("data:text/csv;",) if "download" in link else ("#", "https://doi.org/10.")
        assert link["href"].startswith(allowed), link
    assert html.count("http") == html.count("https://doi.org/") + html.count("http-equiv")
    assert "@import" not in html and "url(" not in html


def test_only_our_own_script_may_run(html: str) -> None:
    page = Page(html)
    assert page.all("script") == [{}]
    script = html.partition("<script>")[2].partition("</script>")[0]
    assert script == (resources.files("fllm.report") / "templates" / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert set(rules) == {"default-src", "img-src", "style-src", "script-src"}
    handlers = [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not handlers


def test_the_script_reaches_for_nothing() -> None:
    script = (resources.files("fllm.report") / "templates" / "report.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) < 120
    for word in ("fetch", "XMLHttpRequest", "import", "eval", "innerHTML", "window", "localStorage", "http", "</"):
        assert word not in script


def test_a_cell_carries_the_number_that_it_shows(html_of: HtmlOf, result: dict[str, Any]) -> None:
    result["final"]["prices"][0]["price_j"] = 5.9512e-7
    result["rounds"][1]["train_loss"] = None
    html = html_of(result)
    assert '<td class="number" data-value="5.9512e-07" title="5.9512e-07 J">595 nJ</td>' in html
    assert f'<td class="number">{NOTHING}</td>' in html
    assert "±" in html and re.search(r'data-value="0\.\d+" title="0\.\d+ ± 0\.\d+">\d+\.\d ± ', html)


def test_page_is_accessible(html: str) -> None:
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("title")) == len(page.all("h1")) == 1
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    assert all(cell["scope"] in {"col", "row", "rowgroup"} for cell in page.all("th"))
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    assert {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")} <= set(ids)


def test_first_screen_answers_the_question(html: str) -> None:
    first = html[: html.index('<section id="evaluation"')].replace("\N{NO-BREAK SPACE}", " ")
    for expected in ("74.2 %", "74.6 %", "(65.8 to 81.7)", "40.0 %", "83.3 %", "598 nJ", "2.64 µs", "120 test cases"):
        assert expected in first, expected


def test_synthetic_data_are_called_so(html_of: HtmlOf, result: dict[str, Any]) -> None:
    assert "SYNTHETIC DATA" in html_of(result)
    result["data"]["synthetic"] = False
    assert "SYNTHETIC DATA" not in html_of(result)


def test_simulator_time_is_not_hardware_time(html_of: HtmlOf, result: dict[str, Any]) -> None:
    result["final"]["wall_seconds"] = 98.7654
    html = html_of(result)
    assert html.count("98.8 s") == 1
    assert "running time (not the modelled hardware)" in html.replace("&#39;", "'")


@pytest.mark.usefixtures("_laid_out")
def test_special_characters_are_escaped(tmp_path: Path, result: dict[str, Any]) -> None:
    nasty = "<script>alert('x')</script>&\"'"
    result["name"] = result["command"] = result["device"]["title"] = result["model"]["name"] = nasty
    result["config"] |= {nasty: nasty}
    result["data"] |= {"source": nasty, "fields": [nasty], "label_counts": {nasty: 1}}
    result["data"]["clients"][0]["name"] = nasty
    result["not_modelled"] = [nasty]
    result["sources"] |= {nasty: f"{nasty} doi:10.1000/{nasty}"}
    result["device"]["values"].append(
        {
            "key": nasty,
            "value": nasty,
            "kind": nasty,
            "source": nasty,
            "where": nasty,
            "note": nasty,
            "range": [nasty] * 2,
        }
    )
    energy = result["final"]["energy"]
    energy["parts_j"] |= {"a $b_{c$ <part>": energy["parts_j"]["writes"]}
    energy["dominates"] = energy["area_m2"]["parts"] = {nasty: 1.0}
    energy["area_technology"] = {nasty: nasty}
    for row in (energy["baselines"][0], energy["tornado"][0], energy["timeline"][0]):
        row.update({key: nasty for key, value in row.items() if isinstance(value, str)})
    energy["baselines"][0]["sources"] = [nasty]
    result["network"] |= {"title": nasty}
    result["network"]["values"][0] |= {"key": nasty, "note": nasty, "source": nasty, "kind": nasty}
    result["final"]["training"]["network_title"] = nasty
    result["task"]["classes"][0] = nasty
    result["baselines"]["majority"]["name"] = nasty
    for device in ("ideal", "hardware"):
        found = result["final"]["evaluation"][device]
        found["recall"][nasty] = found["recall"]["appendicitis"]
        found["clients"][0]["name"] = found["worst_client"]["name"] = nasty
    result["data"]["split"]["rule"] = result["data"]["partition"]["rule"] = result["data"]["cues"]["mask"] = nasty
    result["data"]["warnings"] = [nasty]
    result["data"]["truncation"] |= {"rule": nasty, "fields": {nasty: {"tokens": 2, "tokens_lost": 1}}}
    result["final"]["prices"][0] |= {"event": nasty, "part": nasty, "source": nasty, "kind": nasty}
    html = _html(result, tmp_path)
    assert [tag for tag, _ in Page(html).elements].count("script") == 1
    assert html.count("<script") == html.count("<script>") == 1  # ours
    assert "&lt;script&gt;" in html
    Page(html)


@pytest.mark.usefixtures("_laid_out")
@pytest.mark.parametrize(("status", "rounds"), [("running", 0), ("interrupted", 1), ("running", 2)])
def test_an_unfinished_run_renders_and_says_so(
    tmp_path: Path, result: dict[str, Any], status: str, rounds: int
) -> None:
    result |= {"status": status, "final": None, "rounds": result["rounds"][:rounds]}
    html = _html(result, tmp_path)
    Page(html)
    assert "Unfinished run." in html[: html.index("<h1>")]
    assert f"{max(0, rounds - 1)} of 3 rounds are finished" in html
    assert all((tmp_path / "figures" / f"{name}.{kind}").stat().st_size for name in ALWAYS for kind in ("png", "svg"))
    assert not list((tmp_path / "figures").glob("confusion*"))


def test_an_evaluation_alone_says_nothing_of_training(html_of: HtmlOf, result: dict[str, Any]) -> None:
    before = html_of(result)
    result["config"] |= {"evaluate_only": True, "adapter": "reports/first"}
    result["adapter"] = {"sha256": "ab" * 32, "device": {"name": "gaincell_28nm"}}
    result["final"]["training"] = None
    del result["network"]
    result["rounds"] = [result["rounds"][0]]
    for key in ("train_loss", "clients", "failures", "uplink_bytes", "downlink_bytes"):
        result["rounds"][0].pop(key, None)
    shown = html_of(result)
    assert set(figure_names(result)) == set(FIGURES) - {"rounds", "loss", "communication", "training"}
    for said in ('id="rounds"', 'id="training"', 'href="#rounds"', 'href="#training"', "Training loss", "Uplink"):
        assert said in before and said not in shown, said
    assert "With a given adapter that is not trained further" in shown
    assert "federated model" in before and "federated model" not in shown
    assert "After federated" in before and "After federated" not in shown
    assert "evaluated adapter SHA-256" in shown and "adapter at the start.sha256" in shown
    assert "Counted over the forward passes of this evaluation" in shown
    markdown = run_markdown(result, [Picture(name, "", "", b"", b"") for name in figure_names(result)])
    assert "## Rounds" not in markdown and "## Training energy" not in markdown and "## Evaluation" in markdown
    result |= {"status": "interrupted", "final": None}
    assert "statistics and costs of its evaluation are not finished" in html_of(result)


def test_a_bare_result_renders(tmp_path: Path) -> None:
    bare = {
        "schema_version": 1,
        "status": "running",
        "name": "bare",
        "config": {},
        "data": {},
        "model": {},
        "device": {},
    }
    Page(_html(bare | {"rounds": []}, tmp_path))


def test_a_wide_range_of_perplexity_is_drawn_on_a_log_axis(result: dict[str, Any]) -> None:
    from fllm.report.figures import draw_loss

    assert draw_loss(result).figure.axes[1].get_yscale() == "linear"
    result["rounds"][0]["ideal"]["perplexity"] = 4000.0
    assert draw_loss(result).figure.axes[1].get_yscale() == "log"


def test_one_die_has_no_spread(html_of: HtmlOf, result: dict[str, Any]) -> None:
    for row in result["rounds"]:
        for metric in row["hardware"].values():
            metric |= {"std": 0.0, "dies": 1}
    html = html_of(result)
    assert "one simulated die" in html
    assert "± 0" not in html.replace("\N{NO-BREAK SPACE}", " ")


def test_assumptions_stand_first_and_sources_are_linked(html: str, result: dict[str, Any]) -> None:
    table = html[html.index('<section id="device"') : html.index('<section id="not-modelled"')]
    order = [table.index(f">{kind} (") for kind in ("Assumed", "Derived", "Simulated", "Measured")]
    assert order == sorted(order)
    assert "token_period" in table
    kinds = [entry["kind"] for entry in result["device"]["values"]] + ["assumed"]  # the token period
    assumed = kinds.count("assumed")
    assert f"Assumed ({assumed})" in table and f"{len(kinds)} numbers" in table
    assert f"{assumed} of {len(kinds)} device numbers are assumptions" in html
    number = sorted(result["sources"]).index("leroux2025") + 1
    assert f'<a href="#source-{number}">leroux2025</a>' in table
    assert f'<dt id="source-{number}">leroux2025</dt>' in html
    assert '<a href="https://doi.org/10.1038/s43588-025-00854-1">' in html


@pytest.mark.parametrize(
    ("kind", "prices", "said"),
    [
        ("hard_sigmoid", [], "hard sigmoid, analog"),
        (
            "softmax",
            [{"event": "attention.softmax", "energy_per_token_j": 2e-9}],
            "softmax, digital, 2.00 nJ per token",
        ),
    ],
)
def test_the_activation_and_its_cost_are_named(kind: str, prices: list[dict[str, Any]], said: str) -> None:
    result = {"device": {"activation": kind}, "final": {"prices": prices}}
    assert said in activation_line(result).replace("\xa0", " ")


def test_effects_that_never_acted_stand_among_the_limits(result: dict[str, Any]) -> None:
    result["warnings"] = ["no effect of refresh: too seldom"]
    assert any("no effect of refresh: too seldom" in line for line in limits(result))
