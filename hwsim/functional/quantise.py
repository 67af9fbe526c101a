"""Straight-through converters: the differentiable twins of ``device_models.converters``.

Forward rounds, backward passes the gradient where the input lies strictly inside the range and stops it where the
converter clips (``hardtanh_backward``'s convention).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from device_models.converters import readout_step
from device_models.schema import Readout


def round_straight_through(x: Tensor, step: float, origin: float = 0.0) -> Tensor:
    """Round half to even onto ``origin + n * step``; the gradient passes unchanged."""
    return _RoundStraightThrough.apply(x, step, origin)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, step: float, origin: float) -> Tensor:  # noqa: ARG004
        return (x - origin).div_(step).round_().mul_(step).add_(origin)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ARG004
        return grads[0], None, None


def quantise_levels(x: Tensor, levels: int | None, low: float, high: float) -> Tensor:
    """Clip to [low, high] and round to ``levels`` equidistant codes, straight through.

    Args:
        x: Values of any shape, in the unit of ``low`` and ``high``.
        levels: Number of codes, both ends included; None leaves the value continuous.
        low: Lower end of the range.
        high: Upper end of the range.

    Returns:
        Values of the shape of ``x`` on the grid.
    """
    if levels is None:
        return torch.nn.functional.hardtanh(x, low, high)
    step = (high - low) / (levels - 1)
    if not torch.is_grad_enabled():
        return _on_levels(x, step, low, high)
    return _QuantiseLevels.apply(x, step, low, high)


def _on_levels(x: Tensor, step: float, low: float, high: float) -> Tensor:
    """Clip and round to levels."""
    out = _counts(x, step, low, high, 0).mul_(step)
    return out.add_(low) if low else out


class _QuantiseLevels(torch.autograd.Function):
    """:func:`_on_levels`, straight through where it does not clip."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range = low, high
        return _on_levels(x, step, low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return torch.ops.aten.hardtanh_backward(grads[0], ctx.saved_tensors[0], *ctx.range), None, None, None


def count_levels(x: Tensor, levels: int, low: float, high: float, *, centred: bool) -> Tensor:
    """Return which of the codes of :func:`quantise_levels` a value becomes, as a whole number of its dtype.

    Args:
        x: Values of any shape.
        levels: Number of codes.
        low: Lower end of the range.
        high: Upper end of the range.
        centred: Whether to count half steps from the middle of the range; else steps from its lower end.
    """
    step, middle = (high - low) / (levels - 1), levels - 1 if centred else 0
    if not torch.is_grad_enabled():
        return _counts(x, step, low, high, middle)
    return _CountLevels.apply(x, step, low, high, middle)


def _counts(x: Tensor, step: float, low: float, high: float, middle: int) -> Tensor:
    """Clip and round to codes, in place after the clip: fresh memory costs more than the rounding."""
    out = torch.clamp(x, low, high)
    out = (out.sub_(low) if low else out).div_(step).round_()
    return out.mul_(2.0).sub_(middle) if middle else out


class _CountLevels(torch.autograd.Function):
    """Codes, straight through where the converter does not clip; the middle of ``centred`` codes is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, low: float, high: float, middle: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.range, ctx.slope = (low, high), (2.0 if middle else 1.0) / step
        return _counts(x, step, low, high, middle)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        grad = torch.ops.aten.hardtanh_backward(grads[0], ctx.saved_tensors[0], *ctx.range)
        return grad.mul_(ctx.slope), None, None, None, None


def read_out(x: Tensor, readout: Readout) -> Tensor:
    """Clip a value [1], given in units of the saturation, to [-1, 1] and round it to the readout's codes."""
    clipped = torch.nn.functional.hardtanh(x, -1.0, 1.0)
    step = readout_step(readout)
    return clipped if step is None else round_straight_through(clipped, step)
