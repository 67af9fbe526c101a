"""An interrupted run ends as an uninterrupted one, wherever it was stopped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel

import fllm.runs
import fllm.trained
from device_models import InputError
from fllm import cli
from fllm.checkpoints import load_checkpoint, save_checkpoint
from fllm.config import RunConfig
from fllm.data import write_cohort
from fllm.model.adapters import adapter_digest, read_adapter
from fllm.model.identity import AdapterIdentity
from fllm.observer import Observer
from fllm.results import read_result
from fllm.runs import Interrupted, RunResult, resume, run
from tests.conftest import sketched
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import TINY, copied, edit_json


def assert_same_end(folder: Path, finished: RunResult) -> None:
    record = read_result(folder / "result.json")
    assert record["status"] == "completed"
    for name in ("rounds.csv", "clients.csv", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    assert record["rounds"] == json.loads(json.dumps(finished.result["rounds"]))
    assert not (folder / "adapter.next").exists()
    assert not (folder / "state").exists()
    ours, theirs = record["final"], finished.result["final"]
    for key in set(theirs) - {"wall_seconds", "peak_memory_bytes"}:
        assert ours[key] == theirs[key], key
    assert figures_of(folder).keys() == figures_of(finished.folder).keys()


def figures_of(folder: Path) -> dict[str, bytes]:
    return {figure.name: figure.read_bytes() for figure in (folder / "figures").iterdir()}


def test_interrupted_run_says_so_and_has_a_report(interrupted: Path) -> None:
    record = read_result(interrupted / "result.json")
    assert record["status"] == "interrupted"
    assert [row["round"] for row in record["rounds"]] == [0, 1]
    digest = adapter_digest(read_adapter(interrupted / "adapter"))
    assert digest == record["rounds"][-1]["adapter_sha256"]
    assert (interrupted / "report.html").is_file()


def test_resumed_run_ends_like_an_uninterrupted_one(interrupted: Path, finished: RunResult, tmp_path: Path) -> None:
    folder = copied(interrupted, tmp_path / "run")
    created = read_result(folder / "result.json")["created"]
    result = resume(folder).result
    assert_same_end(folder, finished)
    assert figures_of(folder) == figures_of(finished.folder)
    assert result["created"] == created


def killed_while_writing_the_next_adapter(folder: Path) -> None:
    (folder / "adapter.next").mkdir()
    (folder / "adapter.next" / "adapter_model.safetensors").write_bytes(b"half a fi")


def killed_before_the_adapter_was_put_in_place(folder: Path) -> None:
    (folder / "adapter").rename(folder / "adapter.next")


def killed_without_a_word(folder: Path) -> None:
    edit_json(folder / "result.json", status="running")
    (folder / "report.html").unlink()


@pytest.mark.usefixtures("_blank_figures")
@pytest.mark.parametrize(
    "death",
    [killed_while_writing_the_next_adapter, killed_before_the_adapter_was_put_in_place, killed_without_a_word],
)
def test_killed_run_resumes_too(
    interrupted: Path, finished: RunResult, tmp_path: Path, death: Callable[[Path], None]
) -> None:
    folder = copied(interrupted, tmp_path / "run")
    death(folder)
    resume(folder)
    assert_same_end(folder, finished)


@pytest.mark.usefixtures("_blank_figures")
@pytest.mark.parametrize("moment", ["before the adapter is saved", "after the adapter is saved"])
def test_interruption_in_the_middle_of_saving(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A round that is recorded has its adapter on disk, and the former adapter stays until then."""
    saved = fllm.trained.save_adapter
    calls = []

    def save_and_stop(model: PeftModel, folder: Path, identity: AdapterIdentity) -> None:
        calls.append(folder)
        if moment.startswith("after") or len(calls) < 2:
            saved(model, folder, identity)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("fllm.trained.save_adapter", save_and_stop)
    folder = interrupt(RunConfig(**TINY), tmp_path, Observer())
    monkeypatch.undo()
    assert len(calls) == 2
    resume(folder)
    assert_same_end(folder, finished)


