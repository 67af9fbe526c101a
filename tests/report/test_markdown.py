"""The report as Markdown: what a reader of the page finds, he finds here, and no text is taken for a sign."""

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from fllm.report.contents import contents
from fllm.report.drawing import Picture
from fllm.report.html import render
from fllm.report.markdown import bullets, code, folded, inline, markdown_figure, markdown_table, run_markdown
from fllm.report.tables import Group, Table
from tests.report.conftest import FIGURES

PICTURES = [Picture(name, f"Caption of {name}.", f"What [{name}] shows.", b"", b"") for name in FIGURES]
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
SECTIONS = [
    "Answer", "What it means", "How sure", "Evaluation", "Rounds", "Where the energy goes", "Against other hardware",
    "Latency and area", "Training energy", "Clients and data",
    "Numbers of the device: Gain-cell attention in 28 nm CMOS, as published (Leroux et al. 2025)",
    "What is not modelled", "Configuration and environment", "How to reproduce", "Limits", "Sources",
]  # fmt: skip
NASTY = "<script>alert(1)</script> | **b** _i_ `c` [l](http://x) ![i](y) ~~s~~ $x$ &amp; \\ # 1. - + = \n\n# h"


def _words(token: Token) -> str:
    """Text of an inline token, as a reader sees it."""
    return "".join(child.content for child in token.children or [] if child.type in {"text", "code_inline"})


def _cells(text: str) -> list[list[str]]:
    """Rows of all tables of a document."""
    rows: list[list[str]] = []
    tokens = PARSER.parse(text)
    for before, token in itertools.pairwise(tokens):
        if before.type == "tr_open":
            rows.append([])
        if before.type in {"td_open", "th_open"}:
            rows[-1].append(_words(token) if token.type == "inline" else "")
    return rows


@pytest.fixture
def text(result: dict[str, Any]) -> str:
    return run_markdown(result, PICTURES)


def test_sections_stand_in_the_order_of_the_page(text: str) -> None:
    tokens = PARSER.parse(text)
    headings = [_words(after) for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    assert headings[1:] == SECTIONS
    assert text.index("SYNTHETIC DATA") < text.index("how accurate is the model")
    order = [text.index(f"**{kind} (") for kind in ("Assumed", "Derived", "Simulated", "Measured")]
    assert order == sorted(order)


def test_it_holds_every_cell_of_every_table(text: str, result: dict[str, Any]) -> None:
    found = _cells(text)
    tables = [value for value in contents(result).values() if isinstance(value, Table)]
    assert len(tables) == 20
    for table in tables:
        assert list(table.columns) in found
        for group in table.groups:
            for row in group.rows:
                assert [re.sub("<[^>]*>", "", cell) if isinstance(cell, Markup) else cell for cell in row] in found


@pytest.mark.usefixtures("_sketched")
def test_its_figures_lie_beside_it(tmp_path: Path, result: dict[str, Any]) -> None:
    files = render(result, tmp_path)
    assert files[1] == tmp_path / "report.md"
    links = re.findall(r"!\[[^\]]{20,}\]\(([^)]+)\)", files[1].read_text(encoding="utf-8"))
    assert sorted(links) == sorted(f"figures/{name}.svg" for name in FIGURES)
    assert all((tmp_path / link).is_file() for link in links)


def test_it_follows_from_the_result_alone(text: str, result: dict[str, Any]) -> None:
    assert run_markdown(copy.deepcopy(dict(reversed(result.items()))), PICTURES[::-1]) == text
    assert text.endswith("\n") and "\n\n\n" not in text


def test_the_only_html_folds_long_tables(text: str) -> None:
    blocks = [token.content.split("\n") for token in PARSER.parse(text) if token.type == "html_block"]
    lines = {re.sub("<summary>.*</summary>", "<summary>", line) for block in blocks for line in block if line}
    assert lines == {"<details>", "<summary>", "</details>"}


def test_nothing_that_a_result_says_is_a_sign(result: dict[str, Any]) -> None:
    result["name"] = result["device"]["title"] = result["model"]["name"] = result["command"] = NASTY
    result["not_modelled"] = [NASTY, "# no heading", "- no list", "1. no number", "+ no list"]
    result["config"] |= {NASTY: NASTY}
    result["sources"] |= {NASTY: NASTY}
    result["data"]["clients"][0]["name"] = result["baselines"]["majority"]["name"] = NASTY
    result["task"]["classes"][0] = result["data"]["partition"]["rule"] = NASTY
    result["data"]["warnings"] = ["# no heading", NASTY]
    text = run_markdown(result, PICTURES)
    tokens = PARSER.parse(text)
    assert sum(token.type == "heading_open" for token in tokens) == len(SECTIONS) + 1
    assert not any(child.type == "html_inline" for token in tokens for child in token.children or [])
    pictures = [child for token in tokens for child in token.children or [] if child.type == "image"]
    assert len(pictures) == len(FIGURES)
    one_line = re.sub(r"\n+", " ", NASTY)
    assert [one_line, one_line] in _cells(text)
    assert next(token.content for token in tokens if token.type == "fence") == f"{NASTY}\n"
    assert set(result["not_modelled"][1:]) <= {_words(token) for token in tokens if token.type == "inline"}


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_an_unfinished_run_says_so(result: dict[str, Any], status: str) -> None:
    text = run_markdown(result | {"status": status, "final": None, "rounds": []}, PICTURES)
    assert "> **Unfinished run.** This run" in text
    assert "No event has been priced." in text


@example("__0__")
@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=30))
def test_a_cell_reads_as_it_stands(cell: str) -> None:
    table = Table("Caption", ("Column",), [Group([(cell,)])])
    assert _cells(markdown_table(table)) == [["Column"], [cell.strip()]]


def test_a_table_marks_numbers_and_headings() -> None:
    group = Group([("a", "1")], ("Sum", ""))
    table = Table("A *caption*", ("Name", "Size [m]"), [group], frozenset({1}))
    assert markdown_table(table).split("\n") == [
        r"*A \*caption\**", "", r"| Name | Size \[m\] |", "| --- | ---: |", "| **Sum** |  |", "| a | 1 |",
    ]  # fmt: skip


def test_markup_keeps_its_words_and_its_links_to_the_web() -> None:
    cell = Markup('<a href="https://doi.org/10.1/a(b)">doi|x</a>, <a href="#source-1">key</a>, <b>bold</b> &lt;')
    assert inline(cell) == r"[doi\|x](https://doi.org/10.1/a%28b%29), key, bold \<"
    assert inline(Markup('<a href="javascript:x">y</a>')) == "y"
    assert inline(Markup('<a href="#baseline-3">H100</a>')) == "[H100](#against-other-hardware)"


def test_blocks() -> None:
    assert bullets(["a", "1) b"]) == "- a\n- 1\\) b"
    assert code("a ``` b") == "````text\na ``` b\n````"
    assert folded("a < b", "c") == "<details>\n<summary>a &lt; b</summary>\n\nc\n\n</details>"
    picture = next(picture for picture in PICTURES if picture.name == "rounds")
    assert markdown_figure(picture).startswith(r"![What \[rounds\] shows.](figures/rounds.svg)")
