"""One sweep: plan in, table and report out; what an interruption leaves is finished by resuming.

The folder of a sweep holds ``table.csv`` (grows row by row), ``result.json`` (the same and everything around it) and
what is made from that alone: ``report.html``, ``report.md``, ``figures/``. Adapters that had to be trained first, or
the runs of ``--mode train``, lie below it as ordinary runs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from device_models import InputError, load_device
from fllm.cases import read_corpus
from fllm.config import RunConfig
from fllm.observer import SweepObserver
from fllm.report import render
from fllm.results import SWEEP, read_result, write_result
from fllm.sweeps.engines import ENGINES, check_engine
from fllm.sweeps.plan import WITHOUT_EXTRAS, Plan, Point, with_settings
from fllm.sweeps.record import adapter_facts, describe, given_adapter, plan_of, stored_digest, warnings_of
from fllm.sweeps.table import FAILED, OK, Table, columns_of, place_of
from fllm.sweeps.tasks import Done, Task, failed

RESULT, TABLE, LOCK = "result.json", "table.csv", ".lock"
ADAPTER = "adapter"
DIES_PER_TASK = 4
SAVE_EVERY = 30.0
"""Seconds between two writes of ``result.json`` while rows come in; ``table.csv`` has each at once."""
_OF_THE_RUN = ("data", "model", "baselines", "not_modelled")
"""What a sweep's record takes from the run of its first seed."""


class SweepInterrupted(KeyboardInterrupt):
    """The user stopped a sweep; its state is saved in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep: its folder and the content of its ``result.json``."""

    folder: Path
    result: dict[str, Any]


@dataclass(frozen=True)
class How:
    """How a sweep is computed; nothing here changes its numbers.

    Attributes:
        engine: ``local`` or ``ray``.
        workers: Processes.
        retry_failed: Whether points that failed before are tried again.
    """

    engine: str = "local"
    workers: int = 1
    retry_failed: bool = False


