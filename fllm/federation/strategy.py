"""Flower's strategies over the adapter: which one, its state between rounds, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)
from numpy.typing import NDArray
from torch import Tensor

from fllm.federation.client_app import WEIGHT_KEY
from fllm.federation.task import falling
from fllm.sections import StrategySettings


def make_strategy(settings: StrategySettings, num_clients: int) -> FedAvg:
    """Return a strategy that trains at all nodes it is shown, and evaluates at none.

    Args:
        settings: Which strategy.
        num_clients: Clients asked in each round.
    """
    everybody: dict[str, Any] = {
        "fraction_train": 1.0, "fraction_evaluate": 0.0, "min_train_nodes": 1, "min_evaluate_nodes": 0,
        "min_available_nodes": 1, "weighted_by_key": WEIGHT_KEY, "train_metrics_aggr_fn": _no_metrics,
    }  # fmt: skip
    match settings.kind:
        case "fedavg":
            return FedAvg(**everybody)
        case "fedprox":
            return FedProx(**everybody, proximal_mu=settings.proximal_mu)
        case "fedavgm":
            rate = 1.0 if settings.server_learning_rate is None else settings.server_learning_rate
            return FedAvgM(**everybody, server_learning_rate=rate, server_momentum=settings.server_momentum)
        case "fedadam" | "fedyogi":
            adaptive = FedAdam if settings.kind == "fedadam" else FedYogi
            return adaptive(
                **everybody, eta=_peak_rate(settings), beta_1=settings.beta_1, beta_2=settings.beta_2, tau=settings.tau
            )
        case "fedmedian":
            return FedMedian(**everybody)
        case "trimmed_mean":
            return FedTrimmedAvg(**everybody, beta=settings.trim)
        case "krum":
            return Krum(**everybody, num_malicious_nodes=settings.malicious)
        case "multikrum":
            keep = num_clients - settings.malicious if settings.keep is None else settings.keep
            return MultiKrum(**everybody, num_malicious_nodes=settings.malicious, num_nodes_to_select=keep)


def _no_metrics(contents: list[RecordDict], weight_key: str) -> MetricRecord:  # noqa: ARG001 - Flower's signature
    """Return nothing: Flower would average every metric, events and with them energy included; we add them up."""
    return MetricRecord()


def averages(settings: StrategySettings) -> bool:
    """Say whether a strategy averages adapters, or steps from such an average."""
    return settings.kind in ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi")


def _peak_rate(settings: StrategySettings) -> float:
    return 0.01 if settings.server_learning_rate is None else settings.server_learning_rate


def set_server_rate(strategy: FedAvg, settings: StrategySettings, server_round: int, rounds: int) -> None:
    """Let the rate of an adaptive server fall linearly over the rounds towards a tenth.

    It divides updates by their own size, so that falling rates of the clients alone would change nothing.
    """
    if isinstance(strategy, FedAdam | FedYogi):
        strategy.eta = _peak_rate(settings) * falling(server_round, rounds)


def aggregated(strategy: FedAvg, server_round: int, replies: Sequence[Message], sent: ArrayRecord) -> dict[str, Tensor]:
    """Return the next adapter in float32; some strategies return float64, which would double what is sent.

    Krum compares squared distances of whole adapters in float32, where small updates drown in the adapter itself; it is
    given the updates alone, in float64. The replies may be empty afterwards.
    """
    start = sent.to_torch_state_dict()
    if isinstance(strategy, MultiKrum):
        strategy.num_nodes_to_select = min(strategy.num_nodes_to_select, len(replies) - strategy.num_malicious_nodes)
        for reply in replies:
            record = next(iter(reply.content.array_records.values()))
            for name, tensor in record.to_torch_state_dict().items():
                record[name] = Array((tensor.double() - start[name].double()).numpy())
    merged, _ = strategy.aggregate_train(server_round, replies)
    assert merged is not None  # there were replies
    found = merged.to_torch_state_dict()
    if isinstance(strategy, MultiKrum):
        found = {name: start[name].double() + tensor for name, tensor in found.items()}
    return {name: tensor.float() for name, tensor in found.items()}


_MEAN, _SQUARE, _MOMENTUM = "mean", "square", "momentum"


def state_of(strategy: FedAvg) -> dict[str, NDArray[Any]]:
    """Return what a strategy carries from round to round, by names; nothing for most."""
    found: dict[str, NDArray[Any]] = {}
    if isinstance(strategy, FedAdam | FedYogi):
        for name, moments in ((_MEAN, strategy.m_t), (_SQUARE, strategy.v_t)):
            found |= {f"{name}/{key}": value for key, value in (moments or {}).items()}
    if isinstance(strategy, FedAvgM) and strategy.momentum_vector is not None and strategy.current_arrays is not None:
        named = zip(strategy.current_arrays, strategy.momentum_vector, strict=True)
        found |= {f"{_MOMENTUM}/{key}": value for key, value in named}
    return found


def restore_state(strategy: FedAvg, state: Mapping[str, NDArray[Any]], arrays: ArrayRecord) -> None:
    """Set what :func:`state_of` returned, on a strategy that has done no round yet.

    Args:
        strategy: The strategy.
        state: Its state after some round.
        arrays: The adapter after that round.
    """

    def moments(name: str) -> dict[str, NDArray[Any]]:
        return {key.partition("/")[2]: value for key, value in state.items() if key.startswith(f"{name}/")}

    if isinstance(strategy, FedAdam | FedYogi):
        strategy.m_t, strategy.v_t = moments(_MEAN) or None, moments(_SQUARE) or None
    if isinstance(strategy, FedAvgM) and state:
        strategy.current_arrays = arrays
        strategy.momentum_vector = [moments(_MOMENTUM)[key] for key in arrays]
