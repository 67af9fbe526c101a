"""Scalers and ranges set from statistics: a softmax model runs as it is, a readout uses its codes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from device_models import DeviceModel, load_device
from hwsim import calibrate_range_scalers, calibrate_readout, emulate, gain_cell_layers
from hwsim.calibration import QUERY_SPREAD, STORED_SPREAD, readout_error
from hwsim.effects import only
from hwsim.functional.attention import naive_steps
from tests import tolerances
from tests.hwsim.models import (
    ARCHITECTURES,
    PERIOD,
    emulated_model,
    plain_model,
    set_scalers,
    small_device,
    token_ids,
)

LEVELS = ("input levels", "storage levels", "readout levels", "score converter")
LINEAR = {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]}
SEEN = [token_ids(8, 20, seed) for seed in (1, 2)]
"""Batches that statistics are taken from."""
UNSEEN = token_ids(8, 20, 9)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=UNSEEN, use_cache=False).logits


def relative(got: Tensor, expected: Tensor) -> float:
    """Root mean square error over the standard deviation of what is expected."""
    return float((got - expected).square().mean().sqrt() / expected.std())


def state(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if ".gain_cell." in name}


# ---- models trained with softmax


def softmax_device(scores: int, levels: int | None, readout: int | None, **overrides: object) -> DeviceModel:
    """Return gaincell_28nm with a digital softmax, without any effect but its converters."""
    converters: dict[str, object] = {
        "readout_qk.bits": scores, "input.levels": levels, "storage.levels": levels, "readout.bits": readout,
        "readout.range": "calibrated",
    }  # fmt: skip
    if readout is None:
        converters["readout.codes"] = "ideal"
    size = {"window.tokens": 32, "tile.slots": 8, "activation.kind": "softmax"}
    return only(load_device("gaincell_28nm", {**size, **converters, **overrides}), *LEVELS)


def softmax_errors(architecture: str, device: DeviceModel, covered: float = 99.9) -> tuple[float, float]:
    """Return the relative error of unseen logits before and after calibration, beside the stock model."""
    model = plain_model(architecture)
    stock = logits(model)
    emulate(model, device, linears=False, token_period=PERIOD)
    before = relative(logits(model), stock)
    calibrate_range_scalers(model, SEEN, covered=covered)
    calibrate_readout(model, SEEN, covered=covered)
    return before, relative(logits(model), stock)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_softmax_model_converges_to_itself_as_bits_grow(architecture: str) -> None:
    """The cubic cell stays: with more levels the swing shrinks to where it is straight."""
    steps = [(8, 16, 5), (8, 64, 8), (10, 1024, 12)]
    errors = [softmax_errors(architecture, softmax_device(*step))[1] for step in steps]
    errors.append(softmax_errors(architecture, softmax_device(16, None, None), covered=100.0)[1])
    # measured: llama .213 .148 .029 .007, gpt2 .108 .056 .019 .004
    assert errors == sorted(errors, reverse=True)
    for error, most in zip(errors, (0.25, 0.18, 0.04, 0.01), strict=True):
        assert error < most


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_softmax_model_of_every_architecture_needs_only_calibration(architecture: str) -> None:
    """Each has a scaling of its own in front of q.k: OPT scales its queries, gemma3 does not take head_dim."""
    before, after = softmax_errors(architecture, softmax_device(10, 1024, 12))
    assert after < 0.06  # measured .019 to .042, and .055 of qwen3, which normalises its queries and keys
    assert before > 0.3


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_linear_cell_of_many_bits_is_the_softmax_model(architecture: str) -> None:
    before, after = softmax_errors(architecture, softmax_device(16, None, None, **LINEAR), covered=100.0)
    assert after < 0.005  # measured .0025 and .0013: 16-bit scores
    assert before > 100 * after


def test_swing_follows_levels_and_curvature() -> None:
    """Few levels want the whole range, many want its straight middle."""

    def swing(levels: int) -> Tensor:
        model = emulate(plain_model("llama"), softmax_device(12, levels, 8), linears=False, token_period=PERIOD)
        calibrate_range_scalers(model, SEEN)
        return torch.stack([cells.key.gain for cells in gain_cell_layers(model)])

    assert (swing(1024) < swing(8)).all()


def test_values_come_back_with_their_offset() -> None:
    """Attention that is spread evenly returns the mean of the values: neither k0 nor the scale of the array is left."""
    model = plain_model("llama")
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            parameter.data.zero_()
    stock = logits(model)
    emulate(model, softmax_device(8, None, None), linears=False, token_period=PERIOD)
    calibrate_range_scalers(model, SEEN, covered=100.0)
    assert relative(logits(model), stock) < 0.006  # measured .0036: the swing that is left is not quite straight
    for cells in gain_cell_layers(model):
        cells.output.offset.data.zero_()
    assert relative(logits(model), stock) > 0.06


# ---- models for the hard sigmoid


def test_hard_sigmoid_scalers_fill_the_ranges() -> None:
    model = emulate(plain_model("llama"), small_device(), token_period=PERIOD)
    calibrate_range_scalers(model, SEEN)
    seen: dict[str, list[Tensor]] = {}
    for index, cells in enumerate(gain_cell_layers(model)):
        for name in ("query", "key", "value"):
            into = seen.setdefault(f"{index}.{name}", [])
            getattr(cells, name).register_forward_hook(lambda _, __, y, into=into: into.append(y))
    with torch.no_grad():
        for batch in SEEN:
            model(input_ids=batch, use_cache=False)
    for name, parts in seen.items():
        y = torch.cat(parts).transpose(0, 1).flatten(1)
        spread, middle = (QUERY_SPREAD, 0.5) if name.endswith("query") else (0.9 * STORED_SPREAD, 0.45)
        torch.testing.assert_close(y.std(1), torch.full_like(y[:, 0], spread))
        torch.testing.assert_close(y.mean(1), torch.full_like(y[:, 0], middle))


# ---- the readout


def calibrated(method: str = "percentile", **overrides: object) -> Any:
    """Return an emulated model whose readouts were calibrated."""
    model = emulated_model("llama", small_device(**{"readout.range": "calibrated", **overrides}))
    if method != "none":
        calibrate_readout(model, SEEN, method=method)  # type: ignore[arg-type]
    return model


@torch.no_grad()
def charges_of(model: Any, layer: int, batches: list[Tensor]) -> Tensor:
    found: list[Tensor] = []
    cells = gain_cell_layers(model)[layer]
    cells.watch = found.append
    for batch in batches:
        model(input_ids=batch, use_cache=False)
    cells.watch = None
    return torch.cat(found, dim=1)


def test_watched_charges_are_those_of_the_naive_version() -> None:
    model = emulated_model("llama", small_device("ideal"))
    cells = gain_cell_layers(model)[0]
    inputs: list[tuple[Tensor, ...]] = []
    cells.register_forward_pre_hook(lambda _, args: inputs.append(args[:3]))
    got = charges_of(model, 0, [token_ids(2, 20)])
    q, k, v = inputs[0]
    steps = naive_steps(cells.query(q), cells.key(k), cells.value(v), cells.device)
    # Sub-tile 1 holds nothing before token 8; from then on both hold tokens, also once the ring of 12 has wrapped
    live = [(tile, torch.arange(20) >= start) for tile, start in ((0, 0), (1, 8))]
    expected = torch.cat([steps.charges[:, :, tile, t].transpose(0, 1).flatten(1) for tile, t in live], dim=1)
    assert got.shape == expected.shape
    error = (got.sort(1).values - expected.sort(1).values).abs().max()
    assert error <= tolerances.FLOAT64 * expected.abs().max()


@pytest.mark.parametrize("layer", [0, 1])
def test_calibrated_range_lowers_the_error_of_the_readout(layer: int) -> None:
    model = calibrated("none")
    calibrate_readout(model, SEEN)
    charges, cells = charges_of(model, layer, [UNSEEN]), gain_cell_layers(model)[layer]
    fixed = readout_error(charges, torch.ones_like(cells.full_scale), cells.device.readout)
    own = readout_error(charges, cells.full_scale.detach(), cells.device.readout)
    assert (own < 0.1 * fixed).all()  # measured .017 to .042: the charges of eight slots fill a tenth of the range


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_error_method_is_no_worse_than_the_percentile(bits: int) -> None:
    ranges, errors = {}, {}
    charges = None
    for method in ("percentile", "error"):
        model = calibrated(method, **{"readout.bits": bits})
        cells = gain_cell_layers(model)[0]
        charges = charges_of(model, 0, SEEN)
        ranges[method] = cells.full_scale.detach()
        errors[method] = readout_error(charges, ranges[method], cells.device.readout)
    assert (errors["error"] <= errors["percentile"] * (1 + 1e-6)).all()
    if bits <= 3:  # few codes are better spent on the bulk
        assert (errors["error"] < errors["percentile"]).all()
        assert (ranges["error"] < ranges["percentile"]).all()


def test_percentile_takes_in_its_share() -> None:
    model = calibrated("none")
    calibrate_readout(model, SEEN, covered=90.0)
    charges, cells = charges_of(model, 0, SEEN), gain_cell_layers(model)[0]
    inside = (charges.abs() <= cells.full_scale[:, None]).double().mean(1)
    torch.testing.assert_close(inside, torch.full_like(inside, 0.9), atol=1e-3, rtol=0)


def test_range_is_no_larger_than_asked_for() -> None:
    model = calibrated("none", **{"saturation.av": "1 uA"})
    calibrate_readout(model, SEEN)
    assert all((cells.full_scale > 1.0).all() for cells in gain_cell_layers(model))
    for method in ("percentile", "error"):
        calibrate_readout(model, SEEN, method=method, most=1.0)  # type: ignore[arg-type]
        assert all((cells.full_scale <= 1.0).all() for cells in gain_cell_layers(model))


def test_readout_without_codes_takes_the_largest_charge() -> None:
    model = calibrated("error", **{"readout.bits": None, "readout.codes": "ideal"})
    largest = charges_of(model, 0, SEEN).abs().amax(1)
    torch.testing.assert_close(gain_cell_layers(model)[0].full_scale.detach(), largest)


def test_silent_head_keeps_its_range() -> None:
    model = emulated_model("llama", only(small_device(**{"readout.range": "calibrated"}), *LEVELS, "retention"))
    for cells in gain_cell_layers(model):
        cells.query.gain.data[0], cells.query.offset.data[0] = 0.0, -1.0  # no pulse
    for method in ("percentile", "error"):
        calibrate_readout(model, SEEN, method=method)  # type: ignore[arg-type]
        assert all(cells.full_scale[0] == 1.0 for cells in gain_cell_layers(model))
    assert logits(model).isfinite().all()


def test_learned_range_starts_calibrated_and_learns() -> None:
    model = calibrated("percentile", **{"readout.range": "learned"})
    model(input_ids=UNSEEN, labels=UNSEEN, use_cache=False).loss.backward()
    for cells in gain_cell_layers(model):
        assert (cells.full_scale != 1.0).all()
        assert (cells.full_scale.grad != 0.0).all()


# ---- what all have in common


@pytest.mark.parametrize("kind", ["hard_sigmoid", "softmax"])
def test_calibration_leaves_nothing_behind(kind: str) -> None:
    """Modes, hooks and gradients are as before; twice gives the same bits."""
    overrides = {"readout.range": "calibrated"}
    if kind == "softmax":
        overrides |= {"activation.kind": "softmax", "readout_qk.bits": 8}  # type: ignore[dict-item]
    model = emulate(plain_model("llama"), small_device(**overrides), token_period=PERIOD).train()
    part = model.model.layers[0].mlp.eval()
    twin = copy.deepcopy(model)
    for one in (model, twin):
        calibrate_range_scalers(one, SEEN)
        calibrate_readout(one, SEEN)
    assert model.training and not part.training and model.model.layers[1].mlp.training
    assert all(p.grad is None for p in model.parameters())
    for cells in gain_cell_layers(model):
        assert cells.watch is None and not cells._forward_pre_hooks
        assert cells.query.gain.requires_grad
    first, second = state(model), state(twin)
    assert first and all(torch.equal(first[name], second[name]) for name in first)


def test_hooks_go_when_the_model_fails() -> None:
    model = calibrated("none").train()
    too_large = [torch.full((1, 4), 10_000)]
    for calibrate in (calibrate_range_scalers, calibrate_readout):
        with pytest.raises(IndexError):
            calibrate(model, too_large)  # the model fails before its layers
        assert model.training
        assert all(cells.watch is None and not cells._forward_pre_hooks for cells in gain_cell_layers(model))


@pytest.mark.parametrize("calibrate", [calibrate_range_scalers, calibrate_readout])
def test_calibration_needs_an_emulated_model_and_a_batch(calibrate: Any) -> None:
    for model, batches in ((plain_model("llama"), SEEN), (calibrated("none"), [])):
        with pytest.raises(ValueError, match="emulated model and at least one batch"):
            calibrate(model, batches)


def test_fixed_range_is_not_calibrated() -> None:
    model = emulated_model("llama")
    with pytest.raises(ValueError, match=r"gaincell_28nm fixes readout\.range"):
        calibrate_readout(model, SEEN)
    calibrated_before = calibrated("none")
    set_scalers(calibrated_before)
    emulate(calibrated_before, small_device(), token_period=PERIOD)  # its ranges stay, and are not used
    with pytest.raises(ValueError, match=r"fixes readout\.range"):
        calibrate_readout(calibrated_before, SEEN)
