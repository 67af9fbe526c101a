"""Token by token into a ring buffer: the numbers of the whole sequence at once."""

from __future__ import annotations

import pytest
import torch

from device_models import load_device
from hwsim import Die, gain_cell_attention
from hwsim.functional.attention_tiled import attend
from hwsim.functional.fading_cells import FadingCells
from hwsim.functional.layout import causal_layout
from hwsim.functional.reads import Place, sequence_keys
from hwsim.functional.ring import RingBuffer
from hwsim.functional.tables import AttentionTables
from tests import tolerances
from tests.hwsim.comparison import EVERY_EFFECT, NO_REFRESH, PERIOD, every_effect, inputs

SPREADLESS = {"retention.tau_sigma_ln": 0.0}
LINEAR = {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]}
ALIKE_BUT_FOR_TIME = {
    "variability.gain_sigma": 0.0, "variability.offset_sigma": "0 V", "wire.resistance": "0 ohm",
}  # fmt: skip


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
        ((2, 2, 1, 40, 8), 16, 8, LINEAR),
        ((2, 2, 1, 40, 8), 16, 8, ALIKE_BUT_FOR_TIME),
        ((2, 2, 1, 40, 8), 16, 8, {**LINEAR, **ALIKE_BUT_FOR_TIME}),
        ((1, 2, 1, 40, 8), 16, 8, {"retention.kind": "stretched", "retention.beta": 0.7}),
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


@pytest.mark.parametrize("more", [{}, SPREADLESS, EVERY_EFFECT], ids=str)
@pytest.mark.parametrize("before", [3, 30, 55])
def test_tokens_are_written_without_being_read(before: int, more: dict[str, object]) -> None:
    """One write of several, past the end of the ring and of more than it holds, is as many steps."""
    device = load_device("gaincell_28nm", {"window.tokens": 24, "tile.slots": 8, **more})
    tensors, place = inputs(2, 4, 2, 60, 16), Place(Die(3, device), sequence_keys(5, 2, torch.device("cpu")))
    rings = [RingBuffer(device, 2, 4, 2, 16, token_period_s=PERIOD, place=place, dtype=torch.float64) for _ in range(4)]

    def steps(ring: RingBuffer, start: int, stop: int) -> torch.Tensor:
        return torch.cat([ring.step(*(x[:, :, t : t + 1] for x in tensors)) for t in range(start, stop)], 2)

    expected = steps(rings[0], 0, 60)[:, :, before:]
    steps(rings[1], 0, 2)
    rings[1].write(*(x[:, :, 2:before] for x in tensors[1:]))
    known = max(0, before - 23)
    rings[2].write(*(x[:, :, known:before] for x in tensors[1:]), first=known)
    steps(rings[3], 0, 60)  # another text before it leaves nothing
    rings[3].write(*(x[:, :, known:before] for x in tensors[1:]), first=known)
    for ring in rings[1:]:
        assert ring.tokens == before
        found = steps(ring, before, 60)
        assert (found - expected).abs().max() <= tolerances.TWINS * expected.abs().max()


@pytest.mark.parametrize("chip", [True, False])
def test_range_of_the_readout_scales_each_head(chip: bool) -> None:
    device = load_device("gaincell_28nm", {
        "window.tokens": 24, "tile.slots": 8, "readout.range": "learned", "readout.circuit": "sar", **SPREADLESS,
    })  # fmt: skip
    tensors, scale = inputs(1, 4, 2, 50, 16), torch.linspace(0.1, 0.4, 4, dtype=torch.float64)
    place = Place(Die(3, device), sequence_keys(5, 1, torch.device("cpu"))) if chip else Place()
    tables = AttentionTables(causal_layout(50, device), device, PERIOD, torch.float64)
    expected = attend(*tensors, device, tables, place, full_scale=scale)
    ring = RingBuffer(device, 1, 4, 2, 16, token_period_s=PERIOD, place=place, dtype=torch.float64)
    found = [ring.step(*(x[:, :, t : t + 1] for x in tensors), full_scale=scale) for t in range(50)]
    assert (torch.cat(found, 2) - expected).abs().max() <= tolerances.TWINS * expected.abs().max()
    plain = attend(*tensors, device, tables, place)
    assert (plain - expected).abs().max() > 0.05 * expected.abs().max()


@pytest.mark.parametrize("which", ["numbers", "cells", "mixed", "constant"])
def test_fading_cells_are_their_equation(which: str) -> None:
    """Also with fewer slots than before, of which nothing is left."""
    rng = torch.Generator().manual_seed(1)
    rates, *of_cells = torch.rand(5, 2, 6, 3, generator=rng, dtype=torch.float64)
    laws: dict[str, list[torch.Tensor | float]] = {
        "numbers": [0.5, 1.5, 0.0, -2.0], "cells": list(of_cells), "mixed": [0.0, of_cells[1][:, :1], 0.3, of_cells[3]],
        "constant": [0.7, 0.0, 0.0, 0.0],
    }  # fmt: skip
    cells = FadingCells(laws[which], rates, (4, 2, 8, 3))
    y = torch.rand(4, 2, 6, 3, generator=rng, dtype=torch.float64) - 0.5
    cells.excursions[:, :, :6] = y
    for held in (6, 4):
        ages = torch.arange(held).flip(0)
        d = torch.exp(-rates[:, :held] * ages[:, None])
        expected = sum((c if isinstance(c, float) else c[:, :held]) * (y[:, :, :held] * d) ** n
                       for n, c in enumerate(laws[which]))  # fmt: skip
        found = cells.currents(ages)
        torch.testing.assert_close(found[:, :, :held], torch.as_tensor(expected), rtol=tolerances.FLOAT64, atol=1e-15)
        assert not found[:, :, held:].any()


def test_what_a_ring_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        RingBuffer(load_device("gaincell_28nm"), 1, 3, 2, 8, token_period_s=PERIOD)
    absolute = every_effect(**NO_REFRESH, **{"tile.assignment": "absolute"})
    with pytest.raises(ValueError, match="needs a hard sigmoid and sub-tiles of physical slots"):
        RingBuffer(absolute, 1, 2, 2, 8, token_period_s=PERIOD)
