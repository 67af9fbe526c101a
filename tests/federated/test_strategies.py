"""Each strategy against its formula, its state between rounds, and clients that send nonsense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fllm.federation.client_app import make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.federation.task import Update
from fllm.model.adapters import adapter_digest
from fllm.sections import StrategySettings
from hwsim import EventCounts

START = {"a.lora_A.weight": torch.linspace(-1, 1, 6).reshape(2, 3), "a.lora_B.weight": torch.ones(3, 2)}
EXAMPLES = (10, 1, 29, 4, 6, 5)
TRUE = {name: torch.full_like(tensor, 0.1) for name, tensor in START.items()}
"""What honest clients would add, but for their noise."""

Adapter = dict[str, NDArray[np.float64]]


class Client:
    """Adds something that depends on itself, the round and what it was given."""

    def __init__(self, partition: int, act: Callable[[Tensor], Tensor] = lambda step: step) -> None:
        self.partition, self.act, self.mu = partition, act, 0.0

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        self.mu = proximal_mu
        draw = torch.Generator().manual_seed(10 * self.partition + server_round)
        steps = {n: TRUE[n] - 0.1 * t + 0.02 * torch.randn(t.shape, generator=draw) for n, t in adapter.items()}
        update = {name: tensor + self.act(steps[name]) for name, tensor in adapter.items()}
        return Update(update, 1.0, EXAMPLES[self.partition], EventCounts(tokens=100))


def play(
    settings: StrategySettings, clients: Sequence[Client], *, rounds: int, start: Start | None = None
) -> list[Round]:
    outcomes: list[Round] = []
    grid = InProcessGrid(make_client_app(clients.__getitem__), len(clients))  # type: ignore[arg-type]
    federate(grid, Terms(settings, len(clients), rounds), start or Start(START), outcomes.append)
    return outcomes


def honest(count: int = 5) -> list[Client]:
    return [Client(i) for i in range(count)]


def sent(adapter: Adapter, server_round: int) -> list[Adapter]:
    given = {name: torch.from_numpy(value).float() for name, value in adapter.items()}
    updates = [client.train(given, server_round).adapter for client in honest()]
    return [{name: tensor.double().numpy() for name, tensor in update.items()} for update in updates]


def mean(updates: list[Adapter]) -> Adapter:
    return {n: np.average([u[n] for u in updates], axis=0, weights=EXAMPLES[: len(updates)]) for n in START}


class Oracle:
    """Equations of the papers, in float64, on the updates of honest clients."""

    def __init__(self, kind: str) -> None:
        self.kind, self.m, self.v = kind, dict.fromkeys(START, 0.0), dict.fromkeys(START, 0.0)
        self.now: Adapter = {name: tensor.double().numpy() for name, tensor in START.items()}

    def step(self, number: int, rounds: int) -> Adapter:
        updates = sent(self.now, number)
        self.now = {n: self.of(n, updates, number, rounds) for n in START}
        return self.now

    def of(self, n: str, updates: list[Adapter], number: int, rounds: int) -> NDArray[np.float64]:
        stacked, average = np.stack([u[n] for u in updates]), mean(updates)[n]
        delta = average - self.now[n]
        if self.kind == "fedmedian":
            return np.median(stacked, axis=0)
        if self.kind == "trimmed_mean":
            return np.sort(stacked, axis=0)[1:-1].mean(axis=0)
        if self.kind == "fedavgm":
            self.m[n] = 0.9 * self.m[n] + delta
            return self.now[n] + self.m[n]
        if self.kind in ("fedadam", "fedyogi"):
            self.m[n] = 0.9 * self.m[n] + 0.1 * delta
            square = delta**2
            if self.kind == "fedadam":
                self.v[n] = 0.99 * self.v[n] + 0.01 * square
            else:
                self.v[n] = self.v[n] - 0.01 * square * np.sign(self.v[n] - square)
            rate = 0.01 * (1 - 0.9 * (number - 1) / rounds)
            if self.kind == "fedadam":
                rate *= np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            return self.now[n] + rate * self.m[n] / (np.sqrt(self.v[n]) + 1e-3)
        return average


@pytest.mark.parametrize("kind", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "trimmed_mean"])
def test_strategy_is_its_formula(kind: Any) -> None:
    oracle = Oracle(kind)
    for outcome in play(StrategySettings(kind=kind), honest(), rounds=3):
        expected = oracle.step(outcome.number, 3)
        for name, tensor in outcome.adapter.items():
            assert tensor.dtype == torch.float32
            np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=2e-5, atol=2e-6)


def krum_scores(updates: list[Adapter], closest: int) -> list[float]:
    flat = np.stack([np.concatenate([u[n].ravel() for n in START]) for u in updates])
    squares = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    return [np.sort(row)[1 : closest + 1].sum() for row in squares]


def test_krum_takes_the_update_closest_to_the_others() -> None:
    updates = sent({name: tensor.double().numpy() for name, tensor in START.items()}, 1)
    best = int(np.argmin(krum_scores(updates, 5 - 1 - 2)))
    (outcome,) = play(StrategySettings(kind="krum", malicious=1), honest(), rounds=1)
    for name, tensor in outcome.adapter.items():
        np.testing.assert_allclose(tensor.numpy(), updates[best][name], rtol=1e-6)


def test_krum_tells_updates_apart_that_are_small_beside_the_adapter() -> None:
    """In float32 squared distances of 1e-8 drown in a squared norm of 1e4."""
    large = {name: tensor + 30 for name, tensor in START.items()}
    clients = [
        Client(i, lambda step, i=i: 1e-4 * (torch.ones_like(step) + (0.1 * i if i < 4 else 20.0))) for i in range(5)
    ]
    (outcome,) = play(StrategySettings(kind="multikrum"), clients, rounds=1, start=Start(large))
    moved = max((outcome.adapter[name] - large[name]).abs().max().item() for name in large)
    assert 0.9e-4 < moved < 1.5e-4


def raises(step: Tensor) -> Tensor:
    raise RuntimeError


def test_multikrum_keeps_out_as_many_where_a_client_fails() -> None:
    clients = [*honest(4), Client(4, raises), Client(5, lambda step: 50 * step)]
    (outcome,) = play(StrategySettings(kind="multikrum"), clients, rounds=1)
    assert outcome.clients == 5
    assert max((outcome.adapter[n] - START[n]).abs().max().item() for n in START) < 0.5


@pytest.mark.parametrize("kind", ["krum", "multikrum", "trimmed_mean"])
def test_round_with_too_few_clients_for_its_strategy_fails(kind: Any) -> None:
    with pytest.raises(RoundFailed, match="round 1: 4 clients sent a usable update, too few"):
        play(StrategySettings(kind=kind), [*honest(4), Client(4, raises)], rounds=1)


def test_work_of_clients_that_krum_drops_is_counted() -> None:
    (outcome,) = play(StrategySettings(kind="krum"), honest(), rounds=1)
    assert outcome.counts.tokens == 500 and outcome.clients == 5


ALL: list[Any] = [
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedmedian", "trimmed_mean", "krum", "multikrum",
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stop", [1, 2])
def test_strategy_goes_on_from_its_state_to_the_bit(kind: Any, stop: int) -> None:
    settings = StrategySettings(kind=kind)
    whole = play(settings, honest(), rounds=4)
    state = whole[stop - 1]
    start = Start(state.adapter, stop + 1, {name: value.copy() for name, value in state.strategy_state.items()})
    rest = play(settings, honest(), rounds=4, start=start)
    assert [o.number for o in rest] == list(range(stop + 1, 5))
    assert adapter_digest(rest[-1].adapter) == adapter_digest(whole[-1].adapter)


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam", "fedyogi"])
def test_state_matters(kind: Any) -> None:
    settings = StrategySettings(kind=kind)
    whole = play(settings, honest(), rounds=3)
    rest = play(settings, honest(), rounds=3, start=Start(whole[1].adapter, 3))
    assert adapter_digest(rest[-1].adapter) != adapter_digest(whole[-1].adapter)


@pytest.mark.parametrize("act", [lambda step: 50 * step, lambda step: -20 * step], ids=["scaled up", "sign flipped"])
@pytest.mark.parametrize(
    "settings",
    [
        StrategySettings(kind="fedmedian"), StrategySettings(kind="trimmed_mean"), StrategySettings(kind="krum"),
        StrategySettings(kind="multikrum"),
    ],
    ids=lambda s: s.kind,
)  # fmt: skip
def test_one_client_of_five_can_not_move_robust_strategies(
    settings: StrategySettings, act: Callable[[Tensor], Tensor]
) -> None:
    clients = [*honest(4), Client(4, act)]

    def farthest(chosen: StrategySettings) -> float:
        (outcome,) = play(chosen, clients, rounds=1)
        truth = {name: tensor + TRUE[name] - 0.1 * tensor for name, tensor in START.items()}
        return max((outcome.adapter[n] - truth[n]).abs().max().item() for n in START)

    assert farthest(settings) < 0.1 < farthest(StrategySettings())


def test_clients_are_told_their_proximal_weight() -> None:
    clients = honest()
    play(StrategySettings(kind="fedprox", proximal_mu=0.5), clients, rounds=1)
    assert [client.mu for client in clients] == [0.5] * 5
    play(StrategySettings(), clients, rounds=1)
    assert [client.mu for client in clients] == [0.0] * 5
