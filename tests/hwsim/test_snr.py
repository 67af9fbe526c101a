"""Signal-to-noise ratios against independent estimates, and against attention itself."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from device_models import DeviceModel, InputError, load_device, preset_names
from device_models.retention import refresh_interval
from hwsim import Die, snr
from hwsim.effects import EFFECTS, is_configured, only, without
from hwsim.functional.attention import naive_steps
from hwsim.functional.cells import CellDeviations, cell_current
from hwsim.snr import MOST_REFRESHES, Products, Trials, best_line, dot_products, isolated, snr_by_age, snr_by_effect
from tests import tolerances

TRIALS = Trials()
AGREEMENT_DB = 1.0
"""[dB] of the acceptance: the estimates are rounded to 0.1 to 1 dB, and leave the law's constant part out."""
NAME = "gaincell_28nm"
TAU = 5e-3


def alone(*effects: str, age_s: float = 0.0, **overrides: object) -> Products:
    device = load_device(NAME, {key.replace("__", "."): value for key, value in overrides.items()})
    return dot_products(isolated(device, *effects), TRIALS, age_s)


# ---- independent estimates: one product of 64 terms, uniform data


@pytest.mark.parametrize(
    ("effect", "overrides", "expected"),
    [
        ("input levels", {"input__levels": 16}, 29.5),
        ("storage levels", {"storage__levels": 8}, 17.0),
        ("storage levels", {"storage__levels": 16}, 23.5),
        ("storage levels", {"storage__levels": 32}, 29.8),
        ("gain mismatch", {"variability__gain_sigma": 0.02}, 34.0),
        ("gain mismatch", {"variability__gain_sigma": 0.05}, 26.0),
        ("gain mismatch", {"variability__gain_sigma": 0.10}, 20.0),
        ("gain mismatch", {"variability__gain_sigma": 0.15}, 16.5),
        ("cell offset", {"variability__offset_sigma": "5 mV"}, 34.0),
        ("cell offset", {"variability__offset_sigma": "10 mV"}, 28.0),
        ("cell offset", {"variability__offset_sigma": "20 mV"}, 22.0),
        ("kT/C noise", {"write__capacitance": "0.5 fF"}, 39.0),
        ("kT/C noise", {"write__capacitance": "1 fF"}, 42.0),
        ("kT/C noise", {"write__capacitance": "5 fF"}, 49.0),
        ("cell law", {}, 17.6),
    ],
)
def test_one_effect_alone(effect: str, overrides: dict[str, object], expected: float) -> None:
    assert alone(effect, **overrides).snr_db == pytest.approx(expected, abs=AGREEMENT_DB)


@pytest.mark.parametrize(
    ("sigma", "share", "expected"),
    [(0.4, 0.1, 27), (0.4, 0.2, 21), (0.4, 0.5, 14), (0.8, 0.1, 19), (0.8, 0.2, 14), (0.8, 0.5, 8)],
)
def test_spread_of_retention(sigma: float, share: float, expected: float) -> None:
    found = alone("retention", "retention spread", age_s=share * TAU, retention__tau_sigma_ln=sigma)
    assert found.snr_db == pytest.approx(expected, abs=AGREEMENT_DB)


@pytest.mark.parametrize(
    ("overrides", "before", "after"),
    [
        ({}, 16.2, 15.6),  # 16/8 levels, 5 %, 5 mV, 1 fF
        (
            {"variability__gain_sigma": 0.1, "variability__offset_sigma": "10 mV", "write__capacitance": "0.5 fF"},
            14.8,
            14.3,
        ),
    ],
)
def test_effects_together_and_a_converter_behind_them(
    overrides: dict[str, object], before: float, after: float
) -> None:
    effects = ("input levels", "storage levels", "gain mismatch", "cell offset", "kT/C noise")
    found = alone(*effects, **overrides)
    assert found.snr_db == pytest.approx(before, abs=AGREEMENT_DB)
    readout = isolated(load_device(NAME), "readout levels")
    assert snr.through_readout(found, readout, TRIALS).snr_db == pytest.approx(after, abs=AGREEMENT_DB)


@pytest.mark.parametrize(("bits", "expected"), [(4, 18.6), (5, 24.6), (6, 29.8)])
def test_converter_alone_clips_at_three_rms(bits: int, expected: float) -> None:
    device = isolated(load_device(NAME, {"readout.bits": bits}), "readout levels")
    found = snr.through_readout(dot_products(device, TRIALS), device, TRIALS)
    assert found.snr_db == pytest.approx(expected, abs=AGREEMENT_DB)


