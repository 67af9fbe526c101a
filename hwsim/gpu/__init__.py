"""Gain-cell attention in Triton, for CUDA devices; optional. Triton is imported at the first use.

Arguments and results are those of :mod:`hwsim.native`, whose ``attention.h`` has the equations. No two programs add to
the same number, so the same call gives the same bits. They know no jitter, no noise and errors of codes, and no cells
with time constants of their own. Their speed on a GPU was never measured.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hwsim.gpu.arguments import LAUNCH, Call, Slopes
from hwsim.native import Cells, Circuits, Geometry, Unavailable


def unavailable(device: torch.device) -> str:
    """Say why there are no kernels for tensors of a device; an empty string where there are."""
    if find_spec("triton") is None:
        return "Triton is not installed: install fllm[gpu]"
    if device.type == "cuda" or (device.type == "cpu" and _module("parts").INTERPRETED):
        return ""
    interpreter = "set TRITON_INTERPRET=1 before Python starts to have the kernels of fllm[gpu] interpreted"
    return f"Triton computes on CUDA devices, not on {device.type!r}; on a CPU {interpreter}"


def attention_forward(
    query: Tensor, cells: Cells, geometry: Geometry, circuits: Circuits, *, save: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Compute attention of queries whose tokens and all that they read are among the keys.

    Args:
        query: (n, queries, head_dim) float32.
        cells: Images of the tokens written.
        geometry: Where they lie.
        circuits: Converter, offsets, noise and pulse grid.
        save: Whether to return what the backward direction needs.

    Returns:
        Output (n, queries, head_dim), and with ``save`` one bit (n, queries, tiles, bytes) for each charge, set where
        the converter clips.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    call = _call(query, cells, geometry, circuits)
    out = torch.empty_like(call.query)
    saturated = None
    if save:
        saturated = query.new_empty(_bits(call, geometry), dtype=torch.uint8)
    first, blocks = call.query_blocks()
    with torch.cuda.device_of(query):
        _module("forward").forward_kernel[blocks, call.count](
            call.scoring, call.charging, call.converting, call.sizes, out, saturated, first,
            IMAGES_K=call.images[0], IMAGES_V=call.images[1], **call.blocks, **LAUNCH,
        )  # fmt: skip
    return out, saturated


def attention_backward(
    grad: Tensor, query: Tensor, cells: Cells, geometry: Geometry, circuits: Circuits, saturated: Tensor | None = None,
    *, slopes: Cells | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of query, key images and value images.

    The gradient passes straight through the converter where it does not clip, through ``phi`` where 0 < phi < 1, and
    straight through the rounding of a pulse grid.

    Args:
        grad: (n, queries, head_dim) gradient of the output.
        query: As in the forward direction, as are ``cells``, ``geometry`` and ``circuits``.
        cells: Decide where ``phi`` clips.
        geometry: Where the tokens lie.
        circuits: Converter, offsets, noise and pulse grid.
        saturated: From the forward direction; None where no converter clips.
        slopes: Cells whose products the gradient is that of; None takes ``cells``.

    Returns:
        Gradients of the query and of the images of ``slopes``.

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    call = _call(query, cells, geometry, circuits)
    taken = call.cells if slopes is None else call.checked_cells(slopes)
    if saturated is not None:
        saturated = call.checked("saturated", saturated, _bits(call, geometry), torch.uint8)
    behind = Slopes(
        taken.key, taken.value, taken.weight_k, taken.weight_v, taken.constant_k, taken.constant_v,
        call.checked("grad", grad, query.shape), saturated,
    )  # fmt: skip
    results = torch.empty_like(call.query), torch.empty_like(taken.key), torch.empty_like(taken.value)
    images = taken.key.shape[1], taken.value.shape[1]
    known = {"IMAGES_K": call.images[0], "IMAGES_DK": images[0], "IMAGES_DV": images[1], **call.blocks, **LAUNCH}
    given = call.scoring, call.charging, call.converting, behind, call.sizes
    kernels = _module("backward")
    with torch.cuda.device_of(query):
        first, blocks = call.query_blocks()
        kernels.queries_kernel[blocks, call.count](*given, results[0], first, **known)
        first, pieces = call.key_pieces()
        grid = pieces, call.count, max(images)
        kernels.cells_kernel[grid](*given, *results[1:], first, **known)
    return results


def attention_decode(query: Tensor, cells: Cells, position: Tensor, geometry: Geometry, circuits: Circuits) -> Tensor:
    """Compute attention of one query for each head on rings of ``window`` slots, read where they lie.

    Args:
        query: (n, 1, head_dim).
        cells: Images of all slots, (n, images, window, head_dim); slots never written may hold anything finite.
        position: (n,) int64 write index of the query's own token, which lies in slot ``position mod window``.
        geometry: Window and slots.
        circuits: Converter, offsets, noise and pulse grid.

    Returns:
        (n, 1, head_dim).

    Raises:
        Unavailable: If there is no kernel.
        ValueError: If a tensor has another shape, type or device.
    """
    call = _call(query, cells, geometry, circuits)
    call.checked("query", query, (call.count, 1, call.dims))
    call.checked("key", cells.key, (call.count, call.images[0], geometry.window, call.dims))
    position = call.checked("position", position, (call.count,), torch.int64)
    codes = query.new_empty(call.count, geometry.tiles, call.dims)
    with torch.cuda.device_of(query):
        _module("decode").decode_kernel[geometry.tiles, call.count](
            call.scoring, call.charging, call.converting, call.sizes, position, codes,
            IMAGES_K=call.images[0], IMAGES_V=call.images[1], C=call.blocks["C"], D=call.blocks["D"], **LAUNCH,
        )  # fmt: skip
    return codes.sum(1, keepdim=True).mul_(call.converting.step)


def _call(query: Tensor, cells: Cells, geometry: Geometry, circuits: Circuits) -> Call:
    reason = unavailable(query.device)
    if reason:
        raise Unavailable(reason)
    return Call(query, cells, geometry, circuits)


def _bits(call: Call, geometry: Geometry) -> tuple[int, ...]:
    return *call.shape[:2], geometry.tiles, -(-call.dims // 8)


def _module(name: str) -> Any:
    return import_module(f"hwsim.gpu.{name}")
