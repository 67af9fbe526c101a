"""Adapters that are trained without a federation: on all cases pooled, and on each client's alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fllm.lora_baselines
from fllm.config import RunConfig
from fllm.federation.task import Hospital
from fllm.lora_baselines import key_of, lora_baseline, pooled_steps
from fllm.model.adapters import adapter_digest, get_adapter, set_adapter
from fllm.observer import Observer
from fllm.outcome import Evaluation
from fllm.preparation import Prepared, prepare
from fllm.results import read_result
from fllm.runs import Interrupted, resume, run
from hwsim import Die
from tests.fllm.small import SHORT, edit_json, file_of_text, scrambled

TWO_ROUNDS = SHORT | {"num_rounds": 2, "num_clients": 2, "dies": 2}


class Made:
    """A baseline, and what was trained and scored on the way to it; the run has an adapter of its own meanwhile."""

    def __init__(self, kind: str, prepared: Prepared, own_adapter: int = 4) -> None:
        self.steps: list[tuple[int, int]] = []
        """Round and step of each batch."""
        self.read: set[tuple[int, ...]] = set()
        """Prompts that were trained on."""
        self.digests: list[str] = []
        """Adapters that were scored."""
        self.scores: list[Evaluation] = []
        self.stages: list[str] = []
        set_adapter(prepared.model, scrambled(get_adapter(prepared.model), seed=own_adapter))
        self.before = adapter_digest(get_adapter(prepared.model))
        with pytest.MonkeyPatch.context() as patch:
            self._watch(patch)
            self.facts = lora_baseline(kind, prepared, self.stages.append)
        self.after = adapter_digest(get_adapter(prepared.model))

    def _watch(self, patch: pytest.MonkeyPatch) -> None:
        backward, scored = Hospital._backward, fllm.lora_baselines._scored

        def watched_backward(hospital: Hospital, batch: Any, server_round: int, step: int) -> float:
            self.steps.append((server_round, step))
            self.read |= {prompt.tokens for prompt in batch}
            return backward(hospital, batch, server_round, step)

        def watched_scores(adapter: Mapping[str, Tensor], prepared: Prepared) -> Evaluation:
            self.digests.append(adapter_digest(dict(adapter)))
            self.scores.append(scored(adapter, prepared))
            return self.scores[-1]

        patch.setattr(Hospital, "_backward", watched_backward)
        patch.setattr("fllm.lora_baselines._scored", watched_scores)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    torch.set_num_threads(1)
    return prepare(RunConfig(**TWO_ROUNDS), Observer())


@pytest.fixture(scope="module")
def local(prepared: Prepared) -> Made:
    return Made("local", prepared)


@pytest.fixture(scope="module")
def centralised(prepared: Prepared) -> Made:
    return Made("centralised", prepared)


def alone(prepared: Prepared, index: int) -> str:
    """Train one client without any other, from nothing; the digest of its adapter."""
    config, own = prepared.config, prepared.hospitals[index]
    prompts = prepared.encoded.of(prepared.cases.clients[index].train)
    assert own.training.steps == config.local_steps
    hospital = Hospital(
        index, prompts, prepared.model, prepared.bench.answers, prepared.bench.pad_id, own.training, own.put_on_chip
    )
    adapter: Mapping[str, Tensor] = prepared.first_adapter
    for number in range(1, config.num_rounds + 1):
        adapter = hospital.train(adapter, number).adapter
    return adapter_digest(dict(adapter))


def test_local_is_each_client_trained_alone(prepared: Prepared, local: Made) -> None:
    assert len(set(local.digests)) == 2
    assert local.digests == [alone(prepared, 0), alone(prepared, 1)]
    assert local.facts["steps"] == 2 * prepared.config.local_steps
    assert local.stages[:3] == [
        "LoRA, each client alone, 1 of 2: training, 1 of 2",
        "LoRA, each client alone, 1 of 2: training, 2 of 2",
        "LoRA, each client alone, 1 of 2: evaluating",
    ]


def test_facts_of_local_are_means_over_clients_and_dies(local: Made) -> None:
    facts, scores = local.facts, local.scores
    assert set(facts) == {
        "name", "kind", "accuracy", "macro_f1", "interval_95", "ideal", "steps", "clients", "min", "max",
    }  # fmt: skip
    assert (facts["name"], facts["kind"]) == ("LoRA, each client alone", "lora")
    assert [len(each.dies) for each in scores] == [2, 2]
    own = [sum(die.accuracy for die in each.dies) / 2 for each in scores]
    assert [row["accuracy"] for row in facts["clients"]] == pytest.approx(own)
    assert [row["client"] for row in facts["clients"]] == [0, 1]
    assert facts["accuracy"] == pytest.approx(sum(own) / 2)
    assert (facts["min"], facts["max"]) == pytest.approx((min(own), max(own)))
    assert facts["ideal"]["accuracy"] == pytest.approx(sum(each.ideal.accuracy for each in scores) / 2)
    assert facts["macro_f1"] == pytest.approx(sum(die.macro_f1 or 0.0 for each in scores for die in each.dies) / 4)
    for part in (facts, facts["ideal"]):
        assert set(part["interval_95"]) == {"accuracy", "macro_f1"}
        assert part["interval_95"]["accuracy"][0] <= part["accuracy"] <= part["interval_95"]["accuracy"][1]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_centralised_reads_all_training_cases_in_more_steps(prepared: Prepared, centralised: Made) -> None:
    per_round = pooled_steps(prepared.config)
    assert per_round == 2 * prepared.config.local_steps
    assert centralised.steps == [(number, step) for number in (1, 2) for step in range(1, per_round + 1)]
    assert centralised.facts["steps"] == 2 * per_round
    assert set(centralised.facts) == {"name", "kind", "accuracy", "macro_f1", "interval_95", "ideal", "steps"}
    assert len(centralised.digests) == 1
    assert centralised.read <= {prompt.tokens for prompt in prepared.encoded.of(prepared.cases.split.train)}
    assert len(centralised.read) == 2 * per_round * prepared.config.batch_size  # a pass goes on over the rounds


def test_pooled_client_is_no_hospital(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds all training prompts and no other, and has a chip of its own."""
    pooled, first = fllm.lora_baselines._pooled(prepared), prepared.hospitals[0].training
    assert pooled.prompts == prepared.encoded.of(prepared.cases.split.train)
    assert sum(len(hospital.prompts) for hospital in prepared.hospitals) == len(pooled.prompts)
    assert replace(pooled.training, steps=first.steps) == first
    used: list[Die] = []
    monkeypatch.setattr("fllm.preparation.emulate", lambda *_, die_seed, **__: used.append(die_seed))
    for hospital in (*prepared.hospitals, pooled):
        assert hospital.put_on_chip is not None
        hospital.put_on_chip(1)
    chips = [die.seed for die in used]
    assert len(set(chips)) == 3
    assert not set(chips) & {die.seed for die in prepared.dies}


