"""The published two-step adaptation: its equation, its damping, what it recovers and what it improves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from device_models import DeviceModel, load_device
from hwsim import adapt_range_scalers, emulate, gain_cell_layers, linear_twin
from hwsim.adaptation import damping, statistics
from hwsim.effects import only
from hwsim.modules import RangeScaler
from tests.hwsim.models import PERIOD, emulated_model, plain_model, small_device, token_ids

SEEN = [token_ids(8, 20, seed) for seed in (1, 2)]
UNSEEN = token_ids(8, 20, 9)
TOLERANCE = 1e-4


def cubic(**overrides: object) -> DeviceModel:
    """Return a small device of cubic cells and no effect besides its levels and its decay."""
    return only(small_device(**overrides), "input levels", "storage levels", "readout levels", "retention")


def continuous(**overrides: object) -> DeviceModel:
    """Return a small device without any effect: nothing but its cells and its saturations."""
    return only(small_device(**overrides))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=UNSEEN, use_cache=False).logits


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).square().mean().sqrt() / expected.std())


def scalers(model: Any) -> list[RangeScaler]:
    return [s for cells in gain_cell_layers(model) for s in (cells.query, cells.key, cells.value, cells.output)]


def values(model: Any) -> Tensor:
    return torch.cat([torch.cat([s.gain, s.offset]) for s in scalers(model)]).detach().clone()


# ---- the linear twin


def test_twin_of_the_published_cell_has_the_published_slope() -> None:
    device = load_device("gaincell_28nm")
    twin = linear_twin(device)
    assert (twin.cell.law, twin.cell.coefficients, twin.cell.backward) == ("linear", (19.3e-6,), "exact")
    assert replace(twin, cell=device.cell, name=device.name) == device


def test_twin_of_another_cell_has_its_least_squares_slope() -> None:
    coefficients = ["1 uA", "5 uA/V", "3 uA/V**2", "20 uA/V**3"]
    twin = linear_twin(load_device("gaincell_28nm", {"cell.coefficients": coefficients}))
    # over a symmetric range R, even powers add nothing and the cube k3 (3/5) R^2
    assert twin.cell.coefficients == pytest.approx([(5 + 20 * 0.6 * 0.45**2) * 1e-6], rel=1e-3)


def test_twin_of_a_linear_cell_keeps_its_slope() -> None:
    device = load_device("ideal", {"cell.coefficients": ["7 uA/V"]})
    assert linear_twin(device).cell.coefficients == pytest.approx([7e-6], rel=1e-9)


# ---- the iteration


def test_damping_falls_from_one_to_a_tenth_in_fifty_updates() -> None:
    published = np.linspace(1.0, 0.1, 50)
    np.testing.assert_allclose([damping(n) for n in range(50)], published, rtol=1e-12)
    assert {damping(n) for n in (50, 75, 100)} == {0.1}


def by_hand(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Return mean and standard deviation (heads,) of each scaler's output, from all outputs at once."""
    outputs: list[list[Tensor]] = [[] for _ in scalers(model)]
    hooks = [
        s.register_forward_hook(lambda _, __, y, into=into: into.append(y))
        for s, into in zip(scalers(model), outputs, strict=True)
    ]
    with torch.no_grad():
        for batch in SEEN:
            model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    together = [torch.cat(parts).transpose(0, 1).flatten(1) for parts in outputs]
    return [(y.mean(1), y.std(1)) for y in together]


def test_statistics_are_those_of_all_tokens() -> None:
    model = emulated_model("llama")
    for found, (mean, std) in zip(statistics(model, SEEN), by_hand(model), strict=True):
        torch.testing.assert_close(found.mean, mean)
        torch.testing.assert_close(found.std, std)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_updates_are_the_published_ones(iterations: int) -> None:
    """All layers at once; a and b each where its own statistic is off by more than the tolerance."""
    model, device = emulated_model("llama", cubic()), cubic()
    for cells in gain_cell_layers(model):
        cells.put_on(linear_twin(device))
    wanted = by_hand(model)
    for cells in gain_cell_layers(model):
        cells.put_on(device)
    for n in range(iterations):
        r = 1.0 - 0.9 * n / 49
        for scaler, (mean_l, std_l), (mean, std) in zip(scalers(model), wanted, by_hand(model), strict=True):
            a, b = scaler.gain.data, scaler.offset.data
            new_a, new_b = r * (a * std_l / std) + (1 - r) * a, r * (b + mean_l - mean) + (1 - r) * b
            scaler.gain.data = torch.where((std - std_l).abs() > TOLERANCE, new_a, a)
            scaler.offset.data = torch.where((mean - mean_l).abs() > TOLERANCE, new_b, b)
    other = emulated_model("llama", device)
    result = adapt_range_scalers(other, device, SEEN, most_iterations=iterations)
    assert result.iterations == iterations
    assert len(result.history) == iterations + 1
    torch.testing.assert_close(values(other), values(model))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_known_scalers_come_back(architecture: str) -> None:
    """From a = 1, b = 0 on the very device that the statistics are of, the model comes back."""
    device = linear_twin(continuous())
    model = emulated_model(architecture, device, linears=False)
    before, expected = values(model), logits(model)
    result = adapt_range_scalers(model, device, SEEN, start="unit", tolerance=1e-9)
    assert result.converged and result.history[0] > 0.1
    torch.testing.assert_close(values(model), before, atol=1e-6, rtol=0)
    assert relative(logits(model), expected) < 1e-6


