"""The kernels in C compute what the loop in PyTorch does, and are left alone where they do not."""

from __future__ import annotations

import pytest
import torch

from hwsim import Die, attention_kernel, gain_cell_attention, native
from hwsim.functional import tile_loop
from hwsim.functional.attention_tiled import attend
from hwsim.functional.kernel_loop import Kernel
from hwsim.functional.layout import Stretch, stretch_layout
from hwsim.functional.reads import Place
from hwsim.functional.tables import AttentionTables
from hwsim.native import build
from tests import tolerances
from tests.hwsim.comparison import (
    CONTINUOUS_READOUT,
    PERIOD,
    SURROGATE,
    assert_same,
    inputs,
    known,
    values_and_gradients,
)

NO_KERNEL = pytest.mark.skipif(not native.available(), reason="no C compiler made the kernels")


@NO_KERNEL
@pytest.mark.parametrize("chip", ["design", "die", "noise"])
@pytest.mark.parametrize(
    ("sizes", "window", "slots", "more"),
    [
        ((2, 4, 2, 130, 64), 1024, 64, {}),
        ((1, 2, 2, 300, 64), 128, 64, {"readout.offset_sigma": 0.3, "readout.gain_sigma": 0.05}),
        ((1, 2, 1, 100, 80), 100, 64, SURROGATE),
        ((1, 2, 1, 65, 16), 40, 16, {"retention.v_inf": "0.3 V"}),
        ((1, 2, 1, 1, 64), 64, 64, {}),
        ((1, 4, 2, 90, 64), 64, 16, CONTINUOUS_READOUT),
        ((1, 2, 2, 100, 64), 96, 48, {"input.jitter": "0.5 ns"}),
        ((1, 4, 2, 100, 24), 96, 16, {"readout.noise": 0.4, "readout.offset_sigma": 0.3}),
        ((2, 2, 1, 70, 64), 64, 64, {"readout.inl": 0.5, "readout.dnl": 0.5, "readout.noise": 0.2}),
        ((1, 2, 2, 70, 64), 64, 64, {"readout.inl": 0.5, "readout.circuit": "ramp", "readout.codes": "published_33"}),
    ],
    ids=str,
)
def test_kernels_in_c(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, more: dict[str, object], chip: str
) -> None:
    device = known(window, slots, **more)
    given = {"design": {}, "die": {"die": Die(3, device)}, "noise": {"die": Die(3, device), "read_key": 5}}[chip]
    tensors = inputs(*sizes, dtype=torch.float32)
    with attention_kernel("native"):
        found = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
    with attention_kernel("torch"):
        expected = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
    assert_same(found, expected, tolerances.FLOAT32, step=1 / 15, flips=tolerances.NATIVE_FLIPS)


LINEAR = {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]}
LIMITED = {
    "retention.kind": "log_self_limited", "retention.v_scale": "45.6 mV", "retention.t0": "8.7 ns",
    "retention.v_top": "0.9 V", "retention.v_inf": "0 V", "retention.tau": None,
}  # fmt: skip
TO_THE_MIDDLE = {
    **LIMITED, "retention.v_inf": "0.45 V", "retention.t0": "120 us", "retention.v_scale": "80 mV",
    "operation.temperature": "315 K",
}  # fmt: skip


