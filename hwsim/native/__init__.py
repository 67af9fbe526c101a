"""Gain-cell attention in C, compiled at its first use where there is a compiler; optional.

All heads of a batch are one axis ``n`` (batch x heads, heads fastest). A cell's current is a sum of *images*, states of
all cells, each with a weight that depends on the age alone. ``attention.h`` has the equations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hwsim.native.aged import MOST_NODES as MOST_NODES
from hwsim.native.aged import AgedArray as AgedArray
from hwsim.native.aged import AgedCells as AgedCells
from hwsim.native.aged import Packed
from hwsim.native.aged import Ranges as Ranges
from hwsim.native.arguments import MULTIPLE as MULTIPLE
from hwsim.native.arguments import Arguments, check, fresh, padded
from hwsim.native.arguments import Unavailable as Unavailable
from hwsim.native.build import Built, load
from hwsim.native.build import compiles_at_first_use as compiles_at_first_use
from hwsim.native.codes import Ring as Ring
from hwsim.native.codes import convert as convert

MOST_IMAGES = 4


@dataclass(frozen=True, eq=False)
class Cells:
    """Images of the cells, over the saturation of their product; or their codes, whose weights make it so.

    Attributes:
        key: (n, images, keys, head_dim) float32; or int8 codes of one image.
        value: (n, images, keys, head_dim); the number of images may differ. Codes where the keys are.
        weight_k: (images, window) weights of the key images by age [tokens].
        weight_v: (images, window) likewise.
        constant_k: (window,) current of every key cell by age, beside its images, or None.
        constant_v: (window,) likewise.
    """

    key: Tensor
    value: Tensor
    weight_k: Tensor
    weight_v: Tensor
    constant_k: Tensor | None = None
    constant_v: Tensor | None = None


@dataclass(frozen=True)
class Geometry:
    """Where tokens lie.

    Attributes:
        window: Tokens that an array holds.
        slots: Slots of one sub-tile.
        query_start: Write index of the first query.
        key_start: Write index of the first key.
    """

    window: int
    slots: int
    query_start: int = 0
    key_start: int = 0

    @property
    def tiles(self) -> int:
        """Number of sub-tiles."""
        return -(-self.window // self.slots)


@dataclass(frozen=True, eq=False)
class Readout:
    """The converter of a sub-tile.

    Attributes:
        step: Between two codes, in saturations; 0 is continuous.
        top: Highest code.
        gain: [1] (heads, tiles, head_dim) in front of the clip, or None.
        offset: [steps] (heads, tiles, head_dim) behind it, or None.
        errors: [steps] (heads, tiles, codes, head_dim) of each code, the middle one being code 0, or None.
    """

    step: float = 0.0
    top: float = 0.0
    gain: Tensor | None = None
    offset: Tensor | None = None
    errors: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Noise:
    """What is added to scores, pulses, charges and codes; rows of a pool of standard normals.

    Attributes:
        pool: (any,) float32 standard normals.
        score_sigma: (n, queries) deviation of the scores, or None.
        score_start: (n, queries, tiles) int32 place in the pool of the sub-tile's first slot.
        charge: (full scale, white^2, flicker^2): ``sigma = full_scale sqrt(white^2 sum phi + flicker^2 sum phi^2)``,
            or None.
        charge_start: (n, queries, tiles) int32 place in the pool of the first dimension.
        jitter: [1] deviation of each pulse that is not empty, and places as those of the scores; or None.
        readout: [steps] deviation in front of the rounding, and places as those of the charges; or None.
    """

    pool: Tensor
    score_sigma: Tensor | None = None
    score_start: Tensor | None = None
    charge: tuple[float, float, float] | None = None
    charge_start: Tensor | None = None
    jitter: tuple[float, Tensor] | None = None
    readout: tuple[float, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Circuits:
    """Everything between the cells and the output.

    Attributes:
        readout: Converter of the charges.
        noise: Noise, or None.
        score_offset: [1] (heads, window) offset of each slot's score, or None.
        grid: Charge of one step of the pulses: pulses times their weight are rounded half to even to whole numbers,
            and the sum of their products with the one image of the values is multiplied by it. None is continuous.
    """

    readout: Readout
    noise: Noise | None = None
    score_offset: Tensor | None = None
    grid: float | None = None


def available(variant: str | None = None) -> str:
    """Describe the kernel, as in ``AVX-512, gcc 12.2``; an empty string where there is none."""
    built = load(variant)
    return str(built) if isinstance(built, Built) else ""


def attention_forward(
    query: Tensor, cells: Cells | AgedCells, geometry: Geometry, circuits: Circuits, *, save: bool = False,
    variant: str | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Compute attention of queries whose tokens and all that they read are among the keys.

    Args:
        query: (n, queries, head_dim) float32; uint8 codes up to 127 where the cells are codes.
        cells: Images of the tokens written, or cells that make their own.
        geometry: Where they lie.
        circuits: Converter, offsets and noise.
        save: Whether to return what the backward direction needs.
        variant: Key of ``build.VARIANTS``; None is the fastest.

    Returns:
        Output (n, queries, head_dim), and with ``save`` one bit (n, queries, tiles, bytes) for each charge, set where
        the converter clips.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    call = _Call(query, cells, geometry, circuits)
    out = fresh(*call.query.shape)
    saturated = None
    if save:
        saturated = fresh(*query.shape[:2], geometry.tiles, call.width // 8, dtype=torch.uint8)
    call.run("attention_forward", variant, out=out, saturated=saturated)
    return out[..., : query.shape[-1]], saturated


def attention_backward(
    grad: Tensor, query: Tensor, cells: Cells | AgedCells, geometry: Geometry, circuits: Circuits,
    saturated: Tensor | None = None, *, slopes: Cells | AgedCells | None = None, variant: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of query, key images and value images; by excursions where cells make their own images.

    The gradient passes straight through the converter where it does not clip, and through ``phi`` where 0 < phi < 1.

    Args:
        grad: (n, queries, head_dim) gradient of the output.
        query: As in the forward direction, as are ``cells``, ``geometry`` and ``circuits``.
        cells: Decide where ``phi`` clips.
        geometry: Where the tokens lie.
        circuits: Converter, offsets and noise.
        saturated: From the forward direction; None where no converter clips.
        slopes: Cells whose products the gradient is that of, of the same kind; None takes ``cells``.
        variant: Key of ``build.VARIANTS``; None is the fastest.

    Returns:
        Gradients of the query and of the images or excursions of ``slopes``.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    call = _Call(query, cells, geometry, circuits)
    if slopes is not None and isinstance(slopes, AgedCells) is not isinstance(cells, AgedCells):
        raise ValueError("slopes: expected the same kind of cells as those of the forward direction")
    taken = call.arrays if slopes is None else call.prepared(slopes)
    dims = query.shape[-1]
    check("grad", grad, query.shape)
    results = [fresh(*shape) for shape in (call.query.shape, *taken.shapes)]
    call.sizes.update(images_dk=taken.images[0], images_dv=taken.images[1])
    if saturated is not None:
        check("saturated", saturated, (*query.shape[:2], geometry.tiles, call.width // 8), torch.uint8)
    call.run(
        "attention_backward", variant, **taken.slopes, grad=padded(grad, call.width), saturated=saturated,
        grad_query=results[0], grad_key=results[1], grad_value=results[2],
    )  # fmt: skip
    return results[0][..., :dims], results[1][..., :dims], results[2][..., :dims]


def attention_decode(
    query: Tensor, cells: Cells, position: Tensor, geometry: Geometry, circuits: Circuits, *, variant: str | None = None
) -> Tensor:
    """Compute attention of one query for each head on rings of ``window`` slots, read where they lie.

    Args:
        query: (n, 1, head_dim).
        cells: Images of all slots, (n, images, window, head_dim); slots never written may hold anything finite.
        position: (n,) int64 write index of the query's own token, which lies in slot ``position mod window``.
        geometry: Window and slots.
        circuits: Converter, offsets and noise.
        variant: Key of ``build.VARIANTS``; None is the fastest.

    Returns:
        (n, 1, head_dim).

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    if circuits.readout.errors is not None or ((n := circuits.noise) and (n.jitter or n.readout)):
        raise ValueError("the kernel of a single query knows neither jitter, nor noise and errors of codes")
    call = _Call(query, cells, geometry, circuits)
    check("query", query, (query.shape[0], 1, query.shape[2]))
    check("key", cells.key, (query.shape[0], cells.key.shape[1], geometry.window, query.shape[2]))
    check("position", position, (query.shape[0],), torch.int64)
    out = torch.empty_like(call.query)
    call.run("attention_decode", variant, out=out, position=position.contiguous())
    return out[..., : query.shape[-1]]


