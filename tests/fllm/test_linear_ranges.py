"""Ranges of the converters of ternary layers: from statistics at loading, or kept with the model where learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from device_models import InputError, load_device
from fllm.config import RunConfig
from fllm.model.base import SHIPPED, LoadedModel, load_model, place
from fllm.model.checkpoints import LINEAR, SCALERS, read_scalers, set_scalers, write_packed
from fllm.preparation import device_of
from hwsim import emulate
from hwsim.linear_calibration import calibrate_linear_arrays, linear_layers

TEXTS = ["Laboratory: white cells high, lipase normal.", "Imaging: dilated appendix with stranding."]


@pytest.fixture(autouse=True)
def _calibrated_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fllm.model.base.calibrate_linear_arrays", calibrate_linear_arrays)


def load(folder: str | Path | None = None, texts: list[str] = TEXTS, **overrides: object) -> LoadedModel:
    return load_model(folder, load_device("gaincell_28nm", overrides), 1e-5, texts)


def ranges(loaded: LoadedModel) -> list[float]:
    return [float(layer.full_scale.detach()) for layer in linear_layers(loaded.model)]


def test_loading_sets_a_range_for_each_matrix_from_the_sample_texts() -> None:
    calibrated, expected = ranges(load()), ranges(load(texts=[]))
    assert len(calibrated) == 28 and len(set(calibrated)) > 14
    assert len(set(expected)) == 2  # one for each number of inputs
    assert all(0.25 * b < a < 4 * b and a != b for a, b in zip(calibrated, expected, strict=True))


def test_another_device_gets_ranges_of_its_own() -> None:
    loaded = load()
    six = ranges(loaded)
    place(loaded, load_device("gaincell_28nm", {"linear.adc_bits": 3}), 1e-5)
    three = ranges(loaded)
    assert sum(a < b for a, b in zip(three, six, strict=True)) > 20  # few codes want a shorter range
    place(loaded, load_device("gaincell_28nm"), 1e-5)
    assert ranges(loaded) == six


def learned(folder: Path) -> list[float]:
    """Write the shipped model with ranges as if it had been trained with them."""
    loaded = load(**{"linear.adc_range": "learned"})
    for number, layer in enumerate(linear_layers(loaded.model)):
        layer.set_range(10.0 + number, learned=True)
    write_packed(loaded.model, folder)
    loaded.tokenizer.save_pretrained(folder)
    return ranges(loaded)


def test_learned_ranges_are_kept_with_the_model(tmp_path: Path) -> None:
    wanted = learned(tmp_path / "m")
    for chosen in ("calibrated", "learned"):
        loaded = load(tmp_path / "m", **{"linear.adc_range": chosen})
        assert ranges(loaded) == wanted
        assert isinstance(linear_layers(loaded.model)[0].full_scale, torch.nn.Parameter) == (chosen == "learned")
    loaded = load(tmp_path / "m", **{"linear.adc_range": "ideal"})
    assert linear_layers(loaded.model) == []
    place(loaded, load_device("gaincell_28nm"), 1e-5)
    assert ranges(loaded) == wanted


def test_calibrated_ranges_are_not_written(tmp_path: Path) -> None:
    loaded = load()
    write_packed(loaded.model, tmp_path)
    assert LINEAR not in set_scalers(loaded.model, read_scalers(tmp_path), tmp_path)
    assert all(".gain_cell." in name for name in read_scalers(tmp_path))


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    learned(tmp_path / "m")
    state = read_scalers(tmp_path / "m")
    state.pop("model.layers.0.self_attn.q_proj.full_scale")
    save_file(state, tmp_path / "m" / SCALERS)
    with pytest.raises(InputError, match=r"ranges of converters do not fit the model; expected 28"):
        load(tmp_path / "m")


def test_a_run_refuses_ranges_that_nothing_would_learn() -> None:
    with pytest.raises(InputError, match=r"linear.adc_range: .* expected ideal, fixed or calibrated"):
        device_of(RunConfig(device={"linear.adc_range": "learned"}))


def test_ideal_twin_of_a_model_is_the_model_in_digital() -> None:
    loaded = load()
    assert loaded.name == SHIPPED
    ids = loaded.texts[0]
    emulate(loaded.model, load_device("ideal"), die_seed=None, noise_seed=None, token_period=1e-5)
    with torch.no_grad():
        ideal = loaded.model(input_ids=ids).logits
        exact = load_device("gaincell_28nm", {"linear.adc_range": "ideal", "linear.gain_sigma": 0.0})
        emulate(loaded.model, exact, attention=False, die_seed=0)
        assert torch.equal(loaded.model(input_ids=ids).logits, ideal)
        emulate(loaded.model, load_device("gaincell_28nm"), attention=False, die_seed=0)
        assert not torch.equal(loaded.model(input_ids=ids).logits, ideal)
