"""Token by token into a ring buffer: the numbers of the whole sequence at once."""

from __future__ import annotations

import pytest
import torch

from device_models import load_device
from hwsim import Die, gain_cell_attention
from hwsim.functional.reads import Place, sequence_keys
from hwsim.functional.ring import RingBuffer
from tests import tolerances
from tests.hwsim.comparison import EVERY_EFFECT, NO_REFRESH, PERIOD, every_effect, inputs

SPREADLESS = {"retention.tau_sigma_ln": 0.0}


@pytest.mark.parametrize("chip", ["design", "die", "noise"])
@pytest.mark.parametrize(
    ("sizes", "window", "slots", "more"),
    [
        ((2, 4, 2, 100, 16), 40, 16, {}),
        ((2, 4, 2, 100, 16), 40, 16, SPREADLESS),
        ((1, 2, 1, 70, 8), 64, 64, {**SPREADLESS, "retention.v_inf": "0.3 V"}),
        ((1, 2, 2, 60, 8), 16, 8, {"refresh.kind": "periodic", "refresh.interval": "90 us"}),
        ((1, 2, 2, 60, 8), 16, 8, {**SPREADLESS, "refresh.kind": "periodic", "refresh.interval": "90 us"}),
        ((1, 1, 1, 5, 8), 16, 8, {"retention.kind": "none"}),
        ((1, 1, 1, 30, 8), 1, 1, SPREADLESS),
        ((1, 2, 1, 60, 16), 24, 8, EVERY_EFFECT),
    ],
    ids=str,
)
def test_steps_are_the_sequence(
    sizes: tuple[int, int, int, int, int], window: int, slots: int, more: dict[str, object], chip: str
) -> None:
    device = load_device("gaincell_28nm", {"window.tokens": window, "tile.slots": slots, **more})
    batch, heads, kv_heads, tokens, head_dim = sizes
    query, key, value = inputs(*sizes)
    die = None if chip == "design" else Die(3, device)
    noise = 5 if chip == "noise" else None
    expected = gain_cell_attention(query, key, value, device, token_period_s=PERIOD, die=die, read_key=noise)
    place = Place(die, sequence_keys(noise, batch, query.device))
    ring = RingBuffer(
        device, batch, heads, kv_heads, head_dim, token_period_s=PERIOD, place=place, dtype=torch.float64
    )  # fmt: skip
    steps = [ring.step(*(x[:, :, t : t + 1] for x in (query, key, value))) for t in range(tokens)]
    found = torch.cat(steps, 2)
    assert ring.tokens == tokens and expected.abs().max() > 0.05
    assert (found - expected).abs().max() <= tolerances.TWINS * expected.abs().max()


def test_what_a_ring_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        RingBuffer(load_device("gaincell_28nm"), 1, 3, 2, 8, token_period_s=PERIOD)
    absolute = every_effect(**NO_REFRESH, **{"tile.assignment": "absolute"})
    with pytest.raises(ValueError, match="needs a hard sigmoid and sub-tiles of physical slots"):
        RingBuffer(absolute, 1, 2, 2, 8, token_period_s=PERIOD)
