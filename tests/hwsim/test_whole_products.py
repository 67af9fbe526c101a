"""Exact products in eight bits: layouts that add up to the weights, digits that are their twin, buffers of a thread."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch

from device_models import load_device
from device_models.linear_array import CYCLES, LinearArray
from hwsim.functional.linear_arrays import ArrayWeights, array_product, input_digits, made_weights
from hwsim.functional.whole_products import SCRATCH, int8_products, signed_digits, tile_weights, whole_product


def arrays(**changes: object) -> LinearArray:
    return replace(load_device("gaincell_28nm").linear, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("largest", [1, 3, 15, 128])
@pytest.mark.parametrize("units", [1, 20, 2117, 16002, 16003, 1 << 22])
def test_laid_out_weights_are_the_weights(units: int, largest: int) -> None:
    rng = torch.Generator().manual_seed(units)
    codes = torch.randint(-1, 2, (12, 70), generator=rng).to(torch.int8)
    codes[:3] = torch.tensor([[-1], [0], [1]], dtype=torch.int8)
    errors = codes * torch.randint(-127, 128, (12, 70), generator=rng).to(torch.int8)
    errors[:, 0], errors[:, 1] = 127, -127
    wanted = codes.long() * units + errors.long()
    for tile in tile_weights(codes, errors, units, 32, largest):
        rows = len(range(*tile.rows.indices(70)))
        if tile.second is not None:
            got = units * tile.first.long() + tile.second.long()
        else:
            assert tile.factor * largest <= 127
            got = tile.factor * tile.first[:rows].long() + tile.first[rows:].long()
        assert torch.equal(got.T, wanted[:, tile.rows])


@pytest.mark.parametrize("factor", [0, 3])
@pytest.mark.parametrize("cycles", CYCLES)
def test_digits_in_eight_bits_are_the_digits(cycles: int, factor: int) -> None:
    every = torch.arange(-128, 128).view(64, 4).to(torch.int8)
    wanted = input_digits(every, cycles)
    if factor:
        wanted = torch.cat([factor * wanted, wanted], -1)
    got = signed_digits(every, cycles, factor)
    fits = wanted.abs().amax() <= 127
    assert not fits or torch.equal(got.view(wanted.shape).to(torch.int16), wanted)


@pytest.mark.skipif(not int8_products(), reason="this processor has no fast 8-bit products")
@pytest.mark.parametrize("cycles", CYCLES)
def test_products_in_eight_bits_are_exact(cycles: int) -> None:
    array = arrays(input_cycles=cycles, gain_sigma=0.01)
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (33, 300), generator=rng).to(torch.int8)
    made = made_weights(torch.randint(-1, 2, (24, 300), generator=rng), array, 0, "layer")
    for tile in made.tiles(array):
        digits = input_digits(x, cycles)[..., tile.rows].flatten(0, 1).long()
        wanted = digits @ made.whole[:, tile.rows].long().T
        out = torch.empty(33 * cycles, 24)
        got = whole_product(signed_digits(x[:, tile.rows], cycles, tile.factor), tile, made.units, out)
        assert torch.equal(got, wanted.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "full_scale"), [(10, 511.0), (12, 1023.5), (16, 32767.0 / 64), (10, None)])
@pytest.mark.parametrize("cycles", CYCLES)
def test_converters_that_lose_nothing_are_skipped_without_a_trace(
    cycles: int, bits: int, full_scale: float | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = arrays(input_cycles=cycles, adc_bits=bits, rows=64)
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (33, 300), generator=rng).to(dtype)
    weights = ArrayWeights(torch.randint(-1, 2, (24, 300), generator=rng).to(torch.int8))
    got = array_product(x, weights, array, full_scale)
    monkeypatch.setattr("hwsim.functional.linear_arrays._loses_nothing", lambda *_: False)
    assert torch.equal(got, array_product(x, weights, array, full_scale))


def test_a_buffer_belongs_to_a_thread() -> None:
    mine, theirs = SCRATCH.take("test", (4,), torch.float32), []
    worker = threading.Thread(target=lambda: theirs.append(SCRATCH.take("test", (4,), torch.float32)))
    worker.start()
    worker.join()
    assert SCRATCH.take("test", (2, 2), torch.float32).data_ptr() == mine.data_ptr() != theirs[0].data_ptr()
    assert SCRATCH.take("test", (4,), torch.int32).data_ptr() != mine.data_ptr()


def test_a_buffer_of_inference_serves_training() -> None:
    with torch.inference_mode():
        SCRATCH.take("of inference", (4,), torch.float32).zero_()
    SCRATCH.take("of inference", (4,), torch.float32).zero_()


def test_products_do_not_share_memory() -> None:
    array = arrays()
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (5, 64), generator=rng).float()
    made = made_weights(torch.randint(-1, 2, (8, 64), generator=rng), array, 0, "layer")
    first = array_product(x, made, array, 20.0)
    kept = first.clone()
    array_product(-x, made, array, 20.0)
    assert torch.equal(first, kept)
    assert copy.deepcopy(made) is made
