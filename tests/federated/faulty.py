"""Clients without torch, made in a moment in any process; one does whatever its messages tell it to do wrong.

Setting ``fault`` of a message names what :data:`BAD` does wrong in round :data:`WHEN`; ``after`` a round it is well.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fllm.federation.pool import PoolGrid

CANARY = "zebrafish"
BAD, WHEN, CLIENTS = 2, 1, 4
A, B = "a.lora_A.weight", "a.lora_B.weight"
Arrays = dict[str, NDArray[Any]]


def make_app() -> ClientApp:
    """Make the application of all clients."""
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"partition-id": partition_of(context)})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config, partition = message.content["config"], partition_of(context)
        number = int(config["server-round"])
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        change = np.random.default_rng([partition, number])
        arrays = {name: value + change.normal(size=value.shape).astype(np.float32) for name, value in arrays.items()}
        metrics = {"partition-id": partition, "num-examples": (10, 1, 29, 4)[partition % 4], "train-loss": 1.0}
        if partition == BAD and number == WHEN and "fault" in config:
            return FAULTS[config["fault"]](message, arrays, metrics)
        return reply(message, arrays, metrics)

    return app


def pids(pool: PoolGrid) -> set[int]:
    """Return the processes of a pool."""
    return {seat.process._process.pid for seat in pool._seats if seat.process._process.pid is not None}


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def reply(message: Message, arrays: Arrays, metrics: dict[str, Any], **others: Any) -> Message:
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics), **others}), reply_to=message)


# What can go wrong: takes the message and what a sound reply would hold.


def raises(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    raise ValueError(f"bad row: {CANARY} with pain")


def raises_its_own(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    raise type(CANARY, (Exception,), {})


def dies(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def sleeps(message: Message, arrays: Arrays, metrics: dict[str, Any], seconds: float) -> Message:
    time.sleep(seconds)
    return reply(message, arrays, metrics)


def value(message: Message, arrays: Arrays, metrics: dict[str, Any], number: float) -> Message:
    arrays[B][1, 1] = number
    return reply(message, arrays, metrics)


def each(message: Message, arrays: Arrays, metrics: dict[str, Any], change: Callable[[NDArray[Any]], Any]) -> Message:
    return reply(message, {name: change(array) for name, array in arrays.items()}, metrics)


def other_names(message: Message, arrays: Arrays, metrics: dict[str, Any], old: str | None, new: str | None) -> Message:
    moved = arrays.pop(old) if old else arrays[B]
    return reply(message, arrays | ({new: moved} if new else {}), metrics)


def metric(message: Message, arrays: Arrays, metrics: dict[str, Any], key: str, told: Any) -> Message:
    if told is None:
        del metrics[key]
    else:
        metrics[key] = told
    return reply(message, arrays, metrics)


def empty(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    return reply(message, {}, metrics)


def unreadable(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    found = reply(message, arrays, metrics)
    found.content["arrays"][B] = Array("float32", (3, 2), "numpy.ndarray", CANARY.encode())
    return found


def lacks(message: Message, arrays: Arrays, metrics: dict[str, Any], record: str) -> Message:
    found = reply(message, arrays, metrics)
    del found.content[record]
    return found


def twice(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    return reply(message, arrays, metrics, more=ArrayRecord({CANARY: Array(np.ones(1, np.float32))}))


def words(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Message:
    return Message(RecordDict({"note": ConfigRecord({"text": CANARY})}), reply_to=message)


def nothing(message: Message, arrays: Arrays, metrics: dict[str, Any]) -> Any:
    return None


LATE_S = 1.5
"""[s] that a pool of these tests waits for a client."""
FAULTS: dict[str, Callable[[Message, Arrays, dict[str, Any]], Any]] = {
    "raises": raises,
    "raises a type of its own": raises_its_own,
    "dies": dies,
    "hangs": partial(sleeps, seconds=3600),
    "answers too late": partial(sleeps, seconds=LATE_S + 1),
    "nan": partial(value, number=np.nan),
    "inf": partial(value, number=np.inf),
    "-inf": partial(value, number=-np.inf),
    "large": partial(value, number=-0.99e15),
    "huge": partial(value, number=-3e38),
    "transposed": partial(each, change=lambda array: array.T),
    "one number": partial(each, change=lambda array: np.array(1, np.float32)),
    "further axis": partial(each, change=lambda array: array[None]),
    "float64": partial(each, change=lambda array: array.astype(np.float64)),
    "int8": partial(each, change=lambda array: array.astype(np.int8)),
    "bool": partial(each, change=lambda array: array > 0),
    "complex": partial(each, change=lambda array: array.astype(np.complex64)),
    "lacks a tensor": partial(other_names, old=B, new=None),
    "further tensor": partial(other_names, old=None, new=CANARY),
    "renamed tensor": partial(other_names, old=B, new=CANARY),
    "empty arrays": empty,
    "unreadable arrays": unreadable,
    "no arrays": partial(lacks, record="arrays"),
    "no metrics": partial(lacks, record="metrics"),
    "two records of arrays": twice,
    "no number of cases": partial(metric, key="num-examples", told=None),
    "no loss": partial(metric, key="train-loss", told=None),
    "loss is nan": partial(metric, key="train-loss", told=float("nan")),
    "loss is a list": partial(metric, key="train-loss", told=[1.0, 2.0]),
    "zero cases": partial(metric, key="num-examples", told=0),
    "negative cases": partial(metric, key="num-examples", told=-3),
    "half a case": partial(metric, key="num-examples", told=2.5),
    "infinitely many cases": partial(metric, key="num-examples", told=float("inf")),
    "more cases than a float holds": partial(metric, key="num-examples", told=10**400),
    "infinitely many events": partial(metric, key="count/tokens", told=float("inf")),
    "events of no layer": partial(metric, key=f"count/{CANARY}", told=[1] * 3),
    "words": words,
    "no message": nothing,
}


# Other clients for tests of the pool.


def make_counting_app() -> ClientApp:
    """Make clients that count their messages in their context, and write down which process served them."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        known = context.state.metric_records.get("kept", MetricRecord({"count": 0}))
        context.state["kept"] = MetricRecord({"count": int(known["count"]) + 1})
        told = {"count": known["count"] + 1, "partition-id": partition_of(context), "process": os.getpid()}
        if message.content and message.content["config"].get("slow") == partition_of(context):
            time.sleep(0.5)
        return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)

    return app


def make_slowly(seconds: float) -> ClientApp:
    """Make the clients after a time that is longer than they may take."""
    time.sleep(seconds)
    return make_app()


def make_nothing(kind: type[Exception]) -> ClientApp:
    raise kind(f"no such file: {CANARY}")


def refuse_input() -> ClientApp:
    from device_models import InputError

    raise InputError("data are gone", where="the folder")


def die_at_once() -> ClientApp:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def make_once(folder: Path) -> ClientApp:
    """Make the clients the first time alone; whoever comes later dies of it."""
    try:
        with (folder / "made").open("x"):
            return make_app()
    except FileExistsError:
        return die_at_once()
