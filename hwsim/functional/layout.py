"""Where each token lies in the arrays of a head, and how old it is when a query reads it.

A :class:`SlotLayout` re-orders the keys of a forward pass into *columns*: column ``c`` of lap ``l`` is physical slot
``c`` written on the l-th pass of the ring, padded so that sub-tiles never straddle two laps. Sub-tile ``b`` and
sub-tile ``b + tiles`` are then the same physical sub-tile one lap later, whose charges meet before the readout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from device_models.schema import DeviceModel


@dataclass(frozen=True)
class Block:
    """Queries ``start`` to ``stop`` at the columns ``first`` to ``last`` of a layout."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def rows(self) -> slice:
        """The queries."""
        return slice(self.start, self.stop)

    @property
    def columns(self) -> slice:
        """The columns."""
        return slice(self.first, self.last)


@dataclass(frozen=True)
class Stretch:
    """Queries and keys that are consecutive tokens, the last key written by the last query: everything but padding.

    Attributes:
        queries: How many queries there are.
        keys: How many keys there are, those of the queries included.
        first_key: Write index of the first key.
    """

    queries: int
    keys: int
    first_key: int = 0

    @property
    def first_query(self) -> int:
        """Write index of the first query."""
        return self.first_key + self.keys - self.queries


@dataclass(frozen=True, eq=False)
class SlotLayout:
    """Geometry of one forward pass, shared by all layers and heads.

    ``b`` is 1 when all sequences of the batch share the geometry. What grows with queries times columns is made when
    it is asked for: a stretch of consecutive tokens is read without it.

    Attributes:
        key_of_column: (b, columns) index of the key that a column holds; columns without key hold key 0.
        age_of_key: Returns (b, queries, keys) [tokens], the age of each key at each query, -1 where it is not read.
        filled: (b, columns) whether a column holds a key.
        query_index: (b, queries) write index of the query's own token, -1 where it reads nothing.
        slots: Columns of one sub-tile.
        rows: Embedding dimensions of one sub-tile.
        window: Tokens that the arrays hold.
        tiles: Physical sub-tiles along the tokens.
        identity: Whether column c holds key c for every c.
        slot_of_column: (columns,) physical slot of each column, one after another from ``first_slot``.
        first_slot: Physical slot of the first column.
        first_tile: Sub-tile of the first column, where sub-tiles are cut by absolute token index; else 0.
        period: Tokens after which a slot is written again.
        written: (b, columns) write index of the token in each column, -1 where there is none.
        stretch: The same geometry in four numbers; None where a query skips a token.
    """

    key_of_column: Tensor
    age_of_key: Callable[[], Tensor]
    filled: Tensor
    query_index: Tensor
    slots: int
    rows: int
    window: int
    tiles: int
    identity: bool
    slot_of_column: Tensor
    first_slot: int
    first_tile: int
    period: int
    written: Tensor
    stretch: Stretch | None = None

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.slot_of_column.numel()

    @cached_property
    def _read_and_age(self) -> tuple[Tensor, Tensor]:
        age = self.age_of_key()
        age = age.gather(2, self.key_of_column[:, None, :].expand(-1, age.shape[1], -1))
        read = self.filled[:, None, :] & (age >= 0) & (age < self.window)
        return read, age.where(read, 0)

    @property
    def read(self) -> Tensor:
        """(b, queries, columns) whether the query reads the column."""
        return self._read_and_age[0]

    @property
    def age(self) -> Tensor:
        """(b, queries, columns) [tokens] age of the column at the query; 0 where it is not read."""
        return self._read_and_age[1]

    @property
    def oldest(self) -> int:
        """Largest age [tokens] at which a token is read."""
        if self.stretch is not None:
            return min(self.stretch.keys, self.window) - 1
        return int(self.age.max()) if self.age.numel() else 0

    def tokens_read(self) -> Tensor:
        """Return how many tokens each query reads, (b, queries)."""
        if self.stretch is not None:
            return (self.query_index + (1 - self.stretch.first_key)).clamp(max=self.window)
        return self.read.sum(-1)

    @cached_property
    def written_in_order(self) -> Tensor:
        """(1, keys) write index of each key of a stretch."""
        assert self.stretch is not None
        return torch.arange(self.stretch.keys, device=self.written.device)[None] + self.stretch.first_key

    @cached_property
    def slot_in_order(self) -> Tensor:
        """(keys,) physical slot of each key of a stretch."""
        return self.written_in_order[0] % self.period

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """For each sub-tile of the layout, the half-open range of queries that read it; it may be empty."""
        return _spans(self.read, self.slots)

    @cached_property
    def blocks(self) -> dict[int, list[Block]]:
        """The blocks of each physical sub-tile, one for each lap of the ring that some query reads."""
        found: dict[int, list[Block]] = {}
        for index, (start, stop) in enumerate(self.spans):
            if stop > start:
                block = Block(start, stop, index * self.slots, (index + 1) * self.slots)
                found.setdefault(self.first_tile + index % self.tiles, []).append(block)
        return found

    @cached_property
    def live(self) -> dict[int, Tensor | None]:
        """Which queries (b, rows) read anything of each sub-tile, in the rows its blocks span; None where all do.

        A sub-tile without tokens of a sequence is switched off: its readout adds neither offset nor noise.
        """
        found: dict[int, Tensor | None] = {}
        for tile, blocks in self.blocks.items():
            start, stop = min(b.start for b in blocks), max(b.stop for b in blocks)
            any_read = torch.stack([self.read[:, start:stop, b.columns].any(-1) for b in blocks]).any(0)
            found[tile] = None if bool(any_read.all()) else any_read
        return found


