"""Submit a run to a federation's SuperLink, go on with one, or simulate a federation under Ray."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from device_models import InputError
from fllm.config import RunConfig
from fllm.deployment.control import Control, FlowerRun, RefusedCommand
from fllm.deployment.folders import CA_CERTIFICATE, HOME_FOLDER, JOBS_FOLDER, RUNS_FOLDER, write_app
from fllm.deployment.following import follow
from fllm.deployment.jobs import Job, check_deployable, new_token, read_job, write_job
from fllm.deployment.processes import environment, free_port, start, stop
from fllm.deployment.settings import LOOPBACK, Federation
from fllm.observer import Observer
from fllm.results import replace_file

SIMULATION_HOME, SIMULATION_LOG = "flwr-simulation", "simulation.log"
START_SECONDS = 90.0
"""How long a SuperLink may take to answer."""


def control_of(folder: Path, federation: Federation) -> Control:
    """Return the commands to a federation's SuperLink."""
    ca = folder / CA_CERTIFICATE if federation.tls else None
    return Control(folder / HOME_FOLDER, federation.control_port, ca)


def new_job(folder: Path, config: RunConfig, name: str | None, command: str) -> Job:
    """Make a job; raises InputError if its run is there already, or sites could not follow it."""
    check_deployable(config)
    device = Path(config.device_model).stem
    name = name or f"{device}-seed{config.seed}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if (folder / RUNS_FOLDER / name).exists() or (folder / JOBS_FOLDER / f"{name}.json").exists():
        remedy = "give another --name, or --resume it"
        raise InputError("a run is there already", where=str(folder / RUNS_FOLDER / name), remedy=remedy)
    return Job(name, config, new_token(), command)


def resumed_job(folder: Path, name: str, from_round: int | None) -> Job:
    """Return the job of a run that goes on; raises InputError if there is none."""
    return replace(read_job(folder, name), resumed=True, from_round=from_round)


@dataclass(frozen=True)
class Submitted:
    """A job that a SuperLink has taken.

    Attributes:
        number: Flower's number of the run.
        record_file: Where its ``result.json`` will be.
    """

    number: str
    record_file: Path


def submit(folder: Path, job: Job, control: Control, federation: str = "") -> Submitted:
    """Submit a job.

    Args:
        folder: The server's folder.
        job: The job.
        control: The SuperLink.
        federation: Settings of a simulation.

    Raises:
        InputError: If the run that should go on has not ended.
        RefusedCommand: If the SuperLink refuses.
    """
    former = number_of(folder, job.name)
    if job.resumed and former is not None and any(run.number == former and not run.is_over for run in control.runs()):
        raise InputError("is running", where=job.name, remedy="wait for its end, or stop it")
    write_job(folder, job)
    number = control.start_run(write_app(folder), job.name, federation)
    replace_file(_number_file(folder, job.name), number + "\n")
    return Submitted(number, folder / RUNS_FOLDER / job.name / "result.json")


def number_of(folder: Path, name: str) -> str | None:
    """Return Flower's number of a run by its name; None where it was never submitted."""
    file = _number_file(folder, name)
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def names_of_runs(folder: Path) -> dict[str, str]:
    """Return the name of each run that was submitted, by Flower's number."""
    files = sorted((folder / JOBS_FOLDER).glob("*.number"))
    return {file.read_text(encoding="utf-8").strip(): file.name.removesuffix(".number") for file in files}


def _number_file(folder: Path, name: str) -> Path:
    return folder / JOBS_FOLDER / f"{name}.number"


def simulate(folder: Path, job: Job, workers: int, observer: Observer) -> FlowerRun:
    """Run a job in Flower's simulation under Ray, with a SuperLink of its own that ends with it.

    Args:
        folder: Gets the job, its run and the simulation's log.
        job: The job.
        workers: Processes that train clients at the same time.
        observer: Is told about rounds.

    Raises:
        InputError: If Ray is not installed.
        RefusedCommand: If the SuperLink does not start.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("Ray is not installed", where="simulate", remedy="pip install 'fllm[ray]', or use fllm-run")
    home, port = folder / SIMULATION_HOME, free_port()
    home.mkdir(parents=True, exist_ok=True)
    command = ["flower-superlink", "--insecure", "--simulation", "--host", LOOPBACK, "--port", str(port),
               "--disable-runtime-dependency-installation"]  # fmt: skip
    control = Control(home, port, None)
    resources = f"num-supernodes={job.config.num_clients} client-resources-num-cpus=1 init-args-num-cpus={workers}"
    process = start(command, environment(home), log=folder / SIMULATION_LOG)
    try:
        observer.stage("starting Flower's simulation")
        wait_for(control, lambda: process.poll() is None)
        submitted = submit(folder, job, control, resources)
        return follow(control, submitted.number, submitted.record_file, observer)
    finally:
        stop(process)


def wait_for(control: Control, is_alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a SuperLink answers; raises RefusedCommand if it does not."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            control.runs()
            return
        except RefusedCommand:
            if not is_alive() or time.monotonic() > end:
                raise
            time.sleep(1.0)
