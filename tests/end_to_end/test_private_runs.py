"""Whole runs with differential privacy: resumed, ended by their budget, refused, and in another process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from device_models import InputError
from fllm.config import RunConfig
from fllm.federation.privacy import epsilon_of
from fllm.federation.privacy_record import PrivateHospital
from fllm.preparation import load_hospital
from fllm.results import read_result
from fllm.runs import resume, run
from fllm.sections import PrivacySettings
from fllm.summary import summary
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import SHORT


@pytest.fixture(autouse=True)
def _without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)


def config_of(kind: str, **privacy: Any) -> RunConfig:
    return RunConfig(**SHORT | {"num_rounds": 2, "privacy": PrivacySettings(kind=kind, **privacy)})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["client", "record"])
def test_resumed_run_spends_the_same_and_ends_bit_identical(kind: str, tmp_path: Path) -> None:
    config = config_of(kind)
    whole = run(config, out=tmp_path, name="whole")
    folder = interrupt(config, tmp_path, StopsAfter(1))
    assert read_result(folder / "result.json")["status"] == "interrupted"
    resume(folder)
    for name in ("rounds.csv", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    rows = read_result(folder / "result.json")["rounds"]
    assert rows == json.loads(json.dumps(whole.result["rounds"]))
    spent = [row["privacy"]["epsilon"] for row in rows[1:]]
    assert spent == sorted(set(spent)) and spent[0] > 0
    assert "privacy" not in rows[0]


def test_run_ends_in_order_when_its_budget_is_spent(tmp_path: Path) -> None:
    settings = PrivacySettings(kind="client")
    limit = epsilon_of(1.0, settings, 1) * 1.01
    finished = run(config_of("client", max_epsilon=limit), out=tmp_path, name="run")
    record = read_result(finished.folder / "result.json")
    assert record["status"] == "completed"
    assert [row["round"] for row in record["rounds"]] == [0, 1]
    assert record["privacy"]["ended"].startswith("round 2 would spend more than the budget of privacy")
    assert record["final"]["adapter_sha256"] == record["rounds"][-1]["adapter_sha256"]
    said = summary(record, finished.folder)
    assert f"privacy   epsilon {epsilon_of(1.0, settings, 1):.3g} at delta 1e-05, for one client more or less" in said
    assert "round 2 would spend more" in said


def test_budget_for_no_round_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first round alone"):
        run(config_of("record", max_epsilon=0.01), out=tmp_path, name="run")
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setattr("fllm.preparation.load_cases", lambda *_: pytest.fail("too late"))
    with pytest.raises(InputError, match=r"pip install 'fllm\[dp\]'"):
        run(config_of("record"), out=tmp_path, name="run")
    with pytest.raises(InputError, match=r"pip install 'fllm\[dp\]'"):
        load_hospital(config_of("record"), 0, own_cases=False)


def test_client_in_a_process_of_its_own_keeps_its_cases_private() -> None:
    """One that is deployed would else send what the table says is private."""
    hospital, _, _ = load_hospital(config_of("record", clipping_norm=0.5), 1, own_cases=False)
    assert isinstance(hospital, PrivateHospital)
    assert hospital.privacy.clipping_norm == 0.5
    assert hospital.privacy.source.seed == 0
    secret, _, _ = load_hospital(config_of("record", secret_noise=True), 1, own_cases=False)
    assert isinstance(secret, PrivateHospital) and secret.privacy.source.seed is None
