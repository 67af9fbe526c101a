"""Command line: ``fllm data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
) -> None:
    """Write a made-up cohort in the MIMIC-IV-Ext-CDM layout."""
    from fllm.data import write_cohort

    write_cohort(folder, cases, n_hospitals=hospitals, seed=seed, label_concentration=label_concentration)
    Console().print(f"{cases} fabricated cases of {hospitals} hospitals in {folder}", soft_wrap=True, highlight=False)
