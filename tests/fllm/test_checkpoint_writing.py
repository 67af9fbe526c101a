"""Packed checkpoints as plain transformers reads them back, and what the packed form cannot hold."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel
from transformers.integrations.bitnet import AutoBitLinear
from transformers.integrations.bitnet import BitLinear as TheirBitLinear

from device_models import InputError
from fllm.model.checkpoints import INDEX, WEIGHTS, load_causal_lm, write_packed
from hwsim import BitLinear
from tests.fllm.made_checkpoints import (
    INVERSE,
    OFFLINE,
    ONLINE,
    bitnet,
    largest_difference,
    llama,
    master_tensors,
    packed_tensors,
    plain_model,
    projections,
    theirs_in_float32,
    write_folder,
)
from tests.fllm.small import logits
from tests.tolerances import CHECKPOINT


def tied_bitnet(folder: Path) -> Path:
    model = plain_model(bitnet())
    return write_folder(folder, model.config, packed_tensors(model, inverse=False), OFFLINE)


def own_head(folder: Path) -> Path:
    model = plain_model(llama())
    return write_folder(folder, model.config, packed_tensors(model, inverse=True), INVERSE)


def biases(folder: Path) -> Path:
    model = plain_model(llama(attention_bias=True, mlp_bias=True))
    return write_folder(folder, model.config, master_tensors(model), ONLINE)


def inner_norms(folder: Path) -> Path:
    model = plain_model(llama())
    tensors = master_tensors(model)
    for name in projections(model):
        tensors[f"{name}.norm.weight"] = torch.rand(model.get_submodule(name).in_features) + 0.5
    return write_folder(folder, model.config, tensors, {**ONLINE, "rms_norm_eps": 0.01})


def no_sub_norms(folder: Path) -> Path:
    model = plain_model(bitnet())
    tensors = {name: t for name, t in master_tensors(model).items() if "_sub_norm" not in name}
    return write_folder(folder, model.config, tensors, ONLINE)


def plain(folder: Path) -> Path:
    plain_model(llama()).save_pretrained(folder)
    return folder


KINDS = [tied_bitnet, own_head, biases, inner_norms, no_sub_norms, plain]


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("large", [False, True])
def test_plain_transformers_reads_it_back(tmp_path: Path, made: Callable[[Path], Path], large: bool) -> None:
    model = load_causal_lm(made(tmp_path / "from"), large=large).model
    before = logits(model)
    write_packed(model, tmp_path / "f32", dtype=torch.float32)
    assert torch.equal(logits(model), before)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "f32", local_files_only=True).eval()
    assert largest_difference(logits(theirs), before) < CHECKPOINT
    kind = TheirBitLinear if made is biases else AutoBitLinear  # theirs adds a scaled bias
    assert sum(isinstance(layer, kind) for layer in theirs.modules()) == 14
    ours = logits(load_causal_lm(tmp_path / "f32", large=large).model)
    assert largest_difference(ours, before) < (CHECKPOINT if made is biases else 1e-30)  # 1 / (1 / s) may be s + 1 bit


@pytest.mark.parametrize("made", [tied_bitnet, own_head])
def test_sixteen_bits_run_in_transformers_as_stored(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    model = load_causal_lm(made(tmp_path / "from")).model
    write_packed(model, tmp_path / "bf16")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", local_files_only=True)
    assert stored.dtype == torch.bfloat16 and logits(stored).isfinite().all()
    assert largest_difference(logits(theirs_in_float32(tmp_path / "bf16")), logits(model)) < 5e-3  # scales in 16 bits
    assert torch.equal(logits(load_causal_lm(tmp_path / "bf16").model), logits(model))  # ours are kept in 32


def test_keys_are_those_of_the_published_file(tmp_path: Path) -> None:
    write_packed(load_causal_lm(tied_bitnet(tmp_path / "from")).model, tmp_path / "to")
    text = (tmp_path / "to" / "config.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    config = json.loads(text)
    assert config["architectures"] == ["BitNetForCausalLM"] and config["dtype"] == "bfloat16"
    assert config["quantization_config"] == {**OFFLINE, "modules_to_not_convert": None}


def test_packed_and_unpacked_models_give_the_same_bytes(tmp_path: Path) -> None:
    folder = own_head(tmp_path / "from")
    for large in (False, True):
        write_packed(load_causal_lm(folder, large=large).model, tmp_path / str(large))
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "False" / name).read_bytes() == (tmp_path / "True" / name).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody replace a file that is mapped")
def test_writing_over_the_file_that_a_model_is_mapped_from(tmp_path: Path) -> None:
    folder = own_head(tmp_path / "from")
    model = load_causal_lm(folder, large=True).model
    before = logits(model)
    write_packed(model, folder)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(load_causal_lm(folder, large=True).model), before)


def test_large_weights_are_cut_into_files(tmp_path: Path) -> None:
    model = load_causal_lm(own_head(tmp_path / "from")).model
    folder = tmp_path / "to"
    write_packed(model, folder, dtype=torch.float32, shard_bytes=10_000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and not (folder / WEIGHTS).exists()
    assert all(file.stat().st_size < 12_000 for file in files)  # with its header
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in files)
    theirs = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert largest_difference(logits(theirs), logits(model)) < CHECKPOINT
    assert torch.equal(logits(load_causal_lm(folder).model), logits(model))
    write_packed(model, folder, dtype=torch.float32)  # in one file: the others go
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", WEIGHTS]
    write_packed(model, folder, dtype=torch.float32, shard_bytes=10_000)
    assert (folder / INDEX).is_file() and not (folder / WEIGHTS).exists()


def refused(model: PreTrainedModel, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        write_packed(model, folder)
    assert not folder.exists()
    return str(error.value)


def test_outputs_that_fill_no_bytes_are_refused(tmp_path: Path) -> None:
    model = plain_model(bitnet(intermediate_size=50))
    folder = write_folder(tmp_path / "from", model.config, master_tensors(model), ONLINE)
    message = refused(load_causal_lm(folder).model, tmp_path / "to")
    assert "layers.0.mlp.gate_proj: packing needs a multiple of 4 outputs" in message
    assert "received 50" in message


def test_layers_that_transformers_cannot_pack_are_refused(tmp_path: Path) -> None:
    plain_model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=64)).save_pretrained(tmp_path)
    message = refused(load_causal_lm(tmp_path).model, tmp_path / "to")
    assert "h.0.attn.c_attn: transformers has no packed form of this layer" in message
    assert "received 'Conv1D'" in message


def test_model_without_ternary_layers_is_refused(tmp_path: Path) -> None:
    assert "no ternary layer to pack" in refused(plain_model(llama()), tmp_path / "to")


def test_norms_inside_some_layers_are_refused(tmp_path: Path) -> None:
    model = load_causal_lm(own_head(tmp_path / "from")).model
    layer: Any = next(layer for layer in model.modules() if isinstance(layer, BitLinear))
    layer.norm = nn.RMSNorm(layer.in_features)
    assert "some ternary layers have a norm inside" in refused(model, tmp_path / "to")


def test_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_causal_lm(own_head(tmp_path / "from")).model
    write_packed(model, tmp_path / "to")
    former = (tmp_path / "to" / WEIGHTS).read_bytes()

    def fail(tensors: dict, file: Path, metadata: dict) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("fllm.model.checkpoints.writing.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        write_packed(model, tmp_path / "to")
    assert (tmp_path / "to" / WEIGHTS).read_bytes() == former
    assert sorted(file.name for file in (tmp_path / "to").iterdir()) == ["config.json", WEIGHTS]
