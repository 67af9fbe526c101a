"""The Flower ClientApp: unpack a message, train, pack the reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor

from device_models.costs import HALF_PRECISION
from fllm.federation.exchange import PLAIN, Exchange, rank_of
from fllm.federation.kept import Kept
from hwsim import EventCounts
from hwsim.events import EVENTS

if TYPE_CHECKING:
    from fllm.federation.task import Update  # a client that only says who it is needs no transformers

COUNT_PREFIX = "count/"
TOKENS = f"{COUNT_PREFIX}tokens"
OUTSIDE = "-"
"""Stands for the layer of events outside of the decoder's layers."""
ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
"""Records of a message."""
PARTITION, WEIGHT_KEY, LOSS = "partition-id", "num-examples", "train-loss"
"""Metrics of a reply; an update is weighted by the second, where a strategy weights."""
HELLO = "query.hello"
"""Type of the message that asks a node which client it is."""
_PERSONAL, _LOST = "personal/", "lost/"


class Trainer(Protocol):
    """What trains at a client; see :class:`fllm.federation.task.Hospital`."""

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        """Train one round from the given adapter."""


def count_metrics(counts: EventCounts) -> dict[str, int | list[int]]:
    """Write counts as metrics of a message: for each layer the numbers of all kinds of events, in the order of EVENTS.

    Flower wants the same metrics from all clients, whatever happened at each.
    """
    metrics: dict[str, int | list[int]] = {TOKENS: counts.tokens}
    for layer, events in counts.by_layer.items():
        name = OUTSIDE if layer is None else str(layer)
        metrics[f"{COUNT_PREFIX}{name}"] = [events[event] for event in EVENTS]
    return metrics


def counts_of(metrics: Mapping[str, Any]) -> EventCounts:
    """Read counts back from the metrics of a client; what hardware was built is not in them.

    Raises:
        ValueError: If they are of another form.
    """
    counts = EventCounts(tokens=int(metrics.get(TOKENS, 0)))
    for key, numbers in metrics.items():
        if key.startswith(COUNT_PREFIX) and key != TOKENS:
            layer = key.removeprefix(COUNT_PREFIX)
            events = dict(zip(EVENTS, map(int, numbers), strict=True))
            counts.record(None if layer == OUTSIDE else int(layer), events)
    return counts


def counts_of_rank(counts: EventCounts, rank: int, computed: int) -> EventCounts:
    """Return the counts of an adapter of some rank that was computed as a part of a larger one, zeros beside it."""
    if rank >= computed:
        return counts
    found = EventCounts()
    found.add(counts)
    for events in found.by_layer.values():
        spared = events["digital.adapter_mac"] * (computed - rank) // computed
        events["digital.adapter_mac"] -= spared
        events["memory.weight_bit"] -= HALF_PRECISION * spared
    return found


def make_client_app(
    trainer_of: Callable[[int], Trainer],
    *,
    exchange: Exchange = PLAIN,
    kept: Kept | None = None,
    first: Callable[[], Mapping[str, Tensor]] = dict,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Make the client application.

    Args:
        trainer_of: Returns the hospital of a partition; where all run in one process, they share a model.
        exchange: How adapters travel.
        kept: Where clients keep what stays with them from round to round, if the exchange needs that.
        first: Returns the adapter that a client begins with, of which the server sends it the shared part.
        mods: Flower's mods around training.
    """
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        metrics = MetricRecord({PARTITION: int(context.node_config["partition-id"])})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        partition, config = int(context.node_config["partition-id"]), message.content[CONFIG]
        number = int(config["server-round"])
        trainer, whole = trainer_of(partition), first()
        rank = rank_of(whole)
        start = exchange.received(message.content[ARRAYS], rank)
        held = kept.load(partition, number) if kept is not None else {}
        own = {**exchange.personal(whole), **_under(held, _PERSONAL)}
        update = trainer.train({**start, **own}, number, proximal_mu=float(config.get("proximal-mu", 0.0)))
        arrays, lost = exchange.up(start, update.adapter, partition, _under(held, _LOST))
        if kept is not None:
            keep = kept_as_personal(exchange.personal(update.adapter))
            kept.save(partition, number, keep | {_LOST + name: tensor for name, tensor in lost.items()})
        metrics: dict[str, int | float | list[int]] = {
            PARTITION: partition,
            WEIGHT_KEY: update.examples,
            LOSS: update.loss,
        } | count_metrics(counts_of_rank(update.counts, exchange.rank_of(partition) or rank, rank))
        return Message(RecordDict({ARRAYS: arrays, METRICS: MetricRecord(metrics)}), reply_to=message)

    return app


def kept_as_personal(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what of a client's adapter stays with it as it is kept."""
    return {_PERSONAL + name: tensor for name, tensor in tensors.items()}


def personal_part(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what of a client's adapter is in what it kept."""
    return _under(held, _PERSONAL)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
