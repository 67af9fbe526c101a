"""Flower's programs: their commands, their surroundings, their answers, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from device_models import InputError
from fllm.deployment import processes
from fllm.deployment.control import Control, FlowerRun, Node, RefusedCommand, answer_of, commanding, nodes_of, runs_of
from fllm.deployment.folders import make_federation
from fllm.deployment.following import follow
from fllm.deployment.processes import environment, free_port, is_taken, program, serve, stop
from fllm.deployment.servers import run_superlink, run_supernode, superlink_command, supernode_command
from fllm.deployment.settings import read_federation, read_site
from fllm.deployment.submitting import wait_for
from fllm.observer import Observer


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure") / "federation"
    make_federation(folder, 2, "fl.example.org:8443", tls=True)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "federation"
    make_federation(folder, 2, f"127.0.0.1:{free_port()}", tls=False)
    return folder


def test_superlink_listens_on_this_machine_alone_and_installs_nothing(secure: Path, plain: Path) -> None:
    for folder in (secure, plain):
        command = superlink_command(folder, read_federation(folder))
        assert command[command.index("--host") + 1] == "127.0.0.1"
        assert "--disable-runtime-dependency-installation" in command
        assert command[command.index("--database") + 1] == str(folder.resolve() / "state.db")
        assert ("--insecure" in command) is (folder is plain)
        assert ("--enable-supernode-auth" in command) is (folder is secure)
    command = superlink_command(secure, read_federation(secure))
    for flag, name in (
        ("--ssl-certfile", "server.crt"),
        ("--ssl-keyfile", "server.key"),
        ("--ssl-ca-certfile", "ca.crt"),
    ):
        assert command[command.index(flag) + 1] == str(secure.resolve() / name)


def test_supernode_knows_its_site_and_signs(secure: Path, plain: Path) -> None:
    home = secure / "sites" / "site-1"
    command = supernode_command(home, read_site(home / "site.yaml"), 9000)
    config = command[command.index("--node-config") + 1]
    assert config == f"partition-id=1 num-partitions=2 site='{home.resolve() / 'site.yaml'}'"
    assert command[command.index("--auth-supernode-private-key") + 1] == str(home.resolve() / "node.key")
    assert command[command.index("--root-certificates") + 1] == str(home.resolve() / "ca.crt")
    assert command[command.index("--superlink") + 1] == "fl.example.org:8443"
    assert "--insecure" not in command
    home = plain / "sites" / "site-0"
    assert "--insecure" in supernode_command(home, read_site(home / "site.yaml"), 9000)
    with pytest.raises(InputError, match="quotation mark"):
        supernode_command(secure / "o'clock", read_site(home / "site.yaml"), 9000)


def test_flower_reads_the_setting_of_the_site(secure: Path) -> None:
    from flwr.common.config import parse_config_args

    home = secure / "sites" / "site-1"
    command = supernode_command(home, read_site(home / "site.yaml"), 9000)
    found = parse_config_args([command[command.index("--node-config") + 1]])
    assert found == {"partition-id": 1, "num-partitions": 2, "site": str(home.resolve() / "site.yaml")}


def test_keys_that_are_gone_are_named(tmp_path: Path) -> None:
    make_federation(tmp_path / "made", 1, f"127.0.0.1:{free_port()}", tls=True)
    (tmp_path / "made" / "server.key").unlink()
    with pytest.raises(InputError, match=r"server\.key: no such file"):
        run_superlink(tmp_path / "made")
    home = tmp_path / "made" / "sites" / "site-0"
    (home / "node.key").unlink()
    with pytest.raises(InputError, match=r"node\.key: no such file"):
        run_supernode(home, None)


def test_port_in_use_is_named(plain: Path) -> None:
    port = read_federation(plain).port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(InputError, match=f"port {port}: is in use; is the SuperLink running already"):
            run_superlink(plain)
        with pytest.raises(InputError, match=f"--port {port}: is in use"):
            run_supernode(plain / "sites" / "site-0", port)
    assert not is_taken(port)


def test_programs_report_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    found = environment(tmp_path / "flwr")
    expected = {
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str((tmp_path / "flwr").resolve()),
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert found["PATH"].split(os.pathsep)[0] == str(Path(program("flwr")).parent)


def test_program_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match="flower-orchestra: is not installed"):
        program("flower-orchestra")


def sleeper(code: str = "") -> subprocess.Popen[bytes]:
    script = f"import signal, time; {code}\nprint('up', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
    return process


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_request_to_stop_is_handed_on(number: signal.Signals) -> None:
    process, closed = sleeper(), []
    former = signal.getsignal(number)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), number)).start()

    @contextlib.contextmanager
    def beside() -> Iterator[None]:
        yield
        closed.append(process.poll())

    assert serve(process, beside=beside) == 0
    assert process.returncode == -signal.SIGTERM
    assert closed == [None]  # what was beside it was closed before
    assert signal.getsignal(number) is former


def test_what_cannot_be_opened_beside_a_program_ends_it() -> None:
    process, ready = sleeper(), iter([False, True])

    def beside() -> contextlib.AbstractContextManager[None]:
        raise InputError("cannot be opened")

    with pytest.raises(InputError, match="cannot be opened"):
        serve(process, beside=beside, when=lambda: next(ready))
    assert process.returncode is not None
    assert next(ready, None) is None


def test_code_of_a_program_that_ends_by_itself_is_kept() -> None:
    assert serve(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])) == 3
    assert serve(subprocess.Popen([sys.executable, "-c", ""])) == 1  # a server that ends is no success


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_program_that_does_not_stop_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.3)
    process = sleeper("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    started = time.monotonic()
    stop(process)
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 5


def test_what_a_program_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's simulation goes on where it can, and would write into a run that is resumed."""
    monkeypatch.setattr(processes, "LEFT_SECONDS", 0.2)
    inner = "import time; time.sleep(60)"
    process = sleeper(f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {inner!r}])")
    (child,) = psutil.Process(process.pid).children()
    stop(process)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    stop(process)  # once more does no harm


