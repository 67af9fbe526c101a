"""The report of a sweep: a page that carries its style and figures, the same as Markdown, and the figures beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fllm.report.drawing import Picture
from fllm.report.markdown import bullets, code, folded, inline, markdown_figure, paragraph, table_block
from fllm.report.page import fill, save
from fllm.report.sweep.contents import contents, rows_download
from fllm.report.sweep.facts import Sweep, analyse
from fllm.report.sweep.figures import draw_analysed


def render_sweep(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``figures/`` into a folder; equal results give equal bytes.

    Args:
        result: A sweep's ``result.json``; any status, any number of rows.
        folder: Where to write; made when it is missing.

    Returns:
        The written files, the page first.
    """
    sweep = analyse(result)
    pictures, said = draw_analysed(sweep), contents(sweep)
    files = {
        "report.html": _page(sweep, said, pictures).encode(),
        "report.md": _markdown(said, pictures).encode(),
    }
    for picture in pictures:
        files |= {f"figures/{picture.name}.png": picture.png, f"figures/{picture.name}.svg": picture.svg}
    return save(folder, files)


def sweep_page(result: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Fill the page's template."""
    sweep = analyse(result)
    return _page(sweep, contents(sweep), pictures)


def sweep_markdown(result: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """Write the report as Markdown, with links to its figures in ``figures/``; equal results give equal text."""
    return _markdown(contents(analyse(result)), pictures)


def _page(sweep: Sweep, said: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    return fill("sweep.html.j2", **said, pictures=_by_name(pictures), rows=rows_download(sweep))


def _markdown(said: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    return fill(
        "sweep.md.j2",
        **said,
        pictures=_by_name(pictures),
        text=inline,
        paragraph=paragraph,
        table=table_block,
        figure=markdown_figure,
        bullets=bullets,
        folded=folded,
        code=code,
    )


def _by_name(pictures: Sequence[Picture]) -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures}
