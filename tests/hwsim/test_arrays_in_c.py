"""The kernels in C of arrays that take their inputs in digits: the bits of the loop in PyTorch."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from device_models import load_device
from device_models.linear_array import LinearArray
from hwsim import attention_kernel, native
from hwsim.functional import linear_arrays
from hwsim.functional.conversion_noise import Conversions, PlacedNoise
from hwsim.functional.linear_arrays import (
    ArrayWeights,
    array_product,
    made_weights,
    naive_array_product,
)
from hwsim.native import build
from hwsim.native.arrays import lay_out, multiplies_pairs, sum_of_codes

NO_KERNEL = pytest.mark.skipif(not native.available(), reason="no C compiler made the kernels")
SIZES = [  # tokens, inputs, outputs, rows of an array
    (1, 1, 1, 256), (3, 4, 32, 64), (65, 70, 33, 64), (130, 300, 100, 256), (64, 257, 31, 256), (20, 100, 40, 33),
    (9, 40, 64, 7),
]  # fmt: skip
each_size = pytest.mark.parametrize(("tokens", "inputs", "outputs", "rows"), SIZES)


def drawn(
    tokens: int, inputs: int, outputs: int, rows: int, sigma: float, cycles: int = 8
) -> tuple[torch.Tensor, ArrayWeights, LinearArray]:
    rng = torch.Generator().manual_seed(tokens + inputs)
    x = torch.randint(-128, 128, (tokens, inputs), generator=rng).float()
    codes = torch.randint(-1, 2, (outputs, inputs), generator=rng)
    array = replace(load_device("gaincell_28nm").linear, rows=rows, gain_sigma=sigma, input_cycles=cycles)
    return x, made_weights(codes, array, 3, "layer"), array


LAYOUTS = [  # deviation of a weight, cycles, type of the weights, whether errors lie beside them
    (0.0, 8, torch.int16, False), (0.002, 8, torch.int8, True), (0.01, 8, torch.int16, False),
    (0.05, 8, torch.int16, False), (0.3, 8, torch.int16, False), (0.0, 1, torch.int8, False),
    (0.01, 1, torch.int16, False), (0.3, 1, torch.int16, False), (0.0, 2, torch.int8, False),
    (0.01, 2, torch.int16, False), (0.0, 4, torch.int8, False), (0.002, 4, torch.int16, False),
]  # fmt: skip


@NO_KERNEL
@each_size
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize(("sigma", "cycles", "kind", "beside"), LAYOUTS)
@pytest.mark.parametrize("variant", list(build.VARIANTS))
def test_kernel_gives_the_bits_of_the_loop(
    variant: str, tokens: int, inputs: int, outputs: int, rows: int, sigma: float, cycles: int, kind: torch.dtype,
    beside: bool, noisy: bool,
) -> None:  # fmt: skip
    if variant not in build.variants():
        pytest.skip(f"this processor does not run {variant}")
    x, weights, array = drawn(tokens, inputs, outputs, rows, sigma, cycles)
    full_scale, n = (0.4 * min(rows, inputs) ** 0.5 + 0.3) * array.largest_digit, array.highest_code
    conversions = Conversions(torch.arange(tokens), "layer") if noisy else None
    with attention_kernel("torch"):
        expected = array_product(x, weights, array, full_scale, conversions)
    laid_out = weights.laid_out(rows, cycles)
    assert laid_out is not None and laid_out.weights.dtype == kind and (laid_out.errors is not None) == beside
    placed = None
    if conversions is not None:
        noise = PlacedNoise.of(conversions.states(-(-inputs // rows)), cycles, outputs)
        placed = (array.noise, noise.windows, noise.places)
    converter = (n / (full_scale * weights.units), n)
    out = sum_of_codes(x.to(torch.int8), laid_out, converter, placed, variant=variant)
    found = out.mul_(full_scale / n)
    if variant == "generic" and noisy:  # rounds the product with the noise before it adds it: a code now and then
        assert (found != expected).float().mean() <= 1e-3
    else:
        assert torch.equal(found, expected)
    assert tokens == 1 or expected.unique().numel() > 2


@NO_KERNEL
@each_size
@pytest.mark.parametrize("variant", list(build.VARIANTS))
def test_sums_that_no_converter_meets(variant: str, tokens: int, inputs: int, outputs: int, rows: int) -> None:
    if variant not in build.variants():
        pytest.skip(f"this processor does not run {variant}")
    x, weights, _ = drawn(tokens, inputs, outputs, rows, 0.0, 1)
    for cut, cycles in ((inputs, 1), (rows, 1), (rows, 2), (rows, 4)):
        laid_out = weights.laid_out(cut, cycles)
        assert laid_out is not None
        assert torch.equal(sum_of_codes(x.to(torch.int8), laid_out, None, variant=variant), x @ weights.codes.float().T)


@NO_KERNEL
@pytest.mark.parametrize("cycles", [1, 2, 4, 8])
def test_kernel_is_what_the_equation_says(cycles: int) -> None:
    x, weights, array = drawn(40, 150, 50, 64, 0.05, cycles)
    full_scale = 5.0 * array.largest_digit
    with attention_kernel("native"):
        found = array_product(x, weights, array, full_scale)
    expected = naive_array_product(x, weights.values, array, full_scale)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@NO_KERNEL
@pytest.mark.parametrize("cycles", [1, 4, 8])
def test_threads_do_not_change_a_bit(cycles: int) -> None:
    x, weights, array = drawn(150, 100, 70, 64, 0.01, cycles)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(array_product(x, weights, array, 5.0, Conversions(torch.arange(150), "layer")))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_weights_are_whole_where_16_bits_hold_their_sums() -> None:
    codes, errors = torch.ones(4, 600, dtype=torch.int8), torch.full((4, 600), 11, dtype=torch.int8)
    for units, kind in ((500, torch.int16), (501, torch.int8)):  # 64 times 511 are 32704
        bits = lay_out(codes, errors, units, 256, 8)
        assert bits is not None and bits.weights.dtype == kind


@NO_KERNEL
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_sums_that_16_bits_hold(sign: int) -> None:
    codes = torch.full((40, 256), sign, dtype=torch.int8)
    weights = ArrayWeights(codes, torch.full((40, 256), 11, dtype=torch.int8), 500)
    x = torch.full((3, 256), -1.0)  # all bits
    bits = weights.laid_out(256, 8)
    assert bits is not None and bits.weights.dtype == torch.int16
    found = sum_of_codes(x.to(torch.int8), bits, (1.0, 1 << 17))
    assert found.unique().tolist() == [-sign * 256 * 511]


@NO_KERNEL
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("rows", [127, 128, 129, 256, 300])
def test_largest_sums_of_codes_in_one_pulse(rows: int, sign: int) -> None:
    """Each piece of an array is added up in 16 bits, all pieces in 32."""
    laid_out = lay_out(torch.full((40, rows), sign, dtype=torch.int8), None, 1, rows, 1)
    assert laid_out is not None
    for digit in (-128, 127):
        found = sum_of_codes(torch.full((3, rows), digit, dtype=torch.int8), laid_out, None)
        assert found.unique().tolist() == [sign * rows * digit]


@NO_KERNEL
@pytest.mark.parametrize("sign", [1, -1])
def test_largest_weights_in_one_pulse(sign: int) -> None:
    codes, errors = torch.full((40, 500), sign, dtype=torch.int8), torch.full((40, 500), sign, dtype=torch.int8)
    laid_out = lay_out(codes, errors, 32766, 500, 1)
    assert laid_out is not None and laid_out.weights.dtype == torch.int16
    found = sum_of_codes(torch.full((3, 500), -128, dtype=torch.int8), laid_out, (2.0**-7, 1 << 24))
    assert found.unique().tolist() == [-sign * 500 * 32767]
    assert lay_out(codes, errors, 32767, 500, 1) is None  # no number of 16 bits
    assert lay_out(codes.repeat(1, 2), errors.repeat(1, 2), 32766, 1000, 1) is None  # above 2^31
    most = {2: 4096, 4: 16384}  # 2^31 over 2^15 and a digit of 4 or 2 bits
    for cycles, rows in most.items():
        for many, fits in ((rows, True), (rows + 1, False)):
            some = torch.ones(1, many, dtype=torch.int8)
            assert (lay_out(some, some, 32766, many, cycles) is not None) == fits


def test_units_without_errors_count() -> None:
    codes = torch.randint(-1, 2, (40, 70), dtype=torch.int8)
    for cycles in (1, 8):
        laid_out = lay_out(codes, None, 3, 64, cycles)
        assert laid_out is not None and laid_out.weights.abs().max() == 3


@pytest.mark.parametrize("sigma", [0.0005, 0.004, 0.008, 0.01, 0.05, 0.2])
def test_grid_of_errors(sigma: float) -> None:
    """A quarter of sigma at most, and as much spread as was asked for."""
    array = replace(load_device("gaincell_28nm").linear, gain_sigma=sigma)
    weights = made_weights(torch.ones(300, 400), array, 3, "layer")
    assert weights.errors is not None and weights.units * sigma >= 4.0
    errors = weights.errors.double() / weights.units
    assert errors.std() == pytest.approx(sigma, rel=0.01)
    assert errors.abs().max() <= 6.0 * sigma


def test_sums_that_do_not_fit_are_left_to_the_loop() -> None:
    codes = torch.ones(4, 600, dtype=torch.int8)
    errors = torch.full((4, 600), 127, dtype=torch.int8)
    assert lay_out(codes, errors, 500, 256, 8) is not None
    assert lay_out(codes, errors, 500, 512, 8) is None  # 65024 steps of errors
    assert lay_out(codes, None, 1, 512, 8) is not None
    assert lay_out(codes, errors, 70_000, 256, 8) is None  # above 2^24


@NO_KERNEL
def test_double_precision_meets_the_same_codes() -> None:
    x, weights, array = drawn(30, 100, 40, 64, 0.01)
    single, double = (array_product(y, weights, array, 5.0) for y in (x, x.double()))
    assert double.dtype == torch.float64
    assert (single - double).abs().max() <= 1e-6 * double.abs().max()


@NO_KERNEL
def test_results_do_not_follow_what_the_process_takes_by_default() -> None:
    x, weights, array = drawn(30, 64, 40, 64, 0.01)
    expected = array_product(x, weights, array, 5.0)
    torch.set_default_dtype(torch.float64)
    try:
        found = array_product(x, weights, array, 5.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_file_holds_what_cannot_be_made_again() -> None:
    _, weights, array = drawn(30, 64, 40, 64, 0.01)
    before = len(pickle.dumps(weights))
    weights.laid_out(64, 8), weights.tiles(array), weights.whole, weights.values
    assert len(pickle.dumps(weights)) == before
    again = pickle.loads(pickle.dumps(weights))
    assert torch.equal(again.codes, weights.codes) and torch.equal(again.errors, weights.errors)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Return what the kernels were given, on a processor without torch's own 8-bit products."""
    given = []

    def noted(x: torch.Tensor, *more: object) -> torch.Tensor:
        given.append(x)
        return sum_of_codes(x, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(linear_arrays, "sum_of_codes", noted)
    monkeypatch.setattr(linear_arrays, "int8_products", lambda: False)
    return given


NEEDS_PAIRS = pytest.mark.skipif(not multiplies_pairs(), reason="no kernel of digits on this processor")


@NO_KERNEL
@pytest.mark.parametrize("cycles", [8, pytest.param(1, marks=NEEDS_PAIRS), pytest.param(4, marks=NEEDS_PAIRS)])
@pytest.mark.parametrize(("kernel", "uses"), [("auto", True), ("torch", False), ("native", True), ("triton", True)])
def test_who_reads_the_arrays(kernel: str, uses: bool, cycles: int, calls: list[torch.Tensor]) -> None:
    """There is no kernel in Triton for them: who asks for it in attention keeps that in C here."""
    x, weights, array = drawn(3, 64, 40, 64, 0.01, cycles)
    with attention_kernel(kernel):  # type: ignore[arg-type]
        array_product(x, weights, array, 5.0)
    assert bool(calls) == uses
    calls.clear()
    array_product(x.bfloat16(), weights, array, 5.0)
    assert not calls  # the loop rounds after each array


@NO_KERNEL
@NEEDS_PAIRS
def test_torch_keeps_what_it_does_as_well(calls: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    for has_products, has_pairs in ((True, True), (False, False)):
        monkeypatch.setattr(linear_arrays, "int8_products", lambda has=has_products: has)
        monkeypatch.setattr(linear_arrays, "multiplies_pairs", lambda has=has_pairs: has)
        monkeypatch.setattr(linear_arrays, "column_sums", lambda *given, **more: iter([torch.zeros(3, 40)]))
        x, weights, array = drawn(3, 64, 40, 64, 0.01, 1)
        array_product(x, weights, array, 5.0)
    assert not calls


@NO_KERNEL
@NEEDS_PAIRS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_loses_nothing_is_one_product(dtype: torch.dtype, calls: list[torch.Tensor]) -> None:
    x, weights, array = drawn(20, 150, 40, 64, 0.0)
    found = array_product(x.to(dtype), weights, array, None)
    assert found.dtype == dtype and len(calls) == 1
    assert torch.equal(found, (x @ weights.codes.float().T).to(dtype))


@NO_KERNEL
def test_codes_that_float32_cannot_add_up_are_left_to_the_loop(calls: list[torch.Tensor]) -> None:
    x, weights, array = drawn(3, 64, 40, 16, 0.01)
    for bits, inputs, used in ((16, 32, True), (16, 64, False)):  # 2^15 255 2 and 2^15 255 4
        calls.clear()
        part = ArrayWeights(weights.codes[:, :inputs], weights.errors[:, :inputs], weights.units)  # type: ignore[index]
        array_product(x[:, :inputs], part, replace(array, adc_bits=bits), 5.0)
        assert bool(calls) == used


@NO_KERNEL
def test_tensors_may_lie_in_any_order() -> None:
    for cycles in (1, 8):
        x, weights, array = drawn(50, 130, 40, 64, 0.01, cycles)
        conversions = Conversions(torch.arange(50), "layer")
        noise = PlacedNoise.of(conversions.states(3), cycles, 40)
        turned = noise.places.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        laid_out, codes = weights.laid_out(64, cycles), x.to(torch.int8)
        assert laid_out is not None and not turned.is_contiguous()
        expected = sum_of_codes(codes, laid_out, (0.01, 31), (array.noise, noise.windows, noise.places))
        found = sum_of_codes(codes.T.contiguous().T, laid_out, (0.01, 31), (array.noise, noise.windows, turned))
        assert torch.equal(found, expected)


@NO_KERNEL
def test_what_a_kernel_cannot_take_is_refused() -> None:
    x, weights, _ = drawn(3, 64, 40, 64, 0.0)
    bits, pulse = weights.laid_out(64, 8), weights.laid_out(64, 1)
    assert bits is not None and pulse is not None
    codes, pool, places = x.to(torch.int8), torch.zeros(100), torch.zeros(1, 1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="converter: bit by bit"):
        sum_of_codes(codes, bits, None)
    with pytest.raises(ValueError, match="for noise"):
        sum_of_codes(codes, pulse, None, (0.1, pool, places))
    with pytest.raises(ValueError, match=r"x: expected torch\.int8"):
        sum_of_codes(x, pulse, None)
    with pytest.raises(ValueError, match=r"x: expected torch\.int8 of shape \(2, 64\)"):
        sum_of_codes(codes[:2, :63], pulse, None)
    with pytest.raises(ValueError, match="places: expected"):
        sum_of_codes(codes, pulse, (1.0, 7), (0.1, pool, places[..., :2]))
