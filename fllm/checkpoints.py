"""Checkpoints of a run: all that its next round starts from, whole on disk or not there at all.

One folder for each of the last two rounds, written aside and renamed, with the SHA-256 of its files. What is random
follows from the seed and the number of the round, so there is no state of a generator to keep.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from device_models import InputError

KEPT = 2
"""Checkpoints that are kept, the last ones."""
_FOLDER, _SUMS = "state", "sha256.json"
_ADAPTER, _STRATEGY = "adapter.safetensors", "strategy.safetensors"
_NOT_WHOLE = (OSError, ValueError, KeyError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after a whole round.

    Attributes:
        number: The round.
        adapter: All tensors of the adapter.
        strategy: What the server's strategy carries into the next round.
    """

    number: int
    adapter: Mapping[str, Tensor]
    strategy: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into the folder of a run; interrupted, it leaves the former ones as they are."""
    target = _folder(run, checkpoint.number)
    aside = target.with_suffix(".part")
    for leftover in (aside, target):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    content = {
        _ADAPTER: save({name: tensor.contiguous() for name, tensor in checkpoint.adapter.items()}),
        _STRATEGY: save({name: torch.from_numpy(value.copy()) for name, value in checkpoint.strategy.items()}),
    }
    for name, made in content.items():
        (aside / name).write_bytes(made)
    sums = {name: hashlib.sha256(made).hexdigest() for name, made in content.items()}
    (aside / _SUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8", newline="\n")
    for file in aside.iterdir():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    aside.rename(target)


def load_checkpoint(run: Path, number: int) -> Checkpoint:
    """Read the checkpoint of a round.

    Raises:
        InputError: If it is gone or damaged; names another round whose checkpoint is whole.
    """
    folder = _folder(run, number)
    try:
        return _read(folder, number)
    except _NOT_WHOLE:
        whole = [other for other in kept_rounds(run) if other != number and _is_whole(run, other)]
        raise InputError(
            f"the checkpoint of round {number} is {'damaged' if folder.exists() else 'gone'}", where=str(folder),
            remedy=f"go on from another one: --resume {run} --from-round {max(whole)}" if whole
            else "start a new run",
        ) from None  # fmt: skip


def drop_old_checkpoints(run: Path, last: int) -> None:
    """Remove those that are older than the last ``KEPT`` up to a round that is recorded."""
    for number in kept_rounds(run):
        if number <= last - KEPT:
            shutil.rmtree(_folder(run, number), ignore_errors=True)


def remove_checkpoints(run: Path) -> None:
    """Remove them all, when the run is complete."""
    shutil.rmtree(run / _FOLDER, ignore_errors=True)


def _read(folder: Path, number: int) -> Checkpoint:
    sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
    # Read and not mapped: Windows takes no mapped file away
    content = {name: (folder / name).read_bytes() for name in (_ADAPTER, _STRATEGY)}
    for name, found in content.items():
        if hashlib.sha256(found).hexdigest() != sums[name]:
            raise ValueError(name)
    strategy = {name: tensor.numpy() for name, tensor in load(content[_STRATEGY]).items()}
    return Checkpoint(number, dict(sorted(load(content[_ADAPTER]).items())), strategy)


def _is_whole(run: Path, number: int) -> bool:
    try:
        _read(_folder(run, number), number)
    except _NOT_WHOLE:
        return False
    return True


def _folder(run: Path, number: int) -> Path:
    return run / _FOLDER / f"round-{number:05d}"


def kept_rounds(run: Path) -> list[int]:
    """Return the rounds that have a checkpoint, whole or not."""
    return sorted(int(path.name.removeprefix("round-")) for path in (run / _FOLDER).glob("round-*") if not path.suffix)
