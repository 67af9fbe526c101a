"""BitLinear in digital: online bit for bit that of transformers, offline and packed in whole numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear

from hwsim import BitLinear
from hwsim.functional.bitlinear import activation_codes, ternary_codes, ternary_scale
from tests import tolerances

SHAPES = [(16, 8), (100, 36), (257, 64)]


def theirs(inputs: int, outputs: int, bias: bool, offline: bool) -> AutoBitLinear:
    torch.manual_seed(inputs)
    layer = AutoBitLinear(inputs, outputs, bias=bias, online_quant=not offline)
    if offline:
        layer.weight.data = ternary_codes(layer.weight.data)
        layer.weight_scale.copy_(torch.tensor([0.0371]))
    return layer


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_online_is_bit_equal_in_value_and_gradient(inputs: int, outputs: int, bias: bool) -> None:
    reference = theirs(inputs, outputs, bias, offline=False)
    ours = BitLinear.from_linear(reference)
    x = torch.randn(3, 7, inputs)
    results = []
    for layer in (reference, ours):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        wanted = [leaf, layer.weight, *([layer.bias] if bias else [])]
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() > 0


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_offline_is_theirs_in_value_and_gradient(inputs: int, outputs: int) -> None:
    """Ours multiplies the exact sum by both scales, theirs adds up rounded values."""
    reference = theirs(inputs, outputs, bias=False, offline=True)
    ours = BitLinear(inputs, outputs, offline=True)
    ours.weight.data, ours.weight_scale = reference.weight.data, reference.weight_scale
    x = torch.randn(3, 7, inputs)
    results = []
    for layer in (reference, ours):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaf)])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= tolerances.FREEZE * b.abs().max()
    assert not ours.weight.requires_grad


def offline(inputs: int, outputs: int, scale: float = 0.0371) -> BitLinear:
    torch.manual_seed(inputs)
    layer = BitLinear(inputs, outputs, offline=True)
    layer.weight.data = torch.randint(-1, 2, (outputs, inputs)).float()
    layer.weight_scale = torch.tensor(scale)
    return layer


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_offline_is_a_whole_number_times_two_scales(inputs: int, outputs: int) -> None:
    layer, x = offline(inputs, outputs), torch.randn(5, inputs)
    codes, scale = activation_codes(x)
    exact = codes.long() @ layer.weight.long().T
    assert torch.equal(layer(x), exact.float() * (layer.weight_scale / scale))


def test_any_order_of_inputs_gives_the_same_bits() -> None:
    layer, x, order = offline(2560, 8), torch.randn(4, 2560), torch.randperm(2560)
    shuffled = offline(2560, 8)
    shuffled.weight.data = layer.weight.data[:, order]
    assert torch.equal(layer(x), shuffled(x[:, order]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_computes_what_offline_does(dtype: torch.dtype) -> None:
    layer, x = offline(100, 36), torch.randn(2, 5, 100, dtype=dtype, requires_grad=True)
    wanted = layer(x)
    (slope,) = torch.autograd.grad(wanted.square().sum(), x)
    layer.pack_()
    assert layer.packed and layer.offline and layer.weight.shape == (9, 100)
    out = layer(x)
    assert out.dtype == dtype and torch.equal(out, wanted)
    assert torch.equal(torch.autograd.grad(out.square().sum(), x)[0], slope)
    assert list(layer.state_dict()) == ["weight", "weight_scale"]


def test_packing_needs_whole_bytes_and_freezes_master_weights() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        offline(8, 6).pack_()
    with pytest.raises(ValueError, match="multiple of 4"):
        BitLinear(8, 6, packed=True)
    layer, x = BitLinear(16, 8), torch.randn(3, 16)
    frozen = BitLinear.from_linear(nn.Linear(16, 8, bias=False))
    frozen.weight.data = layer.weight.data.clone()
    frozen.freeze_()
    layer.pack_()
    assert torch.equal(layer(x), frozen(x))


def test_norm_inside_the_layer_comes_before_the_rounding() -> None:
    norm = nn.RMSNorm(16)
    norm.weight.data.uniform_(0.5, 2.0)
    layer = BitLinear(16, 8, offline=True, norm=norm)
    plain = offline(16, 8, 1.0)
    layer.weight.data = plain.weight.data
    x = torch.randn(3, 16)
    assert torch.equal(layer(x), plain(norm(x))) and not torch.equal(layer(x), plain(x))
    assert "norm.weight" in layer.state_dict()


def test_a_token_that_is_not_finite_stays_alone() -> None:
    layer, x = offline(16, 8), torch.randn(3, 16)
    wanted = layer(x)
    x[1, 3] = float("nan")
    out = layer(x)
    assert torch.equal(out[[0, 2]], wanted[[0, 2]]) and out[1].isnan().all()


def test_offline_bias_is_not_scaled() -> None:
    layer = BitLinear(4, 2, bias=True, offline=True)
    layer.weight.data.zero_()
    layer.bias.data.copy_(torch.tensor([1.0, -2.0]))
    layer.weight_scale = torch.tensor(0.1)
    assert layer(torch.randn(3, 4)).tolist() == [[1.0, -2.0]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_freezing_keeps_what_the_layer_computes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = BitLinear(100, 36, bias=True).to(dtype)
    x = torch.randn(5, 100, dtype=dtype)
    before, scale = layer(x), ternary_scale(layer.weight)
    layer.freeze_()
    assert set(layer.weight.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert layer.weight_scale is not None and torch.allclose(layer.weight_scale, scale)
    room = max(tolerances.FREEZE, 2 * torch.finfo(dtype).eps)
    assert (layer(x) - before).abs().max() <= room * before.abs().max()
    frozen = layer(x)
    layer.freeze_()  # a second time must not quantise again
    assert torch.equal(layer(x), frozen)


def test_scale_and_codes_of_a_known_matrix() -> None:
    weight = torch.tensor([[1.0, -0.2, 0.6], [-3.0, 0.0, 1.2]])  # mean magnitude 1
    assert ternary_scale(weight).item() == pytest.approx(1.0)
    assert ternary_codes(weight).tolist() == [[1, 0, 1], [-1, 0, 1]]


def test_activations_have_255_levels_per_token() -> None:
    layer = BitLinear(4, 4, offline=True)
    layer.weight.data.copy_(torch.eye(4))
    out = layer(torch.tensor([[127.0, 1.4, -2.6, 0.0], [0.0127, 0.00014, -0.0127, 0.0]]))
    torch.testing.assert_close(out, torch.tensor([[127.0, 1.0, -3.0, 0.0], [0.0127, 0.0001, -0.0127, 0.0]]))


def test_a_token_does_not_see_its_neighbours() -> None:
    layer, x = BitLinear(32, 8), torch.randn(4, 32)
    assert torch.equal(layer(x)[0], layer(torch.stack([x[0], 1e3 * x[1], x[2], x[3]]))[0])


def test_zero_input_and_zero_weight_stay_finite() -> None:
    layer = BitLinear(8, 4)
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 4))
    layer.weight.data.zero_()
    assert torch.equal(layer(torch.randn(2, 8)), torch.zeros(2, 4))


def test_state_dict_names_and_sharing() -> None:
    linear = nn.Linear(8, 4)
    made = BitLinear.from_linear(linear)
    assert list(made.state_dict()) == list(linear.state_dict())
    assert made.weight is linear.weight and made.bias is linear.bias
    assert list(BitLinear(8, 4, offline=True).state_dict()) == ["weight", "weight_scale"]


@pytest.mark.parametrize("size", [1.0, 1e-3, 2e-5, 1e-7], ids=lambda size: f"inputs-{size:g}")
def test_online_is_bit_equal_for_any_scale(size: float) -> None:
    """Scales whose reciprocal does not invert exactly, and magnitudes below the floor of the scale."""
    for seed in range(20):
        torch.manual_seed(seed)
        reference = AutoBitLinear(24, 12, bias=False, online_quant=True)
        reference.weight.data.mul_(torch.rand(()))
        x = size * torch.randn(4, 24)
        assert torch.equal(BitLinear.from_linear(reference)(x), reference(x))


def test_weights_below_the_floor_of_the_scale() -> None:
    torch.manual_seed(0)
    reference = AutoBitLinear(24, 12, bias=False, online_quant=True)
    reference.weight.data.mul_(4e-5)
    x = torch.randn(4, 24)
    out = BitLinear.from_linear(reference)(x)
    assert torch.equal(out, reference(x)) and out.abs().max() > 0
