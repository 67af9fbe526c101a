"""A round with too few clients ends a run without losing what was done, and the run goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fllm.config import RunConfig
from fllm.federation.server_app import RoundFailed
from fllm.federation.task import Hospital, Update
from fllm.results import read_result
from fllm.runs import RunResult, resume, run
from tests.end_to_end.conftest import Said
from tests.fllm.small import CANARY, SHORT, TINY

REASON = "round 2: fewer than 3 clients sent a usable update (ValueError)"


@pytest.fixture
def _second_client_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one client raise in the second round."""
    train = Hospital.train

    def fails(self: Hospital, adapter: Mapping[str, Tensor], server_round: int, **settings: Any) -> Update:
        if (self.partition, server_round) == (1, 2):
            raise ValueError(f"bad row: {CANARY} with pain")
        return train(self, adapter, server_round, **settings)

    monkeypatch.setattr(Hospital, "train", fails)


@pytest.mark.usefixtures("_second_client_fails", "_without_pages")
def test_run_goes_on_after_a_round_with_too_few_clients(
    finished: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RoundFailed) as failed:
        run(RunConfig(**TINY, min_clients=3), out=tmp_path, name="run")
    assert str(failed.value) == REASON
    folder = tmp_path / "run"
    record = read_result(folder / "result.json")
    assert record["status"] == "interrupted"
    assert record["rounds"] == finished.result["rounds"][:2]
    assert CANARY not in (folder / "result.json").read_text(encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)
    resume(folder)
    for name in ("rounds.csv", "clients.csv", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes(), name


@pytest.mark.usefixtures("_second_client_fails", "_without_pages")
def test_without_min_clients_the_round_ends_with_the_others(tmp_path: Path, command: Callable[..., Said]) -> None:
    small = SHORT | {"num_rounds": 2, "evaluate_every": 2, "lora_baselines": "[]"}
    said = command(*(f"--set={key}={value}" for key, value in small.items()), "--out", tmp_path, "--name", "run")
    assert said.code == 0
    assert "ValueError" in said.terminal
    assert CANARY not in said.terminal
    record = read_result(tmp_path / "run" / "result.json")
    assert [row["clients"] for row in record["rounds"]] == [0, 3, 2]
    assert [one["reason"] for one in record["rounds"][2]["participants"]] == [None, "ValueError", None]
    assert record["rounds"][2]["failures"] == ["ValueError"]
