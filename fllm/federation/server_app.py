"""What the server does: one visible round loop, the same on every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from fllm.federation.client_app import ARRAYS
from fllm.federation.exchange import PLAIN, Exchange
from fllm.federation.participants import Participant, array_bytes, judged
from fllm.federation.privacy import NO_PRIVACY, Ledger, PrivacyTerms, ledger_of, privacy_facts
from fllm.federation.products import Products
from fllm.federation.roster import Chosen, Roster, drawn
from fllm.federation.secure.messages import SecureAggregationFailed
from fllm.federation.secure_rounds import SecureRound
from fllm.federation.strategy import (
    aggregated,
    averages,
    make_strategy,
    restore_state,
    set_server_rate,
    state_of,
)
from fllm.sections import StrategySettings
from hwsim import EventCounts


@dataclass(frozen=True)
class Round:
    """Outcome of one round, as the server sees it.

    Attributes:
        number: Round, counted from 1.
        adapter: Aggregated adapter.
        participants: What became of each client that was asked.
        aggregation_error: Relative distance of the averaged adapter from the average of the clients' products B A;
            None where nothing is averaged.
        strategy_state: What the strategy and its privacy carry into the next round, by names.
        privacy: What was spent up to this round; None without privacy.
        mean_loss: Mean training loss [nat], weighted by cases, where the server does not see that of each client.
    """

    number: int
    adapter: dict[str, Tensor]
    participants: tuple[Participant, ...]
    aggregation_error: float | None = None
    strategy_state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    privacy: Mapping[str, Any] | None = None
    mean_loss: float | None = None

    @property
    def sound(self) -> list[Participant]:
        """Clients whose update was sound, used or not: their work was done."""
        return [one for one in self.participants if one.reason is None]

    @property
    def clients(self) -> int:
        """Number of clients whose update was sound."""
        return len(self.sound)

    @property
    def failures(self) -> tuple[str, ...]:
        """Reasons of the others, in the order of partitions."""
        return tuple(one.reason for one in self.participants if one.reason is not None)

    @property
    def loss(self) -> float:
        """Mean training loss [nat], weighted by cases."""
        if self.mean_loss is not None:
            return self.mean_loss
        parts = [one.examples * one.loss for one in self.sound if one.loss is not None]
        return math.fsum(parts) / sum(one.examples for one in self.sound)

    @property
    def counts(self) -> EventCounts:
        """Events on the devices of all clients together."""
        total = EventCounts()
        for one in self.sound:
            total.add(one.counts or EventCounts())
        return total

    @property
    def uplink_bytes(self) -> int:
        """Arrays that arrived, used or not."""
        return sum(one.uplink_bytes for one in self.participants)

    @property
    def downlink_bytes(self) -> int:
        """Arrays that were sent."""
        return sum(one.downlink_bytes for one in self.participants)


class RoundFailed(RuntimeError):
    """Too few clients of a round sent a usable update."""


@dataclass(frozen=True)
class Start:
    """Where the server starts.

    Attributes:
        adapter: Tensors that the first round starts from.
        first_round: First round to run, above 1 when resumed.
        strategy_state: What the strategy carried out of the round before.
        frozen: Tensors of the adapter that are not sent, as all clients have them.
    """

    adapter: Mapping[str, Tensor]
    first_round: int = 1
    strategy_state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    frozen: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """What holds for all rounds of a federation.

    Attributes:
        strategy: Which strategy.
        clients: Number of clients.
        last_round: Last round.
        seed: Of the run; draws who is asked.
        clients_per_round: Clients asked in each round; None is all.
        min_clients: Least number of usable updates of a round.
        client_timeout_s: [s] that the clients of a round may take; None is for ever.
        exchange: How adapters travel.
        message: What every message tells the clients beside the adapter.
        privacy: Differential privacy of what clients send.
        secure_threshold: Clients that can together reveal a secret of secure aggregation; None is without it.
    """

    strategy: StrategySettings
    clients: int
    last_round: int
    seed: int = 0
    clients_per_round: int | None = None
    min_clients: int = 1
    client_timeout_s: float | None = None
    exchange: Exchange = PLAIN
    message: Mapping[str, str] = field(default_factory=dict)
    privacy: PrivacyTerms = NO_PRIVACY
    secure_threshold: int | None = None

    @property
    def asked(self) -> int:
        """Clients asked in each round."""
        return min(self.clients_per_round or self.clients, self.clients)


def federate(grid: Grid, terms: Terms, start: Start, on_round: Callable[[Round], None]) -> None:
    """Run the rounds of a federation.

    Flower's ``Strategy.start`` has no start round and no callback, so the loop is ours; strategies are Flower's.

    Args:
        grid: Carries messages to the clients.
        terms: What holds for all rounds.
        start: Where to start.
        on_round: Called after each round.

    Raises:
        RoundFailed: If too few clients of a round sent a usable update.
        BudgetSpent: If the next round would spend more privacy than there is; the rounds before it stand.
    """
    settings, adapter = terms.strategy, dict(start.adapter)
    ledger = ledger_of(terms.privacy)
    strategy = ledger.around(make_strategy(settings, terms.asked))
    restore_state(strategy, start.strategy_state, ArrayRecord(adapter))
    ledger.restore(start.strategy_state)
    roster = Roster(grid, terms.clients, terms.client_timeout_s)
    roster.wait_for(terms.clients, terms.client_timeout_s)
    for number in range(start.first_round, terms.last_round + 1):
        set_server_rate(strategy, settings, number, terms.last_round)
        nodes, absent = _nodes(roster, terms, number)
        if absent:
            _check(terms, ledger, number, len(nodes), absent)
        ledger.before(number, nodes.values())
        config = ConfigRecord(dict(terms.message))
        messages = list(strategy.configure_train(number, ArrayRecord(adapter), config, Chosen(tuple(nodes))))
        sent = _address(messages, nodes, adapter, terms.exchange)
        sound, participants, loss = _updates(grid, terms, number, messages, sent, adapter)
        participants = sorted([*participants, *absent], key=lambda one: one.partition)
        _check(terms, ledger, number, sum(one.reason is None for one in participants), participants)
        products = Products.of(sound, start.frozen) if _compares(terms) else None
        merged, error = aggregated(strategy, number, sound, ArrayRecord(adapter)), None
        if products is not None:
            merged |= products.best(adapter) if settings.factors == "svd" else {}
            error = products.error_of(merged if settings.factors == "svd" else None)
        adapter = merged
        ledger.after({one.partition: one.examples for one in participants if one not in absent})
        state, spent = state_of(strategy) | ledger.state(), privacy_facts(terms.privacy.settings, ledger)
        on_round(Round(number, adapter, tuple(participants), error, state, spent, loss))


def _updates(
    grid: Grid, terms: Terms, number: int, messages: Sequence[Message], sent: Sequence[Participant],
    adapter: Mapping[str, Tensor],
) -> tuple[list[Message], list[Participant], float | None]:  # fmt: skip
    """Let clients train; returns what a strategy combines, what became of each, and the mean loss if it is masked.

    Raises:
        RoundFailed: If too few clients are left for secure aggregation.
    """
    timeout_s = terms.client_timeout_s
    if terms.secure_threshold is None:
        replies = list(grid.send_and_receive(messages, timeout=timeout_s))
        asked = {message.metadata.message_id: one for message, one in zip(messages, sent, strict=True)}
        return *judged(replies, asked, adapter, terms.exchange), None
    partitions = [one.partition for one in sent]
    try:
        secure = SecureRound(grid, number, terms.secure_threshold, timeout_s)
        mean, participants = secure.mean(messages, partitions, adapter)
    except SecureAggregationFailed as error:
        raise RoundFailed(str(error)) from None
    return [mean.as_update()], participants, mean.loss


def _compares(terms: Terms) -> bool:
    """Say whether the averaged adapter is compared with the clients' own; what is private of clients is not told so."""
    seen = terms.privacy.settings.kind != "client" and terms.secure_threshold is None
    return averages(terms.strategy) and not terms.exchange.personal_b and seen


