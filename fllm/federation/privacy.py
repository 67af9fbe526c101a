"""What a federation has spent of its differential privacy, and when its budget is spent.

Two relations between federations that must hardly be told apart. ``client``: the same but for one client's update being
there or not (:mod:`fllm.federation.privacy_client`). ``record``: the same but for one case of one client
(:mod:`fllm.federation.privacy_record`). In both, the numbers of clients and of their cases count as known. Epsilon is
that of Rényi accounting (Mironov 2017) by dp-accounting. Losses, counts of events and evaluations are not private.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from device_models import InputError
from fllm.federation.privacy_client import BudgetSpent, ClientPrivacy
from fllm.federation.privacy_noise import noise_source
from fllm.sections import PrivacySettings

_STEPS = "privacy/steps"
_PACKAGES = {"none": (), "client": ("dp_accounting",), "record": ("dp_accounting", "opacus")}


_NONE = PrivacySettings()


@dataclass(frozen=True)
class PrivacyTerms:
    """Privacy of a run, and what of the run epsilon follows from.

    Attributes:
        settings: Noise, norm, delta and budget.
        clients: All clients.
        asked: Clients asked in each round.
        sizes: Cases of each client, by partition, as far as the server knows them.
        batch_size: Cases that a client draws in a step, on average.
        local_steps: Steps of a client per round.
        seed: Of the run.
    """

    settings: PrivacySettings = _NONE
    clients: int = 1
    asked: int = 1
    sizes: tuple[int, ...] = ()
    batch_size: int = 1
    local_steps: int = 1
    seed: int = 0

    def check(self) -> None:
        """Refuse, before anything is computed, what cannot be done or protects nobody; raises InputError."""
        settings = self.settings
        check_extra(settings)
        if settings.kind == "none":
            return
        many, noun = (self.clients, "clients") if settings.kind == "client" else (max(self.sizes), "cases of a client")
        if settings.target_delta * many >= 1:
            raise InputError(
                f"delta must lie below one in the number of {noun}", where="privacy.target_delta",
                expected=f"below 1/{many}", received=settings.target_delta,
            )  # fmt: skip
        rates, steps = ([1.0], 1) if settings.kind == "client" else (map(self.rate, self.sizes), self.local_steps)
        first = max(epsilon_of(rate, settings, steps) for rate in rates)
        if settings.max_epsilon is not None and first > settings.max_epsilon:
            raise InputError(
                "the first round alone would spend more than the budget of privacy", where="privacy.max_epsilon",
                expected=f"at least {first:.3g}", received=settings.max_epsilon,
                remedy="raise it, or privacy.noise_multiplier",
            )  # fmt: skip

    def rate(self, cases: int) -> float:
        """Return the probability that a case is drawn in a step, of a client of so many cases."""
        return min(1.0, self.batch_size / cases)


def check_extra(settings: PrivacySettings) -> None:
    """Refuse privacy whose packages are not there; raises InputError."""
    for package in _PACKAGES[settings.kind]:
        if find_spec(package) is None:
            raise InputError(
                f"the package {package} is not installed", where=f"privacy.kind: {settings.kind}",
                remedy="install it with: pip install 'fllm[dp]'",
            )  # fmt: skip


NO_PRIVACY = PrivacyTerms()
"""Of a run without privacy."""


class Ledger:
    """What was spent so far. This one is of no privacy; each kind adds what it needs."""

    least = 0
    """Fewest clients whose sound answers make a round."""
    epsilon: float | None = None

    def around(self, strategy: FedAvg) -> Any:
        """Put the server's part of privacy around a strategy of Flower."""
        return strategy

    def before(self, server_round: int, partitions: Collection[int]) -> None:
        """Raise BudgetSpent where a round of these clients would overrun."""

    def after(self, sizes: Mapping[int, int]) -> None:
        """Note a round of the clients that were asked, and their numbers of cases; 0 is one that is not known."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was spent, by names."""
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set what :meth:`state` returned."""


class ClientLedger(Ledger):
    """Of whole clients: the accountant of Flower's strategy."""

    def __init__(self, terms: PrivacyTerms) -> None:
        self._terms, self.least = terms, terms.asked

    def around(self, strategy: FedAvg) -> ClientPrivacy:
        """Put clipping, noise and accountant around FedAvg or FedProx."""
        terms = self._terms
        self._strategy = ClientPrivacy(
            strategy,
            terms.settings,
            asked=terms.asked,
            clients=terms.clients,
            source=noise_source(terms.settings, terms.seed),
        )
        return self._strategy

    @property
    def epsilon(self) -> float:  # type: ignore[override]
        """What the rounds so far have spent [1]."""
        return self._strategy.epsilon

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what was released, by names."""
        return self._strategy.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set what :meth:`state` returned."""
        self._strategy.restore(state)


