"""A cache of keys and values that keeps the written cells too: each token is written once, while text is generated.

A layer of the cache hands over keys and values as far back as the arrays hold them, as any sliding window does, so
that whatever reads them goes on to do so. Attention on gain cells recognises what it was handed: a single token is
written into the arrays that the layer keeps, in place, instead of all tokens of the window anew. Everything else is
computed from keys and values: prompts and chunks of them, sequences with padding before the text, a model's own
window if it is shorter, a digital softmax, sub-tiles by absolute index, calibration, gradients. The numbers are the
same either way: what is random at a write follows from its key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import Cache
from transformers.cache_utils import DynamicSlidingWindowLayer

from device_models import InputError
from hwsim.functional.reads import Place, sequence_keys
from hwsim.functional.ring import RingBuffer
from hwsim.functional.tables import AttentionTables
from hwsim.modules import GainCellAttention, gain_cell_layers

_HANDED_OVER: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Layers by the keys that they handed over in the forward pass that runs."""
LEAST_ROOM = 64
"""Tokens that are appended before keys and values are moved; a quarter of the window where that is more."""


def ring_cache(model: nn.Module) -> Cache:
    """Return a cache for :func:`emulate`'s models that keeps their written cells while they generate.

    Pass it as ``past_key_values``, to the model or to its ``generate``. Memory and time of a token stay the same once
    the window of the device is full; positions and ring slots go on counting. Scalers are those at the write.

    Raises:
        InputError: If no attention of the model runs on gain cells.
    """
    layers = gain_cell_layers(model)
    if not layers:
        raise InputError(
            "no attention on gain cells", where=type(model).__name__, expected="a model on a device",
            remedy="call hwsim.emulate(model, device) first",
        )  # fmt: skip
    return Cache(layers=[RingLayer(layer.device.window.tokens) for layer in layers])


