"""``fllm federation``: options, refusals and exit codes; the processes themselves are in tests/end_to_end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fllm.deployment import reporting, submitting
from fllm.deployment.control import Control, FlowerRun, Node, RefusedCommand
from fllm.deployment.jobs import Job, read_job
from fllm.deployment.processes import free_port
from fllm.observer import Observer
from tests.fllm.conftest import Terminal

DONE = FlowerRun("42", "finished:completed", "", 61.0, 2_000, 3_000)
FAILED = FlowerRun("42", "finished:failed", "ServerApp failed with exception: round 2: no client", 61.0, 0, 0)


@pytest.fixture
def folder(terminal: Terminal, tmp_path: Path) -> Path:
    terminal(
        "federation", "init", tmp_path / "made", "--sites", 2, "--address", f"127.0.0.1:{free_port()}", "--insecure"
    )
    return tmp_path / "made"


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Return what a SuperLink, which is there in appearance alone, was asked."""
    asked: list[tuple[str, ...]] = []

    def call(_: Control, *arguments: str) -> dict:
        asked.append(arguments)
        return {"run-id": 42, "runs": [], "nodes": [], "node-id": 7}

    monkeypatch.setattr(Control, "_call", call)
    return asked


def test_init_says_what_goes_where(terminal: Terminal, tmp_path: Path) -> None:
    out, _ = terminal("federation", "init", tmp_path / "made", "--sites", "2", "--address", "fl.example.org:8443")
    for words in ("sites/site-0", "sites/site-1", "belongs to the site alone", "ca.key off the network", "superlink"):
        assert words in out.replace("\\", "/")
    _, err = terminal("federation", "init", tmp_path / "made", "--sites", "2", code=2)
    assert "is there already" in err


def test_folder_of_no_federation_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    for command in (["superlink"], ["status"], ["register"], ["submit"], ["stop", "study"]):
        _, err = terminal("federation", command[0], tmp_path, *command[1:], code=2)
        assert "make one with fllm federation init" in err
    _, err = terminal("federation", "supernode", tmp_path, code=2)
    assert "copy the site's folder" in err


def test_run_has_as_many_clients_as_sites(terminal: Terminal, folder: Path, superlink: list[tuple[str, ...]]) -> None:
    out, _ = terminal("federation", "submit", folder, "--name", "study", "--set", "num_rounds=3")
    assert "submitted study" in out
    assert superlink[-1][:4] == ("run", str(folder / "app"), "federation", "--run-config")
    assert superlink[-1][4] == 'job="study"'
    job = read_job(folder, "study")
    assert (job.config.num_clients, job.config.num_rounds) == (2, 3)
    assert job.command.startswith("fllm federation submit")
    _, err = terminal("federation", "submit", folder, "--set", "num_clients=3", code=2)
    assert "num_clients: is not the number of sites; expected 2; received 3" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from-round", "1"], "--from-round goes with --resume"),
        (["--resume", "study", "--set", "num_rounds=3"], "--resume takes no other option"),
        (["--resume", "study", "--name", "other"], "--resume takes no other option"),
        (["--resume", "study"], "no such job"),
        (["--name", "../study"], "not a folder name"),
        (["--set", "num_round=3"], "num_round: unknown key"),
        (["--set", "evaluate_only=true", "--set", "adapter=a"], "cannot be read|no such|nothing is trained"),
    ],
)
@pytest.mark.parametrize("command", ["submit", "simulate"])
def test_options_that_do_not_go_together(
    terminal: Terminal, folder: Path, command: str, options: list[str], words: str
) -> None:
    _, err = terminal("federation", command, folder, *options, code=2)
    assert any(word in err for word in words.split("|")), err
    assert not (folder / "jobs").exists()


