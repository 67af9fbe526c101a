"""Runs whose adapters travel in eight bits: what is sent, and that a resumed run knows what rounding took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from device_models import InputError
from fllm.config import RunConfig
from fllm.results import read_result
from fllm.runs import RunResult, resume, run
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import SHORT, copied

EIGHT_BITS = SHORT | {"num_rounds": 2, "wire": "int8"}


pytestmark = pytest.mark.usefixtures("_no_pages")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(RunConfig(**EIGHT_BITS), out=tmp_path_factory.mktemp("int8"), name="run")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupt(RunConfig(**EIGHT_BITS), tmp_path_factory.mktemp("stopped"), StopsAfter(1))


def test_a_quarter_is_sent_both_ways(finished: RunResult) -> None:
    """Beside four bytes per tensor, and the header that Flower's arrays have each."""
    whole = 4 * finished.result["model"]["adapter_parameters"]
    for one in finished.result["rounds"][1]["participants"]:
        for way in ("uplink_bytes", "downlink_bytes"):
            assert 0.25 < one[way] / whole < 0.31


def test_run_resumed_ends_like_an_uninterrupted_one(finished: RunResult, stopped: Path, tmp_path: Path) -> None:
    folder = copied(stopped, tmp_path / "run")
    resume(folder)
    for name in ("rounds.csv", "clients.csv", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    assert read_result(folder / "result.json")["rounds"] == json.loads(json.dumps(finished.result["rounds"]))


@pytest.mark.parametrize("how", ["all gone", "one torn"])
def test_run_is_not_resumed_without_what_rounding_took(stopped: Path, tmp_path: Path, how: str) -> None:
    """It would end as another run."""
    folder = copied(stopped, tmp_path / "run")
    if how == "all gone":
        shutil.rmtree(folder / "clients")
    else:
        (file,) = (folder / "clients" / "00002").iterdir()
        file.write_bytes(file.read_bytes()[:100])
    before = (folder / "result.json").read_bytes()
    number = 0 if how == "all gone" else 2
    with pytest.raises(InputError, match=f"what client {number} kept in round 1 is gone or damaged"):
        resume(folder)
    assert (folder / "result.json").read_bytes() == before
