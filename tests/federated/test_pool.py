"""Clients in processes: the same bits as in one process, and processes that come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fllm.federation.engines import InProcessGrid
from fllm.federation.pool import PoolGrid, WorkerFailed
from fllm.federation.server_app import RoundFailed
from fllm.local_clients import local_grid
from fllm.model.adapters import adapter_digest
from fllm.preparation import Prepared
from tests.federated.faulty import (
    CANARY,
    CLIENTS,
    die_at_once,
    make_app,
    make_counting_app,
    make_nothing,
    make_once,
    make_slowly,
    pids,
    refuse_input,
)
from tests.federated.test_faults import played
from tests.sweeps.light import runs, wait_for


@pytest.fixture
def open_pools() -> Iterator[list[PoolGrid]]:
    """Return a list of pools that end with the test, even where it fails."""
    pools: list[PoolGrid] = []
    yield pools
    for pool in pools:
        pool.close()


def digests(grid: InProcessGrid | PoolGrid) -> list[str]:
    return [adapter_digest(found.adapter) for found in played(grid)]


def asked(pool: PoolGrid, nodes: list[int], slow: int = -1) -> list[Message]:
    """Ask nodes to train; return their replies as they come."""
    content = RecordDict({"config": ConfigRecord({"slow": slow})})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in nodes]
    replies = pool.send_and_receive(messages)
    order = {message.metadata.message_id: node for message, node in zip(messages, nodes, strict=True)}
    assert [order[reply.metadata.reply_to_message_id] for reply in replies] == nodes
    return replies


def told(reply: Message, key: str) -> int:
    found = reply.content["metrics"][key]
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_digest_does_not_depend_on_the_number_of_processes(workers: int, open_pools: list[PoolGrid]) -> None:
    open_pools.append(PoolGrid(make_app, CLIENTS, workers))
    assert len(pids(open_pools[0])) == workers
    assert digests(open_pools[0]) == digests(InProcessGrid(make_app(), CLIENTS))


def test_there_are_no_more_processes_than_clients(open_pools: list[PoolGrid]) -> None:
    open_pools.append(PoolGrid(make_app, 1, 3))
    assert len(pids(open_pools[0])) == 1


def test_order_of_replies_and_contexts_of_clients_do_not_depend_on_who_serves_whom(open_pools: list[PoolGrid]) -> None:
    """Each time another client is slow, and the last time one of the processes is new."""
    (pool,) = open_pools[:] = [PoolGrid(make_counting_app, CLIENTS, 2)]
    served: dict[int, set[int]] = {partition: set() for partition in range(CLIENTS)}
    for time_, nodes in enumerate(([3, 1, 4, 2], [1, 2, 3, 4], [4, 2, 1, 3]), 1):
        if time_ == 3:
            kill(pool)
        for node, reply in zip(nodes, asked(pool, nodes, slow=time_), strict=True):
            assert (told(reply, "partition-id"), told(reply, "count")) == (node - 1, time_)
            served[node - 1].add(told(reply, "process"))
    assert any(len(processes) > 1 for processes in served.values())


def all_loaded(pool: PoolGrid) -> None:
    """Play until all processes have loaded their clients."""
    while not all(seat.ready for seat in pool._seats):
        played(pool)


def kill(pool: PoolGrid) -> None:
    """Kill one process of a pool, and wait until it is gone."""
    victim = pool._seats[0].process
    assert victim._process.pid is not None
    os.kill(victim._process.pid, signal.SIGKILL)
    assert wait_for(lambda: not victim.lives())


def test_process_that_dies_at_rest_costs_no_client_its_round(open_pools: list[PoolGrid]) -> None:
    (pool,) = open_pools[:] = [PoolGrid(make_app, CLIENTS, 2)]
    all_loaded(pool)
    before = pids(pool)
    kill(pool)
    found = played(pool)
    assert [one.failures for one in found] == [(), ()]
    assert [adapter_digest(one.adapter) for one in found] == digests(InProcessGrid(make_app(), CLIENTS))
    assert len(before & pids(pool)) == 1 and len(pids(pool)) == 2


def test_federation_goes_on_without_a_process_that_dies_while_it_loads(
    tmp_path: Path, open_pools: list[PoolGrid]
) -> None:
    (pool,) = open_pools[:] = [PoolGrid(partial(make_once, tmp_path), CLIENTS, 2)]
    all_loaded(pool)
    assert len(pids(pool)) == 1
    assert digests(pool) == digests(InProcessGrid(make_app(), CLIENTS))


def test_loading_is_on_no_clients_time(open_pools: list[PoolGrid]) -> None:
    """All must come through although loading takes twice as long as a client may, also in a process that is new."""
    (pool,) = open_pools[:] = [PoolGrid(partial(make_slowly, 1.6), CLIENTS, 2, 0.8)]
    assert [one.failures for one in played(pool)] == [(), ()]
    all_loaded(pool)
    kill(pool)
    assert [one.failures for one in played(pool)] == [(), ()]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (partial(make_nothing, FileNotFoundError), r"FileNotFoundError$"),
        (refuse_input, r"the folder: data are gone$"),
        (die_at_once, r"its process died \(exit code -9\)$"),
    ],
    ids=["raises", "refuses its input", "dies"],
)
def test_clients_that_cannot_be_loaded_end_the_federation(
    make: partial, reason: str, open_pools: list[PoolGrid]
) -> None:
    open_pools.append(PoolGrid(make, CLIENTS, 1))
    with pytest.raises(WorkerFailed, match=r"could (not )?load the clients: .*" + reason) as failed:
        played(open_pools[0])
    assert CANARY not in str(failed.value)


def test_process_that_cannot_be_replaced_ends_it_too(tmp_path: Path, open_pools: list[PoolGrid]) -> None:
    (pool,) = open_pools[:] = [PoolGrid(partial(make_once, tmp_path), CLIENTS, 1)]
    assert digests(pool) == digests(InProcessGrid(make_app(), CLIENTS))
    kill(pool)
    with pytest.raises(WorkerFailed, match="no process of the federation could load the clients"):
        played(pool)


def test_run_says_in_a_line_that_a_process_could_not_load_its_clients(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(PoolGrid):
        def __init__(self, *_: object) -> None:
            super().__init__(refuse_input, CLIENTS, 1)
            made.append(self)

    made: list[PoolGrid] = []
    monkeypatch.setattr("fllm.local_clients.PoolGrid", Broken)
    with pytest.raises(RoundFailed, match="data are gone"), local_grid(prepared, tmp_path, 2) as grid:
        asked_of = pids(made[0])
        played(grid)
    assert not any(runs(pid) for pid in asked_of)


def test_close_ends_every_process_even_a_busy_one() -> None:
    pool = PoolGrid(make_app, CLIENTS, 2)
    played(pool)
    own = pids(pool)
    sleeping = Message(
        RecordDict({"config": ConfigRecord({"fault": "hangs", "server-round": 1})}), dst_node_id=3, message_type="train"
    )
    seat = pool._seats[0]
    seat.give(sleeping, pool._contexts[3], None)
    assert all(runs(pid) for pid in own)
    pool.close()
    assert not any(runs(pid) for pid in own)
    pool.close()  # once more does no harm


PLAYS = """
import sys
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from tests.federated.faulty import make_app, pids
from fllm.federation.pool import PoolGrid

