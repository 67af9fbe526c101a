"""``fllm sweep``: bad input is one line and leaves nothing, and no word of a patient comes out."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fllm.sweep_cli
import fllm.sweeps.bench
from device_models import InputError
from fllm import cli
from fllm.results import read_result
from fllm.runs import RunResult
from fllm.sweeps.bench import Worker
from fllm.sweeps.engines import ENGINES
from fllm.sweeps.sweep import sweep
from tests.fllm.small import CANARY, cohort_with_canary, copied, edit_json
from tests.sweeps.light import runs, wait_for
from tests.sweeps.pretending import FAILS, Pretender, files
from tests.sweeps.small import SMALLEST, in_this_process, make, without_reports

SETTINGS = [f"--set={key}={value}" for key, value in SMALLEST.items()]
VARY = ["--vary", "readout.bits=3,5"]


class Called:
    """A call of the command line in this process: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    def run(*arguments: str | Path) -> Called:
        monkeypatch.setattr(sys, "argv", ["fllm", "sweep", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Called(int(stop.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretender]:
    made = Pretender()
    monkeypatch.setitem(ENGINES, "local", in_this_process(made))
    monkeypatch.setattr(fllm.sweep_cli, "_print_summary", lambda result, folder: print(f"finished {folder}"))
    with without_reports():
        yield made


@pytest.fixture
def bad(call: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that calls, in an empty folder, what has to be refused, and returns the line it printed."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def refused(*arguments: str | Path) -> str:
        done = call(*arguments)
        assert done.code == 2
        assert not done.out.strip() or "--dry-run" in arguments
        assert done.err.startswith("error: ")
        assert len(done.err.splitlines()) == 1, done.err
        assert files(home) == set()
        return done.err

    return refused


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--vary: zero points: nothing is varied"),
        (["--vary", ""], "--vary : cannot be read; expected key=values"),
        (["--vary"], "--vary"),
        (["--vary", "readout.bits"], "--vary readout.bits: cannot be read; expected key=values"),
        (["--vary", "readout.bits="], "--vary readout.bits: no value"),
        (["--vary", "readout.bits=["], "--vary readout.bits: cannot be read"),
        (["--vary", "readout.bitz=3"], "did you mean readout.bits"),
        (["--vary", "bits=3"], "did you mean readout.bits or readout_qk.bits?"),
        (["--vary", "readout.bits=8:3"], "--vary readout.bits: impossible range"),
        (["--vary", "readout.bits=1:999999999"], "--vary readout.bits: too many values"),
        (["--vary", "readout.bits=99"], "readout.bits"),
        (["--vary", "retention.tau=5"], "retention.tau"),
        (["--vary", "retention.tau=5 mV"], "retention.tau"),
        (["--vary", "num_rounds=1,2"], "num_rounds: decides how the adapter is trained"),
        (["--vary", "seed=1,2"], "repeat each point with --seeds"),
        (["--vary", "device_model=ideal,absent"], "absent: no such device file"),
        ([*VARY, *VARY], "a key is varied twice"),
        ([*VARY, "--design", "spiral"], "unknown design; expected grid, list, random, sobol; received 'spiral'"),
        ([*VARY, "--design", "random"], "--points: zero points"),
        ([*VARY, "--points", "3"], "--points: has no meaning for this design"),
        ([*VARY, "--points", "three"], "--points"),
        ([*VARY, "--design", "sobol", "--points", "0"], "--points: zero points"),
        ([*VARY, "--vary", "window.tokens=1:9", "--design", "list"], "lists of different lengths"),
        ([*VARY, "--mode", "guess"], "--mode: unknown mode; expected evaluate or train; received 'guess'"),
        ([*VARY, "--engine", "spark"], "--engine: unknown engine; expected local or ray; received 'spark'"),
        ([*VARY, "--workers", "0"], "--workers: out of range; expected 1 or more; received 0"),
        ([*VARY, "--dies", "0"], "--dies and --seeds: out of range"),
        ([*VARY, "--seeds", "0"], "--seeds: out of range"),
        ([*VARY, "--seed", "-1"], "seed"),
        ([*VARY, "--name", "a/b"], "--name: not a folder name"),
        ([*VARY, "--name", ""], "--name: not a folder name"),
        ([*VARY, "--retry-failed"], "--retry-failed: has no meaning for a new sweep"),
        ([*VARY, "--set", "num_rounds=0"], "num_rounds"),
        ([*VARY, "--set", "num_rounds"], "key=value"),
        ([*VARY, "--set", "lora.rank=3"], "lora.rank: unknown key"),
        ([*VARY, "--set", "device.readout.bitz=3"], "did you mean readout.bits"),
        ([*VARY, "--config", "absent.yaml"], "absent.yaml: no such file"),
        ([*VARY, "--device-model", "gaincell_28mm"], "did you mean gaincell_28nm"),
        ([*VARY, "--adapter", "absent"], "absent/result.json: no such file"),
        ([*VARY, "--resume", "absent"], "--vary: --resume takes the settings of the sweep"),
        (["--resume", "absent"], "absent/result.json: no such file"),
        ([*VARY, "--out", "/dev/null"], "/dev/null"),
        ([*VARY, "--out", "/dev/null/below"], "check --out"),
        ([*VARY, "--set", "model=absent"], "absent: no such model folder"),
        ([*VARY, "--set", "data_dir=absent"], "absent: the data folder does not exist"),
        ([*VARY, "--set", "num_clients=41"], "more hospitals than cases"),
        (["--bogus"], "--bogus"),
        (["stray"], "stray"),
        (["--vary", "window.tokens=1:101", "--vary", "readout.bits=2:101"], "10,100 points; expected at most 10,000"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_option_is_named(bad: Callable[..., str], arguments: list[str], named: str) -> None:
    settings = [] if "--resume" in arguments else SETTINGS
    assert named in bad(*settings, *arguments)


@pytest.mark.parametrize("name", [".", ".."])
def test_name_that_means_another_folder_is_refused(bad: Callable[..., str], name: str, pretender: Pretender) -> None:
    assert "--name" in bad(*SETTINGS, *VARY, "--name", name, "--set", "model=absent")


@pytest.mark.parametrize(
    "option",
    ["--device-model=ideal", "--vary=readout.bits=3", "--points=3", "--adapter=x", "--config=x", "--set=seed=1",
     "--seed=1", "--out=x", "--name=x", "--dry-run"],
)  # fmt: skip
def test_resume_takes_the_settings_of_the_sweep(bad: Callable[..., str], option: str) -> None:
    name = option.split("=")[0]
    assert f"{name}: --resume takes the settings of the sweep" in bad("--resume", "absent", option)


@pytest.mark.parametrize("option", ["--design=list", "--mode=train", "--dies=8", "--seeds=2", "--yes"])
def test_resume_refuses_options_with_a_default_too(bad: Callable[..., str], option: str) -> None:
    name = option.split("=")[0]
    assert f"{name}: --resume takes the settings of the sweep" in bad("--resume", "absent", option)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', '{"schema_version": 1, "kind": "tour"}',
     '{"schema_version": 1, "kind": "sweep"}'],
)  # fmt: skip
def test_resume_of_a_broken_record(bad: Callable[..., str], tmp_path: Path, content: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "result.json").write_text(content, encoding="utf-8")
    assert "result.json" in bad("--resume", tmp_path / "s")
    assert files(tmp_path / "s") == {"result.json"}


def test_resume_of_a_run(bad: Callable[..., str], trained: RunResult) -> None:
    assert "a run, no sweep; fllm-run --resume continues a run" in bad("--resume", trained.folder)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "x.yaml"], "--adapter: an adapter brings its own configuration"),
        (["--seed", "3"], "--adapter: an adapter brings its own configuration"),
        (["--mode", "train"], "--adapter: belongs to --mode evaluate"),
        (["--seeds", "2"], "--adapter: belongs to --mode evaluate"),
        (["--set", "num_rounds=3"], "num_rounds: trained with another configuration; expected 3; received 1"),
        (["--set", "lora.r=3"], "lora: trained with another configuration"),
        (["--device-model", "absent"], "absent: no such device file"),
    ],
)
def test_option_that_an_adapter_does_not_allow(
    bad: Callable[..., str], trained: RunResult, arguments: list[str], named: str
) -> None:
    assert named in bad(*VARY, "--adapter", trained.folder, *arguments)


