"""What a result says about test cases: every metric with its interval, clients, ideal device against hardware.

All of it is plain JSON. A number that is not known, or that would speak about fewer cases than ``smallest_cell``, is
null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fllm.data.small_cells import hide_small_totals
from fllm.evaluation import metrics
from fllm.evaluation.intervals import (
    Interval,
    calibration_by_chance,
    calibration_interval,
    mcnemar,
    over_redraws,
    percentile_interval,
    share_interval,
)
from fllm.evaluation.metrics import Array
from fllm.evaluation.scores import Scores


@dataclass(frozen=True, eq=False)
class _TestSet:
    """What all models that are scored on the same cases share.

    Attributes:
        classes: Names of the classes; none in language modelling.
        client_of: (cases,) index of the client that each case belongs to, or -1.
        client_names: Name of each client.
        seed: Key of all redraws.
        smallest_cell: Clients, and classes of a client, with fewer cases than this are not spoken of.
    """

    classes: tuple[str, ...]
    client_of: NDArray[np.int64]
    client_names: tuple[str, ...]
    seed: int
    smallest_cell: int = 0


def evaluation_facts(
    ideal: Scores, dies: Sequence[Scores], classes: Sequence[str], clients_of: Sequence[int],
    client_names: Sequence[str], *, seed: int, smallest_cell: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Say how a model does on the ideal device, on the hardware, and how these differ.

    Numbers of the hardware are means over its dies, as are its confusion matrix and reliability diagram.

    Args:
        ideal: Scores on the ideal device.
        dies: Scores on each die of the hardware.
        classes: Names of the classes, in the order of the labels; empty for language modelling.
        clients_of: Index of the client that each test case belongs to, or -1.
        client_names: Name of each client.
        seed: Key of the redraws of the test cases.
        smallest_cell: Clients, classes, and classes of a client with fewer test cases than this get null.

    Returns:
        ``ideal``, ``hardware`` and ``difference``. P-values are of single dies, not adjusted for their number.
    """
    test = _TestSet(tuple(classes), np.asarray(clients_of, dtype=np.int64), tuple(client_names), seed, smallest_cell)
    on_ideal, on_hardware = _drawn([ideal], test), _drawn(dies, test)
    return {
        "ideal": _described([ideal], on_ideal, test),
        "hardware": _described(dies, on_hardware, test),
        "difference": {
            name: _number(on_hardware[name] - on_ideal[name]) if name in on_ideal else None
            for name in ("accuracy", "macro_f1")
        } | {"mcnemar": [_tested(ideal, die, number) for number, die in enumerate(dies)] if classes else []},
    }  # fmt: skip


