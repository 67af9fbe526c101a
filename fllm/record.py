"""The parts of ``result.json`` that describe a run: data, device, prices, sources, assumptions, environment."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from device_models import DeviceModel
from device_models.machines import Network, load_network, network_names
from fllm.config import RunConfig, threads_of
from fllm.data.corpus import Corpus
from fllm.data.holdings import label_counts, partition_facts
from fllm.energy import cost_sources, provenance_rows

if TYPE_CHECKING:  # torch is not needed to describe a device
    from fllm.cases import Cases
    from fllm.prompting import Encoded

NOT_MODELLED = (
    "correlation of flicker noise between reads, gradients of mismatch across a die, stuck cells, ageing but for drift",
    "linear layers' arrays: gain, offset and non-linearity of single converters, wire drop",
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
        "threads": threads_of(config),
        "packages": {name: version(name) for name in names if name != "fllm" or _installed("fllm")},
    }


def _installed(name: str) -> bool:

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


SMALLEST_CELL = 5
"""Numbers of patients below this are not told apart in a record of real data."""


def smallest_cell(corpus: Corpus) -> int:
    """Return below which number of texts a count is hidden; 0 where every text is fabricated."""
    return 0 if corpus.synthetic else SMALLEST_CELL


def data_facts(config: RunConfig, cases: Cases, encoded: Encoded) -> dict[str, Any]:
    """Describe the data in numbers: no text, no identifier."""
    corpus, split, least = cases.corpus, cases.split, smallest_cell(cases.corpus)
    classes = corpus.task.classes
    dealt = partition_facts(cases.clients, classes, cases.dealing, smallest_cell=least)
    pooled = label_counts(corpus.examples, classes, smallest_cell=least)
    parts = [label_counts(part, classes, smallest_cell=least) for part in (split.train, split.validation, split.test)]
    facts = {
        "synthetic": corpus.synthetic,
        "source": corpus.source,
        "sha256": corpus.sha256,
        "fields": list(config.fields) if config.task == "diagnosis" else [],
        "warnings": list(corpus.warnings),
        "num_cases": len(corpus.examples),
        "num_train": len(split.train),
        "num_validation": len(split.validation),
        "num_test": len(split.test),
        # A sum over training, validation and test would tell the one of them that is hidden
        "label_counts": {name: None if any(part[name] is None for part in parts) else pooled[name] for name in classes},
        "test_label_counts": parts[-1],
        "smallest_cell": least or None,
        "split": split.facts,
        "partition": {key: value for key, value in dealt.items() if key != "clients"},
        "clients": dealt["clients"],
        **encoded.facts,
    }
    return facts | ({"cues": config.cues.model_dump()} if config.task == "diagnosis" else {})


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
    """Describe the clients' link: every number with its source, and what it stands against, the shipped links."""
    others = [load_network(name) for name in network_names() if name != network.name]
    return {
        "name": network.name,
        "title": network.title,
        "values": provenance_rows(network.provenance or {}),
        "links": [_link(found) for found in (network, *others)],
    }


def _link(network: Network) -> dict[str, Any]:
    return {
        "name": network.name,
        "uplink_bit_j": network.uplink_bit,
        "downlink_bit_j": network.downlink_bit,
        "uplink_bits_per_s": network.uplink_rate,
        "downlink_bits_per_s": network.downlink_rate,
    }


def sources(device: DeviceModel, network: Network) -> dict[str, str]:
    """Return the citations of all sources that the device, its baselines and the network name."""
    return cost_sources(device, network) | {"user": "Set by the user of this run"}
