"""What attention on gain cells costs to emulate, beside the softmax attention that it replaces.

Run: ``python benchmarks/attention.py [--threads 2] [--rounds 9] [--only WORD]``. Prints a table of medians and
quartiles of ratios of processor time (wall time with more threads), float32, one sequence, 8 heads of 64: each case and
its baseline take turns in one process. Parity is checked before anything is timed. Everything that a call does is in
its time, converters included.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from device_models import DeviceModel, load_device
from hwsim import Die, attention_kernel, emulate, gain_cell_attention, naive_gain_cell_attention, native
from hwsim.functional.kernel_loop import Kernel
from hwsim.functional.ring import RingBuffer

HEADS, DIMS, WINDOW, PERIOD = 8, 64, 1024, 7.8e-7
LINEAR: Mapping[str, object] = {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]}
NO_NOISE: Mapping[str, object] = {"noise.white": 0.0, "noise.flicker": 0.0, "noise.comparator": 0.0}
ONLY_READ_NOISE: Mapping[str, object] = {"input.jitter": "0 s", "readout.noise": 0.0}
"""Besides what is written: a draw for each token and dimension."""
NO_WRITE_NOISE: Mapping[str, object] = {"write.error_sigma": "0 V", "write.ktc": False}
IDEAL_CIRCUITS: Mapping[str, object] = {
    "variability.gain_sigma": 0.0, "variability.offset_sigma": "0 V", "variability.phi_offset_sigma": 0.0,
    "write.capacitor_mismatch": "0 fF**0.5", "write.dac_inl": 0.0, "write.pedestal_sigma": "0 V", "input.inl": 0.0,
    "readout.inl": 0.0, "readout.dnl": 0.0, "readout.gain_sigma": 0.0, "wire.resistance": "0 ohm",
}  # fmt: skip
"""A chip whose cells differ in their time constants alone."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        what: What is timed.
        against: What it is divided by.
        work: A call of it.
        baseline: A call of that.
        most: Largest ratio that is meant to be; smallest where ``most`` is what a baseline costs more.
    """

    what: str
    against: str
    work: Work
    baseline: Work
    most: str = ""


def device(**overrides: object) -> DeviceModel:
    """Return the published device with a window of 1024 and some changes."""
    return load_device("gaincell_28nm", {"window.tokens": WINDOW, **overrides})


def attention(tokens: int, kernel: Kernel, made: DeviceModel, *, backward: bool = False, **chip: object) -> Work:
    """Return a call of the emulated attention."""
    inputs = [torch.rand(1, HEADS, tokens, DIMS) * scale for scale in (1.0, 0.9, 0.9)]
    grad = torch.randn(1, HEADS, tokens, DIMS)

    def work() -> Tensor:
        with attention_kernel(kernel):
            out = gain_cell_attention(*inputs, made, token_period_s=PERIOD, **chip)  # type: ignore[arg-type]
        if backward:
            torch.autograd.grad(out, inputs, grad)
        return out

    for x in inputs:
        x.requires_grad_(backward)
    return work


def softmax(tokens: int, *, backward: bool = False) -> Work:
    """Return a call of PyTorch's attention."""
    inputs = [torch.randn(1, HEADS, tokens, DIMS, requires_grad=backward) for _ in range(3)]
    grad = torch.randn(1, HEADS, tokens, DIMS)

    def work() -> Tensor:
        out = scaled_dot_product_attention(*inputs, is_causal=True)
        if backward:
            torch.autograd.grad(out, inputs, grad)
        return out

    return work


def naive(tokens: int, made: DeviceModel, *, backward: bool) -> Work:
    """Return a call of the equations as they stand."""
    inputs = [torch.rand(1, HEADS, tokens, DIMS) * scale for scale in (1.0, 0.9, 0.9)]
    for x in inputs:
        x.requires_grad_(backward)

    def work() -> Tensor:
        out = naive_gain_cell_attention(*inputs, made, token_period_s=PERIOD)
        if backward:
            torch.autograd.grad(out.sum(), inputs)
        return out

    return work


