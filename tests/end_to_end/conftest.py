"""The runs that all tests of this folder share: each is made once."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

from pathlib import Path

import pytest
import torch

from fllm.config import RunConfig
from fllm.runs import RunResult, run
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import TINY


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="session")
def finished(out: Path) -> RunResult:
    """Return the reference: two rounds, seed 0, never interrupted."""
    return run(RunConfig(**TINY), out=out, name="reference")


@pytest.fixture(scope="session")
def interrupted(out: Path) -> Path:
    """Return the folder of the same run, stopped after its first round; tests copy it."""
    return interrupt(RunConfig(**TINY), out, StopsAfter(1))
