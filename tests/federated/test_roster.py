"""Which node is which client, and who is asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, MetricRecord, RecordDict
from scipy.stats import chisquare

from fllm.federation.engines import InProcessGrid
from fllm.federation.roster import Chosen, Roster, drawn
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.model.adapters import adapter_digest
from fllm.sections import StrategySettings
from tests.federated.faulty import A, B, make_app


class Nodes(InProcessGrid):
    """Nodes that say what a test lets them say: a partition, an error, or nothing at all."""

    def __init__(self, told: dict[int, Any]) -> None:
        super().__init__(make_app(), 1)
        self.told = told
        self.greeted: list[int] = []

    def get_node_ids(self) -> list[int]:
        return list(self.told)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self._numbered(message)
            node = message.metadata.dst_node_id
            self.greeted.append(node)
            match self.told[node]:
                case "error":
                    replies.append(Message(Error(code=5, reason="gone"), reply_to=message))
                case "silent":
                    pass
                case dict() as metrics:
                    content = RecordDict({"metrics": MetricRecord(metrics)} if metrics else {})
                    replies.append(Message(content, reply_to=message))
                case partition:
                    content = RecordDict({"metrics": MetricRecord({"partition-id": partition})})
                    replies.append(Message(content, reply_to=message))
        return replies[::-1]


def test_clients_are_known_by_their_partition() -> None:
    roster = Roster(Nodes({70: 2, 11: 0, 35: 1}), 3)
    assert list(roster.connected().items()) == [(0, 11), (1, 35), (2, 70)]


def test_nodes_are_asked_once() -> None:
    grid = Nodes({5: 0, 6: 1})
    roster = Roster(grid, 2)
    for _ in range(3):
        roster.connected()
    assert grid.greeted == [5, 6]
    grid.told[9] = 2
    roster.connected()
    assert grid.greeted == [5, 6, 9]


def test_node_that_was_started_again_takes_the_place_of_its_former_number() -> None:
    grid = Nodes({80: 0, 90: 1})
    roster = Roster(grid, 2)
    assert roster.connected() == {0: 80, 1: 90}
    grid.told[3] = 1  # while Flower has not noticed yet that the former one is gone
    assert roster.connected() == {0: 80, 1: 3}
    del grid.told[90]
    assert roster.connected() == {0: 80, 1: 3}
    del grid.told[3]
    assert roster.connected() == {0: 80}
    grid.told[90] = 1  # the network was away, the node was not
    assert roster.connected() == {0: 80, 1: 90}


@pytest.mark.parametrize(
    "told", [2, -1, 1.0, [1], {}, {"partition": 1}, {"partition-id": [0, 1]}], ids=[str(i) for i in range(7)]
)
def test_node_of_no_client_of_the_federation_is_not_asked(told: Any) -> None:
    assert Roster(Nodes({4: 0, 5: told}), 2).connected() == {0: 4}


@pytest.mark.parametrize("told", ["error", "silent"])
def test_node_that_cannot_say_who_it_is_is_asked_again(told: str) -> None:
    grid = Nodes({4: 0, 5: told})
    roster = Roster(grid, 2)
    assert roster.connected() == {0: 4}
    grid.told[5] = 1
    assert roster.connected() == {0: 4, 1: 5}


def test_waiting_ends_when_all_are_there_or_patience_does() -> None:
    grid = Nodes({4: 0, 5: "silent"})
    roster = Roster(grid, 2)
    began = time.monotonic()
    roster.wait_for(1, None)
    assert time.monotonic() - began < 0.15
    roster.wait_for(2, 0.3)
    assert 0.3 <= time.monotonic() - began < 3


def test_federation_without_a_client_says_so() -> None:
    with pytest.raises(RoundFailed, match="round 1: no client is connected"):
        federate(Nodes({4: "silent"}), Terms(StrategySettings(), 2, 1, client_timeout_s=0.05), START, print)


# Who is drawn.


def test_drawing_depends_on_seed_and_round_alone() -> None:
    expected = drawn(3, 5, 20, 6)
    torch.manual_seed(1)
    np.random.default_rng(1).random()
    drawn(3, 4, 20, 6)
    assert drawn(3, 5, 20, 6) == expected == sorted(set(expected))
    assert len(expected) == 6
    assert expected not in (drawn(3, 6, 20, 6), drawn(4, 5, 20, 6))


@pytest.mark.parametrize("wanted", [None, 5, 9])
def test_all_are_asked_where_there_are_no_more(wanted: int | None) -> None:
    assert drawn(0, 1, 5, wanted) == [0, 1, 2, 3, 4]


def test_drawing_is_uniform_over_clients_and_pairs() -> None:
    rounds, clients, wanted = 4000, 10, 3
    each: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for number in range(rounds):
        found = drawn(7, number, clients, wanted)
        each.update(found)
        pairs.update((a, b) for a in found for b in found if a < b)
    assert chisquare([each[c] for c in range(clients)]).pvalue > 1e-3
    assert len(pairs) == 45
    assert chisquare(list(pairs.values())).pvalue > 1e-3


def test_strategy_sees_the_drawn_nodes_alone() -> None:
    assert Chosen((7, 3)).get_node_ids() == [7, 3]


START = Start({A: torch.zeros(2, 3), B: torch.ones(3, 2)})
SOME = Terms(StrategySettings(), 12, 4, seed=5, clients_per_round=3)


def played(start: Start = START, terms: Terms = SOME) -> list[Round]:
    rounds: list[Round] = []
    federate(InProcessGrid(make_app(), 12), terms, start, rounds.append)
    return rounds


def test_clients_per_round() -> None:
    rounds = played()
    asked = [[one.partition for one in found.participants] for found in rounds]
    assert asked == [drawn(5, number, 12, 3) for number in range(1, 5)]
    assert len({tuple(found) for found in asked}) > 1
    assert all(found.clients == 3 and found.failures == () for found in rounds)


def test_resumed_federation_draws_the_same() -> None:
    whole = played()
    tail = played(Start(whole[1].adapter, first_round=3))
    assert [adapter_digest(found.adapter) for found in tail] == [adapter_digest(found.adapter) for found in whole[2:]]
