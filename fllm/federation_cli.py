"""Command line: ``fllm federation``. Thin; heavy imports inside the commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from device_models import InputError
from fllm.console import EXIT_FAILED, EXIT_INTERRUPTED, ProgressTerminal, folder_name, print_error
from fllm.observer import Observer

if TYPE_CHECKING:
    from fllm.config import RunConfig
    from fllm.deployment.control import FlowerRun

federation_app = typer.Typer(help="A federation across hospitals, as real processes.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="Folder of the federation, as init made it.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Run file (YAML).")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Any key of a run: --set num_rounds=3.")]
Name = Annotated[str | None, typer.Option(help="Name of the run's folder.")]
Resume = Annotated[str | None, typer.Option(help="Go on with the run of this name from its last whole round.")]
FromRound = Annotated[int | None, typer.Option(help="With --resume: from an earlier round whose checkpoint is kept.")]


@federation_app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="New folder of the federation.")],
    sites: Annotated[int, typer.Option(min=1, help="Number of sites.")],
    address: Annotated[str, typer.Option(help="Host and port that sites will dial.")] = "127.0.0.1:8000",
    tls: Annotated[
        bool, typer.Option("--tls/--insecure", help="TLS and keys for every site; --insecure for one machine alone.")
    ] = True,
) -> None:
    """Make the folder of a federation: settings, certificates, and one folder for each site to take away."""
    from fllm.deployment.folders import CA_KEY, SITES_FOLDER, make_federation, site_name

    federation = make_federation(folder, sites, address, tls=tls)
    lines = [f"{folder} is made for {sites} sites that dial {address}", "copy to each site, over a private way:"]
    lines += [f"  {folder / SITES_FOLDER / site_name(number)}" for number in range(sites)]
    if federation.tls:
        lines.append(f"then delete {folder / SITES_FOLDER}: a site's node.key belongs to the site alone")
        lines.append(f"keep {folder / CA_KEY} off the network; only new certificates need it")
    lines.append(f"next: fllm federation superlink {folder}")
    _print(lines)


@federation_app.command("superlink")
def superlink(folder: Folder) -> None:
    """Run the server that sites dial, until Ctrl-C."""
    from fllm.deployment.servers import run_superlink

    raise typer.Exit(run_superlink(folder))


@federation_app.command("supernode")
def supernode(
    folder: Annotated[Path, typer.Argument(help="Folder of the site, as init made it.")],
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port on this machine for the node's own parts; default a free one."),
    ] = None,
) -> None:
    """Run this site's node, until Ctrl-C; it dials the server and opens no port to the outside."""
    from fllm.deployment.servers import run_supernode
    from fllm.deployment.settings import SITE_FILE, read_site

    site = read_site(folder / SITE_FILE)
    cases = site.data_dir or ", ".join(site.data_files) or "a part of the made-up cohort"
    _print([f"site {site.partition_id} of {site.num_partitions} dials {site.superlink}; cases: {cases}"])
    code = run_supernode(folder, port)
    if code:
        print_error("the node has ended: is its key registered, is the clock right, is the server there?")
    raise typer.Exit(code)


@federation_app.command("register")
def register(folder: Folder) -> None:
    """Tell a running server the public keys of its sites; none other may take part."""
    from fllm.deployment.control import commanding
    from fllm.deployment.registering import register_sites
    from fllm.deployment.settings import read_federation

    federation = read_federation(folder)
    with commanding(folder):
        _print([f"{name}: {what}" for name, what in register_sites(folder, federation)])


