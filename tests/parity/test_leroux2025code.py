"""The published code of leroux2025, on its own inputs: values, gradients, converters.

The vectors are outputs of that code in float32; rules of comparison are those of the README beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from device_models import DeviceModel, load_device
from device_models.converters import quantise_levels, readout_codes
from hwsim import RangeScaler, gain_cell_attention, naive_gain_cell_attention
from hwsim.functional import quantise
from hwsim.functional.attention import decay_by_age, naive_steps
from tests import tolerances

CASES = [
    "lin_fp_d0_w64_T64",
    "lin_q_dec_w64_T100pad",
    "lin_q_dec_w64_T160",
    "nl_fp_dec_w64_T64",
    "nl_q_d0_w64_T160",
    "nl_q_dec_w64_T128_gauss_random",
    "nl_q_dec_w64_T160",
    "nl_q_strongdec_w64_T160",
]
PERIOD = 1e-6
Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    meta: dict[str, Any]
    arrays: dict[str, Tensor]
    device: DeviceModel

    @property
    def period(self) -> float | None:
        return PERIOD if self.meta["decay_factor"] else None


def device_of(meta: dict[str, Any]) -> DeviceModel:
    overrides: dict[str, object] = {"window.tokens": meta["window"], "tile.slots": meta["array_length"]}
    if meta["cls"].startswith("Linear"):
        overrides |= {"cell.law": "linear", "cell.coefficients": ["19.3 uA/V"]}
    if not meta["quant"]:
        overrides |= {"input.levels": None, "storage.levels": None, "readout.bits": None, "readout.codes": "ideal"}
    if meta["decay_factor"]:
        overrides["retention.tau"] = f"{PERIOD / meta['decay_factor']!r} s"
    else:
        overrides |= {"retention.kind": "none", "parity.bfloat16_decay": False}
    return load_device("parity_leroux2025", overrides)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    with np.load(shared / "oracles" / "gaincell" / f"{request.param}.npz") as file:
        meta = json.loads(str(file["meta"]))
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}
    return Case(meta, arrays, device_of(meta))


def test_all_vectors_are_compared(shared: Path) -> None:
    assert {path.stem for path in (shared / "oracles" / "gaincell").glob("*.npz")} == {*CASES, "primitives"}


def scaler(case: Case, name: str) -> RangeScaler:
    made = RangeScaler(case.meta["H"])
    made.gain.data.copy_(case.arrays[f"{name}_a"].flatten())
    made.offset.data.copy_(case.arrays[f"{name}_b"].flatten())
    return made


def forward(case: Case, attention: Attention) -> tuple[Tensor, dict[str, Tensor], dict[str, RangeScaler]]:
    inputs = {name: case.arrays[name].clone().requires_grad_() for name in "qkv"}
    scalers = {name: scaler(case, name) for name in ("q", "k", "v", "output")}
    scaled = [scalers[name](inputs[name]) for name in "qkv"]
    out = scalers["output"](attention(*scaled, case.device, token_period_s=case.period))
    return out, inputs, scalers


both = pytest.mark.parametrize("attention", [naive_gain_cell_attention, gain_cell_attention], ids=["naive", "tiled"])


@both
def test_output(case: Case, attention: Attention) -> None:
    with torch.no_grad():
        out = forward(case, attention)[0]
    gain = case.arrays["output_a"]
    assert_output(out / gain, case.arrays["out"] / gain, quantised=case.meta["quant"])
    assert case.arrays["out"].std() > 0.05


def assert_output(got: Tensor, expected: Tensor, *, quantised: bool) -> None:
    error = (got - expected).abs()
    off = error > tolerances.PARITY
    if not quantised:
        assert not off.any(), error.max()
        return
    assert off.double().mean() <= tolerances.PARITY_FLIPS
    codes = error[off] * 31 / 2
    assert (codes - codes.round()).abs().max() <= 1e-3 if off.any() else True


@both
def test_gradients(case: Case, attention: Attention) -> None:
    out, inputs, scalers = forward(case, attention)
    out.backward(case.arrays["upstream"])
    found = {f"d{name}": inputs[name].grad for name in "qkv"}
    for name in scalers:
        found[f"grad_{name}_a"], found[f"grad_{name}_b"] = scalers[name].gain.grad, scalers[name].offset.grad
    for name, got in found.items():
        expected = case.arrays[name]
        assert got is not None
        error = (got.flatten() - expected.flatten()).abs().max()
        assert error <= gradient_room(name, expected), f"{name}: {error / expected.abs().max():.2g}"


def gradient_room(name: str, expected: Tensor) -> float:
    return tolerances.PARITY_GRADIENT * expected.abs().max().item()


def test_converters_of_inputs_and_storage(case: Case) -> None:
    device = case.device
    with torch.no_grad():
        scaled = {name: scaler(case, name)(case.arrays[name]) for name in "qkv"}
    got = {
        "q_quant": quantise.quantise_levels(scaled["q"], device.input.levels, 0.0, 1.0),
        "k_quant_T": quantise.quantise_levels(scaled["k"], device.storage.levels, 0.0, device.storage.v_max).mT,
        "v_quant": quantise.quantise_levels(scaled["v"], device.storage.levels, 0.0, device.storage.v_max),
    }
    for name, ours in got.items():
        torch.testing.assert_close(ours, case.arrays[name], rtol=0, atol=tolerances.PARITY)


@torch.no_grad()
def test_scores_and_charges_between_the_products(case: Case) -> None:
    """Nothing is rounded here yet, so every element must agree; sub-tiles are cut by absolute token index."""
    steps = naive_steps(*(scaler(case, n)(case.arrays[n]) for n in "qkv"), case.device, token_period_s=case.period)
    scores, charges = case.arrays["phi_preclamp"], case.arrays["tile_out_raw"] / 40.0
    assert steps.scores.shape == scores.shape and steps.charges.shape == charges.shape
    assert (steps.scores - scores).abs().max() <= tolerances.PARITY
    assert (steps.charges - charges).abs().max() <= tolerances.PARITY
    assert scores.max() > 0.8 and charges.abs().max() > 0.7  # neither is small
    assert ((scores == 0) == (steps.scores == 0)).all()  # the same pairs are read


# ---- primitives


@pytest.fixture(scope="session")
def primitives(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "oracles" / "gaincell" / "primitives.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(("name", "levels", "high"), [("in16", 16, 1.0), ("w8", 8, 0.9)])
def test_level_vectors(name: str, levels: int, high: float, primitives: dict[str, np.ndarray]) -> None:
    x, expected = primitives[f"{name}_x"], primitives[f"{name}_y"]
    inside = (x >= 0) & (x <= high)  # the published converter does not clip; its caller does
    assert inside.sum() > 500
    got = quantise_levels(x[inside].astype(np.float64), levels, 0.0, high)
    assert_codes(got, expected[inside], high / (levels - 1))


def test_readout_vectors(primitives: dict[str, np.ndarray]) -> None:
    x, expected = primitives["out32_x"], primitives["out32_y"]
    inside = np.abs(x) <= 1
    assert inside.sum() > 500
    readout = load_device("parity_leroux2025").readout
    assert_codes(readout_codes(x[inside].astype(np.float64), readout), expected[inside], 2 / 31)
    assert len(np.unique(expected[inside].round(5))) == 33


def assert_codes(got: np.ndarray, expected: np.ndarray, step: float) -> None:
    """A float32 quotient may fall on the other side of a tie."""
    off = np.abs(got - expected) > tolerances.PARITY
    assert off.mean() <= tolerances.PARITY_FLIPS
    np.testing.assert_allclose(np.abs(got - expected)[off], step, rtol=1e-3)


def test_window_mask(primitives: dict[str, np.ndarray]) -> None:
    """A changed value reaches exactly the queries of the published sliding window of 3."""
    device = load_device("ideal", {"window.tokens": 3, "tile.slots": 1})
    q, v = torch.ones(1, 1, 8, 4, dtype=torch.float64), torch.full((1, 1, 8, 4), 0.6, dtype=torch.float64)
    reads = np.zeros((8, 8), dtype=int)
    for s in range(8):
        changed = v.clone()
        changed[:, :, s] = 0.7
        before, after = (gain_cell_attention(q, v, x, device) for x in (v, changed))
        reads[:, s] = (before != after).any(-1)[0, 0].numpy()
    np.testing.assert_array_equal(reads, primitives["mask_8_w3"])


def test_decays_rounded_to_bfloat16(primitives: dict[str, np.ndarray]) -> None:
    """The published code rounds float32 decays, ours float64 ones through float32: equal but for rounding ties."""
    device = load_device("parity_leroux2025", {"retention.tau": "6.25 ms"})
    like = torch.empty(0, dtype=torch.float32)
    got = decay_by_age(device, 1e-6, 1024, like, first=True)[1].numpy()
    np.testing.assert_array_equal(got, primitives["decay_bf16_1p6e-4_t0_1023"])
    exact = decay_by_age(device, 1e-6, 1024, like, first=False)[1].numpy()
    np.testing.assert_allclose(exact, np.exp(-1.6e-4 * np.arange(1024)), rtol=1e-6)
    assert len(np.unique(got)) < 50 < len(np.unique(exact))


def test_decay_table(primitives: dict[str, np.ndarray]) -> None:
    decay = primitives["decay_mask_8_w3_0p1"][0, 0]
    device = load_device("gaincell_28nm", {"retention.tau": "10 us"})
    ours = decay_by_age(device, 1e-6, 3, torch.empty(0, dtype=torch.float64), first=True)[1].numpy()
    for i in range(8):
        for age in range(min(i + 1, 3)):
            assert decay[i, i - age] == pytest.approx(ours[age], rel=1e-6)
