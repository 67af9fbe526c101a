"""Clients of a run on this machine: their application, and the engine that carries messages to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from torch import Tensor

from device_models import parse_quantity
from fllm.config import RunConfig
from fllm.federation.client_app import make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.exchange import Exchange
from fllm.federation.kept import Kept
from fllm.federation.pool import PoolGrid, WorkerFailed
from fllm.federation.secure_clients import answer_stages, mask_updates
from fllm.federation.server_app import RoundFailed, Terms
from fllm.federation.task import Hospital
from fllm.preparation import Prepared, load_hospitals


def exchange_of(config: RunConfig) -> Exchange:
    """Return how adapters of a run travel."""
    return Exchange(config.wire, config.strategy.client_ranks, config.strategy.factors == "share_a")


def terms_of(config: RunConfig, message: Mapping[str, str] | None = None) -> Terms:
    """Return what holds for all rounds of a run.

    Args:
        config: The run.
        message: What every message tells the clients beside the adapter.
    """
    return Terms(
        config.strategy, config.num_clients, config.num_rounds, config.seed,
        clients_per_round=config.clients_per_round, min_clients=config.min_clients, client_timeout_s=timeout_of(config),
        exchange=exchange_of(config), message=message or {},
        secure_threshold=config.secure.threshold_of(config.asked),
    )  # fmt: skip


def timeout_of(config: RunConfig) -> float | None:
    """Return the time [s] after which a client is given up, if there is one."""
    return None if config.client_timeout is None else parse_quantity(config.client_timeout, "s")


@dataclass(frozen=True)
class LocalClients:
    """Makes the application of all clients of a run in another process of this machine.

    Attributes:
        config: The run.
        folder: Where clients keep what stays with them.
    """

    config: RunConfig
    folder: Path

    def __call__(self) -> ClientApp:
        """Load the clients and make their application."""
        torch.set_num_threads(self.config.threads or 1)
        hospitals, first = load_hospitals(self.config)
        return client_app_of(self.config, self.folder, hospitals.__getitem__, lambda: first)


def client_app_of(
    config: RunConfig, folder: Path, hospital_of: Callable[[int], Hospital], first: Callable[[], Mapping[str, Tensor]]
) -> ClientApp:
    """Make the application of the clients of a run.

    Args:
        config: The run.
        folder: Where clients keep what stays with them.
        hospital_of: Returns the client of a partition.
        first: Returns the adapter that each begins with.
    """
    exchange = exchange_of(config)
    kept = Kept(folder) if exchange.keeps else None
    threshold = config.secure.threshold_of(config.asked)
    if threshold is None:
        return make_client_app(hospital_of, exchange=exchange, kept=kept, first=first)
    app = make_client_app(hospital_of, exchange=exchange, kept=kept, first=first, mods=[mask_updates])
    answer_stages(app, threshold)
    return app


@contextmanager
def local_grid(prepared: Prepared, folder: Path, workers: int) -> Iterator[Grid]:
    """Give a grid to the clients of a run on this machine.

    Args:
        prepared: The run.
        folder: Where clients keep what stays with them.
        workers: Processes that train at the same time; 1 trains in this process.

    Raises:
        RoundFailed: If a process cannot load the clients.
    """
    config = prepared.config
    if workers == 1:
        app = client_app_of(config, folder, prepared.hospitals.__getitem__, lambda: prepared.first_adapter)
        yield InProcessGrid(app, config.num_clients)
        return
    pool = PoolGrid(LocalClients(config, folder), config.num_clients, workers, timeout_of(config))
    try:
        yield pool
    except WorkerFailed as error:
        raise RoundFailed(str(error)) from None
    finally:
        pool.close()
