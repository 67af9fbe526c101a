"""All figures of a sweep, in page order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fllm.report.drawing import Drawn, Picture, picture
from fllm.report.sweep.cost_figures import draw_energy_parts, draw_front, draw_latency
from fllm.report.sweep.costs import changing
from fllm.report.sweep.curve_figures import draw_cloud, draw_curve
from fllm.report.sweep.curves import curves
from fllm.report.sweep.facts import Sweep, analyse
from fllm.report.sweep.map_figure import draw_map, has_map
from fllm.report.sweep.required import main_required, required_values
from fllm.report.sweep.required_figure import draw_required


def draw_sweep(result: Mapping[str, Any]) -> list[Picture]:
    """Draw every figure of a sweep.

    Args:
        result: A sweep's ``result.json``, at any state.
    """
    return draw_analysed(analyse(result))


def draw_analysed(sweep: Sweep) -> list[Picture]:
    """Draw every figure of a sweep that is analysed already."""
    return [picture(name, draw) for name, draw in _figures(sweep).items()]


def file_name(start: str, key: str) -> str:
    """Name the figure of a key: letters, digits and underscores only."""
    return f"{start}_{re.sub(r'[^A-Za-z0-9]+', '_', key).strip('_')}"


def _figures(sweep: Sweep) -> dict[str, Callable[[], Drawn]]:
    drawings: dict[str, Callable[[], Drawn]] = {}
    if sweep.gridlike:
        for curve in curves(sweep):
            drawings[file_name("accuracy", curve.key.name)] = partial(draw_curve, sweep, curve)
    else:
        for key in sweep.keys:
            drawings[file_name("accuracy", key.name)] = partial(draw_cloud, sweep, key)
    for curve, lines in required_values(sweep):
        name = file_name("required", curve.key.name)
        drawings[name] = partial(draw_required, sweep, curve, main_required(curve, lines))
    if has_map(sweep):
        drawings["heat_map"] = partial(draw_map, sweep)
    drawings["accuracy_energy"] = partial(draw_front, sweep)
    drawings["energy_parts"] = partial(draw_energy_parts, sweep)
    if along := changing(sweep, "latency_per_token_s"):
        drawings["latency"] = partial(draw_latency, sweep, along)
    return drawings
