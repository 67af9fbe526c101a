"""Base models from any folder: what loads, what is refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from device_models import InputError, load_device
from fllm.config import RunConfig
from fllm.data import build_note, load_synthetic
from fllm.model.base import load_model, model_facts
from fllm.model.checkpoints import write_packed
from fllm.observer import Observer
from fllm.preparation import prepare
from hwsim import BitLinear, adapt_range_scalers, emulate, gain_cell_layers, linear_twin, restore
from hwsim.effects import only
from tests.fllm.small import SHIPPED, copied, edit_json, logits

DEVICE = load_device("gaincell_28nm")
SAMPLE = ["history: pain\ndiagnosis:", "exam: soft abdomen\ndiagnosis:"]


def save_llama(folder: Path, vocabulary: int = 2048) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHIPPED / name, folder)
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def llama(llama_folder: Path, tmp_path: Path) -> Path:
    return copied(llama_folder, tmp_path / "llama")


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_model(folder, DEVICE, 1e-5, SAMPLE)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_shipped_model_is_known_as_such() -> None:
    loaded = load_model(None, DEVICE, 1e-5, [])
    assert (loaded.ternarised, loaded.calibrated) == (False, False)
    facts = model_facts(loaded)
    assert 0 < facts["ternary_parameters"] < facts["parameters"]  # type: ignore[operator]


def test_copy_of_the_shipped_model_is_the_shipped_model(model_copy: Path) -> None:
    assert load_model(model_copy, DEVICE, 1e-5, []).sha256 == load_model(None, DEVICE, 1e-5, []).sha256


def test_digest_changes_with_any_file(model_copy: Path) -> None:
    before = load_model(model_copy, DEVICE, 1e-5, []).sha256
    edit_json(model_copy / "tokenizer_config.json", remark="other")
    assert load_model(model_copy, DEVICE, 1e-5, []).sha256 != before


def test_plain_model_is_ternarised_and_calibrated(llama: Path) -> None:
    loaded = load_model(llama, DEVICE, 1e-5, SAMPLE)
    assert (loaded.ternarised, loaded.calibrated) == (True, True)
    layers = [layer for layer in loaded.model.modules() if isinstance(layer, BitLinear)]
    assert layers
    assert all(layer.offline and not layer.weight.requires_grad for layer in layers)


def test_what_ternarising_cost_is_among_the_facts(llama: Path) -> None:
    facts = model_facts(load_model(llama, DEVICE, 1e-5, SAMPLE))
    assert facts["ternarised_after_training"] is True and facts["ternarising_layers"] == 7
    assert 0.4 < facts["ternarising_weight_error_mean"] < 0.6  # type: ignore[operator]
    assert facts["ternarising_tokens"] > 0  # type: ignore[operator]
    assert abs(facts["ternarising_loss_after_nat"] - facts["ternarising_loss_before_nat"]) < 1  # type: ignore[operator]
    assert not any("ternarising" in key for key in model_facts(load_model(None, DEVICE, 1e-5, [])))


def test_large_model_is_counted_and_computes_as_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With packed weights and an embedding in 16 bits, on a chip with noise."""
    small = load_model(None, DEVICE, 1e-5, [])
    monkeypatch.setattr("fllm.model.checkpoints.causal_lm.LARGE", 0)
    large = load_model(None, DEVICE, 1e-5, [])
    assert all(layer.packed for layer in large.model.modules() if isinstance(layer, BitLinear))
    assert all(p.dtype == torch.float32 for cells in gain_cell_layers(large.model) for p in cells.parameters())
    assert model_facts(large) == model_facts(small)
    torch.testing.assert_close(logits(large.model), logits(small.model), rtol=1e-5, atol=1e-4)


def test_converters_of_linear_arrays_get_their_range_from_the_sample() -> None:
    device = load_device("gaincell_28nm", {"linear.adc_range": "calibrated"})
    ranges = []
    for sample in ([], SAMPLE):
        model = load_model(None, device, 1e-5, sample).model
        ranges.append([float(layer.full_scale) for layer in model.modules() if isinstance(layer, BitLinear)])
    assert len(set(ranges[0])) <= 2 < len(set(ranges[1]))  # without a sample they follow from the width alone


