r"""Privacy of whole clients: Flower's clipping and noise at the server, made safe and repeatable.

With n clients of equal weight, each update cut to the norm C, the mean gets noise of standard deviation
:math:`z C / n`. One client more or less moves the sum of the updates by at most C.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.privacy_accounting import NeighboringRelation, PrivacyConfig, SamplingMethod
from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant
from numpy.typing import NDArray

from fllm.federation.privacy_noise import NoiseSource
from fllm.sections import PrivacySettings

EQUAL_WEIGHT = "equal-weight"
"""Metric that weights updates: numbers of cases would be unequal weights."""
_ACCOUNTANT = "privacy/accountant"


class BudgetSpent(RuntimeError):
    """The next round would spend more than the budget of privacy; nothing of it was computed."""

    def __init__(self, server_round: int, limit: float, spent: float) -> None:
        super().__init__(
            f"round {server_round} would spend more than the budget of privacy (epsilon {spent:.3g} of {limit:g} is"
            " spent), so that the run ended before it"
        )


class ClientPrivacy(DifferentialPrivacyServerSideFixedClipping):
    """FedAvg or FedProx with clipping, noise and an accountant.

    Args:
        strategy: What averages; it is told to weight all clients alike.
        settings: Noise, norm, delta and budget.
        asked: Clients asked in each round.
        clients: All clients.
        source: Of the noise.
    """

    def __init__(
        self, strategy: FedAvg, settings: PrivacySettings, *, asked: int, clients: int, source: NoiseSource
    ) -> None:
        strategy.weighted_by_key = EQUAL_WEIGHT
        config = PrivacyConfig(
            target_delta=settings.target_delta, population_size=clients,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION, max_epsilon=settings.max_epsilon,
        )  # fmt: skip
        # A quotient of NumPy's float by a zero norm is infinite; Python's would raise for a client that learnt nothing
        norm = np.float64(settings.clipping_norm)
        super().__init__(strategy, settings.noise_multiplier, norm, asked, accountant=RdpAccountant(config))
        self._source, self._limit = source, settings.max_epsilon

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the clients; raises BudgetSpent."""
        try:
            return super().configure_train(server_round, arrays, config, grid)
        except PrivacyBudgetExhausted:
            assert self._limit is not None
            raise BudgetSpent(server_round, self._limit, self.epsilon) from None

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average updates of equal weight; None unless every client that was asked has answered."""
        answers = list(replies)
        for reply in answers:
            if reply.has_content():
                self._prepare(reply)
        with self._source.global_numpy("privacy noise", server_round), np.errstate(divide="ignore"):
            merged: tuple[ArrayRecord | None, MetricRecord | None] = super().aggregate_train(server_round, answers)
        return merged

    def _prepare(self, reply: Message) -> None:
        """Give a reply its weight, and its arrays the order of the server's: Flower clips them by position."""
        ((name, record),) = reply.content.array_records.items()
        reply.content[name] = ArrayRecord({key: record[key] for key in self.current_arrays})
        next(iter(reply.content.metric_records.values()))[EQUAL_WEIGHT] = 1.0

    @property
    def epsilon(self) -> float:
        """What the rounds so far have spent [1]."""
        return float(self.accountant.get_privacy_spent().epsilon) if self.accountant.num_releases else 0.0

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was released so far, by names."""
        text = json.dumps(self.accountant.state_dict(), sort_keys=True)
        return {_ACCOUNTANT: np.frombuffer(text.encode(), np.uint8)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set what :meth:`state` returned."""
        if _ACCOUNTANT in state:
            self.accountant.load_state_dict(json.loads(state[_ACCOUNTANT].tobytes()))
