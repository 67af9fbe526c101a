"""One run: configuration in, federated rounds, ``result.json``, adapter and report out; resumable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from device_models import InputError
from fllm.checkpoints import (
    Checkpoint,
    drop_old_checkpoints,
    kept_rounds,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from fllm.chip_table import score_on_chips, table_of_chips
from fllm.client_energy import training_cost
from fllm.config import RunConfig, validate_config
from fllm.evaluation.chips import ChipScores
from fllm.federation.kept import Kept
from fllm.federation.privacy_client import BudgetSpent
from fllm.federation.server_app import Round, RoundFailed, Start, federate
from fllm.local_clients import exchange_of, local_grid, terms_of
from fllm.lora_baselines import key_of, lora_baseline
from fllm.model.adapters import adapter_digest, frozen_adapter
from fllm.observer import Observer
from fllm.outcome import Evaluation, final_facts, metrics_of, round_row
from fllm.preparation import Prepared, identity_of, prepare, privacy_of
from fllm.report import render
from fllm.results import read_result, remove_unfinished, write_clients_csv, write_result, write_rounds_csv
from fllm.trained import trained_of
from hwsim.effects import is_configured

RESULT = "result.json"
NEXT = ".next"
KEPT = "clients"
"""Folder of what clients of this machine keep from round to round."""


class Interrupted(KeyboardInterrupt):
    """The user stopped a run; its state is saved in ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and the content of its ``result.json``."""

    folder: Path
    result: dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """Where the clients of a run are.

    Attributes:
        workers: Processes of this machine that train clients at the same time; 1 trains in the run's own.
        grid: Grid of a deployment, whose clients are elsewhere; None is this machine.
        message: What every message to them tells beside the adapter.
    """

    workers: int = 1
    grid: Grid | None = None
    message: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def open(self, prepared: Prepared, folder: Path) -> Iterator[Grid]:
        """Give the grid; what clients of this machine keep lies in a folder."""
        if self.grid is not None:
            yield self.grid
            return
        with local_grid(prepared, folder, self.workers) as grid:
            yield grid


HERE = Engine()


def run(
    config: RunConfig, *, out: Path = Path("reports"), name: str | None = None, command: str = "fllm.run(...)",
    observer: Observer | None = None, engine: Engine = HERE,
) -> RunResult:  # fmt: skip
    """Run federated fine-tuning through the emulated device, or only evaluate a trained adapter on it.

    Args:
        config: The configuration.
        out: Folder that gets the run's own folder.
        name: Name of that folder; None is made of device, seed and time.
        command: How the run was started, for the report.
        observer: Is told about stages and rounds.
        engine: Where the clients are; no result depends on it.

    Returns:
        The result; its folder holds ``result.json``, ``rounds.csv``, ``clients.csv``, ``report.html``, figures, and
        ``adapter/`` if one was trained, or ``adapters/`` with one for each client.

    Raises:
        InputError: If an input is bad; nothing is written then.
        RoundFailed: If no client sent a usable update in a round.
    """
    observer = observer or Observer()
    started = time.monotonic()
    _check_engine(config, engine)
    prepared = prepare(config, observer)
    folder = out / (name or f"{prepared.device.name}-seed{config.seed}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if (folder / RESULT).exists():
        raise InputError("a run is there already", where=str(folder), remedy="give another --name, or --resume it")
    prepared.record.update(
        {"name": folder.name, "command": command, "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    )
    return _go_on(prepared, folder, observer, started, engine)


def resume(
    folder: Path, *, from_round: int | None = None, observer: Observer | None = None, engine: Engine = HERE
) -> RunResult:
    """Continue an interrupted run from its last whole round; it ends as an uninterrupted one would have.

    Args:
        folder: The run.
        from_round: An earlier round to go on from, where the checkpoint of the last one is damaged.
        observer: Is told about stages and rounds.
        engine: Where the clients are; need not be the one that the run began with.

    Raises:
        InputError: If there is no such run, it is complete, its checkpoint is gone or damaged, or data, model, device
            or adapter are not those it began with.
    """
    observer = observer or Observer()
    started = time.monotonic()
    former = read_result(folder / RESULT)
    if former["status"] == "completed":
        _tidy(folder)  # it may have been killed before it did so itself
        raise InputError("the run is complete", where=str(folder), remedy="start a new one without --resume")
    config = validate_config(former["config"], str(folder / RESULT))
    _check_engine(config, engine)
    rows = former["rounds"] if from_round is None else _up_to(former["rounds"], from_round, folder)
    if engine.grid is None:
        _check_kept(config, rows, folder / KEPT)
    prepared = prepare(config, observer)
    for what, key in (
        ("data", "sha256"), ("model", "sha256"), ("device", "file_sha256"), ("client_devices", "sha256"),
        ("adapter", "sha256"),
    ):  # fmt: skip
        if what in former and prepared.record[what][key] != former[what][key]:
            raise InputError(f"the {what} changed since the run began", where=str(folder), remedy="start a new run")
    prepared.record.update({key: former[key] for key in ("name", "command", "created")} | {"rounds": rows})
    trained = [key_of(kind) for kind in prepared.config.lora_baselines]
    prepared.record["baselines"] |= {key: former["baselines"][key] for key in trained if key in former["baselines"]}
    return _go_on(prepared, folder, observer, started, engine)


def run_or_resume(config: RunConfig, folder: Path, *, command: str, observer: Observer | None = None) -> None:
    """See to it that there is a finished run in a folder; raises as :func:`run` and :func:`resume` do."""
    if not (folder / RESULT).exists():
        run(config, out=folder.parent, name=folder.name, command=command, observer=observer)
    elif read_result(folder / RESULT)["status"] != "completed":
        resume(folder, observer=observer)


def _go_on(prepared: Prepared, folder: Path, observer: Observer, started: float, engine: Engine) -> RunResult:
    """Run the rounds that are missing; an interruption leaves the last whole one to go on from."""
    record = prepared.record
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=str(folder), remedy="check --out") from None
    try:
        observer.run_started(record, folder)
        result = _finish(prepared, folder, observer, started, engine)
    except KeyboardInterrupt:
        if not record["rounds"]:
            raise
        record["status"] = "interrupted"
        _write(record, folder)
        render(record, folder)
        raise Interrupted(folder) from None
    except RoundFailed:
        record["status"] = "interrupted"
        _write(record, folder)
        raise
    finally:
        observer.run_ended(record)
    _tidy(folder)
    return result


def _tidy(folder: Path) -> None:
    """Remove what only a run that goes on needs, and what one that was killed was just writing."""
    remove_checkpoints(folder)
    remove_unfinished(folder)
    shutil.rmtree(folder / KEPT, ignore_errors=True)


def _finish(prepared: Prepared, folder: Path, observer: Observer, started: float, engine: Engine) -> RunResult:
    """Run the rounds that are missing, writing the state after each."""
    record, config = prepared.record, prepared.config
    state = _State(prepared, folder, observer)
    start = state.restored()
    if start.first_round > state.last_round:
        state.begin()
    else:
        with engine.open(prepared, folder / KEPT) as grid:  # processes load their model meanwhile
            state.begin()
            observer.stage(f"training round {start.first_round}")
            terms = replace(terms_of(config, engine.message), privacy=privacy_of(config, prepared.sizes))
            try:
                federate(grid, terms, start, state.add)
            except BudgetSpent as end:
                record["privacy"] = {"ended": str(end)}
    scores = state.settled()
    chips = score_on_chips(prepared, scores, observer.stage) if config.chip_table else None
    if not config.evaluate_only:
        _add_baselines(prepared, folder, observer, chips)
    observer.stage("writing the report")
    record["final"] = final_facts(prepared, scores, time.monotonic() - started)
    if chips is not None:
        record["final"]["chips"] = table_of_chips(chips, prepared)
    if is_configured(prepared.device, "refresh") and not record["final"]["counts"].get("attention.refresh_conversion"):
        record["warnings"].append("no effect of refresh: no token of this run grew as old as its interval")
    record["status"] = "completed"
    render(record, folder)
    _write(record, folder)  # last: a run that is complete has its report
    return RunResult(folder, record)


class _State:
    """A run between two rounds: what it trains, its record on disk, and the last scores.

    Args:
        prepared: The run.
        folder: Its folder.
        observer: Is told about rounds.
    """

    def __init__(self, prepared: Prepared, folder: Path, observer: Observer) -> None:
        self._prepared, self._folder, self._observer = prepared, folder, observer
        self._trained = trained_of(prepared, exchange_of(prepared.config), Kept(folder / KEPT))
        self._scores: Evaluation | None = None
        self.last_round = 0 if prepared.config.evaluate_only else prepared.config.num_rounds

    def restored(self) -> Start:
        """Take the last whole round, and return where to start."""
        model, rows = self._prepared.model, self._prepared.record["rounds"]
        finished = sum(row["round"] > 0 for row in rows)
        start = Start(self._trained.shared(), frozen=frozen_adapter(model))
        if not finished:
            return start
        checkpoint = _checkpoint(self._folder, rows[-1])
        self._trained.restore(checkpoint.adapter, checkpoint.number)
        self._publish()
        return replace(
            start, adapter=self._trained.shared(), first_round=finished + 1, strategy_state=checkpoint.strategy
        )

    def begin(self) -> None:
        """Evaluate the model that the first round starts from, and tell of the rounds that are there."""
        record = self._prepared.record
        if not record["rounds"]:
            record["rounds"] = [self._row(0, self._evaluated("the model"))]
            _write(record, self._folder)
        for row in record["rounds"]:
            self._observer.round_done(row, self.last_round)

    def add(self, outcome: Round) -> None:
        """Evaluate a round if it is its turn, and write its checkpoint and its row."""
        record, folder, number = self._prepared.record, self._folder, outcome.number
        self._trained.take(outcome)
        self._scores = None
        if number % self._prepared.config.evaluate_every == 0 or number == self.last_round:
            self._evaluated(f"round {number}")
        row = self._row(number, self._scores, outcome)
        row["training"] = training_cost([row], self._prepared)
        # Before its row: a recorded round has its checkpoint
        save_checkpoint(folder, Checkpoint(number, self._trained.tensors(), outcome.strategy_state))
        record["rounds"].append(row)
        _write(record, folder)
        self._publish()
        drop_old_checkpoints(folder, number)
        self._observer.round_done(row, self.last_round)
        if number < self.last_round:
            self._observer.stage(f"training round {number + 1}")

    def settled(self) -> Evaluation:
        """Return the scores of the last round; evaluates where that was another process's, or the end came early."""
        row = self._prepared.record["rounds"][-1]
        scores = self._scores or self._evaluated("the model")
        row |= metrics_of(scores)
        return scores

    def _evaluated(self, what: str) -> Evaluation:
        self._observer.stage(f"evaluating {what}")
        self._scores = self._trained.evaluate()
        return self._scores

    def _row(self, number: int, scores: Evaluation | None, outcome: Round | None = None) -> dict[str, Any]:
        return round_row(number, self._prepared, scores, outcome, self._trained.tensors())

    def _publish(self) -> None:
        """Put what the last round left into its folder; stopped anywhere, the checkpoint is whole."""
        prepared, place = self._prepared, self._folder / self._trained.folder
        following = place.with_name(place.name + NEXT)
        shutil.rmtree(following, ignore_errors=True)
        self._trained.save(following, identity_of(prepared.config, prepared.bench.loaded, prepared.device))
        if place.is_dir():
            shutil.rmtree(place)
        following.rename(place)