class RingLayer(DynamicSlidingWindowLayer):
    """Keys and values of one layer of a model as far back as its arrays hold them, and the arrays.

    Args:
        window: Tokens that the arrays hold.
    """

    keys: Tensor | None
    values: Tensor | None

    def __init__(self, window: int) -> None:
        super().__init__(max(window, 2))  # with 1, the base class would keep all
        self._room: tuple[Tensor, Tensor] | None = None
        self._end = 0
        self._appended: Tensor | None = None
        self._cells: _Cells | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what follows from keys and values, for copies."""
        return self.__dict__ | {"_room": None, "_appended": None, "_cells": None}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Keep keys and values (batch, kv_heads, tokens, head_dim); return them behind those of the window."""
        if self.keys is not self._appended:
            self._room = self._cells = None  # reordered, repeated, cropped: not the tokens that were written
        if self.record_past or torch.is_grad_enabled():  # what is kept, or part of a graph, must not be written over
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            self._room = None
        else:
            keys, values = self._append(key_states, value_states)
        self._appended = self.keys
        _HANDED_OVER[keys] = self
        return keys, values

    def _append(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Do what the base class does without copying what is kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        new, past = key_states.shape[-2], self.keys.shape[-2] if self.keys.numel() else 0
        room = self._room
        if room is None or self._end + new > room[0].shape[-2]:
            room = self._moved(key_states, new, past)
        start, end = self._end - past, self._end + new
        room[0][:, :, self._end : end] = key_states
        room[1][:, :, self._end : end] = value_states
        self._end = end
        self.cumulative_length += new
        keys, values = (x[:, :, start:end] for x in room)
        self.keys, self.values = (x[:, :, max(start, end - self.sliding_window + 1) : end] for x in room)
        return keys, values

    def _moved(self, like: Tensor, new: int, past: int) -> tuple[Tensor, Tensor]:
        """Make memory for what is kept, what is new, and some more where that is not most of it."""
        more = max(LEAST_ROOM, self.sliding_window // 4)
        size = (*like.shape[:2], past + new + (more if new <= more else 0), like.shape[3])
        with torch.inference_mode(False):  # so that it can be written to in and outside of that mode
            room = tuple(torch.empty(size, dtype=like.dtype, device=like.device) for _ in range(2))
        for made, kept in zip(room, (self.keys, self.values), strict=True):
            if past and kept is not None:
                made[:, :, :past] = kept
        self._room, self._end = room, past  # type: ignore[assignment]
        return room  # type: ignore[return-value]

    def attend(
        self, cells: GainCellAttention, query: Tensor, key: Tensor, value: Tensor, tables: AttentionTables, noise: Any,
        layer: int,
    ) -> Tensor | None:  # fmt: skip
        """Write the newest token into the arrays, tokens before it that they lack, and let its query read.

        Args:
            cells: The attention.
            query: (batch, heads, queries, head_dim).
            key: What :meth:`update` handed over.
            value: As ``key``.
            tables: Geometry of this forward pass.
            noise: Key of what is random, as :func:`noise_key` takes it.
            layer: Place of the layer in its model.

        Returns:
            (batch, heads, 1, head_dim); None where the arrays of a ring cannot serve.

        Raises:
            InputError: If the device has a longer window than the one that the cache was made for.
        """
        device, stretch = cells.device, tables.layout.stretch
        if device.window.tokens > self.sliding_window:
            raise InputError(
                "the ring cache keeps fewer tokens than the arrays", where=f"{device.name}: window.tokens",
                expected=f"at most {self.sliding_window}", received=device.window.tokens,
                remedy="make a new one with hwsim.ring_cache(model) once the model is on this device",
            )  # fmt: skip
        if stretch is None or stretch.first_query + 1 != self.cumulative_length:  # not one token behind all others
            return None
        if device.activation.kind == "softmax" or device.tile.assignment != "ring" or cells.watch is not None:
            return None
        if torch.is_grad_enabled():
            return None
        token = stretch.first_query
        if self._cells is None or not self._cells.serve(cells, query, key, noise):
            self._cells = _Cells(cells, query, key, noise, layer)
        ring = self._cells.ring
        held = min(device.window.tokens, token + 1, key.shape[2])
        lacking = token - ring.tokens if 0 < ring.tokens <= token else held
        new = min(lacking + 1, held)
        key, value = (x[:, :, -new:].to(query.dtype) for x in (key, value))
        return cells.step(query, key, value, ring, token + 1 - new)


class _Cells:
    """The arrays of a layer, and whose they are."""

    def __init__(self, cells: GainCellAttention, query: Tensor, key: Tensor, noise: Any, layer: int) -> None:
        self.cells, self.facts = cells, _facts(cells, query, key)
        self.device, self.die = cells.device, cells.die
        self.noise = noise.clone() if isinstance(noise, Tensor) else noise
        keys = sequence_keys(self.noise, query.shape[0], query.device)
        with torch.inference_mode(False):
            batch, heads, _, head_dim = query.shape
            self.ring = RingBuffer(
                cells.device, batch, heads, key.shape[1], head_dim, token_period_s=cells.token_period_s,
                place=Place(cells.die, keys, layer), dtype=query.dtype, where=query.device,
            )  # fmt: skip

    def serve(self, cells: GainCellAttention, query: Tensor, key: Tensor, noise: Any) -> bool:
        """Whether tokens of this pass belong into these cells: of the same device, chip and noise."""
        if isinstance(noise, Tensor) != isinstance(self.noise, Tensor):
            return False
        alike = torch.equal(noise, self.noise) if isinstance(noise, Tensor) else noise == self.noise
        if not alike or cells is not self.cells or cells.device is not self.device or cells.die is not self.die:
            return False
        return _facts(cells, query, key) == self.facts


def _facts(cells: GainCellAttention, query: Tensor, key: Tensor) -> tuple[object, ...]:
    return (cells.token_period_s, *query.shape[:2], key.shape[1], query.shape[3], query.dtype, query.device)


def layer_of(key: Tensor) -> RingLayer | None:
    """Return the layer of a ring cache that handed these keys over in this forward pass; None if none did."""
    found: RingLayer | None = _HANDED_OVER.get(key)
    return found
