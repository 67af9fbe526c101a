"""What a run's report says, in the order in which it says it: words, tables and numbers for every format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fllm.report import answer as facts
from fllm.report import (
    chip_tables,
    client_tables,
    data_tables,
    energy_facts,
    energy_tables,
    evaluation_facts,
    evaluation_tables,
    tables,
)
from fllm.report.data_facts import data_lines
from fllm.report.findings import findings
from fllm.report.formatting import engineering, percent, significant
from fllm.report.privacy_tables import privacy_lines, privacy_table
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
        "trained": facts.is_trained(result),
        "synthetic": bool(result["data"].get("synthetic")),
        "status_note": facts.status_note(result),
        "accuracy": tables.accuracy_table(result),
        "cards": _cards(result),
        "comparison": energy_tables.comparison_table(result),
        "findings": findings(result) + energy_facts.meanings(result),
        "certainty": facts.certainty(result) + energy_facts.certainty(result),
        "rounds": tables.rounds_table(result),
        "participants_lines": client_tables.participants_lines(result),
        "participants": client_tables.participants_table(result),
        "links": client_tables.links_table(result),
        "chip_lines": chip_tables.chip_lines(result),
        "chips": chip_tables.chips_table(result),
        "chip_gains": chip_tables.gains_table(result),
        "client_devices": chip_tables.client_devices_table(result),
        "privacy_lines": privacy_lines(result),
        "privacy": privacy_table(result),
        "prices": energy_tables.prices_table(result),
        "tornado": bool(energy_facts.energy_of(result).get("tornado")),
        "baselines": energy_tables.baselines_table(result),
        "area": energy_tables.area_table(result),
        "training": energy_tables.training_table(result),
        "training_rounds": energy_tables.training_rounds_table(result),
        "training_lines": energy_facts.training_lines(result),
        "network": tables.network_table(result),
        "evaluation": _evaluation(result),
        "metrics": evaluation_tables.metrics_table(result),
        "recall": evaluation_tables.recall_table(result),
        "confusion": evaluation_tables.confusion_table(result),
        "client_scores": evaluation_tables.client_scores_table(result),
        "mcnemar": evaluation_tables.mcnemar_table(result),
        "generation": evaluation_tables.generation_table(result),
        "clients": data_tables.clients_table(result),
        "truncation": data_tables.truncation_table(result),
        "data_lines": data_lines(result),
        "data_warnings": result["data"].get("warnings") or [],
        "device_title": facts.device_title(result),
        "device": tables.device_table(result),
        "not_modelled": result.get("not_modelled") or [],
        "config": tables.mapping_table("Configuration", ("Key", "Value"), result["config"]),
        "environment": tables.mapping_table("Environment", ("What", "Value"), _environment(result)),
        "command": result.get("command"),
        "limits": facts.limits(result),
        "sources": tables.source_list(result),
    }


def _evaluation(result: Mapping[str, Any]) -> dict[str, Any]:
    """Sentences of the section on the final evaluation."""
    return {
        "introduction": evaluation_facts.introduction(result),
        "lines": evaluation_facts.evaluation_lines(result),
        "mcnemar": evaluation_facts.mcnemar_line(result),
        "generation": evaluation_facts.generation_line(result),
        "sources": evaluation_facts.source_lines(result),
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
    if not facts.is_trained(result) or result.get("client_devices"):
        energy.append("Counted over the forward passes of this evaluation on its first die")
    latency = energy_facts.latency_lines(result)
    if period := facts.token_period_line(result):
        latency.append(period)
    return [
        ("Energy per token", engineering(found.energy_per_token_j, "J"), energy),
        ("Latency per token", engineering(found.latency_per_token_s, "s"), latency),
    ]


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
        f"{'trained' if facts.is_trained(result) else 'evaluated'} adapter SHA-256": final.get("adapter_sha256"),
        **({"adapter at the start": result["adapter"]} if result.get("adapter") else {}),
        **(result.get("environment") or {}),
    }
    if final.get("wall_seconds") is not None:
        values["simulator's own running time (not the modelled hardware)"] = f"{significant(final['wall_seconds'])} s"
    if final.get("peak_memory_bytes") is not None:
        values["simulator's own peak memory"] = engineering(final["peak_memory_bytes"], "B")
    if value_at(result, "final", "counts"):
        values["events counted"] = final["counts"]
    return values