def test_exit_code_tells_how_a_run_ended(
    terminal: Terminal, folder: Path, superlink: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's own command ends with 0 where a run failed."""
    ends = [DONE, FAILED]

    def follow(control: Control, number: str, file: Path, observer: Observer) -> FlowerRun:
        observer.round_done(
            {
                "round": 1, "train_loss": 1.5, "clients": 1, "uplink_bytes": 2000, "failures": ["no answer in time"],
                "ideal": {"accuracy": 0.5}, "hardware": {"accuracy": {"mean": 0.25}},
            }, 2,
        )  # fmt: skip
        return ends.pop(0)

    monkeypatch.setattr("fllm.deployment.following.follow", follow)
    out, _ = terminal("federation", "submit", folder, "--name", "study", "--stream")
    assert "round 1 of 2; loss 1.500; accuracy ideal 50.0%, device 25.0%; 1 sites, 2 kB up" in out
    assert "a site was left out: no answer in time" in out
    assert "completed in 61 s" in out
    _, err = terminal("federation", "submit", folder, "--name", "other", "--stream", code=1)
    assert err.startswith("failed: round 2: no client. Continue with: fllm federation submit")
    assert "--resume other" in err


@pytest.mark.parametrize(
    ("event", "code", "words"),
    [
        (
            RefusedCommand("no answer"),
            1,
            "failed: the SuperLink is gone (no answer). Start it again, then: fllm federation",
        ),
        (KeyboardInterrupt(), 130, "the run goes on. Stop it with: fllm federation stop"),
    ],
    ids=["server gone", "Ctrl-C"],
)
def test_watching_ends_before_the_run(
    terminal: Terminal, folder: Path, superlink: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch,
    event: BaseException, code: int, words: str,
) -> None:  # fmt: skip
    def follow(*_: object) -> FlowerRun:
        raise event

    monkeypatch.setattr("fllm.deployment.following.follow", follow)
    _, err = terminal("federation", "submit", folder, "--name", "study", "--stream", code=code)
    assert err.startswith(words)


def test_status_names_sites_and_runs(
    terminal: Terminal, folder: Path, superlink: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal("federation", "submit", folder, "--name", "study")
    (folder / "nodes").mkdir()
    (folder / "nodes" / "registered.json").write_text(json.dumps({"site-0": "7"}), encoding="utf-8")
    monkeypatch.setattr(Control, "nodes", lambda _: [Node("7", "online"), Node("8", "offline")])
    monkeypatch.setattr(Control, "runs", lambda _, number=None: [FAILED])
    out, _ = terminal("federation", "status", folder)
    assert out.splitlines() == [
        "1 of 2 sites online", "  site-0: online", "  node 8: offline",
        "study: finished:failed, 61 s, 0 kB from sites, 0 kB to them: round 2: no client",
    ]  # fmt: skip


def test_certificate_that_ends_soon_is_spoken_of(tmp_path: Path) -> None:
    from datetime import timedelta

    from fllm.deployment.certificates import end_of
    from fllm.deployment.folders import make_federation

    make_federation(tmp_path / "made", 1, "fl.example.org:8443", tls=True)
    file = tmp_path / "made" / "server.crt"
    assert reporting.certificate_lines(file, end_of(file) - timedelta(days=100)) == []
    (line,) = reporting.certificate_lines(file, end_of(file) - timedelta(days=10, hours=1))
    assert "ends in 10 days" in line


def test_run_is_stopped_by_its_name(terminal: Terminal, folder: Path, superlink: list[tuple[str, ...]]) -> None:
    terminal("federation", "submit", folder, "--name", "study")
    out, _ = terminal("federation", "stop", folder, "study")
    assert superlink[-1] == ("stop", "42", "federation")
    assert f"submit {folder} --resume study" in out
    _, err = terminal("federation", "stop", folder, "other", code=2)
    assert "no such run" in err


def test_site_says_what_it_reads_and_why_it_may_have_ended(
    terminal: Terminal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fllm.deployment.servers.run_supernode", lambda *_: 1)
    home = folder / "sites" / "site-1"
    out, err = terminal("federation", "supernode", home, code=1)
    assert "site 1 of 2 dials 127.0.0.1" in out
    assert "cases: a part of the made-up cohort" in out
    assert "is its key registered" in err
    text = (home / "site.yaml").read_text(encoding="utf-8").replace("data_dir: null", "data_dir: /srv/cases")
    (home / "site.yaml").write_text(text, encoding="utf-8")
    assert "cases: /srv/cases" in terminal("federation", "supernode", home, code=1)[0].replace("\\", "/")


def test_keys_are_registered_once(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal("federation", "init", tmp_path / "made", "--sites", 2, "--address", "fl.example.org:8443")
    known: list[str] = []

    def register(_: Control, key: Path) -> str:
        if key.stem in known:
            raise RefusedCommand("[code: 23] Public key already in use.")
        if known:
            raise RefusedCommand("[code: 99] out of order")
        known.append(key.stem)
        return "7"

    monkeypatch.setattr(Control, "register", register)
    _, err = terminal("federation", "register", tmp_path / "made", code=2)
    assert "out of order" in err
    assert json.loads((tmp_path / "made" / "nodes" / "registered.json").read_text(encoding="utf-8")) == {"site-0": "7"}
    known.append("site-1")
    out, _ = terminal("federation", "register", tmp_path / "made")
    assert out.splitlines() == ["site-0: is registered already", "site-1: is registered already"]


def test_insecure_federation_has_nothing_to_register(terminal: Terminal, folder: Path) -> None:
    _, err = terminal("federation", "register", folder, code=2)
    assert "sites have no keys; make the federation with --tls" in err


def test_server_that_is_not_there_is_one_line(terminal: Terminal, folder: Path) -> None:
    _, err = terminal("federation", "status", folder, code=2)
    assert "start it with fllm federation superlink" in err


def test_simulation_needs_ray(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    _, err = terminal("federation", "simulate", tmp_path / "made", "--name", "study", code=2)
    assert "Ray is not installed" in err
    assert not (tmp_path / "made").exists()


def test_simulation_ends_with_the_code_of_its_run(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated: list[tuple[Job, int]] = []

    def simulate(folder: Path, job: Job, workers: int, observer: Observer) -> FlowerRun:
        simulated.append((job, workers))
        return FAILED

    monkeypatch.setattr(submitting, "simulate", simulate)
    _, err = terminal(
        "federation", "simulate", tmp_path, "--name", "study", "--set", "num_clients=3", "--workers", "3", code=1
    )
    assert "failed: round 2: no client" in err
    (job, workers) = simulated[0]
    assert (job.name, job.config.num_clients, workers) == ("study", 3, 3)
