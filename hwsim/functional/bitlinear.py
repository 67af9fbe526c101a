"""W1.58A8 arithmetic: ternary weights with one scale per matrix, 8-bit activations with one scale per token.

Bit-exact with the BitNet layers of transformers, whose rounding order is kept.

Source: ma2024 (absmean weights, absmax activations); straight-through gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ternary_scale(weight: Tensor) -> Tensor:
    """Return mean |W| [1], at least 1e-5, in float32."""
    return weight.float().abs().mean().clamp(min=1e-5)


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
        wide = x if x.dtype == torch.float64 else x.float()
        scale = 127 / wide.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-5)
        return (wide * scale).round_().clamp_(-128, 127).div_(scale).to(x.dtype)

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
