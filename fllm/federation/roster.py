"""Which node of a grid is which client, and who is asked in a round.

Flower numbers nodes anew in every run of a deployment, and samples them by Python's global generator; a result that
follows from the seed needs clients that are known by their partition.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fllm.federation.client_app import HELLO, PARTITION
from hwsim.randomness import generator

_PAUSE_S = 0.2


class Roster:
    """Clients by node.

    Args:
        grid: Where they are.
        clients: How many there are in the federation; others are not asked.
        timeout_s: [s] that a node may take to say who it is; None is for ever.
    """

    def __init__(self, grid: Grid, clients: int, timeout_s: float | None = None) -> None:
        self._grid, self._clients, self._timeout_s = grid, clients, timeout_s
        self._partition_of: dict[int, int] = {}
        self._greeted: set[int] = set()

    def wait_for(self, least: int, patience_s: float | None) -> None:
        """Wait until so many clients are connected, or for a time [s]; None is for ever."""
        end = None if patience_s is None else time.monotonic() + patience_s
        while len(self.connected()) < least and (end is None or time.monotonic() < end):
            time.sleep(_PAUSE_S)

    def connected(self) -> dict[int, int]:
        """Return the node of each client that is connected, by partition; asks new nodes who they are."""
        online = set(self._grid.get_node_ids())
        if new := sorted(online - self._greeted):
            self._greet(new)
        # A node that was started again has another number; the one that came last is meant
        found: dict[int, int] = {}
        for node, partition in self._partition_of.items():
            if node in online:
                found[partition] = node
        return dict(sorted(found.items()))

    def _greet(self, nodes: list[int]) -> None:
        messages = [Message(RecordDict(), dst_node_id=node, message_type=HELLO) for node in nodes]
        replies = list(self._grid.send_and_receive(messages, timeout=self._timeout_s))
        node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        for reply in replies:
            node = node_of.get(reply.metadata.reply_to_message_id)
            if node is None or reply.has_error():
                continue
            self._greeted.add(node)
            told = [record[PARTITION] for record in reply.content.metric_records.values() if PARTITION in record]
            if len(told) == 1 and isinstance(told[0], int) and 0 <= told[0] < self._clients:
                self._partition_of[node] = told[0]


def drawn(seed: int, server_round: int, clients: int, wanted: int | None) -> list[int]:
    """Return the partitions that are asked in a round: all, or some drawn from the seed and the round alone."""
    if wanted is None or wanted >= clients:
        return list(range(clients))
    order = torch.randperm(clients, generator=generator(seed, "clients of the round", server_round))
    return sorted(order[:wanted].tolist())


@dataclass(frozen=True)
class Chosen:
    """A grid as a strategy sees it, which samples all nodes there are: these are the drawn ones.

    Attributes:
        nodes: Nodes of the drawn clients.
    """

    nodes: tuple[int, ...]

    def get_node_ids(self) -> list[int]:
        """Return the drawn nodes."""
        return list(self.nodes)
