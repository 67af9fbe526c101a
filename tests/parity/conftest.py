"""Outputs of other programs, beside the repository; tests skip where they are absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    path = Path(__file__).parents[2].parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the oracle vectors of {path}, which are not part of the repository")
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # a second thread waits whenever the machine is shared
