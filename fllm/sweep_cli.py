"""``fllm sweep``: vary keys, see what they do to accuracy, energy and latency."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from device_models import InputError
from fllm.console import EXIT_FAILED, EXIT_INTERRUPTED, ProgressTerminal, folder_name, print_error, quiet_libraries
from fllm.observer import SweepObserver
from fllm.report.formatting import plural

SHOWN = 12
"""Points that a dry run lists."""
_OF_RESUMING = ("resume", "engine", "workers", "retry_failed")
_OF_OPTIONS = {"dies": "--dies", "seed": "--seed"}


def sweep(
    context: typer.Context,
    device_model: Annotated[
        str | None, typer.Option(help="Device file, or name of a shipped one; default gaincell_28nm.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of the device or the run and its values: readout.bits=3:8, retention.tau='0.2 ms,1 ms,5 ms', "
            "retention.tau='log:0.2 ms:50 ms:7', variability.gain_sigma=0:0.1:0.02. Once per key."
        ),
    ] = None,
    design: Annotated[
        str, typer.Option(help="grid: all combinations; list: first with first, second with second; random; sobol.")
    ] = "grid",
    points: Annotated[int | None, typer.Option(help="Points of a random or Sobol design.")] = None,
    dies: Annotated[int, typer.Option(help="Chips on which each point is evaluated.")] = 4,
    seeds: Annotated[int, typer.Option(help="Runs, with seeds one after another, that repeat each point.")] = 1,
    mode: Annotated[
        str, typer.Option(help="evaluate: one trained adapter under each device; train: a federated run per point.")
    ] = "evaluate",
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a finished run to evaluate, one per seed; without it one is trained first."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Run file (YAML) of the base run.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any other key, fixed: --set num_rounds=5.")] = None,
    seed: Annotated[int | None, typer.Option(help="First seed.")] = None,
    engine: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Processes, one thread each; default: one per core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print points, time and memory.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="More than 10,000 points are meant.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder that gets the sweep's own folder; default reports.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep's folder.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Finish the interrupted sweep in this folder.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="With --resume: failed points again.")] = False,
) -> None:  # fmt: skip
    """Vary device and run keys; table, figures and report of accuracy against energy, tau, bits or anything else."""
    from fllm.sweeps.sweep import How, SweepInterrupted
    from fllm.sweeps.sweep import resume as resume_sweep
    from fllm.sweeps.sweep import sweep as start_sweep

    how = How(_engine(engine), _workers(workers), retry_failed)
    if retry_failed and resume is None:
        raise InputError("has no meaning for a new sweep", where="--retry-failed", expected="--resume DIR with it")
    if resume is not None:
        _nothing_else(context)
    else:
        folder_name(name)
        base = _base_config(device_model, config, set_, seed, adapter)
        plan = _plan(base, vary, design, points, mode, dies, seeds, adapter, confirmed=yes)
        if dry_run:
            _print_dry_run(plan, how.workers, adapter)
            return
    with quiet_libraries(), _Terminal(Console()) as terminal:
        try:
            if resume is not None:
                finished = resume_sweep(resume, how=how, observer=terminal)
            else:
                command = shlex.join(["fllm", *sys.argv[1:]])
                finished = start_sweep(
                    plan, adapters=adapter or (), out=out or Path("reports"), name=name, command=command, how=how,
                    observer=terminal,
                )  # fmt: skip
        except SweepInterrupted as stopped:
            terminal.close()
            print_error(
                f"interrupted; state saved. Continue with: fllm sweep --resume {shlex.quote(str(stopped.folder))}"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except RuntimeError as failed:
            if type(failed).__name__ != "RoundFailed":  # named, as importing it takes seconds
                raise
            terminal.close()
            print_error(f"failed: {failed}")
            raise typer.Exit(EXIT_FAILED) from None
    _print_summary(finished.result, finished.folder)
    if not any(row["status"] == "ok" for row in finished.result["rows"]):
        print_error("failed: no point could be evaluated; table.csv has the reasons")
        raise typer.Exit(EXIT_FAILED)


def _engine(name: str) -> str:
    if name not in ("local", "ray"):
        raise InputError("unknown engine", where="--engine", expected="local or ray", received=name)
    return name


def _workers(number: int | None) -> int:
    if number is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if number < 1:
        raise InputError("out of range", where="--workers", expected="1 or more", received=number)
    return number


def _nothing_else(context: typer.Context) -> None:
    """Refuse options that a resumed sweep would not heed."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _OF_RESUMING and source is not None and source.name == "COMMANDLINE":
            raise InputError(
                "--resume takes the settings of the sweep", where=f"--{name.rstrip('_').replace('_', '-')}",
                remedy="beside it only --engine, --workers and --retry-failed are possible",
            )  # fmt: skip