def test_no_such_folder(tmp_path: Path) -> None:
    assert "no such model folder" in refused(tmp_path / "absent")


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no such model folder" in refused(tmp_path / "model.safetensors")


def test_no_weights(llama: Path, model_copy: Path) -> None:
    for folder in (llama, model_copy):
        (folder / "model.safetensors").unlink()
        assert "no weights" in refused(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("keep", [0, 40])
def test_file_that_was_cut_off(llama: Path, cut: Callable[[Path, int], None], name: str, keep: int) -> None:
    cut(llama / name, keep)
    refused(llama)


def test_weights_cut_off_in_the_middle(llama: Path, cut: Callable[[Path, int], None]) -> None:
    cut(llama / "model.safetensors", (llama / "model.safetensors").stat().st_size // 2)
    refused(llama)


def test_pickled_weights_that_are_none(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "pytorch_model.bin").write_bytes(b"abc")
    refused(llama)


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "foo"}, {"model_type": "clip"}, {"hidden_size": "x"}, {"num_attention_heads": 0}],
    ids=str,
)
def test_configuration_of_no_language_model(llama: Path, changes: dict) -> None:
    edit_json(llama / "config.json", **changes)
    refused(llama)


def test_missing_tensor_is_not_made_up(llama: Path) -> None:
    """transformers fills a missing tensor with random numbers and goes on."""
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.self_attn.q_proj.weight: a tensor is missing" in refused(llama)


def test_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    assert "more tokens than the model" in refused(save_llama(tmp_path / "small", vocabulary=100))


# ---- scalers and ranges from statistics

NOTES = [build_note(case, ("labs", "imaging")) for case in load_synthetic(40, n_hospitals=4, seed=1).cases[:16]]


def test_calibrated_readout_is_set_where_the_folder_has_no_range(tmp_path: Path) -> None:
    device = load_device("gaincell_28nm", {"readout.range": "calibrated"})
    loaded = load_model(None, device, 1e-5, NOTES)
    assert loaded.placing.readout_calibrated and not loaded.calibrated
    assert model_facts(loaded)["readout_range_from_statistics"] is True
    ranges = [cells.full_scale.detach().clone() for cells in gain_cell_layers(loaded.model)]
    assert all((full_scale <= 1.0).all() for full_scale in ranges)  # the base model was trained with the saturation
    assert any((full_scale < 1.0).any() for full_scale in ranges)

    folder = copied(SHIPPED, tmp_path / "with range")
    write_packed(loaded.model, folder)
    again = load_model(folder, device, 1e-5, [])  # no statistics are needed
    assert not again.placing.readout_calibrated
    assert all(torch.equal(a, b.full_scale) for a, b in zip(ranges, gain_cell_layers(again.model), strict=True))


def test_fixed_readout_is_left_alone() -> None:
    assert not load_model(None, DEVICE, 1e-5, []).placing.readout_calibrated


# ---- softmax on the device

SOFTMAX = {"activation.kind": "softmax", "readout_qk.bits": 12, "readout.range": "calibrated"}
MANY = {"input.levels": 1024, "storage.levels": 1024, "readout.bits": 12}


def test_stock_softmax_model_keeps_its_logits(llama: Path) -> None:
    """Beside the same ternary model with transformers' own softmax."""
    levels = ("input levels", "storage levels", "readout levels", "score converter")
    device = only(load_device("gaincell_28nm", {**SOFTMAX, **MANY}), *levels)
    model = load_model(llama, device, 1e-5, NOTES).model
    on_device = logits(model)
    former = {name: layer for name, layer in model.named_modules() if isinstance(layer, BitLinear)}
    restore(model)
    for name, layer in former.items():
        model.set_submodule(name, layer)
    stock = logits(model)
    assert model.config._attn_implementation != "gain_cell"
    emulate(model, device, token_period=1e-5)  # with new scalers, which nothing has set
    uncalibrated = logits(model)
    error, without = (float((x - stock).square().mean().sqrt() / stock.std()) for x in (on_device, uncalibrated))
    assert error < 0.03  # measured .018
    assert without > 0.06  # measured .092: one layer of random weights attends to little


def test_model_made_for_the_hard_sigmoid_is_refused_on_softmax(model_copy: Path) -> None:
    with pytest.raises(InputError, match="made for hard_sigmoid attention") as error:
        load_model(model_copy, load_device("gaincell_28nm", SOFTMAX), 1e-5, NOTES)
    assert str(model_copy) in str(error.value)
    assert "set activation.kind=hard_sigmoid, or take a stock softmax model" in str(error.value)


