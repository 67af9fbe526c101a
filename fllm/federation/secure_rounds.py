"""A round whose updates the server sees as a sum alone: the stages of secure aggregation around those to train."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from fllm.federation.client_app import ARRAYS, CONFIG, LOSS, METRICS, WEIGHT_KEY, counts_of
from fllm.federation.participants import Participant, array_bytes
from fllm.federation.reasons import NO_ANSWER, OTHER_FORM, reason_of
from fllm.federation.secure.fixed_point import FixedPoint, numbers_of
from fllm.federation.secure.messages import PublicKeys, Revealed, SecureAggregationFailed
from fllm.federation.secure.server import Numbers, SecureServer
from fllm.federation.secure_clients import (
    ARRIVED,
    KEYS,
    LETTERS,
    MASK_KEYS,
    MASKED,
    PUBLIC,
    REVEAL,
    SEEDS,
    SHARES,
    Entries,
    numbered,
    records_of,
)
from hwsim import EventCounts

T = TypeVar("T")


@dataclass(frozen=True)
class Mean:
    """All that the server learns of the updates of a round.

    Attributes:
        adapter: Mean of the clients' adapters, weighted by their cases.
        loss: Mean training loss [nat], weighted so.
        examples: Cases of all clients together.
    """

    adapter: dict[str, Tensor]
    loss: float
    examples: int

    def as_update(self) -> Message:
        """Return the mean as if one client had sent it, for a strategy that knows of nothing but means."""
        metrics = MetricRecord({WEIGHT_KEY: self.examples})
        content = RecordDict({ARRAYS: ArrayRecord(self.adapter), METRICS: metrics})
        return Message(content, dst_node_id=0, message_type="train")


class SecureRound:
    """One round of secure aggregation over a grid.

    Args:
        grid: Carries messages.
        number: Round.
        threshold: How many clients together can reveal a secret.
        timeout_s: [s] that the clients may take for each stage; None is for ever.
    """

    def __init__(self, grid: Grid, number: int, threshold: int, timeout_s: float | None) -> None:
        self._grid, self._number, self._timeout_s = grid, number, timeout_s
        self._server = SecureServer(number, threshold)
        self._node_of: dict[int, int] = {}
        self._config = ConfigRecord()
        self._down: Counter[int] = Counter()
        self._up: Counter[int] = Counter()

    def mean(
        self, messages: Sequence[Message], partitions: Sequence[int], adapter: Mapping[str, Tensor]
    ) -> tuple[Mean, list[Participant]]:
        """Let clients train, and return the mean of their adapters and what became of each client.

        Args:
            messages: Messages to train on, without the shares.
            partitions: The client of each.
            adapter: Adapter in them.

        Raises:
            SecureAggregationFailed: If fewer clients than the threshold are left at any stage, or one lied.
        """
        server = self._server
        shapes = {name: tuple(tensor.shape) for name, tensor in adapter.items()} | {LOSS: ()}
        train = dict(zip(partitions, messages, strict=True))
        self._node_of = {partition: message.metadata.dst_node_id for partition, message in train.items()}
        self._config = messages[0].content[CONFIG]  # a client needs to know its run in every stage
        members = server.take_keys(self._answers(self._stage(KEYS, train), _public))
        public = {u: keys.to_bytes() for u, keys in members.items()}
        letters = server.take_shares(self._answers(self._stage(SHARES, members, {PUBLIC: public}), _letters))
        for partition, own in letters.items():
            train[partition].content[LETTERS] = ConfigRecord({str(sender): letter for sender, letter in own.items()})
        trained = self._answers({partition: train[partition] for partition in letters}, _trained)
        server.take_masked(((partition, one.numbers) for partition, one in trained), numbers_of(shapes))
        arrived = {partition: partition in server.survivors for partition in server.dealt}
        revealed = self._answers(self._stage(REVEAL, server.survivors, {ARRIVED: arrived}), _revealed)
        means, examples = _decoded(server.take_revealed(revealed), shapes)
        mean = {name: (tensor.double() + torch.from_numpy(means[name])).float() for name, tensor in adapter.items()}
        work = dict(trained)
        return Mean(mean, float(means[LOSS]), examples), [self._participant(partition, work) for partition in train]

    def _participant(self, partition: int, trained: Mapping[int, Trained]) -> Participant:
        """Say what became of a client; where it failed to reveal shares, its values are in the sum nevertheless."""
        found = Participant(partition, downlink_bytes=self._down[partition], uplink_bytes=self._up[partition])
        if partition in self._server.survivors:
            return replace(found, counts=trained[partition].counts)
        return replace(found, reason=self._server.refused[partition])

    def _stage(self, action: str, clients: Iterable[int], entries: Entries | None = None) -> dict[int, Message]:
        """Return the message of a stage for each client."""
        kind, group = f"query.{action}", str(self._number)
        content = RecordDict({CONFIG: self._config, **records_of(entries or {})})
        return {
            client: Message(content, dst_node_id=self._node_of[client], message_type=kind, group_id=group)
            for client in clients
        }

    def _answers(self, messages: Mapping[int, Message], read: Callable[[Message], T]) -> list[tuple[int, T]]:
        """Send messages; returns what clients answered, in the order of their partitions."""
        self._down.update({partition: _carried(message) for partition, message in messages.items()})
        replies = list(self._grid.send_and_receive(list(messages.values()), timeout=self._timeout_s))
        sender = {message.metadata.message_id: partition for partition, message in messages.items()}
        answers, reasons = [], dict.fromkeys(messages, NO_ANSWER)
        for reply in replies:
            partition = sender.get(reply.metadata.reply_to_message_id)
            if partition is None:
                continue  # an answer to something else
            self._up[partition] += _carried(reply)
            if reply.has_error():
                reasons[partition] = reason_of(reply.error)
                continue
            try:
                answers.append((partition, read(reply)))
                reasons.pop(partition, None)
            except (KeyError, TypeError, ValueError, OverflowError):
                reasons[partition] = OTHER_FORM
        self._server.refused.update(reasons)
        return sorted(answers, key=lambda answer: answer[0])


@dataclass(frozen=True)
class Trained:
    """What a client sends in clear and masked after training."""

    numbers: Numbers
    counts: EventCounts


def _carried(message: Message) -> int:
    """Return the serialised size of arrays, keys, letters and shares; names and metrics are not counted."""
    if not message.has_content():
        return 0
    values = (value for record in message.content.config_records.values() for value in record.values())
    return array_bytes(message) + sum(len(value) for value in values if isinstance(value, bytes))


def _public(reply: Message) -> PublicKeys:
    (joined,) = numbered(reply.content[PUBLIC]).values()
    return PublicKeys.from_bytes(joined)


def _letters(reply: Message) -> dict[int, bytes]:
    return numbered(reply.content[LETTERS])


def _trained(reply: Message) -> Trained:
    array, counts = reply.content[ARRAYS][MASKED], counts_of(reply.content[METRICS])
    try:
        return Trained(array.numpy(), counts)
    except Exception:  # NumPy's are many, over bytes that somebody else wrote
        raise ValueError("update cannot be read") from None


def _decoded(total: Numbers, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, NDArray[np.float64]], int]:
    try:
        return FixedPoint().decode(total, shapes)
    except ValueError as error:
        raise SecureAggregationFailed(f"the sum is that of no updates: {error}") from None


def _revealed(reply: Message) -> Revealed:
    return Revealed(numbered(reply.content[SEEDS]), numbered(reply.content[MASK_KEYS]))
