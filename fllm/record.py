"""The parts of ``result.json`` that describe a run: data, device, prices, sources, assumptions, environment."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from device_models import DeviceModel
from device_models.machines import Network
from fllm.config import RunConfig
from fllm.data import DIAGNOSES, Case, Cohort
from fllm.energy import cost_sources, provenance_rows

if TYPE_CHECKING:  # torch is not needed to describe a device
    from fllm.evaluation import Prompt

NOT_MODELLED = (
    "correlation of flicker noise between reads, gradients of mismatch across a die, stuck cells, ageing but for drift",
    "quantisation and noise of the arrays of the linear layers: their ternary weights and 8-bit inputs are exact",
    "buffers of activations beside the linear arrays, beyond their system factor; loss and sampling",
    "the digital side beyond arithmetic and memory: power supply, clocks, input and output, leakage of its logic",
    "network beyond the clients' interfaces (a LAN's port excepted): base stations, the server; evaluation",
    "what leaks while a client waits for its backward passes, the network or other clients",
)
"""What the numbers of this version leave out."""


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
        "values": provenance_rows(device.provenance),
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


def network_facts(network: Network) -> dict[str, Any]:
    """Describe the clients' link: every number with its source."""
    return {"name": network.name, "title": network.title, "values": provenance_rows(network.provenance or {})}


def sources(device: DeviceModel, network: Network) -> dict[str, str]:
    """Return the citations of all sources that the device, its baselines and the network name."""
    return cost_sources(device, network) | {"user": "Set by the user of this run"}
