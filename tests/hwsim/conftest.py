"""Settings before transformers is imported: its BitNet layers would otherwise be compiled (minutes on a CPU)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first


@pytest.fixture(scope="module")
def emulated() -> Callable[[str], Any]:
    """Models on a device with every effect, by architecture."""
    from tests.hwsim.models import emulated_model, full_device

    made: dict[str, Any] = {}

    def get(architecture: str) -> Any:
        if architecture not in made:
            made[architecture] = emulated_model(architecture, full_device())
        return made[architecture]

    return get


@pytest.fixture(scope="module")
def llama() -> Any:
    from tests.hwsim.models import emulated_model

    return emulated_model("llama")
