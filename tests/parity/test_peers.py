"""Converters of other simulators, on their matrix-vector products: ours set to theirs must agree to rounding.

CrossSim 3.2.0, aihwkit 1.2.0 and aihwkit-lightning 2.1.0, without noise. Each product is quantised inputs times
normalised weights, tile by tile, through the converter of each column.
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
from numpy.typing import NDArray

from device_models import converters
from device_models.schema import Readout
from hwsim.functional import quantise
from hwsim.functional.bitlinear import ternary_codes
from tests import tolerances

SYMMETRIC = "2^b - 1 codes around an exact zero, both ends included: our readout of b bits"
EVEN = "2^b codes, both ends included, no zero: our levels; no readout of ours has an even number of codes"
MIDDLES = "2^b codes in the middles of equal intervals: our levels on a range half a step shorter at each end"
PLAIN = "no converter"
PEERS = {
    "ai_clip_bound2_torch": SYMMETRIC,
    "ai_dac8_adc6_columnwise_torch": SYMMETRIC,
    "ai_dac8_adc8_static_torch": SYMMETRIC,
    "ai_ternary_dac8_adc6_torch": SYMMETRIC,
    "cs_adc6_quantizer": EVEN,
    "cs_dac8_adc8": SYMMETRIC,
    "cs_ideal": PLAIN,
    "cs_sar_adc6": MIDDLES,
    "cs_ternary_dac8_adc6": SYMMETRIC,
    "cs_tiled64_dac8_adc6": SYMMETRIC,
    "li_dac4_adc5_tile64": SYMMETRIC,
    "li_dac8_adc8": SYMMETRIC,
}
"""How the output converter of each file is set; the input converter of b bits always has 2^b - 1 levels."""
NOT_MATCHED: dict[str, str] = {}
"""Files whose converters ours cannot be set to, with the reason; none at present."""
Levels = Callable[[NDArray, int | None, float, float], NDArray]
ReadOut = Callable[[NDArray, Readout], NDArray]


@dataclass(frozen=True)
class Peer:
    name: str
    x: NDArray
    w: NDArray
    y: NDArray
    settings: dict[str, Any]

    @property
    def rows(self) -> int:
        """Inputs of one tile."""
        return self.settings.get("rows", self.settings.get("max_input_size", self.x.shape[1]))


def load(folder: Path, name: str) -> Peer:
    with np.load(folder / "oracles" / "peers" / f"{name}.npz") as file:
        return Peer(name, file["x"], file["w"], file["y"], json.loads(str(file["cfg"])))


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest, shared: Path) -> Peer:
    return load(shared, request.param)


def in_torch(function: Callable[..., torch.Tensor]) -> Callable[..., NDArray]:
    return lambda x, *rest: function(torch.from_numpy(np.ascontiguousarray(x)), *rest).numpy()


CONVERTERS: dict[str, tuple[Levels, ReadOut]] = {
    "reference": (converters.quantise_levels, converters.readout_codes),
    "torch": (in_torch(quantise.quantise_levels), in_torch(quantise.read_out)),
}


def input_scale(peer: Peer) -> NDArray | float:
    """Full scale of the input converter: a number, or the largest input of each vector."""
    if peer.settings.get("noise_management") == "AbsMax":
        return np.abs(peer.x).max(1, keepdims=True)
    return peer.settings.get("input_range", 1.0)


def weight_scale(peer: Peer, w: NDArray) -> NDArray | float:
    """Largest weight of the array (CrossSim), of the tile (lightning) or of each column."""
    if peer.settings.get("columnwise") or peer.settings.get("per_channel"):
        return np.abs(w).max(1)
    return float(np.abs(w if "max_input_size" in peer.settings else peer.w).max())


def product(peer: Peer, levels: Levels, read_out: ReadOut) -> NDArray:
    """Multiply as the peer does, with our converters."""
    settings, total = peer.settings, np.zeros_like(peer.y)
    bits_in, bits_out = settings.get("dac"), settings.get("adc")
    bound = settings["cal"][1] if "cal" in settings else settings.get("out_bound", 1.0)
    scale = input_scale(peer)
    for start in range(0, peer.x.shape[1], peer.rows):
        x, w = peer.x[:, start : start + peer.rows] / scale, peer.w[:, start : start + peer.rows]
        largest = weight_scale(peer, w)
        if bits_in is not None:
            x = levels(x, 2**bits_in - 1, -1.0, 1.0)
        sums = x @ (w / np.reshape(largest, (-1, 1))).T
        kind = PEERS[peer.name]
        if kind == SYMMETRIC:
            sums = bound * read_out(sums / bound, Readout(bits_out, "counter"))
        elif kind == EVEN:
            sums = levels(sums, 2**bits_out, -bound, bound)
        elif kind == MIDDLES:
            edge = bound * (1 - 2.0**-bits_out)
            sums = levels(sums, 2**bits_out, -edge, edge)
        total += sums * largest
    return total * scale


def test_every_file_is_matched_or_its_reason_is_known(shared: Path) -> None:
    files = {path.stem for path in (shared / "oracles" / "peers").glob("*.npz")}
    assert files == set(PEERS) | set(NOT_MATCHED)
    assert not set(PEERS) & set(NOT_MATCHED)


@pytest.mark.parametrize("ours", CONVERTERS)
def test_product_is_that_of_the_peer(peer: Peer, ours: str) -> None:
    """No code differs: a step is thousands of times the tolerance."""
    got = product(peer, *CONVERTERS[ours])
    in_float64 = peer.name.startswith("cs_") and peer.name != "cs_ideal"
    room = tolerances.FLOAT64 if in_float64 else tolerances.PEER_FLOAT32
    assert np.abs(got - peer.y).max() <= room
    assert peer.y.std() > 100 * tolerances.PEER_FLOAT32


@pytest.mark.parametrize("name", [name for name, kind in PEERS.items() if kind != PLAIN])
def test_converters_matter(shared: Path, name: str) -> None:
    """The comparison would fail without them, or with one bit more."""
    peer = load(shared, name)
    finer = Peer(peer.name, peer.x, peer.w, peer.y, {**peer.settings, "adc": peer.settings["adc"] + 1})
    assert np.abs(peer.x @ peer.w.T - peer.y).max() > 1e-3
    assert np.abs(product(finer, *CONVERTERS["reference"]) - peer.y).max() > 1e-3


@pytest.mark.parametrize("name", [name for name in PEERS if "ternary" in name])
def test_ternary_weights_are_our_codes(shared: Path, name: str) -> None:
    peer = load(shared, name)
    codes = ternary_codes(torch.from_numpy(peer.w)).numpy()
    assert set(np.unique(codes)) == {-1.0, 0.0, 1.0}
    np.testing.assert_allclose(codes * np.abs(peer.w).max(), peer.w, rtol=1e-12)


@pytest.mark.parametrize("name", ["ai_clip_bound2_torch"])
def test_clipping_is_met(shared: Path, name: str) -> None:
    peer = load(shared, name)
    bound = peer.settings["out_bound"] * np.abs(peer.w).max() * np.abs(peer.x).max(1, keepdims=True)
    assert np.mean(np.abs(peer.x @ peer.w.T) > bound) > 1e-3