class RecordLedger(Ledger):
    """Of single cases: the steps of each client, at its own rate of drawing."""

    def __init__(self, terms: PrivacyTerms) -> None:
        self._terms, self._sizes = terms, dict(enumerate(terms.sizes))
        self.steps: dict[int, int] = {}

    def before(self, server_round: int, partitions: Collection[int]) -> None:
        """Raise BudgetSpent where a client's next round would overrun."""
        limit, steps = self._terms.settings.max_epsilon, self._terms.local_steps
        if limit is None:
            return
        if any(self._epsilon(i, self.steps.get(i, 0) + steps) > limit for i in partitions):
            raise BudgetSpent(server_round, limit, self.epsilon)

    def after(self, sizes: Mapping[int, int]) -> None:
        """Count the steps of clients that were asked; that an answer was of no use does not take them back."""
        for i, size in sizes.items():
            self.steps[i] = self.steps.get(i, 0) + self._terms.local_steps
            if size:
                self._sizes[i] = size

    def _epsilon(self, partition: int, steps: int) -> float:
        size = self._sizes.get(partition)  # none: as if it drew all its cases in every step
        return epsilon_of(self._terms.rate(size) if size else 1.0, self._terms.settings, steps)

    @property
    def epsilon(self) -> float:  # type: ignore[override]
        """The largest over the clients so far [1]."""
        return max((self._epsilon(i, steps) for i, steps in self.steps.items()), default=0.0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the steps and cases of each client, by names."""
        rows = [(i, steps, self._sizes.get(i, 0)) for i, steps in sorted(self.steps.items())]
        return {_STEPS: np.array(rows, np.int64).reshape(-1, 3)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set what :meth:`state` returned."""
        for i, steps, size in state.get(_STEPS, ()):
            self.steps[int(i)], self._sizes[int(i)] = int(steps), int(size)


def ledger_of(terms: PrivacyTerms) -> Ledger:
    """Return an empty ledger."""
    kinds: dict[str, Any] = {"client": ClientLedger, "record": RecordLedger}
    return Ledger() if terms.settings.kind == "none" else kinds[terms.settings.kind](terms)


def privacy_facts(settings: PrivacySettings, ledger: Ledger) -> dict[str, Any] | None:
    """Describe what was spent up to a round; None without privacy."""
    if settings.kind == "none":
        return None
    return {"kind": settings.kind, "epsilon": ledger.epsilon, "delta": settings.target_delta}


def epsilon_of(rate: float, settings: PrivacySettings, steps: int) -> float:
    """Return epsilon of noisy steps that each draw a client or a case with a probability, for one more or less [1]."""
    return _epsilon_of(rate, settings.noise_multiplier, steps, settings.target_delta)


@lru_cache
def _epsilon_of(rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    from dp_accounting import dp_event, rdp

    accountant = rdp.RdpAccountant()
    with _without_warnings():
        step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise_multiplier))
        accountant.compose(step, steps)
        return float(accountant.get_epsilon(delta))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep orders that do not converge and are left out, which is safe, off the screen."""
    log = logging.getLogger("absl")
    former = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(former)
