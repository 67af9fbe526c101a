"""Messages, aggregation and failures of a round, with clients that send what the test says."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from fllm.federation.client_app import COUNT_PREFIX, TOKENS, count_metrics, counts_of, make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.federation.strategy import make_strategy
from fllm.federation.task import Update
from fllm.model.adapters import adapter_digest, get_adapter
from fllm.preparation import Prepared
from fllm.sections import StrategySettings
from hwsim import EventCounts
from hwsim.events import EVENTS
from tests.fllm.small import CANARY

FEDAVG = StrategySettings()
START = {"a.lora_A.weight": torch.zeros(2, 3), "a.lora_B.weight": torch.ones(3, 2)}


class FakeHospital:
    """Sends an update of fixed numbers; ``act`` may change it or raise."""

    def __init__(self, partition: int, examples: int, act: Callable[[dict[str, Tensor]], None] | None = None) -> None:
        self.partition, self.examples, self.act = partition, examples, act
        self.received: list[tuple[str, int]] = []

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        del proximal_mu
        self.received.append((adapter_digest(dict(adapter)), server_round))
        made = torch.Generator().manual_seed(self.partition)
        update = {name: tensor + torch.randn(tensor.shape, generator=made) for name, tensor in adapter.items()}
        if self.act is not None:
            self.act(update)
        return Update(update, 1.0 + self.partition, self.examples, self.counts())

    def counts(self) -> EventCounts:
        """Events in two layers and outside of them; the first hospital alone met no refresh."""
        counts = EventCounts(tokens=100)
        counts.record(None, {"digital.mac": 5})
        for layer in (0, 1):
            counts.record(layer, {"attention.qk_mac": 10 * (layer + 1) + self.partition})
        counts.record(1, {"attention.refresh_conversion": self.partition})
        return counts


def play(
    hospitals: list[FakeHospital], rounds: int = 1, grid: type[InProcessGrid] = InProcessGrid
) -> tuple[list[Round], InProcessGrid]:
    outcomes: list[Round] = []
    engine = grid(make_client_app(hospitals.__getitem__), len(hospitals))  # type: ignore[arg-type]
    federate(engine, Terms(FEDAVG, len(hospitals), rounds), Start(START), outcomes.append)
    return outcomes, engine


def weighted_mean(hospitals: list[FakeHospital]) -> dict[str, Tensor]:
    total = sum(h.examples for h in hospitals)
    updates = [(h.examples / total, h.train(START, 0).adapter) for h in hospitals]
    return {name: sum(share * update[name].double() for share, update in updates) for name in START}  # type: ignore[misc]


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-6, atol=1e-7)


def healthy() -> list[FakeHospital]:
    return [FakeHospital(i, examples) for i, examples in enumerate((10, 1, 29, 4))]


def test_aggregate_is_the_mean_weighted_by_cases() -> None:
    ((outcome,), _) = play(healthy())
    assert_close(outcome.adapter, weighted_mean(healthy()))
    assert all(tensor.dtype == torch.float32 for tensor in outcome.adapter.values())
    assert (outcome.number, outcome.clients, outcome.failures) == (1, 4, ())


def test_counts_are_summed_and_losses_averaged_by_cases() -> None:
    ((outcome,), _) = play(healthy())
    assert outcome.loss == pytest.approx((10 * 1 + 1 * 2 + 29 * 3 + 4 * 4) / 44, rel=1e-15)
    assert outcome.counts.tokens == 400
    assert outcome.counts.by_layer == {
        None: {"digital.mac": 20},
        0: {"attention.qk_mac": 10 + 11 + 12 + 13},
        1: {"attention.qk_mac": 20 + 21 + 22 + 23, "attention.refresh_conversion": 0 + 1 + 2 + 3},
    }


def test_counts_of_a_round_are_those_of_all_hospitals_layer_by_layer() -> None:
    ((outcome,), _) = play(healthy())
    expected = EventCounts()
    for hospital in healthy():
        expected.add(hospital.counts())
    found = outcome.counts
    assert (found.by_layer, found.tokens) == (expected.by_layer, expected.tokens)


def test_counts_survive_the_trip_as_metrics() -> None:
    counts = healthy()[2].counts()
    metrics = count_metrics(counts)
    assert all(len(numbers) == len(EVENTS) for name, numbers in metrics.items() if name != TOKENS)
    back = counts_of(metrics)
    assert (back.by_layer, back.tokens) == (counts.by_layer, counts.tokens)
    assert counts_of({"train-loss": 1.0}).tokens == 0


def test_event_that_one_client_did_not_meet_is_summed_over_the_others() -> None:
    """A token that never grew old is refreshed at no client but one."""
    ((outcome,), _) = play(healthy())
    assert outcome.counts["attention.refresh_conversion"] == 0 + 1 + 2 + 3


def test_counts_stay_whole_numbers_beyond_float64() -> None:
    """Events of a large model pass 2**53, where a float loses the last digit."""
    hospitals = healthy()
    for hospital in hospitals:
        hospital.counts = lambda: EventCounts(tokens=2**60 + 1)  # type: ignore[method-assign]
    ((outcome,), _) = play(hospitals)
    assert outcome.counts.tokens == 4 * (2**60 + 1)


def test_next_round_starts_from_the_aggregate() -> None:
    hospitals = healthy()
    first, second = play(hospitals, rounds=2)[0]
    for hospital in hospitals:
        assert hospital.received == [(adapter_digest(START), 1), (adapter_digest(first.adapter), 2)]
    assert second.number == 2


def raise_with_data(update: dict[str, Tensor]) -> None:
    raise ValueError(f"bad row: {CANARY} with pain")


def send(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(update: dict[str, Tensor]) -> None:
        update["a.lora_B.weight"][1, 1] = value

    return change


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (raise_with_data, "ValueError"),
        (send(float("nan")), "update is not finite"),
        (send(float("inf")), "update is not finite"),
        (send(-float("inf")), "update is not finite"),
    ],
    ids=["raises", "nan", "inf", "-inf"],
)
@pytest.mark.parametrize("place", [0, 3])
def test_client_that_fails_is_left_out(act: Callable, reason: str, place: int) -> None:
    hospitals = healthy()
    hospitals[place].act = act
    ((outcome,), _) = play(hospitals)
    others = [h for h in healthy() if h.partition != place]
    assert_close(outcome.adapter, weighted_mean(others))
    assert (outcome.clients, outcome.failures) == (3, (reason,))
    assert outcome.counts.tokens == 300


def test_failed_client_is_asked_again_in_the_next_round() -> None:
    hospitals = healthy()

    def fail_once(update: dict[str, Tensor]) -> None:
        if hospitals[1].received[-1][1] == 1:
            raise RuntimeError

    hospitals[1].act = fail_once
    first, second = play(hospitals, rounds=2)[0]
    assert (first.clients, second.clients) == (3, 4)
    assert second.failures == ()


def test_no_usable_client_ends_the_run_without_a_word_of_data() -> None:
    acts = [raise_with_data, send(float("nan")), raise_with_data]
    hospitals = [FakeHospital(i, 5, act) for i, act in enumerate(acts)]
    with pytest.raises(RoundFailed) as failed:
        play(hospitals)
    message = str(failed.value)
    assert "round 1" in message
    assert "ValueError, update is not finite" in message
    assert CANARY not in message


def test_interruption_is_no_failure_of_a_client() -> None:
    def interrupt(update: dict[str, Tensor]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play([FakeHospital(0, 1), FakeHospital(1, 1, interrupt)])


class ReversedGrid(InProcessGrid):
    """Replies come in the reverse order."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return super().send_and_receive(messages)[::-1]


