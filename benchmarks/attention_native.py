"""What the C kernels of gain-cell attention cost beside softmax attention, in one process, in turns, on one thread.

Run: ``python benchmarks/attention_native.py``. For each window and each variant that the processor runs: medians of the
ratio of processor time to torch's causal scaled_dot_product_attention, and the share of the multiply-add rate that a
loop of independent multiply-adds reaches in the same round (a backward pass counts as 2.5 forward passes). Then what
the cubic law, mismatch and noise add, and decode beside softmax attention over the same cache with one row written. A
result that differs from float64 by more than a rounding tie stops the program before anything is printed.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as softmax_attention

from hwsim import native
from hwsim.native import Cells, Circuits, Geometry, Noise, Readout, build

HEADS, HEAD_DIM, SLOTS = 8, 64, 64
SHAPES = ((256, 256, 25), (1024, 64, 25), (1024, 1024, 25), (4096, 1024, 9))
"""Tokens, window, rounds."""
LARGEST_SHARE = 1e-4
"""Of outputs that may lie one code from float64."""


def main() -> None:
    """Check, time and print."""
    torch.set_num_threads(1)
    variants = build.variants()
    print({name: native.available(name) or build.load(name) for name in variants})
    variants = [name for name in variants if native.available(name)]
    print(f"{'tokens window':<16}{'variant':<10}{'forward':>9}{'of peak':>9}{'+backward':>11}{'of peak':>9}")
    for tokens, window, rounds in SHAPES:
        _attention(tokens, window, rounds, variants)
    for name in variants:
        _extras(name)
        _decode(name)


def _attention(tokens: int, window: int, rounds: int, variants: list[str]) -> None:
    query, cells, geometry, circuits = _inputs(tokens, window)
    q, k, v = (x.clone().requires_grad_() for x in (query[None], cells.key[None, :, 0], cells.value[None, :, 0]))
    grad = torch.randn_like(query)
    operations = 4.0 * HEAD_DIM * HEADS * float((torch.arange(tokens) + 1).clamp(max=window).sum())

    def both(name: str) -> None:
        _, saturated = native.attention_forward(query, cells, geometry, circuits, save=True, variant=name)
        native.attention_backward(grad, query, cells, geometry, circuits, saturated, variant=name)

    def softmax_both() -> None:
        torch.autograd.grad(softmax_attention(q, k, v, is_causal=True), (q, k, v), grad[None])

    for name in variants:
        _check(native.attention_forward(query, cells, geometry, circuits, variant=name)[0], query, cells, geometry)
        both(name)
    found: dict[str, list[list[float]]] = {name: [[], [], [], []] for name in variants}
    for _ in range(rounds):
        with torch.no_grad():
            softmax = _seconds(lambda: softmax_attention(q, k, v, is_causal=True))
        softmax_two = _seconds(softmax_both)
        for name, columns in found.items():
            rate = _peak(name)
            forward = _seconds(
                lambda: native.attention_forward(query, cells, geometry, circuits, variant=name)  # noqa: B023
            )
            two = _seconds(lambda: both(name))  # noqa: B023 - called before the next variant
            row = (forward / softmax, operations / forward / rate, two / softmax_two, 3.5 * operations / two / rate)
            for column, x in zip(columns, row, strict=True):
                column.append(x)
    for name, columns in found.items():
        a, b, c, d = map(statistics.median, columns)
        print(f"{f'{tokens} {window}':<16}{name:<10}{a:>9.3f}{b:>9.2f}{c:>11.3f}{d:>9.2f}")


def _extras(name: str) -> None:
    """Print forward and forward + backward with more effects, in times of plain cells; 2048 tokens, window 1024."""
    query, cells, geometry, circuits = _inputs(2048, 1024)
    tiles, places = geometry.tiles, (HEADS, 2048, geometry.tiles)
    circuit = torch.randn(HEADS, tiles, HEAD_DIM)
    readout = replace(circuits.readout, gain=1 + 0.05 * circuit, offset=0.3 * circuit)
    start = torch.randint(0, (1 << 20) - HEAD_DIM, places, dtype=torch.int32)
    pool, sigma = torch.randn(1 << 20), torch.full((HEADS, 2048), 0.02)
    noise = Noise(pool, sigma, start, (0.1, 1e-3, 1e-3), start.flip(1).contiguous())
    cubic = Cells(
        cells.key.repeat(1, 3, 1, 1), cells.value.repeat(1, 3, 1, 1), cells.weight_k.repeat(3, 1) / 3,
        cells.weight_v.repeat(3, 1) / 3,
    )  # fmt: skip
    ways = {
        "plain": (cells, circuits, None), "cubic": (cubic, circuits, None),
        "cubic, linear slope": (cubic, circuits, cells),
        "mismatch": (cells, Circuits(readout, None, 0.02 * torch.randn(HEADS, 1024)), None),
        "noise of charges": (cells, replace(circuits, noise=replace(noise, score_sigma=None)), None),
        "noise": (cells, replace(circuits, noise=noise), None),
    }  # fmt: skip
    times: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    grad = torch.randn_like(query)
    for _ in range(9):
        for way, (c, around, slopes) in ways.items():
            begin = time.process_time()
            _, saturated = native.attention_forward(query, c, geometry, around, save=True, variant=name)
            middle = time.process_time()
            native.attention_backward(grad, query, c, geometry, around, saturated, slopes=slopes, variant=name)
            times[way][0].append(middle - begin)
            times[way][1].append(time.process_time() - begin)
    for way, columns in times.items():
        ratios = [
            statistics.median(a / b for a, b in zip(x, y, strict=True))
            for x, y in zip(columns, times["plain"], strict=True)
        ]
        print(f"2048 1024 {name:<10}{way:<20} forward x{ratios[0]:.2f}, with backward x{ratios[1]:.2f}")


def _decode(name: str) -> None:
    for batch, window in ((1, 64), (1, 256), (1, 1024), (4, 1024)):
        n = batch * HEADS
        query, cells, geometry, circuits = _inputs(window, window, n)
        position, slot = torch.full((n,), 3 * window + 5), torch.tensor([5])
        q, k, v = (x.view(batch, HEADS, -1, HEAD_DIM).clone() for x in (query[:, -1:], cells.key, cells.value))
        row = torch.randn(batch, HEADS, 1, HEAD_DIM)

        def softmax(q: Tensor = q, k: Tensor = k, v: Tensor = v, row: Tensor = row) -> None:
            k.index_copy_(2, slot, row)  # noqa: B023
            v.index_copy_(2, slot, row)  # noqa: B023
            softmax_attention(q, k, v)

        last = query[:, -1:].contiguous()
        decode = partial(native.attention_decode, last, cells, position, geometry, circuits, variant=name)
        ratios, times = [], []
        for _ in range(15):
            softmax_time = _seconds(softmax, 20)
            times.append(_seconds(decode, 20))
            ratios.append(times[-1] / softmax_time)
        microseconds, ratio = statistics.median(times) * 1e6, statistics.median(ratios)
        print(f"decode {name:<10} batch {batch} window {window:<5} {microseconds:6.0f} us, x{ratio:.2f}")


def _inputs(tokens: int, window: int, heads: int = HEADS) -> tuple[Tensor, Cells, Geometry, Circuits]:
    """Return whole codes in 16 pulse widths and 8 voltages, with a time constant of 5 ms and tokens of 1 us."""
    rng = torch.Generator().manual_seed(0)
    query = torch.randint(0, 16, (heads, tokens, HEAD_DIM), generator=rng).float()
    key, value = ((2 * torch.randint(0, 8, (heads, 1, tokens, HEAD_DIM), generator=rng) - 7).float() for _ in range(2))
    decay = torch.exp(-torch.arange(window) * 2e-4)[None]
    cells = Cells(key, value, decay * (0.2 * 0.9 / 14 / 15), decay * (0.5 * 0.9 / 14))
    return query, cells, Geometry(window, SLOTS), Circuits(Readout(1 / 15, 15))


def _check(found: Tensor, query: Tensor, cells: Cells, geometry: Geometry) -> None:
    """Compare the first head with float64; whole codes make the products exact but for the weights."""
    tokens = query.shape[1]
    index = torch.arange(tokens)
    age = index[:, None] - index
    read = ((age >= 0) & (age < geometry.window)).double()
    at = age.clamp(0, geometry.window - 1)
    phi = (query[0].double() @ cells.key[0, 0].double().T * cells.weight_k[0].double()[at]).clamp(0, 1) * read
    phi *= cells.weight_v[0].double()[at]
    tile, out = index % geometry.window // SLOTS, torch.zeros(tokens, HEAD_DIM, dtype=torch.float64)
    for j in range(geometry.tiles):
        charge = phi[:, tile == j] @ cells.value[0, 0].double()[tile == j]
        out += (charge.clamp(-1, 1) * 15).round() / 15
    share = ((found[0] - out).abs() > 1e-5).double().mean().item()
    if share > LARGEST_SHARE:
        raise SystemExit(f"{share:.2g} of the outputs differ from float64 at {tokens} tokens, window {geometry.window}")


def _peak(name: str) -> float:
    """Return operations per second of independent multiply-adds."""
    built = build.load(name)
    assert isinstance(built, build.Built)
    loop = built.library.fma_operations
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_int64, ctypes.c_void_p]
    sink = ctypes.c_float()
    start = time.process_time()
    operations = float(loop(500_000, ctypes.addressof(sink)))
    return operations / (time.process_time() - start)


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    """Return the processor time of one call."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main()
