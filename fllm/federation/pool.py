"""Engine with processes: several clients at the same time, given up after a time, and replaced where a process dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fllm.federation.engines import CLIENT_FAILED, LocalGrid, answered, name_this_process
from fllm.processes import WorkerProcess

PROCESS_DIED, TOO_LATE = 8, 9
"""Error codes of clients whose process ended, and of those that were given up."""
_WARM = "warm"


class PoolGrid(LocalGrid):
    """Grid whose nodes are calls of the ClientApp in some processes, each of which serves any client.

    Replies depend on the message and the client alone, so neither the number of processes nor who serves whom changes
    a result.

    Args:
        make_app: Makes the client application in each process; is pickled.
        num_clients: Number of nodes.
        workers: Number of processes.
        client_timeout_s: [s] after which a client is given up and its process replaced; None is for ever.
    """

    def __init__(
        self, make_app: Callable[[], ClientApp], num_clients: int, workers: int, client_timeout_s: float | None = None
    ) -> None:
        super().__init__(num_clients)
        self._make_worker, self._timeout_s = _Worker(make_app), client_timeout_s
        self._waiting: deque[Message] = deque()
        self._seats = [_Seat(self._make_worker) for _ in range(min(workers, num_clients))]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages in the order of their nodes."""
        messages = list(messages)
        ids = [self._numbered(message) for message in messages]
        self._waiting.extend(sorted(messages, key=lambda m: m.metadata.dst_node_id))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Wait until all that was sent is answered, and return the replies to some messages."""
        while self._waiting or any(seat.message is not None for seat in self._seats):
            for seat in self._seats:
                if seat.ready and self._waiting:
                    message = self._waiting.popleft()
                    seat.give(message, self._contexts[message.metadata.dst_node_id], self._timeout_s)
            working = [seat for seat in self._seats if not seat.ready]
            pipes = wait([seat.process.pipe for seat in working], self._patience(working))
            for number, seat in enumerate(self._seats):
                if seat.process.pipe in pipes:
                    self._take(number, seat)
                elif seat.late():
                    self._replace(number, seat, TOO_LATE, "no answer in time")
        return super().pull_messages(message_ids)

    def close(self) -> None:
        """End all processes."""
        for seat in self._seats:
            seat.process.end()

    def _patience(self, seats: list[_Seat]) -> float | None:
        ends = [seat.end for seat in seats if seat.end is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _take(self, number: int, seat: _Seat) -> None:
        """Take what a process sent, or find out that it died."""
        found = seat.process.receive()
        if found is None:
            self._replace(number, seat, PROCESS_DIED, "its process died")
            return
        if seat.message is not None:
            reply, context = found
            self._contexts[seat.message.metadata.dst_node_id] = context
            self._replies[seat.message.metadata.message_id] = reply
        seat.rest()

    def _replace(self, number: int, seat: _Seat, code: int, reason: str) -> None:
        """Answer for a process that is gone, and start another in its place."""
        exit_code = seat.process.end()
        if code == PROCESS_DIED:
            reason = f"{reason} (exit code {exit_code})"
        if seat.message is None:  # it died while it loaded the model: another would, too
            raise RuntimeError(f"a worker of the federation could not start: {reason}")
        self._replies[seat.message.metadata.message_id] = Message(
            Error(code=code, reason=reason), reply_to=seat.message
        )
        self._seats[number] = _Seat(self._make_worker)


class _Seat:
    """A process, and the message that it works on; a new one loads its model first, which is on nobody's time."""

    def __init__(self, make_worker: _Worker) -> None:
        self.process = WorkerProcess(make_worker)
        self.process.send(_WARM)
        self.message: Message | None = None
        self.end: float | None = None
        self.ready = False

    def give(self, message: Message, context: Context, timeout_s: float | None) -> None:
        """Hand over a message."""
        self.message, self.ready = message, False
        self.end = None if timeout_s is None else time.monotonic() + timeout_s
        self.process.send((message, context))

    def rest(self) -> None:
        """Take note that it is done."""
        self.message, self.end, self.ready = None, None, True

    def late(self) -> bool:
        """Say whether its client is to be given up."""
        return self.end is not None and time.monotonic() >= self.end


class _Worker:
    """What a process does: makes the application once, then answers messages; is pickled before that."""

    def __init__(self, make_app: Callable[[], ClientApp]) -> None:
        self._make_app = make_app

    def __call__(self) -> Callable[[Any], Any]:
        name_this_process()
        try:
            app = self._make_app()
        except Exception as error:
            return _Broken(type(error).__name__)

        def answer(task: Any) -> Any:
            if task == _WARM:
                return _WARM
            message, context = task
            return answered(app, message, context), context

        return answer


class _Broken:
    """Answers for an application that could not be made."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self, task: Any) -> Any:
        if task == _WARM:
            return _WARM
        message, context = task
        return Message(Error(code=CLIENT_FAILED, reason=self._reason), reply_to=message), context
