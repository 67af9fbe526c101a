"""What is computed in steps, or again in the backward pass, to save memory gives the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from device_models import InputError, load_device
from hwsim import Die, gain_cell_attention
from hwsim.functional import arrays, attention_tiled
from tests import tolerances

SMALL = {"window.tokens": 20, "tile.slots": 8, "tile.rows": 8}


def run(overrides: dict[str, object], heads: int = 4) -> list[Tensor]:
    device = load_device("gaincell_28nm", {**SMALL, **overrides})
    rng = torch.Generator().manual_seed(3)
    inputs = [torch.rand(2, h, 30, 16, generator=rng, dtype=torch.float64) for h in (heads, 2, 2)]
    inputs = [x.mul_(0.9).requires_grad_() for x in inputs]
    out = gain_cell_attention(*inputs, device, token_period_s=1e-5, die=Die(1, device), read_key=2)
    out.square().sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


LAWS = {
    "spread": {},
    "stretched": {"retention.kind": "stretched", "retention.beta": 0.5},
    "refreshed": {"refresh.kind": "periodic", "refresh.interval": "90 us"},
    "surrogate": {"cell.backward": "linear", "cell.surrogate_slope": "19.3 uA/V"},
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("module", "limit", "size"),
    [(arrays, "CURRENTS_AT_ONCE", 700), (arrays, "KEPT_COEFFICIENTS", 1), (attention_tiled, "STORED_SCORES", 1)],
    ids=["currents", "coefficients", "scores"],
)
def test_smaller_limits_change_no_number(
    law: str, module: object, limit: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(LAWS[law])
    monkeypatch.setattr(module, limit, size)
    for one, other in zip(before, run(LAWS[law]), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerances.PATHS, atol=tolerances.PATHS)


def test_more_refreshes_than_can_be_emulated_are_refused() -> None:
    with pytest.raises(InputError, match="too many refreshes"):
        run({"refresh.kind": "periodic", "refresh.interval": "0.5 us"})
