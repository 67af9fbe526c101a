"""Engine with processes: several clients at the same time, given up after a time, and replaced where a process dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from device_models import InputError
from fllm.federation.engines import LocalGrid, answered, name_this_process
from fllm.federation.reasons import NO_ANSWER, PROCESS_DIED, TOO_LATE
from fllm.processes import WorkerProcess

_WARM = "warm"


class WorkerFailed(RuntimeError):
    """A process could not load the clients; another would not either."""


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
        """Wait until all that was sent is answered, and return the replies to some messages.

        Raises:
            WorkerFailed: If a process cannot load the clients, or each that tries dies of it.
        """
        while self._waiting or any(seat.message is not None for seat in self._seats):
            for seat in tuple(self._seats):
                if seat.ready and self._waiting:
                    self._give(seat)
            working = [seat for seat in self._seats if not seat.ready]
            pipes = wait([seat.process.pipe for seat in working], self._patience(working))
            for seat in working:
                if seat.process.pipe in pipes:
                    self._take(seat)
                elif seat.late():
                    self._replace(seat, Error(TOO_LATE, NO_ANSWER))
        return super().pull_messages(message_ids)

    def close(self) -> None:
        """End all processes."""
        for seat in self._seats:
            seat.process.end()

    def _patience(self, seats: list[_Seat]) -> float | None:
        ends = [seat.end for seat in seats if seat.end is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _give(self, seat: _Seat) -> None:
        """Hand the next message to a process, unless that died at rest, which is no client's fault."""
        if seat.process.lives():
            message = self._waiting.popleft()
            seat.give(message, self._contexts[message.metadata.dst_node_id], self._timeout_s)
        else:
            self._replace(seat, None)

    def _take(self, seat: _Seat) -> None:
        """Take what a process sent, or find out that it died.

        Raises:
            WorkerFailed: If it could not load the clients.
        """
        found = seat.process.receive()
        if found is None:
            died = f"its process died (exit code {seat.process.end()})"
            if seat.message is None:
                self._drop(seat, died)
            else:
                self._replace(seat, Error(PROCESS_DIED, died))
            return
        if seat.message is not None:
            reply, self._contexts[seat.message.metadata.dst_node_id] = found
            self._replies[seat.message.metadata.message_id] = reply
        elif found != _WARM:
            raise WorkerFailed(f"a process of the federation could not load the clients: {found}")
        seat.rest()

    def _replace(self, seat: _Seat, error: Error | None) -> None:
        """Start another process in the place of one, and answer with an error for the client that it worked on."""
        seat.process.end()
        if seat.message is not None and error is not None:
            self._replies[seat.message.metadata.message_id] = Message(error, reply_to=seat.message)
        self._seats[self._seats.index(seat)] = _Seat(self._make_worker)

    def _drop(self, seat: _Seat, reason: str) -> None:
        """Go on without a process that died while it loaded: another in its place might do so again and again."""
        self._seats.remove(seat)
        if not self._seats:
            raise WorkerFailed(f"no process of the federation could load the clients: {reason}")


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
            # Of another exception the type alone: its message could quote a note
            problem = str(error) if isinstance(error, InputError) else type(error).__name__
            return lambda _: problem

        def answer(task: Any) -> Any:
            if task == _WARM:
                return _WARM
            message, context = task
            return answered(app, message, context), context

        return answer