def sweep(
    plan: Plan, *, adapters: Sequence[Path] = (), out: Path = Path("reports"), name: str | None = None,
    command: str = "fllm.sweep(...)", how: How | None = None, observer: SweepObserver | None = None,
) -> SweepResult:  # fmt: skip
    """Run a sweep.

    Args:
        plan: What is varied; see :func:`fllm.sweeps.plan.make_plan`.
        adapters: Folders of finished runs, one for each seed, whose adapters are evaluated; without any, they are
            trained first. Only in mode ``evaluate``.
        out: Folder that gets the sweep's own folder.
        name: Name of that folder; None is made of device and time.
        command: How the sweep was started, for the report.
        how: Engine and workers.
        observer: Is told about progress.

    Returns:
        The result.

    Raises:
        InputError: If an input is bad; nothing is written then.
        SweepInterrupted: If the user stopped it.
    """
    started = time.monotonic()
    folder = out / (name or f"sweep-{load_device(plan.config.device_model).name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    check_engine((how or How()).engine)
    _check_free(folder)
    trained = (
        [given_adapter(path, plan, seed) for path, seed in zip(adapters, plan.seeds, strict=True)] if adapters else []
    )
    record = describe(plan, [facts | {"folder": _from(folder, facts["folder"])} for facts in trained])
    record |= {"name": folder.name, "command": command, "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=str(folder), remedy="check --out") from None
    with _locked(folder):
        _check_free(folder)  # again: another process may have come between
        try:
            write_result(folder / RESULT, record)
            return _go_on(_Sweep(plan, folder, record, how or How(), observer or SweepObserver()), started)
        except InputError:
            _leave_nothing(folder, made)
            raise


def resume(folder: Path, *, how: How | None = None, observer: SweepObserver | None = None) -> SweepResult:
    """Finish an interrupted sweep: only what is missing is computed; the table ends as without the interruption.

    Raises:
        InputError: If there is no such sweep, nothing is missing, or device, adapter or data changed since it began.
    """
    started, how = time.monotonic(), how or How()
    check_engine(how.engine)
    record = read_result(folder / RESULT)
    if record.get("kind") != SWEEP:
        raise InputError("a run, no sweep", where=str(folder), remedy="fllm-run --resume continues a run")
    if record["status"] == "completed" and not (how.retry_failed and record["final"]["failed"]):
        raise InputError(
            "the sweep is complete", where=str(folder),
            remedy="--retry-failed tries failed points again" if record["final"]["failed"] else "start a new one",
        )  # fmt: skip
    plan = plan_of(record, str(folder / RESULT))
    if [point.sha256 for point in plan.points] != [former["settings_sha256"] for former in record["points"]]:
        raise InputError("a device file changed since the sweep began", where=str(folder), remedy="start anew")
    record |= {"status": "running", "final": None}
    with _locked(folder):
        return _go_on(_Sweep(plan, folder, record, how, observer or SweepObserver()), started)


def _from(folder: Path, path: str) -> str:
    """Return a path as seen from a folder, so that both can be moved and nobody's home stands in the record."""
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path


def _check_free(folder: Path) -> None:
    """Refuse a folder with a record or a table: rows of something else must not count as done, nor be lost."""
    if (folder / RESULT).exists() or (folder / TABLE).exists():
        raise InputError("something is there already", where=str(folder), remedy="give another --name, or --resume it")


def _leave_nothing(folder: Path, made: Sequence[Path]) -> None:
    """Take back what a sweep has written whose input turned out to be bad before anything was computed."""
    table = folder / TABLE
    if any(path.is_dir() for path in folder.iterdir()) or (table.exists() and table.read_bytes().count(b"\n") > 1):
        return
    for name in (RESULT, TABLE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # Windows keeps a lock that is held; or something of the user's is in it
        (folder / LOCK).unlink(missing_ok=True)
        for path in made:
            path.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process off the folder; the lock ends with the process that holds it, however it ends."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield  # the empty file stays: to remove it would race with a process that opens it
    except Timeout:
        raise InputError("another process works on this sweep", where=str(folder), remedy="wait for it") from None


class _Sweep:
    """A sweep that goes on: its plan, its folder and what it knows so far."""

    def __init__(
        self, plan: Plan, folder: Path, record: dict[str, Any], how: How, observer: SweepObserver
    ) -> None:  # fmt: skip
        self.plan, self.folder, self.record, self.how, self.observer = plan, folder, record, how, observer
        words = [key["column"] for key in record["keys"] if not key["ordered"]]
        self.table = Table(folder / TABLE, columns_of([key.column for key in plan.keys]), words)
        self.twins = {
            point.number: [twin for twin in plan.points if point.number in (twin.number, twin.same_as)]
            for point in plan.points
            if point.same_as is None
        }
        self._saved = time.monotonic()
        self._recall_warnings()

    def run(self) -> None:
        """Train what is needed, then compute every row that is missing."""
        self._train_adapters()
        write_result(self.folder / RESULT, self.record)  # from here on it is no longer complete or interrupted
        if self.how.retry_failed:
            self.table.keep(lambda row: row["status"] != FAILED)
        tasks = self._tasks()
        total = len(self.plan.points) * len(self.plan.seeds) * self.plan.dies
        self.observer.rows_expected(total, total - sum(len(t.dies) * len(self.twins[t.point]) for t in tasks))
        self.observer.stage("evaluating" if self.plan.mode == "evaluate" else "training and evaluating")
        for done in ENGINES[self.how.engine](tasks, self.how.workers):
            self._take(done)

    def _recall_warnings(self) -> None:
        """Find again what there was to warn of at points whose rows came after the last write of the record."""
        known = {row["point"] for row in self.record["rows"]}
        for row in self.table.rows:
            if row["status"] == OK and row["point"] not in known:
                known.add(row["point"])
                config = self.plan.config_of(self.plan.points[row["point"]], row["seed"])
                device = load_device(config.device_model, config.device)
                self.record["points"][row["point"]]["warnings"] = warnings_of(device, row)

    def _train_adapters(self) -> None:
        """Make sure that there is an adapter for each seed, as it was when the sweep began."""
        if self.plan.mode == "train":
            return
        if not self.record["adapters"]:
            self.record["adapters"] = [self._trained(seed) for seed in self.plan.seeds]
        for adapter in self.record["adapters"]:
            folder = self.folder / adapter["folder"]
            run = read_result(folder / RESULT)
            data = self.plan.config.data_dir or ", ".join(self.plan.config.data_files)
            if data and read_corpus(self.plan.config).sha256 != run["data"]["sha256"]:
                raise InputError("the data changed since the adapter was trained", where=data, remedy="train it anew")
            recorded = None if run["final"] is None else run["final"]["adapter_sha256"]
            if not recorded == stored_digest(folder / ADAPTER) == adapter["sha256"]:
                raise InputError("the adapter changed since it was trained", where=adapter["folder"])
            self._take_facts(run)

    def _trained(self, seed: int) -> dict[str, Any]:
        from fllm.runs import run_or_resume

        logging.getLogger("flwr").setLevel(logging.ERROR)  # set by the import above to INFO
        folder = self.folder / f"trained-seed{seed}"
        config = with_settings(self.plan.config, {"seed": seed, **WITHOUT_EXTRAS})
        run_or_resume(config, folder, command=self.record["command"], observer=self.observer)
        return adapter_facts(Path(folder.name), read_result(folder / RESULT))  # stays right where the sweep is moved

    def _take_facts(self, run: Mapping[str, Any]) -> None:
        """Describe data, model and baselines by the run of the first seed."""
        if not self.record["data"] and run["config"]["seed"] == self.plan.seeds[0]:
            self.record |= {key: run[key] for key in _OF_THE_RUN}
            write_result(self.folder / RESULT, self.record)

    def _tasks(self) -> list[Task]:
        """Cut what is missing into tasks, the base device first; a combination that is no device fails here."""
        tasks = []
        size = self.plan.dies if self.plan.mode == "train" else DIES_PER_TASK  # no two workers train in one folder
        for seed in self.plan.seeds:
            for point in sorted(self.plan.points, key=lambda point: not point.base):
                twins = self.twins.get(point.number, [])
                missing = [
                    die for die in range(self.plan.dies)
                    if not all((twin.number, seed, die) in self.table.places for twin in twins)
                ]  # fmt: skip
                for first in range(0, len(missing), size):
                    dies = tuple(missing[first : first + size])
                    task = Task(point.number, seed, dies, self.plan.config, **self._adapter(point, seed))
                    try:
                        tasks.append(replace(task, config=_anywhere(self.plan.config_of(point, seed))))
                    except InputError as error:
                        self._take(failed(task, str(error)))
        return tasks

    def _adapter(self, point: Point, seed: int) -> dict[str, Any]:
        """Return where the adapter of a point lies, the run that makes it, and its base model."""
        if self.plan.mode == "train":
            run = self.folder.resolve() / "runs" / f"{point.sha256}-seed{seed}"
            return {"adapter": run / ADAPTER, "train": run}
        known = next(adapter for adapter in self.record["adapters"] if adapter["seed"] == seed)
        adapter = self.folder.resolve() / known["folder"] / ADAPTER
        return {"adapter": adapter, "model_sha256": known["model_sha256"]}

    def _take(self, done: Done) -> None:
        """Put what came of a task into the table, for the point and those of equal settings."""
        twins, task = self.twins[done.task.point], done.task
        rows = [self._row(twin, row) for twin in twins for row in done.rows]
        self.table.append([row for row in rows if place_of(row) not in self.table.places])
        for twin in twins:
            self.record["points"][twin.number]["warnings"] = list(done.warnings)
        if task.train is not None and self.plan.points[task.point].base and (task.train / RESULT).exists():
            self._take_facts(read_result(task.train / RESULT))
        reasons = [row["reason"] for row in done.rows if row["status"] == FAILED]
        self.observer.rows_done(len(task.dies) * len(twins), reasons[0] if reasons else None)
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def _row(self, point: Point, found: Mapping[str, Any]) -> dict[str, Any]:
        """Complete a row: every column, words as text, null for what is not finite."""
        row = dict.fromkeys(self.table.columns) | dict(found)
        for key, described in zip(self.plan.keys, self.record["keys"], strict=True):
            value = point.values.get(key.name)
            row[key.column] = value if described["ordered"] or value is None else str(value)
        row |= {"point": point.number, "settings_sha256": point.sha256}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}

    def save(self) -> None:
        """Write ``result.json`` with the rows so far."""
        self._saved = time.monotonic()
        self.table.sort()
        period = self.record["device"]["token_period"]
        if period["value_s"] is None:  # of token_period auto the base device's rows know it
            base = {point.number for point in self.plan.points if point.base}
            period["value_s"] = next((r["token_period_s"] for r in self.table.rows if r["point"] in base), None)
        self.record["rows"] = self.table.rows
        write_result(self.folder / RESULT, self.record)


def _anywhere(config: RunConfig) -> RunConfig:
    """Return a configuration whose files are found from any working directory."""
    named = {key: getattr(config, key) for key in ("device_model", "model", "data_dir", "network")}
    found = {key: str(Path(value).resolve()) for key, value in named.items() if value and Path(value).exists()}
    return config.model_copy(update=found)


def _go_on(current: _Sweep, started: float) -> SweepResult:
    record = current.record

    def end(status: str, final: dict[str, Any] | None = None) -> None:
        record.update(status=status, final=final)
        current.save()
        render(record, current.folder)

    try:
        current.run()
        current.observer.stage("writing the report")
        failures = len({row["point"] for row in current.table.rows if row["status"] == FAILED})
        end("completed", {"wall_seconds": time.monotonic() - started, "failed": failures})
    except KeyboardInterrupt:
        end("interrupted")
        raise SweepInterrupted(current.folder) from None
    return SweepResult(current.folder, record)