@NO_KERNEL
@pytest.mark.parametrize("variant", list(build.VARIANTS))
@pytest.mark.parametrize(
    ("sizes", "window", "slots", "more"),
    [
        ((2, 4, 2, 200, 64), 1024, 64, {"variability.gain_sigma": 0.1}),
        ((1, 2, 2, 300, 32), 128, 64, LINEAR),
        ((1, 2, 1, 120, 80), 100, 64, SURROGATE),
        ((1, 2, 2, 130, 32), 96, 48, {"retention.v_inf": "0.3 V"}),
        ((1, 2, 2, 260, 16), 250, 100, {**LINEAR, "write.pedestal_mean": "6 mV", "variability.offset_sigma": "0 V"}),
        ((1, 2, 2, 120, 16), 90, 7, {"input.jitter": "0.5 ns", "readout.inl": 0.3, "readout.noise": 0.2}),
        ((1, 2, 2, 20, 16), 5, 2, CONTINUOUS_READOUT),
        ((1, 2, 2, 200, 16), 1024, 64, {"retention.tau": "1.8 ms", "retention.v_inf": "0.45 V"}),  # ten nodes
        ((1, 2, 2, 200, 32), 1024, 64, LIMITED),
        ((1, 2, 1, 150, 16), 100, 64, {**LIMITED, **LINEAR}),
        ((1, 2, 2, 130, 16), 96, 48, {**LIMITED, **SURROGATE}),
        ((1, 2, 2, 120, 16), 90, 7, {**LIMITED, "variability.offset_sigma": "0 V"}),
    ],
    ids=str,
)
def test_cells_of_their_own_time(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, more: dict[str, object], variant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Against float64 in PyTorch, which interpolates cells to rounding; shapes where blocks begin anywhere as well."""
    if variant not in build.variants():
        pytest.skip(f"this processor does not run {variant}")
    monkeypatch.setattr(native, "load", lambda _: build.load(variant))
    chosen, choose = [], tile_loop.kernel_loop
    monkeypatch.setattr(tile_loop, "kernel_loop", lambda *given: chosen.append(choose(*given)) or chosen[-1])
    device = known(window, slots, **{"retention.tau_sigma_ln": 0.4}, **more)
    tensors, given = inputs(*sizes), {"die": Die(3, device), "read_key": 5}
    with attention_kernel("native"):
        found = values_and_gradients(
            gain_cell_attention, [x.float() for x in tensors], device, PERIOD, **given
        )  # fmt: skip
    assert [isinstance(loop.cells, native.AgedCells) for loop in chosen] == [True, True]
    exact = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
    assert_same([x.double() for x in found], exact, tolerances.AGED, step=1 / 15, flips=tolerances.FLOAT32_FLIPS)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize(("spread", "chip"), [(0.6, True), (0.0, True), (0.6, False)])
@pytest.mark.parametrize("law", [LIMITED, TO_THE_MIDDLE], ids=["to zero", "to the middle"])
def test_self_limited_loss(law: dict[str, object], spread: float, chip: bool, kernel: Kernel) -> None:
    """Against float64, where each current of each cell is computed; with one time constant and without a chip too."""
    device = known(128, 64, **law, **{"retention.tau_sigma_ln": spread})
    tensors, given = inputs(2, 4, 2, 170, 16), {"die": Die(3, device), "read_key": 5} if chip else {}
    with attention_kernel(kernel):
        found = values_and_gradients(gain_cell_attention, [x.float() for x in tensors], device, PERIOD, **given)
    exact = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
    assert all(x.abs().max() > 0 for x in exact)
    assert_same([x.double() for x in found], exact, tolerances.AGED, step=1 / 15, flips=tolerances.FLOAT32_FLIPS)


NO_NODES = {
    "refreshed": {**LIMITED, "refresh.kind": "periodic", "refresh.interval": "1 ms"},
    "constant loss": {"retention.kind": "constant_current", "retention.rate": "100 V/s", "retention.tau": None},
    "cells that reach their end": {**TO_THE_MIDDLE, "retention.t0": "6 us"},
}


@pytest.mark.parametrize("case", NO_NODES)
def test_what_no_nodes_serve_is_computed_cell_by_cell(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, loop = [], tile_loop.tile_loop
    monkeypatch.setattr("hwsim.functional.attention_tiled.tile_loop", lambda *given: reached.append(0) or loop(*given))
    device = known(128, 64, **{"retention.tau_sigma_ln": 0.4}, **NO_NODES[case])
    tensors, die = inputs(1, 2, 2, 100, 16), Die(3, device)
    found = gain_cell_attention(*(x.float() for x in tensors), device, token_period_s=PERIOD, die=die)
    exact = gain_cell_attention(*tensors, device, token_period_s=PERIOD, die=die)
    assert not reached
    assert ((found - exact).abs() > 0.5 / 15).double().mean() <= tolerances.FLOAT32_FLIPS


@NO_KERNEL
@pytest.mark.parametrize(("window", "slots"), [(128, 64), (384, 192), (100, 50)])
@pytest.mark.parametrize(("first", "queries"), [(0, 33), (37, 60), (5, 1)])
def test_chunk_of_cells_of_their_own_time(window: int, slots: int, first: int, queries: int) -> None:
    """Queries and keys that begin anywhere read what they do in the whole sequence; a single query in PyTorch."""
    device = known(window, slots, **LINEAR, **{"retention.tau_sigma_ln": 0.4})
    tokens = first + window + queries + 11
    whole, die = inputs(1, 2, 2, tokens, 16), Die(3, device)
    exact = gain_cell_attention(*whole, device, token_period_s=PERIOD, die=die)
    key = first if first else tokens - queries - window + 1  # the least that the queries read
    layout = stretch_layout(Stretch(queries, tokens - key, key), device)
    tables = AttentionTables(layout, device, PERIOD, torch.float32)
    q, k, v = (x.float() for x in whole)
    with attention_kernel("native"):
        found = attend(q[:, :, -queries:], k[:, :, key:], v[:, :, key:], device, tables, Place(die))
    apart = (found - exact[:, :, -queries:]).abs() > 0.5 / 15
    assert apart.double().mean() <= tolerances.FLOAT32_FLIPS


@pytest.mark.parametrize(
    "effect",
    [
        {"readout_qk.bits": 6}, {"tile.assignment": "absolute"},
    ],
    ids=str,
)  # fmt: skip
def test_an_effect_that_they_do_not_know_is_never_lost(
    effect: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, choose = [], tile_loop.kernel_loop
    monkeypatch.setattr(tile_loop, "kernel_loop", lambda *given: chosen.append(choose(*given)) or chosen[-1])
    tensors = inputs(1, 1, 1, 70, 16, torch.float32)
    for device in (known(64, 32, **effect), known(64, 32)):
        gain_cell_attention(*tensors, device, token_period_s=PERIOD, die=Die(1, device), read_key=1)
    assert chosen[0] is None
    assert (chosen[1] is not None) == bool(native.available())


def test_without_a_compiler_all_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: "")
    device, tensors = known(64, 32), inputs(1, 1, 1, 70, 16, torch.float32)
    out = gain_cell_attention(*tensors, device, token_period_s=PERIOD)
    with attention_kernel("torch"):
        assert torch.equal(out, gain_cell_attention(*tensors, device, token_period_s=PERIOD))
