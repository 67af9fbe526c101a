"""Ternary layers on arrays: equal to the equations, to the digital layer where nothing errs, and random as asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from device_models import load_device
from device_models.linear_array import CYCLES, LinearArray, convert
from device_models.linear_array import input_digits as digits_of
from hwsim import BitLinear
from hwsim.functional import linear_arrays
from hwsim.functional.conversion_noise import Conversions, pool_noise
from hwsim.functional.linear_arrays import (
    ArrayWeights,
    array_product,
    best_range,
    column_sums,
    input_digits,
    made_weights,
    naive_array_product,
    range_slope,
)
from hwsim.linear import OnArrays, TokenPlaces
from hwsim.randomness import keyed, normal_pool
from tests import tolerances


def arrays(**changes: object) -> LinearArray:
    return replace(load_device("gaincell_28nm").linear, **changes)  # type: ignore[arg-type]


def codes(tokens: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(inputs + outputs)
    x = torch.randint(-127, 128, (tokens, inputs), generator=rng).to(dtype)
    return x, torch.randint(-1, 2, (outputs, inputs), generator=rng).to(dtype)


def drawn_noise(conversions: Conversions, cycles: int, tiles: int, outputs: int) -> Tensor:
    """Return the noise of (c, r, n, o) conversions, in the layout of the equations."""
    return torch.stack([conversions.noise(cycles, tile, outputs) for tile in range(tiles)], 1).double()


# ---- against the equations

SIZES = [(1, 8, 4), (7, 64, 12), (5, 65, 8), (9, 256, 16), (3, 257, 4), (4, 600, 20)]


@pytest.mark.parametrize("cycles", CYCLES)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SIZES)
def test_fast_product_is_the_naive_one(tokens: int, inputs: int, outputs: int, cycles: int) -> None:
    x, w = codes(tokens, inputs, outputs)
    array = arrays(input_cycles=cycles, gain_sigma=0.05, stuck_at_zero=0.1)
    made = made_weights(w, array, 3, "layer")
    conversions = Conversions(torch.arange(tokens) * 7919, "layer")
    noise = drawn_noise(conversions, cycles, -(-inputs // array.rows), outputs)
    full_scale = 0.3 * array.largest_digit * inputs**0.5
    for scale, draws, keys in ((None, None, None), (full_scale, None, None), (full_scale, noise, conversions)):
        wanted = naive_array_product(x, made.values, array, scale, draws)
        got = array_product(x, made, array, scale, keys)
        assert wanted.abs().max() > 0
        # A sum within a float32 rounding of a tie may take the neighbouring code
        flipped = (got - wanted).abs() > tolerances.FLOAT64 * wanted.abs().max()
        assert flipped.double().mean() <= tolerances.FLOAT32_FLIPS


def test_naive_product_is_the_numpy_formula() -> None:
    x, w = codes(6, 300, 5)
    array = arrays()
    total = np.zeros((6, 5))
    for cycle, digit in enumerate(digits_of(x.numpy().astype(int), 8)):
        for start in (0, 256):
            sums = digit[:, start : start + 256].astype(float) @ w.numpy()[:, start : start + 256].T
            total += 2**cycle * convert(sums, 40.0, 31)
    assert np.allclose(naive_array_product(x, w, array, 40.0).numpy(), total, rtol=tolerances.FLOAT64, atol=0)


@pytest.mark.parametrize("cycles", CYCLES)
def test_without_errors_the_product_is_exact(cycles: int) -> None:
    x, w = codes(9, 700, 12, torch.float32)
    got = array_product(x, ArrayWeights(w.to(torch.int8)), arrays(input_cycles=cycles))
    assert torch.equal(got, (x.long() @ w.long().T).float())


@pytest.mark.parametrize("cycles", CYCLES)
def test_a_fine_converter_over_the_whole_range_loses_nothing(cycles: int) -> None:
    """Steps of one cell current or a whole fraction of it pass every sum."""
    x, w = codes(5, 64, 8)
    array = arrays(input_cycles=cycles, adc_bits=16)
    got = array_product(x, ArrayWeights(w.to(torch.int8)), array, float(array.highest_code) / (1 if cycles == 1 else 4))
    assert torch.equal(got, x @ w.T)


@pytest.mark.parametrize("cycles", CYCLES)
def test_processors_without_fast_integers_get_the_same_bits(cycles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = codes(20, 300, 24, torch.float32)
    array = arrays(input_cycles=cycles, gain_sigma=0.02)
    made = made_weights(w, array, 0, "layer")
    keys = Conversions(torch.arange(20), "layer")
    got = [array_product(x, made, array, scale, k) for scale, k in ((None, None), (50.0, None), (50.0, keys))]
    monkeypatch.setattr(linear_arrays, "int8_products", lambda: False)
    for a, (scale, k) in zip(got, ((None, None), (50.0, None), (50.0, keys)), strict=True):
        assert torch.equal(a, array_product(x, made, array, scale, k))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = codes(50, 64, 16, torch.float32)
    array, keys = arrays(), Conversions(torch.arange(50), "layer")
    made = made_weights(w, array, 0, "layer")
    whole = array_product(x, made, array, 20.0, keys)
    monkeypatch.setattr(linear_arrays, "CHUNK", 8 * 16 * 7)
    assert torch.equal(array_product(x, made, array, 20.0, keys), whole)


def test_float32_and_float64_meet_the_same_codes() -> None:
    x, w = codes(50, 300, 16)
    array, keys = arrays(), Conversions(torch.arange(50), "layer")
    made = made_weights(w, array, 0, "layer")
    wide = array_product(x, made, array, 37.3, keys)
    narrow = array_product(x.float(), made, array, 37.3, keys)
    assert (narrow - wide).abs().max() <= 2e-7 * wide.abs().max()


# ---- the layer


def token_keys(noise: int, index: Tensor) -> Tensor:
    """Return the keys (1, t) of one sequence's tokens."""
    return keyed(torch.tensor([noise])[:, None], index[None])


