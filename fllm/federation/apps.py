"""The ServerApp and the ClientApp that Flower's own processes load, on a server, at a site, and in its simulation.

Both find their folder through Flower's: a SuperLink started by ``fllm federation`` has it within the server's folder. A
site is named by its SuperNode's settings; a simulated client has none, and reads the run where the server does.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from device_models import InputError
from fllm.console import quiet_libraries
from fllm.deployment.folders import JOBS_FOLDER, RUNS_FOLDER
from fllm.deployment.jobs import BASE, RUN, SiteRun, read_job, site_run, told
from fllm.deployment.settings import read_site
from fllm.federation.reasons import CLIENT_FAILED
from fllm.observer import Observer

if TYPE_CHECKING:
    from torch import Tensor

    from fllm.federation.task import Hospital

SITE = "site"
"""Setting of a SuperNode: the file with the settings of its site."""
PATIENCE_S = 120.0
"""How long a run waits for another process that works on it."""


class ClientApplication(ClientApp):
    """The application of this project's clients, made when a first message tells the run."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; a client that raises answers with the type of its exception and no more."""
        try:
            with quiet_libraries():
                reply: Message = _application(message, context)(message, context)
        except Exception as problem:
            _say(problem)
            return Message(Error(code=CLIENT_FAILED, reason=type(problem).__name__), reply_to=message)
        return reply


client_app = ClientApplication()
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job that Flower names, or go on with it."""
    from fllm.federation.server_app import RoundFailed

    try:
        with quiet_libraries():
            _run_job(grid, str(context.run_config["job"]))
    except (InputError, RoundFailed):
        raise  # for the operator to read; Flower keeps the message
    except Exception as problem:
        _say(problem)
        raise ServerFailed(type(problem).__name__) from None


class ServerFailed(RuntimeError):
    """Our own mistake; its message is the type of the exception alone, as that could quote a note."""


def _run_job(grid: Grid, name: str) -> None:
    from fllm.runs import RESULT, Engine, resume, run

    folder = _home()
    job = read_job(folder, name)
    observer = _Reporting()
    engine = Engine(grid=grid, message=observer.message)
    observer.message[RUN] = told(job)
    there = folder / RUNS_FOLDER / name
    with _alone(folder, name):
        if job.resumed and (there / RESULT).exists():
            resume(there, from_round=job.from_round, observer=observer, engine=engine)
        else:  # it may have been stopped before its first round
            run(job.config, out=there.parent, name=name, command=job.command, observer=observer, engine=engine)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold a run: a ServerApp that was stopped may finish what it does while the next one begins."""
    lock = FileLock(folder / JOBS_FOLDER / f"{name}.lock")
    try:
        lock.acquire(timeout=PATIENCE_S)
    except Timeout:
        raise InputError("another process works on this run", where=name, remedy="wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


class _Reporting(Observer):
    """Prints a line for each round, and completes what sites are told once the base model is known."""

    def __init__(self) -> None:
        self.message: dict[str, str] = {}

    def run_started(self, record: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        self.message[BASE] = record["model"]["sha256"]

    def stage(self, what: str) -> None:
        print(what, flush=True)

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        print(f"round {row['round']} of {total} is done", flush=True)


def _home() -> Path:
    """Return the folder that Flower's own lies in; raises InputError outside of Flower's processes."""
    home = os.environ.get("FLWR_HOME")
    if home is None:
        raise InputError("FLWR_HOME is not set", where="Flower", remedy="start it with fllm federation")
    return Path(home).resolve().parent


def _application(message: Message, context: Context) -> ClientApp:
    """Return the application of the client that a message is for."""
    from fllm.federation.client_app import CONFIG, PARTITION

    settings = message.content.config_records.get(CONFIG, {})
    partition = int(context.node_config[PARTITION])
    site = context.node_config.get(SITE)
    if RUN not in settings:
        return _untold()
    if site is None:
        return _simulated(str(context.run_config["job"]))
    return _at_site(str(settings[RUN]), str(settings[BASE]), partition, str(site))


@lru_cache(1)
def _untold() -> ClientApp:
    """Return the application of a client that has not been told its run; it can say who it is."""
    from fllm.federation.client_app import Trainer, make_client_app

    def trainer_of(_: int) -> Trainer:
        raise InputError("a message without a run", where="server", remedy="have the same version of fllm as there")

    return make_client_app(trainer_of)


@lru_cache(1)
def _simulated(job: str) -> ClientApp:
    """Load all clients of a run that is on this machine; a process of the simulation serves any of them."""
    from fllm.local_clients import LocalClients
    from fllm.runs import KEPT

    return LocalClients(read_job(_home(), job).config, _home() / RUNS_FOLDER / job / KEPT)()


@lru_cache(1)
def _at_site(text: str, base: str, partition: int, site: str) -> ClientApp:
    """Make the application of a site that has been told its run; it loads its model when it first trains."""
    from fllm.local_clients import client_app_of

    found = site_run(text, read_site(Path(site)))
    client = _Client(found, partition, base)
    return client_app_of(found.config, found.kept, client.hospital_of, client.first)


class _Client:
    """One client; a process that answers several messages loads it once.

    Args:
        found: The run as it takes part in it.
        partition: Which client of the run it is.
        base: Digest of the server's base model.
    """

    def __init__(self, found: SiteRun, partition: int, base: str) -> None:
        self._found, self._partition, self._base = found, partition, base

    def hospital_of(self, _: int) -> Hospital:
        """Return the client, whichever is asked for: there is one in a process."""
        return self._loaded[0]

    def first(self) -> dict[str, Tensor]:
        """Return the adapter that it begins with."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[Hospital, dict[str, Tensor]]:
        import torch

        from fllm.preparation import load_hospital

        config = self._found.config
        torch.set_num_threads(config.threads or 1)
        hospital, first, sha256 = load_hospital(config, self._partition, own_cases=self._found.own_cases)
        if sha256 != self._base:
            raise InputError(
                "is another base model than the server's", where=f"model {config.model or 'shipped'}",
                expected=self._base[:12], received=sha256[:12], remedy="name a copy of it in site.yaml",
            )  # fmt: skip
        return hospital, first


def _say(problem: Exception) -> None:
    """Tell the operator of this machine; what we did not mean to raise loses its message, which could quote a note."""
    if isinstance(problem, InputError):
        print(f"error: {problem}", file=sys.stderr, flush=True)
        return
    places = "".join(traceback.format_tb(problem.__traceback__))
    print(f"{places}internal error: {type(problem).__name__}", file=sys.stderr, flush=True)
