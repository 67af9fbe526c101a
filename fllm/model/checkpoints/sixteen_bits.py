"""Embedding and LM head of a large model: kept in 16 bits as stored, while the model computes in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 1 << 13
"""Rows of the vocabulary that are widened at a time."""


class SixteenBitEmbedding(nn.Embedding):
    """Embedding whose rows are widened to float32 when they are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up (...) token ids: (..., width) in float32."""
        return super().forward(input).float()


class SixteenBitHead(nn.Linear):
    """LM head that multiplies in float32; a wide copy of all its weights never exists."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to (..., width)."""
        out = _WideProduct.apply(input, self.weight)
        return out if self.bias is None else out + self.bias


class _WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.cat([x @ rows.to(x.dtype).T for rows in weight.split(ROWS)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,), dy = ctx.saved_tensors, grads[0]
        parts = zip(dy.split(ROWS, dim=-1), weight.split(ROWS), strict=True)
        return torch.stack([part @ rows.to(dy.dtype) for part, rows in parts]).sum(0), None


def keep_sixteen_bits(model: nn.Module) -> dict[str, nn.Module]:
    """Have the embedding and the LM head of a model keep weights of 16 bits, in place; other classes are left alone.

    Returns:
        The two, by name.
    """
    found = {}
    narrow = {nn.Embedding: SixteenBitEmbedding, nn.Linear: SixteenBitHead}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    for name, module in model.named_modules():
        if any(module is end for end in ends) and type(module) in narrow:
            module.__class__ = narrow[type(module)]
            found[name] = module
    return found
