"""What client and server tell each other, and how a stage fails."""

from __future__ import annotations

from dataclasses import dataclass, field

from fllm.federation.secure.masks import KEY_BYTES, can_agree


class ProtocolRefused(RuntimeError):
    """A message that an honest client does not answer: it is out of order, incomplete, forged, or asks too much."""


class SecureAggregationFailed(RuntimeError):
    """Too few clients are left for a sum, or what they revealed does not fit what was announced."""


@dataclass(frozen=True)
class PublicKeys:
    """What a client announces in the first stage.

    Attributes:
        letters: X25519 key that shares are sealed for.
        masks: X25519 key that masks of pairs are agreed with.
        seed_digest: SHA-256 of the seed of the client's own mask; tells whether shares were put together rightly, and
            nothing of a seed of 256 random bits.
    """

    letters: bytes
    masks: bytes
    seed_digest: bytes

    def sound(self) -> bool:
        """Say whether all parts have their length and differ, and something secret can be agreed with both keys."""
        parts = (self.letters, self.masks, self.seed_digest)
        if any(len(part) != KEY_BYTES for part in parts) or len(set(parts)) != len(parts):
            return False
        return can_agree(self.letters) and can_agree(self.masks)

    def to_bytes(self) -> bytes:
        """Return all parts, one after another."""
        return self.letters + self.masks + self.seed_digest

    @staticmethod
    def from_bytes(joined: bytes) -> PublicKeys:
        """Read what :meth:`to_bytes` returned."""
        return PublicKeys(joined[:KEY_BYTES], joined[KEY_BYTES : 2 * KEY_BYTES], joined[2 * KEY_BYTES :])


@dataclass(frozen=True)
class Revealed:
    """What a client gives away in the last stage: of every other client one share, never both.

    Attributes:
        seeds: Shares of the seeds of clients whose masked values arrived.
        keys: Shares of the mask keys of clients that dropped out before.
    """

    seeds: dict[int, bytes] = field(default_factory=dict)
    keys: dict[int, bytes] = field(default_factory=dict)
