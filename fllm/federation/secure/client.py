"""The client's side of one round of secure aggregation."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from jaxtyping import UInt64
from numpy import ndarray

from fllm.federation.secure.masks import mask, new_key, new_seed, pair_mask, public_of, seal, shared_key, unseal
from fllm.federation.secure.messages import ProtocolRefused, PublicKeys, Revealed
from fllm.federation.secure.shares import SHARE_BYTES, split
from fllm.federation.secure.thresholds import check_threshold


@dataclass
class SecureClient:
    """Secrets of one client in one round; made anew for each, and empty after the last stage.

    Attributes:
        me: Number of the client, 0 or above.
        server_round: Round.
        threshold: How many clients together can reveal a secret; as the client was set up, not as the server says.
        letter_key: Private key that shares are sealed with.
        mask_key: Private key that masks of pairs are agreed with.
        seed: Seed of the own mask, without which a client would stand bare whose values arrive after its mask key was
            revealed.
        stage: The stage that comes next.
        members: Public keys of all clients of the round.
        held: Shares by the client that made them, of its mask key and of its seed.
    """

    me: int
    server_round: int
    threshold: int
    letter_key: bytes = field(default_factory=new_key, repr=False)
    mask_key: bytes = field(default_factory=new_key, repr=False)
    seed: bytes = field(default_factory=new_seed, repr=False)
    stage: str = "shares"
    members: dict[int, PublicKeys] = field(default_factory=dict)
    held: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)

    def keys(self) -> PublicKeys:
        """Return what the client announces."""
        return PublicKeys(public_of(self.letter_key), public_of(self.mask_key), sha256(self.seed).digest())

    def shares(self, members: Mapping[int, PublicKeys]) -> dict[int, bytes]:
        """Return, sealed for each other client, its share of the mask key and of the seed.

        Args:
            members: Announced keys of all clients of the round, this one among them.

        Raises:
            ProtocolRefused: If they are too few for the threshold or so many that it is half of them, keys are missing,
                not sound or not each client's own, or the stage was done.
        """
        self._enter("shares")
        announced = [part for keys in members.values() for part in (keys.letters, keys.masks)]
        if members.get(self.me) != self.keys():
            raise ProtocolRefused("the keys of this client are not among those announced")
        if len(set(announced)) != len(announced) or not all(keys.sound() for keys in members.values()):
            raise ProtocolRefused("keys are not sound, or not each client's own")
        try:
            check_threshold(self.threshold, len(members))
        except ValueError as error:
            raise ProtocolRefused(str(error)) from None
        self.members = dict(members)
        key_shares, seed_shares = (split(secret, self.threshold, members) for secret in (self.mask_key, self.seed))
        self.held[self.me] = key_shares[self.me], seed_shares[self.me]
        self.stage = "masked"
        return {
            other: seal(self._letter_key(self.me, other), key_shares[other] + seed_shares[other])
            for other in sorted(members)
            if other != self.me
        }

    def masked(self, letters: Mapping[int, bytes], numbers: UInt64[ndarray, " n"]) -> UInt64[ndarray, " n"]:
        """Return numbers under the masks of all clients whose shares arrived, and under the own one.

        Args:
            letters: Sealed shares, by the client that made them.
            numbers: What is to be added up.

        Raises:
            ProtocolRefused: If letters are too few, of an unknown client, or were changed, or the stage was done.
        """
        self._enter("masked")
        if not set(letters) < set(self.members) or self.me in letters or len(letters) + 1 < self.threshold:
            raise ProtocolRefused(f"shares of {len(letters)} of {len(self.members) - 1} others for {self.threshold}")
        opened = {other: self._opened(other, letter) for other, letter in letters.items()}
        total = numbers + mask(self.seed, len(numbers))
        for other in letters:
            public = self.members[other].masks
            total += pair_mask(self.mask_key, public, self.me, other, self.server_round, len(numbers))
        self.held |= opened
        self.stage = "reveal"
        return total

    def reveal(self, survivors: Collection[int], dropped: Collection[int]) -> Revealed:
        """Return a share of each survivor's seed and of each other's mask key, and forget all secrets.

        Both of one client would take all masks off its values. A client answers once, whatever it is asked.

        Args:
            survivors: Clients whose masked values the server has.
            dropped: Clients whose shares were dealt and whose values did not arrive.

        Raises:
            ProtocolRefused: If a client is in both, any is missing or unknown, this one is not a survivor, survivors
                are fewer than the threshold, or the stage was done.
        """
        self._enter("reveal")
        if set(survivors) & set(dropped):
            raise ProtocolRefused("asked for both the seed and the mask key of a client")
        if set(survivors) | set(dropped) != set(self.held) or self.me not in survivors:
            raise ProtocolRefused("the clients named are not those whose masks were added here")
        if len(set(survivors)) < self.threshold:
            raise ProtocolRefused(f"{len(set(survivors))} survivors, fewer than the threshold of {self.threshold}")
        revealed = Revealed({u: self.held[u][1] for u in survivors}, {u: self.held[u][0] for u in dropped})
        self.letter_key = self.mask_key = self.seed = b""
        self.held, self.stage = {}, "done"
        return revealed

    def to_bytes(self) -> bytes:
        """Return everything, secrets too, to go on in another process of this client; never for the server."""
        plain = vars(self) | {name: getattr(self, name).hex() for name in ("letter_key", "mask_key", "seed")}
        plain["members"] = {u: keys.to_bytes().hex() for u, keys in self.members.items()}
        plain["held"] = {u: (key + seed).hex() for u, (key, seed) in self.held.items()}
        return json.dumps(plain).encode()

    @staticmethod
    def from_bytes(kept: bytes) -> SecureClient:
        """Read what :meth:`to_bytes` returned."""
        plain = json.loads(kept)
        for name in ("letter_key", "mask_key", "seed"):
            plain[name] = bytes.fromhex(plain[name])
        plain["members"] = {int(u): PublicKeys.from_bytes(bytes.fromhex(t)) for u, t in plain["members"].items()}
        held = {int(u): bytes.fromhex(t) for u, t in plain["held"].items()}
        plain["held"] = {u: (both[:SHARE_BYTES], both[SHARE_BYTES:]) for u, both in held.items()}
        return SecureClient(**plain)

    def _enter(self, stage: str) -> None:
        if self.stage != stage:
            raise ProtocolRefused(f"asked for {stage}, but the next stage of this round is {self.stage}")

    def _opened(self, sender: int, letter: bytes) -> tuple[bytes, bytes]:
        """Return the shares of a sender's mask key and of its seed."""
        try:
            both = unseal(self._letter_key(sender, self.me), letter)
        except ValueError as error:
            raise ProtocolRefused(f"shares of client {sender}: {error}") from None
        return both[:SHARE_BYTES], both[SHARE_BYTES:]

    def _letter_key(self, sender: int, receiver: int) -> bytes:
        """Return the key of letters in one direction."""
        other = self.members[receiver if sender == self.me else sender].letters
        return shared_key(self.letter_key, other, "letter", self.server_round, sender, receiver)
