"""The comparison of several runs, or of several sweeps: what differs between them first, then what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from device_models.errors import InputError
from fllm.report.answer import status_note
from fllm.report.comparison import facts, figures, tables
from fllm.report.comparison.facts import Result, Results
from fllm.report.comparison.sections import Section, limits, run_sections, seed_section, sweep_sections
from fllm.report.comparison.seed_figures import draw_differences, draw_models
from fllm.report.comparison.seeds import over_seeds
from fllm.report.comparison.sweep_figures import draw_all_points, draw_shared
from fllm.report.comparison.sweep_tables import sweeps_table
from fllm.report.comparison.sweeps import read_sweeps
from fllm.report.drawing import Drawn, picture
from fllm.report.formatting import plural
from fllm.report.markdown import bullets, inline, markdown_figure, table_block
from fllm.report.page import fill, save
from fllm.report.tables import Table

_Parts = tuple[Table, list[Section], Mapping[str, Callable[[], Drawn]]]


def render_comparison(results: Sequence[Result], names: Sequence[str], folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``figures/`` of a comparison; equal results give equal bytes.

    Args:
        results: Two or more runs, or two or more sweeps, as ``read_result`` returns them; any status. The first is the
            one that the others are compared with.
        names: What to call each of them; equal names get numbers.
        folder: Where to write; made when it is missing.

    Returns:
        The written files, the page first.

    Raises:
        InputError: If there are fewer than two results, or runs beside sweeps.
    """
    kind = _kind(results, names)
    names = facts.distinct(names)
    compared, sections, drawings = (_of_sweeps if kind == "sweep" else _of_runs)(results, names)
    content = _frame(results, names, kind) | {
        "sections": [
            Section("compared", "What is compared", tables=(compared,)),
            _differences(results, names),
            *sections,
            Section("limits", "Limits", limits(results, kind)),
        ],
        "pictures": {name: picture(name, draw) for name, draw in drawings.items()},
    }
    words = {"text": inline, "table": table_block, "figure": markdown_figure, "bullets": bullets}
    files = {
        "report.html": fill("comparison.html.j2", **content).encode(),
        "report.md": fill("comparison.md.j2", **content, **words).encode(),
    }
    for made in content["pictures"].values():
        files |= {f"figures/{made.name}.png": made.png, f"figures/{made.name}.svg": made.svg}
    return save(folder, files)


def _kind(results: Results, names: Sequence[str]) -> str:
    """Return what all results are: ``run`` or ``sweep``."""
    if len(results) < 2 or len(results) != len(names):
        raise InputError("nothing to compare", expected="two or more results, each with a name", received=len(results))
    kinds = [str(result.get("kind") or "run") for result in results]
    if len(set(kinds)) > 1 or not set(kinds) <= {"run", "sweep"}:
        received = ", ".join(f"{name} is a {kind}" for name, kind in zip(names, kinds, strict=True))
        raise InputError("these do not compare", expected="runs only, or sweeps only", received=received)
    return kinds[0]


def _frame(results: Results, names: Sequence[str], kind: str) -> dict[str, Any]:
    """Collect what stands above the sections."""
    return {
        "title": f"{plural(len(results), kind)} compared",
        "heading": ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        "question": f"What differs between these {kind}s, and what becomes of accuracy, energy and latency?",
        "synthetic": any(result["data"].get("synthetic") for result in results),
        "cautions": _unfinished(results, names, kind) + facts.cautions(results, names),
    }


def _differences(results: Results, names: Sequence[str]) -> Section:
    settings, device, origins = (
        compare(results) for compare in (facts.settings_differences, facts.device_differences, facts.origin_differences)
    )
    shown = (
        tables.differences_table(f"Settings that differ: {len(settings.values)} of {settings.total}", settings, names),
        tables.device_differences_table(device, names),
        tables.differences_table("Data, model, device file, network and software where they differ", origins, names),
    )
    lines = [facts.same_line(results, settings, device, origins)]
    if not any(shown):
        lines.append("No setting, no device number, no data, model or software differs: these are repetitions.")
    return Section("differences", "What differs", lines, tables=shown)


def _of_runs(results: Results, names: Sequence[str]) -> _Parts:
    seeds = over_seeds(results)
    of_seeds: dict[str, Callable[[], Drawn]] = {}
    if seeds:
        of_seeds = {"seeds": partial(draw_models, seeds), "seed_differences": partial(draw_differences, seeds)}
    drawings = of_seeds | {
        "accuracy": partial(figures.draw_accuracy, results, names),
        "rounds": partial(figures.draw_rounds, results, names),
        "energy_parts": partial(figures.draw_energy, results, names),
    }
    sections = [*([seed_section(seeds)] if seeds else []), *run_sections(results, names)]
    return tables.compared_table(results, names), sections, drawings


def _of_sweeps(results: Results, names: Sequence[str]) -> _Parts:
    sweeps = read_sweeps(results, names)
    shared = sweeps.shared()
    drawings = {"all_points": partial(draw_all_points, sweeps)}
    if shared:
        drawings["shared_points"] = partial(draw_shared, sweeps, shared)
    return sweeps_table(sweeps), sweep_sections(sweeps, shared), drawings


def _unfinished(results: Results, names: Sequence[str], kind: str) -> list[tuple[str, str]]:
    """Say which results are not whole yet."""
    found = []
    for name, result in zip(names, results, strict=True):
        if result["status"] != "completed":
            note = (status_note(result) or "").partition(": ")[2] if kind == "run" else f"it is {result['status']}."
            found.append((f"Unfinished {kind}.", f"{name}: {note}"))
    return found
