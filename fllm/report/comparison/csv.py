"""The numbers of a comparison of runs as one CSV file."""

from __future__ import annotations

from collections.abc import Sequence

from device_models.costs import PARTS
from fllm.report.answer import answer
from fllm.report.comparison.facts import Result, Results
from fllm.report.comparison.tables import BYTES, bytes_sent
from fllm.report.downloads import Cell, Download, csv_file
from fllm.report.energy_facts import PLACES, Interval, energy_of, parts_of, training_of
from fllm.report.standing import METRICS, own_standings, shown_baselines
from fllm.results import value_at


def comparison_csv(results: Results, names: Sequence[str]) -> Download:
    """Every number of the comparison, one row per run, unrounded and in SI."""
    rows = [
        _identity(name, result) | _scores(result) | _costs(result) for name, result in zip(names, results, strict=True)
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return csv_file("comparison.csv", columns, [[row.get(column) for column in columns] for row in rows])


def _identity(name: str, result: Result) -> dict[str, Cell]:
    return {
        "run": name,
        "status": result["status"],
        "rounds": answer(result).rounds_done,
        "device": result["device"].get("name"),
        "model": result["model"].get("name"),
        "seed": value_at(result, "config", "seed"),
        "test_cases": result["data"].get("num_test"),
        "data_sha256": result["data"].get("sha256"),
        "device_file_sha256": result["device"].get("file_sha256"),
    }


def _scores(result: Result) -> dict[str, Cell]:
    found = answer(result)
    row: dict[str, Cell] = {}
    for device, accuracy, bounds in (
        ("ideal", found.accuracy_ideal, found.interval_ideal),
        ("hardware", found.accuracy_hardware, found.interval_hardware),
    ):
        low, high = bounds or (None, None)
        row |= {f"accuracy_{device}": accuracy, f"accuracy_{device}_lower_95": low, f"accuracy_{device}_upper_95": high}
    for metric in ("macro_f1", "perplexity"):
        row[f"{metric}_ideal"] = value_at(found.last, "ideal", metric)
        row[f"{metric}_hardware_mean"] = value_at(found.last, "hardware", metric, "mean")
        row[f"{metric}_hardware_std"] = value_at(found.last, "hardware", metric, "std")
    for one in own_standings(result):
        low, high = one["macro_f1"].bounds or (None, None)
        row |= {f"macro_f1_{one.device}_lower_95": low, f"macro_f1_{one.device}_upper_95": high}
    for one in shown_baselines(result):
        name = f"{one.key}_{one.device}" if one.device else one.key
        for metric in METRICS:
            if one[metric].value is not None:
                low, high = one[metric].bounds or (None, None)
                row |= {f"{metric}_{name}": one[metric].value}
                row |= {f"{metric}_{name}_lower_95": low, f"{metric}_{name}_upper_95": high}
    row["dies"] = value_at(found.last, "hardware", "accuracy", "dies")
    row["gap_closed"] = value_at(result, "final", "gap_closed")
    return row


def _costs(result: Result) -> dict[str, Cell]:
    found, energy, parts, training = answer(result), energy_of(result), parts_of(result), training_of(result)
    row = {"energy_per_token_j": found.energy_per_token_j}
    row |= _ends("energy_per_token", energy.get("energy_per_token_j"), ("lower_95", "upper_95"), "j")
    for part in (*PARTS, *sorted(set(parts) - set(PARTS))):
        row[f"energy_per_token_{_slug(part)}_j"] = value_at(parts, part, "nominal")
    row["latency_per_token_s"] = found.latency_per_token_s
    row |= _ends("latency_per_token", energy.get("latency_per_token_s"), ("low", "high"), "s")
    row |= {key: bytes_sent(result, key) for key in BYTES}
    for place in PLACES:
        name = f"training_energy_{_slug(place)}"
        row[f"{name}_j"] = value_at(training, "lines_j", place, "nominal")
        row |= _ends(name, value_at(training, "lines_j", place), ("lower_95", "upper_95"), "j")
    return dict(row)


def _ends(name: str, found: Interval | None, which: Sequence[str], unit: str) -> dict[str, float | None]:
    return {f"{name}_{end}_{unit}": (found or {}).get(end) for end in which}


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