def test_one_cell_over_its_range() -> None:
    """17.6 dB belongs to a single cell; in a product the law's constant part follows the sum of the pulses."""
    device = load_device(NAME)
    v = torch.linspace(0.0, 0.9, 20001, dtype=torch.float64)
    cell = Products(v, cell_current(v, device, CellDeviations()))
    assert cell.snr_db == pytest.approx(17.6, abs=0.1)
    assert alone("cell law").snr_db == pytest.approx(17.33, abs=0.1)


def test_best_line_of_the_cubic() -> None:
    """19.2 uA/V; the published code takes 19.3."""
    assert best_line(load_device(NAME)) == pytest.approx(19.2e-6, rel=2e-3)
    assert best_line(load_device("ideal")) == pytest.approx(19.3e-6, rel=tolerances.SUM)


# ---- the same numbers as attention


BARE = (
    "charge-to-pulse offset", "comparator noise", "white read noise", "flicker read noise", "pulse jitter",
)  # fmt: skip
"""Effects that the naive steps add behind the score, or draw for another query."""


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("gaincell")])
@pytest.mark.parametrize(
    "refresh", [{}, {"refresh.kind": "periodic", "refresh.interval": "300 us"}], ids=["", "refreshed"]
)
@pytest.mark.parametrize("age_s", [0.0, 1e-3])
def test_product_is_the_first_product_of_attention(name: str, refresh: dict[str, object], age_s: float) -> None:
    device = without(load_device(name, {"window.tokens": 64, "tile.slots": 64, **refresh}), *BARE)
    trials = Trials(head_dim=80, dies=1, columns=6, seed=3)
    computed = dot_products(device, trials, age_s).computed[0]
    seed = snr.seed_of(trials.seed, "products of a die", 0)
    query, key = snr._uniform(device, trials, seed, on_grid=False)
    tokens = 2 if age_s else 1
    q, k = (x.expand(-1, -1, tokens, -1) for x in (query, key))
    steps = naive_steps(q, k, k, device, token_period_s=age_s or 1e-6, die=Die(seed, device), read_key=seed)
    expected = steps.scores[0, :, -1, 0] * device.saturation.qk
    torch.testing.assert_close(computed, expected, rtol=tolerances.PATHS, atol=0.0)


def test_read_noise_reaches_the_product() -> None:
    """White noise of p full pulses has the variance p: sum E[p] = 32 of full-scale cells against 64/9 of the signal."""
    found = alone("white read noise", noise__white=0.01)
    expected = 10 * math.log10(64 * (1 / 3) * (1 / 3) / (32 * 0.01**2))
    assert found.snr_db == pytest.approx(expected, abs=0.3)


# ---- the measure itself


def test_offset_and_gain_are_free_and_errors_are_not() -> None:
    made = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 20000, generator=made, dtype=torch.float64)
    assert Products(x, 3.0 - 2e-6 * x).snr_db == math.inf
    assert Products(x, torch.ones_like(x)).snr_db == -math.inf
    assert Products(x, 5.0 + 7.0 * (x + 0.1 * z)).snr_db == pytest.approx(20.0, abs=0.2)
    assert Products(x, z).snr_db < -30.0


def test_figures_depend_on_the_seed_alone_and_agree_between_seeds() -> None:
    def figure(seed: int) -> float:
        return dot_products(load_device(NAME), Trials(dies=4, seed=seed)).snr_db

    figures = [figure(seed) for seed in range(6)]
    assert figure(0) == figures[0]
    assert len(set(figures)) == 6
    assert max(figures) - min(figures) < 0.9  # 2048 products: 3 % of a power each, 0.14 dB


def test_deviations_of_a_chip_differ_from_product_to_product() -> None:
    device = isolated(load_device(NAME), "gain mismatch")
    products = dot_products(device, Trials(dies=2, columns=64))
    error = products.computed - best_line(device) * products.meant
    assert len(torch.unique(error)) == 128


# ---- tables


def everything() -> DeviceModel:
    """Return a device that has every effect."""
    return load_device(
        NAME,
        {
            "readout_qk.bits": 6, "write.pedestal_gain": 0.02, "readout.offset_sigma": 0.3, "drift.amplitude": "50 mV",
            "drift.tau": "1000 s", "drift.stress_time": "1000 s", "refresh.kind": "on_droop", "refresh.droop": 0.5,
        },
    )  # fmt: skip


