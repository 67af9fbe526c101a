"""``fllm base convert``: what it writes and prints, and refuses in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from device_models import load_device
from fllm.model.base import load_model, model_facts
from fllm.model.checkpoints import SCALERS, WEIGHTS, load_causal_lm
from tests.fllm.conftest import Terminal
from tests.fllm.made_checkpoints import INVERSE, largest_difference, llama, packed_tensors, plain_model, write_folder
from tests.fllm.small import SHIPPED, logits
from tests.tolerances import CHECKPOINT

Convert = Callable[..., tuple[str, str]]


@pytest.fixture
def convert(terminal: Terminal) -> Convert:
    """Return a function that runs ``fllm base convert`` and returns what it prints and what it complains about."""
    return partial(terminal, "base", "convert")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    plain_model(llama(vocab_size=2048)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, folder)
    return folder


def test_plain_model(convert: Convert, plain: Path, tmp_path: Path) -> None:
    (plain / "code.py").write_text("raise SystemExit", encoding="utf-8")
    out, _ = convert(plain, tmp_path / "packed")
    names = {file.name for file in (tmp_path / "packed").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, "conversion.json"} <= names
    assert "code.py" not in names
    stated = json.loads((tmp_path / "packed" / "conversion.json").read_text(encoding="utf-8"))
    assert stated["layers"] == 14 and stated["tokens"] > 100
    assert stated["loss_before_nat"] != stated["loss_after_nat"]
    before, after = ((folder / WEIGHTS).stat().st_size / 1e6 for folder in (plain, tmp_path / "packed"))
    for word in (
        f"{before:.1f}", f"{after:.1f}", f"{stated['weight_error_mean']:.1%}",
        f"{stated['loss_before_nat']:.3f}", f"{stated['loss_after_nat']:.3f}", str(tmp_path / "packed"),
    ):  # fmt: skip
        assert word in out
    assert after < before / 1.9

    # who loads the packed model is told what it cost
    loaded = load_model(tmp_path / "packed", load_device("ideal"), 1e-5, ["one two three"])
    assert loaded.ternarised
    facts = model_facts(loaded)
    assert facts["ternarising_loss_after_nat"] == stated["loss_after_nat"]
    assert facts["ternarised_after_training"] is True


def test_float32_runs_in_transformers(convert: Convert, plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "packed", "--dtype", "float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", local_files_only=True).eval()
    assert theirs.dtype == torch.float32
    assert largest_difference(logits(theirs), logits(load_causal_lm(plain).model)) < CHECKPOINT


def test_shipped_model_has_nothing_to_lose(convert: Convert, tmp_path: Path) -> None:
    out, _ = convert(SHIPPED, tmp_path / "packed")
    assert "loss" not in out and "weights [MB]" in out
    for name in (WEIGHTS, SCALERS):
        assert (tmp_path / "packed" / name).read_bytes() == (SHIPPED / name).read_bytes()
    assert not (tmp_path / "packed" / "conversion.json").exists()


def test_model_without_tokenizer(convert: Convert, tmp_path: Path) -> None:
    plain_model(llama()).save_pretrained(tmp_path / "plain")
    out, _ = convert(tmp_path / "plain", tmp_path / "packed")
    assert "not measured" in out


def test_packed_model_of_the_other_convention(convert: Convert, tmp_path: Path) -> None:
    model = plain_model(llama())
    folder = write_folder(tmp_path / "from", model.config, packed_tensors(model, inverse=True), INVERSE)
    convert(folder, tmp_path / "packed")
    config = json.loads((tmp_path / "packed" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["linear_class"] == "autobitlinear"
    assert torch.equal(logits(load_causal_lm(tmp_path / "packed").model), logits(load_causal_lm(folder).model))


def test_refusals_leave_nothing_behind(convert: Convert, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine", encoding="utf-8")
    model = plain_model(llama(intermediate_size=50))
    model.save_pretrained(tmp_path / "odd")
    cases = [
        ((tmp_path / "absent", tmp_path / "out"), "no such model folder"),
        ((plain, tmp_path / "full"), "holds something already"),
        ((tmp_path / "odd", tmp_path / "out"), "packing needs a multiple of 4 outputs"),
    ]
    for (source, out), what in cases:
        _, err = convert(source, out, code=2)
        assert what in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "odd", "plain"]
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note.txt"]


def test_tokenizer_of_a_larger_model(convert: Convert, plain: Path, tmp_path: Path) -> None:
    model = plain_model(llama(vocab_size=64))
    model.save_pretrained(plain)
    _, err = convert(plain, tmp_path / "packed", code=2)
    assert "more tokens than the model" in err
    assert not (tmp_path / "packed").exists()
