"""One manufactured chip: static deviations as a function of seed and place, never of the order they are asked for.

Every deviate is drawn from ``(seed, what, layer, array, head, slot, dimension)`` alone, so a die is the same die in
training, evaluation and generation, in any chunk, batch order or process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from device_models import DeviceModel, InputError
from device_models.converters import highest_code
from device_models.variability import capacitor_sigma
from hwsim.randomness import keyed, normal, seed_of

T = TypeVar("T")
Array = Literal["key", "value"]
ARRAYS: tuple[Array, Array] = ("key", "value")
CELLS = ("gain", "offset", "retention", "capacitor", "pedestal")
"""Deviations that each cell has of its own."""


@dataclass(frozen=True, eq=False)
class Die:
    """Static deviations of one chip.

    Attributes:
        seed: Which chip of the device.
        device: Supplies which effects there are, and how strong.
        layer: Layer of the model whose arrays are meant; see :meth:`at_layer`.
        measured: Deviates read from a file, by name as :meth:`save` writes them; they replace the drawn ones.
    """

    seed: int
    device: DeviceModel
    layer: int = 0
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    _made: dict[tuple[object, ...], Tensor] = field(default_factory=dict, init=False, repr=False)
    _derived: dict[tuple[object, ...], object] = field(default_factory=dict, init=False, repr=False)

    def at_layer(self, layer: int) -> Die:
        """Return the arrays of another layer on the same chip."""
        other = replace(self, layer=layer)
        other.__dict__.update(_made=self._made, _derived=self._derived)  # their keys name the layer
        return other

    def on(self, device: DeviceModel) -> Die:
        """Return the same deviates with the strengths of another device; this die where it is the same device."""
        if device is self.device:
            return self
        other = replace(self, device=device)
        other.__dict__.update(_made=self._made)  # what is derived depends on the strengths
        return other

    def cells(self, what: str, array: Array, heads: int, slots: Tensor, head_dim: int) -> Tensor:
        """Return standard normal deviates (heads, slots, head_dim) of cells, in float32.

        Args:
            what: One of ``CELLS``.
            array: Array of keys or of values.
            heads: Key/value heads.
            slots: (n,) physical slots, in any order.
            head_dim: Dimensions of a head.
        """
        needed = int(slots.max()) + 1 if slots.numel() else 0
        made = self._of(f"{what}.{array}", slots.device, heads, needed, head_dim, grows=1)
        return made.index_select(1, slots)

    def columns(self, what: str, heads: int, slots: Tensor) -> Tensor:
        """Return deviates (heads, slots) of the circuits below each column of the first array."""
        needed = int(slots.max()) + 1 if slots.numel() else 0
        return self._of(what, slots.device, heads, needed, grows=1).index_select(1, slots)

    def circuits(self, what: str, device: torch.device, *sizes: int) -> Tensor:
        """Return deviates of converters: (heads, sub-tiles, dimensions, codes) or what ``sizes`` says."""
        return self._of(what, device, *sizes)

    def _of(self, what: str, device: torch.device, *sizes: int, grows: int | None = None) -> Tensor:
        """Draw or look up; an axis that ``grows`` is kept at its longest and cut to size."""
        if (given := self.measured.get(f"{self.layer}.{what}")) is not None:
            if given.dim() != len(sizes) or any(have < want for have, want in zip(given.shape, sizes, strict=True)):
                raise InputError(
                    "the die was measured for another geometry", where=f"{self.layer}.{what}",
                    expected=f"at least {sizes}", received=tuple(given.shape),
                )  # fmt: skip
            return given[tuple(slice(size) for size in sizes)].to(device)
        fixed = tuple(size for axis, size in enumerate(sizes) if axis != grows)
        key = (self.layer, what, str(device), fixed)
        made = self._made.get(key)
        if made is None or any(have < want for have, want in zip(made.shape, sizes, strict=True)):
            start = torch.tensor(seed_of(self.seed, "die", self.layer, what), device=device)
            places = [
                torch.arange(size, device=device).view(-1, *(1,) * (len(sizes) - 1 - axis))
                for axis, size in enumerate(sizes)
            ]
            with torch.inference_mode(False):  # what is made in an evaluation serves in training as well
                made = self._made[key] = normal(keyed(start.clone(), *(place.clone() for place in places)))
        return made if grows is None else made.narrow(grows, 0, sizes[grows])

    def once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return what ``make`` makes of this die's deviates at this layer, made once per key."""
        place = (self.layer, *key)
        if place not in self._derived:
            with torch.inference_mode(False), torch.no_grad():
                self._derived[place] = make()
        return cast(T, self._derived[place])

    def describe(self, heads: int = 1, head_dim: int = 64) -> list[dict[str, object]]:
        """Return, for each static effect of this layer's cells, its nominal spread and the spread of this die.

        Rows have ``what``, ``unit``, ``nominal``, ``measured`` and ``cells``; effects of zero strength are left out.
        """
        slots = torch.arange(self.device.window.tokens)
        variability, write = self.device.variability, self.device.write
        strengths = {
            "gain": (variability.gain_sigma, "1"),
            "offset": (variability.offset_sigma, "V"),
            "retention": (self.device.retention.tau_sigma_ln, "ln"),
            "capacitor": (capacitor_sigma(self.device), "1"),
            "pedestal": (write.pedestal_sigma, "V"),
        }
        rows: list[dict[str, object]] = []
        for what, (sigma, unit) in strengths.items():
            if sigma:
                drawn = torch.stack([self.cells(what, array, heads, slots, head_dim) for array in ARRAYS])
                spread = float(drawn.double().std()) * sigma
                rows.append(
                    {"what": what, "unit": unit, "nominal": sigma, "measured": spread, "cells": drawn.numel()}
                )  # fmt: skip
        return rows

    def save(self, path: Path, *, layers: int, heads: int, head_dim: int) -> None:
        """Write all cell deviates of a model's arrays to a safetensors file, for other tools or for measured dies."""
        from safetensors.torch import save_file

        slots = torch.arange(self.device.subtiles * self.device.tile.slots)  # layouts use whole sub-tiles
        maps = {
            f"{layer}.{what}.{array}": self.at_layer(layer).cells(what, array, heads, slots, head_dim).contiguous()
            for layer in range(layers)
            for what in CELLS
            for array in ARRAYS
        }
        facts = {"seed": self.seed, "device": self.device.name, "device_sha256": self.device.file_sha256}
        save_file(maps, str(path), {"die": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Path, device: DeviceModel) -> Die:
        """Read a die that was saved, or made of measured deviations divided by their nominal spread.

        Raises:
            InputError: If the file cannot be read or names no seed.
        """
        from safetensors import safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                facts = json.loads((file.metadata() or {})["die"])
                maps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors handle is no dict
            return cls(int(facts["seed"]), device, measured=maps)
        except Exception as error:
            raise InputError(
                f"not a die ({type(error).__name__})", where=str(path), expected="a file that Die.save wrote"
            ) from None


def readout_codes_of(device: DeviceModel) -> int:
    """Return the number of codes of the readout."""
    return 2 * highest_code(device.readout) + 1
