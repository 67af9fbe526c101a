"""How many clients of a round together can reveal a secret."""

from __future__ import annotations


def default_threshold(clients: int) -> int:
    """Return two thirds of the clients, rounded up, and no less than two."""
    return max(2, -(-2 * clients // 3))


def check_threshold(threshold: int, clients: int) -> None:
    """Refuse a threshold that would protect nobody.

    With half of the clients or fewer, a server could ask one half for a client's seed and the other for its mask key.

    Raises:
        ValueError: If it is below 2, no more than half of the clients, or above their number.
    """
    if threshold < 2 or 2 * threshold <= clients:
        raise ValueError(f"a threshold of {threshold} of {clients} clients: expected more than half, and at least 2")
    if threshold > clients:
        raise ValueError(f"a threshold of {threshold} is more than the {clients} clients")
