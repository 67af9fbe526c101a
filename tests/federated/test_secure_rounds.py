"""Secure aggregation within rounds: equal to a run in clear, whoever drops out; and what the server sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fllm.config import RunConfig
from fllm.federation.client_app import (
    ARRAYS,
    CONFIG,
    COUNT_PREFIX,
    METRICS,
    PARTITION,
    TOKENS,
    Trainer,
    make_client_app,
)
from fllm.federation.engines import InProcessGrid
from fllm.federation.participants import Participant
from fllm.federation.pool import PoolGrid
from fllm.federation.secure.client import SecureClient
from fllm.federation.secure.thresholds import default_threshold
from fllm.federation.secure_clients import LETTERS, MASKED, PUBLIC, answer_stages, mask_updates
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.federation.task import Update
from fllm.local_clients import local_grid, terms_of
from fllm.model.adapters import adapter_digest
from fllm.preparation import Prepared
from fllm.sections import AVERAGING, StrategySettings
from hwsim import EventCounts
from tests.fllm.small import TINY
from tests.tolerances import MASKED_MEAN

START = {"a.lora_A.weight": torch.full((2, 3), 0.25), "a.lora_B.weight": torch.ones(3, 2)}
FEDAVG = StrategySettings()
CASES = (10, 1, 29, 4, 13)
STAGES = ("query.secure_keys", "query.secure_shares", "train", "query.secure_reveal")


class Client:
    """Sends an update that follows from its number and the round; ``act`` may change it or raise."""

    def __init__(self, partition: int, act: Callable[[dict[str, Tensor]], None] | None = None) -> None:
        self.partition, self.act = partition, act

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        del proximal_mu
        made = torch.Generator().manual_seed(1000 * server_round + self.partition)
        update = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=made) for name, tensor in adapter.items()}
        if self.act is not None:
            self.act(update)
        counts = EventCounts(tokens=100)
        counts.record(0, {"attention.qk_mac": 10 + self.partition})
        return Update(update, 1.0 + self.partition, CASES[self.partition], counts)


def app_of(clients: Mapping[int, Trainer], threshold: int | None) -> ClientApp:
    app = make_client_app(clients.__getitem__, mods=[mask_updates] if threshold else [])
    if threshold is not None:
        answer_stages(app, threshold)
    return app


def five(broken: Mapping[int, Callable[[dict[str, Tensor]], None]] | None = None) -> dict[int, Client]:
    return {i: Client(i, (broken or {}).get(i)) for i in range(len(CASES))}


def secure_app() -> ClientApp:
    """Return the application that a process of a pool makes."""
    return app_of(five(), default_threshold(len(CASES)))


class Watching(InProcessGrid):
    """Keeps all that is sent, and loses the answers of some clients to some kinds of messages."""

    def __init__(self, app: ClientApp, lose: Mapping[str, set[int]] | None = None) -> None:
        super().__init__(app, len(CASES))
        self.lose, self.sent, self.answers = lose or {}, [], []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = list(messages)
        self.sent += messages
        gone = self.lose.get(messages[0].metadata.message_type, set())
        replies = super().send_and_receive([m for m in messages if m.metadata.dst_node_id - 1 not in gone])
        self.answers += replies
        return replies


def play(
    grid: Any, threshold: int | None, *, rounds: int = 1, strategy: StrategySettings = FEDAVG, **terms: Any
) -> list[Round]:
    outcomes: list[Round] = []
    settled = Terms(strategy, len(CASES), rounds, secure_threshold=threshold, **terms)
    federate(grid, settled, Start(START), outcomes.append)
    return outcomes


def plain(clients: dict[int, Client] | None = None, **settings: Any) -> list[Round]:
    return play(InProcessGrid(app_of(clients or five(), None), len(CASES)), None, **settings)


def secure(
    clients: dict[int, Client] | None = None, lose: Mapping[str, set[int]] | None = None, threshold: int = 4,
    **settings: Any,
) -> tuple[list[Round], Watching]:  # fmt: skip
    grid = Watching(app_of(clients or five(), threshold), lose)
    return play(grid, threshold, **settings), grid


def assert_close(found: Round, expected: Round) -> None:
    assert set(found.adapter) == set(expected.adapter)
    for name, tensor in expected.adapter.items():
        torch.testing.assert_close(found.adapter[name], tensor, rtol=0, atol=MASKED_MEAN)
    assert found.loss == pytest.approx(expected.loss, abs=1e-9)
    assert (found.counts.by_layer, found.counts.tokens) == (expected.counts.by_layer, expected.counts.tokens)
    assert (found.clients, found.number) == (expected.clients, expected.number)


# --- equal to a run in clear


@pytest.mark.parametrize("kind", AVERAGING)
def test_rounds_are_those_of_a_run_in_clear(kind: Any) -> None:
    strategy = StrategySettings(kind=kind)
    found, expected = secure(strategy=strategy, rounds=2)[0], plain(strategy=strategy, rounds=2)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
        assert set(one.strategy_state) == set(other.strategy_state)
    assert not torch.equal(found[0].adapter["a.lora_A.weight"], found[1].adapter["a.lora_A.weight"])


def test_two_runs_and_a_pool_of_processes_give_the_same_bytes() -> None:
    first, second = (secure(rounds=2)[0] for _ in range(2))
    pool = PoolGrid(secure_app, len(CASES), 2)
    try:
        third = play(pool, 4, rounds=2)
    finally:
        pool.close()
    digests = [[adapter_digest(outcome.adapter) for outcome in run] for run in (first, second, third)]
    assert digests[0] == digests[1] == digests[2]
    assert [run[1].loss for run in (first, second, third)] == [first[1].loss] * 3


def test_a_resumed_run_ends_with_the_same_bytes() -> None:
    strategy, outcomes = StrategySettings(kind="fedadam"), []
    first, second = secure(strategy=strategy, rounds=2)[0]
    terms = Terms(strategy, len(CASES), 2, secure_threshold=4)
    federate(InProcessGrid(secure_app(), len(CASES)), terms, Start(first.adapter, 2, first.strategy_state),
             outcomes.append)  # fmt: skip
    assert [adapter_digest(outcome.adapter) for outcome in outcomes] == [adapter_digest(second.adapter)]


def test_clients_drawn_for_a_round_are_enough() -> None:
    found, expected = secure(threshold=3, clients_per_round=3)[0], plain(clients_per_round=3)
    assert_close(found[0], expected[0])
    assert [one.partition for one in found[0].participants] == [one.partition for one in expected[0].participants]


def test_hospitals_of_a_run_give_the_mean_of_a_run_in_clear(prepared: Prepared, tmp_path: Path) -> None:
    """The application and the terms that every engine makes of a configuration, with a model and cases."""
    outcomes: dict[bool, list[Round]] = {True: [], False: []}
    for masked, found in outcomes.items():
        config = RunConfig(**TINY | {"num_rounds": 1}, max_tokens=48, secure={"aggregation": masked})
        with local_grid(replace(prepared, config=config), tmp_path, 1) as grid:
            federate(grid, terms_of(config), Start(prepared.first_adapter), found.append)
    assert_close(outcomes[True][0], outcomes[False][0])
    assert outcomes[True][0].aggregation_error is None and outcomes[False][0].aggregation_error is not None


# --- clients that drop out


def diverge(update: dict[str, Tensor]) -> None:
    next(iter(update.values()))[0, 0] = float("nan")


def grow(update: dict[str, Tensor]) -> None:
    next(iter(update.values()))[0, 0] += 65.0


def fail(update: dict[str, Tensor]) -> None:
    raise KeyError("a text that must stay at the client")


@pytest.mark.parametrize(
    ("act", "reason"), [(fail, "KeyError"), (diverge, "ValueOutOfRange"), (grow, "ValueOutOfRange")]
)
def test_a_client_that_fails_in_training_is_left_out_of_the_sum(act: Any, reason: str) -> None:
    found, expected = secure(five({2: act}))[0][0], plain(five({2: fail}))[0]
    assert_close(found, expected)
    assert found.failures == (reason,)
    assert found.participants[2].uplink_bytes < 1000 < found.participants[2].downlink_bytes


@pytest.mark.parametrize("stage", STAGES[:3])
def test_a_client_that_is_silent_in_a_stage_is_left_out_of_the_sum(stage: str) -> None:
    found, expected = secure(lose={stage: {3}})[0][0], plain(five({3: fail}))[0]
    assert_close(found, expected)
    assert found.failures == ("no answer in time",)
    assert (found.participants[3].downlink_bytes > 1000) == (stage == "train")


def test_a_client_that_is_silent_in_the_end_is_in_the_sum() -> None:
    found, expected = secure(lose={"query.secure_reveal": {3}})[0][0], plain()[0]
    assert_close(found, expected)
    assert found.failures == ()


def test_a_client_comes_back_in_the_next_round() -> None:
    grid = Watching(app_of(five(), 4), {"train": {3}})
    outcomes: list[Round] = []

    def on_round(outcome: Round) -> None:
        outcomes.append(outcome)
        grid.lose = {}

    federate(grid, Terms(StrategySettings(), len(CASES), 2, secure_threshold=4), Start(START), on_round)
    first, second = outcomes
    assert (first.clients, second.clients, second.failures) == (4, 5, ())


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_clients_end_the_round_and_say_why(stage: str) -> None:
    with pytest.raises(RoundFailed, match=r"round 1: 3 clients .* threshold of 4 \(no answer in time\)"):
        secure(lose={stage: {1, 3}})


def test_more_clients_can_be_wanted_than_the_threshold() -> None:
    with pytest.raises(RoundFailed, match="fewer than 5 clients"):
        secure(five({2: fail}), min_clients=5)


class Forging(Watching):
    """Changes some answers of client 2 to messages of one kind."""

    def __init__(self, kind: str, change: Callable[[RecordDict], None]) -> None:
        super().__init__(app_of(five(), 4))
        self.kind, self.change = kind, change

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages)
        for reply in replies:
            if reply.metadata.message_type == self.kind and reply.metadata.src_node_id == 3:
                self.change(reply.content)
        return replies


def no_letters(content: RecordDict) -> None:
    content[LETTERS] = ConfigRecord({})


def words(content: RecordDict) -> None:
    content[LETTERS] = ConfigRecord({"0": "a", "1": "b", "3": "c", "4": "d"})


def two_keys(content: RecordDict) -> None:
    content[PUBLIC] = ConfigRecord({"2": b"1" * 96, "3": b"2" * 96})


def empty_keys(content: RecordDict) -> None:
    content[PUBLIC] = ConfigRecord({"2": bytes(32) + b"2" * 64})


def torn_array(content: RecordDict) -> None:
    content[ARRAYS][MASKED].data = b""


def endless_counts(content: RecordDict) -> None:
    content[METRICS][TOKENS] = float("inf")


def no_array(content: RecordDict) -> None:
    del content[ARRAYS]


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("query.secure_keys", two_keys, "reply of another form"),
        ("query.secure_keys", empty_keys, "its keys are not sound, or another's"),
        ("query.secure_shares", no_letters, "its shares are not one for each other client"),
        ("query.secure_shares", words, "reply of another form"),
        ("train", no_array, "reply of another form"),
        ("train", torn_array, "reply of another form"),
        ("train", endless_counts, "reply of another form"),
    ],
)
def test_a_reply_of_another_form_leaves_its_client_out(kind: str, change: Any, reason: str) -> None:
    outcome = play(Forging(kind, change), 4)[0]
    assert_close(outcome, plain(five({2: fail}))[0])
    assert outcome.failures == (reason,)


def test_a_client_that_lies_about_its_cases_can_end_a_round() -> None:
    """Nobody can look behind its mask."""

    def owe(content: RecordDict) -> None:
        numbers = content[ARRAYS][MASKED].numpy().copy()
        numbers[-1] -= np.uint64(1000)
        content[ARRAYS] = ArrayRecord({MASKED: Array(numbers)})

    with pytest.raises(RoundFailed, match="the sum is that of no updates: the weights add up to -943"):
        play(Forging("train", owe), 4)


# --- what the server sees


def test_the_server_sees_masked_numbers_and_counts_of_events_alone() -> None:
    (outcome,), grid = secure()
    trained = [reply for reply in grid.answers if reply.metadata.message_type == "train"]
    assert len(trained) == len(CASES)
    for reply in trained:
        assert set(reply.content) == {ARRAYS, METRICS} and set(reply.content[ARRAYS]) == {MASKED}
        numbers = reply.content[ARRAYS][MASKED].numpy()
        assert (numbers.dtype, len(numbers)) == (np.uint64, 6 + 6 + 1 + 1)
        assert all(name == PARTITION or name.startswith(COUNT_PREFIX) for name in reply.content[METRICS])
    one = outcome.participants[2]
    assert one == Participant(2, counts=one.counts, downlink_bytes=one.downlink_bytes, uplink_bytes=one.uplink_bytes)
    assert outcome.aggregation_error is None


def test_bytes_are_those_of_all_stages() -> None:
    """Keys of 96 bytes, letters of two shares of 33 with nonce and tag, and in the end a share for each client."""
    found, expected = secure()[0][0], plain()[0]
    for one, other in zip(found.participants, expected.participants, strict=True):
        assert one.downlink_bytes == other.downlink_bytes + 5 * 96 + 4 * (66 + 28)
        header = one.uplink_bytes - (96 + 4 * (66 + 28) + 8 * 14 + 5 * 33)
        assert 0 < header <= 128  # of the array


def test_no_message_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[SecureClient] = []
    secrets: list[bytes] = []
    keys = SecureClient.keys

    def watched(client: SecureClient) -> Any:
        made.append(client)
        secrets.extend([client.letter_key, client.mask_key, client.seed])
        return keys(client)

    monkeypatch.setattr(SecureClient, "keys", watched)
    _, grid = secure()
    assert made
    seen = b"".join(
        value if isinstance(value, bytes) else b""
        for message in (*grid.sent, *grid.answers)
        for record in message.content.config_records.values()
        for value in record.values()
    )
    assert len(seen) > 1000
    for secret in secrets:
        assert secret not in seen and secret.hex().encode() not in seen
    for context in grid._contexts.values():
        kept = str(context.state)
        assert "done" in kept and not any(secret.hex() in kept for secret in secrets)


# --- what a client refuses


def asked(grid: InProcessGrid, kind: str, node: int, number: int = 1, **records: RecordDict) -> Message:
    content = RecordDict({CONFIG: ConfigRecord({"server-round": number}), **records})
    (reply,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=kind)])
    return reply


def refused(reply: Message) -> bool:
    return reply.has_error() and reply.error == Error(code=2, reason="ProtocolRefused")


def test_a_client_refuses_stages_without_keys_and_of_another_round() -> None:
    grid = InProcessGrid(secure_app(), len(CASES))
    for kind in ("query.secure_shares", "query.secure_reveal"):
        assert refused(asked(grid, kind, 1))
    assert not refused(asked(grid, "query.secure_keys", 1))
    assert refused(asked(grid, "query.secure_shares", 1, number=2))


def test_a_client_set_up_for_secure_aggregation_never_trains_in_clear() -> None:
    """A server with another configuration gets nothing."""
    with pytest.raises(RoundFailed, match=r"no client sent a usable update .*ProtocolRefused"):
        play(InProcessGrid(secure_app(), len(CASES)), None)


def test_a_client_without_secure_aggregation_has_no_answer_to_its_stages() -> None:
    with pytest.raises(RoundFailed, match="0 clients announced keys"):
        play(InProcessGrid(app_of(five(), None), len(CASES)), 4)