def slot_layout(write_index: Tensor, age: Tensor, device: DeviceModel) -> SlotLayout:
    """Build the geometry from each key's write index and its age at each query.

    Args:
        write_index: (b, keys) number of tokens written before this one, -1 for padding, which is never written.
        age: (b, queries, keys) [tokens] age of the key at the query, -1 where the query must not read it.
        device: Supplies window, sub-tile size and assignment.

    Returns:
        The layout; entries with an age of the window or more are not read.
    """
    read = (age >= 0) & (age < device.window.tokens) & (write_index >= 0)[:, None]
    query_index = (write_index[:, None] + age).where(read, -1).amax(-1)
    return _layout(write_index, query_index, lambda: age, device, None)


def stretch_layout(stretch: Stretch, device: DeviceModel, where: torch.device | None = None) -> SlotLayout:
    """Build the geometry of consecutive tokens, of which the last ones are queries too."""
    written = torch.arange(stretch.keys, device=where)[None] + stretch.first_key
    own = written[:, stretch.keys - stretch.queries :]
    return _layout(written, own, lambda: (own[:, :, None] - written[:, None]).clamp(min=-1), device, stretch)


def causal_layout(tokens: int, device: DeviceModel, where: torch.device | None = None) -> SlotLayout:
    """Build the geometry of one sequence written and read from its first token on."""
    return stretch_layout(Stretch(tokens, tokens), device, where)


def _layout(
    write_index: Tensor, query_index: Tensor, age: Callable[[], Tensor], device: DeviceModel, stretch: Stretch | None
) -> SlotLayout:
    window, slots = device.window.tokens, device.tile.slots
    ring = device.tile.assignment == "ring"
    padded = device.subtiles * slots
    written = write_index.clamp(min=0)
    column = (written // window) * padded + written % window if ring else written
    valid = write_index >= 0
    first = int(column[valid].min()) // slots * slots if bool(valid.any()) else 0
    if ring:
        first = first // padded * padded
    column = column - first
    last = int(column[valid].max()) if bool(valid.any()) else 0
    columns = (last // slots + 1) * slots
    batch, keys = write_index.shape

    spare = torch.full_like(column, columns)
    key_of_column = torch.zeros(batch, columns + 1, dtype=torch.long, device=column.device)
    key_of_column.scatter_(
        1, torch.where(valid, column, spare), torch.arange(keys, device=column.device).expand(batch, -1)
    )
    filled = torch.zeros(batch, columns + 1, dtype=torch.bool, device=column.device)
    filled.scatter_(1, torch.where(valid, column, spare), valid)
    key_of_column, filled = key_of_column[:, :columns], filled[:, :columns]
    order = torch.arange(columns, device=column.device)
    return SlotLayout(
        key_of_column=key_of_column,
        age_of_key=age,
        filled=filled,
        query_index=query_index,
        slots=slots,
        rows=device.tile.rows,
        window=window,
        tiles=padded // slots if ring else columns // slots,
        identity=columns == keys and bool((key_of_column == order).all()),
        slot_of_column=(first + order) % padded,
        first_slot=first % padded,
        first_tile=0 if ring else first // slots,
        period=window if ring else padded,
        written=write_index.gather(1, key_of_column).where(filled, -1),
        stretch=stretch,
    )


def _spans(read: Tensor, slots: int) -> tuple[tuple[int, int], ...]:
    """Return the first and one past the last query that reads each sub-tile."""
    queries, columns = read.shape[1:]
    touched = read.any(0).view(queries, columns // slots, slots).any(2)
    index = torch.arange(queries, device=read.device)[:, None]
    first = torch.where(touched, index, queries).amin(0).tolist()
    last = torch.where(touched, index + 1, 0).amax(0).tolist()
    return tuple(zip(first, last, strict=True))
