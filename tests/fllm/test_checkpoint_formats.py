"""Checkpoints in every layout in use: the logits of plain transformers, or of arithmetic where it has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitNetForCausalLM, LlamaForCausalLM, PreTrainedModel
from transformers.integrations.bitnet import AutoBitLinear

from device_models import InputError
from fllm.model.checkpoints import load_causal_lm
from hwsim import BitLinear
from tests.fllm.made_checkpoints import (
    ABSENT,
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
from tests.fllm.small import edit_json, logits
from tests.tolerances import CHECKPOINT, CHECKPOINT_MATTERS


def check(folder: Path, theirs: PreTrainedModel | None = None) -> PreTrainedModel:
    """Compare a folder's logits, kept large and small, with those of transformers."""
    expected = logits(theirs or theirs_in_float32(folder))
    for large in (True, False):
        loaded = load_causal_lm(folder, large=large)
        assert largest_difference(logits(loaded.model), expected) < CHECKPOINT
        assert loaded.conversion is None
        layers = [layer for layer in loaded.model.modules() if isinstance(layer, BitLinear)]
        assert len(layers) == 7 * 2
        assert all(layer.offline and layer.packed == large for layer in layers)
    return loaded.model


def test_packed_bitnet(tmp_path: Path) -> None:
    model = plain_model(bitnet())
    loaded = check(write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=False), OFFLINE))
    assert isinstance(loaded, BitNetForCausalLM)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("quantization", [INVERSE, ABSENT], ids=["bitlinear", "absent"])
@pytest.mark.parametrize("config", [llama, bitnet])
def test_packed_with_the_reciprocal_scale(tmp_path: Path, config: Callable, quantization: dict) -> None:
    model = plain_model(config())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=True), quantization)
    loaded = check(folder)
    assert isinstance(loaded, LlamaForCausalLM if config is llama else BitNetForCausalLM)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == (config is bitnet)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_other_convention_would_be_far_off(tmp_path: Path, inverse: bool) -> None:
    model = plain_model(llama())
    tensors = packed_tensors(model, inverse=inverse)
    right, wrong = (OFFLINE, INVERSE) if not inverse else (INVERSE, OFFLINE)
    expected = logits(theirs_in_float32(write_folder(tmp_path / "right", model.config, tensors, right)))
    misread = load_causal_lm(write_folder(tmp_path / "wrong", model.config, tensors, wrong)).model
    assert largest_difference(logits(misread), expected) > CHECKPOINT_MATTERS


@pytest.mark.parametrize("quantization", [ONLINE, None], ids=["online", "no quantization_config"])
def test_master_weights(tmp_path: Path, quantization: dict | None) -> None:
    model = plain_model(bitnet())
    tensors = master_tensors(model)
    folder = write_folder(tmp_path / "m", model.config, tensors, quantization)
    theirs = theirs_in_float32(write_folder(tmp_path / "online", model.config, tensors, ONLINE))
    assert sum(isinstance(layer, AutoBitLinear) for layer in theirs.modules()) == 14
    check(folder, theirs)


def test_master_weights_of_another_architecture(tmp_path: Path) -> None:
    model = plain_model(llama())
    check(write_folder(tmp_path / "m", model.config, master_tensors(model), ONLINE))


@pytest.mark.parametrize("inverse", [False, True])
def test_unpacked_codes_beside_a_scale(tmp_path: Path, inverse: bool) -> None:
    model = plain_model(llama())
    tensors = packed_tensors(model, inverse=inverse)
    packed = load_causal_lm(
        write_folder(tmp_path / "packed", model.config, tensors, INVERSE if inverse else OFFLINE)
    ).model
    for name in projections(model):
        tensors[f"{name}.weight"] = packed.get_submodule(name).weight.to(torch.bfloat16)
    folder = write_folder(tmp_path / "m", model.config, tensors, INVERSE if inverse else OFFLINE)
    assert torch.equal(logits(load_causal_lm(folder).model), logits(packed))
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = 0.5
    with pytest.raises(InputError, match=r"q_proj\.weight: a weight beside a scale is no code"):
        load_causal_lm(write_folder(tmp_path / "no codes", model.config, tensors, OFFLINE))