RUN = {
    "run-id": "42", "status": "finished:failed", "status-details": "ServerApp failed with exception: round 2",
    "elapsed": 7.5, "network-traffic": {"inbound-bytes": 1668, "outbound-bytes": 1904, "total-bytes": 3572},
}  # fmt: skip


def test_answers_of_flower_are_read() -> None:
    answer = answer_of("a word before\n" + json.dumps({"success": True, "runs": [RUN]}), "")
    assert runs_of(answer) == [
        FlowerRun("42", "finished:failed", "ServerApp failed with exception: round 2", 7.5, 1668, 1904)
    ]
    (run,) = runs_of({"runs": [RUN | {"status": "finished:completed", "status-details": "N/A"}]})
    assert run.is_completed
    assert run.details == ""
    for status, over in (("pending", False), ("running", False), ("finished:stopped", True)):
        (run,) = runs_of({"runs": [RUN | {"status": status}]})
        assert run.is_over is over
        assert not run.is_completed
    assert nodes_of({"nodes": [{"node-id": 7, "status": "online"}]}) == [Node("7", "online")]


@pytest.mark.parametrize(
    ("out", "err", "reason"),
    [
        (
            '{"success": false, "error-message": "Listing\\n [code: 23] Public key already in use.\\n"}',
            "",
            "[code: 23]",
        ),
        ("", "Traceback\nValueError: a reason", "ValueError: a reason"),
        ("{ half", "", "{ half"),
        ("", "", "no reason was given"),
        ('{"success": false}', "", "no reason was given"),
    ],
)
def test_refusal_of_flower_has_its_reason(out: str, err: str, reason: str) -> None:
    with pytest.raises(RefusedCommand) as refused:
        answer_of(out, err)
    assert str(refused.value).startswith(reason)


def test_superlink_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = Control(tmp_path / "home", free_port(), None)
    with pytest.raises(RefusedCommand, match="unavailable") as refused:
        wait_for(control, is_alive=lambda: False)
    with pytest.raises(InputError, match="start it with fllm federation superlink"), commanding(tmp_path):
        raise refused.value
    monkeypatch.setattr("fllm.deployment.control.ANSWER_SECONDS", 0.01)
    with pytest.raises(RefusedCommand, match="no answer within"):
        control.runs()


class Ending:
    """A SuperLink on which a run ends at the third question."""

    def __init__(self, folder: Path, rows: list[dict[str, object]]) -> None:
        self.file, self.rows, self.asked = folder / "result.json", rows, 0

    def runs(self, number: str) -> list[FlowerRun]:
        self.asked += 1
        record = {
            "status": "running", "name": "x", "data": {}, "model": {}, "device": {}, "config": {"num_rounds": 2},
            "schema_version": 1, "rounds": self.rows[: self.asked],
        }  # fmt: skip
        self.file.write_text(json.dumps(record), encoding="utf-8")
        return [FlowerRun(number, "finished:completed" if self.asked == 3 else "running", "", 1.0, 10, 20)]


def test_each_round_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fllm.deployment.following.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("fllm.deployment.following.ASK_SECONDS", 0.0)
    told: list[tuple[int, int]] = []

    class Listening(Observer):
        def round_done(self, row: dict, total: int) -> None:  # type: ignore[override]
            told.append((row["round"], total))

    rows: list[dict[str, object]] = [{"round": number} for number in range(3)]
    run = follow(Ending(tmp_path, rows), "42", tmp_path / "result.json", Listening())  # type: ignore[arg-type]
    assert run.is_completed
    assert told == [(0, 2), (1, 2), (2, 2)]