class RotatedGrid(InProcessGrid):
    """Messages are asked for, and replies come, in other orders."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(list(messages)[::-1])
        return replies[len(replies) // 2 :] + replies[: len(replies) // 2]


@pytest.mark.parametrize("grid", [ReversedGrid, RotatedGrid])
def test_order_of_replies_changes_no_bit(grid: type[InProcessGrid]) -> None:
    expected, found = (play(healthy(), rounds=2, grid=engine)[0][-1] for engine in (InProcessGrid, grid))
    assert adapter_digest(found.adapter) == adapter_digest(expected.adapter)
    assert (found.loss, found.counts) == (expected.loss, expected.counts)


def test_summing_in_the_given_order_would_change_bits() -> None:
    """The test above can fail: FedAvg itself adds in the order of the replies."""
    strategy, contents = make_strategy(FEDAVG, 4), []
    for hospital in healthy():
        update = hospital.train(START, 1)
        metrics = MetricRecord({"num-examples": update.examples, "partition-id": hospital.partition})
        contents.append(RecordDict({"arrays": ArrayRecord(update.adapter), "metrics": metrics}))

    def digest(order: Iterable[int]) -> str:
        from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

        merged = aggregate_arrayrecords([contents[i] for i in order], strategy.weighted_by_key)
        return adapter_digest(dict(merged.to_torch_state_dict()))

    assert len({digest(order) for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 3, 0, 2])}) > 1


def npy_size(tensor: Tensor) -> int:
    file = io.BytesIO()
    np.save(file, tensor.numpy())
    return file.tell()


def test_bytes_are_those_of_the_serialised_arrays() -> None:
    size = sum(npy_size(tensor) for tensor in START.values())
    for outcome in play(healthy(), rounds=2)[0]:
        assert outcome.downlink_bytes == outcome.uplink_bytes == 4 * size
        assert [(one.downlink_bytes, one.uplink_bytes) for one in outcome.participants] == 4 * [(size, size)]


def test_client_that_raises_sends_no_bytes() -> None:
    hospitals = healthy()
    hospitals[0].act = raise_with_data
    ((outcome,), _) = play(hospitals)
    assert 4 * outcome.uplink_bytes == 3 * outcome.downlink_bytes
    assert outcome.participants[0].uplink_bytes == 0


def test_no_client_can_change_what_others_receive() -> None:
    """In one process all messages of a round share one content, unless each is copied as a wire would."""
    seen: list[set[str]] = []
    app = make_client_app(healthy().__getitem__)  # type: ignore[arg-type]

    def greedy(message: Message, context: Context) -> Message:
        if message.metadata.message_type != "train":
            return app(message, context)
        seen.append(set(message.content["arrays"]))
        reply = app(message, context)
        message.content["arrays"].clear()
        return reply

    grid = InProcessGrid(greedy, 4)  # type: ignore[arg-type]
    outcomes: list[Round] = []
    federate(grid, Terms(FEDAVG, 4, 2), Start(START), outcomes.append)
    assert seen == [set(START)] * 8
    assert [outcome.failures for outcome in outcomes] == [(), ()]


def test_real_reply_holds_the_adapter_and_numbers_alone(prepared: Prepared) -> None:
    """What leaves a hospital: LoRA tensors, its number of cases, a loss, events."""
    seen: list[Message] = []

    class Listening(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
            replies = super().send_and_receive(messages)
            seen.extend(copy.deepcopy(reply) for reply in replies if reply.metadata.message_type == "train")
            return replies

    grid = Listening(make_client_app(prepared.hospitals.__getitem__), len(prepared.hospitals))
    adapter = get_adapter(prepared.model)
    federate(grid, Terms(FEDAVG, 3, 1), Start(adapter), lambda _: None)
    assert len(seen) == 3
    seen.sort(key=lambda reply: reply.content["metrics"]["partition-id"])
    for partition, reply in enumerate(seen):
        records: dict[str, Any] = dict(reply.content)
        assert set(records) == {"arrays", "metrics"}
        shapes = {name: tuple(array.shape) for name, array in records["arrays"].items()}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in adapter.items()}
        assert all(".lora_A." in name or ".lora_B." in name for name in shapes)
        metrics = dict(records["metrics"])
        assert metrics.pop("partition-id") == partition
        assert metrics.pop("num-examples") == len(prepared.hospitals[partition].prompts)
        assert isinstance(metrics.pop("train-loss"), float)
        assert isinstance(metrics.pop(TOKENS), int)
        layers = range(prepared.record["model"]["layers"])
        assert set(metrics) == {f"{COUNT_PREFIX}{layer}" for layer in ("-", *layers)}
        assert all(type(number) is int for numbers in metrics.values() for number in numbers)


def test_grid_without_a_run_says_so() -> None:
    with pytest.raises(RuntimeError, match="no run was set"):
        _ = InProcessGrid(make_client_app(healthy().__getitem__), 4).run  # type: ignore[arg-type]