def cases() -> Iterator[Case]:
    """Yield all lines, in the order of the table."""
    linear, cubic = device(**LINEAR), device()
    sdpa = "softmax attention"
    short, long = ("0.33", "0.20") if "AVX-512" in native.available() else ("0.65", "0.40")
    bars: dict[Kernel, dict[int, tuple[str, str]]] = {
        "torch": {1024: ("1.1", "1.1"), 4096: ("0.7", "0.75"), 16384: ("0.25", "")},
        "native": {1024: (short, short), 4096: (long, long), 16384: ("", "")},
    }
    kernels: list[Kernel] = ["torch", *(["native"] if native.available() else [])]  # type: ignore[list-item]
    for kernel in kernels:
        for tokens, (forward, both) in bars[kernel].items():
            work, baseline = attention(tokens, kernel, linear), softmax(tokens)
            yield Case(f"{kernel}, forward, T = {tokens}", sdpa, work, baseline, forward)
            if tokens < 16384:
                work, baseline = attention(tokens, kernel, linear, backward=True), softmax(tokens, backward=True)
                yield Case(f"{kernel}, forward + backward, T = {tokens}", sdpa, work, baseline, both)
    quarter = attention(4096, "torch", linear)
    yield Case("torch, forward, T = 16384, per token", "T = 4096", attention(16384, "torch", linear),
               lambda: [quarter() for _ in range(4)], "1.4")  # fmt: skip
    for tokens, backward, least in ((1024, False, "0.1"), (256, True, "0.17")):  # the twin keeps (T, T) for each query
        what = "torch, forward + backward" if backward else "torch, forward"
        work, twin = attention(tokens, "torch", linear, backward=backward), naive(tokens, linear, backward=backward)
        yield Case(f"{what}, T = {tokens}", "naive twin", work, twin, least)
    quiet, noisy = device(**LINEAR, **NO_NOISE, **ONLY_READ_NOISE), device(**LINEAR, **ONLY_READ_NOISE)
    for kernel, most in zip(kernels, ("2.7", "2.3"), strict=False):
        work, baseline = attention(2048, kernel, noisy, read_key=1), attention(2048, kernel, quiet, read_key=1)
        yield Case(f"{kernel}, noise of scores and charges, T = 2048", "without", work, baseline, most)
    for kernel, most in zip(kernels, ("3.7", "3"), strict=False):
        work, baseline = attention(2048, kernel, cubic), attention(2048, kernel, linear)
        yield Case(f"{kernel}, cubic cells, T = 2048", "linear cells", work, baseline, most)
    spread, alike = (
        device(**LINEAR, **IDEAL_CIRCUITS, **{"retention.tau_sigma_ln": sigma}) for sigma in (0.4, 0.0)
    )  # fmt: skip
    for kernel in kernels:
        work = attention(1024, kernel, spread, die=Die(1, spread))
        yield Case(f"{kernel}, a time constant for each cell", "one", work, attention(1024, kernel, alike), "3")
    perfect = device(**LINEAR, **IDEAL_CIRCUITS, **NO_NOISE, **ONLY_READ_NOISE, **NO_WRITE_NOISE,
                     **{"retention.tau_sigma_ln": 0.0, "write.pedestal_mean": "0 V"})  # fmt: skip
    for kernel in kernels:
        work = attention(1024, kernel, perfect, die=Die(0, perfect), read_key=1)
        yield Case(f"{kernel}, a chip without errors, T = 1024", "the design", work,
                   attention(1024, kernel, perfect), "1.05")  # fmt: skip
    for kernel, most in zip(kernels, ("1.4", "0.6"), strict=False):
        yield decode(linear, kernel, most)
    for kernel, most in zip(kernels, ("1.10", "0.90"), strict=False):
        work = training_step(emulate(small_model(), linear, linears=False, die_seed=None, noise_seed=None,
                                     token_period=PERIOD), kernel)  # fmt: skip
        yield Case(f"{kernel}, training step of two layers, T = 1024", "softmax model", work,
                   training_step(small_model(), "torch"), most)  # fmt: skip


