"""Tables of the final evaluation to download: metrics, classes, confusion, reliability, clients, tests, baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fllm.report.evaluation_facts import evaluation_of
from fllm.report.evaluation_tables import METRICS, confusion_of
from fllm.report.standing import METRICS as STANDING_METRICS
from fllm.report.standing import baseline_standings, own_standings
from fllm.report.task import DEVICES, classes_of
from fllm.results import value_at

Cell = str | float | int | None
File = tuple[str, tuple[str, ...], list[tuple[Cell, ...]]]
_ENDS = ("lower_95", "upper_95")


def evaluation_files(result: Mapping[str, Any]) -> list[File]:
    """Return name, columns and rows of every file that has a row; numbers unrounded, what is unknown is None."""
    files: list[File] = [
        ("evaluation.csv", ("device", "metric", "value", *_ENDS), list(_metrics(result))),
        ("standing.csv", ("model", "device", *_standing_columns()), list(_standings(result))),
        ("recall.csv", ("device", "class", "test_cases", "recall", *_ENDS), list(_recall(result))),
        ("confusion.csv", ("device", "true_class", "chosen_class", "cases"), list(_confusion(result))),
        ("reliability.csv", ("device", "low", "high", "cases", "confidence", "accuracy"), list(_reliability(result))),
        ("client_accuracy.csv", ("device", "client", "name", "test_cases", "accuracy", *_ENDS, "macro_f1"),
         list(_clients(result))),
        ("mcnemar.csv", ("die", "only_ideal", "only_hardware", "p_value"), list(_tests(result))),
    ]  # fmt: skip
    return [file for file in files if file[2]]


def _metrics(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    evaluation = evaluation_of(result)
    for device in (*DEVICES, "difference"):
        for metric in METRICS:
            found = value_at(evaluation, device, metric) or {}
            if found.get("value") is not None:
                yield (device, metric, found["value"], *_ends(found.get("interval_95")))
    for device in DEVICES:
        for metric in ("accuracy", "macro_f1", "unparsable"):
            found = value_at(evaluation, "generation", device) or {}
            if found.get(metric) is not None:
                bounds = value_at(found, "interval_95", metric)
                yield (device, f"generation_{metric}", found[metric], *_ends(bounds))


def _standing_columns() -> list[str]:
    return [
        f"{metric}{end}"
        for metric in STANDING_METRICS
        for end in ("", "_lower_95", "_upper_95", "_lowest_client", "_highest_client")
    ]


def _standings(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for one in (*own_standings(result), *baseline_standings(result)):
        cells: list[Cell] = []
        for metric in STANDING_METRICS:
            found = one[metric]
            cells += [found.value, *(found.bounds or (None, None)), *one.ranges.get(metric, (None, None))]
        if any(cell is not None for cell in cells):
            yield (one.key, one.device, *cells)


def _recall(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for device in DEVICES:
        recall = value_at(evaluation_of(result), device, "recall") or {}
        for name in classes_of(result):
            found = recall.get(name)
            if found:
                yield (device, name, found.get("cases"), found.get("value"), *_ends(found.get("interval_95")))


def _confusion(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    classes = classes_of(result)
    for device in DEVICES:
        for truth, row in zip(classes, confusion_of(evaluation_of(result), device), strict=False):
            for chosen, cases in zip(classes, row, strict=False):
                yield (device, truth, chosen, cases)


def _reliability(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for device in DEVICES:
        for row in value_at(evaluation_of(result), device, "reliability") or []:
            yield (device, *(row.get(key) for key in ("low", "high", "cases", "confidence", "accuracy")))


def _clients(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for device in DEVICES:
        for row in value_at(evaluation_of(result), device, "clients") or []:
            own = (row.get(key) for key in ("client", "name", "cases", "accuracy"))
            yield (device, *own, *_ends(row.get("interval_95")), row.get("macro_f1"))


def _tests(result: Mapping[str, Any]) -> Iterator[tuple[Cell, ...]]:
    for row in value_at(evaluation_of(result), "difference", "mcnemar") or []:
        yield tuple(row.get(key) for key in ("die", "only_ideal", "only_hardware", "p_value"))


def _ends(bounds: Any) -> tuple[Cell, Cell]:
    return (bounds[0], bounds[1]) if bounds and len(bounds) == 2 else (None, None)
