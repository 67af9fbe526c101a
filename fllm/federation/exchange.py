r"""The form in which adapters travel: number format, rank of each client, and what stays at home.

A lossy format rounds what a client sends: not its adapter but its change of it, and what rounding lost is added to what
it sends next (error feedback; Seide et al. 2014, Karimireddy et al., ICML 2019):

.. math:: q_t = Q(\Delta_t + e_t), \qquad e_{t+1} = \Delta_t + e_t - q_t

The server keeps its adapter in float32 and rounds a copy for each round, so that nothing adds up there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fllm.federation.factors import A, B
from fllm.sections import WireFormat

SCALES = "scales"
"""Name of the array that holds the step of each tensor in int8, in the order of their names."""
_INT8_MOST = 127
LARGEST = 1e15
"""No sound update changes a number by more; its square would leave float32, and moments of a server infinite."""


@dataclass(frozen=True)
class Exchange:
    """How adapters travel; the same at the server and at all clients.

    Attributes:
        wire: Format of the numbers.
        ranks: Rank of each client's adapter, dealt in turn; empty where all have the server's.
        personal_b: B stays at each client, which shares A alone.
    """

    wire: WireFormat = "float32"
    ranks: tuple[int, ...] = ()
    personal_b: bool = False

    @property
    def keeps(self) -> bool:
        """Whether clients keep something from round to round."""
        return self.personal_b or self.wire != "float32"

    def rank_of(self, partition: int) -> int | None:
        """Return the rank of a client; None is the server's."""
        return self.ranks[partition % len(self.ranks)] if self.ranks else None

    def shared(self, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what of an adapter is sent at all."""
        return {name: tensor for name, tensor in adapter.items() if not (self.personal_b and B in name)}

    def personal(self, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what of an adapter stays at the client."""
        return {name: tensor for name, tensor in adapter.items() if self.personal_b and B in name}

    def down(self, adapter: Mapping[str, Tensor], partition: int) -> ArrayRecord:
        """Write the server's adapter for one client."""
        return encoded(self.cut(adapter, partition), self.wire)

    def received(self, record: ArrayRecord, rank: int) -> dict[str, Tensor]:
        """Read at a client what :meth:`down` wrote.

        Returns:
            Tensors of the full rank; a smaller one is filled up with zeros, which no step of training changes: the
            gradient of a column of B is proportional to its row of A, and the other way round.
        """
        return _filled(decoded(record), rank)

    def up(
        self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], partition: int, lost: Mapping[str, Tensor]
    ) -> tuple[ArrayRecord, dict[str, Tensor]]:
        """Write at a client what it sends back.

        Args:
            start: Adapter that it was sent, of the full rank.
            trained: Adapter that it made of it.
            partition: The client.
            lost: What rounding lost last time; empty before.

        Returns:
            The record, and what rounding lost this time.
        """
        made = self.cut(self.shared(trained), partition)
        if self.wire == "float32":
            return encoded(made, self.wire), {}
        first = self.cut(start, partition)
        wanted = {name: tensor - first[name] + lost.get(name, 0.0) for name, tensor in made.items()}
        record = encoded(wanted, self.wire)
        return record, {name: wanted[name] - tensor for name, tensor in decoded(record).items()}

    def collected(self, record: ArrayRecord, partition: int, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read at the server what a client sent.

        Args:
            record: Its arrays.
            partition: The client.
            adapter: The server's adapter, which the client was sent.

        Returns:
            The client's adapter, of the server's rank.

        Raises:
            ValueError: If names, shapes or kinds of the arrays are not those that were sent, or a number is not finite
                or changed beyond measure; the message holds no name that the client chose.
        """
        expected = self.cut(adapter, partition)
        found = _checked(record, expected, self.wire)
        if self.wire != "float32":
            found = {name: expected[name] + tensor for name, tensor in found.items()}
        return _filled(found, rank_of(adapter))

    def cut(self, adapter: Mapping[str, Tensor], partition: int) -> dict[str, Tensor]:
        """Return as much of an adapter as the rank of a client holds."""
        rank = self.rank_of(partition)
        if rank is None:
            return dict(adapter)
        cut = {name: tensor[:rank] if A in name else tensor[:, :rank] if B in name else tensor
               for name, tensor in adapter.items()}  # fmt: skip
        return {name: tensor.contiguous() for name, tensor in cut.items()}


PLAIN = Exchange()
"""All of an adapter, in float32, of one rank."""


def encoded(tensors: Mapping[str, Tensor], wire: WireFormat) -> ArrayRecord:
    """Write tensors in a format; int8 takes one step per tensor, its largest number being 127 steps."""
    if wire == "float32":
        return ArrayRecord({name: tensor.float() for name, tensor in tensors.items()})
    if wire == "float16":
        most = torch.finfo(torch.float16).max
        return ArrayRecord({name: tensor.clamp(-most, most).half() for name, tensor in tensors.items()})
    steps = {
        name: tensor.abs().max().item() / _INT8_MOST if tensor.numel() else 0.0 for name, tensor in tensors.items()
    }
    record = ArrayRecord()
    for name, tensor in tensors.items():
        step = float(np.float32(steps[name]))  # as it is sent
        whole = torch.round(tensor.double() / step).clamp(-_INT8_MOST, _INT8_MOST) if step > 0 else 0 * tensor
        record[name] = Array(whole.to(torch.int8).numpy())
    record[SCALES] = Array(np.array([steps[name] for name in sorted(tensors)], dtype=np.float32))
    return record


def decoded(record: ArrayRecord) -> dict[str, Tensor]:
    """Read what :func:`encoded` wrote, as float32."""
    tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}
    scales = tensors.pop(SCALES, None)
    if scales is None:
        return {name: tensor.float() for name, tensor in tensors.items()}
    steps = dict(zip(sorted(tensors), scales.tolist(), strict=True))
    return {name: (tensor.double() * steps[name]).float() for name, tensor in tensors.items()}


_KIND = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


def _checked(record: ArrayRecord, expected: Mapping[str, Tensor], wire: WireFormat) -> dict[str, Tensor]:
    names = {*expected, *([SCALES] if wire == "int8" else [])}
    if set(record) != names:
        raise ValueError("update has other tensors than the adapter")
    try:
        arrays = {name: record[name].numpy() for name in names}
    except Exception:
        raise ValueError("update cannot be read") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()} | {SCALES: (len(expected),)}
    if any(array.shape != shapes[name] for name, array in arrays.items()):
        raise ValueError("update has other shapes than the adapter")
    kinds = {name: np.float32 if name == SCALES else _KIND[wire] for name in names}
    if any(array.dtype != kinds[name] for name, array in arrays.items()):
        raise ValueError("update has numbers of another kind than the adapter")
    if not all(bool(np.isfinite(array).all()) for array in arrays.values()):
        raise ValueError("update is not finite")
    found = decoded(record)
    changes = found.values() if wire != "float32" else [found[name] - tensor for name, tensor in expected.items()]
    if not all(bool((change.abs() <= LARGEST).all()) for change in changes):
        raise ValueError(f"update has changes beyond {LARGEST:g}")
    return {name: found[name] for name in expected}


def _filled(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Fill factors up with zeros to a rank."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if A in name and len(tensor) < rank:
            found[name] = torch.cat([tensor, tensor.new_zeros(rank - len(tensor), tensor.shape[1])])
        elif B in name and tensor.shape[1] < rank:
            found[name] = torch.cat([tensor, tensor.new_zeros(len(tensor), rank - tensor.shape[1])], 1)
    return found


def rank_of(adapter: Mapping[str, Tensor]) -> int:
    """Return the rank of an adapter; 0 where it has no A."""
    return max((len(tensor) for name, tensor in adapter.items() if A in name), default=0)
