"""One client fails in one round: the round ends as if only the others had been asked, and it is asked again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fllm.federation.engines import InProcessGrid
from fllm.federation.pool import PoolGrid
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.model.adapters import adapter_digest
from fllm.sections import StrategySettings
from tests.federated.faulty import BAD, CANARY, CLIENTS, FAULTS, LATE_S, WHEN, A, B, make_app, pids

START = {A: torch.zeros(2, 3), B: torch.ones(3, 2)}
TERMS = Terms(StrategySettings(), CLIENTS, 2)
OTHERS = [partition for partition in range(CLIENTS) if partition != BAD]

FORM, SHAPES, NAMES = "reply of another form", "update has other shapes than the adapter", "update has other tensors"
KIND, FINITE = "update has numbers of another kind than the adapter", "update is not finite"
NAMES += " than the adapter"
TABLE = {
    "raises": "ValueError",
    "raises a type of its own": "it raised an exception",
    "nan": FINITE,
    "inf": FINITE,
    "-inf": FINITE,
    "huge": "update has changes beyond 1e+15",
    "transposed": SHAPES,
    "one number": SHAPES,
    "further axis": SHAPES,
    "float64": KIND,
    "int8": KIND,
    "bool": KIND,
    "complex": KIND,
    "lacks a tensor": NAMES,
    "further tensor": NAMES,
    "renamed tensor": NAMES,
    "empty arrays": NAMES,
    "unreadable arrays": "update cannot be read",
    "no arrays": FORM,
    "no metrics": FORM,
    "two records of arrays": FORM,
    "no number of cases": FORM,
    "no loss": FORM,
    "loss is nan": FORM,
    "loss is a list": FORM,
    "zero cases": "no cases",
    "negative cases": "no cases",
    "half a case": "no cases",
    "infinitely many cases": FORM,
    "more cases than a float holds": FORM,
    "infinitely many events": FORM,
    "events of no layer": FORM,
    "words": FORM,
    "no message": "TypeError",
}
"""What a client does, and the reason that stands in the round."""
OF_PROCESSES = {
    "dies": "its process died (exit code -9)",
    "hangs": "no answer in time",
    "answers too late": "no answer in time",
}
"""The same for what only another process survives: in this one nobody could give a client up."""


def played(grid: Grid, terms: Terms = TERMS, start: Start | None = None) -> list[Round]:
    rounds: list[Round] = []
    federate(grid, terms, start or Start(START), rounds.append)
    return rounds


def fault(name: str) -> Terms:
    return replace(TERMS, message={"fault": name})


def app_of(partitions: list[int]) -> ClientApp:
    """Return the application of a federation of some of the clients alone."""
    app = make_app()

    def renumbered(message: Message, context: Context) -> Message:
        if message.metadata.message_type != "train":
            return app(message, context)
        own = partitions[int(context.node_config["partition-id"])]
        return app(message, Context(1, own, {"partition-id": own}, context.state, {}))

    return renumbered  # type: ignore[return-value]


@cache
def expected() -> tuple[str, str]:
    """Return the digests of both rounds: the first asks the others alone, the second goes on from there with all."""
    grid = InProcessGrid(app_of(OTHERS), len(OTHERS))
    (first,) = played(grid, Terms(StrategySettings(), len(OTHERS), 1))
    (second,) = played(InProcessGrid(make_app(), CLIENTS), TERMS, Start(first.adapter, first_round=2))
    return adapter_digest(first.adapter), adapter_digest(second.adapter)


def assert_survived(rounds: list[Round], reason: str) -> None:
    first, second = rounds
    assert (adapter_digest(first.adapter), adapter_digest(second.adapter)) == expected()
    assert [one.partition for one in first.participants] == list(range(CLIENTS))
    assert [one.reason for one in first.participants] == [None, None, reason, None]
    bad = first.participants[BAD]
    assert (bad.examples, bad.loss, bad.counts, bad.norm, bad.outlier) == (0, None, None, None, None)
    assert (first.clients, first.failures, first.loss) == (3, (reason,), 1.0)
    assert (second.clients, second.failures) == (4, ())
    assert all(CANARY not in repr(found.participants) for found in rounds)


@pytest.fixture(scope="module")
def pool() -> Iterator[PoolGrid]:
    """Return the engine with processes, which all rows share: what one row breaks must not reach the next."""
    grid = PoolGrid(make_app, CLIENTS, 2)
    yield grid
    grid.close()


@pytest.fixture(scope="module")
def hasty_pool() -> Iterator[PoolGrid]:
    """Return one that gives clients up."""
    grid = PoolGrid(make_app, CLIENTS, 2, LATE_S)
    yield grid
    grid.close()


def test_table_has_every_fault() -> None:
    assert TABLE.keys() | OF_PROCESSES.keys() | {"large"} == FAULTS.keys()


def test_the_fault_would_show() -> None:
    """The digests are of two different federations: with all in both rounds they are others."""
    digests = [adapter_digest(found.adapter) for found in played(InProcessGrid(make_app(), CLIENTS))]
    assert not {*digests} & {*expected()}


@pytest.mark.parametrize("name", TABLE)
def test_in_this_process(name: str) -> None:
    assert_survived(played(InProcessGrid(make_app(), CLIENTS), fault(name)), TABLE[name])


@pytest.mark.parametrize("name", TABLE)
def test_in_processes(name: str, pool: PoolGrid) -> None:
    assert_survived(played(pool, fault(name)), TABLE[name])


@pytest.mark.parametrize("name", OF_PROCESSES)
def test_process_is_replaced(name: str, hasty_pool: PoolGrid) -> None:
    before = pids(hasty_pool)
    assert_survived(played(hasty_pool, fault(name)), OF_PROCESSES[name])
    after = pids(hasty_pool)
    assert len(before & after) == len(before - after) == 1


class Absent(InProcessGrid):
    """One node is not there until its round is over."""

    rounds = 0

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if self.rounds >= WHEN or node != BAD + 1]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        self.rounds += messages[0].metadata.message_type == "train"
        return replies


def test_client_that_is_not_connected() -> None:
    terms = replace(TERMS, client_timeout_s=0.1)
    assert_survived(played(Absent(make_app(), CLIENTS), terms), "not connected")


class Late(InProcessGrid):
    """A reply comes with those of the next round, when nobody waits for it any more."""

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        super().__init__(client_app, num_clients)
        self.held: list[Message] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages[0].metadata.message_type != "train":
            return replies
        if not self.held:
            bad = next(m.metadata.message_id for m in messages if m.metadata.dst_node_id == BAD + 1)
            self.held = [reply for reply in replies if reply.metadata.reply_to_message_id == bad]
            return [reply for reply in replies if reply not in self.held]
        return [*self.held, *replies, *self.held]


def test_answer_that_comes_a_round_too_late_is_not_taken_for_another() -> None:
    assert_survived(played(Late(make_app(), CLIENTS)), "no answer in time")


# Too few clients left.


@pytest.mark.parametrize("name", ["raises", "nan", "zero cases"])
def test_min_clients(name: str) -> None:
    rounds: list[Round] = []
    grid = InProcessGrid(make_app(), CLIENTS)
    with pytest.raises(RoundFailed) as failed:
        federate(grid, replace(fault(name), min_clients=4), Start(START), rounds.append)
    assert str(failed.value) == f"round 1: fewer than 4 clients sent a usable update ({TABLE[name]})"
    assert rounds == []
    assert_survived(played(InProcessGrid(make_app(), CLIENTS), replace(fault(name), min_clients=3)), TABLE[name])


def test_min_clients_of_those_that_are_connected() -> None:
    terms = replace(TERMS, min_clients=4, client_timeout_s=0.1)
    with pytest.raises(RoundFailed, match=r"fewer than 4 clients .*\(not connected\)"):
        played(Absent(make_app(), CLIENTS), terms)


@pytest.mark.parametrize(
    "strategy",
    [StrategySettings(kind="trimmed_mean", trim=0.25), StrategySettings(kind="fedavg")],
    ids=["trimmed mean", "mean"],
)
def test_strategy_with_too_few_left_says_so(strategy: StrategySettings) -> None:
    """Of three clients a share of a quarter is none: the trimmed mean would be a plain one without a word."""
    terms = replace(fault("raises"), strategy=strategy)
    if strategy.kind == "fedavg":
        assert len(played(InProcessGrid(make_app(), CLIENTS), terms)) == 2
        return
    with pytest.raises(RoundFailed, match="3 clients sent a usable update, too few"):
        played(InProcessGrid(make_app(), CLIENTS), terms)


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam", "fedyogi"])
def test_what_is_just_small_enough_leaves_nothing_infinite_in_a_server(
    kind: Literal["fedavgm", "fedadam", "fedyogi"],
) -> None:
    terms = replace(fault("large"), strategy=StrategySettings(kind=kind), last_round=3)
    rounds = played(InProcessGrid(make_app(), CLIENTS), terms)
    assert [found.clients for found in rounds] == [4, 4, 4]
    for found in rounds:
        assert all(bool(tensor.isfinite().all()) for tensor in found.adapter.values())
        assert all(bool(np.isfinite(array).all()) for array in found.strategy_state.values())
