"""The Flower ServerApp: one visible round loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray
from torch import Tensor

from fllm.federation.products import Products
from fllm.federation.strategy import (
    WEIGHT_KEY,
    aggregated,
    averages,
    make_strategy,
    restore_state,
    set_server_rate,
    state_of,
    sum_or_mean,
    usable,
)
from fllm.sections import StrategySettings


@dataclass(frozen=True)
class Round:
    """Outcome of one round, as the server sees it.

    Attributes:
        number: Round, counted from 1.
        adapter: Aggregated adapter.
        metrics: Sums and means over clients whose update was sound, used or not: their work was done.
        clients: Clients whose update was sound.
        failures: Reasons of the others.
        aggregation_error: Relative distance of the averaged adapter from the average of the clients' products B A;
            None where nothing is averaged.
        strategy_state: What the strategy carries into the next round, by names.
    """

    number: int
    adapter: dict[str, Tensor]
    metrics: MetricRecord
    clients: int
    failures: tuple[str, ...]
    aggregation_error: float | None = None
    strategy_state: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class RoundFailed(RuntimeError):
    """No client of a round, or too few for its strategy, sent a usable update."""


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


def make_server_app(
    settings: StrategySettings, start: Start, *, clients: int, last_round: int, on_round: Callable[[Round], None]
) -> ServerApp:
    """Make the server application.

    Flower's ``Strategy.start`` has no start round and no callback, so the loop is ours; strategies are Flower's.

    Args:
        settings: Which strategy.
        start: Where to start.
        clients: Number of clients.
        last_round: Last round.
        on_round: Called after each round.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        strategy, arrays = make_strategy(settings, clients), ArrayRecord(dict(start.adapter))
        restore_state(strategy, start.strategy_state, arrays)
        for number in range(start.first_round, last_round + 1):
            set_server_rate(strategy, settings, number, last_round)
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            replies, failures = usable(grid.send_and_receive(messages))
            if not replies:
                raise RoundFailed(
                    f"round {number}: no client sent a usable update ({', '.join(sorted(set(failures)))})"
                )
            _check(settings, number, len(replies))
            metrics = sum_or_mean([reply.content for reply in replies], WEIGHT_KEY)  # a strategy may drop some clients'
            products = Products.of(replies, start.frozen) if averages(settings) else None
            adapter = aggregated(strategy, number, replies, arrays)
            error = None
            if products is not None:
                adapter |= products.best() if settings.factors == "svd" else {}
                error = products.error_of(adapter if settings.factors == "svd" else None)
            arrays = ArrayRecord(adapter)
            on_round(Round(number, adapter, metrics, len(replies), tuple(failures), error, state_of(strategy)))

    return app


def _check(settings: StrategySettings, number: int, replies: int) -> None:
    """Stop a round in which too few clients are left for a strategy to do what it is for; raises RoundFailed."""
    try:
        settings.check_clients(replies)
    except ValueError as error:
        raise RoundFailed(f"round {number}: {replies} clients sent a usable update, too few: {error}") from None
