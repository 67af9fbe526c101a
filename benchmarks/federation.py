"""What a federation costs beside the clients' training, what a second process brings, and how far it scales.

Run: ``python benchmarks/federation.py overhead pool scale [--small]``, or some of the three.

``overhead``: rounds of the default run in this process, three times; the time within the clients' training against that
of all rounds, by the clock and by the processor's time, which other programs do not stretch. ``pool``: the same rounds
with one thread in this process and with two processes, in turns; needs two cores that nothing else uses. ``scale``:
peak memory of all processes, and seconds, of 64 clients x 3 rounds and of 1000 clients x 1 round that asks 100 of them,
two steps of two cases each; loading is counted here alone. ``--small`` shortens everything, to try it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import RecordDict
from torch import Tensor

from fllm.config import RunConfig
from fllm.federation.server_app import Round, Start, federate
from fllm.federation.task import Hospital, Update
from fllm.local_clients import local_grid, terms_of
from fllm.model.adapters import adapter_digest, frozen_adapter
from fllm.observer import Observer
from fllm.preparation import Prepared, prepare

TIMES = 3
_GIB = 2**30


def main() -> None:
    """Measure what the command names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("overhead", "pool", "scale"))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    size: dict[str, Any] = {"num_rounds": 2, "local_steps": 2, "num_cases": 200} if given.small else {"num_rounds": 3}
    if "overhead" in given.what:
        overhead(RunConfig(**size, threads=1, lora_baselines=()))
    if "pool" in given.what:
        pool(RunConfig(**size, threads=1, lora_baselines=()))
    if "scale" in given.what:
        scale(small=given.small)


@dataclass(frozen=True)
class Spent:
    """Time by the clock and of the processor [s]."""

    clock: float
    processor: float

    @staticmethod
    def now() -> Spent:
        """Return the time that is spent so far."""
        return Spent(time.perf_counter(), time.process_time())

    def since(self, began: Spent) -> Spent:
        """Return the time since another."""
        return Spent(self.clock - began.clock, self.processor - began.processor)


@contextmanager
def timed_training() -> Iterator[list[Spent]]:
    """Give a list to which every call of :meth:`Hospital.train` adds its time."""
    trained, train = list[Spent](), Hospital.train

    def timed(self: Hospital, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        began = Spent.now()
        try:
            return train(self, adapter, server_round, proximal_mu=proximal_mu)
        finally:
            trained.append(Spent.now().since(began))

    Hospital.train = timed  # type: ignore[method-assign]
    try:
        yield trained
    finally:
        Hospital.train = train  # type: ignore[method-assign]


def rounds_of(prepared: Prepared, workers: int) -> tuple[Spent, str]:
    """Run all rounds; returns their time without loading, and the digest of the last adapter."""
    rounds: list[Round] = []
    start = Start(dict(prepared.first_adapter), frozen=frozen_adapter(prepared.model))
    with tempfile.TemporaryDirectory() as folder, local_grid(prepared, Path(folder), workers) as grid:
        _wait_until_loaded(grid)
        began = Spent.now()
        federate(grid, terms_of(prepared.config), start, rounds.append)
        spent = Spent.now().since(began)
    return spent, adapter_digest(rounds[-1].adapter)


def _wait_until_loaded(grid: Any) -> None:
    """Let every process of a pool load its model; a message that nobody knows is answered with an error at once."""
    from flwr.app import Message

    while not all(seat.ready for seat in getattr(grid, "_seats", ())):
        grid.send_and_receive([Message(RecordDict(), dst_node_id=1, message_type="query.nothing")])
        time.sleep(0.1)


def overhead(config: RunConfig) -> None:
    """Print the framework's share of the training time."""
    prepared = prepare(config, Observer())
    shares: list[Spent] = []
    for _ in range(TIMES + 1):
        with timed_training() as calls:
            spent, _ = rounds_of(prepared, 1)
        trained = Spent(sum(call.clock for call in calls), sum(call.processor for call in calls))
        shares.append(Spent(spent.clock / trained.clock - 1, spent.processor / trained.processor - 1))
        print(f"all {spent.clock:.2f} s, training {trained.clock:.2f} s, beside it {shares[-1].clock:.2%}", flush=True)
    kept = shares[1:]  # the first draws the chips
    clock, processor = (statistics.median(getattr(share, key) for share in kept) for key in ("clock", "processor"))
    print(
        f"{config.num_clients} clients x {config.num_rounds} rounds x {config.local_steps} steps: beside training"
        f" {clock:.2%} of its time, {processor:.2%} of its processor time (medians of {TIMES})"
    )


def pool(config: RunConfig) -> None:
    """Print how much faster two processes are than this one, both with one thread each."""
    prepared = prepare(config, Observer())
    torch.set_num_threads(1)
    rounds_of(prepared, 1)  # draws the chips; processes draw theirs in their first round
    ratios = []
    for _ in range(TIMES):
        (one, digest), (both, other) = rounds_of(prepared, 1), rounds_of(prepared, 2)
        if digest != other:
            raise SystemExit("the digests differ")
        alone, two = one.clock, both.clock
        ratios.append(alone / two)
        print(f"this process {alone:.2f} s, two processes {two:.2f} s, {ratios[-1]:.2f} times as fast", flush=True)
    print(f"two processes: {statistics.median(ratios):.2f} times as fast (median), same digest {digest[:16]}")


def scale(*, small: bool) -> None:
    """Print peak memory and time of many clients."""
    light: dict[str, Any] = {
        "local_steps": 2, "batch_size": 2, "threads": 1, "lora_baselines": (), "test_fraction": 0.1,
    }  # fmt: skip
    many, few = (100, 8) if small else (1000, 64)
    cases = [
        RunConfig(num_clients=few, num_rounds=3, num_cases=20 * few, **light),
        RunConfig(num_clients=many, clients_per_round=many // 10, num_rounds=1, num_cases=10 * many, **light),
    ]
    for config in cases:
        for workers in (1, 2):
            receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(target=_scaled, args=(config, workers, sender))
            process.start()
            assert process.pid is not None
            with _Watch(process.pid) as watch:
                loading, seconds, digest = receiver.recv()
                process.join()
            asked = f", {config.asked} asked" if config.asked < config.num_clients else ""
            print(
                f"{config.num_clients} clients{asked} x {config.num_rounds} rounds, {workers} worker(s):"
                f" {watch.most_bytes / _GIB:.2f} GiB, loading {loading:.1f} s, rounds {seconds:.1f} s, {digest[:16]}",
                flush=True,
            )


def _scaled(config: RunConfig, workers: int, sender: Any) -> None:
    """Run a federation in a process of its own; tells loading and rounds [s], and the digest."""
    began = time.perf_counter()
    prepared = prepare(config, Observer())
    loading = time.perf_counter() - began
    spent, digest = rounds_of(prepared, workers)
    sender.send((loading, spent.clock, digest))


class _Watch:
    """Looks at the memory of a process and all its children, proportional where they share it (Linux)."""

    def __init__(self, pid: int) -> None:
        self._pid, self.most_bytes = pid, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.2):
            self.most_bytes = max(self.most_bytes, sum(map(_own_bytes, _family(self._pid))))


def _family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # it ended
    return found


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
