"""A federation of two kinds of devices: its energy client by client, its chips one by one, and the same adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from device_models import InputError, load_device
from fllm import preparation
from fllm.chip_table import others_of, score_on_chips, table_of_chips
from fllm.client_chips import ClientChips
from fllm.config import RunConfig
from fllm.federation.server_app import Round, Start, federate
from fllm.local_clients import local_grid, terms_of
from fllm.model.adapters import adapter_digest, get_adapter, read_adapter, set_adapter, whole_adapter
from fllm.observer import Observer
from fllm.one_chip import train_on_one_chip
from fllm.outcome import evaluate_everywhere
from fllm.preparation import Prepared, prepare, training_die
from fllm.runs import Engine, RunResult, resume, run
from hwsim import Die, price
from hwsim.randomness import seed_of
from tests.fllm.small import SHORT, copied, edit_json

NAMES = ("gaincell_28nm", "gaincell_28nm_logic")
MIXED: dict[str, Any] = SHORT | {
    "num_clients": 3, "client_devices": NAMES, "chip_table": True, "lora_baselines": ["one_chip", "local"],
    "token_period": "auto",
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A finished run, and what it was prepared with."""

    run: RunResult
    prepared: Prepared


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    kept: list[Prepared] = []

    def prepare_and_keep(*given: Any) -> Prepared:
        kept.append(prepare(*given))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", lambda *_: None)
        patch.setattr("fllm.runs.prepare", prepare_and_keep)
        torch.set_num_threads(1)
        found = run(RunConfig(**MIXED), out=tmp_path_factory.mktemp("mixed"), name="run")
    return Made(found, kept[0])


@pytest.fixture(scope="module")
def mixed(made: Made) -> RunResult:
    return made.run


@pytest.fixture(scope="module")
def prepared(made: Made) -> Prepared:
    return made.prepared


def last_adapter(mixed: RunResult) -> dict[str, torch.Tensor]:
    return read_adapter(mixed.folder / "adapter")


def test_each_client_is_priced_on_its_own_device(mixed: RunResult, prepared: Prepared) -> None:
    row = mixed.result["rounds"][1]
    for client, found in enumerate(row["participants"]):
        device, bench = load_device(NAMES[client % 2]), prepared.chips.bench(client)
        counts = prepared.hospitals[client].train(prepared.first_adapter, 1).counts
        built = bench.built
        counts = replace(counts, subtiles=built.subtiles, arrays=built.arrays, weight_bits=built.weight_bits)
        period_s = bench.loaded.placing.token_period_s
        cost = price(counts, device, token_period_s=period_s)
        assert found["device"] == device.name
        assert found["tokens"] == counts.tokens
        assert found["energy_j"] == pytest.approx(cost.total_energy_j, rel=1e-12)
        assert found["time_s"]["forward"] == pytest.approx(counts.tokens * (period_s or cost.latency_per_token_s))
    own, other, _ = row["participants"]
    assert own["energy_j"] / own["tokens"] != pytest.approx(other["energy_j"] / other["tokens"], rel=1e-3)


def test_a_round_sums_its_clients_and_waits_for_the_slowest(mixed: RunResult) -> None:
    row = mixed.result["rounds"][1]
    clients = row["participants"]
    assert row["energy_j"]["total"] == pytest.approx(math.fsum(one["energy_j"] for one in clients))
    assert row["energy_j"]["total"] == pytest.approx(math.fsum(row["energy_j"]["parts"].values()))
    assert row["tokens"] == sum(one["tokens"] for one in clients) == sum(one["tokens"] for one in row["devices"])
    assert row["energy_per_token_j"] == pytest.approx(row["energy_j"]["total"] / row["tokens"])
    slowest = max(clients, key=lambda one: sum(one["time_s"].values()))
    assert row["slowest"] == {"client": slowest["client"], "time_s": slowest["time_s"]}
    training, final = row["training"], mixed.result["final"]["training"]
    for place, found in training["lines_j"].items():
        assert found["nominal"] == pytest.approx(sum(one["lines_j"][place]["nominal"] for one in training["devices"]))
    forward = training["lines_j"]["arrays"]["nominal"]
    assert forward < row["energy_j"]["total"] < forward + training["lines_j"]["digital accelerator"]["nominal"]
    assert training["time_s"] == slowest["time_s"]
    assert final["lines_j"] == training["lines_j"]  # of a single round
    assert final["steps"] == 3 * MIXED["local_steps"]


def test_the_adapter_is_the_same_tensors_on_all_devices(prepared: Prepared) -> None:
    first, second = prepared.chips.bench(0), prepared.chips.bench(1)
    assert first is prepared.chips.bench(2) is prepared.bench and second is not first
    set_adapter(first.model, prepared.first_adapter)
    set_adapter(second.model, prepared.first_adapter)
    assert adapter_digest(get_adapter(first.model)) == adapter_digest(get_adapter(second.model))


