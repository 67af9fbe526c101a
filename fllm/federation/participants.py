"""What became of each client in a round: who answered what, why another was left out, and whose update stands out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fllm.federation.client_app import LOSS, WEIGHT_KEY, counts_of
from fllm.federation.exchange import Exchange
from fllm.federation.reasons import NO_ANSWER, OTHER_FORM, reason_of
from hwsim import EventCounts

FAR = 3.0
"""An update stands out whose norm is more than so many times the median, or less than so small a part of it."""


@dataclass(frozen=True)
class Participant:
    """One client in one round.

    Attributes:
        partition: The client.
        reason: Why its update was left out; None where it was sound.
        examples: Its cases; 0 where it was left out.
        loss: Mean training loss [nat].
        counts: Events on its device.
        downlink_bytes: Arrays sent to it.
        uplink_bytes: Arrays received from it.
        norm: Norm of its change of the adapter.
        cosine: Between that change and the mean of the others'; None where there is no other.
        outlier: How it stands out among the others; None where it does not.
    """

    partition: int
    reason: str | None = None
    examples: int = 0
    loss: float | None = None
    counts: EventCounts | None = None
    downlink_bytes: int = 0
    uplink_bytes: int = 0
    norm: float | None = None
    cosine: float | None = None
    outlier: str | None = None


def judged(
    replies: Iterable[Message], sent: Mapping[str, Participant], adapter: Mapping[str, Tensor], exchange: Exchange
) -> tuple[list[Message], list[Participant]]:
    """Part sound replies from others, which would poison the average for ever: no strategy of Flower stops them.

    Args:
        replies: What came back, in any order.
        sent: Client of each message, by its id.
        adapter: The server's adapter.
        exchange: How adapters travel.

    Returns:
        Sound replies with adapters in float32 of the server's rank and their weights alone, and all clients; both in
        the order of partitions.
    """
    good: dict[int, Message] = {}
    found: dict[int, Participant] = {one.partition: replace(one, reason=NO_ANSWER) for one in sent.values()}
    for reply in replies:
        asked = sent.get(reply.metadata.reply_to_message_id)
        if asked is None:
            continue  # an answer to something else
        found[asked.partition] = _judged(reply, asked, adapter, exchange)
        if found[asked.partition].reason is None:
            good[asked.partition] = reply
    participants = [found[partition] for partition in sorted(found)]
    return [good[partition] for partition in sorted(good)], _compared(participants, good, adapter)


def _judged(reply: Message, asked: Participant, adapter: Mapping[str, Tensor], exchange: Exchange) -> Participant:
    """Read one reply, and leave in it what a strategy needs."""
    if reply.has_error():
        return replace(asked, reason=reason_of(reply.error))
    arrays, metrics = list(reply.content.array_records.values()), list(reply.content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        return replace(asked, reason=OTHER_FORM)
    asked = replace(asked, uplink_bytes=array_bytes(reply))
    try:
        update = exchange.collected(arrays[0], asked.partition, adapter)
    except ValueError as error:
        return replace(asked, reason=str(error))
    try:
        examples, loss = _number(metrics[0], WEIGHT_KEY), _number(metrics[0], LOSS)
        counts = counts_of(metrics[0])
    except (KeyError, TypeError, ValueError, OverflowError):  # the last: a number of events that is infinite
        return replace(asked, reason=OTHER_FORM)
    if examples < 1 or examples != int(examples):
        return replace(asked, reason="no cases")
    reply.content = RecordDict({"arrays": ArrayRecord(update), "metrics": MetricRecord({WEIGHT_KEY: int(examples)})})
    return replace(asked, examples=int(examples), loss=loss, counts=counts)


def _number(metrics: MetricRecord, key: str) -> float:
    value: Any = metrics[key]
    number = float(value)
    if not torch.isfinite(torch.tensor(number)):
        raise ValueError(key)
    return number


def array_bytes(message: Message) -> int:
    """Return the serialised size of the arrays of a message; names and metrics are not counted."""
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())


def _compared(
    participants: Sequence[Participant], good: Mapping[int, Message], adapter: Mapping[str, Tensor]
) -> list[Participant]:
    """Add the norm of each change of the adapter, its cosine with the others', and whether it stands out."""
    changes = {partition: _change(reply, adapter) for partition, reply in good.items()}
    total = torch.stack(list(changes.values())).sum(0) if changes else torch.zeros(0)
    norms = {partition: change.norm().item() for partition, change in changes.items()}
    median = statistics.median(norms.values()) if norms else 0.0
    found = {one.partition: one for one in participants}
    for partition, change in changes.items():
        norm, others = norms[partition], total - change
        scale = norm * others.norm().item()
        cosine = (change @ others).item() / scale if scale > 0 and len(changes) > 1 else None
        outlier = _outlier(norm, median, cosine, len(changes))
        found[partition] = replace(found[partition], norm=norm, cosine=cosine, outlier=outlier)
    return list(found.values())


def _change(reply: Message, adapter: Mapping[str, Tensor]) -> Tensor:
    update = next(iter(reply.content.array_records.values())).to_torch_state_dict()
    return torch.cat([(update[name].double() - adapter[name].double()).flatten() for name in sorted(adapter)])


def _outlier(norm: float, median: float, cosine: float | None, clients: int) -> str | None:
    """Say how a change stands out; of two clients neither does."""
    if clients < 3 or cosine is None:
        return None
    if norm > FAR * median:
        return f"its norm is {norm / median:.1f} times the median" if median > 0 else "it alone moved"
    if norm < median / FAR:
        return f"its norm is {norm / median:.2f} of the median"
    return "it points against the others" if cosine < 0 else None
