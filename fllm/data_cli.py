"""Command line: ``fllm data``. Thin; heavy imports inside the commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from device_models import InputError
from fllm.console import EXIT_BAD_INPUT, print_error

if TYPE_CHECKING:
    from fllm.data.cdm_finding import Finding

data_app = typer.Typer(help="Clinical cohorts.", no_args_is_help=True)


@data_app.command("synthesize")
def data_synthesize(
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    cases: Annotated[int, typer.Option(help="Number of cases.")] = 2400,
    hospitals: Annotated[int, typer.Option(help="Number of hospitals.")] = 4,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    label_concentration: Annotated[
        float, typer.Option(help="How alike the hospitals' mixes of diagnoses are; 0.1 is extreme, 100 nearly none.")
    ] = 10.0,
    realistic: Annotated[bool, typer.Option(help="Histories and laboratory lists as long as in the release.")] = False,
) -> None:
    """Write a made-up cohort in the MIMIC-IV-Ext-CDM layout, with all tables and a data card."""
    from fllm.data import write_cohort

    console = Console()
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as bar:
        task = bar.add_task("making cases", total=cases)
        write_cohort(
            folder, cases, n_hospitals=hospitals, seed=seed, label_concentration=label_concentration,
            realistic=realistic, progress=lambda made: bar.update(task, completed=made),
        )  # fmt: skip
    console.print(f"{cases} fabricated cases of {hospitals} hospitals in {folder}", soft_wrap=True, highlight=False)


_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


@data_app.command("check")
def data_check(
    folder: Annotated[
        Path, typer.Argument(help="Folder in the MIMIC-IV-Ext-CDM layout, or one such for each hospital.")
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings to this file as well.")] = None,
) -> None:
    """Say file by file what a cohort holds, what is odd and what that means; no text and no identifier is shown.

    The exit code is 2 when something would make a number wrong.
    """
    from fllm.data.cdm_check import check_folder

    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise InputError("cannot be written", where=f"--json {json_file}", expected="a file in a folder that exists")
    findings = check_folder(folder)
    if json_file is not None:
        _write_json(json_file, findings)
    console = Console(highlight=False)
    for file, found in groupby(findings, lambda finding: finding.file):
        _print_file(console, file, list(found))
    counts: Counter[str] = Counter(finding.level for finding in findings)
    console.print(", ".join(f"{level}: {counts[level]}" for level in _STYLES if counts[level]))
    if counts["error"]:
        number = counts["error"]
        shown = "1 finding" if number == 1 else f"{number} findings"
        print_error(f"error: {folder}: {shown} would make a number wrong; repair before a run")
        raise typer.Exit(EXIT_BAD_INPUT)


def _print_file(console: Console, file: str, found: Sequence[Finding]) -> None:
    """Print what was found in one file: as columns on a terminal, as one line each elsewhere."""
    if not console.is_terminal:
        for finding in found:
            what = finding.what if finding.what.startswith(file) else f"{file}: {finding.what}"
            console.print(f"{finding.level:<8} {what}; {finding.meaning}", soft_wrap=True, markup=False)
        return
    console.print(Text(file, style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(width=9)
    table.add_column(ratio=5)
    table.add_column(ratio=4)
    table.expand = True
    for finding in found:
        table.add_row(
            Text(f"  {finding.level}", style=_STYLES[finding.level]), Text(finding.what), Text(finding.meaning)
        )
    console.print(table)


def _write_json(file: Path, findings: Sequence[Finding]) -> None:
    import json

    text = json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
