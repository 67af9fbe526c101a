"""What the first screen says: the question, the answer, how sure it is, and what limits it.

Everything is derived from the result; nothing is judged by hand. While a run is unfinished, its last evaluated round
stands in for ``final``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fllm.report import task
from fllm.report.data_facts import truncation_sentence
from fllm.report.formatting import engineering, percent, plural
from fllm.results import value_at

BASELINES = {"majority": "Majority class", "tfidf_logreg": "TF-IDF + logistic regression"}
"""Baselines that results had before they named them."""

_SYNTHETIC_LIMIT = (
    "The data are synthetic: the patients are fabricated and easier or harder than real ones in unknown ways. "
    "Accuracies compare devices with each other; they say nothing about clinical use."
)


@dataclass(frozen=True)
class Answer:
    """The numbers of the first screen; None where the run does not know one yet.

    Attributes:
        rounds_done: Finished rounds of fine-tuning; the evaluation before it does not count.
        rounds_planned: Rounds that the configuration asks for.
        last: The last evaluated round, or an empty mapping.
        accuracy_ideal: Accuracy on the ideal device [1].
        accuracy_hardware: Accuracy on the emulated hardware, mean over dies [1].
        interval_ideal: 95 % interval of the former [1].
        interval_hardware: 95 % interval of the latter [1].
        energy_per_token_j: Modelled energy per token [J].
        parts_j: The same by part [J], largest first.
        latency_per_token_s: Modelled latency per token [s].
    """

    rounds_done: int
    rounds_planned: int | None
    last: Mapping[str, Any]
    accuracy_ideal: float | None
    accuracy_hardware: float | None
    interval_ideal: list[float] | None
    interval_hardware: list[float] | None
    energy_per_token_j: float | None
    parts_j: dict[str, float]
    latency_per_token_s: float | None


def answer(result: Mapping[str, Any]) -> Answer:
    """Collect the answer from ``final``, or from the rounds so far when there is none."""
    rounds = result["rounds"]
    evaluated = [row for row in rounds if value_at(row, "ideal", "accuracy") is not None]
    priced = [row for row in rounds if row.get("energy_per_token_j") is not None]
    last: Mapping[str, Any] = evaluated[-1] if evaluated else {}
    last_priced: Mapping[str, Any] = priced[-1] if priced else {}
    final = result.get("final") or {}
    return Answer(
        rounds_done=sum(row["round"] > 0 for row in rounds),
        rounds_planned=value_at(result, "config", "num_rounds") if is_trained(result) else None,
        last=last,
        accuracy_ideal=first_known(final.get("accuracy_ideal"), value_at(last, "ideal", "accuracy")),
        accuracy_hardware=first_known(final.get("accuracy_hardware"), value_at(last, "hardware", "accuracy", "mean")),
        interval_ideal=_interval(final, "ideal"),
        interval_hardware=_interval(final, "hardware"),
        energy_per_token_j=first_known(final.get("energy_per_token_j"), last_priced.get("energy_per_token_j")),
        parts_j=_parts(final, last_priced),
        latency_per_token_s=first_known(final.get("latency_per_token_s"), last_priced.get("latency_per_token_s")),
    )


def title(result: Mapping[str, Any]) -> str:
    """Name model and device."""
    return f"{_model_name(result)} on {device_title(result)}"


def question(result: Mapping[str, Any]) -> str:
    """Ask the run's question in one sentence."""
    if not is_trained(result):
        return (
            f"With a given adapter that is not trained further, {task.question(result)} on this emulated hardware "
            "compared with an ideal device, and what does one token cost in energy and time?"
        )
    clients = value_at(result, "config", "num_clients") or len(result["data"].get("clients") or [])
    return (
        f"After federated LoRA fine-tuning across {plural(int(clients), 'client')}, {task.question(result)} on this "
        "emulated hardware compared with an ideal device, and what does one token cost in energy and time?"
    )


def is_trained(result: Mapping[str, Any]) -> bool:
    """Whether the run trains; otherwise it evaluates a given adapter."""
    return not value_at(result, "config", "evaluate_only")


def device_title(result: Mapping[str, Any]) -> str:
    """Title of the device, or its name."""
    return result["device"].get("title") or result["device"].get("name") or "the emulated device"


def status_note(result: Mapping[str, Any]) -> str | None:
    """Say how far an unfinished run has come; None for a completed one."""
    if result["status"] == "completed":
        return None
    if not is_trained(result):
        return "This run was interrupted or is still running: statistics and costs of its evaluation are not finished."
    found = answer(result)
    planned = f" of {found.rounds_planned}" if found.rounds_planned else ""
    state = "was interrupted" if result["status"] == "interrupted" else "is still running"
    shown = "Numbers below are those of the last round so far." if found.last else "There is nothing to compare yet."
    return f"This run {state}: {found.rounds_done}{planned} rounds are finished. {shown}"


