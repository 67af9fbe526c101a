"""The loop over sub-tiles: its weights, its steps, its memory, and cells of their own time constants in float32."""

from __future__ import annotations

import math

import pytest
import torch

from device_models import load_device
from hwsim import Die, attention_kernel, gain_cell_attention
from hwsim.functional import tile_loop
from hwsim.functional.age_weights import TOLERANCE, Family, fewest_nodes, fitted_weights, steps_and_nodes
from hwsim.functional.aged_cells import _Images
from hwsim.functional.attention_tiled import attend
from hwsim.functional.cell_products import Workspace, band_of_ages
from hwsim.functional.layout import Stretch, stretch_layout
from hwsim.functional.reads import Place, sequence_keys
from hwsim.functional.tables import AttentionTables
from tests import tolerances
from tests.hwsim.comparison import NO_REFRESH, PERIOD, assert_same, every_effect, inputs, values_and_gradients


def test_band_holds_the_weight_of_each_age() -> None:
    weight = torch.tensor([5.0, 4.0, 3.0])
    expected = [[5.0, 0.0], [4.0, 5.0], [3.0, 4.0], [0.0, 3.0]]
    assert band_of_ages(weight, 2).tolist() == expected
    assert band_of_ages(weight, 1).tolist() == [[5.0], [4.0], [3.0]]


@pytest.mark.parametrize("assignment", ["ring", "absolute"])
@pytest.mark.parametrize("queries", [1, 3, 40, 99])
def test_a_chunk_reads_what_the_whole_sequence_does(queries: int, assignment: str) -> None:
    """The last queries alone, with all keys or with those that they read."""
    device = every_effect(
        **NO_REFRESH, **{"window.tokens": 40, "tile.slots": 16, "tile.assignment": assignment}
    )  # fmt: skip
    query, key, value = inputs(2, 4, 2, 100, 8)
    die, keys = Die(1, device), sequence_keys(7, 2, query.device)
    whole = gain_cell_attention(query, key, value, device, token_period_s=PERIOD, die=die, read_key=7)
    for first in {0, max(0, 100 - queries - 39)}:
        layout = stretch_layout(Stretch(queries, 100 - first, first), device)
        tables = AttentionTables(layout, device, PERIOD, torch.float64)
        part = attend(query[:, :, -queries:], key[:, :, first:], value[:, :, first:], device, tables, Place(die, keys))
        torch.testing.assert_close(part, whole[:, :, -queries:], rtol=0.0, atol=tolerances.TWINS)


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_heads_in_any_number_at_a_time(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    device = every_effect(**NO_REFRESH, **{"window.tokens": 40, "tile.slots": 16, "retention.tau_sigma_ln": spread})
    tensors, chip = inputs(2, 4, 2, 70, 8), {"die": Die(1, device), "read_key": 3}
    before = values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **chip)
    for scores in (1, 3 * 40 * 16, 1 << 30):
        monkeypatch.setitem(tile_loop.SCORES_AT_ONCE, "cpu", scores)
        assert_same(values_and_gradients(gain_cell_attention, tensors, device, PERIOD, **chip), before, 1e-13)


def test_few_nodes_serve_cells_of_a_device() -> None:
    """Linear cells at the published period, and cubic ones at the ten times longer one of a whole model."""
    linear = Family(((0.0, 19.3, 0.0, 0.0),), -0.45, 0.45, 0.78e-6 / 5e-3, 0.4)
    cubic = Family(((0.521364, 13.612261, -2.620446, 46.054838),), -0.45, 0.45, 1e-5 / 5e-3, 0.4)
    assert steps_and_nodes(linear, 1024, 1024, 64) == (512, 3)
    assert steps_and_nodes(cubic, 75, 1024, 64) == (128, 6)
    for family, rows, nodes in ((linear, 512, 3), (cubic, 128, 6)):
        for youngest in (-63, 1, 449):
            assert fitted_weights(family, nodes, rows + 62, youngest)[1] <= TOLERANCE
        assert fitted_weights(family, nodes - 1, rows + 62, 1)[1] > TOLERANCE
    frozen = Family(linear.laws, -0.45, 0.45, 0.0, 0.4)
    assert steps_and_nodes(frozen, 1024, 1024, 64) == (1024, 1)


@pytest.mark.parametrize("period", [1e-6, 1e-5, 1e-4])
def test_few_nodes_serve_self_limited_loss(period: float) -> None:
    """Cubic cells of `gaincell_28nm_logic`, which lose a third of a volt in the first token."""
    rate = period / 8.7e-9 * math.exp(-0.9 / 0.0456)
    family = Family(((0.521364, 13.612261, -2.620446, 46.054838),), 0.0, 0.9, rate, 0.6, 0.0456)
    for youngest, most in ((-63, 9), (1, 8), (65, 4), (513, 3)):
        nodes = fewest_nodes(family, 126, youngest)
        assert nodes is not None and nodes <= most
        assert fitted_weights(family, nodes, 126, youngest)[1] <= TOLERANCE
    ages = family.node_ages(9, 126, -63)
    assert min(ages) == 0.0 and sorted(ages)[1] >= 1.0 and max(ages) <= 63.0


@torch.no_grad()
def test_cells_of_their_own_time_change_few_codes_in_float32() -> None:
    """Against float64, where the interpolation is exact to rounding; both at 1000 tokens of the published period."""
    device = load_device("gaincell_28nm", {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]})
    tensors, die = inputs(1, 2, 2, 1000, 64), Die(1, device)
    exact = gain_cell_attention(*tensors, device, token_period_s=7.8e-7, die=die)
    found = gain_cell_attention(*(x.float() for x in tensors), device, token_period_s=7.8e-7, die=die)
    assert ((found - exact).abs() > 0.5 / 15).double().mean() <= tolerances.FLOAT32_FLIPS


