"""Packed checkpoints: the layout of transformers, the same numbers back, errors for broken folders."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, pack_weights, unpack_weights

from device_models import InputError, load_device
from fllm.model.base import load_model
from fllm.model.checkpoints import SCALERS, WEIGHTS, load_causal_lm, read_scalers, set_scalers, write_packed
from hwsim import BitLinear, emulate, gain_cell_layers
from hwsim.functional.packing import pack_codes, unpack_codes
from tests.fllm.small import SHIPPED, edit_json, logits

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
DEVICE = load_device("gaincell_28nm")


def codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@given(quarter=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_pack_and_unpack_is_a_round_trip(quarter: int, columns: int, seed: int) -> None:
    ternary = codes(4 * quarter, columns, seed)
    packed = pack_codes(ternary)
    assert packed.dtype == torch.uint8
    assert packed.shape == (quarter, columns)
    assert torch.equal(unpack_codes(packed), ternary)


def test_byte_holds_four_rows_from_the_lowest_bits_up() -> None:
    # rows 0, 2, 4, 6 of eight share byte 0: codes + 1 = 2, 0, 1, 2
    ternary = torch.tensor([[1], [0], [-1], [0], [0], [0], [1], [0]]).float()
    assert pack_codes(ternary).flatten().tolist() == [2 | 0 << 2 | 1 << 4 | 2 << 6, 1 | 1 << 2 | 1 << 4 | 1 << 6]


@pytest.mark.parametrize("shape", [(4, 1), (8, 3), (128, 20), (384, 128)])
def test_layout_is_that_of_transformers(shape: tuple[int, int]) -> None:
    ternary = codes(*shape)
    packed = pack_codes(ternary)
    assert torch.equal(packed, pack_weights(ternary.clone()))  # theirs adds one to what it is given
    assert torch.equal(unpack_weights(packed, torch.float32), ternary)


@pytest.mark.parametrize("rows", [1, 2, 3, 6, 127])
def test_rows_that_do_not_fill_bytes_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4 rows, got {rows}"):
        pack_codes(codes(rows, 2))


@pytest.mark.parametrize("value", [2.0, -2.0, 0.5, float("nan")])
def test_values_that_are_no_codes_are_refused(value: float) -> None:
    ternary = codes(4, 2)
    ternary[1, 1] = value
    with pytest.raises(ValueError, match="codes -1, 0, 1"):
        pack_codes(ternary)


def loaded_model(folder: Path) -> BitNetForCausalLM:
    return load_causal_lm(folder).model


def small_model() -> BitNetForCausalLM:
    """Make a model on a device whose embeddings and norms lose nothing in bfloat16."""
    config = BitNetConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(3)
    model = BitNetForCausalLM(config).eval()
    emulate(model, DEVICE, token_period=1e-5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain_cell" in name:
                parameter.add_(0.1 * torch.rand(parameter.shape))
            elif "proj" not in name:
                parameter.copy_((parameter + 0.1 * torch.rand(parameter.shape)).bfloat16().float())
    for layer in model.modules():
        if isinstance(layer, BitLinear):
            layer.freeze_()  # what freezing itself changes, by rounding, is tested in hwsim
    return model


def test_written_model_computes_the_same_bits(tmp_path: Path) -> None:
    model = small_model()
    before = logits(model)
    write_packed(model, tmp_path)
    assert torch.equal(logits(model), before)  # writing changed nothing

    loaded = loaded_model(tmp_path)
    assert not any(isinstance(layer, BitLinear) and not layer.offline for layer in loaded.modules())
    emulate(loaded, DEVICE, token_period=1e-5)
    assert not torch.equal(logits(loaded), before)  # the range scalers are not there yet
    assert set_scalers(loaded, read_scalers(tmp_path), tmp_path)
    assert torch.equal(logits(loaded), before)


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    model = small_model()
    for name in ("one", "two"):
        write_packed(model, tmp_path / name)
    for name in (WEIGHTS, SCALERS, "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_written_files_are_readable_by_all(tmp_path: Path) -> None:
    write_packed(small_model(), tmp_path)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path.name  # safetensors itself writes 0600


def test_scalers_stay_out_of_the_plain_file(tmp_path: Path) -> None:
    write_packed(small_model(), tmp_path)
    assert not any("gain_cell" in name for name in load_file(tmp_path / WEIGHTS))
    assert all(".gain_cell." in name for name in load_file(tmp_path / SCALERS))


def test_folder_without_scalers_says_so(tmp_path: Path) -> None:
    write_packed(small_model(), tmp_path)
    (tmp_path / SCALERS).unlink()
    loaded = loaded_model(tmp_path)
    emulate(loaded, DEVICE, token_period=1e-5)
    assert set_scalers(loaded, read_scalers(tmp_path), tmp_path) == frozenset()


def on(overrides: dict[str, object], folder: Path) -> BitNetForCausalLM:
    """Return the plain model of a folder on another device."""
    model = loaded_model(folder)
    emulate(model, load_device("gaincell_28nm", overrides), token_period=1e-5)
    return model


def change_scalers(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / SCALERS)
    edit(tensors)
    save_file(tensors, folder / SCALERS, metadata={"format": "pt"})


RANGE = {"readout.range": "calibrated"}
SOFTMAX = {"activation.kind": "softmax", "readout_qk.bits": 8}
PLAIN = {"query", "key", "value", "output"}


def test_scalers_of_some_devices_come_with_them(tmp_path: Path) -> None:
    model = on({**RANGE, **SOFTMAX}, SHIPPED)
    for index, cells in enumerate(gain_cell_layers(model)):
        cells.full_scale.data.fill_(0.5 + 0.1 * index)
        cells.logit_gain.data.fill_(3.0 + index)
    write_packed(model, tmp_path)
    loaded = on({**RANGE, **SOFTMAX}, tmp_path)
    assert set_scalers(loaded, read_scalers(tmp_path), tmp_path) == PLAIN | {"full_scale", "logit_gain"}
    for a, b in zip(gain_cell_layers(model), gain_cell_layers(loaded), strict=True):
        assert torch.equal(a.full_scale, b.full_scale) and torch.equal(a.logit_gain, b.logit_gain)
    # a device that fixes both takes the others
    plain = on({}, tmp_path)
    assert set_scalers(plain, read_scalers(tmp_path), tmp_path) == PLAIN | {"full_scale", "logit_gain"}
    for a, b in zip(gain_cell_layers(model), gain_cell_layers(plain), strict=True):
        assert torch.equal(a.query.gain, b.query.gain) and b.full_scale is None


def test_file_may_do_without_scalers_of_some_devices(tmp_path: Path) -> None:
    model = on({**RANGE, **SOFTMAX}, SHIPPED)
    assert set_scalers(model, read_scalers(SHIPPED), SHIPPED) == PLAIN
    assert all((cells.full_scale == 1.0).all() for cells in gain_cell_layers(model))


def drop_of_one_layer(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.self_attn.gain_cell.full_scale"]


def shorten_of_one_layer(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.self_attn.gain_cell.full_scale"] = torch.ones(1)


def drop_plain(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.self_attn.gain_cell.key.gain"]


def add_unknown(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.self_attn.gain_cell.softness"] = torch.ones(2)


@pytest.mark.parametrize("edit", [drop_of_one_layer, shorten_of_one_layer, drop_plain, add_unknown])
@pytest.mark.parametrize("device", [RANGE, {}], ids=["calibrated", "fixed"])
def test_scalers_that_do_not_fit_are_refused(tmp_path: Path, edit: Callable, device: dict) -> None:
    write_packed(on(RANGE, SHIPPED), tmp_path)
    change_scalers(tmp_path, edit)
    with pytest.raises(InputError, match="range scalers do not fit the model"):
        set_scalers(on(device, tmp_path), read_scalers(tmp_path), tmp_path)


def drop_norm(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"]


def drop_scale(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{Q_PROJ}_scale"]


def add_one(tensors: dict[str, Tensor]) -> None:
    tensors["surplus"] = torch.ones(2)


def shorten(tensors: dict[str, Tensor]) -> None:
    tensors[Q_PROJ] = tensors[Q_PROJ][:8].clone()


def flatten(tensors: dict[str, Tensor]) -> None:
    tensors[Q_PROJ] = tensors[Q_PROJ].flatten()


def two_scales(tensors: dict[str, Tensor]) -> None:
    tensors[f"{Q_PROJ}_scale"] = torch.ones(2)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (drop_norm, "model.norm.weight: a tensor is missing"),
        (drop_scale, "q_proj.weight_scale: a tensor is missing"),
        (add_one, "surplus: a tensor does not fit the configuration; expected no such tensor"),
        (shorten, "q_proj.weight: a tensor does not fit"),
        (flatten, "q_proj.weight: a tensor does not fit"),
        (two_scales, "q_proj.weight_scale: a tensor does not fit"),
    ],
)
def test_tensors_that_do_not_fit_are_named(model_copy: Path, edit: Callable, what: str) -> None:
    change(model_copy, edit)
    with pytest.raises(InputError, match=what):
        loaded_model(model_copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"hidden_size": 0},
        {"hidden_size": "many"},
        {"num_hidden_layers": 5},
        {"hidden_act": "nothing"},
        {"num_attention_heads": 8, "num_key_value_heads": 8},  # the same weights, other range scalers
    ],
    ids=str,
)
def test_configuration_that_does_not_fit_is_refused(model_copy: Path, changes: dict) -> None:
    edit_json(model_copy / "config.json", **changes)
    with pytest.raises(InputError):
        load_model(model_copy, DEVICE, 1e-5, [])


@pytest.mark.parametrize("name", [WEIGHTS, SCALERS])
def test_truncated_file_is_named(model_copy: Path, cut: Callable[[Path, int], None], name: str) -> None:
    cut(model_copy / name, 500)
    with pytest.raises(InputError, match=f"{name}: weights cannot be read"):
        load_model(model_copy, DEVICE, 1e-5, [])


# The shipped model. Its weights may be replaced by better ones: nothing here depends on how good it is.


@pytest.mark.parametrize("dtype", [torch.float32, None], ids=["float32", "as stored"])
def test_plain_transformers_decodes_the_same_weights(dtype: torch.dtype | None) -> None:
    ours = dict(loaded_model(SHIPPED).named_modules())
    theirs = AutoModelForCausalLM.from_pretrained(
        SHIPPED, local_files_only=True, **({} if dtype is None else {"dtype": dtype})
    )
    seen = 0
    for name, layer in theirs.named_modules():
        if isinstance(layer, AutoBitLinear):
            seen += 1
            assert torch.equal(layer.weight.float(), ours[name].weight), name
            scale = ours[name].weight_scale.to(layer.weight_scale.dtype)  # bfloat16 where theirs is
            assert layer.weight_scale.item() == scale.item(), name
        elif isinstance(layer, nn.Embedding):
            assert torch.equal(layer.weight.float(), ours[name].weight), name
    assert seen == sum(isinstance(layer, BitLinear) for layer in ours.values()) > 0
    if dtype is None:  # in float32, transformers 5.23 leaves embeddings in bfloat16 and its own forward pass fails
        assert logits(theirs).isfinite().all()


def test_writing_the_shipped_model_gives_its_bytes(tmp_path: Path) -> None:
    model = loaded_model(SHIPPED)
    emulate(model, DEVICE, token_period=1e-5)
    set_scalers(model, read_scalers(SHIPPED), SHIPPED)
    write_packed(model, tmp_path)
    for name in (WEIGHTS, SCALERS):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes(), name


def test_shipped_folder_is_small_and_readable() -> None:
    files = [path for path in SHIPPED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path.name


def test_provenance_is_complete() -> None:
    from fllm.model.pretrain import BaseRecipe

    provenance = json.loads((SHIPPED / "provenance.json").read_text(encoding="utf-8"))
    model = load_model(None, DEVICE, 1e-5, []).model
    assert provenance["parameters"] == sum(p.numel() for p in model.parameters())
    ternary = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, BitLinear))
    assert provenance["ternary_parameters"] == ternary
    assert len(provenance["corpus_sha256"]) == 64
    assert {"what", "torch"} <= set(provenance)
    assert sum(key.startswith("validation_loss") for key in provenance) == 2
    recipe = provenance["recipe"]
    assert set(recipe) <= {field.name for field in fields(BaseRecipe)}
    assert {"seed", "notes", "steps", "device", "vocabulary", "hidden_size", "layers", "heads"} <= set(recipe)
    assert recipe["layers"] == len(gain_cell_layers(model))
