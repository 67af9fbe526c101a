"""What a round and a run say of their model: every number has its place, its interval and its own cases."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fllm.outcome
from device_models import DeviceModel, InputError
from fllm.config import RunConfig
from fllm.data import write_cohort
from fllm.evaluation import Scores
from fllm.model.adapters import get_adapter, set_adapter
from fllm.observer import Observer
from fllm.outcome import Evaluation, _gap_closed, evaluate_everywhere, final_facts, round_row
from fllm.preparation import Bench, HeldOut, Prepared, prepare
from hwsim import Die
from tests.fllm.small import CLASSES, SHORT, as_if_real, file_of_text, scrambled, table_of_texts

DIAGNOSES = ["appendicitis", "cholecystitis", "diverticulitis", "pancreatitis"]
METRICS = {"accuracy", "macro_f1", "mean_class_accuracy", "ece", "brier", "nll", "perplexity"}


def finished(prepared: Prepared) -> dict[str, Any]:
    """Describe a run that trained nothing, with a model that says something."""
    set_adapter(prepared.model, scrambled(get_adapter(prepared.model)))
    scores = evaluate_everywhere(prepared)
    prepared.record["rounds"] = [round_row(0, prepared, scores)]
    return final_facts(prepared, scores, 1.5)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    torch.set_num_threads(1)
    settings = SHORT | {"dies": 2, "validation_fraction": 0.2, "generation": True}
    return prepare(RunConfig(**settings), Observer())


@pytest.fixture(scope="module")
def final(prepared: Prepared) -> dict[str, Any]:
    return finished(prepared)


@pytest.fixture(scope="module")
def scores(prepared: Prepared, final: dict[str, Any]) -> Evaluation:
    assert final
    return evaluate_everywhere(prepared)


def test_final_facts_are_plain_json(final: dict[str, Any]) -> None:
    assert json.loads(json.dumps(final, allow_nan=False)) == final
    assert final["wall_seconds"] == 1.5


def test_evaluation_has_every_number_with_its_interval(final: dict[str, Any], prepared: Prepared) -> None:
    evaluation = final["evaluation"]
    assert set(evaluation) == {"ideal", "hardware", "difference", "generation", "calibration"}
    cases = prepared.record["data"]["num_test"]
    for device in ("ideal", "hardware"):
        found = evaluation[device]
        assert set(found) == METRICS | {
            "recall", "confusion", "reliability", "clients", "worst_client", "client_spread",
        }  # fmt: skip
        for name in METRICS:
            assert len(found[name]["interval_95"]) == 2
        assert list(found["recall"]) == DIAGNOSES
        assert np.shape(found["confusion"]) == (4, 4)
        assert np.sum(found["confusion"]) == pytest.approx(cases)
        assert len(found["reliability"]) == 15
        assert sum(row["cases"] for row in found["reliability"]) == pytest.approx(cases)
        assert [client["name"] for client in found["clients"]] == [c.name for c in prepared.cases.clients]
        assert sum(client["cases"] or 0 for client in found["clients"]) == cases  # null: a client without test cases
    assert [row["die"] for row in evaluation["difference"]["mcnemar"]] == [0, 1]
    assert evaluation["calibration"] == {"kind": "none", "temperature": None}


def test_numbers_are_those_of_the_scores(final: dict[str, Any], scores: Evaluation) -> None:
    evaluation = final["evaluation"]
    assert len(scores.dies) == 2
    assert final["accuracy_ideal"] == scores.ideal.accuracy == evaluation["ideal"]["accuracy"]["value"]
    mean = sum(die.accuracy for die in scores.dies) / 2
    assert final["accuracy_hardware"] == pytest.approx(mean)
    assert evaluation["hardware"]["accuracy"]["value"] == pytest.approx(mean)
    assert evaluation["difference"]["accuracy"]["value"] == pytest.approx(mean - scores.ideal.accuracy)
    low, high = final["accuracy_interval_95"]["hardware"]
    assert low <= mean <= high


def test_each_client_is_scored_on_its_own_cases(final: dict[str, Any], prepared: Prepared, scores: Evaluation) -> None:
    right = dict(zip((e.key for e in prepared.cases.split.test), scores.ideal.correct, strict=True))
    for row, client in zip(final["evaluation"]["ideal"]["clients"], prepared.cases.clients, strict=True):
        own = [right[example.key] for example in client.test]
        assert (row["cases"] or 0) == len(own)
        assert row["accuracy"] == (pytest.approx(sum(own) / len(own)) if own else None)


def test_evaluation_of_a_round_that_trained_nothing_has_no_energy(final: dict[str, Any], prepared: Prepared) -> None:
    assert (final["energy"], final["energy_per_token_j"], final["prices"]) == (None, None, [])
    assert prepared.record["rounds"][0]["train_loss"] is None


def test_written_answers_are_scored_by_the_rules(final: dict[str, Any]) -> None:
    for device in ("ideal", "hardware"):
        found = final["evaluation"]["generation"][device]
        assert found.keys() >= {
            "accuracy", "macro_f1", "interval_95", "unparsable", "unparsable_count", "ambiguous_count", "recall",
        }  # fmt: skip
        assert 0 <= found["unparsable"] <= 1
        assert list(found["recall"]) == DIAGNOSES


def test_written_answers_are_those_of_the_devices(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the ideal device and on the first die; each gets its own answers scored, and no text is kept."""
    asked: list[int] = []
    placed: list[tuple[object, object]] = []
    place = fllm.outcome.emulate

    def emulate(model: torch.nn.Module, device: DeviceModel, *, die_seed: Die | None, token_period: float) -> None:
        placed.append((device, die_seed))
        place(model, device, die_seed=die_seed, token_period=token_period)

    def answers(model: object, tokenizer: object, prompts: list[Any], *_: object, **__: object) -> list[str]:
        asked.append(len(prompts))
        right = len(asked) == 1  # on the ideal device
        return [DIAGNOSES[prompt.label] if right else "zebrafish" for prompt in prompts]

    monkeypatch.setattr("fllm.outcome.emulate", emulate)
    monkeypatch.setattr("fllm.outcome.generate_answers", answers)
    found = finished(prepared)["evaluation"]["generation"]
    cases = prepared.record["data"]["num_test"]
    assert asked == [cases, cases]
    assert placed == [(prepared.ideal, None), (prepared.device, prepared.dies[0])]
    assert (found["ideal"]["accuracy"], found["ideal"]["unparsable_count"]) == (1.0, 0)
    assert (found["hardware"]["accuracy"], found["hardware"]["unparsable_count"]) == (0.0, cases)
    assert "zebrafish" not in json.dumps(found)


