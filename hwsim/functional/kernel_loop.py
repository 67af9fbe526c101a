"""Whether the kernels in C compute a tile loop, and the tile loop in their words.

They leave out pulse jitter, digitised scores, noise and code errors of the readout, and cells with time constants of
their own; ``tile_loop`` does all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from device_models.converters import highest_code
from hwsim import native
from hwsim.functional.cell_products import CellImages
from hwsim.functional.cells import full_scale_current
from hwsim.functional.circuits import Circuits
from hwsim.functional.layout import Stretch
from hwsim.randomness import normal_pool

Kernel = Literal["auto", "torch", "native"]
_WANTED: ContextVar[Kernel] = ContextVar("hwsim_attention_kernel", default="auto")


@contextmanager
def attention_kernel(kernel: Kernel) -> Iterator[None]:
    """Choose what computes attention inside the block, on a CPU in float32.

    Args:
        kernel: ``auto`` takes the kernels in C where there is a compiler and they know all effects of the device,
            ``torch`` never, ``native`` wherever they know them, and fails where they were not built.
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
        query: (n, queries, d) pulses.
        cells: What the forward direction multiplies by.
        slopes: What the gradients are those of; None where they are the same.
        geometry: Which tokens.
        circuits: Between the products and behind them.
    """

    query: Tensor
    cells: native.Cells
    slopes: native.Cells | None
    geometry: native.Geometry
    circuits: native.Circuits

    def forward(self, *, save: bool) -> tuple[Tensor, Tensor | None]:
        """Return the output, and where converters clip."""
        return native.attention_forward(self.query, self.cells, self.geometry, self.circuits, save=save)

    def backward(self, grad: Tensor, saturated: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by pulses, key images and value images."""
        return native.attention_backward(
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
    wanted, device = _WANTED.get(), circuits.device
    keys, values = exact
    if not isinstance(keys, CellImages) or not isinstance(values, CellImages):
        return None
    if wanted == "torch" or pulses.device.type != "cpu" or pulses.dtype != torch.float32 or not _known(circuits):
        return None
    most = max(len(cells.bands) for cells in (*exact, *behind) if isinstance(cells, CellImages))
    if most > native.MOST_IMAGES or device.tile.assignment != "ring":
        return None
    if wanted == "auto" and not native.available():
        return None
    slopes = None
    if behind[0] is not keys:
        assert isinstance(behind[0], CellImages) and isinstance(behind[1], CellImages)
        slopes = _cells(behind[0], behind[1], circuits)
    geometry = native.Geometry(device.window.tokens, device.tile.slots, stretch.first_query, stretch.first_key)
    return KernelLoop(pulses, _cells(keys, values, circuits), slopes, geometry, _circuits(circuits, geometry))


def _known(circuits: Circuits) -> bool:
    readout, place = circuits.device.readout, circuits.place
    if circuits.jitter or circuits.device.readout_qk.bits is not None or circuits.full_scale is not None:
        return False
    if place.die is not None and circuits.step is not None and (readout.inl or readout.dnl):
        return False
    return place.keys is None or circuits.step is None or not readout.noise


def _cells(keys: CellImages, values: CellImages, circuits: Circuits) -> native.Cells:
    """Return images with their weights by age; charges in saturations."""
    window, unit = circuits.device.window.tokens, 1.0 / circuits.per_charge

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


def _circuits(circuits: Circuits, geometry: native.Geometry) -> native.Circuits:
    device, place = circuits.device, circuits.place
    readout, noise, die = device.readout, None, place.die
    gain = offset = score_offset = None
    if die is not None:
        if circuits.step is not None and readout.gain_sigma:
            gain = circuits.columns("readout gain").mul(readout.gain_sigma).add_(1.0)
        if circuits.step is not None and readout.offset_sigma:
            offset = circuits.columns("readout offset").mul(readout.offset_sigma)
        if circuits.offset:
            slots = torch.arange(geometry.window)
            score_offset = circuits.per_head(
                die.columns("phi", circuits.kv_heads, slots).to(circuits.like) * circuits.offset
            )
    if circuits.noisy_scores or circuits.noisy_charge:
        scores, charges = circuits.noisy_scores, circuits.noisy_charge
        full = full_scale_current(device) / device.saturation.av
        noise = native.Noise(
            normal_pool(torch.device("cpu")),
            circuits.line if scores else None,
            circuits.places("score", device.tile.slots) if scores else None,
            (full, device.noise.white**2, device.noise.flicker**2) if charges else None,
            circuits.places("charge", circuits.dims) if charges else None,
        )
    top = 0.0 if circuits.step is None else float(highest_code(readout))
    return native.Circuits(native.Readout(circuits.step or 0.0, top, gain, offset), noise, score_offset)
