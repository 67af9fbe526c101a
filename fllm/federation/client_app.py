"""The Flower ClientApp: unpack a message, train, pack the reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fllm.federation.task import Hospital
from hwsim import EventCounts
from hwsim.events import EVENTS

COUNT_PREFIX = "count/"
"""Metrics of this prefix are sums over clients; all others are means."""
TOKENS = f"{COUNT_PREFIX}tokens"
OUTSIDE = "-"
"""Stands for the layer of events outside of the decoder's layers."""


def count_metrics(counts: EventCounts) -> dict[str, int | list[int]]:
    """Write counts as metrics of a message: for each layer the numbers of all kinds of events, in the order of EVENTS.

    Flower wants the same metrics from all clients, whatever happened at each.
    """
    metrics: dict[str, int | list[int]] = {TOKENS: counts.tokens}
    for layer, events in counts.by_layer.items():
        name = OUTSIDE if layer is None else str(layer)
        metrics[f"{COUNT_PREFIX}{name}"] = [events[event] for event in EVENTS]
    return metrics


def counts_of(metrics: Mapping[str, Any]) -> EventCounts:
    """Read counts back from the metrics of one or of several clients; what hardware was built is not in them."""
    counts = EventCounts(tokens=int(metrics.get(TOKENS, 0)))
    for key, numbers in metrics.items():
        if key.startswith(COUNT_PREFIX) and key != TOKENS:
            layer = key.removeprefix(COUNT_PREFIX)
            events = dict(zip(EVENTS, map(int, numbers), strict=True))
            counts.record(None if layer == OUTSIDE else int(layer), events)
    return counts


def make_client_app(hospital_of: Callable[[int], Hospital]) -> ClientApp:
    """Make the client application.

    Args:
        hospital_of: Returns the hospital of a partition; where all run in one process, they share a model.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        config = message.content["config"]
        update = hospital_of(partition).train(
            message.content["arrays"].to_torch_state_dict(), int(config["server-round"]),
            proximal_mu=float(config.get("proximal-mu", 0.0)),
        )  # fmt: skip
        metrics: dict[str, int | float | list[int]] = {
            "partition-id": partition,
            "num-examples": update.examples,
            "train-loss": update.loss,
        } | count_metrics(update.counts)
        content = RecordDict({"arrays": ArrayRecord(update.adapter), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    return app