# Calibration.


def on_device(prepared: Prepared, held_out: HeldOut, kind: str) -> Scores:
    config = prepared.config.model_copy(update={"calibration": kind})
    bench: Bench = replace(prepared.bench, config=config)
    return bench.score(held_out, prepared.device, prepared.dies[0], prepared.period_s)


def nll(scores: Scores) -> float:
    assert scores.probabilities is not None and scores.truth is not None
    return float(-np.log(scores.probabilities[np.arange(len(scores.truth)), scores.truth]).mean())


def test_temperature_changes_how_sure_the_model_is_and_no_choice(prepared: Prepared, final: dict[str, Any]) -> None:
    assert final
    assert 0 < len(prepared.held_out.validation) < len(prepared.held_out.test) * 3
    plain, fitted = (on_device(prepared, prepared.held_out, kind) for kind in ("none", "temperature"))
    assert (plain.temperature, fitted.temperature != 1.0) == (1.0, True)
    assert nll(fitted) != pytest.approx(nll(plain), rel=1e-3)
    assert (fitted.accuracy, fitted.macro_f1, fitted.correct) == (plain.accuracy, plain.macro_f1, plain.correct)
    assert fitted.perplexity == plain.perplexity


def test_temperature_is_fitted_on_the_validation_cases(prepared: Prepared, final: dict[str, Any]) -> None:
    """On the cases that it was fitted on, no other temperature is better."""
    assert final
    validation = prepared.held_out.validation
    on_itself = HeldOut(validation, validation)
    plain, fitted = (on_device(prepared, on_itself, kind) for kind in ("none", "temperature"))
    assert nll(fitted) <= nll(plain)
    other = on_device(prepared, HeldOut(prepared.held_out.test, validation), "temperature")
    assert other.temperature == fitted.temperature