def _base_config(
    device_model: str | None, config: Path | None, set_: list[str] | None, seed: int | None, adapter: list[Path] | None
) -> Any:
    """Return the configuration of the base run: that of the adapter's run where there is one."""
    from fllm.config import load_config, parse_setting, validate_config
    from fllm.results import read_result
    from fllm.sweeps.plan import with_settings

    settings = dict(parse_setting(text) for text in set_ or [])
    for key in _OF_OPTIONS.keys() & settings.keys():
        raise InputError("stands in an option of its own", where=f"--set {key}", remedy=f"use {_OF_OPTIONS[key]}")
    settings |= {key: value for key, value in (("device_model", device_model), ("seed", seed)) if value is not None}
    if not adapter:
        return load_config(config, settings)
    if config is not None or seed is not None:
        raise InputError(
            "an adapter brings its own configuration", where="--adapter", expected="no --config, no --seed"
        )
    file = adapter[0] / "result.json"
    run = read_result(file)
    if run.get("kind") is not None:
        raise InputError("a sweep, no run", where=str(adapter[0]), expected="the folder of a completed fllm-run")
    return with_settings(validate_config(run["config"], str(file)), settings)


def _plan(
    base: Any, vary: list[str] | None, design: str, points: int | None, mode: str, dies: int, seeds: int,
    adapter: list[Path] | None, *, confirmed: bool,
) -> Any:  # fmt: skip
    from fllm.results import read_result
    from fllm.sweeps.design import DESIGNS, parse_vary
    from fllm.sweeps.plan import MODES, make_plan

    if design not in DESIGNS:
        raise InputError("unknown design", where="--design", expected=", ".join(DESIGNS), received=design)
    if mode not in MODES:
        raise InputError("unknown mode", where="--mode", expected=" or ".join(MODES), received=mode)
    if seeds < 1:
        raise InputError("out of range", where="--seeds", expected="1 or more", received=seeds)
    numbers = [base.seed + index for index in range(seeds)]
    if adapter:
        if mode == "train" or seeds != 1:
            raise InputError("belongs to --mode evaluate, and stands for its seed", where="--adapter",
                             expected="neither --mode train nor --seeds")  # fmt: skip
        numbers = [read_result(path / "result.json")["config"]["seed"] for path in adapter]
        if len(set(numbers)) < len(numbers):
            raise InputError("two adapters of one seed", where="--adapter", received=numbers)
    return make_plan(
        base, [parse_vary(text) for text in vary or []], design=design, points=points, mode=mode, dies=dies,
        seeds=numbers, confirmed=confirmed,
    )  # fmt: skip


def _print_dry_run(plan: Any, workers: int, adapter: list[Path] | None) -> None:
    from fllm.sweeps.estimate import estimate
    from fllm.sweeps.record import given_adapter

    for path, seed in zip(adapter or (), plan.seeds, strict=False):
        given_adapter(path, plan, seed)
    console = Console()
    points = plan.points
    laid = sum(not point.added for point in points)
    replicates = f"{plural(plan.dies, 'die')}, {plural(len(plan.seeds), 'seed')}"
    lines = [f"{plural(laid, 'point')} ({plan.design}), {replicates}"]
    lines += [f"  {point.number:>4}  {_in_words(point)}" for point in points[:SHOWN]]
    if len(points) > SHOWN:
        lines.append(f"   ...  {len(points) - SHOWN} more")
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    with quiet_libraries(), console.status("trying a few evaluations on this machine"):
        found = estimate(plan, workers, adapters=len(adapter or ()))
    for line in found.lines():
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _in_words(point: Any) -> str:
    """Write the settings of a point, and what is special about it."""
    marks = {
        "the base device": point.base,
        "added for comparison": point.added,
        f"same as point {point.same_as}, computed once": point.same_as is not None,
    }
    settings = ", ".join(f"{key} = {value}" for key, value in point.settings.items())
    return "  ".join([settings, *(f"({text})" for text, holds in marks.items() if holds)])


class _Terminal(ProgressTerminal, SweepObserver):
    """Progress of a sweep, and of the runs that train its adapters."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        super().__init__(console, Progress(*columns, console=console, transient=True), what="")
        self._failures = 0

    def round_done(self, row: Mapping[str, Any], total: int) -> None:
        """Advance the bar of a training."""
        self._progress.update(self._task, completed=row["round"], total=total, what="rounds")

    def rows_expected(self, total: int, done: int) -> None:
        """Begin the bar of the evaluations."""
        self._progress.reset(self._task, total=total, completed=done, what="evaluations")

    def rows_done(self, number: int, reason: str | None) -> None:
        """Advance the bar, and say why a point failed, the first times."""
        self._progress.advance(self._task, number)
        if reason is not None:
            self._failures += 1
            if self._failures <= 3:
                self._print(f"a point failed: {reason}")


def _print_summary(result: Mapping[str, Any], folder: Path) -> None:
    """Print what a person wants to know; everything else is in the report."""
    from fllm.report.sweep.terminal import terminal_lines

    lines = list(terminal_lines(result))
    final = result["final"]
    if final["failed"]:
        lines.append(f"failed    {plural(final['failed'], 'point')}; table.csv and the report have the reasons")
    lines += [
        f"this sweep {final['wall_seconds']:.0f} s",
        f"table     {folder / 'table.csv'}",
        f"report    {folder / 'report.html'}",
    ]
    Console().print("\n" + "\n".join(lines), soft_wrap=True, highlight=False, markup=False)
