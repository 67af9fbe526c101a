"""Whole numbers for queries, keys and values: the kernels on them, and outputs that are equal bit by bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from device_models import DeviceModel, InputError, load_device
from hwsim import Die, attention_kernel, gain_cell_attention, gpu, naive_gain_cell_attention, native
from hwsim.functional.attention_tiled import attend
from hwsim.functional.codes import Codes, codes_of
from hwsim.functional.layout import causal_layout
from hwsim.functional.quantise import count_levels, quantise_levels
from hwsim.functional.reads import Place, sequence_keys
from hwsim.functional.ring import RingBuffer
from hwsim.functional.tables import AttentionTables
from hwsim.native import Cells, Geometry, build
from tests import tolerances
from tests.hwsim.comparison import CONTINUOUS_READOUT, PERIOD, assert_same, inputs, values_and_gradients
from tests.hwsim.native_reference import circuits, dense_attention
from tests.hwsim.native_reference import inputs as images

NO_KERNEL = pytest.mark.skipif(not native.available(), reason="no C compiler made the kernels")
LINEAR = {
    "cell.law": "linear", "cell.coefficients": ["19.3 uA/V"], "retention.v_inf": "0.45 V",
    "retention.tau_sigma_ln": 0.0, "variability.offset_sigma": "0 V", "input.jitter": "0 s",
}  # fmt: skip
GRID = {"readout_qk.pulse_bits": 15}
CASES = [  # batch, heads, kv_heads, tokens, head_dim; window, slots
    ((2, 4, 2, 130, 64), 1024, 64), ((1, 2, 2, 300, 64), 128, 64), ((1, 2, 1, 250, 80), 100, 64),
    ((1, 2, 1, 165, 20), 40, 16), ((1, 4, 2, 190, 64), 64, 16), ((1, 2, 2, 40, 8), 10, 7), ((1, 1, 1, 9, 16), 1, 1),
]  # fmt: skip
each_case = pytest.mark.parametrize(("sizes", "window", "slots"), CASES, ids=str)


def linear(window: int, slots: int, **more: object) -> DeviceModel:
    return load_device("gaincell_28nm", {"window.tokens": window, "tile.slots": slots, **LINEAR, **more})


# ---- the same numbers in whichever way they are computed


@each_case
@pytest.mark.parametrize("more", [{}, GRID], ids=["continuous", "grid"])
def test_every_way_gives_the_same_bits(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, more: dict[str, object]
) -> None:
    """Without a grid, sums of charges differ in their last bits; that no code does here is luck of these inputs."""
    device = linear(window, slots, **more)
    query, key, value = inputs(*sizes, dtype=torch.float32)
    batch, heads, kv_heads, tokens, dims = sizes
    found = []
    for kernel in ("torch", "native") if native.available() else ("torch",):
        with attention_kernel(kernel):
            found.append(gain_cell_attention(query, key, value, device, token_period_s=PERIOD))
            ring = RingBuffer(device, batch, heads, kv_heads, dims, token_period_s=PERIOD)
            steps = [ring.step(*(x[:, :, t : t + 1] for x in (query, key, value))) for t in range(tokens)]
            found.append(torch.cat(steps, 2))
            ring = RingBuffer(device, batch, heads, kv_heads, dims, token_period_s=PERIOD)
            ring.write(key[:, :, :-5], value[:, :, :-5])
            steps = [ring.step(*(x[:, :, t : t + 1] for x in (query, key, value))) for t in range(tokens - 5, tokens)]
            found.append(torch.cat([found[0][:, :, :-5], *steps], 2))
    assert found[0].abs().max() > 0.05
    for other in found[1:]:
        assert torch.equal(found[0], other)


@pytest.mark.skipif(bool(gpu.unavailable(torch.device("cpu"))), reason="Triton is not installed, or not interpreted")
@pytest.mark.parametrize(
    ("sizes", "window", "slots"), [((1, 2, 1, 70, 16), 40, 16), ((2, 2, 2, 40, 8), 10, 7), ((1, 1, 1, 66, 64), 64, 64)]
)
def test_triton_gives_the_same_bits_on_a_grid(sizes: tuple[int, int, int, int, int], window: int, slots: int) -> None:
    device, tensors = linear(window, slots, **GRID), inputs(*sizes, dtype=torch.float32)
    found = []
    for kernel in ("torch", "triton"):
        with attention_kernel(kernel):  # type: ignore[arg-type]
            found.append(values_and_gradients(gain_cell_attention, tensors, device, PERIOD))
    assert torch.equal(found[0][0], found[1][0])
    assert_same(found[1], found[0], tolerances.FLOAT32, step=1 / 15, flips=0.0)


@pytest.mark.parametrize("tokens", [130, 200])
def test_a_grid_makes_precision_and_threads_irrelevant(tokens: int) -> None:
    device = linear(128, 64, **GRID)
    tensors = inputs(1, 2, 2, tokens, 64, dtype=torch.float32)
    with attention_kernel("torch"):
        single = gain_cell_attention(*tensors, device, token_period_s=PERIOD)
        double = gain_cell_attention(*(x.double() for x in tensors), device, token_period_s=PERIOD)
    # A pulse may lie so near the middle of two steps that the precision of the decay decides
    assert (single.double() - double).abs().gt(1e-6).double().mean() <= tolerances.NATIVE_FLIPS
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(gain_cell_attention(*tensors, device, token_period_s=PERIOD), single)
    finally:
        torch.set_num_threads(threads)


@NO_KERNEL
@each_case
@pytest.mark.parametrize(
    "more", [{}, GRID, {"readout_qk.pulse_bits": 4}, CONTINUOUS_READOUT], ids=["codes", "grid", "coarse", "continuous"]
)
def test_gradients_of_kernels_on_codes(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, more: dict[str, object]
) -> None:
    """Scores that are exactly zero or one stop the gradient in both: whole numbers leave no doubt."""
    device, tensors = linear(window, slots, **more), inputs(*sizes, dtype=torch.float32)
    with attention_kernel("native"):
        found = values_and_gradients(gain_cell_attention, tensors, device, PERIOD)
    with attention_kernel("torch"):
        expected = values_and_gradients(gain_cell_attention, tensors, device, PERIOD)
    assert_same(found, expected, tolerances.FLOAT32, step=1 / 15, flips=tolerances.NATIVE_FLIPS)


@pytest.mark.parametrize(
    ("sizes", "window", "slots"), [((1, 2, 1, 90, 20), 40, 16), ((1, 2, 2, 40, 8), 10, 7), ((1, 1, 1, 9, 16), 1, 1)]
)
@pytest.mark.parametrize("chip", ["design", "chip", "noise", "both"])
def test_grid_is_what_the_equation_says(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, chip: str
) -> None:
    """With errors of cells numbers are not whole, but pulses still lie on the grid: in every path."""
    bits = {"readout_qk.pulse_bits": 6, "readout.noise": 0.0}  # coarse enough to show
    device = linear(window, slots, **bits)
    die = Die(3, device) if chip in ("chip", "both") else None
    given = {"die": die, "read_key": 5 if chip in ("noise", "both") else None}
    query, key, value = (x[:1] for x in inputs(*sizes))
    key = key + 1e-3 * torch.rand(key.shape, generator=torch.Generator().manual_seed(1), dtype=key.dtype)
    expected = naive_gain_cell_attention(query, key, value, device, token_period_s=PERIOD, **given)
    found = gain_cell_attention(query, key, value, device, token_period_s=PERIOD, **given)
    assert (found - expected).abs().max() <= tolerances.TWINS * expected.abs().max()
    coarse = gain_cell_attention(query, key, value, linear(window, slots, **{"readout.noise": 0.0}),
                                 token_period_s=PERIOD, **given)  # fmt: skip
    assert not torch.equal(found, coarse) or sizes[3] < 10
    place = Place(die, sequence_keys(given["read_key"], 1, query.device))
    ring = RingBuffer(
        device, 1, sizes[1], sizes[2], sizes[4], token_period_s=PERIOD, dtype=torch.float64, place=place
    )  # fmt: skip
    steps = [ring.step(*(x[:, :, t : t + 1] for x in (query, key, value))) for t in range(sizes[3])]
    assert (torch.cat(steps, 2) - expected).abs().max() <= tolerances.TWINS * expected.abs().max()
    tables = AttentionTables(causal_layout(sizes[3], device, query.device), device, PERIOD, query.dtype)
    watched = attend(query, key, value, device, tables, place, watch=lambda _: None)  # the path of padded text as well
    assert (watched - expected).abs().max() <= tolerances.TWINS * expected.abs().max()


def test_gradient_passes_the_grid_straight() -> None:
    """A fine grid changes gradients as little as it changes values."""
    fine, without = (linear(40, 16, **CONTINUOUS_READOUT, **more) for more in (GRID, {}))
    tensors = inputs(1, 2, 1, 60, 16)
    found = values_and_gradients(gain_cell_attention, tensors, fine, PERIOD, die=Die(3, fine))
    expected = values_and_gradients(gain_cell_attention, tensors, without, PERIOD, die=Die(3, fine))
    for name, x, y in zip(("value", "query", "key", "value's"), found, expected, strict=True):
        assert 0 < (x - y).abs().max() <= 2e-3 * y.abs().max() or name == "query", name


# ---- the kernels themselves


@NO_KERNEL
@pytest.mark.parametrize("variant", list(build.VARIANTS))
@pytest.mark.parametrize(
    ("tokens", "window", "slots", "dims"), [(130, 1024, 64, 64), (100, 70, 64, 80), (90, 40, 7, 20)]
)
@pytest.mark.parametrize(("mismatch", "noise", "grid"), list(product((False, True), (False, True), (None, 2.6e-6))))
def test_codes_are_their_numbers(
    variant: str, tokens: int, window: int, slots: int, dims: int, mismatch: bool, noise: bool, grid: float | None
) -> None:
    if variant not in build.variants():
        pytest.skip(f"this processor does not run {variant}")
    geometry = Geometry(window, slots)
    around = replace(circuits(tokens, dims, geometry, mismatch=mismatch, noise=noise), grid=grid)
    floats, drawn = images(tokens, dims, geometry)
    rng = torch.Generator().manual_seed(2)
    query = torch.randint(0, 16, floats.shape, generator=rng, dtype=torch.uint8)
    key, value = (2 * torch.randint(0, 8, drawn.key.shape, generator=rng, dtype=torch.int8) - 7 for _ in range(2))
    weight_k = drawn.weight_k * 2e-3 * (64 / dims) ** 0.5
    weight_v = drawn.weight_v * 2e-2 if grid is None else drawn.weight_v * 8000
    cells = Cells(key, value, weight_k, weight_v)
    out, saturated = native.attention_forward(query, cells, geometry, around, save=True, variant=variant)
    grad = torch.randn(out.shape, generator=rng)
    found = native.attention_backward(grad, query, cells, geometry, around, saturated, variant=variant)

    q, k, v = (x.double().requires_grad_() for x in (query, key, value))
    expected = dense_attention(q, Cells(k, v, weight_k, weight_v), geometry, around)
    flips = (out - expected).abs() > 0.5 / 15
    assert flips.double().mean() <= tolerances.NATIVE_FLIPS * 10 and (out - expected).abs()[~flips].max() < 1e-5
    for x, y in zip(found, torch.autograd.grad(expected, (q, k, v), grad.double()), strict=True):
        assert (x - y).abs().max() <= tolerances.FLOAT32 * 10 * y.abs().max()


@NO_KERNEL
@pytest.mark.parametrize("dims", [64, 20])
@pytest.mark.parametrize(("levels", "low", "high"), [(16, 0.0, 1.0), (8, 0.0, 0.9), (5, -0.3, 0.7), (128, 0.0, 1.0)])
def test_converters_in_c_round_as_those_in_torch(dims: int, levels: int, low: float, high: float) -> None:
    rng = torch.Generator().manual_seed(3)
    x, step = torch.randn(2, 40, 3, dims, generator=rng) * 0.4 + 0.45, (high - low) / (levels - 1)
    x.view(-1)[:50] = low + step * (torch.arange(50) % levels + 0.5)  # halfway
    x = x.transpose(1, 2)
    expected = ((quantise_levels(x, levels, low, high) - low) / step).round()
    assert torch.equal(count_levels(x, levels, low, high, centred=False), expected)
    for centred, wanted in ((False, expected), (True, 2 * expected - (levels - 1))):
        found = native.convert(x, levels, low, high, centred=centred)
        assert found is not None and found.shape[-1] % native.MULTIPLE == 0
        assert torch.equal(found[..., :dims].float(), wanted.reshape(6, 40, dims))
        assert not found[..., dims:].any()


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_what_is_no_number_stays_none(kernel: str) -> None:
    if kernel == "native" and not native.available():
        pytest.skip("no C compiler made the kernels")
    tensors = inputs(1, 2, 2, 70, 64, dtype=torch.float32)
    tensors[1][0, 1, 3, 5] = torch.nan
    with attention_kernel(kernel):  # type: ignore[arg-type]
        out = gain_cell_attention(*tensors, linear(64, 64), token_period_s=PERIOD)
        assert out[0, 1, 3:67].isnan().any() and not out[0, 0].isnan().any()
        tokens = [[x[:, :, t : t + 1] for x in tensors] for t in range(70)]
        for first in (0, 5):  # written one by one, and the first ones at once
            ring = RingBuffer(linear(64, 64), 1, 2, 2, 64, token_period_s=PERIOD)
            ring.write(tensors[1][:, :, :first], tensors[2][:, :, :first])
            steps = torch.cat([ring.step(*tokens[t]) for t in range(first, 70)], 2)
            lost, whole = steps.isnan(), out[:, :, first:]
            assert lost[0, 1, max(0, 3 - first) : 67 - first].all(-1).all() and not lost[0, 0].any()
            assert torch.equal(steps[~whole.isnan()], whole[~whole.isnan()])


@NO_KERNEL
def test_results_do_not_follow_what_the_process_takes_by_default() -> None:
    device, tensors = linear(40, 16), inputs(1, 2, 1, 60, 16, dtype=torch.float32)

    def outputs() -> list[torch.Tensor]:
        with attention_kernel("native"):
            found = values_and_gradients(gain_cell_attention, tensors, device, PERIOD)
            ring = RingBuffer(device, 1, 2, 1, 16, token_period_s=PERIOD)
            return [*found, *(ring.step(*(x[:, :, t : t + 1] for x in tensors)) for t in range(3))]

    expected = outputs()
    torch.set_default_dtype(torch.float64)
    try:
        found = outputs()
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype and torch.equal(x, y)


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_tensors_that_do_not_belong_together_are_refused(kernel: str) -> None:
    if kernel == "native" and not native.available():
        pytest.skip("no C compiler made the kernels")
    device, (query, key, value) = linear(40, 16), inputs(1, 2, 1, 30, 16, dtype=torch.float32)
    with attention_kernel(kernel):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="have 16, 8 and 16 dimensions"):
            gain_cell_attention(query, key[..., :8], value, device, token_period_s=PERIOD)
        with pytest.raises((ValueError, RuntimeError)):
            gain_cell_attention(query, key.double(), value, device, token_period_s=PERIOD)


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_a_ring_that_begins_again_reads_nothing_of_before(kernel: str) -> None:
    if kernel == "native" and not native.available():
        pytest.skip("no C compiler made the kernels")
    query, key, value = inputs(1, 1, 1, 20, 16, dtype=torch.float32)
    with attention_kernel(kernel):  # type: ignore[arg-type]
        ring, fresh = (RingBuffer(linear(24, 8), 1, 1, 1, 16, token_period_s=PERIOD) for _ in range(2))
        ring.write(key, value)
        for each in (ring, fresh):
            each.write(key[:, :, :8], value[:, :, :8], first=0)
        found, expected = (each.step(*(x[:, :, 8:9] for x in (query, key, value))) for each in (ring, fresh))
    assert torch.equal(found, expected)


# ---- who has codes, and who may have a grid


@pytest.mark.parametrize(
    "more",
    [
        {"input.levels": None}, {"storage.levels": None}, {"input.levels": 200}, {"retention.v_inf": "0.3 V"},
        {"storage.v_max": "0.8 V"}, {"cell.backward": "linear", "cell.surrogate_slope": "19.3 uA/V"},
        {"refresh.kind": "periodic", "refresh.interval": "90 us"},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_are_not_whole(more: dict[str, object]) -> None:
    assert isinstance(codes_of(linear(64, 64), Place()), Codes)
    assert codes_of(linear(64, 64, **more), Place()) is None


PERFECT_CELLS = {
    "variability.gain_sigma": 0.0, "write.dac_inl": 0.0, "write.capacitor_mismatch": "0 fF**0.5",
    "write.pedestal_sigma": "0 V", "input.inl": 0.0, "wire.resistance": "0 ohm",
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"variability.gain_sigma": 0.01}, {"write.dac_inl": 0.1}, {"write.capacitor_mismatch": "0.01 fF**0.5"},
        {"write.pedestal_sigma": "1 mV"}, {"write.pedestal_mean": "1 mV"}, {"write.pedestal_gain": 0.01},
        {"input.inl": 0.1}, {"wire.resistance": "100 ohm", "wire.cell_current": "1 uA"},
        {"variability.offset_sigma": "1 mV"}, {"retention.tau_sigma_ln": 0.1},
        {"drift.amplitude": "1 mV", "drift.tau": "1e5 s", "drift.stress_time": "1e5 s"},
    ],
    ids=str,
)  # fmt: skip
def test_a_chip_has_codes_where_none_of_its_cells_deviates(more: dict[str, object]) -> None:
    perfect, marred = linear(64, 16, **PERFECT_CELLS), linear(64, 16, **{**PERFECT_CELLS, **more})
    assert codes_of(perfect, Place(Die(0, perfect))) is not None
    assert codes_of(marred, Place(Die(0, marred))) is None


def test_circuits_of_a_chip_act_on_codes_too() -> None:
    """Offsets, gains and errors of the readouts stay where cells are perfect; so does noise of reads."""
    silent = {"write.error_sigma": "0 V", "write.ktc": False}
    device = linear(40, 16, **PERFECT_CELLS, **silent)
    chip = {"die": Die(1, device), "read_key": 3}
    tensors = inputs(1, 2, 1, 70, 16)
    found = gain_cell_attention(*tensors, device, token_period_s=PERIOD, **chip)
    expected = naive_gain_cell_attention(*tensors, device, token_period_s=PERIOD, **chip)
    assert (found - expected).abs().max() <= tolerances.TWINS * expected.abs().max()
    assert not torch.equal(found, gain_cell_attention(*tensors, device, token_period_s=PERIOD))


def test_errors_of_cells_and_writes_leave_no_codes() -> None:
    device, key = linear(64, 64), torch.tensor([5])
    assert codes_of(device, Place(Die(0, device))) is None
    assert codes_of(device, Place(None, key)) is None
    silent = linear(64, 64, **{"write.error_sigma": "0 V", "write.ktc": False})
    assert codes_of(silent, Place(None, key)) is not None
    assert codes_of(linear(64, 64, **{"write.error_sigma": "0 V", "write.ktc": False, "input.jitter": "9 ps"}),
                    Place(None, key)) is None  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"cell.law": "cubic", "cell.coefficients": ["0.5 uA", "13.6 uA/V", "-2.6 uA/V**2", "46 uA/V**3"]},
        {"retention.v_inf": "0.3 V"}, {"retention.tau_sigma_ln": 0.1}, {"variability.offset_sigma": "1 mV"},
        {"refresh.kind": "periodic", "refresh.interval": "90 us"},
        {"cell.backward": "linear", "cell.surrogate_slope": "19.3 uA/V"},
    ],
    ids=str,
)  # fmt: skip
def test_grid_where_no_factor_fades_all_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"readout_qk.pulse_bits.*no one factor|no one factor.*pulse_bits") as caught:
        linear(64, 64, **GRID, **more)
    assert "drop pulse_bits" in str(caught.value)


def test_grid_whose_sums_are_not_exact_is_refused() -> None:
    for continuous in ("input.levels", "storage.levels"):
        with pytest.raises(InputError, match="nothing is exact beside continuous"):
            linear(64, 64, **GRID, **{continuous: None})
    with pytest.raises(InputError, match="sums of a sub-tile are not exact"):
        linear(1024, 128, **GRID)
    linear(1024, 128, **{"readout_qk.pulse_bits": 14})
