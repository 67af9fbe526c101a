"""Settings before transformers is imported: its BitNet layers would otherwise be compiled (minutes on a CPU)."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fllm import cli
from tests.fllm.calibrated_once import calibrated_once
from tests.fllm.small import SHIPPED, copied

Terminal = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package", autouse=True)
def _calibrated_once() -> Iterator[None]:
    """Measure equal models on equal devices once; each loading would else take a second for it."""
    with calibrated_once():
        yield


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """Return a copy of the shipped base model that a test may break."""
    return copied(SHIPPED, tmp_path / "model")


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a function that runs ``fllm`` and returns what it prints and what it complains about, one line at most."""

    def run(*words: object, code: int = 0, columns: int = 120) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["fllm", *map(str, words)])
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert stop.value.code == code, err
        assert len(err.splitlines()) == (code != 0), err
        return out, err

    return run


@pytest.fixture
def cut(tmp_path: Path) -> Callable[[Path, int], None]:
    """Return a function that cuts a file off, as a full disk or a broken download does."""
    return lambda file, keep: file.write_bytes(file.read_bytes()[:keep]) and None
