"""Rounds in coarse numbers, with clients that only add: what rounding takes comes back, or is gone for ever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fllm.federation.client_app import make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.exchange import Exchange
from fllm.federation.kept import Kept
from fllm.federation.server_app import Round, Start, Terms, federate
from fllm.federation.task import Update
from fllm.sections import StrategySettings, WireFormat
from hwsim import EventCounts

LARGE, SMALL, ROUNDS = 1.0, 0.002, 10
STEP = LARGE / 127
"""Of int8 where the largest change is LARGE; SMALL is a quarter of it and rounds to nothing."""


class Adding:
    """A client that changes two numbers by the same amounts in every round."""

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        return Update({"a": adapter["a"] + torch.tensor([LARGE, SMALL])}, 1.0, 3, EventCounts())


def played(wire: WireFormat, kept: Kept | None, first: int = 1, start: Tensor | None = None) -> list[Round]:
    """Play rounds of two such clients."""
    exchange, outcomes = Exchange(wire), []  # type: tuple[Exchange, list[Round]]
    app = make_client_app(lambda _: Adding(), exchange=exchange, kept=kept)
    begin = Start({"a": torch.zeros(2) if start is None else start}, first_round=first)
    federate(InProcessGrid(app, 2), Terms(StrategySettings(), 2, ROUNDS, exchange=exchange), begin, outcomes.append)
    assert not any(outcome.failures for outcome in outcomes)
    return outcomes


def test_small_changes_add_up_to_within_a_step(tmp_path: Path) -> None:
    end = played("int8", Kept(tmp_path))[-1].adapter["a"]
    assert end[0].item() == pytest.approx(ROUNDS * LARGE, abs=STEP)
    assert end[1].item() == pytest.approx(ROUNDS * SMALL, abs=STEP)
    assert end[1].item() > ROUNDS * SMALL / 3


def test_small_changes_are_lost_where_nothing_is_kept() -> None:
    """What error feedback is for."""
    end = played("int8", None)[-1].adapter["a"]
    assert end[0].item() == pytest.approx(ROUNDS * LARGE, abs=ROUNDS * STEP)
    assert end[1].item() == 0.0


def test_half_precision_is_enough_for_these() -> None:
    assert played("float16", None)[-1].adapter["a"][1].item() == pytest.approx(ROUNDS * SMALL, rel=0.2)


def test_rounds_done_once_more_give_the_same(tmp_path: Path) -> None:
    """As after a server that was killed: a client reads what it kept before the round, not what came of it."""
    whole = played("int8", Kept(tmp_path))
    again = played("int8", Kept(tmp_path), first=ROUNDS, start=whole[-2].adapter["a"])
    assert torch.equal(again[-1].adapter["a"], whole[-1].adapter["a"])
