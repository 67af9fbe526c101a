"""What came of a round and of a run: scores on every device, events, energy, and the statistics of both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fllm.accounting import activity_of_texts, energy_of_token, layers_of, on_chip, stored_counts
from fllm.client_energy import training_cost, with_costs
from fllm.energy import price_rows
from fllm.evaluation import (
    METRICS,
    Scores,
    bits_per_byte,
    bootstrap_interval,
    evaluation_facts,
    generate_answers,
    generation_facts,
    over_dies,
)
from fllm.federation.participants import Participant
from fllm.federation.server_app import Round
from fllm.federation.task import label_of
from fllm.memory import peak_memory_bytes
from fllm.model.adapters import adapter_digest, whole_adapter
from fllm.preparation import HeldOut, Prepared
from fllm.record import smallest_cell
from hwsim import Die, EventCounts, count_events, emulate, price


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on the ideal device and on each die of the emulated one.

    Attributes:
        ideal: On the ideal device.
        dies: On each die.
        counts: Events of the forward passes on the first die; None where training is what is counted.
    """

    ideal: Scores
    dies: list[Scores]
    counts: EventCounts | None = None


def evaluate_everywhere(prepared: Prepared, held_out: HeldOut | None = None) -> Evaluation:
    """Score the model's adapter on the ideal device and on every die of the emulated one.

    Args:
        prepared: The run.
        held_out: What to score it on; None is everything that is held out.
    """
    bench, held_out, period_s = prepared.bench, held_out or prepared.held_out, prepared.period_s

    def on(die: Die) -> Scores:
        return bench.score(held_out, prepared.device, die, period_s)

    ideal = bench.score(held_out, prepared.ideal, None, period_s)
    if not prepared.config.evaluate_only:
        return Evaluation(ideal, [on(die) for die in prepared.dies])
    with count_events() as counts:
        first = on(prepared.dies[0])
    return Evaluation(ideal, [first, *(on(die) for die in prepared.dies[1:])], counts)


_OF_TRAINING = (
    "train_loss", "clients", "failures", "aggregation_error", "participants", "uplink_bytes", "downlink_bytes",
)  # fmt: skip
"""What a round says of training; absent where nothing is trained."""


