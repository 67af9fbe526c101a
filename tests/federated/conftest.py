"""One prepared federation of three small hospitals, for all tests of this folder."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

from collections.abc import Iterator

import pytest
import torch

from fllm.config import RunConfig
from fllm.observer import Observer
from fllm.preparation import Prepared, prepare
from tests.fllm.calibrated_once import calibrated_once
from tests.fllm.small import TINY


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package", autouse=True)
def _calibrated_once() -> Iterator[None]:
    """Measure equal models on equal devices once; each loading would else take a second for it."""
    with calibrated_once():
        yield


@pytest.fixture(scope="session")
def prepared() -> Prepared:
    """Return hospitals on the device; tests set the adapter themselves."""
    return prepare(RunConfig(**TINY, max_tokens=48), Observer())
