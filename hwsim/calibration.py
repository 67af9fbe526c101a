"""Set range scalers from statistics, for a model that was never on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hwsim.modules import GainCellAttention

QUERY_SPREAD = 0.25
"""Standard deviation of the queries after scaling, in units of the full pulse; their mean comes to half a pulse."""
STORED_SPREAD = 0.25
"""Standard deviation of stored voltages after scaling, in units of the storage range around its zero level."""


@torch.no_grad()
def calibrate_range_scalers(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Set the query, key and value scalers of an emulated model so that its converters are used without much clipping.

    Per layer and head, ``gain = spread / std`` and ``offset`` moves the mean to the middle of the range: two standard
    deviations fit. Layers are set one after another, as each changes what the next one sees.

    Args:
        model: An emulated model; its output scalers stay.
        batches: Token ids (batch, tokens), without padding.

    Raises:
        ValueError: If the model is not emulated or no batch is given.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GainCellAttention)]
    if not layers or not batches:
        raise ValueError("calibration needs an emulated model and at least one batch of token ids")
    was_training = model.training
    model.eval()
    for layer in layers:
        seen: list[tuple[Tensor, ...]] = []

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], seen: list[tuple[Tensor, ...]] = seen) -> None:
            seen.append(inputs[:3])

        hook = layer.register_forward_pre_hook(keep)
        for batch in batches:
            model(input_ids=batch, use_cache=False)
        hook.remove()
        storage = layer.device.storage
        width = storage.v_max - storage.v_min
        for index, scaler, spread, middle in (
            (0, layer.query, QUERY_SPREAD, 0.5),
            (1, layer.key, STORED_SPREAD * width, storage.v_zero),
            (2, layer.value, STORED_SPREAD * width, storage.v_zero),
        ):
            values = torch.cat([x[index].transpose(0, 1).flatten(1) for x in seen], dim=1).double()
            gain = spread / values.std(dim=1).clamp(min=1e-9)
            scaler.gain.copy_(gain)
            scaler.offset.copy_(middle - gain * values.mean(dim=1))
    model.train(was_training)