class _Arrays(NamedTuple):
    """Cells by the names of the arguments, their images or nodes, and the shapes of their gradients."""

    forward: Mapping[str, Tensor | Packed | None]
    slopes: Mapping[str, Tensor | Packed | None]
    images: tuple[int, int]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


class _Call:
    """The arguments of one call: checked, contiguous, padded to whole vectors, and kept alive until it returns."""

    def __init__(self, query: Tensor, cells: Cells | AgedCells, geometry: Geometry, circuits: Circuits) -> None:
        readout, noise, tiles = circuits.readout, circuits.noise, geometry.tiles
        count, queries, dims = query.shape
        self.shape, self.width, self.window = query.shape, -(-dims // MULTIPLE) * MULTIPLE, geometry.window
        aged, self.coded, self.geometry = isinstance(cells, AgedCells), query.dtype == torch.uint8, geometry
        self.keys = (cells.key.states if isinstance(cells, AgedCells) else cells.key).shape[-2]
        check("query", query, (count, queries, dims), torch.uint8 if self.coded else torch.float32)
        self.query = padded(query, self.width)
        per_head = [readout.gain, readout.offset, readout.errors, circuits.score_offset]
        if isinstance(cells, AgedCells):
            per_head.append(cells.key.rate)
        self.heads = heads = next((x.shape[0] for x in per_head if x is not None), 1)
        if count % heads:
            raise ValueError(f"{count} heads of all sequences are no multiple of the {heads} heads of the circuits")
        self.arrays = self.prepared(cells)
        self.tensors: dict[str, Tensor | Packed | None] = {
            "query_code" if self.coded else "query": self.query, **self.arrays.forward,
            "score_offset": self._optional("score_offset", circuits.score_offset, (heads, geometry.window)),
            "gain": self._circuit("gain", readout.gain, (heads, tiles, dims)),
            "offset": self._circuit("offset", readout.offset, (heads, tiles, dims)),
        }  # fmt: skip
        self.numbers = {"step": float(readout.step), "top": float(readout.top), "grid": circuits.grid or 0.0}
        if noise is not None:
            places = (count, queries, tiles)
            self.tensors["pool"] = self._optional("pool", noise.pool, noise.pool.shape)
            if noise.score_sigma is not None:
                self.tensors["score_sigma"] = self._optional("score_sigma", noise.score_sigma, (count, queries))
                self.tensors["score_start"] = self._places("score_start", noise.score_start, places)
            if noise.charge is not None:
                self.tensors["charge_noise"] = torch.tensor(noise.charge, dtype=torch.float32, device="cpu")
                self.tensors["charge_start"] = self._places("charge_start", noise.charge_start, places)
            if noise.jitter is not None:
                self.numbers["jitter"], start = noise.jitter
                self.tensors["jitter_start"] = self._places("jitter_start", start, places)
            if noise.readout is not None:
                self.numbers["readout_noise"], start = noise.readout
                self.tensors["readout_start"] = self._places("readout_start", start, places)
        codes = 0
        if readout.errors is not None:
            codes = readout.errors.shape[2]
            if readout.step <= 0.0 or codes // 2 < round(1.0 / readout.step):
                raise ValueError(f"errors of {codes} codes do not reach the end of a converter of step {readout.step}")
            self.tensors["errors"] = self._circuit("errors", readout.errors, (heads, tiles, codes, dims))
        self.sizes = {
            "count": count, "heads": heads, "queries": queries, "keys": self.keys, "width": self.width, "dims": dims,
            "window": geometry.window, "slots": min(geometry.slots, geometry.window),
            "query_start": geometry.query_start, "key_start": geometry.key_start, "threads": torch.get_num_threads(),
            "images_k": self.arrays.images[0], "images_v": self.arrays.images[1], "codes": codes,
        }  # fmt: skip
        single = self.arrays.images[1] == 1 and not aged and self.arrays.forward["constant_v"] is None
        if circuits.grid is not None and not single:
            raise ValueError("a pulse grid needs values of one image, without a constant")

    def run(self, function: str, variant: str | None, **tensors: Tensor | Packed | None) -> None:
        """Call a function of the library."""
        built = load(variant)
        if not isinstance(built, Built):
            raise Unavailable(built)
        given = {
            name: x.data_ptr() if isinstance(x, Tensor) else x.address
            for name, x in {**self.tensors, **tensors}.items() if x is not None
        }  # fmt: skip
        arguments = Arguments(**self.sizes, **self.numbers, **given)
        if getattr(built.library, function)(ctypes.byref(arguments)):
            raise MemoryError(f"{function}: no memory for its tables")

    def prepared(self, cells: Cells | AgedCells) -> _Arrays:
        """Check and pad cells."""
        if isinstance(cells, Cells):
            return self._of_images(cells)
        ranges = Ranges.of(self.geometry, self.shape[1])
        check("key", cells.key.states, (self.shape[0], self.keys, self.shape[2]))
        check("value", cells.value.states, cells.key.states.shape)
        key = cells.key.packed("key", self.heads, ranges, self.width)
        value = cells.value.packed("value", self.heads, ranges, self.width)
        shape = (self.shape[0], self.keys, self.width)
        forward, slopes = {"aged_k": key, "aged_v": value}, {"aged_dk": key, "aged_dv": value}
        return _Arrays(forward, slopes, (key.nodes, value.nodes), (shape, shape))

    def _of_images(self, cells: Cells) -> _Arrays:
        key, value = padded(cells.key, self.width), padded(cells.value, self.width)
        weights = {"weight_k": cells.weight_k.contiguous(), "weight_v": cells.weight_v.contiguous()}
        constants = {"constant_k": cells.constant_k, "constant_v": cells.constant_v}
        beside = {**weights, **{name: None if x is None else x.contiguous() for name, x in constants.items()}}
        self._check_images(replace(cells, key=key, value=value))
        suffix, slopes = "_code" if self.coded else "", {f"slope_{name}": x for name, x in beside.items()}
        if not self.coded:
            slopes.update(slope_key=key, slope_value=value)
        forward = {f"key{suffix}": key, f"value{suffix}": value, **beside}
        return _Arrays(forward, slopes, (key.shape[1], value.shape[1]), (key.shape, value.shape))

    def _check_images(self, cells: Cells) -> None:
        """Compare shapes of images and weights."""
        for name, states, weights in (("key", cells.key, cells.weight_k), ("value", cells.value, cells.weight_v)):
            images = states.shape[1]
            if not 1 <= images <= MOST_IMAGES:
                raise ValueError(f"{name}: expected 1 to {MOST_IMAGES} images, received {images}")
            kind = torch.int8 if self.coded else torch.float32
            check(name, states, (self.shape[0], 1 if self.coded else images, self.keys, self.width), kind)
            check(f"weights of the {name}s", weights, (images, self.window))
        for name, constant in (("constant_k", cells.constant_k), ("constant_v", cells.constant_v)):
            if constant is not None:
                check(name, constant, (self.window,))

    def _optional(self, name: str, x: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        if x is None:
            return None
        check(name, x, shape)
        return x.contiguous()

    def _circuit(self, name: str, x: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        found = self._optional(name, x, shape)
        return None if found is None else padded(found, self.width)

    def _places(self, name: str, x: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if x is None:
            raise ValueError(f"{name}: expected the places of the noise in the pool, received None")
        check(name, x, shape, torch.int32)
        return x.contiguous()