def layer_on(array: LinearArray, die: int | None = 0, noise: int | None = None, inputs: int = 96) -> BitLinear:
    torch.manual_seed(0)
    layer = BitLinear(inputs, 24, bias=True, offline=True)
    layer.weight.data = torch.randint(-1, 2, (24, inputs)).float()
    layer.weight_scale = torch.tensor(0.05)
    places = TokenPlaces(None if noise is None else token_keys(noise, torch.arange(11)))
    layer.put_on(OnArrays(array, "some.layer", die, places))
    return layer


def digital() -> BitLinear:
    layer = layer_on(arrays())
    layer.on_arrays = None
    return layer


IDEAL = {"adc_range": "ideal", "noise": 0.0, "gain_sigma": 0.0, "stuck_at_zero": 0.0}


@pytest.mark.parametrize("rows", [16, 64, 256])
def test_ideal_array_is_the_digital_layer_bit_for_bit(rows: int) -> None:
    """On the shortcut, through the tiles, and with converters too fine to round."""
    x = torch.randn(3, 11, 96)
    wanted = digital()(x)
    assert torch.equal(layer_on(arrays(**IDEAL, rows=rows))(x), wanted)
    tiled = layer_on(
        arrays(**{**IDEAL, "stuck_at_zero": 1e-30}, rows=rows)
    )  # too rare to happen, so nothing is short-cut
    assert not tiled.on_arrays.exact and torch.equal(tiled(x), wanted)
    fine = layer_on(arrays(**{**IDEAL, "adc_range": "calibrated", "adc_bits": 16}, rows=rows))
    fine.set_range(float(2**15 - 1) / 64)
    assert torch.equal(fine(x), wanted)


def test_gradient_is_that_of_the_digital_layer() -> None:
    x = torch.randn(2, 11, 96, requires_grad=True)
    upstream = torch.randn(2, 11, 24)
    wanted = torch.autograd.grad(digital()(x), x, upstream)[0]
    out = layer_on(arrays(gain_sigma=0.1), noise=5)(x)
    assert not torch.equal(out, digital()(x))
    assert torch.equal(torch.autograd.grad(out, x, upstream)[0], wanted)


def test_master_weights_get_the_gradient_of_rounded_values() -> None:
    torch.manual_seed(0)
    plain = BitLinear(40, 8)
    on = BitLinear.from_linear(plain)
    on.put_on(OnArrays(arrays(**IDEAL)))
    x, upstream = torch.randn(5, 40, requires_grad=True), torch.randn(5, 8)
    for a, b in zip(
        torch.autograd.grad(on(x), (x, on.weight), upstream),
        torch.autograd.grad(plain(x), (x, plain.weight), upstream),
        strict=True,
    ):
        assert (a - b).abs().max() <= tolerances.FLOAT32 * b.abs().max()


def test_learned_range_gets_the_slope_of_its_rounding() -> None:
    """Against finite differences, straight through the rounding: codes held, clipped sums follow the range."""
    array = arrays(adc_range="learned", gain_sigma=0.0, noise=0.0, adc_bits=4)
    layer, x = layer_on(array, None), torch.randn(1, 11, 96)
    assert isinstance(layer.full_scale, torch.nn.Parameter)
    layer(x).sum().backward()
    whole, scale = linear_activations(x)
    value = float(layer.full_scale.detach())
    n, slope = array.highest_code, torch.zeros(11, 24, dtype=torch.float64)
    for sums in column_sums(whole, ArrayWeights(layer.codes().to(torch.int8)), array):
        v = sums.double().view(8, 11, 24) * n / value
        each = torch.where(v.abs() < n, v.round() - v, n * v.sign()) / n
        slope += (torch.tensor(array.digit_weights).double() @ each.flatten(1)).view(11, 24)
    wanted = (slope * 0.05 / scale.double()).sum()
    assert layer.full_scale.grad == pytest.approx(float(wanted), rel=1e-5)
    got = range_slope(whole.double(), ArrayWeights(layer.codes().to(torch.int8)), array, value)
    assert torch.allclose(got, slope, rtol=1e-5, atol=1e-5 * float(slope.abs().max()))


