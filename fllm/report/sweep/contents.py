"""What a sweep's report says, in the order in which it says it: words and tables for every format."""

from __future__ import annotations

from typing import Any

from fllm.report import tables
from fllm.report.answer import device_title, token_period_line
from fllm.report.contents import INTRODUCTIONS
from fllm.report.downloads import Download, csv_file
from fllm.report.formatting import engineering, significant
from fllm.report.sweep import answer as sweep_answer
from fllm.report.sweep import method as sweep_method
from fllm.report.sweep import tables as sweep_tables
from fllm.report.sweep.costs import changing
from fllm.report.sweep.curves import curves
from fllm.report.sweep.facts import Sweep
from fllm.report.sweep.figures import file_name
from fllm.report.sweep.front import choose, differs
from fllm.report.sweep.physics import physics
from fllm.report.sweep.required import required_values
from fllm.sweeps.table import FLAGS, columns_of


def contents(sweep: Sweep) -> dict[str, Any]:
    """Collect what the templates of a sweep's report ask for, all but its figures.

    Args:
        sweep: The analysed sweep, at any state.
    """
    result, choice, required = sweep.result, choose(sweep), required_values(sweep)
    card = sweep_answer.required_card(required)
    return {
        "introductions": INTRODUCTIONS,
        "name": result.get("name") or "sweep",
        "title": sweep_answer.title(sweep),
        "question": sweep_answer.question(sweep),
        "synthetic": bool((result.get("data") or {}).get("synthetic")),
        "status_note": sweep_answer.status_note(sweep),
        "answer": sweep_tables.answer_table(sweep, choice),
        "cards": ([card] if card else []) + _cards(sweep),
        "findings": sweep_answer.findings(sweep, choice, required),
        "certainty": sweep_method.certainty(sweep),
        "curves": _curve_figures(sweep),
        "physics": physics(sweep),
        "required": [
            (file_name("required", curve.key.name), sweep_tables.required_table(curve, lines))
            for curve, lines in required
        ],
        "front": sweep_tables.front_table(sweep),
        "energy_meaning": sweep_method.MEANING,
        "latency_line": _latency_line(sweep),
        "points": sweep_tables.points_table(sweep),
        "failed": sweep_tables.failed_table(sweep),
        "how": sweep_method.how_lines(sweep),
        "adapters": sweep_tables.adapters_table(sweep),
        "device_title": device_title(result),
        "device": tables.device_table(result),
        "not_modelled": result.get("not_modelled") or [],
        "config": tables.mapping_table("Configuration of the base run", ("Key", "Value"), result.get("config") or {}),
        "environment": tables.mapping_table("Environment", ("What", "Value"), _environment(sweep)),
        "command": result.get("command"),
        "limits": sweep_method.limits(sweep),
        "sources": tables.source_list(result),
    }


def rows_download(sweep: Sweep) -> list[Download]:
    """All rows without the record of single cases, as a file to save; none while there are no rows."""
    rows = sweep.result.get("rows") or []
    if not rows:
        return []
    listed = [column for column in columns_of([key.column for key in sweep.keys]) if column not in FLAGS]
    more = sorted({column for row in rows for column in row} - {*listed, *FLAGS})
    columns = [*dict.fromkeys(listed), *more]
    ordered = sorted(
        rows, key=lambda row: (row["point"], row.get("seed") or 0, -1 if row["die"] is None else row["die"])
    )
    return [csv_file("sweep_rows.csv", columns, [[row.get(column) for column in columns] for row in ordered])]


def _curve_figures(sweep: Sweep) -> list[str]:
    """Names of the figures of accuracy against each key."""
    keys = [curve.key for curve in curves(sweep)] if sweep.gridlike else list(sweep.keys)
    return [file_name("accuracy", key.name) for key in keys]


def _cards(sweep: Sweep) -> list[tuple[str, str, list[str]]]:
    """Energy and latency of the base device and over the sweep, as (title, number, lines below it)."""
    base = None if sweep.base is None else sweep.points[sweep.base]
    cards = []
    for name, column, unit in (
        ("Energy per token", "energy_per_token_j", "J"),
        ("Latency per token", "latency_per_token_s", "s"),
    ):
        values = [value for place in sweep.designs if (value := sweep.points[place].mean(column)) is not None]
        shown = base.mean(column) if base is not None else None
        lines = [] if shown is None else [sweep.base_noun]
        if unit == "J" and base is not None and base.energy_interval:
            lines.append(f"95 % interval: {sweep_tables.quantity_bounds(base.energy_interval, unit)}")
        number = engineering(shown, unit)
        if values and differs([*values]):
            ends = sweep_tables.quantity_bounds((min(values), max(values)), unit)
            lines.append(f"in this sweep {ends}" if shown is not None else "over the points of this sweep")
            number = number if shown is not None else ends
        elif values:
            lines.append("no varied key changes it noticeably")
            number = engineering(values[0], unit)
        if unit == "s" and (period := token_period_line(sweep.result)):
            lines.append(period)
        cards.append((name, number, lines))
    return cards


def _latency_line(sweep: Sweep) -> str:
    """Say how the latency depends on the keys, where no figure does."""
    if changing(sweep, "latency_per_token_s"):
        return ""
    known = [latency for place in sweep.known if (latency := sweep.points[place].latency) is not None]
    if not known:
        return "No latency is known yet."
    if not differs([*known]):
        return f"No varied key changes the latency per token by 0.1 % or more: {engineering(known[0], 's')}."
    ends = f"{engineering(min(known), 's')} to {engineering(max(known), 's')}"
    return f"Latency per token runs from {ends}; the table of all points has each."


def _environment(sweep: Sweep) -> dict[str, Any]:
    """Collect everything that tells where and on what the sweep was made."""
    result = sweep.result
    final = result.get("final") or {}
    values: dict[str, Any] = {
        "sweep created": result.get("created"),
        "data SHA-256": (result.get("data") or {}).get("sha256"),
        "data source": (result.get("data") or {}).get("source"),
        "base device file SHA-256": (result.get("device") or {}).get("file_sha256"),
        "model": {key.replace("_", " "): value for key, value in (result.get("model") or {}).items()},
        **(result.get("environment") or {}),
    }
    if final.get("wall_seconds") is not None:
        values["simulator's own running time (not the modelled hardware)"] = f"{significant(final['wall_seconds'])} s"
    return values
