"""A run that is killed at any moment ends as one that nobody killed, to the bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fllm.runs import RunResult
from tests.fllm.small import TINY

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
SETTINGS = {key: value for key, value in TINY.items() if key != "lora_baselines"} | {
    "num_cases": 40, "num_rounds": 4, "max_tokens": 48, "lora_baselines": "[]", "optimiser": "sgd",
    "learning_rate": 1.0, "strategy.kind": "fedadam", "wire": "int8",
}  # fmt: skip
"""Servers and clients both keep something from round to round."""


def killed(out: Path, **wanted: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Kill runs and resume them; returns facts of the one that nobody killed, and of the others."""
    given = {"settings": SETTINGS, "out": str(out), "workers": 1, "seed": 0, "pages": False, "times": 0, "changes": 0}
    given["chain"] = []
    command = [sys.executable, "-W", "ignore", "-m", "tests.end_to_end.killing_runs", json.dumps(given | wanted)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    whole, *others = [json.loads(line) for line in done.stdout.splitlines()]
    return whole, others


def assert_all_alike(whole: dict[str, Any], others: list[dict[str, Any]]) -> None:
    assert whole["status"] == "completed"
    assert not any(file.startswith(("state/", "clients/", "adapter.next/")) for file in whole["files"])
    for found in others:
        for key in ("status", "digest", "sha256", "files"):
            assert found[key] == whole[key], (found["moment"], key)


@pytest.mark.slow
def test_killed_twice_and_resumed(finished: RunResult, tmp_path: Path) -> None:
    """Before a change of its folder in the first round, and, resumed, in the second."""
    settings = {key: value if value != [] else "[]" for key, value in TINY.items()}
    found, _ = killed(tmp_path, settings=settings, chain=[28, 36])
    assert found["rounds"] == [2, 3]
    for name, sha256 in found["sha256"].items():
        assert hashlib.sha256((finished.folder / name).read_bytes()).hexdigest() == sha256, name
    assert found["digest"] == finished.result["rounds"][-1]["adapter_sha256"]
    assert not {"state", "clients", "adapter.next"} & {Path(file).parts[0] for file in found["files"]}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_20_random_moments_and_before_20_changes_of_its_folder(tmp_path: Path, workers: int) -> None:
    whole, others = killed(tmp_path, workers=workers, times=20, changes=20 if workers == 1 else 0)
    assert_all_alike(whole, others)
    assert sum(found["killed"] for found in others) == 20 + 20 * (workers == 1)
    met = {found["rounds"] for found in others if found["killed"]}
    assert met >= {0, 1, 2, 3, 4} if workers == 1 else len(met) >= 3  # starting workers takes most of the time