def _add_baselines(prepared: Prepared, folder: Path, observer: Observer, chips: ChipScores | None) -> None:
    """Train the baselines that are missing, and keep each as soon as it is done."""
    record = prepared.record
    for kind in prepared.config.lora_baselines:
        if key_of(kind) not in record["baselines"]:
            record["baselines"][key_of(kind)] = lora_baseline(kind, prepared, observer.stage, chips)
            _write(record, folder)


def _up_to(rows: list[dict[str, Any]], number: int, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run up to a round; raises InputError where it has none."""
    known = sorted({row["round"] for row in rows} & set(kept_rounds(folder)))
    if not known:
        raise InputError("there is no checkpoint to go on from", where=f"--from-round of {folder}",
                         remedy="start a new run")  # fmt: skip
    if number not in known:
        raise InputError(
            "no such round", where=f"--from-round of {folder}", expected=f"one of {known}", received=number
        )
    return [row for row in rows if row["round"] <= number]


def _checkpoint(folder: Path, row: dict[str, Any]) -> Checkpoint:
    """Return the checkpoint of a recorded round; raises InputError where it is not whole or not that round's."""
    found = load_checkpoint(folder, row["round"])
    if adapter_digest(found.adapter) != row["adapter_sha256"]:
        raise InputError("the checkpoint of the last round is of another run", where=str(folder))
    return found


def _check_engine(config: RunConfig, engine: Engine) -> None:
    """Refuse clients elsewhere where they would have to be scored here; raises InputError."""
    if engine.grid is not None and config.strategy.factors == "share_a":
        raise InputError(
            "every client keeps a part of its adapter, and test cases are scored here", where="strategy.factors",
            expected="another value in a deployment", received="share_a", remedy="train with fllm-run",
        )  # fmt: skip


def _check_kept(config: RunConfig, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Check that what rounding took from clients' updates is there, which the next ones need; raises InputError."""
    if config.wire == "float32":
        return
    last: dict[int, int] = {}
    for row in rows:
        last |= {one["client"]: row["round"] for one in row.get("participants", ()) if one["reason"] is None}
    for client, number in sorted(last.items()):
        if not Kept(folder).is_whole(client, number):
            raise InputError(
                f"what client {client} kept in round {number} is gone or damaged", where=str(folder),
                remedy="start a new run",
            )  # fmt: skip


def _write(record: dict[str, Any], folder: Path) -> None:
    write_rounds_csv(folder / "rounds.csv", record)
    write_clients_csv(folder / "clients.csv", record)
    write_result(folder / RESULT, record)
