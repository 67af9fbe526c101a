"""The two applications that Flower's processes load, called as those call them, in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

import fllm.federation.apps as apps
from device_models import InputError
from fllm.config import RunConfig
from fllm.data import write_cohort
from fllm.deployment.folders import make_federation
from fllm.deployment.jobs import BASE, RUN, Job, site_run, told, write_job
from fllm.deployment.settings import read_site
from fllm.federation.client_app import ARRAYS, CONFIG, HELLO, METRICS, PARTITION
from fllm.federation.engines import InProcessGrid, name_this_process
from fllm.preparation import load_hospital
from fllm.results import read_result
from fllm.runs import run
from tests.fllm.calibrated_once import calibrated_once
from tests.fllm.small import CANARY, SHORT

SETTINGS = SHORT | {"num_clients": 2, "wire": "int8"}  # rounding, so that clients keep something


@pytest.fixture(scope="module", autouse=True)
def _calibrated_once() -> Iterator[None]:
    with calibrated_once():
        yield


@pytest.fixture(autouse=True)
def _as_in_new_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.set_num_threads(1)
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)
    for kept in (apps._untold, apps._at_site, apps._simulated):
        kept.cache_clear()
    yield
    for kept in (apps._untold, apps._at_site, apps._simulated):
        kept.cache_clear()  # models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a federation, whose server these processes are of."""
    make_federation(tmp_path / "federation", 2, "127.0.0.1:8000", tls=False)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "federation" / "flwr"))
    return tmp_path / "federation"


def job_of(folder: Path, **changes: object) -> Job:
    job = Job("study", RunConfig(**SETTINGS | changes), "0123456789abcdef", "a test")
    write_job(folder, job)
    return job


def site_file(folder: Path, number: int, **changes: object) -> Path:
    file = folder / "sites" / f"site-{number}" / "site.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(settings | changes), encoding="utf-8")
    return file


def grid_of(folder: Path, sites: bool) -> InProcessGrid:
    """Return a grid to the application: as SuperNodes name their site, or as the simulation does not."""
    grid = InProcessGrid(apps.client_app, 2)
    for number, context in enumerate(grid._contexts.values()):
        context.run_config = {"job": "study"}
        if sites:
            context.node_config[apps.SITE] = str(site_file(folder, number))
    return grid


def serve(folder: Path, *, sites: bool) -> dict:
    apps.server_app(grid_of(folder, sites), Context(1, 0, {}, RecordDict(), {"job": "study"}))
    return read_result(folder / "runs" / "study" / "result.json")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the record of the same run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", lambda *_: None)
        folder = run(RunConfig(**SETTINGS), out=tmp_path_factory.mktemp("reference"), name="reference").folder
    return read_result(folder / "result.json")


@pytest.mark.parametrize("sites", [True, False], ids=["sites", "simulated"])
def test_sites_give_what_clients_of_one_process_give(folder: Path, sites: bool, reference: dict) -> None:
    job = job_of(folder)
    record = serve(folder, sites=sites)
    assert record["status"] == "completed"
    assert record["command"] == "a test"
    assert record["rounds"] == reference["rounds"]
    for number in (0, 1):
        kept = list((folder / "sites" / f"site-{number}" / "state" / job.token).rglob("round-00001.safetensors"))
        assert len(kept) == sites
    assert not (folder / "runs" / "study" / "clients").exists()


def test_site_trains_on_its_own_cases_alone(folder: Path, tmp_path: Path) -> None:
    write_cohort(tmp_path / "cases", 20, n_hospitals=2, seed=5)
    site = read_site(site_file(folder, 1, data_dir=str(tmp_path / "cases")))
    found = site_run(told(job_of(folder)), site)
    hospital, _, _ = load_hospital(found.config, 1, own_cases=found.own_cases)
    assert len(hospital.prompts) == 15  # five of the twenty are held out, some of each diagnosis
    assert hospital.partition == 1  # its seeds and its chip are those of its place in the federation


def message_to(folder: Path, **changes: str) -> tuple[Message, Context]:
    """Return a message to train, and the context of the first site."""
    name_this_process()
    config = ConfigRecord({"server-round": 1, RUN: told(job_of(folder)), BASE: "0" * 64, **changes})
    content = RecordDict({ARRAYS: ArrayRecord({"a": torch.zeros(1)}), CONFIG: config})
    message = Message(content, dst_node_id=1, message_type="train")
    site = str(site_file(folder, 0))
    return message, Context(1, 1, {PARTITION: 0, apps.SITE: site}, RecordDict(), {"job": "study"})


def test_site_with_another_base_model_trains_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reply = apps.client_app(*message_to(folder))
    assert (reply.error.code, reply.error.reason) == (2, "InputError")
    assert "model shipped: is another base model than the server's; expected '000000000000'" in (
        capsys.readouterr().err.replace("expected 000000000000", "expected '000000000000'")
    )


def test_run_that_a_site_refuses_is_told_to_its_operator_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = json.loads(told(job_of(folder)))
    plain["config"]["data_dir"] = "/srv/secret"
    reply = apps.client_app(*message_to(folder, **{RUN: json.dumps(plain)}))
    assert reply.error.reason == "InputError"
    assert "error: run of the server: names paths: data_dir" in capsys.readouterr().err


def test_mistake_at_a_site_says_where_and_quotes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError(f"cannot tokenise {CANARY}")

    monkeypatch.setattr("fllm.preparation.load_hospital", broken)
    reply = apps.client_app(*message_to(folder))
    assert reply.error.reason == "ValueError"
    shown = capsys.readouterr()
    assert "internal error: ValueError" in shown.err
    assert "in broken" in shown.err
    assert CANARY not in shown.err + shown.out


def test_message_without_a_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message, context = message_to(folder)
    del message.content[CONFIG][RUN]
    assert apps.client_app(message, context).error.reason == "InputError"
    assert "a message without a run" in capsys.readouterr().err


def test_mistake_at_the_server_quotes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr("fllm.runs.run", broken)
    job_of(folder)
    with pytest.raises(apps.ServerFailed, match=r"^ValueError$") as failed:
        serve(folder, sites=True)
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    assert CANARY not in capsys.readouterr().err


def test_two_processes_do_not_work_on_one_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "PATIENCE_S", 0.1)
    job_of(folder)
    with (
        FileLock(folder / "jobs" / "study.lock"),
        pytest.raises(InputError, match="study: another process works on this run"),
    ):
        serve(folder, sites=True)
    assert not (folder / "runs").exists()


def test_job_that_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such job; submit it with fllm federation submit"):
        serve(folder, sites=True)
    monkeypatch.delenv("FLWR_HOME")
    with pytest.raises(InputError, match="FLWR_HOME is not set"):
        serve(folder, sites=True)


def test_site_says_who_it_is_without_loading_a_model() -> None:
    """In a deployment each message has a process of its own, and imports take longer than the answer."""
    code = f"""
import sys
from flwr.app import Context, Message, RecordDict
from fllm.federation.apps import client_app
from fllm.federation.engines import name_this_process
name_this_process()
message = Message(RecordDict(), dst_node_id=1, message_type={HELLO!r})
reply = client_app(message, Context(1, 1, {{{PARTITION!r}: 1}}, RecordDict(), {{}}))
assert reply.content[{METRICS!r}][{PARTITION!r}] == 1
assert "transformers" not in sys.modules and "peft" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
