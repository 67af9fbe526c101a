"""The tensors of a model folder, in one safetensors file or in shards, read one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from device_models import InputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class StoredTensors:
    """Names, shapes and data of a folder's tensors; data is read when it is asked for.

    Attributes:
        folder: The model folder.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers; raises InputError if there are no weights or they cannot be read."""
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._packed: set[str] = set()
        self._mapped: dict[Path, Any] = {}
        listed = _read_index(folder)
        for file in sorted(set(listed.values())) if listed else [folder / WEIGHTS]:
            with _opened(file) as stored:
                for name in stored.keys() if listed is None else [name for name in listed if listed[name] == file]:
                    self._note(name, stored, file)

    def _note(self, name: str, stored: Any, file: Path) -> None:
        part = stored.get_slice(name)
        self._file_of[name] = file
        self._shapes[name] = tuple(part.get_shape())
        if part.get_dtype() == "U8":
            self._packed.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[name]

    def is_packed(self, name: str) -> bool:
        """Say whether a tensor holds bytes, each of four ternary weights."""
        return name in self._packed

    @property
    def parameters(self) -> int:
        """Number of weights, four in a byte where they are packed."""
        return sum(torch.Size(s).numel() * (4 if n in self._packed else 1) for n, s in self._shapes.items())

    def where(self, name: str) -> str:
        """Say where a tensor lies, or should lie, for a message."""
        return f"{self._file_of.get(name, self.folder / WEIGHTS)}: {name}"

    def read(self, name: str) -> Tensor:
        """Return a tensor whose memory is free again when it is let go."""
        with _opened(self._file_of[name]) as stored:
            return stored.get_tensor(name)

    def mapped(self, name: str) -> Tensor:
        """Return a tensor that is to stay: its data comes from the file when it is used, and can be dropped again."""
        file = self._file_of[name]
        if file not in self._mapped:  # one mapping for all tensors of a file
            self._mapped[file] = safe_open(file, framework="pt")
        return self._mapped[file].get_tensor(name)


def tensors_of(folder: Path) -> StoredTensors | None:
    """Return the tensors of a folder that has safetensors files under their usual names, None for another."""
    return StoredTensors(folder) if any((folder / name).is_file() for name in (WEIGHTS, INDEX)) else None


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except FileNotFoundError:
        raise InputError("no weights", where=str(file), expected="a safetensors file", remedy="check --model") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weights cannot be read ({type(error).__name__})", where=str(file), expected="a safetensors file"
        ) from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of one file; raises InputError if it is missing or cannot be read."""
    with _opened(file) as stored:
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - it is no dict


def _read_index(folder: Path) -> dict[str, Path] | None:
    """Return the file of each tensor of a sharded model; None without an index."""
    file = folder / INDEX
    if not file.is_file():
        return None
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): folder / Path(shard).name for name, shard in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the list of shards cannot be read ({type(error).__name__})", where=str(file),
            expected='JSON with "weight_map"',
        ) from None  # fmt: skip
