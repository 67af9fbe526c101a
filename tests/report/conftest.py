"""A result with invented numbers, in the shape that a run writes, and a browser to read its page with."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from matplotlib.figure import Figure

from fllm.report.drawing import Picture
from fllm.report.figures import figure_names
from fllm.report.html import page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest.register_assert_rewrite("tests.report.browser")

ALWAYS = ("rounds", "loss", "communication", "energy_parts", "tornado", "baselines", "timeline", "training")
"""Figures that every report has."""
FIGURES = (
    "standing", "confusion_ideal", "confusion_hardware", "reliability", *ALWAYS, "label_mix",
)  # fmt: skip
"""Figures of the example."""


@pytest.fixture
def result() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("example_result.json").read_text(encoding="utf-8"))


@pytest.fixture
def html_of() -> Callable[[dict[str, Any]], str]:
    """Return a function that fills the page without drawing its figures, which takes most of the time."""

    def fill(result: dict[str, Any]) -> str:
        blank = [
            Picture(name, f"Caption of {name}.", f"Description of the figure {name}.", b"<svg/>", b"")
            for name in figure_names(result)
        ]
        return page(result, blank).replace("\N{NO-BREAK SPACE}", " ")

    return fill


@pytest.fixture
def _laid_out() -> Iterator[None]:
    """Lay figures out, which fails where drawing would, and save nothing of them."""

    def lay_out(figure: Figure, file: IO[bytes], **settings: Any) -> None:
        if settings["format"] == "svg":
            figure.draw_without_rendering()
        file.write(b"<svg/>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lay_out)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Return the system's Chromium, without a window.

    Not for the whole session: while Playwright lives, its event loop counts as running in this thread, and whatever
    calls asyncio.run in a later test fails.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on the PATH")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
