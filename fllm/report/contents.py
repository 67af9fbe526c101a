"""What a run's report says, in the order in which it says it: words, tables and numbers for every format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fllm.report import answer as facts
from fllm.report import energy_facts, energy_tables, tables
from fllm.report.formatting import NOTHING, count, engineering, percent, significant
from fllm.results import value_at

INTRODUCTIONS = {
    "energy": (
        "A token is computed in two places, the arrays and a digital accelerator beside them. They are listed apart; "
        "where a number holds both, it says so."
    ),
    "hardware": (
        "The energy of one token in three scopes, each against the same part of this device. Read the caveat before "
        "dividing: a circuit's peak, a board's supply and a published measurement leave out different things."
    ),
    "training": (
        "Arrays, digital accelerator and network are three different places with different owners and different "
        "certainty; they are never added here. Evaluation passes between the rounds are not in these numbers."
    ),
    "device": (
        "Assumptions stand first. Derived means computed from reported numbers, simulated reported from a circuit "
        "simulation, measured reported from a chip."
    ),
}


def contents(result: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what the templates of a run's report ask for, all but its figures.

    Args:
        result: A result as ``read_result`` returns it; any status, any number of rounds.
    """
    return {
        "introductions": INTRODUCTIONS,
        "name": result["name"],
        "title": facts.title(result),
        "question": facts.question(result),
        "synthetic": bool(result["data"].get("synthetic")),
        "status_note": facts.status_note(result),
        "accuracy": tables.accuracy_table(result),
        "cards": _cards(result),
        "comparison": energy_tables.comparison_table(result),
        "findings": facts.findings(result) + energy_facts.meanings(result),
        "certainty": facts.certainty(result) + energy_facts.certainty(result),
        "rounds": tables.rounds_table(result),
        "prices": energy_tables.prices_table(result),
        "tornado": bool(energy_facts.energy_of(result).get("tornado")),
        "baselines": energy_tables.baselines_table(result),
        "area": energy_tables.area_table(result),
        "training": energy_tables.training_table(result),
        "training_rounds": energy_tables.training_rounds_table(result),
        "training_lines": energy_facts.training_lines(result),
        "network": tables.network_table(result),
        "clients": tables.clients_table(result),
        "data_lines": _data_lines(result),
        "device_title": facts.device_title(result),
        "device": tables.device_table(result),
        "not_modelled": result.get("not_modelled") or [],
        "config": tables.mapping_table("Configuration", ("Key", "Value"), result["config"]),
        "environment": tables.mapping_table("Environment", ("What", "Value"), _environment(result)),
        "command": result.get("command"),
        "limits": facts.limits(result),
        "sources": tables.source_list(result),
    }


def _cards(result: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Energy and latency as (title, number, lines below it)."""
    found = facts.answer(result)
    energy = energy_facts.energy_lines(result)
    largest = next(iter(found.parts_j.items()), None)
    total = sum(found.parts_j.values())
    if largest and total > 0 and not energy_facts.energy_of(result).get("dominates"):
        energy.append(f"Largest part: {largest[0]}, {percent(largest[1] / total, 0)}")
    assumed = facts.energy_by_kind(result).get("assumed")
    if assumed is not None:
        energy.append(f"{percent(assumed, 0)} of it rests on assumed prices")
    if activation := facts.activation_line(result):
        energy.append(activation)
    latency = energy_facts.latency_lines(result)
    if period := facts.token_period_line(result):
        latency.append(period)
    return [
        ("Energy per token", engineering(found.energy_per_token_j, "J"), energy),
        ("Latency per token", engineering(found.latency_per_token_s, "s"), latency),
    ]


def _data_lines(result: Mapping[str, Any]) -> list[str]:
    """Describe the data in a few lines."""
    data = result["data"]
    prompt = data.get("tokens_per_prompt") or {}
    lines = [
        f"{count(data.get('num_cases'))} cases, {count(data.get('num_train'))} for training and "
        f"{count(data.get('num_test'))} for the test; source: {data.get('source') or 'not named'}."
    ]
    if data.get("fields"):
        lines.append(f"Fields in the prompt: {', '.join(data['fields'])}.")
    if prompt:
        sizes = [f"{name} {significant(prompt.get(key))}" for key, name in _PROMPT_SIZES.items()]
        lines.append(f"Tokens per prompt: {', '.join(sizes)}. Truncated: {data.get('truncated_prompts', NOTHING)}.")
    return lines


_PROMPT_SIZES = {"median": "median", "p95": "95th percentile", "max": "longest"}


def _environment(result: Mapping[str, Any]) -> dict[str, Any]:
    """Collect everything that tells where and on what the run was made."""
    final = result.get("final") or {}
    model = result["model"]
    values: dict[str, Any] = {
        "run created": result.get("created"),
        "seed": result.get("seeds") or {},
        "data SHA-256": result["data"].get("sha256"),
        "device file SHA-256": result["device"].get("file_sha256"),
        "model": {key.replace("_", " "): value for key, value in model.items()},
        "trained adapter SHA-256": final.get("adapter_sha256"),
        **(result.get("environment") or {}),
    }
    if final.get("wall_seconds") is not None:
        values["simulator's own running time (not the modelled hardware)"] = f"{significant(final['wall_seconds'])} s"
    if final.get("peak_memory_bytes") is not None:
        values["simulator's own peak memory"] = engineering(final["peak_memory_bytes"], "B")
    if value_at(result, "final", "counts"):
        values["events counted"] = final["counts"]
    return values
