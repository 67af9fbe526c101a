"""The parts of ``result.json`` that describe a run: data, device, prices, sources, assumptions, environment."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from device_models import DeviceModel, references
from device_models.costs import event_costs
from fllm.config import RunConfig
from fllm.data import DIAGNOSES, Case, Cohort
from fllm.evaluation import Prompt

NOT_MODELLED = (
    "correlation of flicker noise between reads, gradients of mismatch across a die, stuck cells, ageing but for drift",
    "quantisation and noise of the arrays of the linear layers: their ternary weights and 8-bit inputs are exact",
    "energy and time of the backward pass, the optimiser, norms, activations, rotary embedding, memory and network",
    "leakage power, power of idle parts, static power of the digital side",
)
"""What the numbers of this version leave out."""


def prices(counts: Mapping[str, int], tokens: int, device: DeviceModel) -> list[dict[str, Any]]:
    """List the price, source and share of each kind of event, for the table of the report."""
    rows = []
    for event, cost in event_costs(device).items():
        if cost.part is None or not tokens:
            continue
        number, source = counts.get(event, 0) / tokens, device.provenance.get(cost.key)
        if source is None or not number:  # what the device never does has no place in the table, nor need for a price
            continue
        rows.append(
            {
                "event": event,
                "part": cost.part,
                "count_per_token": number,
                "price_j": cost.energy_j,
                "kind": source.kind,
                "source": source.source,
                "energy_per_token_j": number * cost.energy_j,
            }
        )
    return rows


def environment(config: RunConfig) -> dict[str, Any]:
    """Describe software and platform."""
    names = ("fllm", "torch", "transformers", "peft", "flwr", "numpy", "scikit-learn", "tokenizers")
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": config.threads,
        "packages": {name: version(name) for name in names if name != "fllm" or _installed("fllm")},
    }


def _installed(name: str) -> bool:

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _label_counts(cases: Sequence[Case]) -> dict[str, int]:
    return {name: sum(case.diagnosis == name for case in cases) for name in DIAGNOSES}


def data_facts(
    config: RunConfig,
    cohort: Cohort,
    train: Sequence[Case],
    test: Sequence[Case],
    clients: Sequence[tuple[str, Sequence[Case]]],
    prompts: Sequence[Prompt],
) -> dict[str, Any]:
    """Describe the cohort in numbers: no text, no identifier."""
    lengths = sorted(len(prompt.tokens) for prompt in prompts)
    return {
        "synthetic": cohort.synthetic,
        "source": cohort.source,
        "sha256": cohort.sha256,
        "fields": list(config.fields),
        "num_cases": len(cohort.cases),
        "num_train": len(train),
        "num_test": len(test),
        "label_counts": _label_counts(cohort.cases),
        "test_label_counts": _label_counts(test),
        "tokens_per_prompt": {
            "median": lengths[len(lengths) // 2],
            "p95": lengths[int(0.95 * (len(lengths) - 1))],
            "max": lengths[-1],
        },
        "truncated_prompts": sum(prompt.truncated for prompt in prompts),
        "clients": [
            {"client": index, "name": name, "num_train": len(cases), "label_counts": _label_counts(cases)}
            for index, (name, cases) in enumerate(clients)
        ],
    }


def device_facts(device: DeviceModel, config: RunConfig, period_s: float | None) -> dict[str, Any]:
    """Describe the device: every value with its source, and the token period of the run."""
    automatic = config.token_period == "auto"
    return {
        "name": device.name,
        "title": device.title,
        "file_sha256": device.file_sha256,
        "token_period": {
            "value_s": period_s,
            "kind": "derived" if automatic else "assumed",
            "note": "the model's own latency per token" if automatic else _PERIOD_NOTE,
        },
        "activation": device.activation.kind,
        "values": [
            {
                "key": key,
                "value": found.text,
                "kind": found.kind,
                "source": found.source,
                "where": found.where,
                "note": found.note,
                "range": list(found.range) if found.range else None,
            }
            for key, found in device.provenance.items()
        ],
    }


_PERIOD_NOTE = "set by the run; the published 0.78 us per token counts attention alone"


def assumptions(device: DeviceModel, config: RunConfig) -> list[dict[str, Any]]:
    """List every assumed value of a run, the token period first."""
    rows: list[dict[str, Any]] = [
        {"key": key, "value": p.text, "kind": p.kind, "source": p.source, "where": p.where, "note": p.note}
        for key, p in device.provenance.items()
        if p.kind == "assumed"
    ]
    if config.token_period != "auto":
        period = {"key": "token_period", "value": config.token_period, "kind": "assumed"}
        rows.insert(0, period | {"source": "user", "where": "run configuration", "note": _PERIOD_NOTE})
    return rows


def sources(device: DeviceModel) -> dict[str, str]:
    """Return the citations of all sources that the device names."""
    used = {found.source for found in device.provenance.values()}
    known = references()
    return {key: known.get(key, "Set by the user of this run") for key in sorted(used | {"user"})}
