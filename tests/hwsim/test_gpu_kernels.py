"""The kernels in Triton, in its interpreter: what the dense reference computes, to the bit on a grid of pulses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from hwsim import Die, attention_kernel, gain_cell_attention, gpu, native
from hwsim.functional import kernel_loop
from hwsim.native import Cells, Circuits, Geometry, Noise, Readout
from tests import tolerances
from tests.hwsim.comparison import CONTINUOUS_READOUT, PERIOD, SURROGATE, assert_same, known, values_and_gradients
from tests.hwsim.comparison import inputs as tensors_for
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

REASON = gpu.unavailable(torch.device("cpu"))
interpreted = pytest.mark.skipif(bool(REASON), reason=REASON)
installed = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
STEP = 1 / 15


@interpreted
@pytest.mark.parametrize(
    ("tokens", "window", "slots", "head_dim", "images", "effects"),
    [
        (50, 24, 16, 16, (1, 1), {}),
        (75, 40, 16, 20, (1, 1), {"mismatch": True}),
        (40, 20, 7, 16, (3, 2), {"mismatch": True, "noise": True, "constant": True}),
        (30, 70, 64, 24, (4, 4), {}),
        (40, 70, 64, 16, (1, 1), {"noise": True}),
        (12, 5, 2, 16, (1, 1), {"mismatch": True, "noise": True}),
        (30, 24, 16, 16, (1, 1), {"step": 0.0}),
        (30, 24, 16, 16, (1, 1), {"constant": True}),
        (20, 24, 64, 130, (1, 2), {}),
        (1, 64, 64, 16, (1, 1), {}),
    ],
    ids=str,
)
def test_values_and_gradients(
    tokens: int, window: int, slots: int, head_dim: int, images: tuple[int, int], effects: dict[str, bool]
) -> None:
    geometry, between = Geometry(window, slots), {key: x for key, x in effects.items() if key != "constant"}
    query, cells = inputs(tokens, head_dim, geometry, images, batch=1, constant="constant" in effects)
    _compare(query, cells, geometry, circuits(tokens, head_dim, geometry, batch=1, **between))


@interpreted
def test_gradient_of_other_cells() -> None:
    geometry = Geometry(24, 16)
    query, cells = inputs(40, 16, geometry, (3, 2), batch=1)
    _, slopes = inputs(40, 16, geometry, (1, 1), batch=1, seed=5)
    around = circuits(40, 16, geometry, batch=1)
    out, saturated = gpu.attention_forward(query, cells, geometry, around, save=True)
    weight = weight_of(out)
    found = gpu.attention_backward(weight, query, cells, geometry, around, saturated, slopes=slopes)
    q, smooth = doubles(query, slopes)
    exact = Cells(cells.key.double(), cells.value.double(), cells.weight_k, cells.weight_v)
    expected = straight_through(q, exact, smooth, geometry, around, weight.double())
    assert_gradients(found, torch.autograd.grad(expected, (q, smooth.key, smooth.value)))


@interpreted
@pytest.mark.parametrize("start", [1, 45])
def test_chunk_continues_the_sequence(start: int) -> None:
    geometry, first = Geometry(40, 16), max(0, start - 39)
    query, cells = inputs(60, 16, geometry, batch=1)
    kept = replace(cells, key=cells.key[:, :, first:], value=cells.value[:, :, first:])
    chunk = replace(geometry, query_start=start, key_start=first)
    around = circuits(60 - start, 16, geometry, mismatch=True, noise=True, batch=1)
    _compare(query[:, start:], kept, chunk, around)
    plain = circuits(60, 16, geometry, batch=1)
    whole, _ = gpu.attention_forward(query, cells, geometry, plain)
    part, _ = gpu.attention_forward(query[:, start:], kept, chunk, plain)
    assert_codes(part, whole[:, start:].double(), STEP, flips=1)


@interpreted
@pytest.mark.parametrize(("images", "effects"), [((1, 1), {}), ((4, 3), {"mismatch": True, "noise": True})])
@pytest.mark.parametrize("tokens", [1, 20, 57])
def test_decode_is_the_last_row_of_prefill(images: tuple[int, int], effects: dict[str, bool], tokens: int) -> None:
    geometry = Geometry(24, 16)
    query, cells = inputs(tokens, 20, geometry, images, batch=1, constant=bool(effects))
    around = circuits(tokens, 20, geometry, batch=1, **effects)
    expected = dense_attention(query.double(), doubles(query, cells)[1], geometry, around)[:, -1:]
    assert expected.abs().max() > STEP / 2
    assert_codes(gpu.attention_decode(*newest(query, cells, geometry, around)), expected, STEP, flips=1)


@interpreted
@pytest.mark.parametrize(
    ("tokens", "window", "slots", "head_dim", "halves"),
    [(60, 24, 16, 16, False), (50, 40, 40, 20, False), (30, 12, 5, 16, True), (20, 70, 64, 16, False)],
)
def test_pulse_grid_to_the_bit(tokens: int, window: int, slots: int, head_dim: int, halves: bool) -> None:
    geometry = Geometry(window, slots)
    query, cells, around = whole_numbers(tokens, head_dim, geometry)
    if halves:  # a quarter of all pulses lies between two whole ones, and some charges above the highest code
        flat = torch.ones_like(cells.weight_k)
        cells = replace(cells, weight_k=flat / 128, weight_v=flat * 32)
        around = Circuits(Readout(STEP, 11.0), grid=0.1 / 32)
    expected = dense_whole_numbers(query, cells, geometry, around)
    assert expected.unique().numel() > 8
    out, _ = gpu.attention_forward(query, cells, geometry, around)
    assert torch.equal(out, expected)
    assert torch.equal(gpu.attention_decode(*newest(query, cells, geometry, around)), expected[:, -1:])


@interpreted
def test_gradient_passes_straight_through_the_grid() -> None:
    geometry = Geometry(24, 16)
    query, cells, around = whole_numbers(40, 16, geometry, pulses=7.0)  # so few that their rounding shows
    out, saturated = gpu.attention_forward(query, cells, geometry, around, save=True)
    assert saturated is not None and saturated.any()
    weight = weight_of(out)
    found = gpu.attention_backward(weight, query, cells, geometry, around, saturated)
    q, precise = doubles(query, cells)
    expected = dense_whole_numbers(q, precise, geometry, around)
    assert_gradients(found, torch.autograd.grad((expected * weight).sum(), (q, precise.key, precise.value)))


@interpreted
def test_wrong_tensors_are_named() -> None:
    assert_wrong_tensors_are_named(gpu.attention_forward, 16)
    geometry = Geometry(70, 64)
    query, _ = inputs(10, 16, geometry)
    with pytest.raises(ValueError, match="grid: expected one image of the values and no constant, received 2 images"):
        two = inputs(10, 16, geometry, (1, 2))[1]
        gpu.attention_forward(query, two, geometry, Circuits(Readout(), grid=0.5))


@interpreted
@pytest.mark.parametrize(
    ("sizes", "window", "slots", "more", "chip"),
    [
        ((1, 2, 1, 40, 16), 24, 16, {"readout.offset_sigma": 0.3, "readout.gain_sigma": 0.05}, {"read_key": 5}),
        ((2, 1, 1, 30, 20), 20, 16, {**SURROGATE, "retention.v_inf": "0.3 V"}, {}),
        ((1, 1, 1, 20, 16), 64, 16, CONTINUOUS_READOUT, None),
    ],
    ids=str,
)
def test_attention_of_a_device(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, more: dict[str, object],
    chip: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    device = known(window, slots, **more)
    given = {} if chip is None else {"die": Die(3, device), **chip}
    tensors, ran = tensors_for(*sizes, dtype=torch.float32), []
    for name in ("attention_forward", "attention_backward"):
        monkeypatch.setattr(gpu, name, _noted(ran, name, getattr(gpu, name)))
    with attention_kernel("torch"):
        expected = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
    assert not ran
    with attention_kernel("triton"):
        found = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
    assert ran == ["attention_forward", "attention_backward"]
    assert_same(found, expected, tolerances.FLOAT32, step=STEP, flips=tolerances.FLOAT32_FLIPS)


@interpreted
def test_gradient_takes_the_kernel_of_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    device, ran = known(24, 16), []
    monkeypatch.setattr(gpu, "attention_backward", _noted(ran, "backward", gpu.attention_backward))
    query, key, value = (x.requires_grad_() for x in tensors_for(1, 1, 1, 10, 16, torch.float32))
    with attention_kernel("triton"):
        out = gain_cell_attention(query, key, value, device, token_period_s=PERIOD)
    with attention_kernel("torch"):
        out.sum().backward()
    assert ran == ["backward"]


@pytest.mark.parametrize("effect", [{"input.jitter": "30 ps"}, {"readout.dnl": 0.1}, {"readout.noise": 0.1}], ids=str)
def test_an_effect_that_they_do_not_know_is_never_lost(effect: dict[str, object]) -> None:
    device, tensors = known(24, 16, **effect), tensors_for(1, 1, 1, 10, 16, torch.float32)
    given = {"token_period_s": PERIOD, "die": Die(1, device), "read_key": 1}
    with attention_kernel("triton"):
        found = gain_cell_attention(*tensors, device, **given)
    with attention_kernel("torch"):
        assert torch.equal(found, gain_cell_attention(*tensors, device, **given))
    geometry = Geometry(24, 16)
    around = circuits(10, 16, geometry, noise=True, late=True)
    with pytest.raises(ValueError, match="know neither jitter"):
        gpu.attention_forward(*inputs(10, 16, geometry), geometry, around)


def test_which_kernels_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(native, "available", lambda: "AVX2")
    monkeypatch.setattr(gpu, "unavailable", lambda device: "" if device.type == "cuda" else "no")
    taken = {}
    for kernel in ("auto", "torch", "native", "triton"):
        with attention_kernel(kernel):
            taken[kernel] = [kernel_loop._kind(device) for device in (cpu, cuda)]
    assert taken == {
        "auto": ["native", "triton"], "torch": [None, None], "native": ["native", None], "triton": ["triton"] * 2,
    }  # fmt: skip
    monkeypatch.setattr(gpu, "unavailable", lambda device: "no Triton")
    monkeypatch.setattr(native, "available", lambda: "")
    assert [kernel_loop._kind(device) for device in (cpu, cuda)] == [None, None]


def test_without_triton_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    device, tensors = known(24, 16), tensors_for(1, 1, 1, 10, 16, torch.float32)
    with attention_kernel("triton"), pytest.raises(native.Unavailable, match=r"Triton is not installed: .*fllm\[gpu\]"):
        gain_cell_attention(*tensors, device, token_period_s=PERIOD)
    assert gpu.unavailable(torch.device("cuda")) != ""


@installed
def test_without_the_interpreter_the_reason_is_named() -> None:
    program = (
        "import sys, torch; from hwsim import gpu, attention_kernel; import hwsim.functional.attention_tiled;"
        "assert 'triton' not in sys.modules; print(gpu.unavailable(torch.device('cpu'))); "
        "print(gpu.unavailable(torch.device('meta')))"
    )
    lines = _run("-c", program, interpret="0").splitlines()
    assert lines[0].startswith("Triton computes on CUDA devices, not on 'cpu'; on a CPU set TRITON_INTERPRET=1")
    assert "'meta'" in lines[1]


@installed
def test_kernels_compile_for_a_cuda_device() -> None:
    lines = _run("-m", "tests.hwsim.compiled_kernels", interpret="0").splitlines()
    kernels = [f"{name}_kernel exact" for name in ("forward", "queries", "cells", "decode")]
    assert lines == kernels * 2


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs a CUDA device, and -m gpu, which leaves the interpreter off",
)
def test_cuda_computes_what_the_cpu_does() -> None:
    geometry = Geometry(200, 64)
    query, cells, around = whole_numbers(500, 64, geometry)
    expected = dense_whole_numbers(query, cells, geometry, around)
    out, _ = gpu.attention_forward(*(_on_cuda(x) for x in (query, cells, geometry, around)))
    assert torch.equal(out.cpu(), expected)
    last = gpu.attention_decode(*(_on_cuda(x) for x in newest(query, cells, geometry, around)))
    assert torch.equal(last.cpu(), expected[:, -1:])
    for sizes in ((2, 4, 2, 300, 64), (1, 2, 1, 100, 80)):
        device = known(128, 64, **{"readout.offset_sigma": 0.3, "readout.gain_sigma": 0.05})
        tensors, given = tensors_for(*sizes, dtype=torch.float32), {"die": Die(3, device), "read_key": 5}
        with attention_kernel("torch"):
            wanted = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **given)
        with attention_kernel("triton"):
            on_cuda = [x.cuda() for x in tensors]
            found, again = (
                values_and_gradients(gain_cell_attention, on_cuda, device, PERIOD, **given) for _ in range(2)
            )
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        assert_same([x.cpu() for x in found], wanted, tolerances.FLOAT32, step=STEP, flips=tolerances.FLOAT32_FLIPS)


def whole_numbers(
    tokens: int, head_dim: int, geometry: Geometry, pulses: float = 32767.0
) -> tuple[Tensor, Cells, Circuits]:
    """Draw codes of converters, with weights that let scores and charges clip now and then."""
    rng = torch.Generator().manual_seed(2)
    age = torch.exp(-torch.arange(geometry.window) / geometry.window)[None]

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=rng).float()

    query = drawn(0, 15, 2, tokens, head_dim)
    key, value = drawn(-7, 7, 2, 1, tokens, head_dim), drawn(-7, 7, 2, 1, tokens, head_dim)
    cells = Cells(key, value, age * (0.05 / head_dim**0.5), age * pulses)
    return query, cells, Circuits(Readout(STEP, 15.0), grid=0.1 / pulses)


def dense_whole_numbers(query: Tensor, cells: Cells, geometry: Geometry, around: Circuits) -> Tensor:
    """Return the attention of cells on a pulse grid; float32 codes make all sums whole and exact in any order."""
    t, s = torch.arange(query.shape[1]), torch.arange(cells.key.shape[2])
    age, readout, grid = t[:, None] - s, around.readout, around.grid
    assert grid is not None
    live, at = (age >= 0) & (age < geometry.window), age.clamp(0, geometry.window - 1)
    scores = (query @ cells.key[:, 0].mT) * cells.weight_k[0].to(query)[at]
    charged = torch.nn.functional.hardtanh(scores, 0, 1) * cells.weight_v[0].to(query)[at] * live
    pulses = _straight(charged, charged.round())
    inverse = float(torch.tensor(1.0 / readout.step))
    limit, out = min(readout.top, inverse), torch.zeros_like(query)
    for tile in range(geometry.tiles):
        inside = s % geometry.window // geometry.slots == tile
        charge = (pulses[..., inside] @ cells.value[:, 0, inside]) * grid
        code = (charge * inverse).clamp(-limit, limit).round()
        out = out + _straight(torch.nn.functional.hardtanh(charge) * inverse, code)
    return out * torch.tensor(readout.step, dtype=out.dtype)


def _straight(smooth: Tensor, value: Tensor) -> Tensor:
    """Return a value with the gradient of another, and its very bits where none is asked for."""
    return smooth + (value - smooth).detach() if smooth.requires_grad else value


def _compare(query: Tensor, cells: Cells, geometry: Geometry, around: Circuits) -> None:
    out, saturated = gpu.attention_forward(query, cells, geometry, around, save=True)
    q, precise = doubles(query, cells)
    expected = dense_attention(q, precise, geometry, around)
    assert_codes(out, expected, around.readout.step, flips=1)
    weight = weight_of(out)
    found = gpu.attention_backward(weight, query, cells, geometry, around, saturated)
    assert_gradients(found, torch.autograd.grad((expected * weight).sum(), (q, precise.key, precise.value)))


def _noted(ran: list[str], name: str, function: object) -> object:
    return lambda *given, **named: ran.append(name) or function(*given, **named)  # type: ignore[operator]


def _on_cuda(x: object) -> object:
    """Move the tensors of an argument to the CUDA device."""
    if isinstance(x, Tensor):
        return x.cuda()
    if isinstance(x, Cells | Circuits | Readout | Noise):
        return replace(x, **{name: _on_cuda(part) for name, part in vars(x).items()})
    return x


def _run(*arguments: str, interpret: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
