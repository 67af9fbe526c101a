"""Currents of all cells of a ring after each token, where each cell fades exponentially at a pace of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FadingCells:
    """The cells of one array, at whole ages: ``I = totaln c'_n (y exp(-age r))^n`` with the excursion y at the write.

    Twin of ``cell_current(relaxed_voltage(..))``, in memory that is used again: fresh memory costs as much as the
    arithmetic.

    Args:
        coefficients: c'_n, n = 0..3, of the current over the saturation; numbers or (g, slots or 1, d).
        rates: [1] loss per token of each cell, r; (g, slots, d).
        shape: (b, g, padded slots, d).
    """

    def __init__(self, coefficients: Sequence[Tensor | float], rates: Tensor, shape: Sequence[int]) -> None:
        zero = [isinstance(c, float) and c == 0.0 for c in coefficients]
        self.coefficients = coefficients[: max((n + 1 for n, nothing in enumerate(zero) if not nothing), default=1)]
        self.paces = -rates
        self.excursions = rates.new_zeros(tuple(shape))
        self._factors = torch.empty_like(rates)
        self._faded, self._currents = torch.empty_like(self.excursions), torch.empty_like(self.excursions)

    def currents(self, ages: Tensor) -> Tensor:
        """Return the currents (b, g, padded slots, d) of the first slots, of these ages [tokens]; zero elsewhere."""
        held = ages.numel()

        def some(x: Tensor) -> Tensor:
            return x[..., :held, :]  # what all slots share stays as it is

        factors = torch.mul(some(self.paces), ages[:, None].to(self.paces.dtype), out=some(self._factors)).exp_()
        y = torch.mul(some(self.excursions), factors, out=some(self._faded))
        out, total = some(self._currents), self.coefficients[-1]
        if len(self.coefficients) == 1:
            out.copy_(some(total)) if isinstance(total, Tensor) else out.fill_(total)
        for c in reversed(self.coefficients[:-1]):
            if isinstance(c, Tensor) and isinstance(total, Tensor):
                torch.addcmul(some(c), some(total), y, out=out)
            else:
                torch.mul(y, some(total) if isinstance(total, Tensor) else total, out=out)
                out.add_(some(c) if isinstance(c, Tensor) else c)
            total = out
        self._currents[..., held:, :] = 0.0
        return self._currents
