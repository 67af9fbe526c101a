"""Reports as Markdown: the same tables and figures as on the page, for a reader on GitHub or in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html.parser import HTMLParser
from typing import Any

from markupsafe import Markup

from fllm.report.contents import contents
from fllm.report.drawing import Picture
from fllm.report.page import fill
from fllm.report.tables import Table

_SPECIAL = re.compile(r"[\\`*\[\]<>|$~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_STARTS_BLOCK = re.compile(r"^(?=[#+=-])|^(\d+)(?=[.)])")


def run_markdown(result: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Write the report of a run, with links to its figures in ``figures/``; equal results give equal text."""
    return fill(
        "report.md.j2",
        **contents(result),
        pictures={picture.name: picture for picture in pictures},
        text=inline,
        table=table_block,
        figure=markdown_figure,
        bullets=bullets,
        folded=folded,
        code=code,
    )


def markdown_table(table: Table) -> str:
    """Write a table below its caption; the heading of a group becomes a bold row."""
    return f"*{inline(table.caption)}*\n\n{_grid(table)}"


def table_block(table: Table, most: int = 40) -> str:
    """Write a table; one with more rows than ``most`` is folded under its caption."""
    if sum(len(group.rows) for group in table.groups) > most:
        return folded(table.caption, _grid(table))
    return markdown_table(table)


def _grid(table: Table) -> str:
    columns = range(len(table.columns))
    lines = [
        _row(inline(column) for column in table.columns),
        _row("---:" if column in table.numeric else "---" for column in columns),
    ]
    for group in table.groups:
        if group.heading:
            lines.append(_row(f"**{cell}**" if cell else "" for cell in map(inline, group.heading)))
        lines += [_row(map(inline, row)) for row in group.rows]
    return "\n".join(lines)


def markdown_figure(picture: Picture, folder: str = "figures") -> str:
    """Link a figure that lies beside the document, above its caption."""
    return f"![{inline(picture.alt)}]({folder}/{picture.name}.svg)\n\n*{inline(picture.caption)}*"


def bullets(lines: Iterable[str]) -> str:
    """Write a list."""
    return "\n".join(f"- {paragraph(line)}" for line in lines)


def folded(summary: str, block: str) -> str:
    """Hide a long block behind a line that opens it; Markdown has no word for this, so it is HTML."""
    return f"<details>\n<summary>{Markup.escape(summary)}</summary>\n\n{block}\n\n</details>"


def code(text: str) -> str:
    """Write a block of code, fenced by more backticks than it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def paragraph(text: str) -> str:
    """Write text at the start of a line, where a number sign or a dash would begin something else."""
    return _STARTS_BLOCK.sub(lambda match: f"{match[1]}\\" if match[1] else "\\", inline(text))


def inline(cell: str) -> str:
    """Write a cell on one line, so that it reads as it stands; markup keeps its links to the web and to sections."""
    if not isinstance(cell, Markup):
        return _escape(cell)
    reader = _Reader()
    reader.feed(str(cell))
    reader.close()
    return "".join(reader.parts)


class _Reader(HTMLParser):
    """Turns the markup of our own cells into Markdown."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._target: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = (dict(attrs).get("href") if tag == "a" else None) or ""
        self._target = target if target.startswith("https://") else _SECTIONS.get(target.rpartition("-")[0])
        if self._target:
            self.parts.append("[")

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._target:
            self.parts.append(f"]({self._target.translate(_IN_ADDRESS)})")
            self._target = None

    def handle_data(self, data: str) -> None:
        self.parts.append(_escape(data))


_SECTIONS = {"#baseline": "#against-other-hardware"}  # a row cannot be linked to, the heading above it can
_IN_ADDRESS = str.maketrans({"(": "%28", ")": "%29", "\\": "%5C", "<": "%3C", ">": "%3E", "|": "%7C", " ": "%20"})


def _escape(text: str) -> str:
    """Put a backslash before each character that Markdown, its tables or GitHub's formulas would take for a sign."""
    return _SPECIAL.sub(r"\\\g<0>", re.sub(r"[\r\n\v\f\x85\u2028\u2029]+", " ", text))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
