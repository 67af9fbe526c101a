"""Clients whose adapters have ranks of their own: what travels, what is trained, what is counted, what is averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fllm.accounting import training_of
from fllm.config import RunConfig, validate_config
from fllm.federation.client_app import METRICS, PARTITION, WEIGHT_KEY, counts_of_rank
from fllm.federation.engines import InProcessGrid
from fllm.federation.exchange import Exchange, rank_of
from fllm.federation.factors import A, B
from fllm.federation.kept import Kept
from fllm.federation.products import Products
from fllm.federation.server_app import Round, Start, federate
from fllm.local_clients import local_grid, terms_of
from fllm.outcome import round_row
from fllm.preparation import Prepared
from hwsim import EventCounts
from tests.fllm.small import TINY

Shapes = dict[str, tuple[int, ...]]
RANKS = (2, 8, 4)
SETTINGS: dict[str, Any] = TINY | {
    "max_tokens": 48, "local_steps": 2, "strategy": {"factors": "svd", "client_ranks": list(RANKS)},
}  # fmt: skip


@pytest.fixture(scope="module")
def ranked(prepared: Prepared) -> Prepared:
    """Return the federation of three hospitals, whose adapters are of ranks 2, 8 and 4."""
    return replace(prepared, config=RunConfig(**SETTINGS))


@pytest.fixture(scope="module")
def played(ranked: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Round], list[tuple[int, Shapes]]]:
    """Return two rounds, and the shapes of all arrays that clients sent in them."""
    outcomes: list[Round] = []
    shapes: list[tuple[int, Shapes]] = []
    with local_grid(ranked, tmp_path_factory.mktemp("kept"), 1) as grid:
        assert isinstance(grid, InProcessGrid)
        pull = grid.pull_messages

        def watching(ids: Any) -> list[Message]:
            replies = pull(ids)
            for reply in replies:
                for record in reply.content.array_records.values():
                    found = {name: tuple(array.numpy().shape) for name, array in record.items()}
                    shapes.append((reply.content[METRICS][PARTITION], found))
            return replies

        grid.pull_messages = watching  # type: ignore[method-assign]
        federate(grid, terms_of(ranked.config), Start(ranked.first_adapter), outcomes.append)
    return outcomes, shapes


def test_replies_have_the_rank_of_their_client(played: tuple[list[Round], list[tuple[int, Shapes]]]) -> None:
    outcomes, shapes = played
    assert len(shapes) == 2 * len(RANKS)
    for partition, found in shapes:
        rank = RANKS[partition]
        assert {shape[0] for name, shape in found.items() if A in name} == {rank}
        assert {shape[1] for name, shape in found.items() if B in name} == {rank}
    sent = [one.uplink_bytes for one in outcomes[0].participants]
    assert sent[0] < 0.35 * sent[1] and sent[2] < 0.6 * sent[1]
    assert sent == [one.downlink_bytes for one in outcomes[0].participants]


def test_zeros_beside_a_smaller_adapter_stay_zeros(ranked: Prepared) -> None:
    """In two steps with both factors moving; so that what is cut off before it travels is nothing."""
    start = dict(ranked.first_adapter)
    made = torch.Generator().manual_seed(0)
    start = {name: 0.05 * torch.randn(tensor.shape, generator=made) for name, tensor in start.items()}
    exchange = Exchange(ranks=RANKS)
    padded = exchange.received(ArrayRecord(exchange.cut(start, 0)), rank_of(start))
    trained = replace_steps(ranked, 2).train(padded, 1).adapter
    for name, tensor in trained.items():
        part, rest = (tensor[:2], tensor[2:]) if A in name else (tensor[:, :2], tensor[:, 2:])
        assert not rest.any() and not torch.equal(part, padded[name][:2] if A in name else padded[name][:, :2])


def replace_steps(prepared: Prepared, steps: int) -> Any:
    hospital = prepared.hospitals[0]
    return type(hospital)(0, hospital.prompts, hospital.model, hospital.answers, hospital.pad_id,
                          replace(hospital.training, steps=steps), hospital.put_on_chip)  # fmt: skip


def test_energy_is_that_of_the_clients_own_ranks(
    ranked: Prepared, played: tuple[list[Round], list[tuple[int, Shapes]]]
) -> None:
    parameters = ranked.record["model"]["adapter_parameters"]
    for one, rank in zip(played[0][0].participants, RANKS, strict=True):
        assert one.counts is not None
        # One multiply-accumulate, and sixteen bits read, per token and weight of the adapter
        assert one.counts["digital.adapter_mac"] == one.counts.tokens * parameters * rank // 8
    outcome = played[0][0]
    row = round_row(1, ranked, None, outcome)
    mixed = training_of([row], ranked)
    plain = replace(ranked, config=RunConfig(**SETTINGS | {"strategy": {"factors": "svd"}}))
    full = training_of([row], plain)
    optimiser = [found["parts_j"]["digital accelerator"]["optimiser"]["nominal"] for found in (mixed, full)]
    assert optimiser[0] / optimiser[1] == pytest.approx(sum(RANKS) / (8 * len(RANKS)))


def test_counts_of_a_smaller_adapter_are_those_of_its_weights() -> None:
    events = {"digital.adapter_mac": 800, "memory.weight_bit": 16 * 800 + 7, "linear.cell_mac": 5}
    counts = EventCounts.of(events, tokens=3)
    found = counts_of_rank(counts, 2, 8)
    assert found.events == {"digital.adapter_mac": 200, "memory.weight_bit": 16 * 200 + 7, "linear.cell_mac": 5}
    assert (found.tokens, counts.events["digital.adapter_mac"]) == (3, 800)
    assert counts_of_rank(counts, 8, 8) is counts


def test_rows_that_nobody_had_stay_able_to_learn(ranked: Prepared) -> None:
    """A round of clients of small ranks alone must not end what the others can learn: A and B both zero never would."""
    start = dict(ranked.first_adapter)
    exchange = Exchange(ranks=(2,))
    update = {name: tensor + 0.1 for name, tensor in exchange.cut(start, 0).items()}
    whole = exchange.collected(ArrayRecord(update), 0, start)
    record = RecordDict({"arrays": ArrayRecord(whole), "metrics": MetricRecord({WEIGHT_KEY: 3})})
    best = Products.of([Message(record, dst_node_id=1, message_type="train")], {}).best(start)
    for name, tensor in best.items():
        if A in name:
            b = best[name.replace(A, B)]
            assert torch.equal(tensor[2:], start[name][2:]) and tensor[2:].any(1).all()
            assert not b[:, 2:].any()
            product = update[name.replace(A, B)] @ update[name]
            torch.testing.assert_close(b @ tensor, product, rtol=0, atol=1e-5 * product.abs().max().item())


@pytest.mark.parametrize(
    ("strategy", "message"),
    [({"client_ranks": [2]}, "needs factors: svd"), ({"client_ranks": [9], "factors": "svd"}, "above lora.r")],
)
def test_ranks_that_cannot_be_are_refused(strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config({"strategy": strategy}, "here")


def test_eight_bits_go_with_ranks(ranked: Prepared, tmp_path: Path) -> None:
    """Every client keeps what rounding took from as much of the adapter as it has."""
    config = RunConfig(**SETTINGS | {"wire": "int8", "num_rounds": 2, "local_steps": 1})
    outcomes: list[Round] = []
    with local_grid(replace(ranked, config=config), tmp_path, 1) as grid:
        federate(grid, terms_of(config), Start(ranked.first_adapter), outcomes.append)
    assert [outcome.failures for outcome in outcomes] == [(), ()]
    kept = [Kept(tmp_path).load(client, 3) for client in range(len(RANKS))]
    for rank, lost in zip(RANKS, kept, strict=True):
        assert {len(tensor) for name, tensor in lost.items() if A in name} == {rank}
        assert any(bool(tensor.any()) for tensor in lost.values())
