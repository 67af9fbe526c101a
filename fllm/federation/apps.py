"""The ServerApp and the ClientApp that Flower's own processes load, on a server, at a site, and in its simulation.

Both find their folder through Flower's: a SuperLink started by ``fllm federation`` has it within the server's folder. A
site is named by its SuperNode's settings; a simulated client has none, and reads the run where the server does.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from device_models import InputError
from fllm.deployment.folders import RUNS_FOLDER
from fllm.deployment.jobs import BASE, RUN, SiteRun, read_job, site_run, told
from fllm.deployment.settings import read_site
from fllm.observer import Observer

SITE = "site"
"""Setting of a SuperNode: the file with the settings of its site."""


class ClientApplication(ClientApp):
    """The application of this project's clients, made when a first message tells the run."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; a client that raises answers with the type of its exception and no more."""
        from fllm.federation.engines import CLIENT_FAILED

        try:
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
    if job.resumed and (there / RESULT).exists():
        resume(there, from_round=job.from_round, observer=observer, engine=engine)
    else:  # it may have been stopped before its first round
        run(job.config, out=there.parent, name=name, command=job.command, observer=observer, engine=engine)


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
    if RUN in settings:
        return _loaded(str(settings[RUN]), str(settings[BASE]), partition, None if site is None else str(site),
                       str(context.run_config["job"]))  # fmt: skip
    return _unloaded()


@lru_cache(1)
def _unloaded() -> ClientApp:
    """Return the application of a client that has not been told its run; it can say who it is."""
    from fllm.federation.client_app import Trainer, make_client_app

    def trainer_of(_: int) -> Trainer:
        raise InputError("a message without a run", where="server", remedy="have the same version of fllm as there")

    return make_client_app(trainer_of)


@lru_cache(1)
def _loaded(text: str, base: str, partition: int, site: str | None, job: str) -> ClientApp:
    """Load a client; a process that answers several messages loads it once."""
    import torch

    from fllm.local_clients import client_app_of
    from fllm.preparation import load_hospital

    found = _simulated(job) if site is None else site_run(text, read_site(Path(site)))
    torch.set_num_threads(found.config.threads or 1)
    hospital, first, sha256 = load_hospital(found.config, partition, own_cases=found.own_cases)
    if sha256 != base:
        raise InputError("is another base model than the server's", where=f"model {found.config.model or 'shipped'}",
                         expected=base[:12], received=sha256[:12], remedy="name a copy of it in site.yaml")  # fmt: skip
    return client_app_of(found.config, found.kept, {partition: hospital}.__getitem__, first)


def _simulated(job: str) -> SiteRun:
    """Read the run of a simulated client, which is on the server's machine."""
    found = read_job(_home(), job)
    return SiteRun(found.config, _home() / RUNS_FOLDER / job / "clients", own_cases=False)


def _say(problem: Exception) -> None:
    """Tell the operator of this machine; what we did not mean to raise loses its message, which could quote a note."""
    if isinstance(problem, InputError):
        print(f"error: {problem}", file=sys.stderr, flush=True)
        return
    places = "".join(traceback.format_tb(problem.__traceback__))
    print(f"{places}internal error: {type(problem).__name__}", file=sys.stderr, flush=True)
