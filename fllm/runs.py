"""One run: configuration in, federated rounds, ``result.json``, adapter and report out; resumable."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from device_models import InputError
from fllm.accounting import training_of
from fllm.checkpoints import (
    Checkpoint,
    drop_old_checkpoints,
    kept_rounds,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from fllm.config import RunConfig, validate_config
from fllm.federation.client_app import make_client_app
from fllm.federation.engines import InProcessGrid
from fllm.federation.server_app import Round, RoundFailed, Start, make_server_app
from fllm.lora_baselines import key_of, lora_baseline
from fllm.model.adapters import adapter_digest, frozen_adapter, get_adapter, save_adapter, set_adapter, whole_adapter
from fllm.observer import Observer
from fllm.outcome import evaluate_everywhere, final_facts, round_row
from fllm.preparation import Prepared, identity_of, prepare
from fllm.report import render
from fllm.results import read_result, write_result, write_rounds_csv
from hwsim.effects import is_configured

RESULT = "result.json"
ADAPTER = "adapter"
NEXT_ADAPTER = "adapter.next"


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


def run(
    config: RunConfig, *, out: Path = Path("reports"), name: str | None = None, command: str = "fllm.run(...)",
    observer: Observer | None = None,
) -> RunResult:  # fmt: skip
    """Run federated fine-tuning through the emulated device, or only evaluate a trained adapter on it.

    Args:
        config: The configuration.
        out: Folder that gets the run's own folder.
        name: Name of that folder; None is made of device, seed and time.
        command: How the run was started, for the report.
        observer: Is told about stages and rounds.

    Returns:
        The result; its folder holds ``result.json``, ``rounds.csv``, ``report.html``, figures, and ``adapter/`` if
        one was trained.

    Raises:
        InputError: If an input is bad; nothing is written then.
        RoundFailed: If no client sent a usable update in a round.
    """
    observer = observer or Observer()
    started = time.monotonic()
    prepared = prepare(config, observer)
    folder = out / (name or f"{prepared.device.name}-seed{config.seed}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if (folder / RESULT).exists():
        raise InputError("a run is there already", where=str(folder), remedy="give another --name, or --resume it")
    prepared.record.update(
        {"name": folder.name, "command": command, "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    )
    return _go_on(prepared, folder, observer, started)


def resume(folder: Path, *, from_round: int | None = None, observer: Observer | None = None) -> RunResult:
    """Continue an interrupted run from its last whole round; it ends as an uninterrupted one would have.

    Args:
        folder: The run.
        from_round: An earlier round to go on from, where the checkpoint of the last one is damaged.
        observer: Is told about stages and rounds.

    Raises:
        InputError: If there is no such run, it is complete, its checkpoint is gone or damaged, or data, model, device
            or adapter are not those it began with.
    """
    observer = observer or Observer()
    started = time.monotonic()
    former = read_result(folder / RESULT)
    if former["status"] == "completed":
        raise InputError("the run is complete", where=str(folder), remedy="start a new one without --resume")
    prepared = prepare(validate_config(former["config"], str(folder / RESULT)), observer)
    for what, key in (("data", "sha256"), ("model", "sha256"), ("device", "file_sha256"), ("adapter", "sha256")):
        if what in former and prepared.record[what][key] != former[what][key]:
            raise InputError(f"the {what} changed since the run began", where=str(folder), remedy="start a new run")
    prepared.record.update({key: former[key] for key in ("name", "command", "created", "rounds")})
    if from_round is not None:
        prepared.record["rounds"] = _up_to(former["rounds"], from_round, folder)
    trained = [key_of(kind) for kind in prepared.config.lora_baselines]
    prepared.record["baselines"] |= {key: former["baselines"][key] for key in trained if key in former["baselines"]}
    return _go_on(prepared, folder, observer, started)


def run_or_resume(config: RunConfig, folder: Path, *, command: str, observer: Observer | None = None) -> None:
    """See to it that there is a finished run in a folder; raises as :func:`run` and :func:`resume` do."""
    if not (folder / RESULT).exists():
        run(config, out=folder.parent, name=folder.name, command=command, observer=observer)
    elif read_result(folder / RESULT)["status"] != "completed":
        resume(folder, observer=observer)


def _go_on(prepared: Prepared, folder: Path, observer: Observer, started: float) -> RunResult:
    """Run the rounds that are missing; an interruption leaves the last whole one to go on from."""
    record = prepared.record
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made ({error.strerror})", where=str(folder), remedy="check --out") from None
    try:
        observer.run_started(record, folder)
        result = _finish(prepared, folder, observer, started)
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
    remove_checkpoints(folder)
    return result


def _finish(prepared: Prepared, folder: Path, observer: Observer, started: float) -> RunResult:
    """Run the rounds that are missing, writing the state after each."""
    record, config, model = prepared.record, prepared.config, prepared.model
    finished = sum(row["round"] > 0 for row in record["rounds"])
    start = Start(get_adapter(model), frozen=frozen_adapter(model))
    if finished:
        checkpoint = _checkpoint(folder, record["rounds"][-1])
        set_adapter(model, checkpoint.adapter)
        _publish(prepared, folder)
        start = replace(start, adapter=get_adapter(model), first_round=finished + 1, strategy_state=checkpoint.strategy)
    observer.stage("evaluating the model")
    scores = evaluate_everywhere(prepared)
    if not record["rounds"]:
        record["rounds"] = [round_row(0, prepared, scores)]
        _write(record, folder)
    last_round = 0 if config.evaluate_only else config.num_rounds
    for row in record["rounds"]:
        observer.round_done(row, last_round)

    def on_round(outcome: Round) -> None:
        nonlocal scores
        set_adapter(model, outcome.adapter)
        observer.stage(f"evaluating round {outcome.number}")
        scores = evaluate_everywhere(prepared)
        row = round_row(outcome.number, prepared, scores, outcome)
        row |= {"uplink_bytes": grid.uplink_bytes, "downlink_bytes": grid.downlink_bytes}
        row["training"] = training_of([row], prepared)
        grid.uplink_bytes = grid.downlink_bytes = 0
        # Before its row: a recorded round has its checkpoint
        save_checkpoint(folder, Checkpoint(outcome.number, whole_adapter(model), outcome.strategy_state))
        record["rounds"].append(row)
        _write(record, folder)
        _publish(prepared, folder)
        drop_old_checkpoints(folder, outcome.number)
        observer.round_done(row, last_round)
        if outcome.number < last_round:
            observer.stage(f"training round {outcome.number + 1}")

    grid = InProcessGrid(make_client_app(prepared.hospitals.__getitem__), config.num_clients)
    server = make_server_app(
        config.strategy, start, clients=config.num_clients, last_round=last_round, on_round=on_round
    )
    if finished < last_round:
        observer.stage(f"training round {finished + 1}")
        server(grid, Context(1, 0, {}, RecordDict(), {}))
    if not config.evaluate_only:
        _add_baselines(prepared, folder, observer)
    observer.stage("writing the report")
    record["final"] = final_facts(prepared, scores, time.monotonic() - started)
    if is_configured(prepared.device, "refresh") and not record["final"]["counts"].get("attention.refresh_conversion"):
        record["warnings"].append("no effect of refresh: no token of this run grew as old as its interval")
    record["status"] = "completed"
    _write(record, folder)
    render(record, folder)
    return RunResult(folder, record)


def _add_baselines(prepared: Prepared, folder: Path, observer: Observer) -> None:
    """Train the baselines that are missing, and keep each as soon as it is done."""
    record = prepared.record
    for kind in prepared.config.lora_baselines:
        if key_of(kind) not in record["baselines"]:
            record["baselines"][key_of(kind)] = lora_baseline(kind, prepared, observer.stage)
            _write(record, folder)


def _up_to(rows: list[dict[str, Any]], number: int, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run up to a round; raises InputError where it has none."""
    known = sorted({row["round"] for row in rows} & set(kept_rounds(folder)))
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


def _publish(prepared: Prepared, folder: Path) -> None:
    """Put the adapter of the last round into its folder; stopped anywhere, the checkpoint is whole."""
    identity = identity_of(prepared.config, prepared.bench.loaded, prepared.device)
    shutil.rmtree(folder / NEXT_ADAPTER, ignore_errors=True)
    save_adapter(prepared.model, folder / NEXT_ADAPTER, identity)
    if (folder / ADAPTER).is_dir():
        shutil.rmtree(folder / ADAPTER)
    (folder / NEXT_ADAPTER).rename(folder / ADAPTER)


def _write(record: dict[str, Any], folder: Path) -> None:
    write_rounds_csv(folder / "rounds.csv", record)
    write_result(folder / RESULT, record)
