from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hwsim import native
from hwsim.native import Cells, Circuits, Geometry, Readout, build
from tests.hwsim.native_reference import (
    assert_codes,
    assert_gradients,
    assert_wrong_tensors_are_named,
    circuits,
    dense_attention,
    doubles,
    inputs,
    newest,
    straight_through,
    weight_of,
)

needs_compiler = pytest.mark.skipif(not native.available(), reason=f"no native kernel: {build.load()}")
each_variant = pytest.mark.parametrize("variant", list(build.VARIANTS))
SHAPES = [  # tokens, window, slots
    (1, 64, 64), (63, 1000, 64), (64, 64, 64), (65, 40, 64), (100, 70, 64), (300, 100, 64), (300, 192, 64),
    (300, 128, 32), (200, 90, 7), (300, 300, 256), (40, 5, 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _runs(request):
    name = request.node.callspec.params.get("variant") if hasattr(request.node, "callspec") else None
    if name and name not in build.variants():
        pytest.skip(f"this processor does not run {name}")


@needs_compiler
@each_variant
@pytest.mark.parametrize(("tokens", "window", "slots"), SHAPES)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_plain_cells(variant, tokens, window, slots, head_dim):
    geometry = Geometry(window, slots)
    _compare(*inputs(tokens, head_dim, geometry), geometry, circuits(tokens, head_dim, geometry), variant)


@needs_compiler
@each_variant
@pytest.mark.parametrize(("tokens", "window", "slots"), SHAPES)
@pytest.mark.parametrize(("images", "mismatch", "noise"), [((4, 4), False, False), ((1, 1), True, False),
                                                           ((1, 1), False, True), ((3, 2), True, True)])  # fmt: skip
def test_cubic_law_mismatch_and_noise(variant, tokens, window, slots, images, mismatch, noise):
    geometry = Geometry(window, slots)
    around = circuits(tokens, 64, geometry, mismatch=mismatch, noise=noise)
    drawn = inputs(tokens, 64, geometry, images, constant=images != (1, 1))
    _compare(*drawn, geometry, around, variant)


@needs_compiler
@each_variant
@pytest.mark.parametrize(("tokens", "window", "slots"), SHAPES)
def test_jitter_and_what_codes_err(variant, tokens, window, slots):
    geometry = Geometry(window, slots)
    around = circuits(tokens, 80, geometry, mismatch=True, noise=True, late=True)
    _compare(*inputs(tokens, 80, geometry), geometry, around, variant)


@needs_compiler
def test_a_single_query_refuses_what_it_does_not_know():
    geometry = Geometry(100, 64)
    query, cells = inputs(40, 16, geometry)
    around = circuits(40, 16, geometry, noise=True, late=True)
    with pytest.raises(ValueError, match="knows neither jitter"):
        native.attention_decode(*newest(query, cells, geometry, around))


@needs_compiler
def test_a_table_of_errors_reaches_all_codes():
    geometry = Geometry(100, 64)
    query, cells = inputs(40, 16, geometry)
    around = Circuits(Readout(1 / 15, 15, errors=torch.zeros(2, 2, 29, 16)))
    with pytest.raises(ValueError, match="errors of 29 codes"):
        native.attention_forward(query, cells, geometry, around)


@needs_compiler
@each_variant
def test_a_constant_beside_single_images(variant):
    geometry = Geometry(70, 64)
    _compare(*inputs(100, 80, geometry, constant=True), geometry, circuits(100, 80, geometry), variant)


@needs_compiler
@each_variant
@pytest.mark.parametrize("head_dim", [8, 20, 32, 128])
def test_other_head_dimensions(variant, head_dim):
    geometry = Geometry(70, 64)
    around = circuits(100, head_dim, geometry, mismatch=True, noise=True)
    _compare(*inputs(100, head_dim, geometry), geometry, around, variant)


@needs_compiler
@each_variant
def test_continuous_readout(variant):
    geometry = Geometry(70, 64)
    _compare(*inputs(100, 64, geometry), geometry, circuits(100, 64, geometry, step=0.0), variant)


@needs_compiler
@each_variant
def test_gradient_of_other_cells(variant):
    geometry = Geometry(70, 64)
    query, cells = inputs(100, 64, geometry, (4, 4))
    _, slopes = inputs(100, 64, geometry, (1, 1), seed=5)
    around = circuits(100, 64, geometry)
    out, saturated = native.attention_forward(query, cells, geometry, around, save=True, variant=variant)
    weight = weight_of(out)
    found = native.attention_backward(
        weight, query, cells, geometry, around, saturated, slopes=slopes, variant=variant
    )  # fmt: skip

    q, smooth = doubles(query, slopes)
    exact = Cells(cells.key.double(), cells.value.double(), cells.weight_k, cells.weight_v)
    expected = straight_through(q, exact, smooth, geometry, around, weight.double())
    assert_gradients(found, torch.autograd.grad(expected, (q, smooth.key, smooth.value)))


@needs_compiler
@each_variant
@pytest.mark.parametrize("start", [1, 64, 129])
def test_chunk_continues_the_sequence(variant, start):
    geometry = Geometry(100, 64)
    query, cells = inputs(200, 64, geometry, (2, 2))
    around = circuits(200, 64, geometry, mismatch=True)
    whole, _ = native.attention_forward(query, cells, geometry, around, variant=variant)
    part, _ = native.attention_forward(
        query[:, start:], cells, replace(geometry, query_start=start), around, variant=variant
    )
    assert_codes(part, whole[:, start:].double(), 1 / 15)
    first = max(0, start - 99)
    kept = Cells(cells.key[:, :, first:], cells.value[:, :, first:], cells.weight_k, cells.weight_v)
    geometry = replace(geometry, query_start=start, key_start=first)
    _compare(query[:, start:], kept, geometry, around, variant)


@needs_compiler
@each_variant
@pytest.mark.parametrize(("images", "mismatch", "noise"), [((1, 1), False, False), ((4, 3), True, True)])
@pytest.mark.parametrize("tokens", [1, 40, 100, 257])
def test_decode_is_the_last_row_of_prefill(variant, images, mismatch, noise, tokens):
    geometry = Geometry(100, 64)
    query, cells = inputs(tokens, 80, geometry, images, constant=noise)
    around = circuits(tokens, 80, geometry, mismatch=mismatch, noise=noise)
    expected, _ = native.attention_forward(query, cells, geometry, around, variant=variant)
    out = native.attention_decode(*newest(query, cells, geometry, around), variant=variant)
    assert_codes(out, expected[:, -1:].double(), 1 / 15)


@needs_compiler
@each_variant
def test_threads_do_not_change_a_bit(variant):
    geometry = Geometry(100, 64)
    query, cells = inputs(300, 64, geometry, (2, 2))
    around = circuits(300, 64, geometry, noise=True)

    def all_results(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        out, saturated = native.attention_forward(query, cells, geometry, around, save=True, variant=variant)
        grads = native.attention_backward(weight_of(out), query, cells, geometry, around, saturated, variant=variant)
        ring = Cells(*(x[:, :, :100].contiguous() for x in (cells.key, cells.value)), cells.weight_k, cells.weight_v)
        plain = circuits(300, 64, geometry)
        return [out, *grads, native.attention_decode(query[:, :1], ring, torch.arange(4), geometry, plain)]

    before = torch.get_num_threads()
    try:
        one, three = all_results(1), all_results(3)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, three, strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_wrong_tensors_are_named():
    assert_wrong_tensors_are_named(native.attention_forward, 64)


def test_no_compiler_is_a_reason_not_an_error(monkeypatch):
    build.load.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    try:
        assert native.available() == "" and not native.compiles_at_first_use()
        assert "no C compiler" in str(build.load())
        geometry = Geometry(70, 64)
        with pytest.raises(native.Unavailable, match="no C compiler"):
            native.attention_forward(*inputs(10, 64, geometry), geometry, Circuits(Readout()))
    finally:
        build.load.cache_clear()


def test_failing_compiler_is_a_reason_not_an_error(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "cc 0" && exit 0\necho "it broke" >&2\nexit 1\n')
    compiler.chmod(0o755)
    build.load.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    monkeypatch.setattr(build, "cache_directory", lambda: tmp_path / "cache")
    try:
        assert native.compiles_at_first_use()
        assert "it broke" in str(build.load())
        assert not list((tmp_path / "cache").iterdir())
    finally:
        build.load.cache_clear()


@needs_compiler
@each_variant
@pytest.mark.parametrize("age", [1200.0, 1e-5])
def test_what_self_limited_loss_leaves_of_a_cell(variant, age):
    """One token that reads itself with a full pulse, its cells at one age whatever the weights say."""
    v_scale, rate = 0.0456, 3e-4
    y = torch.cat([torch.linspace(-0.9, 0.9, 61), torch.tensor([-1e-3, 0.0, 1e-3])])
    geometry, ranges = Geometry(64, 64), native.Ranges.of(Geometry(64, 64), 1)
    ages, weights = torch.full((ranges.count, 1), age), torch.ones(ranges.count, 1, ranges.span + 1)
    counts = torch.ones(ranges.count, dtype=torch.int64)

    def array(states: Tensor, rate: float, v_scale: float | None) -> native.AgedArray:
        rates = torch.full_like(states[None, None], rate)
        return native.AgedArray(states[None, None], rates, (), ranges, ages, weights, counts, v_scale)

    cells = native.AgedCells(array(torch.ones(64), 0.0, None), array(y, rate, v_scale))
    around, query = Circuits(Readout()), torch.full((1, 1, 64), 2.0 / 64)
    out, saturated = native.attention_forward(query, cells, geometry, around, save=True, variant=variant)
    exact = y.double().requires_grad_()
    w = torch.exp(-exact.abs() / v_scale) + rate * age
    left = exact.sign() * v_scale * (-w.log()).clamp(min=0.0)
    assert 0 < (left == 0.0).sum() < 64
    assert (out[0, 0] - left.detach()).abs().max() <= 1e-7
    grad = torch.linspace(1.0, 2.0, 64)
    found = native.attention_backward(grad[None, None], query, cells, geometry, around, saturated, variant=variant)
    left.backward(grad.double())
    assert (found[2][0, 0] - exact.grad).abs().max() <= 1e-6


@needs_compiler
def test_kernels_are_compiled_once():
    assert native.available(build.variants()[0]) and not native.compiles_at_first_use()


@pytest.mark.slow
@needs_compiler
def test_processes_build_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = "from hwsim.native import available; print(available('generic'))"
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(process.communicate()[0].startswith("generic, ") for process in running)
    (made,) = build.cache_directory().iterdir()

    made.write_bytes(b"damaged")
    build.load.cache_clear()
    assert native.available("generic").startswith("generic, ")
    build.load.cache_clear()


def _compare(query: Tensor, cells: Cells, geometry: Geometry, around: Circuits, variant: str) -> None:
    out, saturated = native.attention_forward(query, cells, geometry, around, save=True, variant=variant)
    q, precise = doubles(query, cells)
    expected = dense_attention(q, precise, geometry, around)
    assert_codes(out, expected, around.readout.step)
    weight = weight_of(out)
    found = native.attention_backward(weight, query, cells, geometry, around, saturated, variant=variant)
    assert_gradients(found, torch.autograd.grad((expected * weight).sum(), (q, precise.key, precise.value)))
