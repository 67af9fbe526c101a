"""The Flower ServerApp: one visible round loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fllm.federation.strategy import usable


@dataclass(frozen=True)
class Round:
    """Outcome of one round, as the server sees it.

    Attributes:
        number: Round, counted from 1.
        adapter: Aggregated adapter.
        metrics: Sums and means over clients.
        clients: Clients whose update was used.
        failures: Reasons of the others.
    """

    number: int
    adapter: dict[str, Tensor]
    metrics: MetricRecord
    clients: int
    failures: tuple[str, ...]


class RoundFailed(RuntimeError):
    """No client of a round sent a usable update."""


def make_server_app(
    strategy: FedAvg,
    adapter: Mapping[str, Tensor],
    *,
    first_round: int,
    last_round: int,
    on_round: Callable[[Round], None],
) -> ServerApp:
    """Make the server application.

    Flower's ``Strategy.start`` has no start round and no callback, so the loop is ours; strategies are Flower's.

    Args:
        strategy: Aggregation.
        adapter: Tensors that the first round starts from.
        first_round: First round to run, above 1 when resumed.
        last_round: Last round.
        on_round: Called after each round.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        arrays = ArrayRecord(dict(adapter))
        for number in range(first_round, last_round + 1):
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            replies, failures = usable(grid.send_and_receive(messages))
            merged, metrics = strategy.aggregate_train(number, replies)
            if merged is None or metrics is None:
                raise RoundFailed(
                    f"round {number}: no client sent a usable update ({', '.join(sorted(set(failures)))})"
                )
            arrays = ArrayRecord({name: tensor.float() for name, tensor in merged.to_torch_state_dict().items()})
            on_round(Round(number, dict(arrays.to_torch_state_dict()), metrics, len(replies), tuple(failures)))

    return app
