"""What a run trains: one adapter for all clients, or, where they share A alone, one for each of them (FedSA-LoRA).

Both do the same between two rounds: take what a round left, score it, keep it, and put it into the folder of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fllm.evaluation import joined
from fllm.federation.client_app import kept_as_personal, personal_part
from fllm.federation.exchange import Exchange
from fllm.federation.kept import Kept
from fllm.federation.server_app import Round
from fllm.model.adapters import get_adapter, save_adapter, set_adapter, whole_adapter
from fllm.model.identity import AdapterIdentity
from fllm.outcome import Evaluation, evaluate_everywhere
from fllm.preparation import HeldOut, Prepared

Tensors = dict[str, Tensor]


class Trained(Protocol):
    """What a run trains."""

    folder: str
    """Where it lies in the folder of the run."""

    def shared(self) -> Tensors:
        """Return what the server sends."""

    def tensors(self) -> Tensors:
        """Return everything that the next round starts from, by names."""

    def take(self, outcome: Round) -> None:
        """Take what a round left."""

    def restore(self, tensors: Mapping[str, Tensor], number: int) -> None:
        """Take what :meth:`tensors` returned after a round."""

    def evaluate(self) -> Evaluation:
        """Score it on the ideal device and on every die."""

    def save(self, folder: Path, identity: AdapterIdentity) -> None:
        """Write it into a folder in PEFT format."""


def trained_of(prepared: Prepared, exchange: Exchange, kept: Kept) -> Trained:
    """Return what a run trains, as it is before the first round."""
    return AdapterOfEach(prepared, exchange, kept) if exchange.personal_b else OneAdapter(prepared)


class OneAdapter:
    """The adapter that all clients have after a round; it is the model's."""

    folder = "adapter"

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def shared(self) -> Tensors:
        """Return its trained tensors."""
        return get_adapter(self._prepared.model)

    def tensors(self) -> Tensors:
        """Return all its tensors."""
        return whole_adapter(self._prepared.model)

    def take(self, outcome: Round) -> None:
        """Set the aggregated adapter."""
        set_adapter(self._prepared.model, outcome.adapter)

    def restore(self, tensors: Mapping[str, Tensor], number: int) -> None:  # noqa: ARG002 - the other one needs it
        """Set the adapter of a round."""
        set_adapter(self._prepared.model, tensors)

    def evaluate(self) -> Evaluation:
        """Score it on all test cases."""
        return evaluate_everywhere(self._prepared)

    def save(self, folder: Path, identity: AdapterIdentity) -> None:
        """Write one PEFT folder."""
        save_adapter(self._prepared.model, folder, identity)


class AdapterOfEach:
    """A that all clients share, and the B of each, which stays in its files; every client is scored on its own cases.

    Args:
        prepared: The run.
        exchange: Says what is shared.
        kept: Files of the clients, on this machine.
    """

    folder = "adapters"

    def __init__(self, prepared: Prepared, exchange: Exchange, kept: Kept) -> None:
        self._prepared, self._kept = prepared, kept
        first = dict(prepared.first_adapter)
        self._shared, self._first = exchange.shared(first), exchange.personal(first)
        self._own = [self._first for _ in prepared.hospitals]

    def of(self, client: int) -> Tensors:
        """Return the adapter of a client."""
        return dict(sorted((self._shared | self._own[client]).items()))

    def shared(self) -> Tensors:
        """Return A."""
        return dict(self._shared)

    def tensors(self) -> Tensors:
        """Return A, and the B of each client under its number."""
        own = {_prefix(client) + name: tensor for client, part in enumerate(self._own) for name, tensor in part.items()}
        return dict(sorted((self._shared | own).items()))

    def take(self, outcome: Round) -> None:
        """Take the averaged A, and read what each client kept last."""
        self._shared = dict(outcome.adapter)
        held = [personal_part(self._kept.load(client, outcome.number + 1)) for client in range(len(self._own))]
        self._own = [part or self._first for part in held]

    def restore(self, tensors: Mapping[str, Tensor], number: int) -> None:
        """Take A and B of a round, and give the clients their files back where they are gone."""
        self._shared = {name: tensors[name] for name in self._shared}
        for client in range(len(self._own)):
            before = _prefix(client)
            self._own[client] = {name: tensors[before + name] for name in self._first}
            if not self._kept.is_whole(client, self._kept.last(client, number + 1)):
                self._kept.save(client, number, kept_as_personal(self._own[client]))

    def evaluate(self) -> Evaluation:
        """Score each client's adapter on the client's own test cases; the model has the first one's afterwards."""
        prepared, owners = self._prepared, self._prepared.client_of_test
        test, validation = prepared.held_out.test, prepared.held_out.validation
        places = [[i for i, owner in enumerate(owners) if owner == client] for client in range(len(self._own))]
        found = []
        for client, own in enumerate(places):
            if own:
                set_adapter(prepared.model, self.of(client))
                found.append(evaluate_everywhere(prepared, HeldOut([test[i] for i in own], validation)))
        set_adapter(prepared.model, self.of(0))
        places = [own for own in places if own]
        dies = zip(*(one.dies for one in found), strict=True)
        return Evaluation(joined([one.ideal for one in found], places), [joined(die, places) for die in dies])

    def save(self, folder: Path, identity: AdapterIdentity) -> None:
        """Write one PEFT folder for each client, by its number."""
        for client in range(len(self._own)):
            set_adapter(self._prepared.model, self.of(client))
            save_adapter(self._prepared.model, folder / str(client), identity)
        set_adapter(self._prepared.model, self.of(0))


def _prefix(client: int) -> str:
    return f"client-{client:05d}/"
