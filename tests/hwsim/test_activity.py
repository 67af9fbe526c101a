"""Charge that a text draws, against the stimulus behind the published prices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from device_models import DeviceModel, load_device
from device_models.costs import Activity, event_costs
from hwsim import EventCounts, GainCellAttention, gain_cell_layers, price
from hwsim.activity import _drawn, measure_activity, relative_activity
from hwsim.functional.layout import slot_layout
from hwsim.functional.reads import Place
from hwsim.functional.tables import AttentionTables
from tests import tolerances
from tests.hwsim.counted import whole
from tests.hwsim.models import PERIOD, emulated_model, full_device, plain_model, small_device, token_ids

DEVICE = load_device("gaincell_28nm")


def drawn(device: DeviceModel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Activity:
    """Activity of one layer whose scalers pass pulses and voltages on as they are."""
    layer = GainCellAttention(query.shape[1], key.shape[1], device, 65e-9)
    at = torch.arange(key.shape[2])
    tables = AttentionTables(slot_layout(at[None], (at[:, None] - at)[None], device), device, 65e-9, query.dtype)
    qk, av, cells = _drawn(layer, query, key, value, tables, Place()).tolist()
    return relative_activity(device, qk / cells, av / cells)


def uniform(heads: int, tokens: int, dim: int = 64) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(1, heads, tokens, dim, generator=rng, dtype=torch.float64) for _ in range(3))
    return [q, 0.9 * k, 0.9 * v]


def test_stimulus_of_the_published_prices_is_one() -> None:
    """Uniform random queries, keys and values, the last query on a full window of 1024 tokens."""
    query, key, value = uniform(4, 1024)
    full = torch.zeros_like(query)
    full[:, :, -1] = query[:, :, -1]
    cells = 1024 / sum(range(32, 1025, 32))  # of all cells read, those that the last query reads
    found = drawn(DEVICE, full, key, value)
    assert found.qk / cells == pytest.approx(1.0, rel=tolerances.STIMULUS, abs=0.0)
    assert found.av / cells == pytest.approx(1.0, rel=tolerances.STIMULUS, abs=0.0)


def test_zero_queries_draw_nothing() -> None:
    query, key, value = uniform(1, 64)
    assert drawn(DEVICE, 0 * query, key, value) == Activity(0.0, 0.0)


def test_lowest_keys_draw_nothing_and_highest_the_full_current() -> None:
    query, key, value = uniform(1, 64)
    assert drawn(DEVICE, torch.ones_like(query), 0 * key, value).qk == 0.0
    most = drawn(DEVICE, torch.ones_like(query), 0.9 + 0 * key, value).qk
    full_scale = 0.521364 + 13.612261 * 0.45 - 2.620446 * 0.45**2 + 46.054838 * 0.45**3  # [uA]
    expected = 0.9 * 15e-9 * full_scale * 1e-6 / (0.884 * DEVICE.cost.qk_mac)
    assert most == pytest.approx(expected, rel=tolerances.DECAYED, abs=0.0)


def test_relative_activity_by_hand() -> None:
    found = relative_activity(DEVICE, 1e-6, 2e-6)
    assert found.qk == pytest.approx(0.9 * 15e-9 * 1e-6 / (0.884 * 17.08984375e-15), rel=tolerances.SUM, abs=0.0)
    assert found.av == pytest.approx(0.9 * 15e-9 * 2e-6 / (0.544 * 10.68115234375e-15), rel=tolerances.SUM, abs=0.0)
    assert relative_activity(load_device("sram_dcim_28nm"), 1e-6, 1e-6) == Activity()


# ---- prices


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0, 2.0])
def test_price_follows_its_share(a: float) -> None:
    costs = event_costs(DEVICE, activity=Activity(a, a))
    assert costs["attention.qk_mac"].energy_j == pytest.approx(
        17.08984375e-15 * (1 - 0.884 + 0.884 * a), rel=tolerances.SUM, abs=0.0
    )
    assert costs["attention.av_mac"].energy_j == pytest.approx(
        10.68115234375e-15 * (1 - 0.544 + 0.544 * a), rel=tolerances.SUM, abs=0.0
    )


def test_each_array_follows_its_own_activity_and_nothing_else_does() -> None:
    counts = EventCounts.of({"attention.qk_mac": 100, "attention.av_mac": 10, "attention.write_conversion": 5}, 1)
    plain, qk = price(counts, DEVICE), price(counts, DEVICE, activity=Activity(qk=0.0))
    av = price(counts, DEVICE, activity=Activity(av=0.0))
    saved = plain.energy_j["attention arrays"] - qk.energy_j["attention arrays"]
    assert saved == pytest.approx(100 * 0.884 * DEVICE.cost.qk_mac, rel=1e-9, abs=0.0)
    saved = plain.energy_j["attention arrays"] - av.energy_j["attention arrays"]
    assert saved == pytest.approx(10 * 0.544 * DEVICE.cost.av_mac, rel=1e-9, abs=0.0)
    assert qk.energy_j["writes"] == plain.energy_j["writes"]
    assert price(counts, DEVICE, activity=Activity()) == plain


# ---- models


@pytest.mark.parametrize(
    "device",
    [small_device(), full_device(), small_device(**{"activation.kind": "softmax", "readout_qk.bits": 6})],
    ids=["plain", "every-effect", "softmax"],
)
def test_model_of_its_own_text(device: DeviceModel) -> None:
    model: Any = emulated_model("llama", device).train()
    found = measure_activity(model, [token_ids(1, 12), token_ids(1, 7, 1)])
    assert 0 < found.qk < 5 and 0 < found.av < 5
    assert model.training and not model.model.layers[0].self_attn.gain_cell._forward_pre_hooks
    assert measure_activity(model, [token_ids(1, 12), token_ids(1, 7, 1)]) == found


def test_device_whose_price_follows_no_charge() -> None:
    device = small_device("ideal")
    assert not device.cost.qk_activity_share
    model = emulated_model("llama", device, token_period=PERIOD)
    assert measure_activity(model, [token_ids(1, 5)]) == Activity()


@pytest.mark.parametrize(
    ("emulated", "shapes", "said"),
    [
        (False, [(1, 5)], "needs an emulated model"),
        (True, [], "at least one sequence"),
        (True, [(2, 5)], r"\(1, 1..12\), received \(2, 5\)"),
        (True, [(1, 13)], r"received \(1, 13\)"),
        (True, [(1, 5), (1, 0)], r"received \(1, 0\)"),
        (True, [(5,)], r"received \(5,\)"),
    ],
)
def test_refuses(emulated: bool, shapes: list[tuple[int, ...]], said: str) -> None:
    model = emulated_model("llama") if emulated else plain_model("llama")
    with pytest.raises(ValueError, match=said):
        measure_activity(model, [torch.ones(shape, dtype=torch.long) for shape in shapes])


def test_signs_that_are_read_apart_share_the_cells_that_are_counted() -> None:
    """Two reads are counted for each score, so the charge of both is that of two cells."""
    device = small_device(**{"activation.kind": "softmax", "readout_qk.bits": 8})
    model, ids = emulated_model("llama", device), token_ids(1, 9)
    sums = torch.zeros(3, dtype=torch.float64)

    def add(layer: GainCellAttention, given: tuple[Any, ...]) -> None:
        sums.add_(_drawn(layer, layer.query(given[0]), layer.key(given[1]), layer.value(given[2]), *given[3:]))

    hooks = [layer.register_forward_pre_hook(add) for layer in gain_cell_layers(model)]
    counts = whole(model, ids)
    for hook in hooks:
        hook.remove()
    qk, _, cells = sums.tolist()
    assert counts["attention.qk_mac"] == 2 * cells == 2 * counts["attention.av_mac"]
    drawn_j = device.wire.supply * device.cost.time_qk * qk
    priced_j = counts["attention.qk_mac"] * device.cost.qk_activity_share * device.cost.qk_mac
    found = measure_activity(model, [ids])
    assert found.qk * priced_j == pytest.approx(drawn_j, rel=1e-9, abs=0.0)
