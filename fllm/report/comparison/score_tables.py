"""Tables of how well the models of several runs do: both devices with intervals, and every baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fllm.report.answer import answer
from fllm.report.comparison.facts import Results
from fllm.report.formatting import NOTHING, between, estimate, interval, percent, score, significant, spread
from fllm.report.standing import Standing, own_standings, shown_baselines
from fllm.report.tables import Group, Row, Table
from fllm.report.task import LANGUAGE, kind_of
from fllm.results import value_at


def scores_table(results: Results, names: Sequence[str]) -> Table:
    """Accuracy, macro-F1 and perplexity of every run, on the ideal device and on the emulated hardware."""
    rows: list[Row] = []
    classes = any(kind_of(result) != LANGUAGE for result in results)
    for name, result in zip(names, results, strict=True):
        found, own = answer(result), own_standings(result)
        hardware, final = found.last.get("hardware") or {}, result.get("final") or {}
        macro_f1 = (
            score(own[0]["macro_f1"].value),
            between(own[0]["macro_f1"].bounds),
            _over_dies(hardware, "macro_f1"),
            between(own[1]["macro_f1"].bounds),
        )
        rows.append((
            name,
            percent(found.accuracy_ideal),
            interval(found.interval_ideal),
            percent(found.accuracy_hardware),
            interval(found.interval_hardware),
            *(macro_f1 if classes else ()),
            significant(value_at(found.last, "ideal", "perplexity")),
            _over_dies(hardware, "perplexity"),
            *((percent(final.get("gap_closed"), 0),) if classes else ()),
        ))  # fmt: skip
    if not classes:
        columns: tuple[str, ...] = (
            "Run", "Next-token accuracy, ideal", "95 % interval", "Next-token accuracy, hardware", "95 % interval",
            "Perplexity, ideal", "Perplexity, hardware",
        )  # fmt: skip
        caption = "Next-token accuracy on the test texts of each run, after its last round"
        return Table(caption, columns, [Group(rows)], frozenset(range(1, len(columns))), wide=True, sortable=True)
    columns = ("Run", "Accuracy, ideal", "95 % interval", "Accuracy, hardware", "95 % interval", "Macro-F1, ideal",
               "95 % interval", "Macro-F1, hardware", "95 % interval", "Perplexity, ideal", "Perplexity, hardware",
               "Gap closed")  # fmt: skip
    caption = (
        "Accuracy on the test cases of each run, after its last round; gap closed is how much of the way from the "
        "majority class to TF-IDF + logistic regression the hardware has gone"
    )
    return Table(caption, columns, [Group(rows)], frozenset(range(1, len(columns))), wide=True, sortable=True)


def baselines_table(results: Results, names: Sequence[str]) -> Table | None:
    """Every baseline of every run, a column per baseline; None where no run has one."""
    found = [{one.label: one for one in shown_baselines(result)} for result in results]
    longest = max(found, key=len)
    labels = [*longest, *dict.fromkeys(label for each in found for label in each if label not in longest)]
    groups = []
    for metric, heading in (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1"), ("perplexity", "Perplexity")):
        if any(one[metric].value is not None for each in found for one in each.values()):
            rows: list[Row] = [
                (name, *(_estimate(each.get(label), metric) for label in labels))
                for name, each in zip(names, found, strict=True)
            ]
            groups.append(Group(rows, (heading, *("" for _ in labels))))
    if not groups:
        return None
    numeric = frozenset(range(1, len(labels) + 1))
    caption = "Baselines of each run on its own test cases; in brackets: 95 % interval"
    return Table(caption, ("Run", *labels), groups, numeric, wide=len(labels) > 4)


def _over_dies(hardware: Mapping[str, Any], metric: str) -> str:
    entry = hardware.get(metric) or {}
    return spread(entry.get("mean"), entry.get("std"), entry.get("dies"), fraction=False)


def _estimate(one: Standing | None, metric: str) -> str:
    if one is None:
        return NOTHING
    return estimate(one[metric].value, one[metric].bounds, fraction=metric == "accuracy")