def test_content_free_takes_off_what_the_cue_alone_says(prepared: Prepared, final: dict[str, Any]) -> None:
    assert final
    plain, calibrated = (on_device(prepared, prepared.held_out, kind) for kind in ("none", "content_free"))
    cue = prepared.bench._cue()
    tokenizer = prepared.bench.loaded.tokenizer
    assert tokenizer.decode(cue.tokens, skip_special_tokens=True).strip() == "diagnosis:"
    bare = on_device(prepared, HeldOut([cue], []), "none")
    assert plain.log_likelihoods is not None and calibrated.log_likelihoods is not None
    taken = plain.log_likelihoods - calibrated.log_likelihoods
    assert bare.log_likelihoods is not None
    np.testing.assert_allclose(taken, np.broadcast_to(bare.log_likelihoods, taken.shape), rtol=1e-9)
    assert calibrated.perplexity == plain.perplexity


def test_temperatures_of_both_devices_are_in_the_facts(prepared: Prepared) -> None:
    update = {"calibration": "temperature", "generation": False}
    config = prepared.config.model_copy(update=update)
    changed = replace(prepared, config=config, bench=replace(prepared.bench, config=config))
    found = finished(changed)["evaluation"]
    assert found["calibration"]["kind"] == "temperature"
    temperature = found["calibration"]["temperature"]
    assert set(temperature) == {"ideal", "hardware"}
    assert all(value > 0 for value in temperature.values())
    assert found["generation"] is None


# What the model stands against.


@pytest.mark.parametrize(
    ("baselines", "accuracy", "closed"),
    [
        ({}, 0.7, None),
        ({"majority": 0.4}, 0.7, None),
        ({"tfidf_logreg": 0.8}, 0.7, None),
        ({"majority": 0.4, "tfidf_logreg": 0.8}, 0.7, 0.75),
        ({"majority": 0.4, "tfidf_logreg": 0.8}, 0.3, -0.25),
        ({"majority": 0.4, "tfidf_logreg": 0.4}, 0.7, None),
        ({"majority": 0.5, "tfidf_logreg": 0.4}, 0.7, None),
    ],
)
def test_gap_closed(baselines: dict[str, float], accuracy: float, closed: float | None) -> None:
    found = _gap_closed({name: {"accuracy": value} for name, value in baselines.items()}, accuracy)
    assert found == (None if closed is None else pytest.approx(closed))


def test_final_without_baselines_has_no_gap(prepared: Prepared, scores: Evaluation) -> None:
    bare = replace(prepared, record=prepared.record | {"baselines": {}}, config=RunConfig(**SHORT))
    assert final_facts(bare, scores, 0.0)["gap_closed"] is None


# Few patients.


def test_classes_and_clients_of_few_patients_are_not_spoken_of(tmp_path: Path) -> None:
    """Made-up numbers of admissions that could be real: 8 test cases of 4 classes and 3 clients."""
    folder = as_if_real(write_cohort(tmp_path / "data", 40, n_hospitals=3, seed=0))
    settings = SHORT | {"data_dir": str(folder), "generation": True}
    evaluation = finished(prepare(RunConfig(**settings), Observer()))["evaluation"]
    for found in (evaluation["ideal"], evaluation["hardware"]):
        assert found["confusion"] is None
        assert all(row["cases"] is None or row["cases"] >= 5 for row in found["clients"])
    for part in (evaluation, evaluation["generation"]):
        for device in ("ideal", "hardware"):
            recalls = part[device]["recall"].values()
            assert all(row["cases"] is None or row["cases"] >= 5 for row in recalls)
            assert any(row["value"] is None for row in recalls)


# Other tasks.


