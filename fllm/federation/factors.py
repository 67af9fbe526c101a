r"""Averages of low-rank adapters: what averaging the factors loses, and the best average of a rank.

A client i with weight :math:`w_i` (their sum is 1) changes a layer by :math:`B_i A_i`. The exact average of the changes
is :math:`M = \sum_i w_i B_i A_i`, of rank up to the sum of the clients' ranks. FedAvg sends
:math:`\bar B \bar A` of the averaged factors back, which is another matrix unless all A or all B are equal; the product
of no rank-r factors is closer to M than its truncated singular value decomposition (Eckart and Young 1936; for adapters
Bai et al., FlexLoRA, NeurIPS 2024). Nothing here makes a matrix of the size of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

A, B = ".lora_A.", ".lora_B."
Factors = tuple[Tensor, Tensor]
"""B (out, r) and A (r, in) of one layer."""


def factors_of(adapter: Mapping[str, Tensor], frozen: Mapping[str, Tensor] | None = None) -> dict[str, Factors]:
    """Return the factors of each adapted layer by the name of its A.

    Args:
        adapter: Tensors by name.
        frozen: Tensors that are not sent, as A of FFA-LoRA.
    """
    whole = {**(frozen or {}), **adapter}
    return {name: (whole[name.replace(A, B)], t) for name, t in sorted(whole.items()) if A in name}


def average_error(
    updates: Sequence[Mapping[str, Factors]], weights: Sequence[float], sent: Mapping[str, Factors]
) -> float:
    r"""Return :math:`\lVert B A - M \rVert_F / \lVert M \rVert_F` over all layers together [1].

    Args:
        updates: Factors of each client, layer by layer.
        weights: Of the clients; they are brought to the sum 1.
        sent: Factors that the server sends back.

    Returns:
        The relative error; 0 where M is 0.
    """
    wrong = right = 0.0
    for name, (b, a) in sent.items():
        tall, wide = _stacked([update[name] for update in updates], weights)
        right += _squared_norm(tall, wide)
        wrong += _squared_norm(torch.cat([tall, -b.double()], 1), torch.cat([wide, a.double()]))
    return math.sqrt(max(wrong, 0.0) / right) if right > 0 else 0.0


def best_average(layer: Sequence[Factors], weights: Sequence[float], rank: int) -> Factors:
    r"""Return the factors of rank r whose product is closest to M, as :math:`U S^{1/2}` and :math:`S^{1/2} V^T`.

    Their signs are those that make the largest number of each column of U positive, so that equal updates give equal
    bytes. Where M has a lower rank, the columns of B that are left over are zero and the rows of A those of the
    clients: both zero would never learn again.
    """
    tall, wide = _stacked(layer, weights)
    q_tall, r_tall = torch.linalg.qr(tall)
    q_wide, r_wide = torch.linalg.qr(wide.T)
    u, s, vt = torch.linalg.svd(r_tall @ r_wide.T, full_matrices=False)
    used = min(rank, int((s > 1e-12 * s[0]).sum()))
    left, right, root = q_tall @ u[:, :used], vt[:used] @ q_wide.T, s[:used].sqrt()
    sign = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    b, a = tall.new_zeros(len(tall), rank), tall.new_zeros(rank, wide.shape[1])
    a[: len(wide)] = wide[:rank]
    b[:, :used], a[:used] = left * (sign * root), right * (sign.T * root[:, None])
    return b, a


def _stacked(layer: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return factors of M: B of all clients side by side, each with its weight, and A one below the other."""
    total = math.fsum(weights)
    return (
        torch.cat([weight / total * b.double() for weight, (b, _) in zip(weights, layer, strict=True)], 1),
        torch.cat([a.double() for _, a in layer]),
    )


def _squared_norm(b: Tensor, a: Tensor) -> float:
    """Return the squared Frobenius norm of B A from the Gram matrices of its factors."""
    return float(((b.T @ b) * (a @ a.T)).sum())
