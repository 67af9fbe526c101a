"""A sweep ends the same however often it was stopped, computes nothing twice, and takes no other one's rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import fllm.runs
import fllm.sweeps.sweep
from device_models import InputError
from device_models.costs import PARTS
from device_models.loading import preset_folder
from fllm.config import RunConfig
from fllm.data import load_cohort, write_cohort
from fllm.observer import SweepObserver
from fllm.results import read_result
from fllm.runs import RunResult
from fllm.sweeps.engines import ENGINES
from fllm.sweeps.plan import Plan
from fllm.sweeps.sweep import How, SweepInterrupted, SweepResult, resume, sweep
from fllm.sweeps.table import Table, columns_of, energy_column
from tests.fllm.small import SHIPPED, copied, edit_json
from tests.sweeps.killing import die_after_rows, die_before_replacing, killed
from tests.sweeps.pretending import FAILS, Pretender, files
from tests.sweeps.small import SMALLEST, in_this_process, make, without_reports

IDLE = RunConfig(**SMALLEST, device={"refresh.kind": "periodic", "refresh.interval": "1 s"})
"""A device whose refresh never acts: each point has a warning."""


def four_points() -> Plan:
    return make("retention.tau=1 ms,5 ms", "readout.bits=3,5", config=IDLE)


def content(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """Return the table of a sweep, and what its record says but for the clock."""
    record = read_result(folder / "result.json")
    for key in ("created", "name", "command"):
        del record[key]
    if record["final"]:
        del record["final"]["wall_seconds"]
    return (folder / "table.csv").read_bytes(), record


def assert_same_end(folder: Path, reference: Path) -> None:
    (table, record), (expected_table, expected) = content(folder), content(reference)
    assert record["status"] == "completed"
    assert table == expected_table
    for key in expected:
        assert record[key] == expected[key], key


class Stops(SweepObserver):
    """The user presses Ctrl-C at a stage, or when so many evaluations are done."""

    def __init__(self, stage: str | None = None, rows: int | None = None, round_: int | None = None) -> None:
        self._stage, self._rows, self._round, self._done = stage, rows, round_, 0

    def stage(self, what: str) -> None:
        if what == self._stage:
            raise KeyboardInterrupt

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        if row["round"] == self._round:
            raise KeyboardInterrupt

    def rows_done(self, number: int, reason: str | None) -> None:
        self._done += number
        if self._rows is not None and self._done >= self._rows:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def reference(trained: RunResult, worker: Any, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """Return the sweep of four points, never stopped."""
    with pytest.MonkeyPatch.context() as patch, without_reports():
        patch.setitem(ENGINES, "local", in_this_process(worker))
        return sweep(four_points(), adapters=[trained.folder], out=tmp_path_factory.mktemp("out"), name="reference")


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretender]:
    """Let sweeps invent their rows."""
    made = Pretender()
    monkeypatch.setitem(ENGINES, "local", in_this_process(made))
    with without_reports():
        yield made


# What a sweep leaves.


def test_record_is_that_of_the_contract(reference: SweepResult, trained: RunResult) -> None:
    record, run = read_result(reference.folder / "result.json"), trained.result
    assert record == json.loads(json.dumps(reference.result))
    assert (record["kind"], record["status"], record["mode"]) == ("sweep", "completed", "evaluate")
    assert record["name"] == "reference"
    assert {key: record["design"][key] for key in ("kind", "points", "seed")} == {
        "kind": "grid",
        "points": 4,
        "seed": 0,
    }
    assert (record["dies"], record["seeds"]) == (1, [0])
    tau, read = record["keys"]
    assert {name: tau[name] for name in ("key", "unit", "ordered", "column", "values", "spec", "base", "base_si")} == {
        "key": "retention.tau", "unit": "s", "ordered": True, "column": "retention.tau_s", "values": ["1 ms", "5 ms"],
        "spec": "1 ms,5 ms", "base": "5 ms", "base_si": 0.005,
    }  # fmt: skip
    assert (read["unit"], read["column"], read["values"], read["base"]) == (None, "readout.bits", [3, 5], 5)
    for key in ("data", "model", "baselines", "not_modelled"):
        assert record[key] == json.loads(json.dumps(run[key])), key
    for key in ("name", "title", "file_sha256", "values", "token_period", "activation"):
        assert key in record["device"]
    (adapter,) = record["adapters"]
    expected = {"seed": 0, "run": "trained", "sha256": run["final"]["adapter_sha256"], "device": "gaincell_28nm",
                "rounds": 1, "test_cases": 8}  # fmt: skip
    assert {key: adapter[key] for key in expected} == expected
    assert [point["base"] for point in record["points"]] == [False, False, False, True]
    assert [point["point"] for point in record["points"]] == [0, 1, 2, 3]
    assert record["points"][1]["settings"] == {"retention.tau": "1 ms", "readout.bits": 5}
    assert record["points"][1]["values"] == {"retention.tau": 0.001, "readout.bits": 5}
    assert all(point["warnings"][0].startswith("no effect of refresh") for point in record["points"])
    assert record["final"]["failed"] == 0


def test_rows_have_all_columns_and_are_those_of_the_table(reference: SweepResult) -> None:
    rows = read_result(reference.folder / "result.json")["rows"]
    columns = columns_of(["retention.tau_s", "readout.bits"])
    assert all(set(row) == set(columns) for row in rows)
    assert [(row["point"], row["seed"], row["die"], row["status"]) for row in rows] == [
        (point, 0, 0, "ok") for point in range(4)
    ]
    assert [row["retention.tau_s"] for row in rows] == [0.001, 0.001, 0.005, 0.005]
    assert Table(reference.folder / "table.csv", columns).rows == rows
    assert not [key for row in rows for key, value in row.items() if value is None and key != "reason"]
    for row in rows:
        parts = sum(row[energy_column(part)] for part in PARTS)
        assert parts == pytest.approx(row["energy_per_token_j"], rel=1e-9, abs=0.0)


def test_nothing_else_is_left_in_the_folder(reference: SweepResult) -> None:
    assert files(reference.folder) == {"result.json", "table.csv", "report.html", ".lock"}


def test_report_of_a_sweep_is_written(trained: RunResult, worker: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(ENGINES, "local", in_this_process(worker))
    folder = sweep(make("token_period=auto,1 us"), adapters=[trained.folder], out=tmp_path, name="s").folder
    assert {"report.html", "report.md"} <= files(folder)
    rows = read_result(folder / "result.json")["rows"]
    assert [type(row["token_period_s"]) for row in rows] == [float] * 3
    assert [row["token_period_s"] for row in rows][1:] == [1e-6, 1e-5]


# Killed without a word.


@pytest.mark.parametrize(("rows", "share"), [(0, 0.0), (2, 1 - 1e-9), (4, 0.0)])
def test_killed_sweep_ends_like_an_uninterrupted_one(
    rows: int, share: float, reference: SweepResult, trained: RunResult, light: None, tmp_path: Path
) -> None:
    def run_and_die() -> None:
        die_after_rows(rows, share)
        if rows == 4:
            die_before_replacing("table.csv", 2)  # its heading was the first
        sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="killed")

    killed(run_and_die)
    folder = tmp_path / "killed"
    assert read_result(folder / "result.json")["status"] == "running"
    lines = (folder / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + rows + (share > 0)
    resume(folder)
    assert_same_end(folder, reference.folder)


@pytest.mark.parametrize("times", [1, 2])
def test_sweep_killed_while_it_writes_its_record(
    times: int, reference: SweepResult, trained: RunResult, light: None, tmp_path: Path
) -> None:
    """The first time nothing is there yet, and the sweep starts anew."""

    def run_and_die() -> None:
        die_before_replacing("result.json", times)
        sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="killed")

    killed(run_and_die)
    if times == 1:
        with pytest.raises(InputError, match="no such file"):
            resume(tmp_path / "killed")
        sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="killed")
    else:
        resume(tmp_path / "killed")
    assert_same_end(tmp_path / "killed", reference.folder)


def test_sweep_killed_again_and_again(
    trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:  # fmt: skip
    """Each session adds one row of twelve."""
    plan = make("readout.bits=3:8", dies=2)
    sweep(plan, adapters=[trained.folder], out=tmp_path, name="whole")

    def add_one(start: bool) -> Callable[[], object]:
        def run_and_die() -> None:
            die_after_rows(1, 0.7)
            if start:
                sweep(plan, adapters=[trained.folder], out=tmp_path, name="killed")
            else:
                resume(tmp_path / "killed")

        return run_and_die

    for session in range(10):
        killed(add_one(session == 0))
        rows = (tmp_path / "killed" / "table.csv").read_text(encoding="utf-8").splitlines()[1:]
        assert len(rows) == session + 2  # the last is torn
    resume(tmp_path / "killed")
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


# Stopped by the user.


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_interrupted_sweep_says_so_and_is_finished_later(
    rows: int, trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:
    whole = sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="whole")
    pretender.tasks.clear()
    with pytest.raises(SweepInterrupted) as stopped:
        sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="stopped", observer=Stops(rows=rows))
    folder = tmp_path / "stopped"
    record = read_result(folder / "result.json")
    assert (stopped.value.folder, record["status"], record["final"]) == (folder, "interrupted", None)
    assert len(record["rows"]) == rows
    assert (folder / "report.html").read_text(encoding="utf-8") == "interrupted"
    resume(folder)
    assert len(pretender.asked) == len(set(pretender.asked)) == 4
    assert_same_end(folder, whole.folder)


@pytest.mark.parametrize("stage", ["evaluating", "writing the report"])
def test_interruption_at_any_stage_is_resumable(
    stage: str, trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:
    whole = sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="whole")
    with pytest.raises(KeyboardInterrupt) as interrupt:
        sweep(four_points(), adapters=[trained.folder], out=tmp_path, name="stopped", observer=Stops(stage))
    assert isinstance(interrupt.value, SweepInterrupted), "nobody would say how to go on"
    assert read_result(tmp_path / "stopped" / "result.json")["status"] == "interrupted"
    resume(tmp_path / "stopped")
    assert_same_end(tmp_path / "stopped", whole.folder)


@pytest.fixture
def stopped(trained: RunResult, pretender: Pretender, tmp_path: Path) -> Path:
    """Return the folder of a sweep of six points and two dies that was stopped after three evaluations."""
    with pytest.raises(SweepInterrupted):
        sweep(make("readout.bits=3:8", dies=1), adapters=[trained.folder], out=tmp_path, name="stopped",
              observer=Stops(rows=3))  # fmt: skip
    pretender.tasks.clear()
    return tmp_path / "stopped"


def test_complete_sweep_is_not_resumed(reference: SweepResult) -> None:
    with pytest.raises(InputError, match="the sweep is complete; start a new one"):
        resume(reference.folder)
    with pytest.raises(InputError, match="the sweep is complete; start a new one"):
        resume(reference.folder, how=How(retry_failed=True))


def test_run_is_no_sweep(trained: RunResult) -> None:
    with pytest.raises(InputError, match=r"a run, no sweep; fllm-run --resume continues a run"):
        resume(trained.folder)


def test_sweep_is_not_written_over(reference: SweepResult, trained: RunResult, pretender: Pretender) -> None:
    before = {path: path.read_bytes() for path in reference.folder.iterdir()}
    with pytest.raises(InputError, match="something is there already; give another --name, or --resume it"):
        sweep(four_points(), adapters=[trained.folder], out=reference.folder.parent, name="reference")
    assert {path: path.read_bytes() for path in reference.folder.iterdir()} == before
    assert pretender.tasks == []


# Changed meanwhile.


def assert_refused(folder: Path, what: str, pretender: Pretender) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pretender.tasks.clear()
    with pytest.raises(InputError, match=what):
        resume(folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {path: data for path, data in before.items() if path.name != ".lock"} == after
    assert pretender.tasks == []


@pytest.mark.parametrize("varied", ["readout.bits=3:8", "device_model={file},ideal", "retention.tau=1 ms,5 ms"])
def test_changed_device_file_is_refused(varied: str, trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    file = tmp_path / "device.yaml"
    shutil.copy(preset_folder() / "gaincell_28nm.yaml", file)
    config = RunConfig(**SMALLEST, device_model=str(file))
    with pytest.raises(SweepInterrupted):
        sweep(make(varied.format(file=file), config=config), adapters=[trained.folder], out=tmp_path, name="s",
              observer=Stops(rows=1))  # fmt: skip
    text = file.read_text(encoding="utf-8")
    for changed in (text + "\n", text.replace('"5 ms"', '"4 ms"', 1)):
        assert changed != text
        file.write_text(changed, encoding="utf-8")
        assert_refused(tmp_path / "s", "a device file changed since the sweep began", pretender)
    file.write_text(text, encoding="utf-8")
    resume(tmp_path / "s")


def test_another_adapter_is_refused(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    """Whether the run was made anew, or its file alone was exchanged."""
    from safetensors.torch import load_file, save_file

    run = copied(trained.folder, tmp_path / "run")
    with pytest.raises(SweepInterrupted):
        sweep(make("readout.bits=3:8"), adapters=[run], out=tmp_path, name="s", observer=Stops(rows=1))
    final = trained.result["final"]
    edit_json(run / "result.json", final=final | {"adapter_sha256": "0" * 64})
    assert_refused(tmp_path / "s", "the adapter changed since it was trained", pretender)
    edit_json(run / "result.json", final=final)
    file = run / "adapter" / "adapter_model.safetensors"
    original = file.read_bytes()
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    assert_refused(tmp_path / "s", "the adapter changed since it was trained", pretender)
    file.write_bytes(original)
    resume(tmp_path / "s")


def test_adapter_that_is_gone_is_refused(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    run = copied(trained.folder, tmp_path / "run")
    with pytest.raises(SweepInterrupted):
        sweep(make("readout.bits=3:8"), adapters=[run], out=tmp_path, name="s", observer=Stops(rows=1))
    shutil.rmtree(run / "adapter")
    with pytest.raises(InputError, match="adapter"):
        resume(tmp_path / "s")
    assert pretender.tasks == pretender.tasks[:1]


def test_changed_data_are_refused(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    """Another cohort has other test cases: rows of both would stand in one table."""
    data = write_cohort(tmp_path / "data", 40, n_hospitals=2, seed=0)
    run = copied(trained.folder, tmp_path / "run")
    record = trained.result
    edit_json(run / "result.json", config=record["config"] | {"data_dir": str(data)},
              data=record["data"] | {"sha256": load_cohort(data).sha256})  # fmt: skip
    plan = make("readout.bits=3:8", config=RunConfig(**SMALLEST, data_dir=str(data)))
    with pytest.raises(SweepInterrupted):
        sweep(plan, adapters=[run], out=tmp_path, name="s", observer=Stops(rows=1))
    file = data / "physical_examination.csv"
    original = file.read_bytes()
    file.write_bytes(original + b"\n")
    assert_refused(tmp_path / "s", "the data changed since the adapter was trained", pretender)
    with pytest.raises(InputError, match="the data changed since the adapter was trained"):
        sweep(plan, adapters=[run], out=tmp_path, name="new")
    assert not (tmp_path / "new").exists()
    file.write_bytes(original)
    resume(tmp_path / "s")


def test_changed_model_is_refused_point_by_point(trained: RunResult, light: None, tmp_path: Path) -> None:
    model = copied(SHIPPED, tmp_path / "model")
    run = copied(trained.folder, tmp_path / "run")
    edit_json(run / "result.json", config=trained.result["config"] | {"model": str(model)})
    edit_json(model / "config.json", changed=True)
    plan = make("readout.bits=3", config=RunConfig(**SMALLEST, model=str(model)))
    result = sweep(plan, adapters=[run], out=tmp_path).result
    assert {row["reason"] for row in result["rows"]} == {"model: the base model changed since the adapter was trained"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "interrupted"}, "not a finished run; expected the folder of a completed fllm-run"),
        ({"kind": "sweep", "keys": [], "points": [], "rows": [], "adapters": []}, "not a finished run"),
        ({"seed": 3}, "of another seed; expected 0; received 3"),
        ({"num_rounds": 2}, "num_rounds: trained with another configuration"),
        ({"lora": {"r": 2}}, "lora: trained with another configuration"),
    ],
)
def test_adapter_of_something_else_is_refused(
    changes: dict[str, Any], message: str, trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:
    run = copied(trained.folder, tmp_path / "run")
    of_config = set(changes) <= set(RunConfig.model_fields)
    edit_json(run / "result.json", **{"config": trained.result["config"] | changes} if of_config else changes)
    with pytest.raises(InputError, match=message):
        sweep(make("readout.bits=3"), adapters=[run], out=tmp_path / "out", name="s")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"device_model": "ideal"}, {"device": {"readout.bits": 3}}, {"token_period": "1 us"},
                {"network": "5g"}, {"threads": 2}, {"dies": 3}]
)  # fmt: skip
def test_adapter_trained_on_another_device_is_welcome(
    changes: dict[str, Any], trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:
    run = copied(trained.folder, tmp_path / "run")
    edit_json(run / "result.json", config=trained.result["config"] | changes)
    assert sweep(make("readout.bits=3"), adapters=[run], out=tmp_path, name="s").result["status"] == "completed"


# One process at a time.


def test_second_process_is_kept_out(stopped: Path, pretender: Pretender) -> None:
    with FileLock(stopped / ".lock"):
        assert_refused(stopped, "another process works on this sweep; wait for it", pretender)
    resume(stopped)


def test_second_process_that_starts_at_the_same_moment_breaks_nothing(
    trained: RunResult, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the folder empty; the one that comes late must not take away what the first has written."""
    plan = make("readout.bits=3:8")
    late = []

    class Late(SweepObserver):
        """While the first evaluates, the second, which looked before there was anything, comes to its folder."""

        def rows_done(self, number: int, reason: str | None) -> None:
            if not late:
                with monkeypatch.context() as patch:
                    patch.setattr(Path, "exists", lambda path: False)
                    with pytest.raises(InputError) as error:
                        sweep(plan, adapters=[trained.folder], out=tmp_path, name="s")
                late.append(str(error.value))

    result = sweep(plan, adapters=[trained.folder], out=tmp_path, name="s", observer=Late())
    assert "another process works on this sweep" in late[0]
    assert result.result["status"] == "completed"
    assert len(result.result["rows"]) == 6
    assert len((tmp_path / "s" / "table.csv").read_text(encoding="utf-8").splitlines()) == 7


