"""A federation of real processes on this machine, for tests; each process notes what it does with sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from fllm.deployment.processes import free_port
from fllm.results import read_result

FLLM = [sys.executable, "-c", "from fllm.cli import main; main()"]
PATIENCE_S = 240.0
WATCHER = """\
import json, os, sys

def note(event, arguments, log=open(os.environ["SOCKET_LOG"], "a", buffering=1)):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        log.write(json.dumps([event, repr(arguments[1]), sys.argv[:1]]) + "\\n")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        log.write(json.dumps([event, repr(arguments[0]), sys.argv[:1]]) + "\\n")

sys.addaudithook(note)
"""
"""A ``sitecustomize`` that each Python process imports when it starts."""


def wait_until(happened: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.3)


class Deployed:
    """Processes of one federation of two sites."""

    def __init__(self, folder: Path, tls: bool) -> None:
        self.folder = folder / "federation"
        self._logs, self._running = folder / "logs", dict[str, subprocess.Popen[bytes]]()
        (folder / "watcher").mkdir()
        (folder / "watcher" / "sitecustomize.py").write_text(WATCHER, encoding="utf-8")
        self._logs.mkdir()
        self.socket_log = folder / "sockets.jsonl"
        root = str(Path(__file__).parents[2])
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder / "watcher"), root]),
            "SOCKET_LOG": str(self.socket_log),
            "OMP_NUM_THREADS": "1",
        }
        security = "--tls" if tls else "--insecure"
        self.call("init", self.folder, "--sites", "2", "--address", f"127.0.0.1:{free_port()}", security)

    def call(self, command: str, *arguments: str | Path, code: int = 0) -> str:
        """Run a command to its end and return what it printed."""
        done = subprocess.run(
            [*FLLM, "federation", command, *map(str, arguments)], env=self.environment, capture_output=True,
            text=True, timeout=3 * PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr + self.logs()
        return done.stdout + done.stderr

    def start(self, name: str, command: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a command that goes on."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [*FLLM, "federation", command, *map(str, arguments)], env=self.environment, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self._running[name]

    def start_superlink(self) -> None:
        self.start("superlink", "superlink", self.folder)
        wait_until(lambda: self.answers("status"), "the SuperLink answers")

    def start_site(self, number: int) -> subprocess.Popen[bytes]:
        return self.start(f"site-{number}", "supernode", self.folder / "sites" / f"site-{number}")

    def answers(self, command: str) -> bool:
        done = subprocess.run(
            [*FLLM, "federation", command, str(self.folder)], env=self.environment, capture_output=True, check=False
        )
        return done.returncode == 0

    def online(self) -> int:
        return int(self.call("status", self.folder).split()[0])

    def kill(self, *programs: str) -> None:
        """Kill programs of this federation as a power cut would, the ones named first first."""
        for name in programs:
            for process in processes_of(name, self.folder):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def kill_site(self, number: int) -> None:
        """Kill a site's processes; what started it stays until the end and knows nothing."""
        self._running.pop(f"site-{number}").kill()
        for name in ("flower-supernode", "flower-superexec", "flwr-clientapp"):
            for process in processes_of(name, self.folder / "sites" / f"site-{number}"):
                process.kill()

    def kill_superlink(self) -> None:
        self._running.pop("superlink").kill()
        self.kill("flower-superlink", "flower-superexec", "flwr-serverapp")

    def log_of(self, name: str) -> str:
        """Return what a process has printed."""
        return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def logs(self) -> str:
        """Return the last lines of all processes."""
        parts = [f"\n== {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in self._logs.iterdir()]
        return "".join(parts)

    def close(self) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            process.wait(60)


def processes_of(program: str, folder: Path) -> list[psutil.Process]:
    """Return the processes of a program whose Flower folder lies in a folder."""
    homes = {str(folder.resolve() / name) for name in ("flwr", "flwr-simulation")}
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            names = [Path(part).stem for part in (process.info["cmdline"] or [])[:2]]
            if program in names and process.environ().get("FLWR_HOME") in homes:
                found.append(process)
    return found


@contextlib.contextmanager
def deployed(folder: Path, *, tls: bool, sites: Sequence[int] = (0, 1)) -> Iterator[Deployed]:
    """Run a federation whose sites are online."""
    federation = Deployed(folder, tls)
    try:
        federation.start_superlink()
        if tls:
            federation.call("register", federation.folder)
        for number in sites:
            federation.start_site(number)
        wait_until(lambda: federation.online() == len(sites), "the sites are online")
        yield federation
    finally:
        federation.close()


def record_of(folder: Path, name: str) -> dict[str, Any]:
    return dict(read_result(folder / "runs" / name / "result.json"))


def rounds_done(folder: Path, name: str) -> int:
    file = folder / "runs" / name / "result.json"
    return len(record_of(folder, name)["rounds"]) - 1 if file.is_file() else -1


def foreign_sockets(log: Path) -> list[list[Any]]:
    """Return what went beyond this machine."""
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(events) > 20, "the sockets were not watched"
    return [event for event in events if not is_of_this_machine(event[1])]


def is_of_this_machine(shown: str) -> bool:
    """Return whether an address or a host is this machine or none."""
    value: Any = json.loads(shown.replace("'", '"')) if shown.startswith("'") else shown
    if shown.startswith("("):
        value = shown[1:].split(",")[0].strip("'\" ")
    if value in ("None", "", "localhost") or str(value).startswith(("/", "b'/", "b'\\x00")):
        return True
    try:
        return ipaddress.ip_address(value).is_loopback
    except ValueError:
        return False
