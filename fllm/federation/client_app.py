"""The Flower ClientApp: unpack a message, train, pack the reply."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fllm.federation.task import Hospital

COUNT_PREFIX = "count/"
"""Metrics of this prefix are sums over clients; all others are means."""


def make_client_app(hospital_of: Callable[[int], Hospital]) -> ClientApp:
    """Make the client application.

    Args:
        hospital_of: Returns the hospital of a partition; where all run in one process, they share a model.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        update = hospital_of(partition).train(message.content["arrays"].to_torch_state_dict(), server_round)
        metrics: dict[str, int | float] = {
            "partition-id": partition,
            "num-examples": update.examples,
            "train-loss": update.loss,
            f"{COUNT_PREFIX}tokens": update.counts.tokens,
        }
        metrics |= {f"{COUNT_PREFIX}{event}": count for event, count in sorted(update.counts.events.items())}
        content = RecordDict({"arrays": ArrayRecord(update.adapter), "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    return app