def scores_facts(truth: ArrayLike, chosen_rows: ArrayLike, classes: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Score the choices of one or more models: means over them, with intervals over the test cases.

    Args:
        truth: (cases,) true classes.
        chosen_rows: (models, cases) chosen ones, -1 for none.
        classes: Names of the classes.
        seed: Key of the redraws.
    """
    truth, rows = np.asarray(truth), np.atleast_2d(np.asarray(chosen_rows))

    def measure(weights: Array) -> dict[str, Array]:
        return {
            "accuracy": np.mean([metrics.accuracy(truth, row, weights) for row in rows], axis=0),
            "macro_f1": np.mean([metrics.mean_f1(truth, row, len(classes), weights) for row in rows], axis=0),
        }

    found = over_redraws(measure, len(truth), seed=seed)
    return {name: float(values[0]) for name, values in found.items()} | {
        "interval_95": {
            "accuracy": _listed(share_interval(found["accuracy"], len(truth))),
            "macro_f1": _listed(percentile_interval(found["macro_f1"])),
        }
    }


def recall_facts(
    values: Array, truth: NDArray[np.int64], classes: Sequence[str], *, smallest_cell: int = 0
) -> dict[str, dict[str, Any]]:
    """Describe the recall of each class; null for one of too few cases, and for one whose number would tell them.

    Args:
        values: (1 + draws, classes) on the test set and its redraws.
        truth: (cases,) true classes.
        classes: Names of the classes.
        smallest_cell: Classes of fewer cases than this are not spoken of.
    """
    counts = [int((truth == index).sum()) for index in range(len(classes))]
    facts: dict[str, dict[str, Any]] = {}
    for index, (name, cases) in enumerate(zip(classes, hide_small_totals(counts, smallest_cell), strict=True)):
        own = values[:, index]
        shown = {"value": None, "interval_95": None} if cases is None else _number(own, share_interval(own, cases))
        facts[name] = shown | {"cases": cases}
    return facts


def _drawn(models: Sequence[Scores], test: _TestSet) -> dict[str, Array]:
    """Return each metric on the test set and its redraws, mean over the models."""
    measure = _measured if test.classes else _measured_text

    def mean_over_models(weights: Array) -> dict[str, Array]:
        each = [measure(model, test, weights) for model in models]
        return {name: np.mean([found[name] for found in each], axis=0) for name in each[0]}

    return over_redraws(mean_over_models, len(test.client_of), seed=test.seed)


def _measured(model: Scores, test: _TestSet, weights: Array) -> dict[str, Array]:
    truth, chosen, count = _truth(model), model.chosen, len(test.classes)
    probabilities, correct = _known(model.probabilities), np.asarray(model.correct)
    return {
        "accuracy": metrics.accuracy(truth, chosen, weights),
        "macro_f1": metrics.mean_f1(truth, chosen, count, weights),
        "mean_class_accuracy": metrics.mean_class_accuracy(truth, chosen, count, weights),
        "ece": metrics.expected_calibration_error(correct, probabilities.max(axis=1), weights),
        "brier": metrics.brier_score(truth, probabilities, weights),
        "nll": metrics.negative_log_likelihood(truth, probabilities, weights),
        "perplexity": metrics.perplexity(_known(model.losses), weights),
        "recall": metrics.recalls(truth, chosen, count, weights),
        "clients": _of_clients(correct, np.ones(len(correct)), test, weights),
    }


def _measured_text(model: Scores, test: _TestSet, weights: Array) -> dict[str, Array]:
    losses, correct = _known(model.losses), np.asarray(model.correct)
    return {
        "accuracy": metrics.mean_over_cases(correct, weights, losses[:, 1]),
        "perplexity": metrics.perplexity(losses, weights),
        "clients": _of_clients(correct, losses[:, 1], test, weights),
    }


def _of_clients(correct: Array, sizes: Array, test: _TestSet, weights: Array) -> Array:
    """Return the accuracy of each client's cases, (draws, clients)."""
    own = [test.client_of == client for client in range(len(test.client_names))]
    found = [metrics.mean_over_cases(correct[mine], weights[:, mine], sizes[mine]) for mine in own]
    return np.stack(found, axis=1) if found else np.zeros((len(weights), 0))


def _described(models: Sequence[Scores], drawn: Mapping[str, Array], test: _TestSet) -> dict[str, Any]:
    clients = _clients(models, drawn, test)
    known = [client for client in clients if client["accuracy"] is not None]
    worst = min(known, key=lambda client: client["accuracy"], default=None)
    facts: dict[str, Any] = {
        "accuracy": _number(drawn["accuracy"], share_interval(drawn["accuracy"], len(test.client_of))),
        "perplexity": _number(drawn["perplexity"]),
        "clients": clients,
        "worst_client": worst and {key: worst[key] for key in ("client", "name", "accuracy")},
        "client_spread": _spread([client["accuracy"] for client in known]),
    }
    return facts if not test.classes else facts | _described_classes(models, drawn, test)


def _described_classes(models: Sequence[Scores], drawn: Mapping[str, Array], test: _TestSet) -> dict[str, Any]:
    truth, count = _truth(models[0]), len(test.classes)
    sure = [_known(model.probabilities).max(axis=1) for model in models]
    chance = np.mean([calibration_by_chance(one, seed=test.seed) for one in sure], axis=0)
    recall = recall_facts(drawn["recall"], truth, test.classes, smallest_cell=test.smallest_cell)
    shown = all(row["cases"] is not None for row in recall.values())
    matrix = np.mean([metrics.confusion(truth, one.chosen, count) for one in models], axis=0).tolist()
    plain = {name: _number(drawn[name]) for name in ("macro_f1", "mean_class_accuracy", "brier", "nll")}
    return plain | {
        "ece": _number(drawn["ece"], calibration_interval(drawn["ece"], chance)) | {"by_chance": float(chance.mean())},
        "recall": recall,
        "confusion": matrix if shown else None,
        "reliability": _reliability(models, sure),
    }


def _reliability(models: Sequence[Scores], sure: Sequence[Array]) -> list[dict[str, Any]]:
    """Return the bins over all models together; ``cases`` is the mean number of one model's."""
    rows = metrics.reliability(np.concatenate([model.correct for model in models]), np.concatenate(sure))
    return [row | {"cases": row["cases"] / len(models)} for row in rows]


def _clients(models: Sequence[Scores], drawn: Mapping[str, Array], test: _TestSet) -> list[dict[str, Any]]:
    rows = []
    sizes = [int((test.client_of == client).sum()) for client in range(len(test.client_names))]
    for client, (name, size) in enumerate(
        zip(test.client_names, hide_small_totals(sizes, test.smallest_cell), strict=True)
    ):
        mine = test.client_of == client
        row: dict[str, Any] = dict.fromkeys(("cases", "accuracy", "interval_95", "macro_f1"))
        if size:
            values = drawn["clients"][:, client]
            row |= {
                "cases": size,
                "accuracy": _finite(values[0]),
                "interval_95": _listed(share_interval(values, size)),
                "macro_f1": _macro_f1_of(models, mine, test),
            }
        rows.append({"client": client, "name": name} | row)
    return rows


def _macro_f1_of(models: Sequence[Scores], mine: NDArray[np.bool_], test: _TestSet) -> float | None:
    """Return the macro-F1 of a client; None if that would speak of a class with too few of its cases."""
    if not test.classes:
        return None
    truth = _truth(models[0])[mine]
    cells = np.bincount(truth, minlength=len(test.classes))
    if ((cells > 0) & (cells < test.smallest_cell)).any():
        return None
    return float(np.mean([metrics.macro_f1(truth, one.chosen[mine], len(test.classes)) for one in models]))


def _tested(ideal: Scores, die: Scores, number: int) -> dict[str, Any]:
    found = mcnemar(ideal.correct, die.correct)
    return {
        "die": number,
        "only_ideal": found.only_first,
        "only_hardware": found.only_second,
        "p_value": found.p_value,
    }


def _number(values: Array, interval: Interval | None = None) -> dict[str, Any]:
    """Return a number with its interval, by percentiles unless one is given."""
    interval = percentile_interval(values) if interval is None else interval
    return {"value": _finite(values[0]), "interval_95": _listed(interval)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _spread(values: Sequence[float]) -> float | None:
    return max(values) - min(values) if values else None


def _truth(model: Scores) -> NDArray[np.int64]:
    if model.truth is None:
        raise ValueError("scores without the true classes")
    return model.truth


def _known(values: Array | None) -> Array:
    if values is None:
        raise ValueError("scores without what each case contributed")
    return values
