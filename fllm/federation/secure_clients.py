"""The stages of secure aggregation at a client: what it answers, and where its secrets wait between two messages.

Secrets stay in Flower's context of the node, which never travels to the server: on other engines than this process,
each message of a round may meet another process of the client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fllm.federation.client_app import ARRAYS, CONFIG, COUNT_PREFIX, LOSS, METRICS, PARTITION, WEIGHT_KEY
from fllm.federation.secure.client import SecureClient
from fllm.federation.secure.fixed_point import FixedPoint
from fllm.federation.secure.messages import ProtocolRefused, PublicKeys

KEYS, SHARES, REVEAL = "secure_keys", "secure_shares", "secure_reveal"
"""Actions of the query messages before and after training."""
PUBLIC, LETTERS, ARRIVED, SEEDS, MASK_KEYS = "public", "letters", "arrived", "seeds", "mask-keys"
"""Records of these messages, with one entry per client, named by its partition."""
MASKED = "masked"
"""Name of the one array of a masked update."""
Entries = Mapping[str, Mapping[int, bytes | bool]]
"""Records of a message with one entry per client."""
_SECRETS = "secure-aggregation"


def answer_stages(app: ClientApp, threshold: int) -> None:
    """Let a client application answer the stages before and after training.

    Args:
        app: The application.
        threshold: How many clients together can reveal a secret, as the client was configured.
    """

    @app.query(KEYS)
    def keys(message: Message, context: Context) -> Message:
        client = SecureClient(int(context.node_config[PARTITION]), _number(message), threshold)
        _keep(context, client)
        return Message(records_of({PUBLIC: {client.me: client.keys().to_bytes()}}), reply_to=message)

    @app.query(SHARES)
    def shares(message: Message, context: Context) -> Message:
        client = _kept(context, message)
        public = numbered(message.content[PUBLIC])
        letters = client.shares({u: PublicKeys.from_bytes(joined) for u, joined in public.items()})
        _keep(context, client)
        return Message(records_of({LETTERS: letters}), reply_to=message)

    @app.query(REVEAL)
    def reveal(message: Message, context: Context) -> Message:
        client = _kept(context, message)
        arrived = {int(name): bool(there) for name, there in message.content[ARRIVED].items()}
        revealed = client.reveal([u for u in arrived if arrived[u]], [u for u in arrived if not arrived[u]])
        _keep(context, client)
        return Message(records_of({SEEDS: revealed.seeds, MASK_KEYS: revealed.keys}), reply_to=message)


def mask_updates(message: Message, context: Context, train: Callable[[Message, Context], Message]) -> Message:
    """Put a client's change of the adapter, its loss and its number of cases under its masks; a mod of Flower.

    Args:
        message: The message to train on, with the sealed shares of the others.
        context: Context of the node.
        train: Trains, and replies in clear.

    Returns:
        A reply with one masked array; in clear are the counts of events alone.

    Raises:
        ProtocolRefused: If the stages before were not done, or their shares do not fit.
        ValueOutOfRange: If a number is not finite or has no room.
    """
    client, letters = _kept(context, message), numbered(message.content.get(LETTERS, {}))
    start = {name: array.numpy() for name, array in message.content[ARRAYS].items()}
    reply = train(message, context)
    metrics = reply.content[METRICS]
    values: dict[str, NDArray[np.float64]] = {LOSS: np.array(metrics[LOSS])}
    for name, array in reply.content[ARRAYS].items():
        values[name] = array.numpy().astype(np.float64) - start[name]
    numbers = client.masked(letters, FixedPoint().encode(values, metrics[WEIGHT_KEY], len(letters) + 1))
    _keep(context, client)
    clear = {name: value for name, value in metrics.items() if name == PARTITION or name.startswith(COUNT_PREFIX)}
    reply.content = RecordDict({ARRAYS: ArrayRecord({MASKED: Array(numbers)}), METRICS: MetricRecord(clear)})
    return reply


def numbered(record: Mapping[str, object]) -> dict[int, bytes]:
    """Read a record of one entry per client.

    Raises:
        ValueError: If it is of another form.
    """
    found: dict[int, bytes] = {}
    for name, value in record.items():
        if not isinstance(value, bytes):
            raise ValueError("an entry is not bytes")
        found[int(name)] = value
    return found


def records_of(entries: Entries) -> RecordDict:
    """Return records with one entry per client."""
    return RecordDict({
        name: ConfigRecord({str(client): value for client, value in entry.items()}) for name, entry in entries.items()
    })  # fmt: skip


def _number(message: Message) -> int:
    return int(message.content[CONFIG]["server-round"])


def _keep(context: Context, client: SecureClient) -> None:
    context.state[_SECRETS] = ConfigRecord({"client": client.to_bytes()})


def _kept(context: Context, message: Message) -> SecureClient:
    """Return the secrets of a message's round; raises ProtocolRefused where no keys were announced in it."""
    if _SECRETS not in context.state:
        raise ProtocolRefused("no keys were announced")
    client = SecureClient.from_bytes(context.state[_SECRETS]["client"])
    if client.server_round != _number(message):
        raise ProtocolRefused(f"asked for round {_number(message)}, but the keys are of round {client.server_round}")
    return client
