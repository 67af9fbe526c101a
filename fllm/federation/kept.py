"""What a client keeps from round to round, in files of its own that no message carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

KEPT = 3
"""Rounds that are kept: a run can go on from its last two, and may have been stopped within a third."""


@dataclass(frozen=True)
class Kept:
    """Files of all clients that run here, one for each client and round.

    A round reads what an earlier one left, so that doing a round once more gives the same.

    Attributes:
        folder: Where they lie.
    """

    folder: Path

    def load(self, partition: int, before: int) -> dict[str, Tensor]:
        """Return what a client kept in the last of its rounds before one; nothing where it has none."""
        number = self.last(partition, before)
        return dict(sorted(load(self._file(partition, number).read_bytes()).items())) if number else {}

    def save(self, partition: int, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors after a round; a reader sees the former file or the whole new one."""
        file = self._file(partition, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        aside.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        aside.replace(file)
        for old in self._rounds(partition)[:-KEPT]:
            self._file(partition, old).unlink(missing_ok=True)

    def last(self, partition: int, before: int) -> int:
        """Return the last round before one in which a client kept something; 0 where it has none."""
        return max((number for number in self._rounds(partition) if number < before), default=0)

    def is_whole(self, partition: int, number: int) -> bool:
        """Say whether what a client kept in a round is there and can be read."""
        try:
            load(self._file(partition, number).read_bytes())
        except (OSError, SafetensorError):
            return False
        return True

    def _rounds(self, partition: int) -> list[int]:
        files = self._file(partition, 0).parent.glob("round-*.safetensors")
        return sorted(int(file.stem.removeprefix("round-")) for file in files)

    def _file(self, partition: int, number: int) -> Path:
        return self.folder / f"{partition:05d}" / f"round-{number:05d}.safetensors"
