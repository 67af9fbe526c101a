"""What a run asked of its model, and what its numbers are called for that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fllm.results import value_at

DIAGNOSIS, CLASSIFICATION, LANGUAGE = "diagnosis", "classification", "language"

DEVICES = {"ideal": "ideal device", "hardware": "emulated hardware"}
"""What a model is scored on, by its key in a result, and what it is called."""


def kind_of(result: Mapping[str, Any]) -> str:
    """Kind of the task; a result that does not say is one of diagnosis, the first that there was."""
    return str(value_at(result, "task", "kind") or DIAGNOSIS)


def accuracy_name(result: Mapping[str, Any]) -> str:
    """What the share of right answers is called."""
    return "Next-token accuracy" if kind_of(result) == LANGUAGE else "Accuracy"


def case_noun(result: Mapping[str, Any]) -> str:
    """What one of the things is called that were held out."""
    return "case" if kind_of(result) == DIAGNOSIS else "text"


def classes_of(result: Mapping[str, Any]) -> list[str]:
    """Names of the classes in the order of every table; those of an older result are sorted."""
    named = value_at(result, "task", "classes")
    if named is not None:
        return [str(name) for name in named]
    data = result["data"]
    sources = (data, *(data.get("clients") or []))
    return sorted({label for source in sources for label in source.get("label_counts") or {}})


def own_adapters_line(result: Mapping[str, Any]) -> str:
    """Say that every client has an adapter of its own; empty where all have the same."""
    if value_at(result, "config", "strategy", "factors") != "share_a":
        return ""
    return (
        "Clients share the factor A alone, and each keeps a B of its own: every test "
        f"{case_noun(result)} is scored by the adapter of its own client."
    )


def question(result: Mapping[str, Any]) -> str:
    """Ask how well the model does, as the middle of a sentence."""
    kind, classes = kind_of(result), classes_of(result)
    if kind == LANGUAGE:
        return "how well does the model predict text"
    if kind == CLASSIFICATION:
        return f"how accurately does the model sort texts into {len(classes)} classes"
    return "how accurate is the model"