def with_norms(model: PreTrainedModel, tensors: dict[str, torch.Tensor], ending: str) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(5)
    for name in projections(model):
        width = model.get_submodule(name).in_features
        tensors[f"{name}.{ending}"] = (1 + 0.3 * torch.randn(width, generator=made)).bfloat16()
    return tensors


@pytest.mark.parametrize("mode", ["online", "packed", "reciprocal"])
@pytest.mark.parametrize("eps", [{}, {"rms_norm_eps": 0.01}], ids=str)
def test_norms_inside_layers_by_flag(tmp_path: Path, mode: str, eps: dict) -> None:
    model = plain_model(llama())
    tensors = master_tensors(model) if mode == "online" else packed_tensors(model, inverse=mode == "reciprocal")
    kind = {"online": ONLINE, "packed": OFFLINE, "reciprocal": INVERSE}[mode]
    tensors = with_norms(model, tensors, "rms_norm.weight")
    loaded = check(write_folder(tmp_path / "m", model.config, tensors, {**kind, "use_rms_norm": True, **eps}))
    layer = loaded.get_submodule("model.layers.0.self_attn.q_proj")
    assert isinstance(layer.norm, nn.RMSNorm) and layer.norm.eps == eps.get("rms_norm_eps", 1e-6)


@pytest.mark.parametrize("quantization", [ONLINE, None], ids=["online", "no quantization_config"])
def test_norms_inside_layers_by_name(tmp_path: Path, quantization: dict | None) -> None:
    """``*_proj.norm.weight``, which transformers leaves out without a word."""
    model = plain_model(llama(rms_norm_eps=1e-6))
    flagged = write_folder(
        tmp_path / "flagged", model.config, with_norms(model, master_tensors(model), "rms_norm.weight"),
        {**ONLINE, "use_rms_norm": True},
    )  # fmt: skip
    tensors = with_norms(model, master_tensors(model), "norm.weight")
    folder = write_folder(tmp_path / "m", model.config, tensors, quantization)
    check(folder, theirs_in_float32(flagged))
    if quantization is not None:
        ignored = logits(theirs_in_float32(folder))
        assert largest_difference(ignored, logits(load_causal_lm(folder).model)) > CHECKPOINT_MATTERS


def test_missing_norm_is_not_made_up(tmp_path: Path) -> None:
    model = plain_model(llama())
    folder = write_folder(tmp_path / "m", model.config, master_tensors(model), {**ONLINE, "use_rms_norm": True})
    with pytest.raises(InputError, match=r"q_proj\.rms_norm\.weight: a tensor is missing"):
        load_causal_lm(folder)


@pytest.mark.parametrize("packed", [True, False])
def test_bitnet_without_sub_norms_gets_none(tmp_path: Path, packed: bool) -> None:
    """transformers fills the missing norms with ones, and normalises."""
    model = plain_model(bitnet())
    tensors = packed_tensors(model, inverse=False) if packed else master_tensors(model)
    bare = {name: tensor for name, tensor in tensors.items() if "_sub_norm" not in name}
    folder = write_folder(tmp_path / "m", model.config, bare, OFFLINE if packed else ONLINE)
    filled = theirs_in_float32(folder)
    theirs = theirs_in_float32(folder)
    for layer in theirs.model.layers:
        layer.self_attn.attn_sub_norm, layer.mlp.ffn_sub_norm = nn.Identity(), nn.Identity()
    loaded = check(folder, theirs)
    assert isinstance(loaded, LlamaForCausalLM)
    assert largest_difference(logits(filled), logits(theirs)) > CHECKPOINT_MATTERS


def test_one_missing_sub_norm_is_an_error(tmp_path: Path) -> None:
    model = plain_model(bitnet())
    tensors = packed_tensors(model, inverse=False)
    del tensors["model.layers.1.mlp.ffn_sub_norm.weight"]
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.ffn_sub_norm\.weight: a tensor is missing"):
        load_causal_lm(write_folder(tmp_path / "m", model.config, tensors, OFFLINE))