def test_nothing_moves_where_nothing_is_off() -> None:
    device = linear_twin(cubic())
    model = emulated_model("llama", device)
    before = values(model)
    result = adapt_range_scalers(model, device, SEEN)
    assert (result.iterations, result.mismatch, result.converged) == (0, 0.0, True)
    assert torch.equal(values(model), before)


# ---- what it is good for


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_cells_of_lower_slope_are_made_up_for(architecture: str) -> None:
    """A hard sigmoid that does not saturate passes the slope on, so output scalers can undo it."""
    weak = continuous(
        **{"cell.coefficients": ["0 uA", "13.6 uA/V", "0 uA/V**2", "0 uA/V**3"], "saturation.qk": "80 uA"}
    )
    source = replace(weak, cell=replace(weak.cell, law="linear", coefficients=(19.3e-6,)))
    model = emulated_model(architecture, source, linears=False)
    linear = logits(model)
    emulate(model, weak, linears=False, token_period=PERIOD)
    before = relative(logits(model), linear)
    result = adapt_range_scalers(model, weak, SEEN, source_device=source, tolerance=1e-7)
    assert result.converged
    assert before > 0.04
    assert relative(logits(model), linear) < 1e-5 * before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bitnet"])
def test_cubic_cells_come_closer_to_linear_ones(architecture: str) -> None:
    """What stays is the curvature and the constant current of the first product, which no statistic shows."""
    device = cubic()
    model = emulated_model(architecture, linear_twin(device))
    linear = logits(model)
    emulate(model, device, token_period=PERIOD)
    mapped = relative(logits(model), linear)
    adapt_range_scalers(model, device, SEEN)
    adapted = relative(logits(model), linear)
    for scaler in scalers(model):
        scaler.gain.data.fill_(1.0)
        scaler.offset.data.zero_()
    unscaled = relative(logits(model), linear)
    # measured, unscaled -> own scalers -> adapted: llama .65 .46 .43, gpt2 .22 .11 .08, bitnet 1.42 .88 .86
    assert adapted < mapped
    assert adapted < 0.7 * unscaled


def test_every_effect_of_a_chip_is_in_both_statistics() -> None:
    """Noise follows its key and mismatch its chip, so the iteration has a fixed point."""
    device = small_device()
    model = emulated_model("llama", linear_twin(device))
    result = adapt_range_scalers(model, device, SEEN)
    assert result.converged and 1 <= result.iterations <= 20


# ---- how it ends, and what it leaves


def test_it_stops_at_its_limit_and_says_so() -> None:
    model = emulated_model("llama", cubic())
    result = adapt_range_scalers(model, cubic(), SEEN, start="unit", most_iterations=2)
    assert result.iterations == 2 and not result.converged
    assert result.mismatch == result.history[-1] > result.tolerance
    result = adapt_range_scalers(model, cubic(), SEEN, start="unit", tolerance=0.0, most_iterations=100)
    assert result.iterations == 100


def test_twice_is_the_same_to_the_bit_and_modes_stay() -> None:
    found = []
    for _ in range(2):
        model = emulated_model("llama").train()
        part = model.model.layers[0].mlp.eval()
        result = adapt_range_scalers(model, small_device(), SEEN, start="unit")
        found.append((result, values(model)))
        assert model.training and not part.training
        assert not any(scaler._forward_hooks for scaler in scalers(model))
        assert all(p.grad is None for p in model.parameters()) and scalers(model)[0].gain.requires_grad
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_model_is_left_on_the_target() -> None:
    model, device = emulated_model("llama"), cubic()
    adapt_range_scalers(model, device, SEEN, most_iterations=1)
    assert all(cells.device is device for cells in gain_cell_layers(model))


def test_head_without_spread_is_left_alone() -> None:
    model = emulated_model("llama", cubic())
    for cells in gain_cell_layers(model):
        cells.query.gain.data[1] = 0.0
        cells.output.gain.data[1] = 0.0
    result = adapt_range_scalers(model, cubic(), SEEN)
    assert result.converged
    assert values(model).isfinite().all()
    assert all(cells.query.gain[1] == cells.output.gain[1] == 0.0 for cells in gain_cell_layers(model))


def test_it_needs_an_emulated_model_a_batch_and_a_token_period() -> None:
    for model, batches in ((plain_model("llama"), SEEN), (emulated_model("llama"), [])):
        with pytest.raises(ValueError, match="emulated model and at least one batch"):
            adapt_range_scalers(model, cubic(), batches)
    model = emulated_model("llama", small_device("ideal"), token_period="auto")
    with pytest.raises(ValueError, match="gaincell_28nm decays: emulate the model on it first"):
        adapt_range_scalers(model, small_device(), SEEN)
    assert {cells.device.name for cells in gain_cell_layers(model)} == {"ideal"}