def test_every_effect_of_a_device_has_its_row() -> None:
    device = everything()
    attention = {name for name, effect in EFFECTS.items() if effect.part == "attention"}
    assert all(is_configured(device, effect) for effect in attention)
    rows = snr_by_effect(device, Trials(dies=2, columns=128))
    named = {row.effect for row in rows} | set(snr._BY_AGE) | set(snr._READOUT_ERRORS)
    assert named == {*attention, "cell law", "readout levels and errors"}
    assert [row.snr_db for row in rows] == sorted(row.snr_db for row in rows)
    assert all(math.isfinite(row.snr_db) for row in rows if row.effect not in ("pedestal", "threshold drift"))
    errors = next(row for row in rows if row.effect == "readout levels and errors")
    assert errors.drawn == ("die", "read")
    assert errors.keys == tuple(f"readout.{name}" for name in ("gain_sigma", "offset_sigma", "inl", "dnl", "noise"))


def test_an_exact_device_has_no_rows() -> None:
    assert snr_by_effect(load_device("ideal"), TRIALS) == []
    rows = snr_by_age(load_device("ideal"), 1e-5, TRIALS)
    assert rows[0].snr_db == (math.inf,)


def test_errors_of_codes_leave_their_rounding_out() -> None:
    """A tenth of an LSB of eight levels is 13 mV: far below the 17 dB of the rounding."""
    device = only(load_device(NAME), "storage levels", "DAC INL", "readout levels", *snr._READOUT_ERRORS)
    by_effect = {row.effect: row.snr_db for row in snr_by_effect(device, TRIALS)}
    # Rounding fills the end codes half: var(w) 0.0703 V^2, and inner codes, which err more, come 8/7 as often
    power = (0.1 * 0.9 / 7) ** 2 * 8 / 7
    assert by_effect["DAC INL"] == pytest.approx(10 * math.log10(0.0703 / power), abs=0.5)
    assert by_effect["readout levels and errors"] < by_effect["readout levels"] - 1.0


def test_age_tells_in_spread_and_in_the_mix_of_ages() -> None:
    rows = {row.effects: row.snr_db for row in snr_by_age(load_device(NAME), 0.78e-6, Trials(dies=2))}
    new, oldest, mixed = rows["retention, median cell"]
    assert new == oldest == math.inf  # one gain takes the mean decay up
    d = torch.exp(-torch.arange(1024.0) * 0.78e-6 / TAU)
    assert mixed == pytest.approx(10 * math.log10(float(d.mean() ** 2 / d.var())), abs=0.5)
    assert rows["retention with its spread"][1] == pytest.approx(24.0, abs=AGREEMENT_DB)  # 0.16 of a time constant
    assert rows["all effects"][1] < rows["all effects"][0] < rows["all effects but the cell law"][0]


def test_refresh_brings_the_signal_back() -> None:
    plain = load_device(NAME)
    refreshed = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": "200 us"})
    trials = Trials(dies=2)
    without_, with_ = (
        {row.effects: row.snr_db for row in snr_by_age(device, 4e-6, trials)} for device in (plain, refreshed)
    )
    assert with_["retention with its spread, refreshed"][1] > without_["retention with its spread"][1] + 10.0
    assert with_["all effects"][1] > without_["all effects"][1] + 3.0


def test_readout_of_a_range_of_its_own_is_only_matched() -> None:
    device = load_device(NAME)
    calibrated = replace(device, readout=replace(device.readout, range="calibrated"))
    names = [row.effects for row in snr_by_age(calibrated, 1e-6, Trials(dies=1, columns=64))]
    assert [name for name in names if "readout" in name] == ["all, then readout at 3 rms"]


def test_too_many_refreshes_are_refused_in_one_line() -> None:
    device = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": "1 us"})
    assert refresh_interval(device) == 1e-6
    dot_products(device, Trials(dies=1, columns=4), MOST_REFRESHES * 1e-6)
    with pytest.raises(InputError, match=f"too many refreshes to follow; expected at most {MOST_REFRESHES}"):
        dot_products(device, Trials(dies=1, columns=4), (MOST_REFRESHES + 1.5) * 1e-6)


def test_worst_of_131072_cells_lies_at_4_3_sigma() -> None:
    assert -NormalDist().inv_cdf(1 / 131072) == pytest.approx(4.3, abs=0.05)
