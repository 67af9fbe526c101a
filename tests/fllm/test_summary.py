"""What the terminal says at the end of a run, of results with everything and of results that lack most of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import tests.report
from fllm.summary import summary
from tests.report.tasks import language

Result = dict[str, Any]
FOLDER = Path("reports") / "run"


@pytest.fixture
def result() -> Result:
    file = Path(tests.report.__path__[0]) / "example_result.json"
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    found["final"]["energy"]["price_notes"] = ["prices of another node are scaled"]
    return found


def lines_of(result: Result, start: str) -> list[str]:
    return [line for line in summary(result, FOLDER).splitlines() if line.startswith(start)]


def test_every_part_has_its_line(result: Result) -> None:
    text = summary(result, FOLDER)
    for start in ("accuracy  ", "macro-F1  ", "against   ", "energy    ", "latency   ", "training  ", "this run  "):
        assert f"\n{start}" in f"\n{text}", start
    assert text.endswith(f"report    {FOLDER / 'report.html'}")
    assert "          prices of another node are scaled\n" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_fabricated_patients_are_said_first_and_real_data_are_not_called_so(result: Result) -> None:
    result["data"]["synthetic"] = True
    assert summary(result, FOLDER).startswith("data      SYNTHETIC: fabricated patients")
    result["data"]["synthetic"] = False
    assert "SYNTHETIC" not in summary(result, FOLDER)


def test_accuracy_and_macro_f1_stand_with_their_intervals(result: Result) -> None:
    final = result["final"]
    final |= {"accuracy_hardware": 0.7125, "accuracy_ideal": 0.75}
    final["accuracy_interval_95"]["hardware"] = [0.61, 0.8]
    final["evaluation"]["hardware"]["macro_f1"] = {"value": 0.6543, "interval_95": [0.5, 0.7]}
    final["evaluation"]["ideal"]["macro_f1"] = {"value": 0.7, "interval_95": [0.6, 0.8]}
    assert lines_of(result, "accuracy") == [
        "accuracy  71.2% on the device (95 % interval 61.0% to 80.0%), 75.0% on the ideal device"
    ]
    assert lines_of(result, "macro-F1") == ["macro-F1  0.654 on the device (0.500 to 0.700), 0.700 on the ideal device"]


def test_every_baseline_has_a_line_and_the_word_stands_once(result: Result) -> None:
    text = summary(result, FOLDER)
    assert text.count("against") == 1
    for scores in result["baselines"].values():
        assert f"{scores['accuracy']:>6.1%}  {scores['name']}\n" in text


def test_baseline_without_accuracy_is_left_out(result: Result) -> None:
    result["baselines"] = {
        "unigram": {"name": "frequencies of tokens", "kind": "constant", "accuracy": None, "perplexity": None}
    }
    assert "frequencies" not in summary(result, FOLDER)


def test_gap_is_said_where_it_is_known(result: Result) -> None:
    result["final"]["gap_closed"] = 0.8
    assert "80% of the way from the majority to the pooled linear baseline" in summary(result, FOLDER)
    result["final"]["gap_closed"] = None
    assert "of the way" not in summary(result, FOLDER)


def test_worst_client_and_written_answers(result: Result) -> None:
    evaluation = result["final"]["evaluation"]
    evaluation["hardware"]["worst_client"] = {"client": 2, "name": "rural", "accuracy": 0.5}
    evaluation["generation"]["hardware"] |= {"accuracy": 0.6, "unparsable": 0.25}
    text = summary(result, FOLDER)
    assert "client    50.0% at rural, the one with the lowest accuracy\n" in text
    assert "written   60.0% right by the published rules, 25.0% name no class\n" in text
    evaluation["hardware"]["worst_client"] = evaluation["generation"] = None
    text = summary(result, FOLDER)
    assert "client  " not in text and "written" not in text


def test_answers_of_other_classes_are_not_said_to_follow_published_rules(result: Result) -> None:
    """Those rules are about the four diagnoses; the answers of a table are read by the names of its classes."""
    result["task"] = {"kind": "classification", "classes": ["a", "b"], "cue": "label:"}
    assert lines_of(result, "written")
    assert "published" not in lines_of(result, "written")[0]


def test_language_has_tokens_and_no_classes(result: Result) -> None:
    text = summary(language(result), FOLDER)
    assert text.splitlines()[0 if not result["data"]["synthetic"] else 1].startswith("accuracy of the next token ")
    assert "macro-F1" not in text
    assert "20.0%  frequencies of token pairs" in text


def test_run_without_a_token_has_no_energy(result: Result) -> None:
    result["final"] |= {"energy_per_token_j": None, "latency_per_token_s": None}
    text = summary(result, FOLDER)
    assert "energy  " not in text and "latency" not in text and "training" not in text
    assert "report.html" in text


@pytest.mark.parametrize("memory", [None, 1_234_000_000])
def test_memory_is_said_where_it_is_known(result: Result, memory: int | None) -> None:
    result["final"] |= {"peak_memory_bytes": memory, "wall_seconds": 12.4}
    expected = "this run  12 s" + ("" if memory is None else ", 1.23 GB of memory")
    assert lines_of(result, "this run") == [expected]


def test_warnings_are_lines_of_their_own(result: Result) -> None:
    result["warnings"] = ["no effect of refresh: it is off", "no effect of noise: it is zero"]
    assert lines_of(result, "warning") == [f"warning   {text}" for text in result["warnings"]]


def test_result_is_left_as_it_was(result: Result) -> None:
    before = copy.deepcopy(result)
    summary(result, FOLDER)
    assert result == before


def test_adapter_is_told_with_its_place(result: Result) -> None:
    result["final"]["adapter_sha256"] = "0123456789abcdef" * 4
    assert lines_of(result, "adapter") == [f"adapter   sha256 0123456789abcdef in {FOLDER / 'adapter'}"]
    result["config"]["evaluate_only"] = True
    assert lines_of(result, "adapter") == ["adapter   sha256 0123456789abcdef, as it was given"]