def linear_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    from hwsim.functional.bitlinear import activation_codes

    codes_, scale = activation_codes(x.flatten(0, -2))
    return codes_, scale


def test_learning_the_range_lowers_the_error() -> None:
    array = arrays(adc_range="learned", gain_sigma=0.0, noise=0.0, adc_bits=4)
    layer, x = layer_on(array, None), torch.randn(1, 11, 96)
    layer.set_range(96.0, learned=True)
    wanted = digital()(x)
    optimiser = torch.optim.Adam([layer.full_scale], lr=2.0)
    errors = []
    for _ in range(60):
        loss = (layer(x) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert min(errors[-10:]) < 0.2 * errors[0]


def test_range_is_kept_on_a_device_that_needs_none() -> None:
    layer = layer_on(arrays())
    layer.set_range(12.5)
    layer.put_on(OnArrays(arrays(adc_range="ideal", noise=0.0)))
    layer.put_on(OnArrays(arrays()))
    assert float(layer.full_scale) == 12.5
    layer.put_on(OnArrays(arrays(adc_range="learned")))
    assert isinstance(layer.full_scale, torch.nn.Parameter) and layer.full_scale.item() == 12.5
    assert "full_scale" in layer.state_dict()
    layer.put_on(OnArrays(arrays()))
    assert "full_scale" not in layer.state_dict() and float(layer.full_scale) == 12.5


def test_fixed_range_takes_in_every_sum() -> None:
    layer = layer_on(arrays(adc_range="fixed", adc_bits=8, gain_sigma=0.0), None, inputs=96)
    wanted = naive_array_product(*_inputs_of(layer), layer.array, 96.0)
    x = torch.randn(1, 11, 96, generator=torch.Generator().manual_seed(1))
    _, scale = linear_activations(x)
    assert torch.allclose(layer(x)[0], (wanted * 0.05 / scale + layer.bias).float(), atol=1e-6)


def _inputs_of(layer: BitLinear) -> tuple[Tensor, Tensor]:
    x = torch.randn(1, 11, 96, generator=torch.Generator().manual_seed(1))
    return linear_activations(x)[0], layer.weight.detach()


@pytest.mark.parametrize("cycles", [1, 8])
def test_best_range_beats_its_neighbours(cycles: int) -> None:
    x, w = codes(200, 128, 16, torch.float32)
    array = arrays(input_cycles=cycles, adc_bits=5)
    made = ArrayWeights(w.to(torch.int8))
    (sums,) = column_sums(x, made, array)
    chosen = best_range(sums.view(cycles, -1), array)

    def error(full_scale: float) -> float:
        return float((array_product(x, made, array, full_scale) - x @ w.T).square().mean())

    assert error(chosen) < min(error(0.5 * chosen), error(2.0 * chosen))
    assert error(chosen) < error(float(sums.abs().max()))


def test_best_range_of_silence_and_of_nonsense() -> None:
    assert best_range(torch.zeros(8, 10), arrays()) == 1.0
    with pytest.raises(ValueError, match="not finite"):
        best_range(torch.full((8, 10), float("nan")), arrays())


# ---- chips


def test_gain_of_weights_has_the_asked_spread() -> None:
    w = torch.ones(200, 300)
    for sigma in (0.01, 0.2):
        made = made_weights(w, arrays(gain_sigma=sigma), 1, "layer")
        errors = made.values.flatten() - 1.0
        assert abs(float(errors.mean())) < 4 * sigma / 60_000**0.5
        assert float(errors.std()) == pytest.approx(sigma, rel=0.01)
        step = 1.0 / (made.units * sigma)
        spread_out = np.random.default_rng(0).uniform(-step / 2, step / 2, 60_000)  # over the steps of the grid
        assert stats.kstest((errors / sigma).numpy() + spread_out, "norm").pvalue > 1e-3
        assert torch.allclose(made.whole.double() / made.units, made.values, rtol=tolerances.FLOAT64, atol=0)


def test_zero_weights_conduct_nothing_whatever_their_gain() -> None:
    made = made_weights(torch.zeros(50, 50), arrays(gain_sigma=0.3), 1, "layer")
    assert not made.values.any() and not made.errors.any()


def test_stuck_weights_are_the_asked_share() -> None:
    made = made_weights(torch.ones(400, 500), arrays(gain_sigma=0.0, stuck_at_zero=0.03), 1, "layer")
    stuck = int((made.codes == 0).sum())
    assert abs(stuck - 6000) < 4 * (200_000 * 0.03 * 0.97) ** 0.5
    assert not made_weights(torch.ones(9, 9), arrays(stuck_at_zero=1.0), 1, "layer").codes.any()
    assert made_weights(torch.ones(9, 9), arrays(stuck_at_zero=0.0), 1, "layer").codes.all()


def test_a_chip_is_its_seed_and_its_place() -> None:
    w, array = torch.ones(40, 50), arrays(gain_sigma=0.1, stuck_at_zero=0.2)
    first = made_weights(w, array, 1, "a")
    assert torch.equal(first.values, made_weights(w, array, 1, "a").values)
    for other in (made_weights(w, array, 2, "a"), made_weights(w, array, 1, "b")):
        shared = np.corrcoef(first.values.flatten(), other.values.flatten())[0, 1]
        assert abs(shared) < 4 / 2000**0.5
    corner = made_weights(w[:9, :7], array, 1, "a")  # a place keeps its deviation, however large the matrix
    assert torch.equal(first.values[:9, :7], corner.values)


def test_errors_of_tiny_and_huge_spread_stay_whole_numbers() -> None:
    for sigma in (1e-7, 2.0):
        made = made_weights(torch.ones(8, 256), arrays(gain_sigma=sigma), 1, "layer")
        assert made.units * 256 < 2**31 and made.errors.abs().max() <= 127


# ---- noise


def noisy(key: int, index: Tensor, x: Tensor) -> Tensor:
    layer = layer_on(arrays(gain_sigma=0.0, noise=1.0), None, key)
    layer.on_arrays.places.keys = token_keys(key, index)
    return layer(x[None])[0]


def test_noise_of_a_token_follows_its_place_and_key() -> None:
    x, index = torch.randn(11, 96), torch.arange(11)
    whole = noisy(1, index, x)
    assert torch.equal(whole, noisy(1, index, x))
    part = noisy(1, index[4:7], x[4:7])
    assert torch.equal(part, whole[4:7])
    assert not torch.equal(noisy(2, index, x), whole) and not torch.equal(noisy(1, index + 1, x), whole)


def test_equal_tokens_in_two_places_meet_two_noises() -> None:
    x = torch.randn(1, 96).expand(11, -1)
    out = noisy(1, torch.arange(11), x)
    assert len({tuple(row.tolist()) for row in out}) == 11


def test_noise_is_normal_and_fresh() -> None:
    """One LSB rms behind the converter's gain: sums of 8 cycles and two arrays, no rounding seen at 16 bits."""
    x, w = codes(4000, 16, 8)
    array = arrays(rows=8, adc_bits=12, noise=1.0)
    made = ArrayWeights(w.to(torch.int8))
    keys = Conversions(torch.arange(4000), "layer")
    full_scale = float(array.highest_code)  # one LSB is one cell current: sums are whole, so the noise alone is rounded
    off = array_product(x, made, array, full_scale, keys) - x @ w.T
    sigma = (2 * sum(4**c for c in range(8)) * (1.0 + 1 / 12)) ** 0.5
    assert float(off.std()) == pytest.approx(sigma, rel=0.03)
    assert abs(float(off.mean())) < 4 * sigma / 32_000**0.5
    neighbours = np.corrcoef(off[:-1].flatten(), off[1:].flatten())[0, 1]
    columns = np.corrcoef(off[:, :-1].flatten(), off[:, 1:].flatten())[0, 1]
    assert abs(neighbours) < 4 / 32_000**0.5 and abs(columns) < 4 / 28_000**0.5


def test_pool_is_a_standard_normal() -> None:
    pool = normal_pool(torch.device("cpu")).double()
    assert float(pool.mean()) == pytest.approx(0.0, abs=1e-6) and float(pool.std(correction=0)) == pytest.approx(
        1.0, abs=1e-6
    )
    assert stats.kstest(pool[::16].numpy(), "norm").pvalue > 1e-3
    rows = pool_noise(keyed(torch.tensor(1), torch.arange(20_000)), 2, 700)
    assert rows.shape == (2, 20_000, 700)
    for row in rows[:, :, 0]:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3


def test_a_layer_that_meets_other_tokens_says_so() -> None:
    layer = layer_on(arrays(), noise=1)
    with pytest.raises(ValueError, match="ternary layer met"):
        layer(torch.randn(1, 7, 96))


# ---- digits


@pytest.mark.parametrize("cycles", CYCLES)
def test_digits_are_their_numpy_twin(cycles: int) -> None:
    every = torch.arange(-128, 128)
    assert np.array_equal(input_digits(every.float(), cycles).numpy(), digits_of(every.numpy(), cycles))