def test_two_adapters_of_one_seed(bad: Callable[..., str], trained: RunResult, tmp_path: Path) -> None:
    other = copied(trained.folder, tmp_path / "other")
    message = bad(*VARY, "--adapter", trained.folder, "--adapter", other)
    assert "--adapter: two adapters of one seed" in message


@pytest.mark.parametrize("changes", [{"status": "interrupted"}, {"status": "running"}])
def test_adapter_of_an_unfinished_run(
    bad: Callable[..., str], trained: RunResult, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = copied(trained.folder, tmp_path / "run")
    edit_json(run / "result.json", **changes)
    assert "not a finished run" in bad(*VARY, "--adapter", run)


@pytest.mark.parametrize("what", ["gone", "cut off"])
def test_adapter_without_its_file(bad: Callable[..., str], trained: RunResult, tmp_path: Path, what: str) -> None:
    run = copied(trained.folder, tmp_path / "run")
    if what == "gone":
        shutil.rmtree(run / "adapter")
    else:
        file = run / "adapter" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    assert "adapter cannot be read" in bad(*VARY, "--adapter", run)


def test_adapter_that_is_a_sweep(
    bad: Callable[..., str], trained: RunResult, pretender: Pretender, tmp_path: Path
) -> None:
    folder = sweep(make("readout.bits=3"), adapters=[trained.folder], out=tmp_path, name="s").folder
    assert "a sweep, no run" in bad(*VARY, "--adapter", folder)


def test_missing_ray(bad: Callable[..., str], trained: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "--engine ray: Ray is not installed" in bad(*VARY, "--adapter", trained.folder, "--engine", "ray")


# What works.


def test_dry_run_says_what_it_would_take_and_writes_nothing(
    call: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: RunResult
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("--adapter", trained.folder, "--vary", "readout.bits=3:8", "--vary", "retention.tau=1 ms,5 ms,1000 us",
                "--dies", "2", "--dry-run", "--workers", "3")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert files(tmp_path) == set()
    assert "18 points (grid), 2 dies, 1 seed" in done.out
    assert "0  readout.bits = 3, retention.tau = 1 ms\n" in done.out
    assert "2  readout.bits = 3, retention.tau = 1000 us  (same as point 0, computed once)" in done.out
    assert "7  readout.bits = 5, retention.tau = 5 ms  (the base device)" in done.out
    assert "...  6 more" in done.out
    assert re.search(r"time +about \d+ s with 3 workers", done.out)
    assert re.search(r"24 evaluations of \d+\.\d s", done.out)
    assert "training" not in done.out
    assert re.search(r"memory +about \d+\.\d GB, \d+\.\d GB per worker", done.out)


def test_dry_run_of_trainings(call: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*SETTINGS, "--vary", "lora.r=2,8", "--mode", "train", "--seeds", "2", "--dies", "1", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert files(tmp_path) == set()
    assert re.search(r"4 evaluations of \d+\.\d s", done.out)
    assert re.search(r"4 trainings of about \d+ s, on the workers", done.out)


@pytest.mark.parametrize("key", ["num_rounds=0", "model=absent", "data_dir=absent"])
def test_dry_run_of_what_cannot_be_is_refused(bad: Callable[..., str], key: str) -> None:
    bad(*SETTINGS, *VARY, "--set", key, "--dry-run")


def test_options_reach_the_sweep(
    call: Callable[..., Called], pretender: Pretender, trained: RunResult, tmp_path: Path
) -> None:
    out = tmp_path / "mit Leerzeichen, größer"
    done = call("--adapter", trained.folder, "--device_model", "gaincell_igzo", "--set", "device.window.tokens=64",
                "--vary", "readout.bits=3:5", "--vary", "retention.tau='log:1 ms:4 ms:3'", "--design=list",
                "--dies=3", "--out", out, "--name", "größe")  # fmt: skip
    assert done.code == 2 and "retention.tau" in done.err, "quotes are the shell's, not ours"
    done = call("--adapter", trained.folder, "--device_model", "gaincell_igzo", "--set", "device.window.tokens=64",
                "--vary", "readout.bits=3:5", "--vary", "retention.tau=log:1 ms:4 ms:3", "--design=list",
                "--dies=3", "--out", out, "--name", "größe")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    record = read_result(out / "größe" / "result.json")
    assert record["command"].startswith("fllm sweep --adapter")
    assert record["config"]["device"] == {"window.tokens": 64}
    assert record["config"]["device_model"] == "gaincell_igzo"
    assert record["design"]["kind"] == "list"
    assert [point["settings"] for point in record["points"] if not point["added"]] == [
        {"readout.bits": 3, "retention.tau": "1 ms"}, {"readout.bits": 4, "retention.tau": "2 ms"},
        {"readout.bits": 5, "retention.tau": "4 ms"},
    ]  # fmt: skip
    assert len(record["rows"]) == 12
    assert str(out / "größe") in done.out


def test_sweep_whose_points_all_fail_ends_with_an_error(
    call: Callable[..., Called], pretender: Pretender, trained: RunResult, tmp_path: Path
) -> None:
    arguments = ["--adapter", trained.folder, "--set", f"device.readout.bits={FAILS}", "--out", tmp_path, "--name", "s"]
    done = call(*arguments, "--vary", "retention.tau=1 ms,5 ms")
    assert done.code == 1
    assert done.err == "failed: no point could be evaluated; table.csv has the reasons\n"
    assert f"a point failed: {FAILS} bits are not to be had" in done.out
    assert "--retry-failed tries failed points again" in call("--resume", tmp_path / "s").err
    pretender.mended = True
    assert call("--resume", tmp_path / "s", "--retry-failed").code == 0
    done = call("--resume", tmp_path / "s", "--retry-failed")
    assert (done.code, "the sweep is complete; start a new one" in done.err) == (2, True)


def test_interruption_tells_how_to_go_on(
    call: Callable[..., Called],
    pretender: Pretender,
    trained: RunResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = fllm.sweep_cli._Terminal.rows_done

    def stop(self: Any, number: int, reason: str | None) -> None:
        shown(self, number, reason)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fllm.sweep_cli._Terminal, "rows_done", stop)
        done = call("--adapter", trained.folder, *VARY, "--out", tmp_path, "--name", "s")
    assert done.code == 130
    assert done.err == f"interrupted; state saved. Continue with: fllm sweep --resume {tmp_path / 's'}\n"
    done = call("--resume", tmp_path / "s")
    assert (done.code, done.err) == (0, "")
    assert len(read_result(tmp_path / "s" / "result.json")["rows"]) == 8


@pytest.mark.usefixtures("_sketched")
def test_no_word_of_a_patient_comes_out(
    call: Callable[..., Called], worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Neither to the terminal nor into a file, also where points fail in the middle of a note."""
    data = cohort_with_canary(tmp_path / "data", 40, hospitals=2)
    monkeypatch.setitem(ENGINES, "local", in_this_process(worker))
    score = fllm.sweeps.bench.Bench.score

    def broken(self: Any, test: Any, device: Any, die: Any, period: Any) -> Any:
        if device.readout.bits == 3:
            raise KeyError(f"patient 123 has a {CANARY}")
        return score(self, test, device, die, period)

    monkeypatch.setattr(fllm.sweeps.bench.Bench, "score", broken)
    arguments = [*SETTINGS, "--set", f"data_dir={data}", "--set", "fields=[history,labs]", "--out", tmp_path / "out"]
    done = call(*arguments, *VARY, "--dies=1", "--name", "s")
    assert done.code == 0
    assert "a point failed: KeyError in test_sweep_cli.py, line" in done.out
    rows = read_result(tmp_path / "out" / "s" / "result.json")["rows"]
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert CANARY not in (done.out + done.err).lower()
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"table.csv", "result.json", "report.html", "adapter_model.safetensors"}
    for path in written:
        assert CANARY.encode() not in path.read_bytes().lower(), path


def test_training_prints_no_log_lines_of_other_libraries(
    call: Callable[..., Called], pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower sets itself to INFO when it is imported, which may be as late as here."""
    heard: list[bool] = []

    def run_or_resume(config: Any, folder: Path, **_: object) -> None:
        heard.append(logging.getLogger("flwr").isEnabledFor(logging.WARNING))
        raise InputError("enough")

    monkeypatch.setattr("fllm.runs.run_or_resume", run_or_resume)
    logging.getLogger("flwr").setLevel(logging.INFO)
    try:
        call(*SETTINGS, *VARY, "--out", tmp_path, "--name", "s")
    finally:
        logging.getLogger("flwr").setLevel(logging.ERROR)
    assert heard == [False]


# In a process of its own.

ENTRY = "from fllm.cli import main; main()"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start ``fllm sweep`` as a terminal does: in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", ENTRY, "sweep", *map(str, arguments)], cwd=folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8")
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def rows_in(table: Path) -> int:
    return len(table.read_text(encoding="utf-8").splitlines()) - 1 if table.exists() else 0


def test_ctrl_c_in_the_terminal(trained: RunResult, light: None, tmp_path: Path) -> None:
    """It reaches the workers too; one line, nothing left running, and what was computed is not lost."""
    process = start(tmp_path, "--adapter", trained.folder, "--vary", "retention.tau=log:0.1 ms:50 ms:40", "--workers=1",
                    "--dies=1", "--out=a folder", "--name=s")  # fmt: skip
    table = tmp_path / "a folder" / "s" / "table.csv"
    try:
        assert wait_for(lambda: rows_in(table) >= 2, 60)
        workers = children(process.pid)
        assert workers
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.count("\n") == 1 and err.startswith("interrupted; state saved."), err
    assert "Traceback" not in out
    assert wait_for(lambda: not any(map(runs, workers)), 10)
    record = read_result(table.parent / "result.json")
    assert record["status"] == "interrupted"
    assert 2 <= len(record["rows"]) == rows_in(table) < 40


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_process_that_is_killed_leaves_rows_and_no_worker(
    how: signal.Signals, trained: RunResult, tmp_path: Path
) -> None:
    arguments = ["--vary", "retention.tau=log:0.1 ms:50 ms:8", "--workers=2", "--dies=1", "--out=out"]
    process = start(tmp_path, "--adapter", trained.folder, *arguments, "--name=s")
    table = tmp_path / "out" / "s" / "table.csv"
    try:
        assert wait_for(lambda: rows_in(table) >= 3, 60)
        workers = children(process.pid)
        process.send_signal(how)
        assert process.wait(30) == -how
    finally:
        process.kill()
    assert wait_for(lambda: not any(map(runs, workers)), 10)
    assert start(tmp_path, "--resume", "out/s", "--workers=2").wait(120) == 0
    whole = start(tmp_path, "--adapter", trained.folder, *arguments, "--name=whole")
    assert whole.wait(120) == 0
    assert table.read_bytes() == (tmp_path / "out" / "whole" / "table.csv").read_bytes()
