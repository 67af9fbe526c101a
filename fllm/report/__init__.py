"""Reports: pure functions of a result that write one HTML page, the same as Markdown, and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fllm.results import SWEEP


def render(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the report of a run or a sweep into a folder; equal results give equal bytes.

    Args:
        result: A result as ``read_result`` returns it; at any state.
        folder: Where to write; made when it is missing.

    Returns:
        The written files, the page first.
    """
    if result.get("kind") == SWEEP:
        from fllm.report.sweep.page import render_sweep

        return render_sweep(result, folder)
    from fllm.report.html import render as render_run

    return render_run(result, folder)


def render_comparison(results: Sequence[Mapping[str, Any]], names: Sequence[str], folder: Path) -> list[Path]:
    """Write a comparison of several runs, or of several sweeps, into a folder.

    Raises:
        InputError: If runs and sweeps are mixed.
    """
    from fllm.report.comparison.page import render_comparison as compare

    return compare(results, names, folder)


__all__ = ["render", "render_comparison"]
