"""The federation as real Flower processes gives what it gives in one process, and goes on where parts of it die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fllm.config import RunConfig
from fllm.results import read_result
from fllm.runs import RunResult, run
from tests.end_to_end.deployed import (
    Deployed,
    deployed,
    foreign_sockets,
    is_of_this_machine,
    processes_of,
    record_of,
    rounds_done,
    wait_until,
)
from tests.fllm.small import TINY

DEPLOYED = TINY | {"num_clients": 2}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return the same run in one process."""
    return run(RunConfig(**DEPLOYED), out=tmp_path_factory.mktemp("reference"), name="reference")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("config") / "run.yaml"
    file.write_text(yaml.safe_dump(DEPLOYED), encoding="utf-8")
    return file


def assert_same_rounds(record: dict[str, Any], reference: RunResult) -> None:
    assert record["status"] == "completed"
    expected = read_result(reference.folder / "result.json")
    assert record["rounds"][-1]["adapter_sha256"] == expected["rounds"][-1]["adapter_sha256"]
    assert record["rounds"] == expected["rounds"]


@SLOW
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_processes_give_what_one_process_gives(tls: bool, tmp_path: Path, config: Path, reference: RunResult) -> None:
    with deployed(tmp_path, tls=tls) as federation:
        shown = federation.call("submit", federation.folder, "--config", config, "--name", "study", "--stream")
        assert "round 2 of 2" in shown
        assert_same_rounds(record_of(federation.folder, "study"), reference)
        status = federation.call("status", federation.folder)
        assert "2 of 2 sites online" in status
        assert "study: finished:completed, round 2 of 2" in status
        assert ("site-0: online" in status) is tls
        again = federation.call("submit", federation.folder, "--config", config, "--name", "study", code=2)
        assert "a run is there already" in again
    assert not foreign_sockets(federation.socket_log)


@SLOW
def test_node_that_is_not_registered_is_refused(tmp_path: Path) -> None:
    federation = Deployed(tmp_path, tls=True)
    try:
        federation.start_superlink()
        stranger = federation.start_site(0)
        assert stranger.wait(120) == 1
        assert "0 of 2 sites online" in federation.call("status", federation.folder)
        assert "is its key registered" in federation.logs()
        assert "site-0: registered" in federation.call("register", federation.folder)
        assert "site-0: is registered already" in federation.call("register", federation.folder)
        federation.start_site(0)
        wait_until(lambda: federation.online() == 1, "the site is online")
    finally:
        federation.close()
    assert not foreign_sockets(federation.socket_log)


@SLOW
def test_round_ends_without_a_site_that_was_killed(tmp_path: Path, config: Path) -> None:
    with deployed(tmp_path, tls=False) as federation:
        federation.start("run", "submit", federation.folder, "--config", config, "--name", "study", "--stream")
        wait_until(lambda: "Receiving: train message" in federation.log_of("site-1"), "the first round begins")
        federation.kill_site(1)
        wait_until(lambda: rounds_done(federation.folder, "study") >= 1, "the round ends", 600)
        wait_until(lambda: record_of(federation.folder, "study")["status"] == "completed", "the run ends", 600)
        first = record_of(federation.folder, "study")["rounds"][1]
        assert first["clients"] == 1
        assert len(first["failures"]) == 1


@SLOW
@pytest.mark.parametrize("victim", ["serverapp", "superlink"])
def test_run_goes_on_after_the_server_was_killed(
    victim: str, tmp_path: Path, config: Path, reference: RunResult
) -> None:
    with deployed(tmp_path, tls=False) as federation:
        submitted = federation.start(
            "run", "submit", federation.folder, "--config", config, "--name", "study", "--stream"
        )
        wait_until(lambda: rounds_done(federation.folder, "study") == 1, "a round is done")
        if victim == "serverapp":
            federation.kill("flwr-serverapp")
        else:
            federation.kill_superlink()
            wait_until(lambda: not processes_of("flwr-serverapp", federation.folder), "its parts have ended")
            federation.start_superlink()
            wait_until(lambda: federation.online() == 2, "the sites have found it again")
        wait_until(lambda: "finished:failed" in federation.call("status", federation.folder), "the run is given up")
        if victim == "serverapp":
            assert submitted.wait(60) == 1
        assert record_of(federation.folder, "study")["status"] != "completed"
        federation.call("submit", federation.folder, "--resume", "study", "--stream")
        assert_same_rounds(record_of(federation.folder, "study"), reference)


@SLOW
def test_simulation_under_ray_gives_what_one_process_gives(tmp_path: Path, config: Path, reference: RunResult) -> None:
    pytest.importorskip("ray")
    federation = Deployed(tmp_path, tls=False)
    folder = tmp_path / "simulated"
    assert "round 2 of 2" in federation.call("simulate", folder, "--config", config, "--name", "study")
    assert_same_rounds(record_of(folder, "study"), reference)
    assert not processes_of("flower-superlink", folder)


def test_addresses_beyond_this_machine_are_told_from_others() -> None:
    for shown in ("('127.0.0.1', 80)", "('::1', 80, 0, 0)", "'/run/socket'", "'localhost'", "None", "b'/run/socket'"):
        assert is_of_this_machine(shown), shown
    for shown in ("('10.0.0.1', 80)", "'telemetry.flower.ai'", "('0.0.0.0', 80)", "b'telemetry.flower.ai'"):
        assert not is_of_this_machine(shown), shown
