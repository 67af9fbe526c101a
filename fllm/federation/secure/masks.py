"""Keys of pairs of clients, sealed letters between them, and masks drawn from keys.

All primitives are those of the ``cryptography`` package: X25519, HKDF with SHA-256, AES-256-GCM, ChaCha20.
"""

from __future__ import annotations

import os
import secrets

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jaxtyping import UInt64
from numpy import ndarray

KEY_BYTES = 32
_NONCE_BYTES = 12


def new_key() -> bytes:
    """Return a private X25519 key."""
    return X25519PrivateKey.generate().private_bytes_raw()


def new_seed() -> bytes:
    """Return the seed of a client's own mask."""
    return secrets.token_bytes(KEY_BYTES)


def public_of(private: bytes) -> bytes:
    """Return the public part of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def shared_key(private: bytes, public: bytes, *purpose: str | int) -> bytes:
    """Return the key that two clients share for one purpose; each finds it from its own private key.

    Args:
        private: Of one client.
        public: Of the other.
        purpose: What the key is for; keys of different purposes are unrelated.

    Raises:
        ValueError: If the public key is one of the few with which nothing secret can be agreed.
    """
    agreed = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=repr(purpose).encode()).derive(agreed)


def can_agree(public: bytes) -> bool:
    """Say whether a public key is none of the few with which every private key gives the same."""
    try:
        shared_key(new_key(), public)
    except ValueError:
        return False
    return True


def seal(key: bytes, letter: bytes) -> bytes:
    """Encrypt a letter so that any change of it is noticed."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, letter, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Return the letter that was sealed.

    Raises:
        ValueError: If it was changed, or sealed with another key.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except InvalidTag:
        raise ValueError("a sealed letter was changed on its way") from None


def mask(key: bytes, size: int) -> UInt64[ndarray, " size"]:
    """Return the mask that belongs to a key: its ChaCha20 stream; a key is used for one mask alone."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(8 * size)), dtype="<u8").astype(np.uint64, copy=False)


def pair_mask(private: bytes, public: bytes, me: int, other: int, where: int, size: int) -> UInt64[ndarray, " size"]:
    """Return what a client adds to its values for another; the two of a pair add up to 0 modulo 2^64.

    Args:
        private: Mask key of the client.
        public: Mask key of the other.
        me: The client.
        other: The other.
        where: Round.
        size: Number of values.
    """
    drawn = mask(shared_key(private, public, "mask", where, min(me, other), max(me, other)), size)
    return drawn if me < other else np.negative(drawn)