def small_model() -> LlamaForCausalLM:
    """Return a model of two layers, 512 wide, with 8 heads."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=HEADS,
        attn_implementation="sdpa", max_position_embeddings=WINDOW,
    ))  # fmt: skip


def training_step(model: nn.Module, kernel: Kernel) -> Work:
    """Return forward and backward pass over 1024 tokens, and a step of AdamW."""
    ids = torch.randint(0, 512, (1, WINDOW))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-5)

    def work() -> None:
        with attention_kernel(kernel):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return work


def decode(made: DeviceModel, kernel: Kernel, most: str) -> Case:
    """Return a step of generation with a full window."""
    with attention_kernel(kernel):
        ring = RingBuffer(made, 1, HEADS, HEADS, DIMS, token_period_s=PERIOD)
    query, key, value = (torch.rand(1, HEADS, 1, DIMS) * 0.9 for _ in range(3))
    for _ in range(WINDOW):
        ring.step(query, key, value)
    keys, values = (torch.randn(1, HEADS, WINDOW, DIMS) for _ in range(2))

    def baseline() -> Tensor:
        keys[:, :, 5:6], values[:, :, 5:6] = key, value
        return scaled_dot_product_attention(query, keys, values)

    def many(work: Work) -> Work:
        return lambda: [work() for _ in range(20)]

    step = many(lambda: ring.step(query, key, value))
    return Case(f"{kernel}, decode step", "softmax attention + cache", step, many(baseline), most)


def check_parity() -> None:
    """Compare what is timed with the naive twin in float64.

    Raises:
        SystemExit: If more than one output in a thousand differs by a code.
    """
    kernels: list[Kernel] = ["torch", *(["native"] if native.available() else [])]  # type: ignore[list-item]
    for overrides in ({}, LINEAR):
        made = device(**overrides)
        inputs = [torch.rand(1, 2, 200, DIMS, dtype=torch.float64) * scale for scale in (1.0, 0.9, 0.9)]
        expected = naive_gain_cell_attention(*inputs, made, token_period_s=PERIOD)
        for kernel in kernels:
            with attention_kernel(kernel):
                found = gain_cell_attention(*(x.float() for x in inputs), made, token_period_s=PERIOD)
            if ((found - expected).abs() > 1e-3).double().mean() > 1e-3:
                raise SystemExit(f"{kernel} differs from the equations; nothing was timed")


def ratios(case: Case, rounds: int, clock: Callable[[], float]) -> list[float]:
    """Time a case and its baseline in turns."""

    def seconds(work: Work) -> float:
        start = clock()
        work()
        return clock() - start

    seconds(case.work), seconds(case.baseline)
    found = []
    for _ in range(rounds):
        ours = seconds(case.work)
        theirs = seconds(case.baseline)
        found.append(ours / theirs)
        if theirs > 5.0 and len(found) >= 2:
            break
    return found


def quartiles(found: list[float]) -> tuple[float, float, float]:
    """Return the quartiles, or least, median and largest of very few."""
    if len(found) < 3:
        return min(found), statistics.median(found), max(found)
    low, middle, high = statistics.quantiles(found, n=4)
    return low, middle, high


def memory() -> str:
    """Return what the peak memory grows by in a forward and backward pass at T = 4096, in a process of its own."""
    program = (
        "import pathlib, re, torch; from attention import LINEAR, attention, device; torch.set_num_threads(1)\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024\n"
        "attention(256, 'torch', device(**LINEAR), backward=True)()\n"
        "work = attention(4096, 'torch', device(**LINEAR), backward=True)\n"
        "before = peak(); work(); print(round(peak() - before), 'MiB')"
    )
    if not Path("/proc/self/status").exists():
        return "not measured on this platform"
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    check_parity()
    clock = time.process_time if given.threads == 1 else time.perf_counter
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {given.threads} threads, "
          f"kernel in C: {native.available() or 'none'}\n")  # fmt: skip
    print("| case | against | ratio | quartiles | at most |\n|---|---|---|---|---|")
    for case in cases():
        if given.only in case.what:
            found = ratios(case, given.rounds, clock)
            low, middle, high = quartiles(found)
            print(f"| {case.what} | {case.against} | {middle:.3g} | {low:.3g} - {high:.3g} | {case.most} |", flush=True)
    if not given.only:
        print(f"\nExtra memory, forward + backward, T = 4096: {memory()} (at most 128 MiB)")


if __name__ == "__main__":
    main()
