"""Privacy in the loop of rounds: what is released, told and carried on, and when the loop ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fllm.federation.client_app import make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.privacy import PrivacyTerms, epsilon_of
from fllm.federation.privacy_client import BudgetSpent
from fllm.federation.server_app import Round, RoundFailed, Start, Terms, federate
from fllm.federation.task import Update
from fllm.model.adapters import adapter_digest
from fllm.sections import PrivacySettings, StrategySettings
from hwsim import EventCounts

START = {"a.lora_A.weight": torch.linspace(-1, 1, 6).reshape(2, 3), "a.lora_B.weight": torch.zeros(3, 2)}
CASES = (100, 50, 400)


class Client:
    """Adds one to every number, or does what it is told in a round."""

    def __init__(self, partition: int, told: Mapping[int, str] = {}) -> None:
        self.partition, self.told = partition, told

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        told = self.told.get(server_round)
        if told == "raise":
            raise RuntimeError("no")
        step = torch.nan if told == "nan" else 1.0
        update = {name: tensor + step for name, tensor in adapter.items()}
        return Update(update, 1.0, CASES[self.partition], EventCounts(tokens=10))


def terms_of(kind: Any, rounds: int = 3, **settings: Any) -> Terms:
    privacy = PrivacyTerms(PrivacySettings(kind=kind, **settings), 3, 3, CASES, 8, 20, seed=5)
    return Terms(StrategySettings(), 3, rounds, 5, privacy=privacy)


def play(terms: Terms, clients: Sequence[Client] | None = None, start: Start | None = None) -> list[Round]:
    outcomes: list[Round] = []
    chosen = clients or [Client(i) for i in range(3)]
    grid = InProcessGrid(make_client_app(chosen.__getitem__), 3)
    try:
        federate(grid, terms, start or Start(START), outcomes.append)
    except BudgetSpent as end:
        assert "budget of privacy" in str(end)
    return outcomes


def test_every_round_tells_what_was_spent() -> None:
    clients = play(terms_of("client", noise_multiplier=2.0))
    settings = PrivacySettings(kind="client", noise_multiplier=2.0)
    assert [one.privacy for one in clients] == [
        {"kind": "client", "epsilon": pytest.approx(epsilon_of(1.0, settings, n)), "delta": 1e-5} for n in (1, 2, 3)
    ]
    cases = play(terms_of("record", target_delta=1e-4))
    settings = PrivacySettings(kind="record", target_delta=1e-4)
    assert [one.privacy for one in cases] == [
        {"kind": "record", "epsilon": epsilon_of(8 / 50, settings, 20 * n), "delta": 1e-4} for n in (1, 2, 3)
    ]
    plain = play(terms_of("none"))
    assert [one.privacy for one in plain] == [None] * 3
    assert all(one.strategy_state == {} for one in plain)


def test_server_adds_noise_to_a_plain_mean_of_cut_updates() -> None:
    quiet, noisy = (play(terms_of("client", 1, noise_multiplier=z, clipping_norm=0.3))[0] for z in (1e-7, 5.0))
    moved = torch.cat([(quiet.adapter[name] - tensor).flatten() for name, tensor in START.items()])
    assert moved.norm().item() == pytest.approx(0.3, rel=1e-4)
    assert quiet.aggregation_error is None  # it would compare with updates that are not private
    assert adapter_digest(noisy.adapter) != adapter_digest(quiet.adapter)
    again = play(terms_of("client", 1, noise_multiplier=5.0, clipping_norm=0.3))[0]
    assert adapter_digest(again.adapter) == adapter_digest(noisy.adapter)


def test_clients_that_protect_their_cases_are_averaged_as_ever() -> None:
    private, plain = play(terms_of("record"))[-1], play(terms_of("none"))[-1]
    assert adapter_digest(private.adapter) == adapter_digest(plain.adapter)
    assert private.aggregation_error == plain.aggregation_error is not None


@pytest.mark.parametrize("told", ["raise", "nan"])
def test_round_of_private_clients_fails_unless_all_answer(told: str) -> None:
    outcomes: list[Round] = []
    clients = [Client(0), Client(1, {2: told}), Client(2)]
    grid = InProcessGrid(make_client_app(clients.__getitem__), 3)
    with pytest.raises(RoundFailed, match="round 2: fewer than 3 clients sent a usable update"):
        federate(grid, terms_of("client"), Start(START), outcomes.append)
    assert len(outcomes) == 1


def test_lost_answer_has_spent_all_the_same() -> None:
    outcomes = play(terms_of("record"), [Client(0), Client(1, {2: "raise"}), Client(2)])
    assert len(outcomes) == 3
    assert outcomes[1].failures == ("RuntimeError",)
    assert outcomes[-1].privacy == play(terms_of("record"))[-1].privacy


@pytest.mark.parametrize("kind", ["client", "record"])
def test_loop_ends_before_the_round_that_would_overrun(kind: str) -> None:
    whole = play(terms_of(kind, 5))
    limit = whole[2].privacy["epsilon"] * 1.001  # type: ignore[index]
    short = play(terms_of(kind, 5, max_epsilon=limit))
    assert [one.number for one in short] == [1, 2, 3]
    assert adapter_digest(short[-1].adapter) == adapter_digest(whole[2].adapter)


@pytest.mark.parametrize("kind", ["client", "record"])
@pytest.mark.parametrize("limit", [None, "after four"])
def test_resumed_loop_is_the_whole_one(kind: str, limit: str | None) -> None:
    terms = terms_of(kind, 6)
    if limit:
        most = play(terms)[3].privacy["epsilon"] * 1.001  # type: ignore[index]
        settings = terms.privacy.settings.model_copy(update={"max_epsilon": most})
        terms = replace(terms, privacy=replace(terms.privacy, settings=settings))
    whole = play(terms)
    assert len(whole) == (4 if limit else 6)
    first = whole[1]
    rest = play(terms, start=Start(first.adapter, 3, {k: np.array(v) for k, v in first.strategy_state.items()}))
    assert [one.privacy for one in rest] == [one.privacy for one in whole[2:]]
    assert [adapter_digest(one.adapter) for one in rest] == [adapter_digest(one.adapter) for one in whole[2:]]
    assert rest[-1].strategy_state.keys() == whole[-1].strategy_state.keys()
    for name, value in rest[-1].strategy_state.items():
        assert value.tobytes() == whole[-1].strategy_state[name].tobytes()


def test_only_some_clients_are_asked() -> None:
    """Two of three a round: noise for two, and each client has spent its own rounds alone."""
    terms = replace(terms_of("client", 2), clients_per_round=2)
    terms = replace(terms, privacy=replace(terms.privacy, asked=2))
    outcomes = play(terms)
    assert [one.clients for one in outcomes] == [2, 2]
    terms = replace(terms_of("record", 4), clients_per_round=1)
    outcomes = play(terms)
    asked = [one.participants[0].partition for one in outcomes]
    settings = PrivacySettings(kind="record")
    expected = max(epsilon_of(8 / CASES[i], settings, 20 * asked.count(i)) for i in set(asked))
    assert outcomes[-1].privacy is not None and outcomes[-1].privacy["epsilon"] == expected
