"""Compile the kernels in Triton for a CUDA device on a machine without one, and say what became of them.

The interpreter accepts much that the compiler refuses. Run as a program: Triton decides at its import which of both
there is. Prints the name of each kernel compiled and whether any fused the rounding of a pulse with its product.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hwsim import gpu
from hwsim.native import Cells, Circuits, Geometry, Readout
from tests.hwsim.native_reference import circuits, inputs, newest

SHIFT = "0f4B400000"
"""1.5 * 2^23 in PTX."""


class _Absent:
    """Stands in for the driver of a device that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    """Compile all kernels with all effects but a grid, and on a grid without any."""
    launch = triton.JITFunction.run

    def compiled(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        made = launch(self, *args, warmup=True, **kwargs)
        fused = any("fma" in line and SHIFT in line for line in made.asm["ptx"].splitlines())
        print(self.__name__, "fused" if fused else "exact")

    triton.JITFunction.run = compiled
    driver.set_active(_Absent())
    gpu.unavailable = lambda device: ""
    geometry = Geometry(70, 24)
    around = circuits(1, 80, geometry, mismatch=True, noise=True)
    _directions(*inputs(1, 80, geometry, (3, 2), constant=True), geometry, around)
    geometry = Geometry(1, 1, 1, 1)  # Triton takes arguments that are one for constants
    _directions(*inputs(1, 16, geometry, heads=1, batch=1), geometry, Circuits(Readout(), grid=0.5))


def _directions(query: torch.Tensor, cells: Cells, geometry: Geometry, around: Circuits) -> None:
    out, saturated = gpu.attention_forward(query, cells, geometry, around, save=True)
    gpu.attention_backward(out, query, cells, geometry, around, saturated)
    gpu.attention_decode(*newest(query, cells, geometry, around))


if __name__ == "__main__":
    main()
