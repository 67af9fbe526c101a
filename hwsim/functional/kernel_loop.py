"""Whether kernels compute a tile loop, in C or in Triton, and the tile loop in their words.

Both leave out digitised scores and learned ranges of the readout; those in Triton pulse jitter, noise and code errors
of the readout, and cells with time constants of their own as well. ``tile_loop`` does all of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from device_models.converters import highest_code
from hwsim import gpu, native
from hwsim.functional.age_weights import Family, fewest_nodes, fitted_weights
from hwsim.functional.aged_cells import AgedCells
from hwsim.functional.cell_products import CellImages
from hwsim.functional.cells import full_scale_current
from hwsim.functional.circuits import Circuits
from hwsim.functional.layout import Stretch
from hwsim.randomness import normal_pool

Kernel = Literal["auto", "torch", "native", "triton"]
_KERNELS = {"native": native, "triton": gpu}
_WANTED: ContextVar[Kernel] = ContextVar("hwsim_attention_kernel", default="auto")


@contextmanager
def attention_kernel(kernel: Kernel) -> Iterator[None]:
    """Choose what computes attention inside the block, in float32, and ternary arrays on the CPU.

    Args:
        kernel: ``auto`` takes the kernels in C for tensors on the CPU where there is a compiler, those in Triton for
            tensors on CUDA devices where Triton is installed, and neither where they do not know an effect of the
            device. ``torch`` takes none. ``native`` takes those in C on the CPU wherever they know the effects, and
            fails where they were not built; ``triton`` those in Triton likewise, on any device, and fails where it
            is not installed, and on a CPU unless TRITON_INTERPRET=1 was set before Python started.
    """
    token = _WANTED.set(kernel)
    try:
        yield
    finally:
        _WANTED.reset(token)


@dataclass(frozen=True, eq=False)
class KernelLoop:
    """One tile loop as the kernels take it.

    Attributes:
        kind: Which kernels.
        query: (n, queries, d) pulses.
        cells: What the forward direction multiplies by.
        slopes: What the gradients are those of; None where they are the same.
        geometry: Which tokens.
        circuits: Between the products and behind them.
    """

    kind: Literal["native", "triton"]
    query: Tensor
    cells: native.Cells | native.AgedCells
    slopes: native.Cells | native.AgedCells | None
    geometry: native.Geometry
    circuits: native.Circuits

    def forward(self, *, save: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output, and where converters clip."""
        return _KERNELS[self.kind].attention_forward(self.query, self.cells, self.geometry, self.circuits, save=save)

    def backward(self, grad: Tensor, saturated: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by pulses, key images and value images."""
        return _KERNELS[self.kind].attention_backward(
            grad, self.query, self.cells, self.geometry, self.circuits, saturated, slopes=self.slopes
        )


def kernel_loop(
    pulses: Tensor, exact: tuple[object, object], behind: tuple[object, object], circuits: Circuits, stretch: Stretch
) -> KernelLoop | None:
    """Return the loop for the kernels; None where they do not compute it, or are not to.

    Args:
        pulses: (n, queries, d).
        exact: Cells of both products.
        behind: Cells whose products the gradients are those of.
        circuits: Everything between the products.
        stretch: Which tokens.
    """
    kind = _kind(pulses.device)
    if kind is None or not _known(circuits, pulses, kind):
        return None
    device = circuits.device
    geometry = native.Geometry(device.window.tokens, device.tile.slots, stretch.first_query, stretch.first_key)

    def arrays(pair: tuple[object, object]) -> native.Cells | native.AgedCells | None:
        keys, values = pair
        if isinstance(keys, CellImages) and isinstance(values, CellImages):
            few = max(len(keys.bands), len(values.bands)) <= native.MOST_IMAGES
            return _cells(keys, values, circuits) if few else None
        if kind == "native" and isinstance(keys, AgedCells) and isinstance(values, AgedCells):
            ranges = native.Ranges.of(geometry, stretch.queries)
            made = _aged(keys, ranges, 1.0), _aged(values, ranges, 1.0 / circuits.per_charge)
            return native.AgedCells(made[0], made[1]) if made[0] and made[1] else None
        return None

    cells = arrays(exact)
    slopes = None if behind[0] is exact[0] else arrays(behind)
    if cells is None or (slopes is None and behind[0] is not exact[0]):
        return None
    values = exact[1]
    grid = values.grid[0] if isinstance(values, CellImages) and values.grid else None
    return KernelLoop(kind, pulses, cells, slopes, geometry, circuits_for_kernels(circuits, geometry, grid))


def in_c(circuits: Circuits, like: Tensor) -> bool:
    """Whether the kernels in C compute what these circuits do, on tensors like this one, and are to."""
    return like.device.type == "cpu" and wants_c() and _known(circuits, like, "native")


def wants_c() -> bool:
    """Whether the kernels in C are to compute what they can of attention."""
    return _kind(torch.device("cpu")) == "native"


def arrays_in_c() -> bool:
    """Whether kernels in C are to read ternary arrays, for which there are none in Triton."""
    return _WANTED.get() != "torch" and (_WANTED.get() == "native" or bool(native.available()))


def _kind(where: torch.device) -> Literal["native", "triton"] | None:
    """Return which kernels are to compute with tensors of a device."""
    wanted = _WANTED.get()
    if wanted == "auto" and where.type == "cpu":
        return "native" if native.available() else None
    if wanted == "auto":
        return None if gpu.unavailable(where) else "triton"
    if wanted == "triton" or (wanted == "native" and where.type == "cpu"):
        return wanted
    return None


def _known(circuits: Circuits, like: Tensor, kind: Literal["native", "triton"]) -> bool:
    """Whether kernels know all effects of circuits, on tensors like this one."""
    if like.dtype != torch.float32 or circuits.device.tile.assignment != "ring":
        return False
    if circuits.device.readout_qk.bits is not None or circuits.full_scale is not None:
        return False
    return kind == "native" or not (circuits.jitter or circuits.code_errors or circuits.readout_noise)


def _cells(keys: CellImages, values: CellImages, circuits: Circuits) -> native.Cells:
    """Return images with their weights by age; charges in saturations."""
    window, unit = circuits.device.window.tokens, 1.0 if values.grid else 1.0 / circuits.per_charge

    def by_age(band: Tensor, scale: float = 1.0) -> Tensor:
        weight = band.new_zeros(window)
        weight[: circuits.ages] = band[: circuits.ages, 0]
        return weight.mul_(scale)

    def weights(cells: CellImages, scale: float) -> Tensor:
        return torch.stack([by_age(band, scale) for band in cells.bands])

    def constant(cells: CellImages, scale: float) -> Tensor | None:
        return None if cells.constant is None else by_age(cells.constant[1], cells.constant[0] * scale)

    return native.Cells(
        keys.states.detach(), values.states.detach(), weights(keys, 1.0), weights(values, unit), constant(keys, 1.0),
        constant(values, unit),
    )  # fmt: skip


def _aged(cells: AgedCells, ranges: native.Ranges, unit: float) -> native.AgedArray | None:
    """Return cells with the nodes of the kernels' ranges of ages; None where these are too many."""
    assert cells.family is not None
    made, like = _nodes(cells.family, ranges), cells.states
    if made is None:
        return None
    ages, weights, counts = made
    highest = max((n for n, c in enumerate(cells.coefficients) if isinstance(c, Tensor) or c), default=0)
    found = [
        c.expand(len(cells.rate), -1, like.shape[-1]) if isinstance(c, Tensor)
        else like.new_full((len(cells.rate), 1, like.shape[-1]), c)
        for c in cells.coefficients[: highest + 1]
    ]  # fmt: skip
    if cells.excursions_alone:
        found = []
    scaled = weights * (cells.scale * unit)
    rate = cells.rate.expand(-1, *like.shape[1:])
    return native.AgedArray(like.detach(), rate, tuple(found), ranges, ages, scaled, counts, cells.v_scale)


@functools.lru_cache(maxsize=64)
def _nodes(family: Family, ranges: native.Ranges) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return ages, weights and numbers of the nodes of all ranges; None where one needs too many."""
    youngest = [ranges.youngest(number) for number in range(ranges.count)]
    lived = [age + ranges.span >= 0 for age in youngest]  # before that nothing is written
    found = [fewest_nodes(family, ranges.span, age) if some else 0 for age, some in zip(youngest, lived, strict=True)]
    counts = [count for count in found if count is not None]
    if len(counts) < len(found) or max(counts) > native.MOST_NODES:
        return None
    ages = torch.zeros(ranges.count, max(counts), device="cpu", dtype=torch.float32)
    weights = torch.zeros(*ages.shape, ranges.span + 1, device="cpu", dtype=torch.float32)
    for number, (age, count) in enumerate(zip(youngest, counts, strict=True)):
        if count:
            ages[number, :count] = torch.tensor(family.node_ages(count, ranges.span, age), device="cpu")
            weights[number, :count] = torch.from_numpy(fitted_weights(family, count, ranges.span, age)[0])
    return ages, weights, torch.tensor(counts, device="cpu")


def circuits_for_kernels(circuits: Circuits, geometry: native.Geometry, grid: float | None = None) -> native.Circuits:
    """Return circuits as the kernels take them; ``grid`` is the charge [1] of one step of the pulse grid."""
    device, place = circuits.device, circuits.place
    readout, noise, die = device.readout, None, place.die
    gain = offset = errors = score_offset = None
    if die is not None:
        if circuits.step is not None and readout.gain_sigma:
            gain = circuits.columns("readout gain").mul(readout.gain_sigma).add_(1.0)
        if circuits.step is not None and readout.offset_sigma:
            offset = circuits.columns("readout offset").mul(readout.offset_sigma)
        errors = circuits.errors() if circuits.code_errors else None
        if circuits.offset:
            slots = torch.arange(geometry.window, device=circuits.like.device)
            score_offset = circuits.per_head(
                die.columns("phi", circuits.kv_heads, slots).to(circuits.like) * circuits.offset
            )
    if circuits.noisy_scores or circuits.noisy_charge or circuits.jitter or circuits.readout_noise:
        scores, charges = circuits.noisy_scores, circuits.noisy_charge
        full = full_scale_current(device) / device.saturation.av
        noise = native.Noise(
            normal_pool(circuits.like.device),
            circuits.line if scores else None,
            circuits.places("score", device.tile.slots) if scores else None,
            (full, device.noise.white**2, device.noise.flicker**2) if charges else None,
            circuits.places("charge", circuits.dims) if charges else None,
            (circuits.jitter, circuits.places("phi jitter", device.tile.slots)) if circuits.jitter else None,
            (circuits.readout_noise, circuits.places("readout", circuits.dims)) if circuits.readout_noise else None,
        )
    top = 0.0 if circuits.step is None else float(highest_code(readout))
    return native.Circuits(native.Readout(circuits.step or 0.0, top, gain, offset, errors), noise, score_offset, grid)
