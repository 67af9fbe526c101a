"""The published two-step adaptation: give a non-linear device the statistics that the linear one has.

First the mean and spread behind every range scaler are recorded on the linear device; then the scalers of the target
device are iterated on one fixed batch until theirs agree. Nothing is trained.

Source: leroux2025, Methods, equation 9; damping, thresholds and limits from leroux2025code,
tests_divers/calibration_dram_scaling_parameters_multiple_functions.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device_models.cell import cell_current
from device_models.schema import DeviceModel
from hwsim.calibration import emulated_layers, evaluating, run
from hwsim.modules import GainCellAttention, RangeScaler

PUBLISHED_SLOPE = 19.3e-6
"""[A/V] of the linear cell that the published model is trained with (leroux2025code, modules/model_gpt.py:265)."""


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation came to.

    Attributes:
        iterations: Updates made.
        mismatch: Largest deviation of a mean or spread that is left, in the unit of its scaler.
        history: That deviation before each update, and after the last.
        tolerance: Deviation below which nothing is updated.
    """

    iterations: int
    mismatch: float
    history: tuple[float, ...]
    tolerance: float

    @property
    def converged(self) -> bool:
        """Whether all statistics agree within the tolerance."""
        return self.mismatch <= self.tolerance


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and standard deviation (heads,) of one scaler's output, before the converter clips it."""

    mean: Tensor
    std: Tensor


@torch.no_grad()
def adapt_range_scalers(
    model: nn.Module,
    target_device: DeviceModel,
    batches: Sequence[Tensor],
    *,
    source_device: DeviceModel | None = None,
    start: Literal["own", "unit"] = "own",
    most_iterations: int = 100,
    tolerance: float = 1e-4,
) -> Adaptation:
    """Put an emulated model on a device, and adapt its range scalers to what they gave on a linear one.

    For the scalers ``y = a x + b`` of queries, keys, values and outputs, per layer and head and all at once, with mu
    and sigma the mean and standard deviation of y over a fixed set of tokens, L on the linear device::

        a <- r a sigma_L / sigma + (1 - r) a        where |sigma - sigma_L| > tolerance and sigma > 0
        b <- r (b + mu_L - mu) + (1 - r) b          where |mu - mu_L| > tolerance

    Args:
        model: An emulated model; chip, noise key and token period stay, and so do the linear layers.
        target_device: The device to adapt to; the model is left on it.
        batches: Token ids (batch, tokens), without padding.
        source_device: The device whose statistics count; None is :func:`linear_twin` of the target.
        start: Scalers to begin with: the model's ``own``, or ``unit`` (a = 1, b = 0) as published.
        most_iterations: Updates after which it stops.
        tolerance: Deviation that needs no update, in the unit of each scaler.

    Returns:
        How far it came.

    Raises:
        ValueError: If the model is not emulated, no batch is given, or the device decays and the model has no token
            period.
    """
    layers = emulated_layers(model, batches)
    if target_device.decays and any(layer.token_period_s is None for layer in layers):
        raise ValueError(f"{target_device.name} decays: emulate the model on it first, which sets its token period")
    history: list[float] = []
    with evaluating(model):
        _put_on(layers, linear_twin(target_device) if source_device is None else source_device)
        wanted = statistics(model, batches)
        _put_on(layers, target_device)
        if start == "unit":
            for scaler in _scalers(layers):
                scaler.gain.fill_(1.0)
                scaler.offset.zero_()
        while True:
            found = statistics(model, batches)
            history.append(mismatch(found, wanted))
            if history[-1] <= tolerance or len(history) > most_iterations:
                break
            for scaler, own, goal in zip(_scalers(layers), found, wanted, strict=True):
                _update(scaler, own, goal, damping(len(history) - 1), tolerance)
    return Adaptation(len(history) - 1, history[-1], tuple(history), tolerance)


def damping(iteration: int) -> float:
    """Return r [1] of an update: from 1.0 in the first to 0.1 in the 50th in equal steps, then 0.1."""
    return max(0.1, 1.0 - 0.9 * iteration / 49)


def linear_twin(device: DeviceModel) -> DeviceModel:
    """Return the device with a linear cell and everything else as it is.

    The slope is the published 19.3 uA/V where that lies within 1 % of the least-squares slope of the device's own
    cell over its storage range (19.2 uA/V for the published cubic), and that slope otherwise.
    """
    storage = device.storage
    w = np.linspace(storage.v_min - storage.v_zero, storage.v_max - storage.v_zero, 2001)
    slope = float(np.polyfit(w, cell_current(w, device.cell), 1)[0])
    if abs(slope / PUBLISHED_SLOPE - 1.0) < 0.01:
        slope = PUBLISHED_SLOPE
    cell = replace(device.cell, law="linear", coefficients=(slope,))
    return replace(device, name=f"{device.name} with a linear cell", cell=cell)


@torch.no_grad()
def statistics(model: nn.Module, batches: Sequence[Tensor]) -> list[Statistics]:
    """Return the statistics of every range scaler over all tokens: query, key, value, output of the first layer, ..."""
    with _observed(_scalers(emulated_layers(model, batches))) as sums:
        run(model, batches)
    found = []
    for parts in sums:
        count, total, squares = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        mean = total / count
        std = ((squares - count * mean.square()).clamp(min=0.0) / (count - 1)).sqrt()
        found.append(Statistics(mean, std))
    return found


def mismatch(found: Sequence[Statistics], wanted: Sequence[Statistics]) -> float:
    """Return the largest deviation of any mean or standard deviation."""
    return max(
        float(torch.maximum((own.mean - goal.mean).abs(), (own.std - goal.std).abs()).max())
        for own, goal in zip(found, wanted, strict=True)
    )


def _update(scaler: RangeScaler, own: Statistics, goal: Statistics, r: float, tolerance: float) -> None:
    gain, offset = scaler.gain.double(), scaler.offset.double()
    ratio = torch.where(own.std > 0, goal.std / own.std, 1.0)
    new_gain = r * gain * ratio + (1.0 - r) * gain
    new_offset = r * (offset + goal.mean - own.mean) + (1.0 - r) * offset
    scaler.gain.copy_(torch.where((own.std - goal.std).abs() > tolerance, new_gain, gain))
    scaler.offset.copy_(torch.where((own.mean - goal.mean).abs() > tolerance, new_offset, offset))


def _put_on(layers: Sequence[GainCellAttention], device: DeviceModel) -> None:
    for layer in layers:
        layer.put_on(device)


def _scalers(layers: Sequence[GainCellAttention]) -> list[RangeScaler]:
    return [scaler for layer in layers for scaler in (layer.query, layer.key, layer.value, layer.output)]


@contextmanager
def _observed(scalers: Sequence[RangeScaler]) -> Iterator[list[list[tuple[Tensor, Tensor, Tensor]]]]:
    """Collect for each scaler, per forward pass: count, sum and sum of squares of its output (heads,)."""
    sums: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in scalers]

    def watch(scaler: RangeScaler, into: list[tuple[Tensor, Tensor, Tensor]]) -> RemovableHandle:
        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            y = output.double()
            count = y.new_tensor(y.numel() // y.shape[1])
            into.append((count, y.sum((0, 2, 3)), y.square().sum((0, 2, 3))))

        return scaler.register_forward_hook(keep)

    hooks = [watch(scaler, into) for scaler, into in zip(scalers, sums, strict=True)]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
