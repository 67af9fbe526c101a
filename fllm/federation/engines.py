"""Engines that carry messages between server and clients. Here: all clients in this process, one after another.

Flower's own simulation needs Ray, which probes the network when it starts and loses replies when a worker dies; the
same ServerApp and ClientApp run here on public classes of Flower alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

CLIENT_FAILED = 2
"""Error code of a reply whose client raised, as Flower's own engines use it."""


class InProcessGrid(Grid):
    """Grid whose nodes are calls of the ClientApp in this process, in the order of their partition.

    Args:
        client_app: The client application.
        num_clients: Number of nodes; node i + 1 holds partition i.
    """

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Message() reads them
        self._app = client_app
        self._contexts = {
            i + 1: Context(1, i + 1, {"partition-id": i, "num-partitions": num_clients}, RecordDict(), {})
            for i in range(num_clients)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0
        self._run: Run | None = None
        self.downlink_bytes = 0
        self.uplink_bytes = 0

    def set_run(self, run: Run) -> None:
        """Keep the run that the server works on."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that was set."""
        if self._run is None:
            raise RuntimeError("no run was set on this grid")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message for a node."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages in the order of their nodes; a client that raises answers with an error."""
        ids = []
        for message in sorted(messages, key=lambda m: m.metadata.dst_node_id):
            self._sent += 1
            name = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = name
            self.downlink_bytes += array_bytes(message)
            try:
                # Copies stand for the wire: neither side may change what the other holds
                reply = self._app(copy.deepcopy(message), self._contexts[message.metadata.dst_node_id])
                self.uplink_bytes += array_bytes(reply)
            except Exception as error:
                # The type alone: a message could carry text of the data that the client was working on
                reply = Message(Error(code=CLIENT_FAILED, reason=type(error).__name__), reply_to=message)
            self._replies[name] = reply
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002
        """Deliver messages and return their replies, ordered by node."""
        return self.pull_messages(self.push_messages(messages))


def array_bytes(message: Message) -> int:
    """Return the serialised size of the arrays of a message; names and metrics are not counted."""
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
