"""A result with invented numbers, in the shape that a run writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fllm.report.drawing import Picture
from fllm.report.html import page

FIGURES = ("rounds", "loss", "communication", "energy_parts", "tornado", "baselines", "timeline", "training")


@pytest.fixture
def result() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("example_result.json").read_text(encoding="utf-8"))


@pytest.fixture
def html_of() -> Callable[[dict[str, Any]], str]:
    """Return a function that fills the page without drawing its figures, which takes most of the time."""
    blank = [
        Picture(name, f"Caption of {name}.", f"Description of the figure {name}.", b"<svg/>", b"") for name in FIGURES
    ]
    return lambda result: page(result, blank).replace("\N{NO-BREAK SPACE}", " ")
