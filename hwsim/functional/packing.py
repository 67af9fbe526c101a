"""Four ternary codes in a byte, as BitNet checkpoints store them.

Byte r of a column holds rows r, r + R, r + 2R, r + 3R with R = rows / 4, code + 1 in bits 0-1, 2-3, 4-5, 6-7: the
layout of transformers' BitNet integration.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHIFTS = (0, 2, 4, 6)


def pack_codes(codes: Tensor) -> Tensor:
    """Pack codes -1, 0, 1 of shape (rows, columns) into uint8 of shape (rows / 4, columns).

    Raises:
        ValueError: If the rows are no multiple of four or a value is no code.
    """
    rows = codes.shape[0]
    if rows % 4:
        raise ValueError(f"packing needs a multiple of 4 rows, got {rows}")
    if not bool(((codes == -1) | (codes == 0) | (codes == 1)).all()):
        raise ValueError("packing needs the codes -1, 0, 1")
    parts = (codes + 1).to(torch.uint8).view(4, rows // 4, -1)
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def unpack_codes(packed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo :func:`pack_codes`, without a check of the codes (:func:`check_packed`)."""
    out = torch.empty(len(SHIFTS), *packed.shape, dtype=dtype, device=packed.device)
    for part, shift in zip(out, SHIFTS, strict=True):
        part.copy_(packed.bitwise_right_shift(shift).bitwise_and_(3)).sub_(1)
    return out.flatten(0, 1)


def check_packed(packed: Tensor) -> None:
    """Check that every code stands for a weight.

    Raises:
        ValueError: If a code is 3, which stands for none.
    """
    # Both bits of a code are set: no tensor larger than the packed one is made
    if bool((packed & (packed >> 1) & 0b01010101).any()):
        raise ValueError("packed weights hold the code 3, which is no ternary weight")
