"""Engines that carry messages between server and clients of one machine. Here: all clients in this process, in turn.

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

from fllm.federation.reasons import CLIENT_FAILED


class LocalGrid(Grid):
    """What grids of one machine share: nodes, their contexts, and numbers of messages.

    Args:
        num_clients: Number of nodes; node i + 1 holds partition i.
    """

    def __init__(self, num_clients: int) -> None:
        name_this_process()
        self._contexts = {
            i + 1: Context(1, i + 1, {"partition-id": i, "num-partitions": num_clients}, RecordDict(), {})
            for i in range(num_clients)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0
        self._run: Run | None = None

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

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # noqa: ARG002
        """Deliver messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _numbered(self, message: Message) -> str:
        self._sent += 1
        name = f"message-{self._sent}"
        message.metadata.__dict__["_message_id"] = name
        return name


class InProcessGrid(LocalGrid):
    """Grid whose nodes are calls of the ClientApp in this process, in the order of their partition.

    Args:
        client_app: The client application.
        num_clients: Number of nodes.
    """

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        super().__init__(num_clients)
        self._app = client_app

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages in the order of their nodes; a client that raises answers with an error."""
        messages = list(messages)
        ids = [self._numbered(message) for message in messages]
        for message in sorted(messages, key=lambda m: m.metadata.dst_node_id):
            # Copies stand for the wire: neither side may change what the other holds
            context = self._contexts[message.metadata.dst_node_id]
            self._replies[message.metadata.message_id] = answered(self._app, copy.deepcopy(message), context)
        return ids


def name_this_process() -> None:
    """Set the numbers that ``Message()`` reads; Flower's own processes are told theirs."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def answered(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the answer of a client application; one that raises answers with the type of its exception."""
    try:
        reply: Message = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError
    except Exception as error:
        # The type alone: a message could carry text of the data that the client was working on
        reply = Message(Error(code=CLIENT_FAILED, reason=type(error).__name__), reply_to=message)
    return reply