def test_memory_grows_with_tokens_and_not_with_their_square() -> None:
    """Largest tensor that a forward and backward pass makes, in numbers."""
    device, largest = load_device("gaincell_28nm", {"window.tokens": 64}), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes() // out.element_size())
            return out

    tensors = inputs(1, 1, 1, 2000, 16, torch.float32)
    die = Die(1, device)
    with attention_kernel("torch"):
        values_and_gradients(gain_cell_attention, tensors, device, PERIOD, die=die)  # what is made once for a chip
        with Watch():
            values_and_gradients(gain_cell_attention, tensors, device, PERIOD, die=die)
    assert largest < 2000 * 64 * 31  # readout errors at each code of a converter at most; 2000^2 is as much again


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_of_equal_length_from_different_tokens_on(dtype: torch.dtype) -> None:
    """On one chip: what is kept of it must not depend on how many keys there are."""
    device = load_device("gaincell_28nm", {"window.tokens": 40, "tile.slots": 16})
    query, key, value = (x.to(dtype) for x in inputs(1, 2, 2, 120, 8))
    die = Die(1, device)
    whole = gain_cell_attention(query, key, value, device, token_period_s=PERIOD, die=Die(1, device))
    for queries in (1, 10):
        for first in (21, 37, 41, 60):
            last = first + 39 + queries
            tables = AttentionTables(
                stretch_layout(Stretch(queries, last - first, first), device), device, PERIOD, dtype
            )  # fmt: skip
            rows, keys = slice(last - queries, last), slice(first, last)
            part = attend(query[:, :, rows], key[:, :, keys], value[:, :, keys], device, tables, Place(die))
            codes = ((part - whole[:, :, rows]).abs() > 0.5 / 15).double().mean()
            assert codes <= (0.0 if dtype == torch.float64 else 0.02)


def test_a_text_that_grows_leaves_no_copy_of_the_chip_for_each_length() -> None:
    device = load_device("gaincell_28nm", {"window.tokens": 64, "tile.slots": 16})
    die, kept = Die(1, device), []
    for tokens in range(1, 60):
        gain_cell_attention(*inputs(1, 1, 1, tokens, 4, torch.float32), device, token_period_s=PERIOD, die=die)
        kept.append(len(die._derived))
    assert kept[-1] <= kept[20] + 8


@pytest.mark.parametrize("period", [5e-3, 0.1])
def test_periods_beyond_the_time_constant(period: float) -> None:
    """Nothing is left of most tokens; the fit of the weights has to stand that."""
    device = load_device("gaincell_28nm", {"window.tokens": 64, "tile.slots": 16})
    tensors, die = inputs(1, 1, 1, 70, 8), Die(1, device)
    exact = gain_cell_attention(*tensors, device, token_period_s=period, die=die)
    found = gain_cell_attention(*(x.float() for x in tensors), device, token_period_s=period, die=die)
    assert ((found - exact).abs() > 0.5 / 15).double().mean() <= tolerances.FLOAT32_FLIPS


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_second_derivatives_are_refused(kernel: str) -> None:
    device = load_device("gaincell_28nm", {"window.tokens": 64, "tile.slots": 16})
    query, key, value = (x.requires_grad_() for x in inputs(1, 1, 1, 20, 16, torch.float32))
    with attention_kernel(kernel):  # type: ignore[arg-type]
        out = gain_cell_attention(query, key, value, device, token_period_s=PERIOD)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.square().sum(), query, create_graph=True)


def test_a_checkpoint_frees_what_the_loop_took() -> None:
    device = load_device("gaincell_28nm", {"window.tokens": 64, "tile.slots": 16})
    tensors = [x.requires_grad_() for x in inputs(1, 1, 1, 100, 16)]
    plain = gain_cell_attention(*tensors, device, token_period_s=PERIOD)
    again = torch.utils.checkpoint.checkpoint(
        lambda *x: gain_cell_attention(*x, device, token_period_s=PERIOD), *tensors, use_reentrant=False
    )  # fmt: skip
    node = again.grad_fn
    while node is not None and "TileLoop" not in type(node).__name__:
        node = node.next_functions[0][0]
    held = [x for x in vars(node.arrays.keys).values() if isinstance(x, torch.Tensor)]  # type: ignore[union-attr]
    assert not any(x.shape[-1] == 16 for x in held)
    for one, other in zip(*(torch.autograd.grad(out.square().sum(), tensors) for out in (plain, again)), strict=True):
        assert torch.equal(one, other)


def test_what_self_limited_loss_leaves_of_cells() -> None:
    """An image and its gradient at an age that cells of both signs reach, and some do not outlive."""
    v_scale, age = 0.08, 300.0
    family = Family(((0.0, 1.0, 0.0, 0.0),), -0.45, 0.45, 1e-3, 0.4, v_scale)
    y = torch.linspace(-0.45, 0.45, 24).view(1, 1, 3, 8)
    rate = torch.tensor(1e-3).view(1, 1, 1)
    images = _Images(y, rate, [0.0, 1.0, 0.0, 0.0], (age,), Workspace(y), bare=True, v_scale=family.v_scale)
    exact = y.double().requires_grad_()
    left = exact.sign() * v_scale * (-(torch.exp(-exact.abs() / v_scale) + 1e-3 * age).log()).clamp(min=0.0)
    assert 0 < (left == 0.0).sum() < 24
    assert (images.at(0).view_as(y) - left.detach()).abs().max() <= 1e-7
    left.sum().backward()
    assert (images.through(torch.ones(1, 3, 8)).view_as(y) - exact.grad).abs().max() <= 1e-6