def test_biases_of_packed_layers(tmp_path: Path) -> None:
    model = plain_model(llama(attention_bias=True, mlp_bias=True))
    check(write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=True), INVERSE))


def test_layers_that_are_not_converted(tmp_path: Path) -> None:
    """They are plain in the file; here they become ternary, and what it costs is told."""
    model = plain_model(llama())
    kept = "model.layers.1.mlp.down_proj"
    tensors = packed_tensors(model, inverse=True)
    for leaf in ("weight", "weight_scale"):
        tensors.pop(f"{kept}.{leaf}")
    tensors[f"{kept}.weight"] = model.get_submodule(kept).weight.detach().bfloat16()
    quantization = {**INVERSE, "modules_to_not_convert": ["lm_head", kept]}
    loaded = load_causal_lm(write_folder(tmp_path / "m", model.config, tensors, quantization))
    assert loaded.conversion is not None and loaded.conversion.layers == 1
    assert loaded.conversion.weight_error_mean > 0.1


def shard(folder: Path, parts: int = 3) -> None:
    """Cut the weights of a folder into shards, as large files are."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for part in range(parts):
        file = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        mine = {name: t for at, (name, t) in enumerate(sorted(tensors.items())) if at % parts == part}
        save_file(mine, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def test_shards(tmp_path: Path) -> None:
    model = plain_model(bitnet())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=False), OFFLINE)
    whole = logits(load_causal_lm(folder).model)
    shard(folder)
    assert torch.equal(logits(check(folder)), whole)


def lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}", encoding="utf-8")


def list_no_object(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}', encoding="utf-8")


def list_a_tensor_elsewhere(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    places = index["weight_map"]
    places["model.norm.weight"] = next(place for place in places.values() if place != places["model.norm.weight"])
    file.write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("edit", [lose_a_shard, break_the_index, list_no_object, list_a_tensor_elsewhere])
def test_broken_shards(tmp_path: Path, edit: Callable[[Path], None]) -> None:
    model = plain_model(bitnet())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=False), OFFLINE)
    shard(folder)
    edit(folder)
    with pytest.raises(InputError) as error:
        load_causal_lm(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_configuration_of_an_old_file(tmp_path: Path) -> None:
    """Top-level ``rope_theta``, and ``auto_map`` that names code, which is not run."""
    model = plain_model(bitnet())
    folder = write_folder(
        tmp_path / "m", model.config, packed_tensors(model, inverse=False), OFFLINE,
        auto_map={"AutoConfig": "configuration_bitnet.BitNetConfig", "AutoModelForCausalLM": "code.Model"},
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    theta = config.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta}), encoding="utf-8")
    (folder / "code.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    loaded = check(folder)
    assert loaded.config.rope_parameters["rope_theta"] == theta == 500000.0
    assert not hasattr(loaded.config, "auto_map")


def test_unknown_model_with_code_is_refused_and_its_code_not_run(tmp_path: Path) -> None:
    model = plain_model(llama())
    folder = write_folder(
        tmp_path / "m", model.config, master_tensors(model), ONLINE, model_type="homemade",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )  # fmt: skip
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(InputError, match=r"model_type: .*code of a model folder is not run; received 'homemade'"):
        load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"linear_class": "trilinear"}, "unknown linear_class"),
        ({"quantization_mode": "sometimes"}, "unknown quantization_mode"),
        ({"modules_to_not_convert": 3}, "cannot be read"),
        ({"modules_to_not_convert": ["("]}, "cannot be read"),
        ({"rms_norm_eps": "small"}, "cannot be read"),
    ],
)
def test_unknown_kinds_are_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    model = plain_model(llama())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=False), {**OFFLINE, **changes})
    with pytest.raises(InputError, match=what):
        load_causal_lm(folder)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_that_is_none(tmp_path: Path, scale: float) -> None:
    model = plain_model(llama())
    tensors = packed_tensors(model, inverse=True)
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = torch.tensor([scale])
    with pytest.raises(InputError, match=r"up_proj\.weight_scale: a scale is no positive number"):
        load_causal_lm(write_folder(tmp_path / "m", model.config, tensors, INVERSE))


def test_other_quantisation_is_left_to_transformers_and_refused(tmp_path: Path) -> None:
    model = plain_model(llama())
    folder = write_folder(tmp_path / "m", model.config, master_tensors(model), {"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match="not a loadable causal language model"):
        load_causal_lm(folder)


def test_bitnet_in_pickles_is_refused(tmp_path: Path) -> None:
    model = plain_model(bitnet())
    folder = write_folder(tmp_path / "m", model.config, master_tensors(model), ONLINE)
    (folder / "model.safetensors").unlink()
    torch.save(master_tensors(model), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors: no weights"):
        load_causal_lm(folder)


def test_tensors_that_old_files_have_beside_weights(tmp_path: Path) -> None:
    model = plain_model(llama(tie_word_embeddings=True))
    tensors = packed_tensors(model, inverse=True)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # a copy of the tied one
    check(write_folder(tmp_path / "m", model.config, tensors, INVERSE))


def test_large_model_keeps_sixteen_bits_and_computes_in_float32(tmp_path: Path) -> None:
    model = plain_model(llama())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=True), INVERSE)
    large = load_causal_lm(folder, large=True).model
    kinds = {name: t.dtype for name, t in large.state_dict().items()}
    assert kinds.pop("model.embed_tokens.weight") == kinds.pop("lm_head.weight") == torch.bfloat16
    assert all(kinds.pop(f"{name}.weight") == torch.uint8 for name in projections(model))
    assert set(kinds.values()) == {torch.float32}
    assert logits(large).dtype == torch.float32
    small = load_causal_lm(folder, large=False).model
    assert all(t.dtype == torch.float32 for t in small.state_dict().values())
    # gradients reach the activations through the head and the packed layers
    ids = torch.arange(2, 22)[None]
    grads = []
    for each in (large, small):
        embedded = each.get_input_embeddings()(ids).detach().float().requires_grad_()
        each(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()
        grads.append(embedded.grad)
    assert largest_difference(*grads) < CHECKPOINT


def test_large_is_decided_by_the_number_of_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_model(llama())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=True), INVERSE)
    total = sum(p.numel() for p in model.parameters()) + len(projections(model))  # and a scale each
    for most, large in ((total, False), (total - 1, True)):
        monkeypatch.setattr("fllm.model.checkpoints.causal_lm.LARGE", most)
        loaded = load_causal_lm(folder).model
        assert any(layer.packed for layer in loaded.modules() if isinstance(layer, BitLinear)) == large


def test_large_plain_model_is_packed_too(tmp_path: Path) -> None:
    model = plain_model(llama(attention_bias=True))
    folder = tmp_path / "m"
    model.bfloat16().save_pretrained(folder)
    large, small = (load_causal_lm(folder, large=large) for large in (True, False))
    assert large.model.lm_head.weight.dtype == torch.bfloat16
    assert all(layer.packed for layer in large.model.modules() if isinstance(layer, BitLinear))
    assert largest_difference(logits(large.model), logits(small.model)) < CHECKPOINT
    assert large.conversion is not None and large.conversion.weight_error_mean > 0.1


def test_plain_configuration_still_loads_in_transformers(tmp_path: Path) -> None:
    """The configuration of a loaded model is that of a plain one."""
    model = plain_model(bitnet())
    folder = write_folder(tmp_path / "m", model.config, packed_tensors(model, inverse=False), OFFLINE)
    edit_json(folder / "config.json", dtype="float32")
    loaded = load_causal_lm(folder).model
    assert not hasattr(loaded.config, "quantization_config")
    assert isinstance(AutoModelForCausalLM.from_config(loaded.config), BitNetForCausalLM)
