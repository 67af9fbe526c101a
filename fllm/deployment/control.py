"""Commands to a SuperLink on this machine, through Flower's own command line and its JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_models import InputError
from fllm.deployment.folders import CONNECTION, write_connection
from fllm.deployment.processes import environment, program

ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink sees it.

    Attributes:
        number: Flower's number of the run.
        status: ``pending``, ``starting``, ``running``, or ``finished:`` with ``completed``, ``failed`` or ``stopped``.
        details: Why it failed, or an empty string.
        seconds: Since it began to run [s].
        received_bytes: From sites [B].
        sent_bytes: To sites [B].
    """

    number: str
    status: str
    details: str
    seconds: float
    received_bytes: int
    sent_bytes: int

    @property
    def reason(self) -> str:
        """Why it failed, without what Flower puts before the message of a ServerApp."""
        return self.details.removeprefix("ServerApp failed with exception: ") or "no reason was given"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.startswith("finished")

    @property
    def is_completed(self) -> bool:
        """Whether it did all that it should."""
        return self.status == "finished:completed"


@dataclass(frozen=True)
class Node:
    """A SuperNode that the SuperLink knows: ``registered`` and never seen, ``online`` or ``offline``."""

    number: str
    status: str


class RefusedCommand(RuntimeError):
    """The SuperLink, or Flower's command line, refused a command."""


class Control:
    """Commands to one SuperLink.

    Args:
        home: Flower's folder, which gets the connection.
        port: Port of the SuperLink on this machine.
        ca: Certificate of the authority that signed the SuperLink's; None is without TLS.
    """

    def __init__(self, home: Path, port: int, ca: Path | None) -> None:
        self._home, self._port, self._ca = home, port, ca

    def start_run(self, app: Path, job: str, federation: str = "") -> str:
        """Submit a job and return Flower's number of the run.

        Args:
            app: Folder of the application.
            job: Name of the job, which the ServerApp finds in the server's folder.
            federation: Settings of a simulation.
        """
        settings = ["--federation-config", federation] if federation else []
        return str(self._call("run", str(app), CONNECTION, "--run-config", f'job="{job}"', *settings)["run-id"])

    def stop_run(self, number: str) -> None:
        """Stop a run."""
        self._call("stop", number, CONNECTION)

    def runs(self, number: str | None = None) -> list[FlowerRun]:
        """Return all runs, or one; the latest first."""
        one = [] if number is None else ["--run-id", number]
        return runs_of(self._call("ls", CONNECTION, *one))

    def nodes(self) -> list[Node]:
        """Return the SuperNodes, in the order in which they were registered."""
        return nodes_of(self._call("supernode", "ls", CONNECTION))

    def register(self, public_key: Path) -> str:
        """Register a node's key and return the node's number; raises RefusedCommand if it is registered."""
        return str(self._call("supernode", "register", str(public_key), CONNECTION)["node-id"])

    def _call(self, *arguments: str) -> dict[str, Any]:
        """Run one command; raises RefusedCommand with the reason that Flower gives."""
        write_connection(self._home, self._port, self._ca)
        try:
            done = subprocess.run(
                [program("flwr"), *arguments, "--format", "json"], env=environment(self._home), capture_output=True,
                stdin=subprocess.DEVNULL, encoding="utf-8", errors="replace", timeout=ANSWER_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RefusedCommand(f"no answer within {ANSWER_SECONDS:.0f} s") from None
        return answer_of(done.stdout, done.stderr)


def answer_of(out: str, err: str) -> dict[str, Any]:
    """Return what a command of Flower printed as JSON; raises RefusedCommand if that tells of an error."""
    try:
        answer = json.loads(out[out.index("{") :])
    except ValueError:
        raise RefusedCommand(_last_line(err or out)) from None
    if not answer.get("success"):
        raise RefusedCommand(_last_line(str(answer.get("error-message", ""))))  # what it printed stands before
    return dict(answer)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


def runs_of(answer: dict[str, Any]) -> list[FlowerRun]:
    """Return the runs of an answer."""
    return [
        FlowerRun(
            str(run["run-id"]), run["status"], "" if run["status-details"] == "N/A" else run["status-details"],
            float(run["elapsed"]), int(run["network-traffic"]["inbound-bytes"]),
            int(run["network-traffic"]["outbound-bytes"]),
        )
        for run in answer["runs"]
    ]  # fmt: skip


def nodes_of(answer: dict[str, Any]) -> list[Node]:
    """Return the nodes of an answer."""
    return [Node(str(node["node-id"]), node["status"]) for node in answer["nodes"]]


@contextmanager
def commanding(folder: Path) -> Iterator[None]:
    """Turn a SuperLink that does not answer into an InputError that says what to do."""
    try:
        yield
    except RefusedCommand as problem:
        remedy = "start it with fllm federation superlink, and look at what it prints"
        raise InputError(f"the SuperLink refused: {problem}", where=str(folder), remedy=remedy) from None
