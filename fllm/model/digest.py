"""The digest of an adapter; light, so that who compares adapters needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from numpy.typing import NDArray


def digest_of_arrays(arrays: Mapping[str, NDArray]) -> str:
    """Return the SHA-256 of names and values: equal digests, equal adapters."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