def round_row(
    number: int, prepared: Prepared, scores: Evaluation | None, outcome: Round | None = None,
    adapter: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Describe a round.

    Args:
        number: The round.
        prepared: The run.
        scores: Of the model after it; None where it was not evaluated.
        outcome: What the server saw; None for the model before the first round.
        adapter: Everything that was trained, where that is more than the model's adapter.
    """
    evaluated = scores.counts if scores is not None else None
    counts = on_chip(outcome.counts if outcome else evaluated or EventCounts(), prepared)
    cost = price(counts, prepared.device, token_period_s=prepared.period_s)
    row = {
        "round": number,
        "train_loss": outcome.loss if outcome else None,
        "clients": outcome.clients if outcome else 0,
        "failures": list(outcome.failures) if outcome else [],
        "aggregation_error": outcome.aggregation_error if outcome else None,
        "participants": [_participant(one) for one in outcome.participants] if outcome else [],
        "uplink_bytes": outcome.uplink_bytes if outcome else 0,
        "downlink_bytes": outcome.downlink_bytes if outcome else 0,
        "tokens": counts.tokens,
        "counts": dict(sorted(counts.events.items())),
        "counts_by_layer": layers_of(counts),
        "energy_j": {"total": cost.total_energy_j, "parts": cost.energy_j},
        "energy_per_token_j": cost.energy_per_token_j,
        "latency_per_token_s": cost.latency_per_token_s,
        **metrics_of(scores),
        "adapter_sha256": adapter_digest(adapter if adapter is not None else whole_adapter(prepared.model)),
    }
    if outcome is not None and outcome.privacy is not None:
        row["privacy"] = dict(outcome.privacy)
    if outcome is not None and prepared.chips.mixed:
        row = with_costs(row, outcome, prepared)
    return {key: value for key, value in row.items() if not (prepared.config.evaluate_only and key in _OF_TRAINING)}


def metrics_of(scores: Evaluation | None) -> dict[str, Any]:
    """Return the metrics of a round on both devices; nulls where it was not evaluated."""
    dies = scores.dies if scores is not None else []
    return {
        "ideal": {key: getattr(scores.ideal, key) if scores is not None else None for key in METRICS},
        "hardware": {key: _spread([getattr(die, key) for die in dies]) for key in METRICS},
    }


def _participant(one: Participant) -> dict[str, Any]:
    """Describe what became of a client; how many cases it has stands among the data, under their rules."""
    return {
        "client": one.partition,
        "reason": one.reason,
        "train_loss": one.loss,
        "uplink_bytes": one.uplink_bytes,
        "downlink_bytes": one.downlink_bytes,
        "update_norm": one.norm,
        "update_cosine": one.cosine,
        "outlier": one.outlier,
    }


def _spread(values: list[float | None]) -> dict[str, Any]:
    """Return the mean over dies and their standard deviation, 0 for a single one; null for what no die has."""
    known = [value for value in values if value is not None]
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": deviation if values else None,
        "dies": len(values),
    }


def final_facts(prepared: Prepared, scores: Evaluation, seconds: float) -> dict[str, Any]:
    """Describe the last model: its scores with their statistics, its energy by part, and what training took."""
    record, last = prepared.record, prepared.record["rounds"][-1]
    hardware = over_dies(scores.dies)
    counts, device = stored_counts([last], prepared), prepared.device
    if prepared.chips.mixed and not prepared.config.evaluate_only:
        counts, costs = _tokens_here(prepared)
        last = last | costs
    tokens, parts = last["tokens"], last["energy_j"]["parts"]
    return {
        "accuracy_ideal": scores.ideal.accuracy,
        "accuracy_hardware": hardware.accuracy,
        "gap_closed": _gap_closed(record["baselines"], hardware.accuracy),
        "accuracy_interval_95": {
            name: list(bootstrap_interval(score.correct, seed=prepared.config.seed))
            for name, score in (("ideal", scores.ideal), ("hardware", hardware))
        },
        "evaluation": _evaluation_of(prepared, scores),
        "energy_per_token_j": last["energy_per_token_j"],
        "energy_per_token_parts_j": {part: energy / tokens for part, energy in parts.items()} if tokens else {},
        "latency_per_token_s": last["latency_per_token_s"],
        "counts": last["counts"],
        "prices": price_rows(counts, device, prepared.period_s) if tokens else [],
        "energy": energy_of_token(counts, prepared) if tokens else None,
        "activity": activity_of_texts(counts, prepared) if tokens else None,
        "training": None if prepared.config.evaluate_only else training_cost(record["rounds"], prepared),
        "adapter_sha256": last["adapter_sha256"],
        "wall_seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _tokens_here(prepared: Prepared) -> tuple[EventCounts, dict[str, Any]]:
    """Count and price the test prompts on the run's own device: where clients' devices differ, no token is theirs."""
    with count_events() as found:
        prepared.bench.score(prepared.held_out, prepared.device, prepared.dies[0], prepared.period_s)
    counts = on_chip(found, prepared)
    cost = price(counts, prepared.device, token_period_s=prepared.period_s)
    return counts, {
        "tokens": counts.tokens,
        "counts": dict(sorted(counts.events.items())),
        "energy_j": {"total": cost.total_energy_j, "parts": cost.energy_j},
        "energy_per_token_j": cost.energy_per_token_j,
        "latency_per_token_s": cost.latency_per_token_s,
    }


def _gap_closed(baselines: dict[str, Any], accuracy: float) -> float | None:
    """Return how much of the way from the majority to the pooled linear baseline a model has come."""
    if "majority" not in baselines or "tfidf_logreg" not in baselines:
        return None
    low, high = (baselines[name]["accuracy"] for name in ("majority", "tfidf_logreg"))
    return (accuracy - low) / (high - low) if high > low else None


def _evaluation_of(prepared: Prepared, scores: Evaluation) -> dict[str, Any]:
    """Describe the last model's scores with their statistics."""
    config, corpus = prepared.config, prepared.cases.corpus
    facts = evaluation_facts(
        scores.ideal, scores.dies, corpus.task.classes, prepared.client_of_test,
        [client.name for client in prepared.cases.clients], seed=config.seed, smallest_cell=smallest_cell(corpus),
    )  # fmt: skip
    if corpus.task.kind == "language":
        texts = [text for example in prepared.cases.split.test for _, text in example.sections]
        size = sum(len(text.encode()) for text in texts)
        for name, found in (("ideal", [scores.ideal]), ("hardware", scores.dies)):
            bits = statistics.fmean(bits_per_byte(die.losses, size) for die in found if die.losses is not None)
            facts[name]["bits_per_byte"] = {"value": bits, "interval_95": None}
    temperatures = None
    if config.calibration == "temperature":
        hardware = statistics.fmean(die.temperature for die in scores.dies)
        temperatures = {"ideal": scores.ideal.temperature, "hardware": hardware}
    return facts | {
        "calibration": {"kind": config.calibration, "temperature": temperatures},
        "generation": _generated(prepared) if config.generation else None,
    }


def _generated(prepared: Prepared) -> dict[str, Any]:
    """Let the model write its answers, on the ideal device and on the first die, and score them."""
    config, task, model = prepared.config, prepared.cases.corpus.task, prepared.model
    test = prepared.held_out.test
    found = {}
    for name, device, die in (("ideal", prepared.ideal, None), ("hardware", prepared.device, prepared.dies[0])):
        emulate(model, device, die_seed=die, token_period=prepared.period_s)
        texts = generate_answers(
            model, prepared.bench.loaded.tokenizer, test, 4 * config.batch_size, prepared.bench.pad_id,
            noise_seed=config.seed,
        )  # fmt: skip
        truth = [label_of(prompt) for prompt in test]
        least = smallest_cell(prepared.cases.corpus)
        found[name] = generation_facts(
            texts, truth, task.classes, seed=config.seed, kind=task.kind, smallest_cell=least
        )  # fmt: skip
    return found