def test_table_of_texts(tmp_path: Path) -> None:
    table = table_of_texts(tmp_path / "weather.csv", 75)
    settings = SHORT | {
        "task": "csv", "data_files": [str(table)], "client_column": "station", "split": "column",
        "split_column": "part", "generation": True, "calibration": "temperature",
    }  # fmt: skip
    prepared = prepare(RunConfig(**settings), Observer())
    final = finished(prepared)
    evaluation = final["evaluation"]
    assert list(evaluation["ideal"]["recall"]) == list(CLASSES)
    assert np.shape(evaluation["hardware"]["confusion"]) == (3, 3)
    assert list(evaluation["generation"]["ideal"]["recall"]) == list(CLASSES)
    assert evaluation["calibration"]["temperature"]["ideal"] > 0
    assert [row["name"] for row in evaluation["ideal"]["clients"]] == ["station 0", "station 1", "station 2"]
    assert prepared.record["task"] == {"kind": "classification", "classes": list(CLASSES), "cue": "label:"}
    assert set(prepared.record["baselines"]) == {"majority", "tfidf_logreg", "linear_local", "linear_federated"}
    assert json.loads(json.dumps(final, allow_nan=False)) == final


def test_plain_text(tmp_path: Path) -> None:
    file = file_of_text(tmp_path / "story.txt", 10)
    prepared = prepare(RunConfig(**SHORT | {"task": "text", "data_files": [str(file)], "num_clients": 2}), Observer())
    final = finished(prepared)
    assert prepared.record["task"] == {"kind": "language", "classes": [], "cue": ""}
    assert set(prepared.record["baselines"]) == {"unigram", "bigram"}
    assert final["gap_closed"] is None
    assert final["evaluation"]["generation"] is None
    size = sum(len(text.encode()) for example in prepared.cases.split.test for _, text in example.sections)
    for device, found in (("ideal", final["evaluation"]["ideal"]), ("hardware", final["evaluation"]["hardware"])):
        assert found.keys() >= {"accuracy", "perplexity", "bits_per_byte", "clients"}
        assert not found.keys() & {"recall", "confusion", "brier"}
        perplexity = prepared.record["rounds"][0][device]["perplexity"]
        perplexity = perplexity if device == "ideal" else perplexity["mean"]
        predicted = sum(len(prompt.tokens) - 1 for prompt in prepared.held_out.test)
        bits = math.log2(perplexity) * predicted / size
        assert found["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-6)
        assert found["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-9)
    assert final["evaluation"]["ideal"]["accuracy"]["value"] == pytest.approx(final["accuracy_ideal"])
    assert json.loads(json.dumps(final, allow_nan=False)) == final


@pytest.mark.parametrize(("seed", "where"), [(0, "client south: "), (1, "texts: ")])
def test_text_of_one_token_cannot_be_all_that_a_client_or_the_test_has(tmp_path: Path, seed: int, where: str) -> None:
    """It has nothing to predict; which of both it becomes, the seed decides."""
    (tmp_path / "texts").mkdir()
    files = [file_of_text(tmp_path / "texts" / "north.txt", 6), tmp_path / "texts" / "south.txt"]
    files[1].write_text("a\n", encoding="utf-8")
    settings = SHORT | {"task": "text", "data_files": [str(file) for file in files], "num_clients": 2, "seed": seed}
    with pytest.raises(InputError, match="two tokens or more") as error:
        prepare(RunConfig(**settings), Observer())
    assert str(error.value).startswith(where)


def test_prompt_without_content_needs_no_field_that_has_a_budget(tmp_path: Path) -> None:
    table = table_of_texts(tmp_path / "weather.csv", 30)
    settings = SHORT | {
        "task": "csv", "data_files": [str(table)], "text_column": "text,part", "field_tokens": {"part": 2},
        "calibration": "content_free", "num_clients": 2,
    }  # fmt: skip
    prepared = prepare(RunConfig(**settings), Observer())
    cue = prepared.bench._cue()
    assert prepared.bench.loaded.tokenizer.decode(cue.tokens, skip_special_tokens=True).strip() == "label:"
    assert prepared.record["data"]["truncation"]["field_tokens"] == {"part": 2}
