"""Reports: pure functions of a run's result that write one HTML page and its figures."""

from fllm.report.html import render

__all__ = ["render"]