def _nodes(roster: Roster, terms: Terms, number: int) -> tuple[dict[int, int], list[Participant]]:
    """Return the partition of each node that is asked, and the clients that are not connected."""
    connected = roster.connected()
    wanted = drawn(terms.seed, number, terms.clients, terms.clients_per_round)
    nodes = {connected[partition]: partition for partition in wanted if partition in connected}
    absent = [Participant(partition, "not connected") for partition in wanted if partition not in connected]
    if not nodes:
        raise RoundFailed(f"round {number}: no client is connected")
    return nodes, absent


def _address(
    messages: Sequence[Message], nodes: Mapping[int, int], adapter: Mapping[str, Tensor], exchange: Exchange
) -> list[Participant]:
    """Put into each message what its client is sent, in the form that travels."""
    sent = []
    for message in messages:
        partition = nodes[message.metadata.dst_node_id]
        others = {name: record for name, record in message.content.items() if name != ARRAYS}
        message.content = RecordDict({ARRAYS: exchange.down(adapter, partition), **others})
        sent.append(Participant(partition, downlink_bytes=array_bytes(message)))
    return sent


def _check(terms: Terms, ledger: Ledger, number: int, sound: int, participants: Sequence[Participant]) -> None:
    """Stop a round in which too few clients are left; raises RoundFailed."""
    reasons = sorted({one.reason for one in participants if one.reason is not None})
    wanted = max(terms.min_clients, ledger.least)
    if sound < max(wanted, 1):
        least = f"fewer than {wanted} clients" if wanted > 1 and sound else "no client"
        raise RoundFailed(f"round {number}: {least} sent a usable update ({', '.join(reasons)})")
    try:
        terms.strategy.check_clients(sound)
    except ValueError as error:
        raise RoundFailed(f"round {number}: {sound} clients sent a usable update, too few: {error}") from None
