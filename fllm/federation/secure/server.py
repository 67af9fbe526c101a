"""The server's side of one round of secure aggregation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import TypeVar

import numpy as np
from jaxtyping import UInt64
from numpy import ndarray

from fllm.federation.secure.masks import mask, pair_mask, public_of
from fllm.federation.secure.messages import PublicKeys, Revealed, SecureAggregationFailed
from fllm.federation.secure.shares import SHARE_BYTES, combine, factors_at_zero
from fllm.federation.secure.thresholds import check_threshold

T = TypeVar("T")
Numbers = UInt64[ndarray, " n"]


class SecureServer:
    """Collects the answers of each stage and takes the masks off the sum.

    An answer that cannot be used is not: its client counts as dropped out from that stage on. Where fewer clients than
    the threshold are left, the round fails.

    Args:
        server_round: Round.
        threshold: How many clients together can reveal a secret.

    Attributes:
        refused: Why answers were not used, by client.
        members: Keys of the clients whose keys arrived.
        dealt: Clients whose shares arrived; the masks of each pair of them are in their values.
        survivors: Clients whose masked values arrived.
    """

    def __init__(self, server_round: int, threshold: int) -> None:
        self.server_round, self.threshold = server_round, threshold
        self.refused: dict[int, str] = {}
        self.members: dict[int, PublicKeys] = {}
        self.dealt: tuple[int, ...] = ()
        self.survivors: tuple[int, ...] = ()
        self._total = np.zeros(0, dtype=np.uint64)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Clients whose shares arrived, and whose masked values did not."""
        return tuple(client for client in self.dealt if client not in self.survivors)

    def take_keys(self, answers: Iterable[tuple[int, PublicKeys]]) -> dict[int, PublicKeys]:
        """Collect keys; returns those that every client is to be told.

        Raises:
            ValueError: If the threshold is not more than half of the clients.
        """
        seen: set[bytes] = set()
        for client, keys in self._each_once(answers, None):
            parts = {keys.letters, keys.masks}
            if not keys.sound() or parts & seen:
                self.refused[client] = "its keys are not sound, or another's"
                continue
            self.members[client] = keys
            seen |= parts
        self._enough("announced keys", len(self.members))
        check_threshold(self.threshold, len(self.members))
        return dict(sorted(self.members.items()))

    def take_shares(self, answers: Iterable[tuple[int, Mapping[int, bytes]]]) -> dict[int, dict[int, bytes]]:
        """Collect sealed shares; returns the letters for each client, by their sender."""
        letters: dict[int, Mapping[int, bytes]] = {}
        for client, sealed in self._each_once(answers, self.members):
            if set(sealed) != set(self.members) - {client}:
                self.refused[client] = "its shares are not one for each other client"
                continue
            letters[client] = sealed
        self._enough("dealt shares", len(letters))
        self.dealt = tuple(sorted(letters))
        return {to: {sender: letters[sender][to] for sender in self.dealt if sender != to} for to in self.dealt}

    def take_masked(self, answers: Iterable[tuple[int, Numbers]], size: int) -> None:
        """Add up masked values; then :attr:`survivors` and :attr:`dropped` are what clients are to be told.

        Args:
            answers: Numbers of each client.
            size: How many numbers each has to send.
        """
        self._total, arrived = np.zeros(size, dtype=np.uint64), []
        for client, numbers in self._each_once(answers, self.dealt):
            if numbers.shape != (size,) or numbers.dtype != np.uint64:
                self.refused[client] = "its masked values have another form"
                continue
            self._total += numbers
            arrived.append(client)
        self.survivors = tuple(sorted(arrived))
        self._enough("sent masked values", len(self.survivors))

    def take_revealed(self, answers: Iterable[tuple[int, Revealed]]) -> Numbers:
        """Collect shares of seeds and mask keys; returns the sum of the survivors' values without any mask.

        Raises:
            SecureAggregationFailed: If too few clients answered, or their shares do not give what was announced.
        """
        given: dict[int, Revealed] = {}
        for client, revealed in self._each_once(answers, self.survivors):
            shares = [*revealed.seeds.values(), *revealed.keys.values()]
            named = (set(revealed.seeds), set(revealed.keys)) == (set(self.survivors), set(self.dropped))
            if not named or any(len(share) != SHARE_BYTES for share in shares):
                self.refused[client] = "what it revealed is not what it was asked for"
                continue
            given[client] = revealed
        self._enough("revealed shares", len(given))
        factors = factors_at_zero(sorted(given)[: self.threshold])
        total = self._total.copy()
        for client in self.survivors:
            seed = _combined(client, {u: given[u].seeds[client] for u in factors}, factors)
            if sha256(seed).digest() != self.members[client].seed_digest:
                raise SecureAggregationFailed(f"the shares of client {client}'s seed are not those of its seed")
            total -= mask(seed, len(total))
        for client in self.dropped:
            key = _combined(client, {u: given[u].keys[client] for u in factors}, factors)
            if public_of(key) != self.members[client].masks:
                raise SecureAggregationFailed(f"the shares of client {client}'s mask key are not those of its key")
            for other in self.survivors:  # what survivors added for it, it would have taken away
                total += pair_mask(key, self.members[other].masks, client, other, self.server_round, len(total))
        return total

    def _each_once(self, answers: Iterable[tuple[int, T]], allowed: Iterable[int] | None) -> Iterable[tuple[int, T]]:
        """Go through the answers of clients that belong to a stage, the first one of each; None allows all."""
        allowed, seen = None if allowed is None else set(allowed), set()
        for client, answer in answers:
            if client in seen:
                self.refused[client] = "it answered twice"
            elif allowed is not None and client not in allowed:
                self.refused[client] = "it had dropped out before"
            else:
                seen.add(client)
                yield client, answer

    def _enough(self, done: str, clients: int) -> None:
        if clients < self.threshold:
            reasons = f" ({'; '.join(sorted(set(self.refused.values())))})" if self.refused else ""
            raise SecureAggregationFailed(
                f"round {self.server_round}: {clients} clients {done}, fewer than the threshold of"
                f" {self.threshold}{reasons}"
            )


def _combined(client: int, shares: Mapping[int, bytes], factors: Mapping[int, int]) -> bytes:
    try:
        return combine(shares, factors)
    except ValueError as error:
        raise SecureAggregationFailed(f"shares of client {client}: {error}") from None
