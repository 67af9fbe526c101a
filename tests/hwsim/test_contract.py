"""Attention with every effect against the contract read once more, with the reference formulas of ``device_models``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from device_models.retention import refresh_interval
from hwsim import Die, gain_cell_attention, naive_gain_cell_attention
from tests import tolerances
from tests.hwsim.comparison import CONTINUOUS_READOUT, Attention, every_effect, inputs
from tests.hwsim.contract import Chip, loop_of_the_contract

CASES = {
    "refreshed": {},
    "spread": {"refresh.kind": "none", "operation.temperature": "330 K"},
    "median": {"refresh.kind": "none", "retention.tau_sigma_ln": 0.0, "retention.v_inf": "0.2 V"},
    "stretched": {"retention.kind": "stretched", "retention.beta": 0.5},
    "log": {"retention.kind": "log_self_limited", "retention.v_scale": "60 mV", "retention.t0": "1 ms",
            "retention.v_top": "0.9 V", "refresh.kind": "on_droop", "refresh.droop": 0.5},
    "constant": {"retention.kind": "constant_current", "retention.rate": "100 V/s", "refresh.kind": "none"},
    "ramp": {"readout.circuit": "ramp"},
    "sar": {"readout.circuit": "sar", "readout_qk.bits": None},
    "flash": {"readout.circuit": "flash", "readout.codes": "published_33", "readout.bits": 4},
    "continuous": CONTINUOUS_READOUT,
    "softmax": {"activation.kind": "softmax", "activation.levels": 64},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_attention_with_every_effect_is_the_contract(name: str) -> None:
    """4 heads on 2 arrays of layer 3, 13 tokens in a ring of 7, sub-tiles of 3 slots and 2 rows."""
    device = every_effect(**{
        "window.tokens": 7, "tile.slots": 3, "tile.rows": 2, "saturation.qk": "10 uA", "saturation.av": "15 uA",
        **CASES[name],
    })  # fmt: skip
    die, period = Die(4, device).at_layer(3), 2e-4
    q, k, v = inputs(2, 4, 2, 13, 3, signed=name == "softmax")
    keys = torch.tensor([99, -5])
    chip = Chip(device, die, -5, 2, 3, period, refresh_interval(device) or math.inf)
    expected = loop_of_the_contract(chip, q[1].numpy(), k[1].numpy(), v[1].numpy())
    attention: Attention
    for attention in (naive_gain_cell_attention, gain_cell_attention):
        got = attention(q, k, v, device, token_period_s=period, die=die, read_key=keys)[1].numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerances.TWINS)
    assert np.abs(expected).mean() > 0.1 and len(np.unique(expected.round(9))) > 10  # neither dead nor saturated
