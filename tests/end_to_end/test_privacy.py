"""One real process on a cohort with a canary word in every text: it stays inside, and no socket leaves the machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fllm import cli
from fllm.data import FIELDS, build_note, load_cohort
from tests.fllm.small import CANARY, TINY, cohort_with_canary

AUDITED = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind"):
        log.write(f"{event} {arguments[-1] if event != 'socket.getaddrinfo' else arguments[0]!r}\\n")

sys.addaudithook(hook)
from fllm.cli import run_main
run_main()
"""


@dataclass(frozen=True)
class Finished:
    """A run in a process of its own."""

    code: int
    terminal: str
    stderr: str
    sockets: list[str]
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def finished_process(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("process")
    data = cohort_with_canary(place / "data")
    settings = [f"--set={key}={value}" for key, value in (TINY | {"num_rounds": 1, "num_cases": 60}).items()]
    free = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "FLWR_", "TRANSFORMERS"))}
    done = subprocess.run(
        [
            sys.executable, "-c", AUDITED, str(place / "sockets.txt"), *settings,
            "--data_dir", str(data), "--fields", ",".join(FIELDS), "--out", str(place / "out"), "--name", "run",
        ],
        cwd=place,
        env=free | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1", "HOME": str(place)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    sockets = (place / "sockets.txt").read_text(encoding="utf-8").splitlines()
    return Finished(done.returncode, done.stdout + done.stderr, done.stderr, sockets, place / "out" / "run", data)


def test_run_completes(finished_process: Finished) -> None:
    assert finished_process.code == 0, finished_process.terminal
    assert json.loads((finished_process.folder / "result.json").read_text(encoding="utf-8"))["status"] == "completed"


def test_terminal_shows_results_and_no_word_of_other_libraries(finished_process: Finished) -> None:
    for expected in ("accuracy", "energy", "latency", "report.html", "SYNTHETIC"):
        assert expected in finished_process.terminal
    assert finished_process.stderr == ""


def test_no_socket_leaves_the_machine(finished_process: Finished) -> None:
    loopback = re.compile(r"127\.0\.0\.1|localhost|::1")
    assert [line for line in finished_process.sockets if not loopback.search(line)] == []


def test_the_hook_sees_sockets(tmp_path: Path) -> None:
    """Without this, the test above could not fail."""
    script = AUDITED.partition("from fllm")[0] + "import socket; socket.getaddrinfo('localhost', 1)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "log")], check=True, timeout=60)
    assert "getaddrinfo 'localhost'" in (tmp_path / "log").read_text(encoding="utf-8")


def test_the_canary_was_read(finished_process: Finished) -> None:
    notes = [build_note(case) for case in load_cohort(finished_process.data).cases]
    assert sum(CANARY in note for note in notes) > 0.9 * len(notes)


def test_no_note_text_on_the_terminal(finished_process: Finished) -> None:
    assert CANARY not in finished_process.terminal.lower()


def test_no_note_text_in_any_file(finished_process: Finished) -> None:
    files = [path for path in finished_process.folder.rglob("*") if path.is_file()]
    assert len(files) >= 10
    for path in files:
        assert CANARY.encode() not in path.read_bytes().lower(), path.name


def test_no_identifier_in_the_record(finished_process: Finished) -> None:
    numbers = set(re.findall(r"\d+", (finished_process.folder / "result.json").read_text(encoding="utf-8")))
    for case in load_cohort(finished_process.data).cases:
        assert str(case.hadm_id) not in numbers
