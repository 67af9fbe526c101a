"""FedAvg over the adapter, with events summed and everything else averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fllm.federation.client_app import COUNT_PREFIX


def sum_or_mean(contents: list[RecordDict], weight_key: str) -> MetricRecord:
    """Sum counts over clients and average all other metrics by the number of cases.

    Flower's default averages every metric, which would turn events, and with them energy, into a mean per client.
    """
    records = [next(iter(content.metric_records.values())) for content in contents]
    weights = [float(record[weight_key]) for record in records]
    merged: dict[str, int | float | list[int]] = {}
    for key in records[0]:
        values = [record[key] for record in records]
        if isinstance(values[0], list):
            merged[key] = [sum(int(number) for number in numbers) for numbers in zip(*values, strict=True)]
        elif key.startswith(COUNT_PREFIX):
            merged[key] = sum(int(value) for value in values)
        elif key not in (weight_key, "partition-id"):
            parts = (weight * float(value) for weight, value in zip(weights, values, strict=True))
            merged[key] = math.fsum(parts) / sum(weights)
    return MetricRecord(merged)


def fedavg(num_clients: int) -> FedAvg:
    """Return FedAvg with all clients in every round and no evaluation at the clients."""
    return FedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=num_clients,
        min_evaluate_nodes=0,
        min_available_nodes=num_clients,
        train_metrics_aggr_fn=sum_or_mean,
    )


def usable(replies: Iterable[Message]) -> tuple[list[Message], list[str]]:
    """Part replies, in the order of partitions, into usable ones and the reasons of the others.

    An update with a NaN or an infinity would poison the average for ever, and no strategy of Flower stops it.
    """
    good: list[Message] = []
    reasons: list[str] = []
    for reply in replies:
        if reply.has_error():
            reasons.append(reply.error.reason)
        elif not _finite(reply.content):
            reasons.append("update is not finite")
        else:
            good.append(reply)
    good.sort(key=lambda reply: int(next(iter(reply.content.metric_records.values()))["partition-id"]))
    return good, reasons


def _finite(content: RecordDict) -> bool:
    import numpy as np

    arrays = (array.numpy() for record in content.array_records.values() for array in record.values())
    return all(bool(np.isfinite(array).all()) for array in arrays)
