"""The trained adapter that all tests of sweeps share, and reports left out where they are not what is tested."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

from collections.abc import Iterator

import pytest
import torch

from fllm.config import RunConfig
from fllm.runs import RunResult, run
from fllm.sweeps.bench import Worker
from fllm.sweeps.engines import ENGINES
from tests.sweeps.small import SMALLEST, in_this_process, short_samples, without_reports


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package", autouse=True)
def _short_samples() -> Iterator[None]:
    with short_samples():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return one finished run, whose adapter the sweeps evaluate; tests that change it take a copy."""
    with short_samples(), without_reports():
        return run(RunConfig(**SMALLEST), out=tmp_path_factory.mktemp("runs"), name="trained")


@pytest.fixture(scope="session")
def worker() -> Worker:
    """Return a worker that keeps what it loaded from test to test; that this changes nothing is a test of its own."""
    return Worker()


@pytest.fixture
def light(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let sweeps run in this process and draw no report."""
    monkeypatch.setitem(ENGINES, "local", in_this_process(worker))
    with without_reports():
        yield
