"""``strategy.factors: share_a`` (FedSA-LoRA): A is averaged, B stays at each client and scores its own cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from torch import Tensor

from device_models import InputError
from fllm.config import RunConfig, validate_config
from fllm.federation.engines import InProcessGrid
from fllm.federation.factors import A, B
from fllm.lora_baselines import lora_baseline
from fllm.model.adapters import adapter_digest, get_adapter, read_adapter, set_adapter
from fllm.observer import Observer
from fllm.outcome import evaluate_everywhere
from fllm.preparation import HeldOut, Prepared, prepare
from fllm.report.evaluation_facts import evaluation_lines
from fllm.results import read_result
from fllm.runs import Engine, RunResult, resume, run
from fllm.summary import summary
from fllm.sweeps.design import parse_vary
from fllm.sweeps.plan import make_plan
from tests.end_to_end.stopping import StopsAfter, interrupt
from tests.fllm.small import SHORT

SHARED: dict[str, Any] = SHORT | {
    "num_rounds": 2, "local_steps": 2, "strategy": {"factors": "share_a"}, "lora": {"r": 4},
}  # fmt: skip
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def sent() -> list[str]:
    """Return the names of all arrays in all messages."""
    return []


@pytest.fixture(scope="module", autouse=True)
def _watched(sent: list[str]) -> Iterator[None]:
    push = InProcessGrid.push_messages

    def watching(self: InProcessGrid, messages: Any) -> list[str]:
        messages = list(messages)
        ids = push(self, messages)
        replies: list[Message] = [self._replies[name] for name in ids]
        for message in (*messages, *replies):
            sent.extend(name for record in message.content.array_records.values() for name in record)
        return ids

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fllm.runs.render", lambda *_: None)
        patch.setattr(InProcessGrid, "push_messages", watching)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(RunConfig(**SHARED), out=tmp_path_factory.mktemp("shared"), name="run")


def by_hand(prepared: Prepared, rounds: int) -> tuple[Tensors, list[Tensors]]:
    """Do FedSA-LoRA as its paper says it: everybody trains A and B, and A is averaged by cases.

    To the last bit: converters of the device make a large difference of the gradient out of a small one of A.
    """
    first = dict(prepared.first_adapter)
    a = {name: tensor for name, tensor in first.items() if A in name}
    own = [{name: tensor for name, tensor in first.items() if B in name} for _ in prepared.hospitals]
    for number in range(1, rounds + 1):
        updates = [hospital.train(a | own[i], number) for i, hospital in enumerate(prepared.hospitals)]
        cases = sum(update.examples for update in updates)
        own = [{name: update.adapter[name] for name in own[0]} for update in updates]
        a = {name: sum(update.adapter[name] * (update.examples / cases) for update in updates) for name in a}  # type: ignore[misc]
    return a, own


def test_result_is_that_of_the_method_done_by_hand(finished: RunResult) -> None:
    prepared = prepare(RunConfig(**SHARED), Observer())
    a, own = by_hand(prepared, 2)
    for client, b in enumerate(own):
        saved = read_adapter(finished.folder / "adapters" / str(client))
        assert set(saved) == set(a) | set(b)
        for name, tensor in (a | b).items():
            assert torch.equal(saved[name], tensor), name
        assert any(not torch.equal(saved[name], own[client - 1][name]) for name in b)
    scores = finished.result["final"]["evaluation"]
    for client, of_client in enumerate(prepared.cases.clients):
        if not of_client.test:
            continue
        set_adapter(prepared.model, read_adapter(finished.folder / "adapters" / str(client)))
        found = evaluate_everywhere(prepared, HeldOut(prepared.encoded.of(of_client.test), []))
        for device, of_device in (("ideal", found.ideal), ("hardware", found.dies[0])):
            assert scores[device]["clients"][client]["accuracy"] == pytest.approx(of_device.accuracy)
    former = adapter_digest(get_adapter(prepared.model))
    assert lora_baseline("centralised", prepared, lambda _: None)["accuracy"] >= 0
    assert adapter_digest(get_adapter(prepared.model)) == former


def test_no_message_held_a_b(finished: RunResult, sent: list[str]) -> None:
    assert finished.result["rounds"][1]["uplink_bytes"] > 0
    assert any(A in name for name in sent)
    assert not any(B in name for name in sent)


def test_digest_is_that_of_a_and_all_b(finished: RunResult) -> None:
    folders = sorted((finished.folder / "adapters").iterdir())
    assert [folder.name for folder in folders] == ["0", "1", "2"]
    whole: Tensors = {}
    for client, folder in enumerate(folders):
        for name, tensor in read_adapter(folder).items():
            whole[f"client-{client:05d}/{name}" if B in name else name] = tensor
    digest = adapter_digest(dict(sorted(whole.items())))
    assert finished.result["final"]["adapter_sha256"] == finished.result["rounds"][-1]["adapter_sha256"] == digest
    assert len({row["adapter_sha256"] for row in finished.result["rounds"]}) == 3
    assert not (finished.folder / "adapter").exists() and not (finished.folder / "clients").exists()
    text = summary(finished.result, finished.folder)
    assert f"sha256 {digest[:16]} of all together, one per client in {finished.folder / 'adapters'}" in text


def test_resumed_run_ends_like_an_uninterrupted_one(finished: RunResult, tmp_path: Path) -> None:
    """Also where a client's files are gone: the checkpoint has what they held."""
    folder = interrupt(RunConfig(**SHARED), tmp_path, StopsAfter(1))
    shutil.rmtree(folder / "clients" / "00001")
    resume(folder)
    record = read_result(folder / "result.json")
    assert record["rounds"] == json.loads(json.dumps(finished.result["rounds"]))
    assert record["final"]["evaluation"] == json.loads(json.dumps(finished.result["final"]["evaluation"]))
    for file in sorted((finished.folder / "adapters").rglob("*")):
        if file.is_file():
            again = folder / file.relative_to(finished.folder)
            assert again.read_bytes() == file.read_bytes(), again


def test_report_says_whose_adapter_scored_what(finished: RunResult) -> None:
    assert any("scored by the adapter of its own client" in line for line in evaluation_lines(finished.result))
    assert finished.result["rounds"][1]["aggregation_error"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation": True}, "generation lets one model write"),
        ({"evaluate_only": True, "adapter": "somewhere"}, "evaluate_only evaluates one adapter"),
        ({"calibration": "temperature", "validation_fraction": 0.2}, "calibration: temperature fits one temperature"),
    ],
)
def test_what_needs_one_adapter_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_config({"strategy": {"factors": "share_a"}} | settings, "here")


def test_deployment_and_sweep_are_refused(tmp_path: Path) -> None:
    engine = Engine(grid=InProcessGrid(lambda *_: None, 1))  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match="every client keeps a part of its adapter"):
        run(RunConfig(**SHARED), out=tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="every client has an adapter of its own"):
        make_plan(RunConfig(**SHARED), [parse_vary("readout.bits=4,5")], design="grid", points=None, mode="train",
                  dies=1, seeds=[0], confirmed=False)  # fmt: skip
