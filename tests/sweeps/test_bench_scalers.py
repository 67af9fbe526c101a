"""An adapter that brings range scalers, or leaves projections out, is the same one at every point of a sweep."""

from __future__ import annotations

import pytest

from fllm.config import RunConfig
from fllm.preparation import device_of
from fllm.runs import RunResult, run
from fllm.sections import LoraSettings
from fllm.sweeps.bench import Held, Worker
from fllm.sweeps.plan import with_settings
from fllm.sweeps.record import stored_digest
from fllm.sweeps.tasks import Task
from tests.sweeps.small import SMALLEST, without_reports


@pytest.fixture(scope="module")
def run_with_scalers(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    lora = LoraSettings(r=2, train_scalers=True, freeze_a=True, targets=("q_proj", "v_proj"))
    with without_reports():
        return run(RunConfig(**SMALLEST, lora=lora), out=tmp_path_factory.mktemp("runs"), name="trained")


def test_scalers_of_the_adapter_meet_every_point(run_with_scalers: RunResult) -> None:
    """A point resets the scalers to the base model's; those of the adapter must be back when it is scored."""
    config = RunConfig(**run_with_scalers.result["config"])
    coarse = with_settings(config, {"device.readout.bits": 2})
    worker, adapter = Worker(), run_with_scalers.folder / "adapter"
    done = [worker(Task(point, 0, (0,), own, adapter)) for point, own in enumerate((config, coarse, config))]
    first, other, again = (found.rows[0] for found in done)
    last = run_with_scalers.result["rounds"][-1]
    assert first["perplexity"] == again["perplexity"] == last["hardware"]["perplexity"]["mean"] != other["perplexity"]
    assert first["perplexity_ideal"] == last["ideal"]["perplexity"]


def test_energy_counts_the_projections_that_have_an_adapter(run_with_scalers: RunResult) -> None:
    config = RunConfig(**run_with_scalers.result["config"])
    held = Held.of(Task(0, 0, (0,), config, run_with_scalers.folder / "adapter"))
    counts = held._counts(device_of(config), 1e-5)
    a_and_b = sum(p.numel() for name, p in held.bench.model.named_parameters() if "lora_" in name)
    assert counts.tokens == sum(len(prompt.tokens) for prompt in held.held_out.test)
    assert counts["digital.adapter_mac"] == a_and_b * counts.tokens


def test_digest_of_the_folder_is_that_of_the_run(run_with_scalers: RunResult) -> None:
    folder = run_with_scalers.folder / "adapter"
    assert stored_digest(folder) == run_with_scalers.result["final"]["adapter_sha256"]