def certainty(result: Mapping[str, Any]) -> list[str]:
    """Say what the intervals cover and on what kind of numbers the energy rests."""
    cases = result["data"].get("num_test")
    lines = []
    if cases:
        covers = "the 95 % intervals stand for that finite number, not for other seeds, other splits or other chips."
        covers = covers if answer(result).interval_hardware else "no interval has been computed yet."
        name, noun = task.accuracy_name(result), f"test {task.case_noun(result)}"
        lines.append(f"{name} is counted on {plural(cases, noun)}; {covers}")
    lines.append(_dies_line(answer(result)))
    lines += [*(result["data"].get("warnings") or []), truncation_sentence(result)]
    shares = energy_by_kind(result)
    if shares:
        parts = ", ".join(f"{percent(share, 0)} {kind}" for kind, share in shares.items())
        lines.append(f"Energy per token by the kind of number that prices it: {parts}.")
    return [line for line in lines if line]


def limits(result: Mapping[str, Any]) -> list[str]:
    """List what a reader must not conclude from this run."""
    lines = [_SYNTHETIC_LIMIT] if result["data"].get("synthetic") else []
    lines += [str(warning) for warning in result["data"].get("warnings") or []]
    lines.append(
        "Energy and latency are modelled: counted events times prices. No chip was measured. Parts without a price, "
        "and everything under “What is not modelled”, are missing from the totals."
    )
    seed = value_at(result, "seeds", "run")
    lines.append(
        f"One run with one seed{'' if seed is None else f' ({seed})'}: the spread between seeds is not known from it."
    )
    lines += [f"Configured, but without effect in this run: {text}." for text in result.get("warnings") or []]
    notes = value_at(result, "final", "energy", "price_notes") or []
    lines += [f"{note[0].upper()}{note[1:]}." for note in notes]
    if cut := truncation_sentence(result):
        lines.append(cut)
    entries = device_entries(result)
    assumed = sum(entry.get("kind") == "assumed" for entry in entries.values())
    if assumed:
        shown = f"{assumed} of {len(entries)} device numbers are assumptions"
        lines.append(f"{shown}: no source reports them for this device.")
    return lines


def device_entries(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every number of the device by key, with the run's other assumptions and the token period."""
    entries = {entry["key"]: entry for entry in result.get("assumptions") or []}
    entries |= {entry["key"]: entry for entry in result["device"].get("values") or []}
    period = result["device"].get("token_period") or {}
    if period.get("value_s") is not None and "token_period" not in entries:
        entries["token_period"] = {**period, "key": "token_period", "value": engineering(period["value_s"], "s")}
    return entries


def energy_by_kind(result: Mapping[str, Any]) -> dict[str, float]:
    """Share of the energy per token that each kind of price accounts for [1], largest first."""
    energy: dict[str, float] = {}
    for row in value_at(result, "final", "prices") or []:
        energy[row["kind"]] = energy.get(row["kind"], 0.0) + (row["energy_per_token_j"] or 0.0)
    total = sum(energy.values())
    ranked = sorted(energy, key=lambda kind: (-energy[kind], kind))
    return {kind: energy[kind] / total for kind in ranked} if total > 0 else {}


def _interval(final: Mapping[str, Any], device: str) -> list[float] | None:
    """95 % interval of an accuracy: that of the evaluation, or that of a result without one."""
    found: list[float] | None = value_at(final, "evaluation", device, "accuracy", "interval_95")
    return found or value_at(final, "accuracy_interval_95", device)


def first_known(*values: float | None) -> float | None:
    """Return the first value that is known."""
    return next((value for value in values if value is not None), None)


def _model_name(result: Mapping[str, Any]) -> str:
    """Name of the model."""
    return str(result["model"].get("name") or "Model")


def _parts(final: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Energy per token by part [J], largest first."""
    parts = final.get("energy_per_token_parts_j")
    if not parts and row.get("tokens"):
        parts = {name: joule / row["tokens"] for name, joule in (value_at(row, "energy_j", "parts") or {}).items()}
    parts = parts or {}
    return {name: parts[name] for name in sorted(parts, key=lambda part: (-parts[part], part))}


def _dies_line(found: Answer) -> str:
    """Say how many simulated chips the hardware numbers come from."""
    dies = value_at(found.last, "hardware", "accuracy", "dies")
    if not dies:
        return ""
    if dies == 1:
        return "Hardware was evaluated on one simulated die, so the spread between chips is not known."
    std = percent(value_at(found.last, "hardware", "accuracy", "std"))
    return (
        f"Hardware numbers are means over {dies} simulated dies; their accuracies spread by {std} (standard deviation)."
    )


def activation_line(result: Mapping[str, Any]) -> str:
    """Say what stood between the two products, and what it cost where that is an event of its own."""
    kind = result["device"].get("activation")
    if kind == "hard_sigmoid":
        return "Activation between the products: hard sigmoid, analog; its cost is part of the arrays'"
    if kind != "softmax":
        return ""
    row = next(
        (row for row in (result.get("final") or {}).get("prices", ()) if row["event"] == "attention.softmax"), None
    )
    cost = "" if row is None else f", {engineering(row['energy_per_token_j'], 'J')} per token"
    return f"Activation between the products: softmax, digital{cost}; queries are read twice, by sign"


def token_period_line(result: Mapping[str, Any]) -> str:
    """Say which time between tokens the ages of the stored values follow from."""
    period = result["device"].get("token_period") or {}
    if period.get("value_s") is None:
        return ""
    return f"Token period used for decay: {engineering(period['value_s'], 's')} ({period.get('kind', 'no kind given')})"
