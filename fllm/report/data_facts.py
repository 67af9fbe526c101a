"""Sentences about the data: how they were split and dealt, what of them a model reads, what was cut or hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fllm.report.formatting import NOTHING, count, percent, plural, significant
from fllm.report.task import DIAGNOSIS, case_noun, kind_of
from fllm.results import value_at

_PROMPT_SIZES = {"median": "median", "p95": "95th percentile", "max": "longest"}
_CUES = {
    "mask": {
        "keep": "masked words of the reports are left as they are",
        "neutral": "masked words of the reports are replaced by a neutral one",
        "drop_sentence": "sentences of the reports with a masked word are left out",
    },
    "studies": {
        "exam_name": "studies go by the name of the examination",
        "modality": "studies go by their modality alone",
        "hidden": "studies are not named",
    },
    "mentions": {
        "keep": "names of diseases in the texts are left as they are",
        "neutral": "names of the diseases in the texts are replaced by a neutral word",
    },
    "panel": {
        "short": "the same short panel of laboratory tests is asked of every case",
        "full": "the same long panel of laboratory tests is asked of every case",
    },
}
"""Switches against what tells the answer without describing it, in words."""


def data_lines(result: Mapping[str, Any]) -> list[str]:
    """Describe the data in a few lines."""
    lines = [_sizes(result), *_prompt_lines(result), *_dealing_lines(result), _cues_line(result)]
    if smallest := result["data"].get("smallest_cell"):
        lines.append(
            f"Counts of fewer than {smallest} real cases are hidden, as a small count can point to a person, and "
            "beside each as many larger ones as it takes that no sum tells it."
        )
    return [line for line in lines if line]


def truncation_sentence(result: Mapping[str, Any]) -> str:
    """Say how many prompts were cut, and what share of their tokens the fields lost; empty where nothing was cut."""
    data = result["data"]
    cut = value_at(data, "truncation", "prompts_cut")
    if cut is None:
        truncated = data.get("truncated_prompts")
        lost = "did not fit the model's window and lost part of the text."
        return f"{plural(truncated, 'prompt')} {lost}" if truncated else ""
    if not cut:
        return ""
    losses = [
        (found["tokens_lost"] / found["tokens"], name)
        for name, found in truncated_fields(result)
        if found.get("tokens_lost") and found.get("tokens")
    ]
    total = data.get("num_cases")
    prompts = f"{count(cut)} of {count(total)} prompts were cut" if total else f"{plural(cut, 'prompt')} were cut"
    words = [f"{_field(name)} lost {_share(lost)} of its tokens" for lost, name in losses]
    return f"{prompts} to fit the token budget{': ' + ', '.join(words) if words else ''}."


def truncated_fields(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Fields with what was cut of them, in the order in which a prompt shows them."""
    fields = value_at(result["data"], "truncation", "fields") or {}
    shown = [name for name in result["data"].get("fields") or [] if name in fields]
    return [(name, fields[name]) for name in (*shown, *sorted(set(fields) - set(shown)))]


def _sizes(result: Mapping[str, Any]) -> str:
    data, noun = result["data"], case_noun(result)
    validation = data.get("num_validation")
    held = f", {count(validation)} for validation" if validation else ""
    return (
        f"{count(data.get('num_cases'))} {noun}s, {count(data.get('num_train'))} for training{held} and "
        f"{count(data.get('num_test'))} for the test; source: {data.get('source') or 'not named'}."
    )


def _prompt_lines(result: Mapping[str, Any]) -> list[str]:
    data = result["data"]
    prompt, truncation = data.get("tokens_per_prompt") or {}, data.get("truncation") or {}
    lines = [f"Fields in the prompt: {', '.join(data['fields'])}."] if data.get("fields") else []
    if prompt:
        sizes = ", ".join(f"{name} {significant(prompt.get(key))}" for key, name in _PROMPT_SIZES.items())
        cut = f" Truncated: {data.get('truncated_prompts', NOTHING)}." if not truncation else ""
        lines.append(f"Tokens per prompt: {sizes}.{cut}")
    if truncation:
        most = truncation.get("max_tokens")
        budget = [f"at most {count(most)} tokens per prompt"] if most else []
        rules = [_phrase(truncation["rule"])] if truncation.get("rule") else []
        if budget or rules:
            lines.append(f"Token budget: {'; '.join(budget + rules)}.")
        lines.append(truncation_sentence(result) or "No prompt was cut.")
    return lines


def _dealing_lines(result: Mapping[str, Any]) -> list[str]:
    """Say how the cases were split, and how they were dealt to the clients."""
    data = result["data"]
    lines = []
    if rule := value_at(data, "split", "rule"):
        lines.append(f"Split: {_phrase(rule)}.")
    partition = data.get("partition") or {}
    if rule := partition.get("rule"):
        alpha = partition.get("alpha")
        known = "" if alpha is None else f" (alpha = {significant(alpha)})"
        lines.append(f"Clients: {_phrase(rule)}{known}.{_divergence(partition)}")
    return lines


def _divergence(partition: Mapping[str, Any]) -> str:
    divergence = partition.get("js_divergence")
    if divergence is None:
        return ""
    return (
        f" Their mixes of classes lie {significant(divergence)} bit from the pooled one: mean Jensen-Shannon "
        "divergence (Lin 1991), 0 where all are alike, at most 1."
    )


def _cues_line(result: Mapping[str, Any]) -> str:
    cues = result["data"].get("cues") or {}
    if not cues or kind_of(result) != DIAGNOSIS:
        return ""
    keys = [key for key in _CUES if key in cues] + sorted(set(cues) - set(_CUES))
    words = [_CUES.get(key, {}).get(str(cues[key]), f"{key}: {cues[key]}") for key in keys]
    return f"Against cues that tell the answer without describing it: {'; '.join(words)}."


def _field(name: str) -> str:
    return f"field {name}" if name else "the text"


def _share(lost: float) -> str:
    return percent(lost) if lost >= 0.0005 else "less than 0.1\N{NO-BREAK SPACE}%"


def _phrase(sentence: str) -> str:
    """Write a sentence inside another one; a first word that is a name or an abbreviation keeps its letters."""
    first, text = sentence.partition(" ")[0], sentence.rstrip(".")
    return text[0].lower() + text[1:] if first[1:].islower() or len(first) == 1 else text
