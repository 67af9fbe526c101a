"""Differentiable converters: the NumPy twins in value, straight-through and strictly gated in gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from device_models import converters as reference
from device_models.schema import Readout
from hwsim.functional.quantise import quantise_levels, read_out

READOUTS = [Readout(5, "counter"), Readout(5, "published_33"), Readout(8, "counter"), Readout(None, "ideal")]
X = np.concatenate([np.random.default_rng(0).uniform(-2, 2, 500), np.linspace(-1.5, 1.5, 601), [0.0, 1.0, -1.0, 0.9]])


def shape(readout: Readout) -> str:
    return f"{readout.codes}-{readout.bits}"


@pytest.mark.parametrize("levels", [2, 8, 16, None])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.9), (-0.3, 0.2)])
def test_levels_equal_their_twin(levels: int | None, low: float, high: float) -> None:
    ours = quantise_levels(torch.from_numpy(X), levels, low, high).numpy()
    np.testing.assert_array_equal(ours, reference.quantise_levels(X, levels, low, high))


@pytest.mark.parametrize("readout", READOUTS, ids=shape)
def test_readout_equals_its_twin(readout: Readout) -> None:
    np.testing.assert_array_equal(read_out(torch.from_numpy(X), readout).numpy(), reference.readout_codes(X, readout))


@pytest.mark.parametrize("levels", [8, None])
def test_gradient_of_levels_passes_strictly_inside(levels: int | None) -> None:
    x = torch.tensor([-0.1, 0.0, 1e-6, 0.3, 0.9 - 1e-6, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    weight = torch.arange(1.0, 8.0, dtype=torch.float64)
    (quantise_levels(x, levels, 0.0, 0.9) * weight).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]


@pytest.mark.parametrize("readout", READOUTS, ids=shape)
def test_gradient_of_readout_passes_strictly_inside(readout: Readout) -> None:
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    (read_out(x, readout) * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 2, 2, 2, 0, 0]


def test_input_is_not_changed_in_place() -> None:
    x = torch.from_numpy(X.copy())
    quantise_levels(x, 8, 0.0, 0.9), read_out(x, READOUTS[0])
    np.testing.assert_array_equal(x.numpy(), X)