def test_sweep_that_was_made_meanwhile_is_not_written_over(
    trained: RunResult, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process needs no longer for all of its sweep than this one for its plan."""
    describe = fllm.sweeps.sweep.describe

    def slowly(plan: Plan, adapters: list[dict[str, Any]]) -> dict[str, Any]:
        monkeypatch.setattr(fllm.sweeps.sweep, "describe", describe)
        sweep(make("readout.bits=3,4"), adapters=[trained.folder], out=tmp_path, name="s")
        return describe(plan, adapters)

    monkeypatch.setattr(fllm.sweeps.sweep, "describe", slowly)
    with pytest.raises(InputError, match="something is there already"):
        sweep(make("readout.bits=5,6"), adapters=[trained.folder], out=tmp_path, name="s")
    record = read_result(tmp_path / "s" / "result.json")
    assert (record["status"], [row["readout.bits"] for row in record["rows"]]) == ("completed", [3, 4, 5])


# Points that fail.


def test_failed_points_are_recorded_and_tried_again(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    plan = make("readout.bits=5:8", dies=2)
    result = sweep(plan, adapters=[trained.folder], out=tmp_path, name="s").result
    row, second = [row for row in result["rows"] if row["status"] == "failed"]
    assert (row["point"], row["seed"], row["die"], row["readout.bits"]) == (2, 0, 0, FAILS)
    assert second == row | {"die": 1}
    assert row["reason"] == "7 bits are not to be had"
    unknown = set(row) - {"point", "seed", "die", "status", "reason", "readout.bits", "settings_sha256"}
    assert {row[column] for column in unknown} == {None}
    assert (result["status"], result["final"]["failed"]) == ("completed", 1)
    assert len(result["rows"]) == 8

    with pytest.raises(InputError, match="the sweep is complete; --retry-failed tries failed points again"):
        resume(tmp_path / "s")
    pretender.tasks.clear()
    pretender.mended = True
    again = resume(tmp_path / "s", how=How(retry_failed=True)).result
    assert pretender.asked == [(2, 0, (0, 1))]
    assert (len(again["rows"]), again["final"]["failed"]) == (8, 0)
    assert {row["status"] for row in again["rows"]} == {"ok"}
    sweep(plan, adapters=[trained.folder], out=tmp_path, name="never failed")
    assert_same_end(tmp_path / "s", tmp_path / "never failed")


def test_points_that_fail_again_are_recorded_again(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    first = sweep(make("readout.bits=5:8"), adapters=[trained.folder], out=tmp_path, name="s").result
    before = (tmp_path / "s" / "table.csv").read_bytes()
    again = resume(tmp_path / "s", how=How(retry_failed=True)).result
    assert (again["rows"], again["final"]["failed"]) == (first["rows"], 1)
    assert (tmp_path / "s" / "table.csv").read_bytes() == before


def test_retry_that_is_killed_can_be_resumed(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    sweep(make("readout.bits=5:8"), adapters=[trained.folder], out=tmp_path, name="s")
    pretender.mended = True

    def retry_and_die() -> None:
        die_after_rows(0, 0.5)
        resume(tmp_path / "s", how=How(retry_failed=True))

    killed(retry_and_die)
    assert read_result(tmp_path / "s" / "result.json")["status"] != "completed"
    resume(tmp_path / "s")
    sweep(make("readout.bits=5:8"), adapters=[trained.folder], out=tmp_path, name="never failed")
    assert_same_end(tmp_path / "s", tmp_path / "never failed")


def test_combination_that_is_no_device_fails_beside_the_others(trained: RunResult, light: None, tmp_path: Path) -> None:
    plan = make("storage.v_zero=0.1 V,0.8 V", "storage.v_max=0.5 V,0.9 V")
    rows = sweep(plan, adapters=[trained.folder], out=tmp_path, name="s").result["rows"]
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok"]  # the last is the base device, added
    assert "voltages out of order" in rows[2]["reason"]
    assert (rows[2]["storage.v_zero_V"], rows[2]["storage.v_max_V"]) == (0.8, 0.5)


def test_configuration_that_is_none_fails_without_a_worker(
    trained: RunResult, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Plan.config_of

    def refuse(self: Plan, point: Any, seed: int) -> RunConfig:
        if point.number == 1:
            raise InputError("a combination of keys", where="some.key")
        return of(self, point, seed)

    plan = make("readout.bits=3:5", dies=2)
    monkeypatch.setattr(Plan, "config_of", refuse)
    result = sweep(plan, adapters=[trained.folder], out=tmp_path, name="s").result
    assert [row["reason"] for row in result["rows"] if row["point"] == 1] == 2 * ["some.key: a combination of keys"]
    assert {point for point, _, _ in pretender.asked} == {0, 2}


# Nothing twice.


def test_equal_points_are_computed_once(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    plan = make("retention.tau=1 ms,5 ms,1000 us,5000 us,1e-3 s", dies=2)
    pretender.warnings = ["no effect of refresh"]
    result = sweep(plan, adapters=[trained.folder], out=tmp_path, name="s").result
    assert pretender.asked == [(1, 0, (0, 1)), (0, 0, (0, 1))], "the base device first"
    assert len(result["rows"]) == 10
    of = {point: [row for row in result["rows"] if row["point"] == point] for point in range(5)}
    for twin, first in ((2, 0), (4, 0), (3, 1)):
        assert [row | {"point": first} for row in of[twin]] == of[first]
    assert [point["same_as"] for point in result["points"]] == [None, None, 0, 1, 0]
    assert [point["warnings"] for point in result["points"]] == [["no effect of refresh"]] * 5


def test_equal_points_fail_together(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    result = sweep(make(f"readout.bits={FAILS},5,{FAILS}"), adapters=[trained.folder], out=tmp_path, name="s").result
    assert [row["status"] for row in result["rows"]] == ["failed", "ok", "failed"]
    assert result["final"]["failed"] == 2
    assert len(pretender.tasks) == 2


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_number_that_is_none_is_null(
    number: float, trained: RunResult, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a perplexity that overflows; JSON knows no such number."""
    pretended = Pretender._row
    monkeypatch.setattr(Pretender, "_row", lambda self, task, die: pretended(self, task, die) | {"perplexity": number})
    sweep(make("readout.bits=5"), adapters=[trained.folder], out=tmp_path, name="s")
    (row,) = read_result(tmp_path / "s" / "result.json")["rows"]
    assert (row["status"], row["perplexity"]) == ("ok", None)
    assert str(number) not in (tmp_path / "s" / "table.csv").read_text(encoding="utf-8").split(",")


def test_many_dies_are_several_tasks(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    result = sweep(make("readout.bits=5", dies=10), adapters=[trained.folder], out=tmp_path, name="s").result
    assert pretender.asked == [(0, 0, (0, 1, 2, 3)), (0, 0, (4, 5, 6, 7)), (0, 0, (8, 9))]
    assert [row["die"] for row in result["rows"]] == list(range(10))


def test_progress_adds_up(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    class Adds(SweepObserver):
        total = done = 0

        def rows_expected(self, total: int, done: int) -> None:
            self.total, self.done = total, done

        def rows_done(self, number: int, reason: str | None) -> None:
            self.done += number
            if self.done >= 5 and stop:
                raise KeyboardInterrupt

    plan = make(f"readout.bits=3,4,3,{FAILS},5", dies=3)
    stop, seen = True, Adds()
    with pytest.raises(SweepInterrupted):
        sweep(plan, adapters=[trained.folder], out=tmp_path, name="s", observer=seen)
    assert seen.total == 15
    stop, rest = False, Adds()
    resume(tmp_path / "s", observer=rest)
    assert rest.done == rest.total == 15


def test_record_is_kept_up_while_the_sweep_runs(
    trained: RunResult, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fllm.sweeps.sweep, "SAVE_EVERY", 0.0)
    seen = []

    class Reads(SweepObserver):
        def rows_done(self, number: int, reason: str | None) -> None:
            record = read_result(tmp_path / "s" / "result.json")
            seen.append((record["status"], len(record["rows"])))

    sweep(make("readout.bits=3:5"), adapters=[trained.folder], out=tmp_path, name="s", observer=Reads())
    assert [status for status, _ in seen] == ["running"] * 3
    assert [number for _, number in seen] == [0, 1, 2]


def test_two_seeds(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    other = copied(trained.folder, tmp_path / "other")
    edit_json(other / "result.json", config=trained.result["config"] | {"seed": 5}, name="other")
    plan = make("readout.bits=3,5", seeds=[0, 5], dies=2)
    result = sweep(plan, adapters=[trained.folder, other], out=tmp_path, name="s").result
    assert [(row["point"], row["seed"], row["die"]) for row in result["rows"]] == [
        (point, seed, die) for point in (0, 1) for seed in (0, 5) for die in (0, 1)
    ]
    assert [(task.seed, task.config.seed, task.adapter.parent.name) for task in pretender.tasks] == [
        (0, 0, trained.folder.name), (0, 0, trained.folder.name), (5, 5, "other"), (5, 5, "other"),
    ]  # fmt: skip
    assert [adapter["run"] for adapter in result["adapters"]] == ["trained", "other"]


def test_rows_of_another_sweep_are_not_taken_for_ones_own(
    trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:
    """A table without its record, as after ``rm result.json``."""
    sweep(make("readout.bits=3,4"), adapters=[trained.folder], out=tmp_path, name="s")
    (tmp_path / "s" / "result.json").unlink()
    left = (tmp_path / "s" / "table.csv").read_bytes()
    with pytest.raises(InputError, match="something is there already"):
        sweep(make("readout.bits=5,6"), adapters=[trained.folder], out=tmp_path, name="s")
    assert (tmp_path / "s" / "table.csv").read_bytes() == left


# Bad input that shows late.


def test_rows_are_kept_whatever_is_wrong_later(
    trained: RunResult, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputError("a report that cannot be")

    with monkeypatch.context() as patch:
        patch.setattr(fllm.sweeps.sweep, "render", refuse)
        with pytest.raises(InputError, match="a report that cannot be"):
            sweep(make("readout.bits=3,5"), adapters=[trained.folder], out=tmp_path, name="s")
    assert len((tmp_path / "s" / "table.csv").read_text(encoding="utf-8").splitlines()) == 3


def test_foreign_table_is_left_alone(trained: RunResult, pretender: Pretender, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError):
        sweep(make("readout.bits=3"), adapters=[trained.folder], out=tmp_path, name="mine")
    assert files(tmp_path / "mine") == {"table.csv"}
    assert (tmp_path / "mine" / "table.csv").read_text(encoding="utf-8") == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "absent"}, "absent: no such model folder"),
        ({"data_dir": "absent"}, "absent: the data folder does not exist"),
        ({"num_clients": 41}, "more hospitals than cases"),
        ({"network": "wifii"}, "wifii: no such network"),
        ({"device": {"readout.range": "learned"}}, "readout.range"),
    ],
)
def test_base_run_that_cannot_be_trained_leaves_nothing(
    changes: dict[str, Any], message: str, pretender: Pretender, tmp_path: Path
) -> None:
    plan = make("readout.bits=3", config=RunConfig(**SMALLEST | changes))
    with pytest.raises(InputError, match=message):
        sweep(plan, out=tmp_path / "out", name="s")
    assert pretender.tasks == []
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").touch()
    with pytest.raises(InputError, match=message):
        sweep(plan, out=tmp_path, name="mine")
    assert files(tmp_path / "mine") == {"note.txt"}


def test_missing_ray_is_told_before_anything_is_done(
    trained: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(fllm.runs, "run", lambda *_, **__: pytest.fail("trained, though there is no ray"))
    with pytest.raises(InputError, match="Ray is not installed"):
        sweep(make("readout.bits=3"), out=tmp_path / "out", name="s", how=How(engine="ray"))
    assert not (tmp_path / "out" / "s").exists()


# Training.


def test_adapter_is_trained_first_and_its_training_resumed(
    trained: RunResult, light: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as the run that was trained by itself, and the rows as those of that run's adapter."""
    plan = make("readout.bits=3,5")
    with pytest.raises(SweepInterrupted):
        sweep(plan, out=tmp_path, name="s", observer=Stops(round_=0))
    folder = tmp_path / "s"
    record = read_result(folder / "result.json")
    assert (record["status"], record["rows"], record["adapters"]) == ("interrupted", [], [])
    assert read_result(folder / "trained-seed0" / "result.json")["status"] == "interrupted"
    assert (folder / "report.html").is_file()
    stages = []

    class Listens(SweepObserver):
        def stage(self, what: str) -> None:
            stages.append(what)

    folder = Path(shutil.move(folder, tmp_path / "moved"))
    result = resume(folder, observer=Listens()).result
    assert "training round 1" in stages
    (adapter,) = result["adapters"]
    assert adapter["sha256"] == trained.result["final"]["adapter_sha256"]
    given = sweep(plan, adapters=[trained.folder], out=tmp_path, name="given").result
    assert result["rows"] == given["rows"]
    assert result["data"] == given["data"]

    stages.clear()
    with pytest.raises(InputError, match="the sweep is complete"):
        resume(folder, observer=Listens())
    assert stages == []


def test_each_point_is_trained_once_in_mode_train(light: None, tmp_path: Path) -> None:
    """Also after a kill between two of them; a finished run is not trained again."""
    plan = make("lora.r=2,8,2", mode="train", dies=2)
    trained: list[str] = []
    run = fllm.runs.run

    def count(config: RunConfig, **options: Any) -> RunResult:
        with (tmp_path / "trained").open("a", encoding="utf-8") as file:
            file.write(f"{config.lora.r}\n")
        return run(config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fllm.runs, "run", count)

        def run_and_die() -> None:
            die_after_rows(1, 0.0)
            sweep(plan, out=tmp_path, name="s")

        killed(run_and_die)
        result = resume(tmp_path / "s").result
    trained = (tmp_path / "trained").read_text(encoding="utf-8").split()
    assert trained == ["8", "2"], "the base first, each once"
    runs = sorted(path.name for path in (tmp_path / "s" / "runs").iterdir())
    digests = {point["settings_sha256"] for point in result["points"]}
    assert runs == sorted(f"{digest}-seed0" for digest in digests)
    assert len(runs) == 2
    assert [(row["point"], row["die"], row["lora.r"]) for row in result["rows"]] == [
        (point, die, {0: 2, 1: 8, 2: 2}[point]) for point in range(3) for die in range(2)
    ]
    assert result["adapters"] == []
    assert result["data"]["num_test"] == 8
    assert result["rows"][0]["perplexity"] == result["rows"][4]["perplexity"] != result["rows"][2]["perplexity"]


def test_one_task_trains_a_point_however_many_dies(pretender: Pretender, tmp_path: Path) -> None:
    """Two processes that train in one folder at a time would break each other's files."""
    sweep(make("lora.r=2,8", mode="train", dies=10), out=tmp_path, name="s")
    folders = [task.train for task in pretender.tasks]
    assert len(set(folders)) == len(folders) == 2


def test_each_seed_and_point_has_a_run_of_its_own(pretender: Pretender, tmp_path: Path) -> None:
    sweep(make("lora.r=2,8", mode="train", seeds=[3, 4]), out=tmp_path, name="s")
    assert len({task.train for task in pretender.tasks}) == 4
    assert [(task.seed, task.config.seed) for task in pretender.tasks] == [(3, 3), (3, 3), (4, 4), (4, 4)]
    for task in pretender.tasks:
        assert task.train is not None and task.adapter == task.train / "adapter"
