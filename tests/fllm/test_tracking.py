"""Trackers get each round once, never a case's text, and never stop a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fllm.tracking
from device_models import InputError
from fllm.config import RunConfig
from fllm.observer import Observer, Observers
from fllm.runs import Interrupted, RunResult, resume, run
from fllm.tracking import (
    ROUND_METRICS,
    MlflowJournal,
    TensorBoardJournal,
    Tracker,
    final_numbers,
    make_trackers,
    round_numbers,
    settings_of,
)
from tests.fllm.followed import example, follow
from tests.fllm.small import CANARY, SHORT, cohort_with_canary

ROOT = Path(fllm.tracking.__file__).parents[1]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read TensorBoard's events back: name to rounds and values."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(autouse=True)
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tester's own MLflow."""
    for name in [*fllm.tracking._MLFLOW_QUIET, *(name for name in os.environ if name.startswith("MLFLOW_"))]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return a run that both trackers followed: stopped after its first round, then resumed."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    names = ("tensorboard", "mlflow")

    class Stops(Observer):
        def round_done(self, row: Mapping[str, Any], total: int) -> None:
            if row["round"] == 1:
                raise KeyboardInterrupt

    out = tmp_path_factory.mktemp("tracked")
    data = cohort_with_canary(out / "secret-hospital")
    config = RunConfig(**SHORT | {"num_rounds": 2}, data_dir=str(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", lambda *_: None)
        with pytest.raises(Interrupted) as stopped:
            run(config, out=out, name="tracked", observer=Observers(*make_trackers(names), Stops()))
        return resume(stopped.value.folder, observer=Observers(*make_trackers(names)))


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store without runs; MLflow takes seconds to bring a new one up to its latest schema."""
    mlflow = pytest.importorskip("mlflow")
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def folder(empty_store: Path, tmp_path: Path) -> Path:
    """Return the folder of a run with an empty store."""
    made = tmp_path / "run"
    (made / "mlflow").mkdir(parents=True)
    shutil.copy(empty_store, made / "mlflow")
    return made


def stored_run(folder: Path) -> tuple[Any, Any]:
    """Return a client of the run's own store, and the one run in it."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "fllm"]
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def test_tensorboard_has_each_round_once_with_its_numbers(tracked: RunResult) -> None:
    found = scalars(tracked.folder)
    rounds = tracked.result["rounds"]
    assert [step for step, _ in found["accuracy/hardware"]] == [row["round"] for row in rounds] == [0, 1, 2]
    for row in rounds:
        for name, number in round_numbers(row).items():
            assert dict(found[name])[row["round"]] == pytest.approx(number, rel=1e-6), name
    for name, number in final_numbers(tracked.result["final"]).items():
        assert found[name] == [(2, pytest.approx(number, rel=1e-6))], name
    assert set(found) <= set(ROUND_METRICS) | set(final_numbers(tracked.result["final"]))


def test_tensorboard_knows_the_configuration(tracked: RunResult) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(tracked.folder / "tensorboard")).Reload()
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(start).hparams
    assert settings["num_clients"].number_value == SHORT["num_clients"]
    assert settings["device_model"].string_value == "gaincell_28nm"
    assert "_hparams_/session_end_info" in events.summary_metadata


def test_mlflow_has_each_round_once_in_one_run(tracked: RunResult) -> None:
    client, found = stored_run(tracked.folder)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "tracked"
    assert found.info.run_id == (tracked.folder / "mlflow" / "run_id.txt").read_text(encoding="utf-8").strip()
    for row in tracked.result["rounds"]:
        for name, number in round_numbers(row).items():
            values = [m.value for m in client.get_metric_history(found.info.run_id, name) if m.step == row["round"]]
            assert values == [number], name
    for name, number in final_numbers(tracked.result["final"]).items():
        assert found.data.metrics[name] == number, name
    assert found.data.params["lora.r"] == "8"
    assert found.info.artifact_uri.startswith(tracked.folder.resolve().as_uri())


def test_no_text_and_no_place_of_the_data_is_tracked(tracked: RunResult) -> None:
    files = [
        file for name in ("tensorboard", "mlflow") for file in (tracked.folder / name).rglob("*") if file.is_file()
    ]
    assert len(files) >= 3
    clients = [client["name"] for client in tracked.result["data"]["clients"]]
    for file in files:
        content = file.read_bytes()
        for word in (CANARY, "secret-hospital", "data_dir", *clients):
            assert word.encode() not in content, (file.name, word)


def test_tracking_changes_no_result(tracked: RunResult) -> None:
    """Nothing of a tracker stands in the record."""
    assert not {"tracking", "mlflow", "tensorboard"} & set(json.dumps(tracked.result).replace('"', " ").split())
    assert tracked.result["warnings"] == []


def test_interrupted_run_is_killed_and_goes_on(folder: Path) -> None:
    record = example()
    follow(make_trackers(["mlflow"])[0], record, folder, 1, "interrupted")
    assert stored_run(folder)[1].info.status == "KILLED"
    (tracker,) = make_trackers(["mlflow"])
    tracker.run_started(record, folder)
    assert stored_run(folder)[1].info.status == "RUNNING"
    tracker.run_ended({**record, "status": "running"})
    assert stored_run(folder)[1].info.status == "FAILED"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_tracker_that_joins_late_writes_what_it_missed(folder: Path, name: str) -> None:
    """A tracker that failed, or was not asked for before --resume, still has the whole run at the end."""
    pytest.importorskip(name)
    record = example()
    follow(make_trackers([name])[0], record, folder, 0, "interrupted")
    follow(make_trackers([name])[0], record, folder, len(record["rounds"]), "completed")
    if name == "tensorboard":
        steps = [step for step, _ in scalars(folder)["accuracy/ideal"]]
    else:
        client, found = stored_run(folder)
        steps = [metric.step for metric in client.get_metric_history(found.info.run_id, "accuracy/ideal")]
    assert steps == [row["round"] for row in record["rounds"]]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_round_that_was_not_evaluated_is_there_nevertheless(folder: Path, name: str) -> None:
    """It is not written a second time when the run goes on."""
    pytest.importorskip(name)
    record = example()
    record["rounds"][1] |= {"ideal": {}, "hardware": {}}
    follow(make_trackers([name])[0], record, folder, 1, "interrupted")
    follow(make_trackers([name])[0], record, folder, len(record["rounds"]), "completed")
    found = {}
    for metric in ("accuracy/ideal", "bytes/uplink"):
        if name == "tensorboard":
            found[metric] = [step for step, _ in scalars(folder)[metric]]
        else:
            client, stored = stored_run(folder)
            found[metric] = [one.step for one in client.get_metric_history(stored.info.run_id, metric)]
    rounds = [row["round"] for row in record["rounds"]]
    assert found["bytes/uplink"] == rounds
    assert found["accuracy/ideal"] == [number for number in rounds if number != 1]


def test_mlflow_run_that_another_store_has_is_begun_anew(folder: Path) -> None:
    (folder / "mlflow" / "run_id.txt").write_text("0123456789abcdef0123456789abcdef\n", encoding="utf-8")
    warned: list[str] = []
    follow(make_trackers(["mlflow"], warned.append)[0], example(), folder, 9, "completed")
    assert warned == []
    assert stored_run(folder)[1].info.status == "FINISHED"


def test_configured_store_is_respected(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mine.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "my experiment")
    follow(make_trackers(["mlflow"])[0], example(), tmp_path / "run", 1, "completed")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("my experiment")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert [file.name for file in (tmp_path / "run" / "mlflow").iterdir()] == ["run_id.txt"]


def test_local_store_in_a_folder_with_any_name(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    folder = tmp_path / "a b#100%é?x" / "run"
    folder.parent.mkdir()
    warned: list[str] = []
    follow(make_trackers(["mlflow"], warned.append)[0], example(), folder, 1, "completed")
    assert warned == []
    assert (folder / "mlflow" / "mlflow.db").is_file()


def test_server_that_is_down_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:password@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warned: list[str] = []
    follow(make_trackers(["mlflow"], warned.append)[0], example(), tmp_path / "run", 9, "completed")
    assert len(warned) == 1
    assert "mlflow tracks no longer" in warned[0]
    assert "password" not in warned[0]
    assert "\n" not in warned[0]


class Failing:
    """A journal that breaks at one of its steps."""

    def __init__(self, step: str) -> None:
        self.step, self.calls = step, 0

    def _meet(self, step: str) -> None:
        self.calls += 1
        if step == self.step:
            raise OSError(28, "No space left on device")

    def open(self, folder: Path, settings: Mapping[str, Any]) -> set[int]:
        self._meet("open")
        return set()

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._meet("write")

    def close(self, status: str) -> None:
        self._meet("close")


@pytest.mark.parametrize("step", ["open", "write", "close"])
def test_failure_is_told_once_and_stops_nothing(tmp_path: Path, step: str) -> None:
    record, journal, warned = example(), Failing(step), []
    rounds = len(record["rounds"]) - 1
    follow(Tracker("tensorboard", journal, warned.append), record, tmp_path / "run", rounds, "completed")
    assert len(warned) == 1
    assert "No space left on device" in warned[0]
    assert journal.calls == {"open": 1, "write": 2, "close": 1 + (rounds + 1) + 1 + 1}[step]


def test_run_whose_tracker_fails_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)
    warned: list[str] = []
    tracker = Tracker("tensorboard", Failing("write"), warned.append)
    result = run(RunConfig(**SHORT), out=tmp_path, name="run", observer=Observers(tracker)).result
    assert result["status"] == "completed"
    assert len(warned) == 1


def test_interruption_passes_through_a_tracker(tmp_path: Path) -> None:
    class Stops(Failing):
        def _meet(self, step: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tracker("mlflow", Stops(""), str).run_started(example(), tmp_path)


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fllm.tracking, "find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        with pytest.raises(InputError, match="not installed") as problem:
            make_trackers([name])
        assert f"pip install 'fllm[{name}]'" in str(problem.value)
        assert "\n" not in str(problem.value)


def test_unknown_tracker_lists_the_known() -> None:
    with pytest.raises(InputError, match="did you mean tensorboard"):
        make_trackers(["tensorbord"])
    assert make_trackers([]) == []


def test_names_given_twice_track_once() -> None:
    pytest.importorskip("tensorboard")
    assert len(make_trackers(["tensorboard", "tensorboard"])) == 1


def test_settings_are_plain_and_name_no_place() -> None:
    config = RunConfig(
        data_dir="/home/anna/mimic", model="/home/anna/models/tiny", device_model="/home/anna/mine.yaml",
        network="/home/anna/link.yaml", device={"readout.bits": 6}, adapter="/home/anna/runs/first",
    ).model_dump()  # fmt: skip
    settings = settings_of(config)
    assert settings["device.readout.bits"] == 6
    assert settings["lora.r"] == 8
    assert (settings["model"], settings["device_model"], settings["network"]) == ("tiny", "mine.yaml", "link.yaml")
    assert settings["adapter"] == "first"
    assert "data_dir" not in settings
    assert not any("anna" in str(value) for value in settings.values())
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


def test_numbers_that_are_not_known_are_left_out() -> None:
    record = example()
    first = round_numbers(record["rounds"][0])
    assert "train_loss_nat" not in first and "per_token/energy_j" not in first
    assert set(round_numbers(record["rounds"][1])) == set(ROUND_METRICS)
    assert final_numbers({"accuracy_ideal": 0.5, "gap_closed": None}) == {"final/accuracy_ideal": 0.5}


_OFFLINE = """
import socket, sys, threading
from pathlib import Path
asked = []
def refuse(self, address):
    asked.append(address)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *a, **k: refuse(None, a)
from tests.fllm.followed import example, follow
from fllm.tracking import make_trackers
warned = []
follow(make_trackers(["mlflow"], warned.append)[0], example(), Path(sys.argv[1]), 9, "completed")
import time; time.sleep(0.3)
from mlflow.telemetry import get_telemetry_client
print(asked, warned, get_telemetry_client(), [t.name for t in threading.enumerate() if "elemetry" in t.name])
"""


def test_mlflow_sends_nothing_anywhere(tmp_path: Path) -> None:
    """In a process of its own, because MLflow holds its telemetry back inside pytest anyway."""
    pytest.importorskip("mlflow")
    told = {"PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"}
    environment = {key: value for key, value in os.environ.items() if key not in told} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE, str(tmp_path / "run")], env=environment, cwd=tmp_path, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] [] None []"
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


def test_journals_need_their_library_only_when_they_open() -> None:
    assert TensorBoardJournal() and MlflowJournal()
