"""Ternary arrays inside models: calibration, chips and noise that do not depend on how a model is run or wrapped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from hwsim import BitLinear, calibrate_linear_arrays, count_events, emulate, noise_key, restore
from hwsim.linear_calibration import linear_layers
from tests import tolerances
from tests.hwsim.models import ARCHITECTURES, PERIOD, emulated_model, plain_model, small_device, token_ids, whole

BARE = {"linear.gain_sigma": 0.0, "linear.noise": 0.0}
DIGITAL = {**BARE, "linear.adc_range": "ideal"}


def on_arrays(architecture: str = "llama", device: Any = None, **options: Any) -> Any:
    """Return a model whose ternary layers alone are emulated."""
    model = plain_model(architecture)
    return emulate(model, device or small_device(), attention=False, **options)


def bit_layers(model: Any) -> list[BitLinear]:
    return [layer for layer in model.modules() if isinstance(layer, BitLinear)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_error_of_the_arrays_reaches_the_logits(architecture: str) -> None:
    ids = token_ids(2, 10)
    wanted = whole(on_arrays(architecture, small_device(**DIGITAL)), ids)
    for device in (
        small_device(**{**DIGITAL, "linear.gain_sigma": 0.05}),
        small_device(**{**DIGITAL, "linear.stuck_at_zero": 0.05}),
        small_device(**BARE),
        small_device(**{"linear.gain_sigma": 0.0}),
    ):
        assert (whole(on_arrays(architecture, device), ids) - wanted).abs().max() > tolerances.MATTERS


@pytest.mark.parametrize("architecture", ["llama", "opt", "gpt2", "gemma3"])
def test_linear_arrays_alone_compute_the_same_in_every_way_to_run(architecture: str) -> None:
    """Token by token, in two parts, with padding on either side, and in another batch: same places, same noise."""
    model, ids, keys = on_arrays(architecture), token_ids(2, 10), torch.tensor([3, 4])
    with torch.no_grad(), noise_key(keys):
        wanted = whole(model, ids)
        cache, parts = None, []
        for part in (ids[:, :4], ids[:, 4:9], ids[:, 9:]):
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    assert (torch.cat(parts, 1) - wanted).abs().max() <= tolerances.PATHS
    with torch.no_grad(), noise_key(keys[1:]):
        assert (whole(model, ids[1:]) - wanted[1:]).abs().max() <= tolerances.PATHS
    for left in (True, False):
        pad, real = torch.zeros_like(ids[:, :3]), torch.ones_like(ids)
        padded = torch.cat([pad, ids] if left else [ids, pad], 1)
        mask = torch.cat([pad, real] if left else [real, pad], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        options = {} if architecture == "opt" else {"position_ids": positions}
        with torch.no_grad(), noise_key(keys):
            out = model(input_ids=padded, attention_mask=mask, use_cache=False, **options).logits
        assert (out[:, 3:] if left else out[:, :10]).sub(wanted).abs().max() <= tolerances.PATHS


def test_noise_is_drawn_anew_with_each_key_and_off_without_one() -> None:
    model, ids = on_arrays(), token_ids(1, 10)
    outputs = []
    for key in (1, 1, 2, None):
        with torch.no_grad(), noise_key(key):
            outputs.append(whole(model, ids))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[3])
    silent = on_arrays(device=small_device(**{"linear.noise": 0.0}))
    with torch.no_grad():
        assert torch.equal(outputs[3], whole(silent, ids))


def test_a_chip_is_the_same_around_an_adapter_and_another_with_another_seed() -> None:
    ids = token_ids(1, 10)
    plain = emulated_model("llama", die_seed=5)
    wanted = whole(plain, ids)
    wrapped = emulated_model("llama", die_seed=5)
    wrapped = get_peft_model(wrapped, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    emulate(wrapped, small_device(), die_seed=5, token_period=PERIOD)
    assert torch.equal(whole(wrapped, ids), wanted)
    emulate(wrapped, small_device(), die_seed=6, token_period=PERIOD)
    assert not torch.equal(whole(wrapped, ids), wanted)
    emulate(wrapped, small_device(), die_seed=5, token_period=PERIOD)
    assert torch.equal(whole(wrapped, ids), wanted)


def test_equal_matrices_of_two_layers_sit_in_two_places() -> None:
    model = on_arrays(device=small_device(**{**DIGITAL, "linear.gain_sigma": 0.1}))
    for layer in bit_layers(model):
        layer.freeze_()
    first, second = (model.model.layers[i].mlp.up_proj for i in (0, 1))
    second.weight.data = first.weight.data.clone()
    second.weight_scale = first.weight_scale
    x = torch.randn(1, 3, 32, dtype=torch.float64)
    assert not torch.equal(first(x), second(x))


def test_a_copy_of_a_model_knows_its_own_tokens() -> None:
    model, ids = on_arrays(), token_ids(1, 10)
    twin = copy.deepcopy(model)
    wanted = whole(model, ids)
    with torch.no_grad(), noise_key(9):
        whole(model, ids[:, :4])  # other tokens and another key, which the copy must not meet
    assert torch.equal(whole(twin, ids), wanted)


def test_restored_model_is_digital() -> None:
    model, ids = plain_model("llama"), token_ids(1, 10)
    wanted = whole(model, ids)
    emulate(model, small_device(), token_period=PERIOD)
    assert not torch.equal(whole(model, ids), wanted)
    restore(model)
    assert not bit_layers(model) and torch.equal(whole(model, ids), wanted)
    assert not model.model._forward_pre_hooks


def test_calibration_lowers_the_error_of_the_arrays() -> None:
    ids = [token_ids(2, 12, seed) for seed in range(4)]
    ideal = on_arrays(device=small_device(**DIGITAL))
    model = on_arrays(device=small_device(**BARE, **{"linear.adc_bits": 4}))

    def error() -> float:
        with torch.no_grad():
            return float((whole(model, ids[0]) - whole(ideal, ids[0])).square().mean())

    for layer in linear_layers(model):
        layer.set_range(float(layer.in_features))
    before = error()
    calibrate_linear_arrays(model, ids)
    assert error() < 0.5 * before
    chosen = [float(layer.full_scale) for layer in linear_layers(model)]
    assert len(set(chosen)) > len(chosen) // 2 and len(chosen) == len(bit_layers(model))
    calibrate_linear_arrays(model, ids)
    assert chosen == [float(layer.full_scale) for layer in linear_layers(model)]


def test_calibration_sees_the_design_and_leaves_the_arrays_as_they_were() -> None:
    ids = [token_ids(1, 12)]
    ranges = []
    for die in (1, 2):
        model = on_arrays(die_seed=die)
        calibrate_linear_arrays(model, ids)
        ranges.append([float(layer.full_scale) for layer in linear_layers(model)])
        assert all(layer.on_arrays.die_seed == die for layer in linear_layers(model))
        assert all(layer.array == small_device().linear for layer in linear_layers(model))
    assert ranges[0] == ranges[1]


@pytest.mark.parametrize("chosen", ["ideal", "fixed"])
def test_calibration_has_nothing_to_do_where_no_range_is_kept(chosen: str) -> None:
    model = on_arrays(
        device=small_device(**DIGITAL, **{}) if chosen == "ideal" else small_device(**{"linear.adc_range": "fixed"})
    )
    calibrate_linear_arrays(model, [])
    assert all(layer.full_scale is None for layer in bit_layers(model))


def test_calibration_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        calibrate_linear_arrays(on_arrays(), [])


def test_events_are_those_of_the_digits() -> None:
    ids = token_ids(1, 10)
    found: dict[int, Tensor] = {}
    for cycles in (8, 2):
        model = on_arrays(device=small_device(**{"linear.input_cycles": cycles}))
        with count_events() as counts, pytest.warns(UserWarning, match="not emulated"), torch.no_grad():
            whole(model, ids)
        found[cycles] = counts["linear.adc_conversion"]
    assert found[8] == 4 * found[2] > 0


def test_master_weights_train_through_the_arrays() -> None:
    model, ids = on_arrays(), token_ids(2, 10)
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    for layer in bit_layers(model):
        assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0


def test_learned_ranges_are_parameters_of_the_model() -> None:
    model, ids = on_arrays(device=small_device(**{"linear.adc_range": "learned"})), token_ids(2, 10)
    calibrate_linear_arrays(model, [ids])
    names = [name for name, _ in model.named_parameters() if name.endswith("full_scale")]
    assert len(names) == len(bit_layers(model))
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(layer.full_scale.grad is not None for layer in bit_layers(model))
    assert any(float(layer.full_scale.grad) != 0 for layer in bit_layers(model))
