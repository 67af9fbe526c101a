"""What a sweep costs beside the evaluations in it, and what a second worker brings.

Run: ``python benchmarks/sweeps.py RUN [--full]`` with the folder of a finished run. In turns, in one process that waits
for its workers: the bare evaluations of all points and dies (model loaded, one thread), the sweep with one worker, the
sweep with two. Prints seconds and their ratios; ``--full`` takes the sweep of the README, 4 x 6 points.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from fllm.cases import load_cases
from fllm.config import validate_config
from fllm.preparation import HeldOut, device_of, evaluation_die, load_bench
from fllm.results import read_result
from fllm.sweeps.design import parse_vary
from fllm.sweeps.plan import Plan, make_plan
from fllm.sweeps.sweep import How, sweep

SMALL = ("retention.tau=1 ms,5 ms", "readout.bits=4:6")
FULL = ("retention.tau=0.2 ms,1 ms,5 ms,50 ms", "readout.bits=3:8")
DIES = 4


def main() -> None:
    """Time the three."""
    run = Path(sys.argv[1])
    config = validate_config(read_result(run / "result.json")["config"], str(run))
    varied = [parse_vary(text) for text in (FULL if "--full" in sys.argv else SMALL)]
    plan = make_plan(config, varied, design="grid", points=None, mode="evaluate", dies=DIES, seeds=[config.seed])
    bare, one, two = _bare(plan), _swept(plan, run, 1), _swept(plan, run, 2)
    print(f"{len(plan.points)} points, {DIES} dies: bare {bare:.1f} s, one worker {one:.1f} s, two workers {two:.1f} s")
    print(f"sweep / bare evaluations:  one worker {one / bare:.2f}, two workers {two / bare:.2f}")
    print(f"one worker / two workers:  {one / two:.2f}")


def _bare(plan: Plan) -> float:
    """Time nothing but scoring: [s] over all points and dies."""
    torch.set_num_threads(1)
    cases = load_cases(plan.config)
    bench = load_bench(plan.config, cases.corpus.task, device_of(plan.config))
    test = HeldOut(bench.encode(cases.split.test).of(cases.split.test), [])
    total = 0.0
    dies = [evaluation_die(plan.config, device_of(plan.config), number) for number in range(plan.dies)]
    for point in plan.points:
        config = plan.config_of(point, plan.seeds[0])
        device = device_of(config)
        for die in dies:
            began = time.perf_counter()
            bench.score(test, device, die.on(device), bench.loaded.placing.token_period_s)
            total += time.perf_counter() - began
    return total


def _swept(plan: Plan, run: Path, workers: int) -> float:
    """Time a sweep from its start to its report [s]."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        sweep(plan, adapters=[run], out=Path(folder), how=How(workers=workers))
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
