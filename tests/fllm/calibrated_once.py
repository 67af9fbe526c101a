"""What a model of a test is measured for at loading, which is all but a tenth of the time that loading takes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import fllm.model.base
from hwsim import gain_cell_layers
from hwsim.linear_calibration import linear_layers

_KNOWN: dict[str, list[float]] = {}


@contextmanager
def calibrated_once() -> Iterator[None]:
    """Find the ranges of arrays' converters once for equal weights, devices and texts, from which alone they follow.

    Runs in processes of their own, ``test_linear_ranges`` and the tests of hwsim do without.
    """
    calibrate = fllm.model.base.calibrate_linear_arrays

    def once(model: nn.Module, batches: Sequence[Tensor]) -> None:
        layers = linear_layers(model)
        of = _digest(model, batches)
        if of not in _KNOWN:
            calibrate(model, batches)
            _KNOWN[of] = [float(layer.full_scale.detach()) for layer in layers]
        else:
            for layer, range_ in zip(layers, _KNOWN[of], strict=True):
                layer.set_range(range_, learned=layer.array.adc_range == "learned")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fllm.model.base, "calibrate_linear_arrays", once)
        yield


def _digest(model: nn.Module, batches: Sequence[Tensor]) -> str:
    """Return a digest of all that the ranges follow from."""
    found = hashlib.sha256()
    for name, tensor in (*model.state_dict().items(), *((f"text {i}", ids) for i, ids in enumerate(batches))):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    for cells in gain_cell_layers(model):
        found.update(f"{cells.device!r} {cells.token_period_s!r} {cells.noise_seed!r} {cells.die!r}".encode())
    for layer in linear_layers(model):
        found.update(f"{layer.array!r}".encode())
    return found.hexdigest()
