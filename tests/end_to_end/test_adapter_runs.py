"""Runs that begin with a trained adapter: evaluated alone, or trained further; resumable like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_models import InputError
from fllm.config import RunConfig, load_config
from fllm.model.adapters import adapter_digest, read_adapter
from fllm.model.identity import FILE
from fllm.observer import Observer
from fllm.results import read_result
from fllm.runs import RunResult, resume, run
from fllm.sections import LoraSettings
from tests.end_to_end.conftest import Said
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import SHIPPED, SHORT, copied, edit_json

LORA = LoraSettings(r=2, freeze_a=True, train_scalers=True, rslora=True)
TRAINING = {"train_loss", "clients", "failures", "uplink_bytes", "downlink_bytes", "training"}
CLOCK = {"wall_seconds", "peak_memory_bytes"}


pytestmark = pytest.mark.usefixtures("_no_pages")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return a run that trained an adapter with every setting that changes what is sent."""
    return run(RunConfig(**SHORT, lora=LORA), out=tmp_path_factory.mktemp("first"), name="run")


@pytest.fixture(scope="module")
def evaluated(first: RunResult, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    config = RunConfig(**SHORT | {"lora_baselines": ["local"]}, adapter=str(first.folder), evaluate_only=True)
    return run(config, out=tmp_path_factory.mktemp("evaluated"), name="run")


def without_clock(final: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({key: value for key, value in final.items() if key not in CLOCK}))


# Evaluated alone.


def test_evaluation_alone_gives_the_scores_of_the_run_that_trained(first: RunResult, evaluated: RunResult) -> None:
    """To the last digit, ideal and on the die: A, B and the scalers are those that were saved."""
    trained, found = first.result["rounds"][-1], evaluated.result["rounds"][0]
    assert trained["round"] == 1
    for key in ("ideal", "hardware", "adapter_sha256"):
        assert found[key] == trained[key]
    assert evaluated.result["final"]["evaluation"] == first.result["final"]["evaluation"]
    assert found["ideal"] != first.result["rounds"][0]["ideal"]


def test_evaluation_alone_is_complete_and_says_nothing_of_training(evaluated: RunResult) -> None:
    record = read_result(evaluated.folder / "result.json")
    assert record["status"] == "completed"
    assert [row["round"] for row in record["rounds"]] == [0]
    assert not TRAINING & set(record["rounds"][0])
    assert record["final"]["training"] is None
    assert "network" not in record
    assert not any(key.startswith("lora_") for key in record["baselines"])
    assert not (evaluated.folder / "adapter").exists()
    cells = (evaluated.folder / "rounds.csv").read_text(encoding="utf-8").splitlines()
    row = dict(zip(cells[0].split(","), cells[1].split(","), strict=True))
    assert all(row[name] == "" for name in ("train_loss_nat", "uplink_bytes", "energy_network_j", "clients"))


def test_energy_of_an_evaluation_is_that_of_its_own_passes(evaluated: RunResult) -> None:
    row, final = evaluated.result["rounds"][0], evaluated.result["final"]
    assert row["tokens"] >= sum(1 for _ in range(evaluated.result["data"]["num_test"]))
    assert row["counts"]["attention.qk_mac"] > 0 and row["counts"]["digital.adapter_mac"] > 0
    assert final["energy_per_token_j"] == pytest.approx(row["energy_j"]["total"] / row["tokens"])
    assert final["energy"]["energy_per_token_j"]["nominal"] == pytest.approx(final["energy_per_token_j"])
    assert final["latency_per_token_s"] > 0


def test_record_tells_where_the_adapter_is_from(first: RunResult, evaluated: RunResult) -> None:
    found = evaluated.result["adapter"]
    assert found["sha256"] == first.result["final"]["adapter_sha256"]
    assert found["base"] == {key: first.result["model"][key] for key in ("name", "sha256")}
    assert found["device"]["file_sha256"] == first.result["device"]["file_sha256"]
    assert "adapter" not in first.result
    assert evaluated.result["config"]["lora"] == LORA.model_dump(mode="json")


def test_device_and_dies_act_on_an_evaluation(first: RunResult, evaluated: RunResult, tmp_path: Path) -> None:
    config = RunConfig(
        **SHORT, adapter=str(first.folder / "adapter"), evaluate_only=True, dies=2, device={"readout.bits": 2}
    )  # fmt: skip
    row = run(config, out=tmp_path, name="run").result["rounds"][0]
    before = evaluated.result["rounds"][0]
    assert row["hardware"]["perplexity"]["dies"] == 2
    assert row["hardware"]["perplexity"]["mean"] != before["hardware"]["perplexity"]["mean"]
    assert row["ideal"] == before["ideal"]


@pytest.mark.parametrize("stage", ["writing the report", "evaluating the model"])
def test_evaluation_that_was_interrupted_is_resumed(
    evaluated: RunResult, first: RunResult, tmp_path: Path, stage: str
) -> None:
    class Stops(Observer):
        def stage(self, what: str) -> None:
            if what == stage:
                raise KeyboardInterrupt

    config = RunConfig(**SHORT | {"lora_baselines": ["local"]}, adapter=str(first.folder), evaluate_only=True)
    if stage == "evaluating the model":  # nothing is known then
        with pytest.raises(KeyboardInterrupt):
            run(config, out=tmp_path, name="interrupted", observer=Stops())
        assert not (tmp_path / "interrupted" / "result.json").exists()
        return
    folder = interrupt(config, tmp_path, Stops())
    assert read_result(folder / "result.json")["status"] == "interrupted"
    found = resume(folder).result
    assert found["status"] == "completed"
    assert without_clock(found["final"]) == without_clock(evaluated.result["final"])
    assert found["rounds"] == json.loads(json.dumps(evaluated.result["rounds"]))


def test_command_line_evaluates(first: RunResult, tmp_path: Path, command: Callable[..., Said]) -> None:
    settings = [f"--set={key}={value}" for key, value in SHORT.items()]
    said = command(*settings, "--adapter", first.folder, "--evaluate_only", "--out", tmp_path, "--name", "run")
    assert said.code == 0, said.stderr
    assert "training" not in said.stdout.replace("       training  accuracy", "")
    (row,) = [line.split() for line in said.stdout.splitlines() if line.startswith("0 ")]
    assert row[1] == row[-1] == "-"


# Trained further.


@pytest.fixture(scope="module")
def further(first: RunResult) -> dict[str, Any]:
    return SHORT | {"num_rounds": 2, "adapter": str(first.folder / "adapter"), "lora_baselines": ["centralised"]}


@pytest.fixture(scope="module")
def whole(further: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(RunConfig(**further), out=tmp_path_factory.mktemp("whole"), name="run")


def test_training_goes_on_from_the_adapter(first: RunResult, whole: RunResult) -> None:
    begins, ends = whole.result["rounds"][0], first.result["rounds"][-1]
    assert begins["ideal"] == ends["ideal"] and begins["hardware"] == ends["hardware"]
    assert begins["adapter_sha256"] == whole.result["adapter"]["sha256"] != whole.result["final"]["adapter_sha256"]
    given, now = (read_adapter(found.folder / "adapter") for found in (first, whole))
    for name, tensor in now.items():
        assert bool((tensor == given[name]).all()) is ("lora_A" in name), name  # the start's A, not one of the seed
    assert adapter_digest(now) == whole.result["final"]["adapter_sha256"]


def test_interrupted_training_from_an_adapter_ends_like_an_uninterrupted_one(
    whole: RunResult, further: dict[str, Any], tmp_path: Path
) -> None:
    folder = interrupt(RunConfig(**further), tmp_path, StopsAfter(1))
    found = resume(folder).result
    names = ("rounds.csv", *(f"adapter/{p.name}" for p in (whole.folder / "adapter").iterdir()))
    assert "adapter/gain_cell.safetensors" in names and f"adapter/{FILE}" in names
    for name in names:
        assert (folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    assert without_clock(found["final"]) == without_clock(whole.result["final"])
    assert found["baselines"] == json.loads(json.dumps(whole.result["baselines"]))


def test_start_that_changed_since_is_refused(first: RunResult, further: dict[str, Any], tmp_path: Path) -> None:
    start = copied(first.folder / "adapter", tmp_path / "start")
    folder = interrupt(RunConfig(**further | {"adapter": str(start)}), tmp_path, StopsAfter(0))
    record = read_result(folder / "result.json")
    edit_json(folder / "result.json", adapter=record["adapter"] | {"sha256": "0" * 64})
    with pytest.raises(InputError, match="the adapter changed since the run began"):
        resume(folder)
    (start / FILE).unlink()
    with pytest.raises(InputError, match="no adapter that a run saved"):
        resume(folder)


# What is refused.


def test_adapter_of_another_base_names_both(first: RunResult, tmp_path: Path) -> None:
    base = copied(SHIPPED, tmp_path / "other_base")
    edit_json(base / "provenance.json", what="another")
    config = RunConfig(**SHORT, model=str(base), adapter=str(first.folder), evaluate_only=True)
    with pytest.raises(InputError) as error:
        run(config, out=tmp_path / "out", name="run")
    message = str(error.value)
    digest = first.result["model"]["sha256"][:12]
    assert "belongs to another base model" in message
    assert f"fllm-tiny-bitnet ({digest})" in message and "other_base (" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", list(LoraSettings.model_fields))
def test_setting_that_contradicts_the_adapter_is_refused(first: RunResult, key: str) -> None:
    other = {
        "r": 3, "alpha": 2.0, "dropout": 0.5, "targets": ["q_proj"], "rslora": False, "freeze_a": False,
        "train_scalers": False,
    }[key]  # fmt: skip
    with pytest.raises(InputError, match=rf"lora\.{key}: contradicts the adapter"):
        load_config(None, {"adapter": str(first.folder), f"lora.{key}": other})
    agreeing = {"adapter": str(first.folder), f"lora.{key}": getattr(LORA, key)}
    assert load_config(None, agreeing).lora == LORA


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("absent", "no such adapter folder"),
        ("empty", "no adapter that a run saved"),
        ("garbage", "not the identity of an adapter"),
        ("version", "unknown schema_version"),
        ("weights", "adapter cannot be read"),
        ("rank", "the adapter does not fit the model"),
    ],
)
def test_folder_that_holds_no_adapter_is_refused(first: RunResult, tmp_path: Path, broken: str, message: str) -> None:
    folder = copied(first.folder / "adapter", tmp_path / "adapter")
    if broken == "absent":
        folder = tmp_path / "absent"
    elif broken == "empty":
        (folder / FILE).unlink()
    elif broken == "garbage":
        (folder / FILE).write_text("{}", encoding="utf-8")
    elif broken == "version":
        edit_json(folder / FILE, schema_version=2)
    elif broken == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"half")
    else:
        edit_json(folder / FILE, lora=LORA.model_dump(mode="json") | {"r": 3})
    with pytest.raises(InputError, match=message):
        run(RunConfig(**SHORT, adapter=str(folder)), out=tmp_path / "out", name="run")
    assert not (tmp_path / "out").exists()


def test_evaluation_alone_needs_an_adapter() -> None:
    with pytest.raises(InputError, match="name its folder as adapter"):
        load_config(None, {"evaluate_only": True})
