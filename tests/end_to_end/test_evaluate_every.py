"""Rounds that are not evaluated: what they save, what their rows say, and that nothing else changes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fllm.cli import _Terminal
from fllm.config import RunConfig
from fllm.deployment.reporting import round_line
from fllm.evaluation import evaluate
from fllm.report.contents import contents
from fllm.report.figures import draw_loss, draw_rounds
from fllm.results import read_result
from fllm.runs import Interrupted, RunResult, resume, run
from fllm.tracking import round_numbers
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import SHORT

SELDOM = SHORT | {"num_rounds": 2, "evaluate_every": 2}
CLOCK = {"wall_seconds", "peak_memory_bytes"}
NULLS = {"accuracy", "macro_f1", "perplexity"}


@pytest.fixture(scope="module", autouse=True)
def passes() -> Iterator[list[int]]:
    """Count evaluations of the test cases; draw no pages."""
    counted: list[int] = []

    def counting(*arguments: Any) -> Any:
        counted.append(len(arguments[1]))
        return evaluate(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", lambda *_: None)
        patch.setattr("fllm.preparation.evaluate", counting)
        yield counted


@pytest.fixture(scope="module")
def always(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(RunConfig(**SELDOM | {"evaluate_every": 1}), out=tmp_path_factory.mktemp("always"), name="run")


@pytest.fixture(scope="module")
def seldom(tmp_path_factory: pytest.TempPathFactory, always: RunResult, passes: list[int]) -> RunResult:
    assert len(passes) == 2 * 3  # each round and the model before, on the ideal device and on one die
    passes.clear()
    found = run(RunConfig(**SELDOM), out=tmp_path_factory.mktemp("seldom"), name="run")
    assert len(passes) == 2 * 2
    return found


def rows(found: RunResult) -> list[dict[str, Any]]:
    record = read_result(found.folder / "result.json")
    assert record["rounds"] == json.loads(json.dumps(found.result["rounds"]))
    return list(record["rounds"])


def test_last_round_is_evaluated_and_the_others_in_their_turn(always: RunResult, seldom: RunResult) -> None:
    whole, found = rows(always), rows(seldom)
    assert [row["ideal"]["accuracy"] is not None for row in found] == [True, False, True]
    for number in (0, 2):
        assert found[number] == whole[number]
    ours, theirs = ({k: v for k, v in one.result["final"].items() if k not in CLOCK} for one in (seldom, always))
    assert ours == theirs


def test_round_that_is_not_evaluated_has_nulls_and_everything_else(always: RunResult, seldom: RunResult) -> None:
    whole, found = rows(always)[1], rows(seldom)[1]
    assert found["ideal"] == dict.fromkeys(NULLS)
    assert found["hardware"] == {key: {"mean": None, "std": None, "dies": 0} for key in NULLS}
    others = set(whole) - {"ideal", "hardware"}
    assert {key: found[key] for key in others} == {key: whole[key] for key in others}


def test_resumed_run_ends_like_an_uninterrupted_one(seldom: RunResult, tmp_path: Path, passes: list[int]) -> None:
    """Stopped after a round without scores, and after the last one, whose scores went with the process."""
    folder = interrupt(RunConfig(**SELDOM), tmp_path, StopsAfter(1))
    passes.clear()
    with pytest.raises(Interrupted):
        resume(folder, observer=StopsAfter(2))
    assert len(passes) == 2
    found = resume(folder)
    assert len(passes) == 4
    for name in ("rounds.csv", "clients.csv", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (seldom.folder / name).read_bytes(), name
    assert rows(found) == rows(seldom)
    ours, theirs = (read_result(one.folder / "result.json")["final"] for one in (found, seldom))
    assert {k: v for k, v in ours.items() if k not in CLOCK} == {k: v for k, v in theirs.items() if k not in CLOCK}


def test_whatever_reads_rounds_shows_a_dash_or_leaves_them_out(seldom: RunResult) -> None:
    with (seldom.folder / "rounds.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))[1]
    assert {cells[name] for name in cells if name.startswith(("accuracy", "macro_f1", "perplexity"))} == {""}
    assert cells["dies"] == "0" and cells["energy_j"]
    (row,) = [row for row in contents(seldom.result)["rounds"].groups[0].rows if row[0] == "1"]
    assert row[2:8] == ("–",) * 6 and row[1] != "–"  # noqa: RUF001 - the dash of tables
    drawn = draw_rounds(seldom.result)
    assert "after every evaluated round" in drawn.caption
    assert list(drawn.figure.axes[0].lines[0].get_xdata()) == [0, 2]
    draw_loss(seldom.result)
    missing = set(round_numbers(rows(seldom)[2])) - set(round_numbers(rows(seldom)[1]))
    assert missing == {"accuracy/ideal", "accuracy/hardware", "accuracy/hardware_std", "macro_f1/ideal",
                       "macro_f1/hardware", "perplexity/ideal", "perplexity/hardware"}  # fmt: skip
    assert "accuracy" not in round_line(rows(seldom)[1], 2) and "accuracy" in round_line(rows(seldom)[2], 2)
    console = Console(record=True, width=200)
    with _Terminal(console) as terminal:
        for shown in rows(seldom):
            terminal.round_done(shown, 2)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert [line[2:5] == ["-", "-", "-"] for line in lines if line and line[0] in "012"] == [False, True, False]
