"""Decay, drift and refresh against published figures, and the properties that any decay has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_models import load_device
from device_models.retention import (
    BOLTZMANN,
    arrhenius,
    decay_factor,
    refresh_interval,
    slowness,
    stored_voltage,
    threshold_drift,
)
from device_models.schema import Retention
from tests import tolerances

EV = 1.602176634e-19
ROOM, HOT = 300.15, 358.15
CONSTANTS = {"tau_sigma_ln": 0.4, "activation_energy": 0.5 * EV, "reference_temperature": ROOM}
LAWS = {
    "exponential": Retention("exponential", tau=5e-3, v_inf=0.45, **CONSTANTS),
    "stretched": Retention("stretched", tau=5e-3, beta=0.4, v_inf=0.45, **CONSTANTS),
    "log_self_limited": Retention("log_self_limited", v_scale=0.0456, t0=8.7e-9, v_top=0.9, v_inf=0.3, **CONSTANTS),
    "constant_current": Retention("constant_current", rate=90.0, v_inf=0.45, **CONSTANTS),
}
ROUNDING = 4e-16  # [V] two roundings of voltages below 1 V
voltages = st.floats(0.0, 0.9)
ages = st.floats(0.0, 1.0) | st.floats(-10.0, 0.0).map(lambda x: 10.0**x)
deviates = st.floats(-4.5, 4.5)
laws = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


# ---- figures


@pytest.mark.parametrize(
    ("tau", "left"),  # at the oldest of 1024 tokens; columns: 65 ns, 0.78 us, 10 us, 100 us between tokens
    [(0.9e-3, [0.93, 0.41, 1e-5, 0.0]), (5e-3, [0.987, 0.852, 0.129, 1e-9]), (0.1, [0.999, 0.992, 0.903, 0.36])],
)
def test_charge_left_at_the_oldest_token(tau: float, left: list[float]) -> None:
    age = 1023 * np.array([65e-9, 0.78e-6, 10e-6, 100e-6])
    d = decay_factor(age, Retention("exponential", tau=tau, v_inf=0.45))
    np.testing.assert_allclose(d, left, rtol=0.006, atol=5e-6)


@pytest.mark.parametrize(("bits", "in_tau"), [(3, 0.154), (4, 0.069), (5, 0.033), (6, 0.016)])
def test_deadline_of_half_a_step(bits: int, in_tau: float) -> None:
    device = load_device("gaincell_28nm", {"storage.levels": 2**bits, "refresh.kind": "on_droop", "refresh.droop": 0.5})
    interval = refresh_interval(device)
    assert interval == pytest.approx(-5e-3 * math.log(1 - 1 / (2**bits - 1)), rel=1e-9)
    assert interval / 5e-3 == pytest.approx(in_tau, abs=5e-4)


def test_leakage_at_85_celsius_is_23_times_that_at_27() -> None:
    assert arrhenius(HOT, 0.5 * EV, ROOM) == pytest.approx(23, abs=0.2)
    assert 5e-3 * slowness(LAWS["exponential"], HOT) == pytest.approx(0.22e-3, abs=0.005e-3)
    assert arrhenius(ROOM + 11, 0.5 * EV, ROOM) == pytest.approx(2, abs=0.03)  # doubles per 11 C


def test_worst_of_131072_cells() -> None:
    """4.3 sigma below the median: 0.18 at a spread of 0.4, 0.03 at 0.8."""
    assert slowness(Retention("exponential", tau_sigma_ln=0.4), z=-4.3) == pytest.approx(0.18, abs=0.005)
    assert slowness(Retention("exponential", tau_sigma_ln=0.8), z=-4.3) == pytest.approx(0.03, abs=0.005)


DROOP_TIMES = np.array([45e-9, 483e-9, 3.98e-6, 19.2e-6])


def test_stretched_law_fits_the_28_nm_table_and_one_exponential_does_not() -> None:
    def misfit(law: Retention) -> float:
        lost = 1 - stored_voltage(0.9, DROOP_TIMES, law) / 0.9
        return float(np.sqrt(np.mean((lost - [0.1, 0.2, 0.3, 0.4]) ** 2)))

    assert misfit(Retention("stretched", tau=0.22e-3, beta=0.26, v_inf=0.0)) < 0.02
    single = min(misfit(Retention("exponential", tau=tau, v_inf=0.0)) for tau in np.geomspace(1e-9, 1e-2, 701))
    assert single == pytest.approx(0.14, abs=0.02)


@pytest.mark.parametrize(
    ("sigma", "decibels"), [(0.4, [27, 21, 14]), (0.8, [19, 14, 8])], ids=["sigma-0.4", "sigma-0.8"]
)
def test_signal_to_noise_that_the_spread_alone_leaves(sigma: float, decibels: list[int]) -> None:
    """One dot product at the ages 0.1, 0.2, 0.5 tau; a common factor is no error."""
    z = np.random.default_rng(0).standard_normal(400_000)
    law = Retention("exponential", tau=1.0, v_inf=0.45, tau_sigma_ln=sigma)
    for age, expected in zip([0.1, 0.2, 0.5], decibels, strict=True):
        d = decay_factor(age, law, z=z)
        assert 20 * math.log10(d.mean() / d.std()) == pytest.approx(expected, abs=1.0)


def test_constant_current_empties_the_cell_in_one_tau_of_its_first_slope() -> None:
    """0.09 pA on 1 fF: 90 V/s, 0.45 V in 5 ms; an exponential of that tau starts with the same slope."""
    law = LAWS["constant_current"]
    v = stored_voltage(np.array([[0.9], [0.0]]), np.array([0.0, 2.5e-3, 5e-3, 1.0]), law)
    np.testing.assert_allclose(v, [[0.9, 0.675, 0.45, 0.45], [0.0, 0.225, 0.45, 0.45]], atol=ROUNDING)
    slope = (stored_voltage(0.9, 1e-9, LAWS["exponential"]) - 0.9) / 1e-9
    assert slope == pytest.approx(-90.0, rel=1e-5)


def test_log_law_slows_tenfold_per_105_millivolts() -> None:
    law = LAWS["log_self_limited"]
    times = [1e-7, 1e-6]
    rates = [(stored_voltage(0.9, t * 1.001, law) - stored_voltage(0.9, t, law)) / (0.001 * t) for t in times]
    voltages_there = stored_voltage(0.9, np.array(times), law)
    decades = math.log10(rates[0] / rates[1])
    assert (voltages_there[0] - voltages_there[1]) / decades == pytest.approx(0.105, abs=0.001)


def test_log_law_counts_from_the_level_of_rest_on_both_sides() -> None:
    """A cell at v_top loses v_scale ln 2 in t0; one as far below the level of rest gains it."""
    law = LAWS["log_self_limited"]
    lost = 0.0456 * math.log(2)
    assert stored_voltage(0.9, 8.7e-9, law) == pytest.approx(0.9 - lost, abs=1e-15)
    assert stored_voltage(-0.3, 8.7e-9, law) == pytest.approx(-0.3 + lost, abs=1e-15)
    assert stored_voltage(0.5, 8.7e-9, law) > 0.5 - 0.01 * lost


# ---- properties


@laws
@given(voltages, deviates)
@settings(max_examples=50, deadline=None)
def test_age_zero_changes_nothing(law: Retention, v0: float, z: float) -> None:
    assert stored_voltage(v0, 0.0, law, z=z) == pytest.approx(v0, abs=ROUNDING)


@given(voltages, ages, deviates)
@settings(max_examples=50, deadline=None)
def test_no_law_changes_nothing_to_the_last_bit(v0: float, age: float, z: float) -> None:
    assert stored_voltage(v0, age, Retention("none"), temperature=HOT, z=z) == v0
    assert decay_factor(age, Retention("none"), HOT, z) == 1.0


@laws
@given(ages, deviates)
@settings(max_examples=50, deadline=None)
def test_level_of_rest_stays(law: Retention, age: float, z: float) -> None:
    assert law.v_inf is not None
    assert stored_voltage(law.v_inf, age, law, z=z) == law.v_inf


@laws
@given(voltages, st.lists(ages, min_size=2, max_size=8), deviates)
@settings(max_examples=100, deadline=None)
def test_cell_relaxes_monotonously_without_crossing(law: Retention, v0: float, age: list[float], z: float) -> None:
    assert law.v_inf is not None
    excursion = stored_voltage(v0, np.sort(age), law, z=z) - law.v_inf
    start = v0 - law.v_inf
    assert (excursion * np.sign(start) >= -ROUNDING).all()
    assert (np.abs(excursion) <= abs(start) + ROUNDING).all()
    assert (np.diff(np.abs(excursion)) <= ROUNDING).all()


@pytest.mark.parametrize("kind", ["exponential", "log_self_limited", "constant_current"])
@given(voltages, ages, ages, deviates)
@settings(max_examples=100, deadline=None)
def test_two_waits_are_one_wait(kind: str, v0: float, a: float, b: float, z: float) -> None:
    """These laws follow from the voltage alone. The stretched law has memory, and is no differential equation of it."""
    law = LAWS[kind]
    twice = stored_voltage(stored_voltage(v0, a, law, z=z), b, law, z=z)
    assert twice == pytest.approx(float(stored_voltage(v0, a + b, law, z=z)), abs=1e-12)


def test_stretched_law_has_memory() -> None:
    law = LAWS["stretched"]
    twice = stored_voltage(stored_voltage(0.9, 1e-3, law), 1e-3, law)
    assert twice < stored_voltage(0.9, 2e-3, law) - 0.01


@laws
@given(voltages, ages, deviates, st.floats(250.0, 400.0))
@settings(max_examples=50, deadline=None)
def test_spread_and_temperature_stretch_time(law: Retention, v0: float, age: float, z: float, kelvin: float) -> None:
    s = float(slowness(law, kelvin, z))
    other = stored_voltage(v0, age / s, law)
    assert stored_voltage(v0, age, law, temperature=kelvin, z=z) == pytest.approx(float(other), abs=1e-12)
    assert s == pytest.approx(math.exp(0.4 * z + 0.5 * EV / BOLTZMANN * (1 / kelvin - 1 / ROOM)), rel=1e-12)


@laws
def test_no_spread_and_the_reference_temperature_are_neutral_to_the_last_bit(law: Retention) -> None:
    from dataclasses import replace

    z = np.linspace(-4, 4, 9)
    still = replace(law, tau_sigma_ln=0.0)
    expected = np.full(9, float(stored_voltage(0.8, 1e-4, law)))
    np.testing.assert_array_equal(stored_voltage(0.8, 1e-4, still, z=z), expected)
    np.testing.assert_array_equal(stored_voltage(0.8, 1e-4, still, temperature=ROOM, z=z), expected)
    indifferent = replace(still, activation_energy=0.0)
    np.testing.assert_array_equal(stored_voltage(0.8, 1e-4, indifferent, temperature=HOT, z=z), expected)


def test_spread_is_log_normal_about_the_median() -> None:
    z = np.random.default_rng(1).standard_normal(100_000)
    ln = np.log(slowness(LAWS["exponential"], z=z))
    assert abs(np.median(ln)) < 5 * 0.4 * math.sqrt(math.pi / 2 / z.size)
    assert abs(ln.std() / 0.4 - 1) < 5 / math.sqrt(2 * z.size)


def test_factor_keeps_its_digits_where_little_is_left() -> None:
    """Not a difference of voltages: 30 tau leave 1e-13 to twelve digits."""
    d = decay_factor(30 * 5e-3, LAWS["exponential"])
    assert d == pytest.approx(math.exp(-30), rel=1e-12)


@pytest.mark.parametrize("kind", ["log_self_limited", "constant_current"])
def test_law_without_factor_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind} has no factor"):
        decay_factor(1e-3, LAWS[kind])


@laws
def test_negative_age_is_refused(law: Retention) -> None:
    with pytest.raises(ValueError, match=r"age must be >= 0 s.*-0\.001"):
        stored_voltage(0.9, [0.0, -1e-3], law)
    with pytest.raises(ValueError, match="age must be"):
        stored_voltage(0.9, [-1.0], Retention("none"))


# ---- drift


def drift(**keys: object) -> float:
    overrides = {"drift.amplitude": "200 mV", "drift.tau": "3e5 s"} | {f"drift.{k}": v for k, v in keys.items()}
    return threshold_drift(load_device("gaincell_28nm", overrides))


def test_drift_grows_to_its_amplitude() -> None:
    assert drift(stress_time="0 s") == 0.0
    for beta in (1.0, 0.4):
        assert drift(stress_time="3e5 s", beta=beta) == pytest.approx(0.2 * (1 - 1 / math.e), rel=tolerances.SUM)
        assert drift(stress_time="1e12 s", beta=beta) == pytest.approx(0.2, rel=1e-12)
    assert drift(stress_time="1000 s", beta=0.4) == pytest.approx(0.0194, abs=0.0005)
    assert drift(amplitude="-200 mV", stress_time="3e5 s") == -drift(stress_time="3e5 s")


def test_drift_is_faster_in_heat() -> None:
    hot = {
        "drift.amplitude": "200 mV", "drift.tau": "3e5 s", "drift.activation_energy": "0.68 eV",
        "drift.reference_temperature": f"{ROOM} K", "drift.stress_time": "1000 s", "operation.temperature": f"{HOT} K",
    }  # fmt: skip
    shift = threshold_drift(load_device("gaincell_28nm", hot))
    speed = math.exp(0.68 * EV / BOLTZMANN * (1 / ROOM - 1 / HOT))
    assert speed > 50
    assert shift == pytest.approx(0.2 * (1 - math.exp(-1000 * speed / 3e5)), rel=1e-6)


@pytest.mark.parametrize("name", ["gaincell_28nm", "gaincell_igzo", "ideal"])
def test_no_stress_is_no_drift(name: str) -> None:
    assert threshold_drift(load_device(name)) == 0.0
    assert threshold_drift(load_device(name, {"drift.amplitude": "0 V", "drift.stress_time": "1e6 s"})) == 0.0


# ---- refresh


def test_interval_of_each_kind() -> None:
    assert refresh_interval(load_device("gaincell_28nm")) is None
    periodic = {"refresh.kind": "periodic", "refresh.interval": "127 us"}
    assert refresh_interval(load_device("gaincell_28nm", periodic)) == 127e-6


@pytest.mark.parametrize("name", ["gaincell_28nm", "gaincell_28nm_logic", "gaincell_igzo"])
@pytest.mark.parametrize("droop", [0.01, 0.25, 0.5])
def test_at_the_interval_the_extreme_level_has_lost_that_much(name: str, droop: float) -> None:
    device = load_device(name, {"refresh.kind": "on_droop", "refresh.droop": droop})
    ends = np.array([0.0, 0.9])
    lost = np.abs(stored_voltage(ends, refresh_interval(device), device.retention) - ends).max()
    assert lost == pytest.approx(droop * 0.9 / 7, rel=1e-9)


def test_hot_cells_are_refreshed_23_times_as_often() -> None:
    wanted = {"refresh.kind": "on_droop", "refresh.droop": 0.5}
    cold, hot = (
        refresh_interval(load_device("gaincell_28nm", {**wanted, "operation.temperature": f"{kelvin} K"}))
        for kelvin in (ROOM, HOT)
    )
    assert cold is not None and hot is not None
    assert cold / hot == pytest.approx(arrhenius(HOT, 0.5 * EV, ROOM), rel=1e-9)


def test_refresh_that_would_never_act_is_refused() -> None:
    frozen = {"refresh.kind": "on_droop", "refresh.droop": 0.5, "operation.temperature": "80 K"}
    with pytest.raises(ValueError, match="never droop that far"):
        refresh_interval(load_device("gaincell_igzo", frozen))