def test_a_client_is_scored_on_its_own_die_of_its_own_device(mixed: RunResult, prepared: Prepared) -> None:
    set_adapter(prepared.model, last_adapter(mixed))
    found = score_on_chips(prepared, evaluate_everywhere(prepared), lambda _: None, clients=[1])
    device, bench = load_device(NAMES[1]), prepared.chips.bench(1)
    set_adapter(bench.model, last_adapter(mixed))
    period_s = bench.loaded.placing.token_period_s
    die = Die(seed_of(0, "hospital's chip", 1), device)
    assert die.seed == mixed.result["seeds"]["client_dies"][1]
    direct = bench.score(prepared.held_out, device, die, period_s)
    other = bench.score(prepared.held_out, device, Die(die.seed + 1, device), period_s)
    assert direct.log_likelihoods is not None and found.own[1].log_likelihoods is not None
    assert (found.own[1].log_likelihoods == direct.log_likelihoods).all()
    assert (found.own[1].log_likelihoods != other.log_likelihoods).any()
    row = mixed.result["final"]["chips"]["clients"][1]
    assert (row["client"], row["device"], row["die_seed"]) == (1, NAMES[1], die.seed)
    assert row["accuracy"]["value"] == pytest.approx(direct.accuracy)
    assert len(found.unseen) == 3


def test_the_table_compares_with_training_on_one_chip_and_alone(mixed: RunResult) -> None:
    final, baselines = mixed.result["final"], mixed.result["baselines"]
    chips, one, alone = final["chips"], baselines["lora_one_chip"], baselines["lora_local"]
    assert chips["ideal"]["value"] == final["accuracy_ideal"]
    assert chips["unseen"]["chips"][0]["accuracy"]["value"] == final["accuracy_hardware"]
    assert chips["unseen"]["chips"][0]["die_seed"] == mixed.result["seeds"]["evaluation_dies"][0]
    assert one["chips"]["die_seed"] == mixed.result["seeds"]["client_dies"][0]
    on_own = one["chips"]["trained_on"]
    assert on_own["federated"]["value"] == chips["clients"][0]["accuracy"]["value"]
    for found in (on_own, one["chips"]["others"], one["chips"]["unseen"]):
        assert found["gain"]["value"] == pytest.approx(found["federated"]["value"] - found["accuracy"]["value"])
    assert [len(client["others"]) for client in alone["chips"]["clients"]] == [2, 2, 2]
    own = [client["own"] for client in alone["chips"]["clients"]]
    assert alone["chips"]["trained_on"]["accuracy"]["value"] == pytest.approx(sum(own) / 3)


def test_all_train_on_the_first_clients_chip_and_nothing_else_differs(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies: list[tuple[str, int]] = []
    put = preparation.emulate

    def watched(model: Any, device: Any, **settings: Any) -> Any:
        dies.append((device.name, settings["die_seed"].seed))
        return put(model, device, **settings)

    monkeypatch.setattr(preparation, "emulate", watched)
    before = adapter_digest(whole_adapter(prepared.chips.bench(1).model))
    train_on_one_chip(prepared, lambda _: None)
    assert dies == [(NAMES[0], seed_of(0, "hospital's chip", 0))] * 3
    assert adapter_digest(whole_adapter(prepared.chips.bench(1).model)) == before
    assert others_of(2, prepared) == [0, 1]


def test_one_client_on_its_chip_is_the_federation_itself(tmp_path: Path) -> None:
    config = RunConfig(**SHORT | {"num_clients": 1})
    alone, rounds = prepare(config, Observer()), list[Round]()
    with local_grid(alone, tmp_path, 1) as grid:
        federate(grid, terms_of(config), Start(alone.first_adapter), rounds.append)
    assert adapter_digest(dict(train_on_one_chip(alone, lambda _: None))) == adapter_digest(rounds[-1].adapter)


@pytest.mark.usefixtures("_without_pages")
def test_processes_train_the_same_adapter(mixed: RunResult, tmp_path: Path) -> None:
    config = RunConfig(**MIXED | {"chip_table": False, "lora_baselines": []})
    again = run(config, out=tmp_path, name="pool", engine=Engine(workers=2)).result
    assert again["final"]["adapter_sha256"] == mixed.result["final"]["adapter_sha256"]
    assert again["rounds"][1]["participants"] == mixed.result["rounds"][1]["participants"]
    assert "chips" not in again["final"]


@pytest.mark.usefixtures("_without_pages")
def test_changed_device_of_a_client_is_not_resumed_with(mixed: RunResult, tmp_path: Path) -> None:
    folder = copied(mixed.folder, tmp_path / "run")
    devices = mixed.result["client_devices"]
    assert [one["clients"] for one in devices["devices"]] == [[0, 2], [1]]
    edit_json(folder / "result.json", status="interrupted", client_devices=devices | {"sha256": "0" * 64})
    with pytest.raises(InputError, match="the client_devices changed since the run began"):
        resume(folder)


def test_without_chips_of_their_own_clients_are_not_in_the_table(mixed: RunResult, prepared: Prepared) -> None:
    config = RunConfig(**MIXED | {"lora_baselines": [], "training_chips": "design"})
    chips = ClientChips(config, [prepared.device] * 3, lambda _: prepared.bench, partial(training_die, config))
    changed = replace(prepared, config=config, chips=chips)
    set_adapter(prepared.model, last_adapter(mixed))
    found = table_of_chips(score_on_chips(changed, evaluate_everywhere(changed), lambda _: None), changed)
    assert found["clients"] == [] and found["own"] is None and found["training_chips"] == "design"
    assert found["unseen"] == mixed.result["final"]["chips"]["unseen"]
