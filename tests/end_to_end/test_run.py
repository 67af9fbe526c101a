"""Tiny runs from configuration to report: what they write, and that equal seeds give equal bytes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from device_models import InputError
from device_models.costs import ACCELERATOR, ARRAYS
from device_models.machines import load_network
from fllm.config import RunConfig, validate_config
from fllm.data import write_cohort
from fllm.model.adapters import adapter_digest, read_adapter
from fllm.results import read_result
from fllm.runs import RunResult, run
from hwsim.training import BACKWARD_PARTS, NETWORK
from tests import tolerances
from tests.fllm.small import SHIPPED, TINY, fresh_model

ONE_ROUND = TINY | {"num_rounds": 1}
FIGURES = {
    "baselines", "communication", "confusion_hardware", "confusion_ideal", "energy_parts", "label_mix", "loss",
    "reliability", "rounds", "standing", "timeline", "tornado", "training",
}  # fmt: skip


def test_run_writes_everything_and_nothing_else(finished: RunResult) -> None:
    folder = finished.folder
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "rounds.csv", "clients.csv", "report.html", "report.md", "adapter", "figures",
    }  # fmt: skip
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    }
    assert (folder / "figures" / "rounds.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")


def test_record_on_disk_is_the_record_returned(finished: RunResult) -> None:
    record = read_result(finished.folder / "result.json")
    assert record == json.loads(json.dumps(finished.result))
    assert record["status"] == "completed"
    assert [row["round"] for row in record["rounds"]] == [0, 1, 2]
    assert validate_config(record["config"], "result.json") == RunConfig(**TINY)


def test_adapter_on_disk_is_the_last_one(finished: RunResult) -> None:
    digest = adapter_digest(read_adapter(finished.folder / "adapter"))
    assert digest == finished.result["rounds"][-1]["adapter_sha256"] == finished.result["final"]["adapter_sha256"]
    assert len({row["adapter_sha256"] for row in finished.result["rounds"]}) == 3
    assert isinstance(PeftModel.from_pretrained(fresh_model(), str(finished.folder / "adapter")), PeftModel)


def test_energy_parts_sum_to_the_total(finished: RunResult) -> None:
    for row in finished.result["rounds"]:
        assert sum(row["energy_j"]["parts"].values()) == pytest.approx(row["energy_j"]["total"], rel=tolerances.SUM)
    last, final = finished.result["rounds"][-1], finished.result["final"]
    assert last["energy_j"]["total"] > 0
    about = {"rel": tolerances.SUM}
    assert last["energy_per_token_j"] == pytest.approx(last["energy_j"]["total"] / last["tokens"], **about)
    assert sum(final["energy_per_token_parts_j"].values()) == pytest.approx(final["energy_per_token_j"], **about)
    assert sum(row["energy_per_token_j"] for row in final["prices"]) == pytest.approx(
        final["energy_per_token_j"], **about
    )


def test_lines_of_training_hold_the_forward_passes_of_each_round(finished: RunResult) -> None:
    """Arrays do nothing else; the accelerator also has the backward pass, the optimiser and what they move."""
    about = {"rel": tolerances.SUM}
    assert "training" not in finished.result["rounds"][0]
    for row in finished.result["rounds"][1:]:
        forward, training = row["energy_j"], row["training"]
        lines = {name: found["nominal"] for name, found in training["lines_j"].items()}
        parts = {name: {part: found["nominal"] for part, found in inside.items()}
                 for name, inside in training["parts_j"].items()}  # fmt: skip
        assert list(lines) == [ARRAYS, ACCELERATOR, NETWORK]
        for name, energy in lines.items():
            assert sum(parts[name].values()) == pytest.approx(energy, **about)
        backward = sum(parts[ACCELERATOR].pop(part) for part in BACKWARD_PARTS)
        assert backward > 0
        assert lines[ARRAYS] + lines[ACCELERATOR] - backward == pytest.approx(forward["total"], **about)
        spent = {part: energy for part, energy in forward["parts"].items() if energy}
        assert parts[ARRAYS] | parts[ACCELERATOR] == pytest.approx(spent, **about)
        assert lines[NETWORK] == pytest.approx(
            8 * (row["uplink_bytes"] + row["downlink_bytes"]) * load_network("lan").uplink_bit, **about
        )


def test_training_of_the_run_is_the_sum_of_its_rounds(finished: RunResult) -> None:
    rounds, final = finished.result["rounds"][1:], finished.result["final"]["training"]
    for name, found in final["lines_j"].items():
        total = sum(row["training"]["lines_j"][name]["nominal"] for row in rounds)
        assert found["nominal"] == pytest.approx(total, rel=tolerances.SUM)
    assert final["tokens"] == sum(row["tokens"] for row in rounds)
    assert final["steps"] == sum(row["training"]["steps"] for row in rounds) == 3 * 2 * TINY["local_steps"]


def test_energy_of_a_token_is_the_same_in_every_place(finished: RunResult) -> None:
    final = finished.result["final"]
    energy, about = final["energy"], {"rel": tolerances.SUM}
    assert energy["energy_per_token_j"]["nominal"] == pytest.approx(final["energy_per_token_j"], **about)
    assert energy["latency_per_token_s"]["nominal"] == pytest.approx(final["latency_per_token_s"], **about)
    spent = {part: joule for part, joule in final["energy_per_token_parts_j"].items() if joule}
    assert {part: found["nominal"] for part, found in energy["parts_j"].items()} == pytest.approx(spent, **about)
    assert sum(found["nominal"] for found in energy["lines_j"].values()) == pytest.approx(
        final["energy_per_token_j"], **about
    )
    for row in energy["baselines"]:
        if row["scope"] == "whole forward pass":
            assert row["device_energy_per_token_j"] == pytest.approx(final["energy_per_token_j"], **about)
    assert final["activity"]["energy_per_token_j"] > 0
    assert all(final["activity"][array] > 0 for array in ("qk", "av"))


def test_counts_by_layer_add_up_to_the_counts_of_a_round(finished: RunResult) -> None:
    for row in finished.result["rounds"]:
        total: Counter[str] = Counter()
        for events in row["counts_by_layer"].values():
            total.update(events)
        assert dict(total) == row["counts"]


def test_rounds_csv_tells_the_three_places_of_training(finished: RunResult) -> None:
    rows = list(csv.DictReader((finished.folder / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    columns = {"energy_arrays_j": ARRAYS, "energy_digital_accelerator_j": ACCELERATOR, "energy_network_j": NETWORK}
    assert [rows[0][column] for column in columns] == ["", "", ""]
    for row, recorded in zip(rows[1:], finished.result["rounds"][1:], strict=True):
        for column, line in columns.items():
            assert float(row[column]) == recorded["training"]["lines_j"][line]["nominal"]


def test_rounds_count_clients_and_bytes(finished: RunResult) -> None:
    tensors = read_adapter(finished.folder / "adapter")
    values = sum(4 * tensor.numel() for tensor in tensors.values())
    for row in finished.result["rounds"][1:]:
        assert (row["clients"], row["failures"]) == (3, [])
        headers = row["uplink_bytes"] / 3 - values
        assert 0 < headers <= 256 * len(tensors)  # the adapter in float32 and the headers of its arrays
        assert row["downlink_bytes"] == row["uplink_bytes"]


def test_partition_of_the_data_is_told_in_numbers(finished: RunResult) -> None:
    data = finished.result["data"]
    assert data["num_train"] + data["num_test"] == data["num_cases"] == 60
    assert sum(client["num_train"] for client in data["clients"]) == data["num_train"]
    assert len(data["clients"]) == 3
    assert data["synthetic"] is True


def test_existing_run_is_not_overwritten(finished: RunResult) -> None:
    before = (finished.folder / "result.json").read_bytes()
    with pytest.raises(InputError, match="a run is there already"):
        run(RunConfig(**TINY), out=finished.folder.parent, name=finished.folder.name)
    assert (finished.folder / "result.json").read_bytes() == before


@pytest.mark.usefixtures("_without_pages")
def test_equal_seeds_give_equal_bytes(finished: RunResult, tmp_path: Path) -> None:
    again = run(RunConfig(**TINY), out=tmp_path, name="again")
    for name in ("rounds.csv", "clients.csv", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (again.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    personal = {"name", "created", "final", "command"}
    assert {k: v for k, v in again.result.items() if k not in personal} == {
        k: v for k, v in finished.result.items() if k not in personal
    }


@pytest.mark.usefixtures("_without_pages")
def test_other_seed_gives_another_adapter(finished: RunResult, tmp_path: Path) -> None:
    other = run(RunConfig(**ONE_ROUND, seed=1), out=tmp_path, name="other")
    assert other.result["rounds"][0]["adapter_sha256"] != finished.result["rounds"][0]["adapter_sha256"]
    assert other.result["rounds"][1]["adapter_sha256"] != finished.result["rounds"][1]["adapter_sha256"]
    assert other.result["data"]["sha256"] != finished.result["data"]["sha256"]


@pytest.mark.usefixtures("_without_pages")
def test_device_acts_on_the_result(finished: RunResult, tmp_path: Path) -> None:
    coarse = run(RunConfig(**ONE_ROUND, device={"readout.bits": 2}), out=tmp_path, name="coarse")
    ours, theirs = coarse.result["rounds"][0], finished.result["rounds"][0]
    assert ours["hardware"]["perplexity"] != theirs["hardware"]["perplexity"]
    assert ours["ideal"] == theirs["ideal"]
    assert coarse.result["rounds"][1]["adapter_sha256"] != finished.result["rounds"][1]["adapter_sha256"]


@pytest.mark.usefixtures("_sketched")
def test_model_of_another_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    folder = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    result = run(RunConfig(**ONE_ROUND, model=str(folder)), out=tmp_path, name="run").result
    assert result["status"] == "completed"
    model = result["model"]
    assert (model["name"], model["layers"], model["heads"], model["head_dim"]) == ("llama", 2, 2, 16)
    assert model["ternarised_after_training"] is True
    assert model["range_scalers_from_statistics"] is True
    assert result["rounds"][1]["counts"]["attention.qk_mac"] > 0


@pytest.mark.usefixtures("_without_pages")
def test_written_cohort_gives_the_numbers_of_the_synthetic_default(finished: RunResult, tmp_path: Path) -> None:
    config = RunConfig(**TINY)
    data = write_cohort(
        tmp_path / "data", config.num_cases, n_hospitals=config.num_clients, seed=config.seed,
        label_concentration=config.label_concentration,
    )  # fmt: skip
    same = run(RunConfig(**TINY, data_dir=str(data)), out=tmp_path, name="run")
    for name in ("rounds.csv", "adapter/adapter_model.safetensors"):
        assert (same.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    assert same.result["data"]["sha256"] == finished.result["data"]["sha256"]