if __name__ == "__main__":
    pool = PoolGrid(make_app, 4, 2)
    print(*pids(pool), flush=True)
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"server-round": 1, "fault": "hangs"})})
    try:
        pool.send_and_receive([Message(content, dst_node_id=3, message_type="train")])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        if sys.argv[1:] != ["careless"]:
            pool.close()
"""


@pytest.mark.parametrize(("how", "careless"), [("SIGINT", ""), ("SIGKILL", "careless")])
def test_nothing_is_left_behind(tmp_path: Path, how: str, careless: str) -> None:
    """Ctrl-C as a terminal sends it, to every process; and a server that is killed."""
    script = tmp_path / "plays.py"
    script.write_text(textwrap.dedent(PLAYS), encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, str(script), *([careless] if careless else [])], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, start_new_session=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert server.stdout is not None and server.stderr is not None
    own = [int(pid) for pid in server.stdout.readline().split()]
    assert len(own) == 2
    time.sleep(1.0)
    os.killpg(server.pid, signal.SIGINT) if how == "SIGINT" else server.kill()
    said, complaints = server.communicate(timeout=30)
    assert wait_for(lambda: not any(runs(pid) for pid in own))
    if how == "SIGINT":
        assert said.split() == ["interrupted"]
        assert "Traceback" not in complaints