@pytest.mark.usefixtures("_blank_figures")
def test_run_interrupted_at_one_stage_after_another_is_resumable(finished: RunResult, tmp_path: Path) -> None:
    class Stops(Observer):
        def __init__(self, at: str) -> None:
            self.at = at

        def stage(self, what: str) -> None:
            if what == self.at:
                raise KeyboardInterrupt

    folder = interrupt(RunConfig(**TINY), tmp_path, Stops("training round 1"))
    recorded = [read_result(folder / "result.json")]
    for stage in ("evaluating round 1", "training round 2", "writing the report"):
        with pytest.raises(Interrupted):
            resume(folder, observer=Stops(stage))
        recorded.append(read_result(folder / "result.json"))
    assert [record["status"] for record in recorded] == ["interrupted"] * 4
    assert [len(record["rounds"]) for record in recorded] == [1, 1, 2, 3]
    resume(folder)
    assert_same_end(folder, finished)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was stopped after its last round; tests copy it."""
    with sketched():
        return interrupt(RunConfig(**TINY), tmp_path_factory.mktemp("trained"), StopsAfter(2))


@pytest.mark.usefixtures("_blank_figures")
def test_run_interrupted_after_its_last_round_only_needs_its_report(
    trained: Path, finished: RunResult, tmp_path: Path
) -> None:
    folder = copied(trained, tmp_path / "run")
    rounds = []

    class Listening(Observer):
        def stage(self, what: str) -> None:
            if what.startswith("evaluating round"):
                rounds.append(what)

    resume(folder, observer=Listening())
    assert rounds == []
    assert_same_end(folder, finished)


def test_completed_run_is_not_resumed(finished: RunResult) -> None:
    with pytest.raises(InputError, match="the run is complete"):
        resume(finished.folder)


@pytest.mark.usefixtures("_blank_figures")
def test_published_adapter_is_put_back(interrupted: Path, finished: RunResult, tmp_path: Path) -> None:
    """It is for the user; runs go on from their checkpoint."""
    folder = copied(interrupted, tmp_path / "run")
    shutil.rmtree(folder / "adapter")
    resume(folder)
    assert_same_end(folder, finished)


def test_checkpoint_that_is_gone_is_refused(interrupted: Path, tmp_path: Path) -> None:
    folder = copied(interrupted, tmp_path / "run")
    shutil.rmtree(folder / "state")
    before = (folder / "result.json").read_bytes()
    with pytest.raises(InputError, match="the checkpoint of round 1 is gone"):
        resume(folder)
    with pytest.raises(InputError, match="there is no checkpoint to go on from"):
        resume(folder, from_round=1)
    assert (folder / "result.json").read_bytes() == before


def test_checkpoint_of_another_run_is_refused(interrupted: Path, tmp_path: Path) -> None:
    folder = copied(interrupted, tmp_path / "run")
    whole = load_checkpoint(folder, 1)
    save_checkpoint(folder, replace(whole, adapter={name: 2 * tensor for name, tensor in whole.adapter.items()}))
    with pytest.raises(InputError, match="of another run"):
        resume(folder)


@pytest.mark.usefixtures("_blank_figures")
def test_run_goes_on_from_the_round_before_a_damaged_checkpoint(
    trained: Path, finished: RunResult, tmp_path: Path
) -> None:
    folder = copied(trained, tmp_path / "run")
    (damaged,) = (folder / "state" / "round-00002").glob("adapter*")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"round 2 is damaged.*--from-round 1"):
        resume(folder)
    with pytest.raises(InputError, match="no such round"):
        resume(folder, from_round=3)
    resume(folder, from_round=1)
    assert_same_end(folder, finished)


@pytest.mark.usefixtures("_blank_figures")
def test_interruption_while_the_report_is_drawn_loses_nothing(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = fllm.runs.render

    def stop_at_the_end(record: dict, folder: Path) -> object:
        if record["status"] == "completed":
            raise KeyboardInterrupt
        return drawn(record, folder)

    monkeypatch.setattr("fllm.runs.render", stop_at_the_end)
    folder = interrupt(RunConfig(**TINY), tmp_path, Observer())
    monkeypatch.undo()
    resume(folder)
    assert_same_end(folder, finished)


ADAPTIVE = {"strategy": {"kind": "fedadam"}, "optimiser": "sgd", "learning_rate": 1.0, "lora_baselines": []}


@pytest.mark.usefixtures("_blank_figures")
def test_moments_of_the_server_are_kept(tmp_path: Path) -> None:
    config = RunConfig(**TINY | ADAPTIVE)
    whole = run(config, out=tmp_path, name="whole")
    folder = interrupt(config, tmp_path, StopsAfter(1))
    resume(folder)
    assert_same_end(folder, whole)


@pytest.mark.parametrize(("what", "key"), [("model", "sha256"), ("device", "file_sha256")])
def test_changed_model_or_device_is_refused(interrupted: Path, tmp_path: Path, what: str, key: str) -> None:
    folder = copied(interrupted, tmp_path / "run")
    record = read_result(folder / "result.json")
    edit_json(folder / "result.json", **{what: record[what] | {key: "0" * 64}})
    with pytest.raises(InputError, match=f"the {what} changed since the run began"):
        resume(folder)


@pytest.mark.usefixtures("_blank_figures")
def test_changed_data_are_refused(tmp_path: Path) -> None:
    data = write_cohort(tmp_path / "data", 60, n_hospitals=3, seed=0)
    folder = interrupt(RunConfig(**TINY, data_dir=str(data)), tmp_path, StopsAfter(0))
    file = data / "physical_examination.csv"
    original = file.read_text(encoding="utf-8")
    file.write_text(original + "\n", encoding="utf-8")
    before = (folder / "result.json").read_bytes()
    with pytest.raises(InputError, match="the data changed since the run began"):
        resume(folder)
    assert (folder / "result.json").read_bytes() == before


# Through the command line.


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["fllm-run", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run_main()
    return int(stop.value.code or 0)


def test_command_line_refuses_what_cannot_go_on(
    finished: RunResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    for arguments, what in (
        (["--resume", finished.folder], "the run is complete"),
        ([*settings, "--out", finished.folder.parent, "--name", finished.folder.name], "a run is there already"),
    ):
        assert call(monkeypatch, *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert what in lines[0]


@pytest.mark.usefixtures("_blank_figures")
def test_command_line_tells_how_to_go_on(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    shown = cli._Terminal.round_done

    def stop_after_one(self: cli._Terminal, row: dict, total: int) -> None:
        shown(self, row, total)
        if row["round"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli._Terminal, "round_done", stop_after_one)
    assert call(monkeypatch, *settings, "--out", tmp_path, "--name", "run") == 130
    assert f"fllm-run --resume {tmp_path / 'run'}" in capsys.readouterr().err
    monkeypatch.setattr(cli._Terminal, "round_done", shown)
    assert call(monkeypatch, "--resume", tmp_path / "run") == 0
    assert "report.html" in capsys.readouterr().out
    assert_same_end(tmp_path / "run", finished)


def test_interruption_before_the_first_round_leaves_nothing_to_resume(tmp_path: Path) -> None:
    class Stops(Observer):
        def stage(self, what: str) -> None:
            if what == "loading the model":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(RunConfig(**TINY), out=tmp_path / "out", name="run", observer=Stops())
    assert not isinstance(stopped.value, Interrupted)
    assert not (tmp_path / "out").exists()
