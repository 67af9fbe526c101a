"""The report of a run: a page that carries its style and figures, the same as Markdown, and the figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fllm.report.contents import contents
from fllm.report.downloads import run_downloads
from fllm.report.drawing import Picture
from fllm.report.figures import draw_all
from fllm.report.markdown import run_markdown
from fllm.report.page import fill, save


def render(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``figures/`` into a folder; equal results give equal bytes.

    Args:
        result: A result as ``read_result`` returns it; any status, any number of rounds.
        folder: Where to write; made when it is missing.

    Returns:
        The written files, the page first.
    """
    pictures = draw_all(result)
    files = {
        "report.html": page(result, pictures).encode(),
        "report.md": run_markdown(result, pictures).encode(),
    }
    for picture in pictures:
        files |= {f"figures/{picture.name}.png": picture.png, f"figures/{picture.name}.svg": picture.svg}
    return save(folder, files)


def page(result: Mapping[str, Any], pictures: list[Picture]) -> str:
    """Fill the page's template."""
    return fill(
        "report.html.j2",
        **contents(result),
        pictures={picture.name: picture for picture in pictures},
        downloads=run_downloads(result),
    )
