"""Tables of the final evaluation: every metric, classes, confusion, clients, paired tests, written answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fllm.report.answer import is_trained
from fllm.report.data_tables import client_name
from fllm.report.evaluation_facts import FEW_CASES, evaluation_of
from fllm.report.formatting import (
    between,
    change,
    change_between,
    count,
    interval,
    p_value,
    percent,
    points,
    points_between,
    score,
    shown_count,
)
from fllm.report.tables import Group, Row, Table
from fllm.report.task import DEVICES, accuracy_name, case_noun, classes_of
from fllm.results import value_at

METRICS = {
    "accuracy": ("Accuracy", "higher"),
    "macro_f1": ("Macro-F1", "higher"),
    "mean_class_accuracy": ("Mean-class accuracy", "higher"),
    "ece": ("ECE", "lower"),
    "brier": ("Brier score", "lower"),
    "nll": ("NLL [nat]", "lower"),
    "perplexity": ("Perplexity", "lower"),
    "bits_per_byte": ("Bits per byte", "lower"),
}
"""Metrics of a model on a device: name, and which side is better."""

SHARES = frozenset({"accuracy", "mean_class_accuracy"})
"""Metrics that are shown in percent."""


def metrics_table(result: Mapping[str, Any]) -> Table | None:
    """Every metric on both devices with its interval, and the paired difference where there is one."""
    evaluation = evaluation_of(result)
    rows: list[Row] = []
    for key, (name, better) in METRICS.items():
        found = [value_at(evaluation, device, key) or {} for device in DEVICES]
        if all(one.get("value") is None for one in found):
            continue
        shown = accuracy_name(result) if key == "accuracy" else name
        cells = [cell for one in found for cell in _with_interval(one, fraction=key in SHARES)]
        rows.append((shown, better, *cells, *_difference(evaluation, key)))
    if not rows:
        return None
    columns = ("Metric", "Better", "Ideal device", "95 % interval", "Emulated hardware", "95 % interval",
               "Hardware \N{MINUS SIGN} ideal", "95 % interval")  # fmt: skip
    caption = f"Every metric on the test {case_noun(result)}s; differences are paired, those of shares in points"
    return Table(caption, columns, [Group(rows)], frozenset(range(2, len(columns))))


def recall_table(result: Mapping[str, Any]) -> Table | None:
    """Recall of every class on both devices; classes with few test cases are marked."""
    evaluation = evaluation_of(result)
    found = {device: value_at(evaluation, device, "recall") or {} for device in DEVICES}
    if not any(found.values()):
        return None
    written = value_at(evaluation, "generation", "hardware", "recall") or {}
    smallest = result["data"].get("smallest_cell")
    rows: list[Row] = []
    for name in classes_of(result):
        each = [found[device].get(name) or {} for device in DEVICES]
        cases = next((one["cases"] for one in each if one.get("cases") is not None), None)
        cells = [cell for one in each for cell in _with_interval(one, fraction=True)]
        own = (percent(_value(written.get(name))),) if written else ()
        rows.append((name, shown_count(cases, smallest), *cells, *own, _note(cases)))
    columns = ("Class", f"Test {case_noun(result)}s", "Recall, ideal", "95 % interval", "Recall, hardware",
               "95 % interval", *(("Recall, written answers",) if written else ()), "Note")  # fmt: skip
    numeric = frozenset(range(1, len(columns) - 1))
    caption = f"Recall of every class; uncertain: fewer than {FEW_CASES} test {case_noun(result)}s"
    return Table(caption, columns, [Group(rows)], numeric, sortable=True)


def confusion_table(result: Mapping[str, Any]) -> Table | None:
    """Count cases by true and chosen class, on both devices."""
    evaluation, classes = evaluation_of(result), classes_of(result)
    columns = ("True class", *classes)
    groups = []
    for device, name in DEVICES.items():
        matrix = confusion_of(evaluation, device)
        if len(matrix) == len(classes) > 0:
            rows = [(label, *(mean_count(cell) for cell in row)) for label, row in zip(classes, matrix, strict=True)]
            groups.append(Group(rows, (name.capitalize(), *("" for _ in classes))))
    if not groups:
        return None
    caption = (
        f"{case_noun(result).capitalize()}s by true class (rows) and chosen class (columns); hardware: mean over dies"
    )
    numeric = frozenset(range(1, len(columns)))
    return Table(caption, columns, groups, numeric)


def client_scores_table(result: Mapping[str, Any]) -> Table | None:
    """Accuracy of every client on its own test cases, the worst one marked."""
    evaluation = evaluation_of(result)
    found = {
        device: {client["client"]: client for client in value_at(evaluation, device, "clients") or []}
        for device in DEVICES
    }
    numbers = sorted(set(found["ideal"]) | set(found["hardware"]))
    if not numbers:
        return None
    smallest = result["data"].get("smallest_cell")
    worst = {device: value_at(evaluation, device, "worst_client", "client") for device in DEVICES}
    with_f1 = any(client.get("macro_f1") is not None for clients in found.values() for client in clients.values())
    rows: list[Row] = []
    for number in numbers:
        each = [found[device].get(number) or {} for device in DEVICES]
        cells: list[str] = []
        for one in each:
            cells += [percent(one.get("accuracy")), interval(one.get("interval_95"))]
            cells += [score(one.get("macro_f1"))] if with_f1 else []
        named = next((one for one in each if one), {})
        note = _worst_note([device for device in DEVICES if worst[device] == number]) if len(numbers) > 1 else ""
        rows.append((client_name(named), shown_count(named.get("cases"), smallest), *cells, note))
    own = ("95 % interval", "Macro-F1") if with_f1 else ("95 % interval",)
    columns = ("Client", f"Test {case_noun(result)}s", f"{accuracy_name(result)}, ideal", *own,
               f"{accuracy_name(result)}, hardware", *own, "Note")  # fmt: skip
    model = "federated model" if is_trained(result) else "model"
    caption = f"Every client's own test {case_noun(result)}s, answered by the one {model}"
    return Table(caption, columns, [Group(rows)], frozenset(range(1, len(columns) - 1)), sortable=True)


def mcnemar_table(result: Mapping[str, Any]) -> Table | None:
    """Ideal device against each die, by the cases on which they differ."""
    tests = value_at(evaluation_of(result), "difference", "mcnemar") or []
    rows: list[Row] = [
        (
            f"die {test.get('die')}",
            count(test.get("only_ideal")),
            count(test.get("only_hardware")),
            p_value(test.get("p_value")),
        )
        for test in tests
    ]
    if not rows:
        return None
    columns = ("Chip", "Right on the ideal device only", "Right on this die only", "Exact p-value")
    return Table("McNemar's test of each die against the ideal device", columns, [Group(rows)], frozenset({1, 2, 3}))


def generation_table(result: Mapping[str, Any]) -> Table | None:
    """Written answers by the published rules, on both devices."""
    generation = evaluation_of(result).get("generation") or {}
    strict = any((generation.get(device) or {}).get("accuracy_strict") is not None for device in DEVICES)
    rows: list[Row] = []
    for device, name in DEVICES.items():
        found = generation.get(device) or {}
        if found:
            rows.append((
                name.capitalize(),
                percent(found.get("accuracy")),
                interval(value_at(found, "interval_95", "accuracy")),
                *((percent(found.get("accuracy_strict")),) if strict else ()),
                score(found.get("macro_f1")),
                between(value_at(found, "interval_95", "macro_f1")),
                percent(found.get("unparsable")),
                count(found.get("unparsable_count")),
                count(found.get("ambiguous_count")),
            ))  # fmt: skip
    if not rows:
        return None
    columns = ("Device", "Accuracy", "95 % interval", *(("Strict accuracy",) if strict else ()), "Macro-F1",
               "95 % interval", "Unparsable", "Unparsable answers", "Ambiguous answers")  # fmt: skip
    return Table("Written answers, scored by rules", columns, [Group(rows)], frozenset(range(1, len(columns))))


def confusion_of(evaluation: Mapping[str, Any], device: str) -> Sequence[Sequence[float]]:
    """Confusion matrix of a device, rows the true classes; empty where there is none."""
    return value_at(evaluation, device, "confusion") or []


def mean_count(value: float) -> str:
    """Write a count that may be a mean over dies: 12, 12.5."""
    return count(value) if float(value).is_integer() else f"{value:.1f}"


def _with_interval(found: Mapping[str, Any], *, fraction: bool) -> tuple[str, str]:
    value, bounds = found.get("value"), found.get("interval_95")
    return (percent(value), interval(bounds)) if fraction else (score(value), between(bounds))


def _value(found: Any) -> float | None:
    """Return a number that stands alone or beside its interval."""
    value: float | None = found.get("value") if isinstance(found, Mapping) else found
    return value


def _difference(evaluation: Mapping[str, Any], key: str) -> tuple[str, str]:
    found = value_at(evaluation, "difference", key) or {}
    value, bounds = found.get("value"), found.get("interval_95")
    return (points(value), points_between(bounds)) if key in SHARES else (change(value), change_between(bounds))


def _note(cases: int | None) -> str:
    if cases is None:
        return ""
    if cases == 0:
        return "absent"
    return "uncertain" if cases < FEW_CASES else ""


def _worst_note(devices: Sequence[str]) -> str:
    """Mark the client with the lowest accuracy: on both devices, or on which."""
    if not devices:
        return ""
    return "worst" if len(devices) > 1 else f"worst, {devices[0]}"
