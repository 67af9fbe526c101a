"""Set the ranges of the converters of ternary linear arrays from statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hwsim.calibration import evaluating, run
from hwsim.functional.bitlinear import activation_codes
from hwsim.functional.linear_arrays import range_of_design
from hwsim.linear import BitLinear

SUMS = 1 << 18
"""Column sums that the range of one matrix is chosen from."""


def linear_layers(model: nn.Module) -> list[BitLinear]:
    """Return the ternary layers of a model that are emulated on arrays whose converters keep a range with the model."""
    layers = (layer for layer in model.modules() if isinstance(layer, BitLinear) and layer.array is not None)
    return [layer for layer in layers if layer.array is not None and layer.array.adc_range in ("calibrated", "learned")]


@torch.no_grad()
def calibrate_linear_arrays(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the range of each matrix's converters to what rounds its products with the least mean squared error.

    Approximation: the layers see what they would see in digital, and each chip gets the range of the design; some
    tokens stand for all.

    Args:
        model: An emulated model; layers on arrays whose range is fixed or ideal are left alone.
        batches: Token ids (batch, tokens), without padding.

    Raises:
        ValueError: If no batch is given.
    """
    layers = linear_layers(model)
    if not layers:
        return
    if not batches:
        raise ValueError("calibration needs at least one batch of token ids")
    seen: dict[BitLinear, list[Tensor]] = {layer: [] for layer in layers}
    kept = [(layer, layer.on_arrays) for layer in layers]

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, BitLinear)
        x = inputs[0] if layer.norm is None else layer.norm(inputs[0])
        tokens = x.flatten(0, -2)
        seen[layer].append(tokens[:: max(1, len(batches) * len(tokens) // _tokens(layer))])

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        for layer, on in kept:
            assert on is not None
            digital = replace(on.array, adc_range="ideal", gain_sigma=0.0, stuck_at_zero=0.0, noise=0.0)
            layer.on_arrays = replace(on, array=digital)
        with evaluating(model):
            run(model, batches)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, on in kept:
            layer.on_arrays = on
    for layer, inputs in seen.items():
        assert layer.array is not None
        x, _ = activation_codes(torch.cat(inputs)[: _tokens(layer)])
        layer.set_range(range_of_design(x, layer.codes(), layer.array), learned=layer.array.adc_range == "learned")


def _tokens(layer: BitLinear) -> int:
    """Return how many tokens give ``SUMS`` column sums of a layer."""
    assert layer.array is not None
    each = layer.array.input_cycles * -(-layer.in_features // layer.array.rows) * layer.out_features
    return max(16, SUMS // each)
