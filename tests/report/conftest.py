"""A result with invented numbers, in the shape that a run writes."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def result() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("example_result.json").read_text(encoding="utf-8"))
