"""Command line: ``fllm-run`` and ``fllm``. Thin; heavy imports inside the commands."""

from __future__ import annotations

import errno
import logging
import re
import shlex
import sys
import traceback
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from device_models import InputError, format_quantity
from fllm.base_cli import base_app
from fllm.console import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    ProgressTerminal,
    folder_name,
    print_error,
    quiet_libraries,
)
from fllm.cost_cli import cost
from fllm.data_cli import data_app
from fllm.device_cli import device_app
from fllm.federation_cli import federation_app
from fllm.generate_cli import generate
from fllm.observer import Observer, Observers
from fllm.summary import client_lines, summary
from fllm.sweep_cli import sweep

_RUN, _MODEL, _DATA, _FEDERATION = "Run", "Model and device", "Data", "Federation"
"""Groups of options in the help."""
MOST_LINES = 8
"""Clients of one round that the terminal names."""

app = typer.Typer(
    name="fllm",
    help="Federated fine-tuning of language models on emulated in-memory hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(base_app, name="base")
app.add_typer(data_app, name="data")
app.add_typer(device_app, name="device")
app.add_typer(federation_app, name="federation")
app.command("cost")(cost)
app.command("generate")(generate)
app.command("sweep")(sweep)


def main() -> None:
    """Entry point of ``fllm``."""
    _guarded(app)


def run_main() -> None:
    """Entry point of ``fllm-run``."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(run)
    _guarded(single)


def _guarded(command: typer.Typer) -> None:
    """Run a command; bad input is one line and exit code 2, never a traceback."""
    from click.exceptions import ClickException, NoArgsIsHelpError

    try:
        sys.exit(command(args=_dashed(sys.argv[1:]), standalone_mode=False) or 0)
    except InputError as problem:
        print_error(f"error: {problem}")
        sys.exit(EXIT_BAD_INPUT)
    except NoArgsIsHelpError:
        sys.exit(EXIT_BAD_INPUT)  # the help is printed already
    except ClickException as problem:
        print_error(f"error: {problem.format_message()}")
        sys.exit(EXIT_BAD_INPUT)
    except OSError as problem:
        if problem.errno == errno.ENOSPC:
            print_error("error: no space left on the disk; free some and resume")
            sys.exit(EXIT_FAILED)
        if problem.filename is None:
            _unexpected(problem)
        print_error(f"error: {problem.filename}: {problem.strerror}; check the path and its permissions")
        sys.exit(EXIT_BAD_INPUT)
    except typer.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as problem:
        _unexpected(problem)


def _unexpected(problem: Exception) -> NoReturn:
    """End with our own mistake: its place helps whoever mends it, its message could quote a note."""
    places = "".join(traceback.format_tb(problem.__traceback__))
    print_error(f"{places}internal error: {type(problem).__name__} (its message may quote data and is left out)")
    sys.exit(EXIT_FAILED)


def _dashed(arguments: list[str]) -> list[str]:
    """Accept ``--num_clients`` for ``--num-clients``; values are left alone."""
    return [
        re.sub(r"^--[A-Za-z_-]+", lambda name: "--" + name.group()[2:].replace("_", "-"), text)
        for text in arguments
    ]  # fmt: skip


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option(help="Run file (YAML); options override it.", rich_help_panel=_RUN)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other key: --set lora.r=4 --set device.readout.bits=6.", rich_help_panel=_RUN),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.", rich_help_panel=_RUN)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that gets the run's own folder; default reports.", rich_help_panel=_RUN)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run's folder.", rich_help_panel=_RUN)] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue the interrupted run in this folder; with it --from-round, --workers, --track.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    from_round: Annotated[
        int | None,
        typer.Option(
            help="Resume from an earlier round whose checkpoint is kept, usually the one before.", rich_help_panel=_RUN
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Log the rounds to tensorboard or mlflow as well; optional extras.", rich_help_panel=_RUN),
    ] = None,
    device_model: Annotated[
        str | None,
        typer.Option(help="Device file, or name of a shipped one; default gaincell_28nm.", rich_help_panel=_MODEL),
    ] = None,
    token_period: Annotated[
        str | None, typer.Option(help="Time between two tokens, such as '10 us', or 'auto'.", rich_help_panel=_MODEL)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of a Hugging Face causal language model.", rich_help_panel=_MODEL)
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Folder of a trained adapter, or of its run, to start from.", rich_help_panel=_MODEL),
    ] = None,
    evaluate_only: Annotated[
        bool,
        typer.Option(
            "--evaluate-only", help="Evaluate that adapter on the device; train nothing.", rich_help_panel=_MODEL
        ),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(help="diagnosis, csv (classes of any table) or text (language modelling).", rich_help_panel=_DATA),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder in the MIMIC-IV-Ext-CDM layout, or one such folder per client in it.", rich_help_panel=_DATA
        ),
    ] = None,
    data_file: Annotated[
        list[str] | None,
        typer.Option(
            help="Table of the task csv (CSV, TSV, JSONL, also .gz); text files of text.", rich_help_panel=_DATA
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text, several by commas.", rich_help_panel=_DATA)
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the class.", rich_help_panel=_DATA)] = None,
    client_column: Annotated[
        str | None, typer.Option(help="Column that names each row's client.", rich_help_panel=_DATA)
    ] = None,
    fields: Annotated[
        str | None, typer.Option(help="Parts of the note, separated by commas.", rich_help_panel=_DATA)
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="Cases go to clients by hospital, iid, dirichlet or age.", rich_help_panel=_DATA)
    ] = None,
    num_clients: Annotated[int | None, typer.Option(help="Clients (hospitals).", rich_help_panel=_FEDERATION)] = None,
    num_rounds: Annotated[int | None, typer.Option(help="Rounds.", rich_help_panel=_FEDERATION)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cases per local step.", rich_help_panel=_FEDERATION)] = None,
    min_clients: Annotated[
        int | None,
        typer.Option(
            help="Usable updates without which a round fails; the run can be resumed.", rich_help_panel=_FEDERATION
        ),
    ] = None,
    client_timeout: Annotated[
        str | None,
        typer.Option(
            help="Time after which a client of a round is given up, such as '10 min'; needs --workers 2 or more.",
            rich_help_panel=_FEDERATION,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that train clients at the same time; 1 trains in this one.",
            rich_help_panel=_FEDERATION,
        ),
    ] = 1,
    network: Annotated[
        str | None, typer.Option(help="Link of the clients: lan, wifi, 5g, or a file.", rich_help_panel=_FEDERATION)
    ] = None,
) -> None:
    """Fine-tune across hospitals through an emulated device; report accuracy, energy, latency and bytes."""
    from fllm.config import load_config, parse_setting
    from fllm.tracking import make_trackers

    console = Console()
    given: dict[str, object] = {
        "device_model": device_model,
        "num_clients": num_clients,
        "num_rounds": num_rounds,
        "batch_size": batch_size,
        "min_clients": min_clients,
        "client_timeout": client_timeout,
        "data_dir": data_dir,
        "task": task,
        "data_files": data_file or None,
        "text_column": text_column,
        "label_column": label_column,
        "client_column": client_column,
        "partition": partition,
        "model": model,
        "adapter": adapter,
        "evaluate_only": evaluate_only or None,
        "token_period": token_period,
        "network": network,
        "seed": seed,
        "fields": None if fields is None else [part.strip() for part in fields.split(",")],
    }
    settings = {key: value for key, value in given.items() if value is not None}
    settings |= dict(parse_setting(text) for text in set_ or [])
    folder_name(name)
    if resume is None:
        if from_round is not None:
            raise InputError("--from-round goes with --resume", expected="the folder of an interrupted run")
        resolved = load_config(config, settings)
    elif settings or config is not None or name is not None or out is not None:
        raise InputError("--resume takes no other option", where=str(resume), expected="the settings of the run")
    with quiet_libraries(), _Terminal(console) as terminal:
        observer = Observers(terminal, *make_trackers(track or (), warn=terminal.warn))
        from fllm.federation.server_app import RoundFailed
        from fllm.runs import Engine, Interrupted
        from fllm.runs import resume as resume_run
        from fllm.runs import run as start_run

        logging.getLogger("flwr").setLevel(logging.ERROR)  # set by the import above to INFO
        try:
            if resume is not None:
                finished = resume_run(resume, from_round=from_round, observer=observer, engine=Engine(workers))
            else:
                program = "fllm" if sys.argv[1:2] == ["run"] else "fllm-run"
                command = shlex.join([program, *sys.argv[1:]])
                finished = start_run(
                    resolved,
                    out=out or Path("reports"),
                    name=name,
                    command=command,
                    observer=observer,
                    engine=Engine(workers),
                )
        except Interrupted as stopped:
            terminal.close()
            print_error(f"interrupted; state saved. Continue with: fllm-run --resume {stopped.folder}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except KeyboardInterrupt:
            terminal.close()
            print_error(f"interrupted; {'nothing was lost, resume again' if resume else 'nothing was saved yet'}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except RoundFailed as failed:
            terminal.close()
            print_error(f"failed: {failed}")
            raise typer.Exit(EXIT_FAILED) from None
    console.print("\n" + summary(finished.result, finished.folder), soft_wrap=True, highlight=False, markup=False)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs or sweeps.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison of several.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Render reports again from their result.json alone; of several folders, compare them as well."""
    from fllm.report import render, render_comparison
    from fllm.results import read_result

    if out is not None and len(folders) == 1:
        raise InputError("one folder is rendered in its place", where="--out", expected="two or more to compare")
    results = [read_result(folder / "result.json") for folder in folders]
    pages = [render(result, folder)[0] for result, folder in zip(results, folders, strict=True)]
    if len(folders) > 1:
        names = [folder.resolve().name for folder in folders]
        target = out or folders[0].resolve().parent / f"comparison-{'-'.join(names)}"[:100]
        pages.append(render_comparison(results, names, target)[0])
    for page in pages:
        Console().print(str(page), soft_wrap=True, highlight=False)
    if open_:
        webbrowser.open(pages[-1].resolve().as_uri())


class _Terminal(ProgressTerminal, Observer):
    """Progress and table of a run."""

    def __init__(self, console: Console) -> None:
        progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"),
            TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        super().__init__(console, progress)
        self._heading_printed = False
        self._names: dict[int, str] = {}

    def run_started(self, record: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002 - part of the interface
        """Learn the names of the clients."""
        self._names = {client["client"]: client["name"] for client in record["data"]["clients"]}

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        """Advance the bar and print the round."""
        self._progress.update(self._task, completed=row["round"], total=total)
        if not self._heading_printed:
            self._heading_printed = True
            self._print("       training  accuracy         perplexity   energy    latency")
            self._print("round  loss      ideal   device   device       /token    /token     uplink")
        hardware = row["hardware"]
        self._print(
            f"{row['round']:<6d} {_number(row.get('train_loss'), '.3f'):<9}"
            f" {_number(row['ideal']['accuracy'], '.1%'):<7} {_number(hardware['accuracy']['mean'], '.1%'):<8}"
            f" {_number(hardware['perplexity']['mean'], '.2f'):<12}"
            f" {_quantity(row['energy_per_token_j'], 'J'):<9} {_quantity(row['latency_per_token_s'], 's'):<10}"
            f" {_kilobytes(row.get('uplink_bytes'))}"
        )
        lines = client_lines(row, self._names)
        for line in lines[:MOST_LINES]:
            self._print(f"       {line}")
        if len(lines) > MOST_LINES:
            self._print(f"       and {len(lines) - MOST_LINES} more such lines; all are in clients.csv")

    def warn(self, line: str) -> None:
        """Print a warning between the rounds."""
        self._print(f"warning  {line}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _kilobytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e3:.0f} kB"


def _quantity(value: float | None, unit: str) -> str:
    return "-" if value is None else format_quantity(value, unit)
