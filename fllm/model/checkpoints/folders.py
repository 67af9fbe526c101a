"""Convert a model folder of any layout into a packed one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from device_models import InputError
from fllm.model.checkpoints.causal_lm import load_causal_lm
from fllm.model.checkpoints.conversion import Conversion, write_record
from fllm.model.checkpoints.scalers import SCALERS
from fllm.model.checkpoints.writing import write_packed

_BESIDE = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.jinja",
           "generation_config.json", SCALERS)  # fmt: skip
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Packed:
    """What packing a folder came to.

    Attributes:
        bytes_before: [B] weights of the folder.
        bytes_after: [B] packed weights.
        conversion: What it cost; None where the weights were trained as ternary.
    """

    bytes_before: int
    bytes_after: int
    conversion: Conversion | None


def pack_folder(
    source: Path,
    out: Path,
    texts: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.bfloat16,
    stage: Callable[[str], None] = lambda _: None,
) -> Packed:
    """Write a packed copy of a model folder, with its tokenizer and range scalers.

    Args:
        source: Any folder that :func:`load_causal_lm` loads.
        out: The folder to make; it appears when it is complete.
        texts: Token ids (1, tokens) that the loss of a conversion is measured on.
        dtype: Of everything that is not ternary.
        stage: Called with what goes on.

    Raises:
        InputError: If the folder cannot be loaded or packed, or ``out`` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("holds something already", where=str(out), expected="a new or an empty folder")
    stage("loading")
    found = load_causal_lm(source, texts, vocabulary=max((int(ids.max()) + 1 for ids in texts), default=0))
    stage("writing")
    made = out.resolve().with_name(f".{out.resolve().name}.part")
    try:
        write_packed(found.model, made, dtype=dtype)
        for pattern in _BESIDE:
            for file in source.glob(pattern):
                shutil.copyfile(file, made / file.name)
        if found.conversion is not None:
            write_record(found.conversion, made)
        if out.exists():
            out.rmdir()
        made.rename(out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return Packed(_bytes(source), _bytes(out), found.conversion)


def _bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in _WEIGHTS and f.name != SCALERS)
