"""The runs that all tests of this folder share: each is made once."""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fllm import cli
from fllm.config import RunConfig
from fllm.report.drawing import Picture
from fllm.report.figures import figure_names
from fllm.runs import RunResult, run
from tests.conftest import sketched
from tests.end_to_end.stopping import StopsAfter, interrupt
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


@pytest.fixture(scope="package", autouse=True)
def _two_texts() -> Iterator[None]:
    """Measure the charge that two prompts draw, not eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.accounting.TEXTS", 2)
        yield


@pytest.fixture(scope="package")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="package")
def finished(out: Path) -> RunResult:
    """Return the reference: two rounds, seed 0, never interrupted."""
    return run(RunConfig(**TINY), out=out, name="reference")


@pytest.fixture(scope="package")
def interrupted(out: Path) -> Path:
    """Return the folder of the same run, stopped after its first round; tests copy it."""
    with sketched():
        return interrupt(RunConfig(**TINY), out, StopsAfter(1))


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, and all that it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def terminal(self) -> str:
        return self.stdout + self.stderr


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that gives a command line to ``fllm``, or to ``fllm-run`` where it starts with an option."""

    def call(*arguments: str | Path) -> Said:
        given = [*map(str, arguments)]
        runs = given[0].startswith("--")
        monkeypatch.setattr(sys, "argv", ["fllm-run" if runs else "fllm", *given])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            (cli.run_main if runs else cli.main)()
        return Said(int(stop.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def _blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures under their names and draw none: equal records give equal figures."""

    def blank(result: Mapping[str, Any]) -> list[Picture]:
        return [Picture(name, "", "", b"<svg/>", b"") for name in figure_names(result)]

    monkeypatch.setattr("fllm.report.html.draw_all", blank)


@pytest.fixture(scope="module")
def _no_pages() -> Iterator[None]:
    """Draw no figures and pages of a whole module; they follow from the record alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", lambda *_: None)
        yield


@pytest.fixture
def _without_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draw no figures and pages, which takes half of the time of a small run; they follow from the record alone."""
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)
    yield