@federation_app.command("submit")
def submit(
    folder: Folder,
    config: ConfigFile = None,
    settings: Settings = None,
    name: Name = None,
    resume: Resume = None,
    from_round: FromRound = None,
    stream: Annotated[bool, typer.Option("--stream", help="Wait for the end, and show each round.")] = False,
) -> None:
    """Start a run on all sites, or go on with one; results come into the federation's folder."""
    from fllm.deployment.control import RefusedCommand, commanding
    from fllm.deployment.following import follow
    from fllm.deployment.settings import read_federation
    from fllm.deployment.submitting import control_of, new_job, resumed_job
    from fllm.deployment.submitting import submit as submit_job

    federation = read_federation(folder)
    _check_options(config, settings, name, resume, from_round)
    if resume is not None:
        job = resumed_job(folder, resume, from_round)
    else:
        job = new_job(folder, _config(config, settings, federation.sites), name, _command())
    control = control_of(folder, federation)
    with commanding(folder):
        submitted = submit_job(folder, job, control)
    if not stream:
        _print([f"submitted {job.name}", f"watch it: fllm federation status {folder}"])
        return
    again = f"fllm federation submit {folder} --resume {job.name} --stream"
    with _Terminal() as terminal:
        try:
            run = follow(control, submitted.number, submitted.record_file, terminal)
        except KeyboardInterrupt:
            terminal.close()
            print_error(f"the run goes on. Stop it with: fllm federation stop {folder} {job.name}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except RefusedCommand as problem:
            terminal.close()
            print_error(f"failed: the SuperLink is gone ({problem}). Start it again, then: {again}")
            raise typer.Exit(EXIT_FAILED) from None
    _end(run, submitted.record_file.parent, again)


@federation_app.command("stop")
def stop(folder: Folder, name: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """Stop a run; it can be resumed from its last whole round."""
    from fllm.deployment.control import commanding
    from fllm.deployment.settings import read_federation
    from fllm.deployment.submitting import control_of, number_of

    federation, number = read_federation(folder), number_of(folder, name)
    if number is None:
        raise InputError("no such run", where=str(folder), received=name)
    with commanding(folder):
        control_of(folder, federation).stop_run(number)
    _print([f"stopped {name}", f"go on with fllm federation submit {folder} --resume {name}"])


@federation_app.command("status")
def status(folder: Folder) -> None:
    """Show which sites are online, and the runs."""
    from fllm.deployment.control import commanding
    from fllm.deployment.reporting import status_lines
    from fllm.deployment.settings import read_federation

    federation = read_federation(folder)
    with commanding(folder):
        _print(status_lines(folder, federation))


@federation_app.command("simulate")
def simulate(
    folder: Annotated[Path, typer.Argument(help="Folder that gets the run; need not be there.")],
    config: ConfigFile = None,
    settings: Settings = None,
    name: Name = None,
    resume: Resume = None,
    from_round: FromRound = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train clients at the same time.")] = 2,
) -> None:
    """Run a federation on this machine in Flower's simulation under Ray (extra ``ray``)."""
    from fllm.deployment.control import RefusedCommand
    from fllm.deployment.submitting import SIMULATION_LOG, new_job, resumed_job
    from fllm.deployment.submitting import simulate as simulate_job

    _check_options(config, settings, name, resume, from_round)
    if resume is not None:
        job = resumed_job(folder, resume, from_round)
    else:
        job = new_job(folder, _config(config, settings, None), name, _command())
    with _Terminal() as terminal:
        try:
            run = simulate_job(folder, job, workers, terminal)
        except KeyboardInterrupt:
            terminal.close()
            print_error(f"interrupted. Continue with: fllm federation simulate {folder} --resume {job.name}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except RefusedCommand as problem:
            terminal.close()
            print_error(f"failed: {problem}; see {folder / SIMULATION_LOG}")
            raise typer.Exit(EXIT_FAILED) from None
    _end(run, folder / "runs" / job.name, f"fllm federation simulate {folder} --resume {job.name}")


def _check_options(
    config: Path | None, settings: list[str] | None, name: str | None, resume: str | None, from_round: int | None
) -> None:
    folder_name(name)
    if resume is None and from_round is not None:
        raise InputError("--from-round goes with --resume", expected="the name of an interrupted run")
    if resume is not None and (config is not None or settings or name is not None):
        raise InputError("--resume takes no other option", where=resume, expected="the settings of the run")


def _config(file: Path | None, settings: list[str] | None, sites: int | None) -> RunConfig:
    """Return the configuration, with as many clients as there are sites; raises InputError."""
    from fllm.config import load_config, parse_setting

    given = dict(parse_setting(text) for text in settings or [])
    config = load_config(file, given)
    if sites is None or config.num_clients == sites:
        return config
    if "num_clients" in config.model_fields_set:
        raise InputError("is not the number of sites", where="num_clients", expected=str(sites),
                         received=config.num_clients, remedy="leave it out")  # fmt: skip
    return load_config(file, given | {"num_clients": sites})


def _command() -> str:
    return shlex.join(["fllm", *sys.argv[1:]])


def _end(run: FlowerRun, folder: Path, again: str) -> None:
    """Say how a run ended; raises typer.Exit unless it was completed."""
    if run.is_completed:
        _print([f"completed in {run.seconds:.0f} s; {folder / 'report.html'}"])
        return
    print_error(f"{run.status.removeprefix('finished:')}: {run.reason}. Continue with: {again}")
    raise typer.Exit(EXIT_FAILED)


def _print(lines: list[str]) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in lines:
        console.print(line)


class _Terminal(ProgressTerminal, Observer):
    """What goes on, and a line for each round."""

    def __init__(self) -> None:
        console = Console()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        super().__init__(console, Progress(*columns, console=console, transient=True))

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        """Print a round as the server recorded it."""
        from fllm.deployment.reporting import round_line

        self._print(round_line(row, total))
        for reason in row.get("failures", ()):
            self._print(f"  a site was left out: {reason}")