def test_model_made_for_softmax_is_refused_on_the_hard_sigmoid(tmp_path: Path) -> None:
    model = load_model(None, DEVICE, 1e-5, []).model
    emulate(model, load_device("gaincell_28nm", SOFTMAX), token_period=1e-5)
    folder = copied(SHIPPED, tmp_path / "softmax")
    write_packed(model, folder)
    assert "made for softmax attention" in refused(folder)


# ---- two-step adaptation


def loss_on(model: torch.nn.Module, texts: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float(model(input_ids=ids, labels=ids, use_cache=False).loss) for ids in texts) / len(texts)


def test_adaptation_brings_an_unscaled_model_back() -> None:
    """The published experiment: perplexity 1757 -> 21 of GPT-2, scalers at a = 1, b = 0 before."""
    loaded = load_model(None, DEVICE, 1e-5, [])
    model = loaded.model
    cases = load_synthetic(40, n_hospitals=4, seed=9).cases[:8]
    seen, unseen = (
        [loaded.tokenizer(text, return_tensors="pt").input_ids for text in texts]
        for texts in (NOTES[:8], [build_note(case, ("labs", "imaging")) for case in cases])
    )
    emulate(model, linear_twin(DEVICE), token_period=1e-5)
    linear = loss_on(model, unseen)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    emulate(model, DEVICE, token_period=1e-5)
    for cells in gain_cell_layers(model):
        for scaler in (cells.query, cells.key, cells.value, cells.output):
            scaler.gain.data.fill_(1.0)
            scaler.offset.data.zero_()
    unscaled = loss_on(model, unseen)
    model.load_state_dict(trained)
    result = adapt_range_scalers(model, DEVICE, seen, start="unit")
    adapted = loss_on(model, unseen)
    assert result.converged
    # measured [nat per token]: 0.618 on linear cells, 1.133 with a = 1 and b = 0, 0.671 adapted
    assert unscaled > linear + 0.4
    assert adapted < linear + 0.1


def test_two_step_is_run_on_the_sample_and_recorded() -> None:
    loaded = load_model(None, DEVICE, 1e-5, NOTES[:6], "two_step")
    assert loaded.placing.adaptation is not None and loaded.placing.adaptation.converged
    facts = model_facts(loaded)
    assert facts["adaptation_iterations"] == loaded.placing.adaptation.iterations > 0
    assert facts["adaptation_largest_mismatch"] == loaded.placing.adaptation.mismatch <= 1e-4
    assert all(cells.device is DEVICE for cells in gain_cell_layers(loaded.model))
    plain = load_model(None, DEVICE, 1e-5, NOTES)
    assert "adaptation_iterations" not in model_facts(plain)
    assert not torch.equal(logits(loaded.model), logits(plain.model))


def test_two_step_of_a_model_without_scalers_starts_on_linear_cells(llama: Path) -> None:
    device = load_device("gaincell_28nm", {"readout.range": "calibrated"})
    loaded = load_model(llama, device, 1e-5, SAMPLE, "two_step")
    assert loaded.calibrated and loaded.placing.readout_calibrated
    assert loaded.placing.adaptation is not None and loaded.placing.adaptation.converged
    assert all(cells.device is device for cells in gain_cell_layers(loaded.model))


def test_two_step_to_linear_cells_is_refused() -> None:
    with pytest.raises(InputError, match="adaptation: the cell is linear: there is nothing to adapt to"):
        load_model(None, load_device("ideal"), 1e-5, NOTES, "two_step")


def test_run_with_a_range_that_nothing_learns_is_refused() -> None:
    config = RunConfig(device={"readout.range": "learned"})
    with pytest.raises(InputError, match=r"readout\.range: a run trains adapters alone") as error:
        prepare(config, Observer())
    assert "device.readout.range=calibrated" in str(error.value)


def test_run_passes_the_adaptation_on() -> None:
    config = RunConfig(device_model="ideal", adaptation="two_step", num_cases=40, num_clients=1)
    with pytest.raises(InputError, match="adaptation: the cell is linear"):
        prepare(config, Observer())
