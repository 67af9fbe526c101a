"""Runs on a table of texts and on plain text, from the command line to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fllm.results import read_result
from tests.end_to_end.conftest import Said
from tests.fllm.small import CANARY, CLASSES, file_of_text, table_of_texts

SMALL = [
    f"--set={key}={value}"
    for key, value in {
        "num_rounds": 1, "local_steps": 1, "batch_size": 4, "threads": 1, "max_tokens": 48, "num_clients": 3,
    }.items()
]  # fmt: skip
PARTS = {
    "schema_version", "status", "config", "seeds", "environment", "task", "data", "model", "device", "baselines",
    "sources", "assumptions", "network", "not_modelled", "warnings", "rounds", "final", "name", "command", "created",
}  # fmt: skip
"""What every record of a run holds."""


def checked(said: Said, folder: Path) -> dict[str, Any]:
    """Check what holds for every run, and return its record."""
    assert said.code == 0, said.terminal
    assert said.stderr == ""
    assert "report.html" in said.stdout
    record = read_result(folder / "result.json")
    assert record["status"] == "completed"
    assert set(record) == PARTS
    json.dumps(record, allow_nan=False)  # no number is missing in disguise
    for file in ("report.html", "report.md", "rounds.csv", "adapter/adapter_model.safetensors"):
        assert (folder / file).stat().st_size > 0
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert CANARY.encode() not in path.read_bytes().lower(), path.name
    assert CANARY not in said.terminal.lower()
    return record


@pytest.mark.usefixtures("_sketched")
def test_table_of_texts(tmp_path: Path, command: Callable[..., Said]) -> None:
    table = table_of_texts(tmp_path / "weather.csv", 60)
    said = command(
        "--task", "csv", "--data-file", table, "--client-column", "station", "--partition", "dirichlet", *SMALL,
        "--set=dirichlet_alpha=0.5", "--set=split=kfold", "--set=num_folds=4", "--set=fold=1", "--set=generation=true",
        "--set=calibration=content_free", "--set=lora_baselines=[centralised]",
        "--out", tmp_path / "out", "--name", "run",
    )  # fmt: skip
    record = checked(said, tmp_path / "out" / "run")
    assert record["task"] == {"kind": "classification", "classes": list(CLASSES), "cue": "label:"}
    data = record["data"]
    assert (data["num_cases"], data["num_test"], data["num_validation"]) == (60, 15, 0)
    assert (data["split"]["name"], data["split"]["folds"], data["split"]["fold"]) == ("kfold", 4, 1)
    assert (data["partition"]["name"], data["partition"]["alpha"]) == ("dirichlet", 0.5)
    assert (data["source"], data["synthetic"], data["fields"]) == ("weather.csv", False, [])
    assert set(record["baselines"]) == {
        "majority", "tfidf_logreg", "linear_local", "linear_federated", "lora_centralised",
    }  # fmt: skip
    assert record["baselines"]["tfidf_logreg"]["accuracy"] == 1.0  # each class has words of its own
    evaluation = record["final"]["evaluation"]
    assert set(evaluation["ideal"]["recall"]) == set(CLASSES)
    assert evaluation["calibration"] == {"kind": "content_free", "temperature": None}
    assert evaluation["generation"] is not None
    page = (tmp_path / "out" / "run" / "report.md").read_text(encoding="utf-8")
    assert all(name in page for name in CLASSES)
    assert "LoRA, centralised" in page
    assert "SYNTHETIC" not in page + said.stdout
    # A table may hold texts about people, and nothing says that it does not
    assert data["smallest_cell"] == 5
    assert None in [count for client in data["clients"] for count in client["test_label_counts"].values()]
    assert "fewer than 5 real" in page.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.usefixtures("_sketched")
def test_plain_text(tmp_path: Path, command: Callable[..., Said]) -> None:
    files = [file_of_text(tmp_path / f"{name}.txt", size) for name, size in (("north", 5), ("south", 4), ("west", 3))]
    given = [word for file in files for word in ("--data-file", file)]
    said = command(
        "--task", "text", *given, *SMALL, "--partition", "hospital", "--set=validation_fraction=0.1",
        "--set=lora_baselines=[]",
        "--out", tmp_path / "out", "--name", "run",
    )  # fmt: skip
    record = checked(said, tmp_path / "out" / "run")
    assert record["task"] == {"kind": "language", "classes": [], "cue": ""}
    data = record["data"]
    assert data["num_train"] + data["num_validation"] + data["num_test"] == data["num_cases"] == 12
    assert [client["name"] for client in data["clients"]] == ["north", "south", "west"]
    assert (data["label_counts"], data["truncated_prompts"]) == ({}, 0)
    assert data["tokens_per_prompt"]["max"] == 48
    assert set(record["baselines"]) == {"unigram", "bigram"}
    found = record["final"]["evaluation"]["hardware"]
    assert found["bits_per_byte"]["value"] > 0
    assert found["accuracy"]["value"] == pytest.approx(record["rounds"][-1]["hardware"]["accuracy"]["mean"])
    assert record["final"]["evaluation"]["generation"] is None
    page = (tmp_path / "out" / "run" / "report.md").read_text(encoding="utf-8")
    assert "Next-token accuracy" in page and "Bits per byte" in page
    assert "accuracy of the next token" in said.stdout