def test_adapter_of_the_run_is_what_it_was(prepared: Prepared, local: Made, centralised: Made) -> None:
    assert (local.after, centralised.after) == (local.before, centralised.before)
    untrained = {name: tensor for name, tensor in prepared.first_adapter.items() if ".lora_B." in name}
    assert untrained and not any(bool(tensor.any()) for tensor in untrained.values())


def test_neither_the_adapter_of_the_run_nor_the_steps_are_fixed(prepared: Prepared, centralised: Made) -> None:
    again = Made("centralised", prepared, own_adapter=5)
    assert again.before != centralised.before
    assert again.facts == centralised.facts
    config = RunConfig(**TWO_ROUNDS | {"centralised_steps": 3, "num_rounds": 1})
    chosen = Made("centralised", replace(prepared, config=config))
    assert chosen.steps == [(1, 1), (1, 2), (1, 3)]
    assert chosen.facts["steps"] == 3


def test_one_client_alone_is_a_federation_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chip, the same steps, the same cases: the same adapter."""
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)
    scored: list[str] = []
    score = fllm.lora_baselines._scored
    monkeypatch.setattr(
        "fllm.lora_baselines._scored",
        lambda adapter, prepared: scored.append(adapter_digest(adapter)) or score(adapter, prepared),
    )
    config = RunConfig(**SHORT | {"num_clients": 1, "lora_baselines": ["local"]})
    result = run(config, out=tmp_path, name="run").result
    found, final = result["baselines"]["lora_local"], result["final"]["evaluation"]
    assert scored == [result["final"]["adapter_sha256"]]
    assert found["accuracy"] == final["hardware"]["accuracy"]["value"]
    assert found["ideal"]["macro_f1"] == pytest.approx(final["ideal"]["macro_f1"]["value"])


def test_language_has_no_classes_to_score(tmp_path: Path) -> None:
    file = file_of_text(tmp_path / "story.txt", 6)
    settings = SHORT | {"task": "text", "data_files": [str(file)], "num_clients": 2}
    prepared = prepare(RunConfig(**settings), Observer())
    facts = lora_baseline("local", prepared, lambda _: None)
    for part in (facts, facts["ideal"]):
        assert part["macro_f1"] is None
        assert part["perplexity"] > 1
        assert set(part["interval_95"]) == {"accuracy"}
    assert [row["macro_f1"] for row in facts["clients"]] == [None, None]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_keys_in_the_record() -> None:
    assert [key_of(kind) for kind in ("centralised", "local")] == ["lora_centralised", "lora_local"]


class StopsAt(Observer):
    """The user presses Ctrl-C at a stage; all stages are kept."""

    def __init__(self, stage: str | None = None) -> None:
        self.stages: list[str] = []
        self._stop = stage

    def stage(self, what: str) -> None:
        self.stages.append(what)
        if what == self._stop:
            raise KeyboardInterrupt


def test_run_that_is_stopped_at_a_baseline_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained is kept; what needs no training is scored anew, and what the run does not ask for is left."""
    monkeypatch.setattr("fllm.runs.render", lambda *_: None)
    config = RunConfig(**SHORT | {"num_clients": 2, "lora_baselines": ["centralised", "local"]})
    whole = run(config, out=tmp_path, name="whole")
    with pytest.raises(Interrupted) as stopped:
        run(config, out=tmp_path, name="run", observer=StopsAt("LoRA, each client alone, 2 of 2: training, 1 of 1"))
    file = stopped.value.folder / "result.json"
    left = read_result(file)
    assert left["status"] == "interrupted"
    assert "lora_centralised" in left["baselines"] and "lora_local" not in left["baselines"]
    edit_json(file, baselines=left["baselines"] | {"lora_other": {"accuracy": 1.0}, "majority": {"accuracy": 1.0}})
    again = StopsAt()
    resume(stopped.value.folder, observer=again)
    assert not any(stage.startswith(("LoRA, centralised", "training round")) for stage in again.stages)
    assert "LoRA, each client alone, 1 of 2: training, 1 of 1" in again.stages
    ours, theirs = read_result(file), read_result(whole.folder / "result.json")
    for record in (ours, theirs):
        for key in ("name", "created"):
            del record[key]
        for key in ("wall_seconds", "peak_memory_bytes"):
            del record["final"][key]
    assert ours == theirs
