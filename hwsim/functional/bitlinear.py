"""W1.58A8 arithmetic: ternary weights with one scale per matrix, 8-bit activations with one scale per token.

Two orders of the same arithmetic. Rounded *values* (:func:`ternary_weight`, :func:`eight_bit_activation`), which train
master weights and are bit-exact with the BitNet layers of transformers. And *codes* (:func:`ternary_product`), as
hardware computes: whole numbers are multiplied and added, exactly, and both scales act behind the sum.

Source: ma2024 (absmean weights, absmax activations); straight-through gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def ternary_scale(weight: Tensor) -> Tensor:
    """Return mean |W| [1], at least 1e-5, in float32."""
    return weight.float().abs().mean().clamp(min=1e-5)


def code_scale(weight: Tensor) -> Tensor:
    """Return what the codes of a weight matrix are multiplied by [1]: its scale, to the last bit as values have it.

    ``1 / (1 / s)``: :func:`ternary_weight` divides by the reciprocal.
    """
    return 1.0 / (1.0 / ternary_scale(weight))


def ternary_codes(weight: Tensor) -> Tensor:
    """Return the codes -1, 0, 1 of a weight matrix in float32: round(W / mean |W|), clipped."""
    return (weight.float() * (1.0 / ternary_scale(weight))).round().clamp(-1, 1)


class _TernaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor) -> Tensor:  # noqa: ARG004
        return (ternary_codes(weight) / (1.0 / ternary_scale(weight))).to(weight.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0]


class _EightBitActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:  # noqa: ARG004
        codes, scale = activation_codes(x)
        return codes.div_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0]


def ternary_weight(weight: Tensor) -> Tensor:
    """Round a weight matrix to {-s, 0, s} with s = mean |W|; the gradient passes unchanged.

    Rounding an already ternary matrix keeps its codes but multiplies its scale by the share of non-zeros: apply it
    to master weights only.
    """
    return _TernaryWeight.apply(weight)


def eight_bit_activation(x: Tensor) -> Tensor:
    """Round each token (last axis) to 255 levels of its largest magnitude; the gradient passes unchanged.

    Computed in float32, in float64 for float64 inputs.
    """
    return _EightBitActivation.apply(x)


def activation_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes -127 .. 127 of each token (last axis), and how many codes a unit of it takes (..., 1).

    ``a = 127 / max |x|``, ``codes = round(a x)``; both in float32, in float64 for float64 inputs.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    scale = 127 / wide.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-5)
    return (wide * scale).round_(), scale  # at most 127: the largest times its scale is 127 to one rounding


@dataclass(frozen=True, eq=False)
class Multiplier:
    """What multiplies codes of activations (..., inputs) by codes of weights, and what backward needs of it.

    Attributes:
        codes: Returns the codes of the weights, (outputs, inputs).
        product: Returns the product (..., outputs), on arrays or in digital.
        slope: Returns its derivative by the converters' range, (..., outputs); only where the range is learned.
    """

    codes: Callable[[], Tensor]
    product: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor] | None = None


def ternary_product(
    x: Tensor, weight_scale: Tensor, multiplier: Multiplier, master: Tensor | None = None,
    full_scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Multiply codes and scale the sum: ``y = product(round(a x)) s / a``.

    Backward is that of the digital layer, straight through both roundings: it runs on a digital accelerator, which
    knows nothing of the arrays' deviations. ``dx = s dy W``, ``dW = dy^T round(a x) / a`` for master weights, and
    ``dF = sum dy slope s / a`` for a range that is learned.

    Args:
        x: (..., inputs) activations.
        weight_scale: [1] s, one for the matrix.
        multiplier: What multiplies.
        master: (outputs, inputs) trainable weights behind the codes; None where they are frozen.
        full_scale: [cell currents] (), F where it is learned.

    Returns:
        (..., outputs) in the dtype of ``x``.
    """
    return _TernaryProduct.apply(x, weight_scale, multiplier, master, full_scale)


class _TernaryProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_scale: Tensor, multiplier: Multiplier, master: Tensor | None,
        full_scale: Tensor | None,
    ) -> Tensor:  # fmt: skip
        whole, scale = activation_codes(x)
        ctx.multiplier, ctx.weight_scale = multiplier, weight_scale
        if master is not None or full_scale is not None:
            ctx.save_for_backward(whole.to(torch.int8), scale)
        with torch.autocast(x.device.type, enabled=False):  # whole numbers up to 2^24 need all of float32
            return multiplier.product(whole).mul_(weight_scale / scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, dx, dw, df = grads[0], None, None, None
        if ctx.needs_input_grad[0]:
            dx = (dy * ctx.weight_scale.to(dy.dtype)) @ ctx.multiplier.codes().to(dy.dtype)
        if ctx.needs_input_grad[3]:
            whole, scale = ctx.saved_tensors
            values = (whole.to(scale.dtype) / scale).to(dy.dtype)
            dw = dy.flatten(0, -2).T @ values.flatten(0, -2)
        if ctx.needs_input_grad[4]:
            whole, scale = ctx.saved_tensors
            df = (dy * ctx.multiplier.slope(whole.to(scale.dtype)) * (ctx.weight_scale / scale)).sum().to(torch.float32)
        return dx, None, None, dw, df
