"""Settings before transformers is imported: its BitNet layers would otherwise be compiled (minutes on a CPU)."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.fllm.small import SHIPPED, copied


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """Return a copy of the shipped base model that a test may break."""
    return copied(SHIPPED, tmp_path / "model")


@pytest.fixture
def cut(tmp_path: Path) -> Callable[[Path, int], None]:
    """Return a function that cuts a file off, as a full disk or a broken download does."""
    return lambda file, keep: file.write_bytes(file.read_bytes()[:keep]) and None
