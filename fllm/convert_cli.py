"""Command line: ``fllm base convert``. Thin; heavy imports inside the command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from device_models import InputError
from fllm.console import quiet_libraries

if TYPE_CHECKING:
    from torch import Tensor

    from fllm.model.checkpoints import Packed


class Dtype(StrEnum):
    """How weights that are not ternary are stored."""

    bfloat16 = "bfloat16"
    float32 = "float32"


def base_convert(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder of a causal language model, in any layout.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    dtype: Annotated[
        Dtype, typer.Option(help="Of embeddings, norms and LM head; float32 also runs in float32 with transformers.")
    ] = Dtype.bfloat16,
) -> None:
    """Pack a model, four ternary weights in a byte, as plain transformers reads it; rounds what is not ternary."""
    console = Console()
    if not source.is_dir():
        raise InputError("no such model folder", where=str(source), expected="a Hugging Face model folder")
    with quiet_libraries(), console.status("starting") as status:
        import torch

        from fllm.model.checkpoints import pack_folder

        made = pack_folder(source, out, _texts(source), dtype=getattr(torch, dtype), stage=status.update)
    console.print(_table(made))
    console.print(str(out), soft_wrap=True, highlight=False)


def _texts(source: Path) -> list[Tensor]:
    """Return the sample texts that a loss is measured on; none for a folder without a usable tokenizer."""
    from fllm.config import DEFAULT_FIELDS
    from fllm.model.base import load_tokenizer, sample_ids
    from fllm.preparation import sample_notes

    try:
        return sample_ids(load_tokenizer(source), sample_notes(DEFAULT_FIELDS))
    except InputError:
        return []


def _table(made: Packed) -> Table:
    table = Table("", "before", "after", box=None)
    table.add_row("weights [MB]", *(f"{size / 1e6:.1f}" for size in (made.bytes_before, made.bytes_after)))
    cost = made.conversion
    if cost is None:
        return table
    table.add_row("layers made ternary", "", str(cost.layers))
    table.add_row("error of their weights, mean", "", f"{cost.weight_error_mean:.1%}")
    table.add_row("error of the worst", "", f"{cost.weight_error_largest:.1%}")
    losses = ("not measured",) * 2
    if cost.loss_before_nat is not None and cost.loss_after_nat is not None:
        losses = (f"{cost.loss_before_nat:.3f}", f"{cost.loss_after_nat:.3f}")
    table.add_row("loss on made-up notes [nat/token]", *losses)
    return table
