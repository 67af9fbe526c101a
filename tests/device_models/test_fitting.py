"""Fits of measured points: known parameters come back, intervals hold, the true law is chosen, bad data are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from device_models import DeviceModel, InputError, load_device
from device_models.cell import cell_current
from device_models.converters import code_errors, highest_code, read_out, readout_step
from device_models.fitting import FitResult, Points, decay, fit, read_points, write_device
from device_models.fitting.converter import strengths
from device_models.fitting.result import check_bounds
from device_models.fitting.spread import population
from device_models.loading import preset_folder, read_device_file
from device_models.retention import stored_voltage
from device_models.schema import Retention
from device_models.strict_yaml import read_yaml

EXACT = 1e-6
"""Relative: points without noise; least squares end at a gradient of 1e-13 of numbers that depend on each other."""

WRITTEN = 1e-5
"""Relative: six significant digits in a file."""

SEEDS = 20
RARE = 1e-3
"""Probability at which a correct program fails a statistical test; the seeds are fixed, so it does not in fact."""

LAWS: dict[str, dict[str, float]] = {
    "exponential": {"tau": 5e-3},
    "stretched": {"tau": 2e-3, "beta": 0.5},
    "log_self_limited": {"t0": 1e-5, "v_scale": 0.0456},
    "constant_current": {"rate": 30.0},
}
NOISE = 2e-3
LINEAR = (0.0, 19.3e-6, 0.0, 0.0)

Csv = Callable[[str], Path]


@pytest.fixture(scope="module")
def base() -> DeviceModel:
    return load_device("gaincell_28nm")


@pytest.fixture
def csv(tmp_path: Path) -> Csv:
    def write(text: str) -> Path:
        path = tmp_path / "data.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def points(kind: Any, cells: tuple[str, ...] = (), unit: str = "", **columns: NDArray) -> Points:
    count = len(next(iter(columns.values())))
    return Points(kind, "data.csv", np.arange(count) + 2, columns, cells, unit)


def sweep(
    device: DeviceModel, noise: float, seed: int = 0, *, coefficients: tuple[float, ...] = (), count: int = 46,
    span: tuple[float, float] = (0.0, 0.9), repeats: int = 1, stated: bool = False, bend: float = 0.0,
) -> Points:  # fmt: skip
    """Cell currents of the base's polynomial, or of given coefficients, with a misfit of ``bend`` amperes."""
    v = np.repeat(np.linspace(*span, count), repeats)
    cell = replace(device.cell, law="cubic", coefficients=coefficients or device.cell.coefficients)
    std = noise * (1 + 4 * np.abs(v - 0.45)) if stated else np.full(v.shape, noise)
    current = cell_current(v - device.storage.v_zero, cell) + bend * np.sin(30 * v)
    current = current + std * np.random.default_rng(seed).standard_normal(v.size)
    return points("cell", voltage=v, current=current, **({"current_std": std} if stated else {}))


def droop(
    law: str, noise: float, seed: int = 0, *, cells: int = 1, count: int = 40, written: bool = True,
    levels: tuple[float, ...] = (0.9, 0.2), sigma: float = 0.3, last: float = 1.2e-2, repeats: int = 1,
    **changes: float,
) -> Points:  # fmt: skip
    """Decay under a law towards 0.45 V, log-spaced in time, cells with log-normal constants."""
    rng = np.random.default_rng(seed)
    constants: dict[str, Any] = {**LAWS[law], **({"v_top": 0.9} if law == "log_self_limited" else {}), **changes}
    retention = Retention(kind=law, v_inf=0.45, tau_sigma_ln=sigma, **constants)  # type: ignore[arg-type]
    levels = levels if written else levels[:1]
    time = np.repeat(np.geomspace(1e-5, last, count), repeats)
    t = np.tile(time, cells * len(levels))
    cell = np.repeat(np.arange(cells), len(time) * len(levels))
    v0 = np.tile(np.repeat(levels, len(time)), cells)
    z = rng.standard_normal(cells) if cells > 1 else np.zeros(1)
    voltage = stored_voltage(v0, t, retention, z=z[cell]) + noise * rng.standard_normal(t.size)
    ids = tuple(f"c{i}" for i in cell) if cells > 1 else ()
    return points("retention", ids, time=t, voltage=voltage, **({"written": v0} if written else {}))


def ramp(
    base: DeviceModel, *, bits: int = 5, gain: float = 0.0, offset: float = 0.0, inl: float = 0.0, noise: float = 0.0,
    count: int = 1501, reads: int = 1, span: float = 0.95, seed: int = 0,
) -> tuple[NDArray, NDArray]:  # fmt: skip
    """Inputs and codes of one column as the emulator reads it out."""
    rng = np.random.default_rng(seed)
    readout = replace(base.readout, bits=bits, gain_sigma=1.0, offset_sigma=1.0, inl=inl, dnl=0.0, noise=1.0)
    codes = 2 * highest_code(readout) + 1
    errors = code_errors(rng.standard_normal(codes), np.zeros(codes), readout)
    x = np.repeat(np.linspace(-span, span, count), reads)
    z_noise = noise * rng.standard_normal(x.size)
    y = read_out(x, readout, errors=errors, z_gain=gain, z_offset=offset, z_noise=z_noise)
    return x, np.round(y / float(readout_step(readout) or 1.0))


def transfer(x: NDArray, codes: NDArray, unit: str = "") -> Points:
    return points("converter", unit=unit, input=x, code=codes)


def found(result: FitResult) -> dict[str, float]:
    return {p.name: p.value for p in result.parameters}


class Tally:
    """Intervals that held the truth, and z-scores; positive constants in logarithms."""

    def __init__(self) -> None:
        self.held: list[bool] = []
        self.z: list[float] = []

    def add(self, result: FitResult, truth: Mapping[str, float], *, logarithmic: bool) -> None:
        for p in result.parameters:
            if p.name not in truth:
                continue
            true, value, low, high = truth[p.name], p.value, p.low, p.high
            self.held.append(low <= true <= high)
            if logarithmic and p.name != "v_inf":
                true, value, low, high = np.log([true, value, low, high])
            self.z.append((value - true) / ((high - low) / 2 / 1.96))

    def check(self, fits: int) -> None:
        """Compare with the binomial and chi-squared laws of ``fits`` trials: numbers of one fit are not independent."""
        assert np.mean(self.held) >= stats.binom.ppf(RARE, fits, 0.95) / fits, np.mean(self.held)
        low, high = np.sqrt(stats.chi2.ppf([RARE, 1 - RARE], fits) / fits)
        assert low < np.sqrt(np.mean(np.square(self.z))) < high
        assert abs(np.mean(self.z)) < stats.norm.isf(RARE / 2) / np.sqrt(fits)


def refused(said: list[str], call: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message, message


# ---- reading


def test_units_stand_in_the_header(csv: Csv) -> None:
    read = read_points(csv("time_us,voltage_mV,written_V,cell\n# bench 3\n\n1.5,800,0.9,a7\n3,7.5e2,0.9,b1\n"))
    assert (read.kind, read.cells, len(read)) == ("retention", ("a7", "b1"), 2)
    assert read.lines.tolist() == [4, 5]
    np.testing.assert_allclose(read.columns["time"], [1.5e-6, 3e-6])
    np.testing.assert_allclose(read.columns["voltage"], [0.8, 0.75])
    read = read_points(csv("﻿voltage_V, current_nA ,current_std_pA\r\n0.1,5,2\r\n"))
    assert (read.kind, read.columns["current"][0]) == ("cell", 5e-9)
    np.testing.assert_allclose(read.columns["current_std"], [2e-12])
    read = read_points(csv("input,code\n-1,-15\n"))
    assert (read.kind, read.input_unit) == ("converter", "")
    assert read_points(csv("code,input_uA\n-15,-40\n")).input_unit == "A"


WRONG_FILES = [
    ("empty", "", ["the file is empty", "voltage_V,current_A"]),
    ("only-comments", "# nothing\n\n", ["the file is empty"]),
    ("header-only", "time_s,voltage_V\n", ["no points below the header"]),
    ("semicolons", "time_s;voltage_V\n1;2\n", ["line 1", "not separated by commas"]),
    ("unknown-column", "time_s,voltage_V,wirtten_V\n1,2,3\n", ["unknown column", "wirtten_V", "written_V"]),
    ("no-header", "0.1,2\n0.2,3\n", ["unknown column"]),
    ("no-unit", "time,voltage_V\n1,2\n", ["without its unit", "time_s", "'time'"]),
    ("std-no-unit", "voltage_V,current_A,current_std\n1,2,3\n", ["without its unit", "current_std_A"]),
    ("other-unit", "time_mV,voltage_V\n1,2\n", ["wrong unit", "time in s", "time_mV"]),
    ("no-such-unit", "time_lightyear_s,voltage_V\n1,2\n", ["wrong unit", "time_lightyear_s"]),
    ("unit-of-code", "input,code_V\n1,2\n", ["code without a unit"]),
    ("unit-of-input", "input_s,code\n1,2\n", ["input in V or A"]),
    ("twice", "time_s,voltage_V,time_ms\n1,2,3\n", ["stands twice", "'time'"]),
    ("missing", "time_s,written_V\n1,2\n", ["columns are missing", "time_s,voltage_V"]),
    ("two-kinds", "time_s,voltage_V,current_A\n1,2,3\n", ["do not belong together"]),
    ("strange", "input,code,cell\n1,2,3\n", ["do not belong together"]),
    ("short-line", "time_s,voltage_V\n1,2\n3\n", ["line 3", "malformed line", "2 fields", "received 1"]),
    ("decimal-comma", "time_s,voltage_V\n1,0,9\n", ["line 2", "malformed line", "received 3"]),
    ("open-quote", 'time_s,voltage_V\n1,"2\n', ["line 2", "malformed line"]),
    ("word", "time_s,voltage_V\n1,high\n", ["line 2", "voltage is no number", "'high'"]),
    ("grouped", "time_s,voltage_V\n1_000,2\n", ["line 2", "time is no number"]),
    ("blank-field", "time_s,voltage_V\n1,\n", ["line 2", "voltage is no number"]),
    ("nan", "time_s,voltage_V\n1,nan\n", ["line 2", "not finite"]),
    ("infinite-time", "time_s,voltage_V\ninf,1\n", ["line 2", "time is not finite"]),
    ("negative-time", "time_s,voltage_V\n1,1\n-1e-3,2\n", ["line 3", "negative time", "'-1e-3'"]),
    ("no-cell", "time_s,voltage_V,cell\n1,2,\n", ["line 2", "without its cell"]),
    ("zero-std", "voltage_V,current_A,current_std_A\n1,2,0\n", ["line 2", "not positive"]),
    ("averaged-code", "input,code\n1,2.5\n", ["line 2", "whole number", "single reads"]),
]


@pytest.mark.parametrize(("text", "said"), [c[1:] for c in WRONG_FILES], ids=[c[0] for c in WRONG_FILES])
def test_wrong_file_is_one_line_that_names_the_place(text: str, said: list[str], csv: Csv) -> None:
    path = csv(text)
    refused([str(path), *said], lambda: read_points(path))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    refused(["no such file"], lambda: read_points(tmp_path / "absent.csv"))
    refused(["cannot be read"], lambda: read_points(tmp_path))
    (tmp_path / "binary.csv").write_bytes(b"time_s,voltage_V\n\xff\xfe\n")
    refused(["cannot be read (UnicodeDecodeError)"], lambda: read_points(tmp_path / "binary.csv"))


# ---- cell


@pytest.mark.parametrize("stated", [False, True])
def test_cell_without_noise_comes_back(base: DeviceModel, stated: bool) -> None:
    exact = sweep(base, 0.0)
    if stated:
        exact.columns["current_std"] = np.full(len(exact), 1e-9)  # type: ignore[index]
    cubic = fit(exact, base)
    assert cubic.law == "cubic"
    np.testing.assert_allclose([p.value for p in cubic.parameters], base.cell.coefficients, rtol=EXACT)
    assert cubic.values["cell.coefficients"] == ["521.364 nA", "13.6123 uA/V", "-2.62045 uA/V**2", "46.0548 uA/V**3"]
    linear = fit(sweep(base, 0.0, coefficients=LINEAR), base)
    assert (linear.law, linear.values["cell.coefficients"]) == ("linear", ["19.3 uA/V"])
    assert not cubic.notes and not linear.notes


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("law", ["linear", "cubic"])
def test_cell_intervals_hold_and_the_true_law_is_chosen(base: DeviceModel, law: str, stated: bool) -> None:
    true = LINEAR if law == "linear" else base.cell.coefficients
    tally, chosen = Tally(), 0
    for seed in range(3 * SEEDS):
        result = fit(sweep(base, 1e-7, seed, coefficients=true, stated=stated), base)
        chosen += result.law == law
        if result.law == law:
            tally.add(result, {f"k{n}": k for n, k in enumerate(true)}, logarithmic=False)
    assert chosen >= stats.binom.ppf(RARE, 3 * SEEDS, 0.99)  # the F-test errs once in a hundred
    tally.check(3 * SEEDS)


def test_cell_residuals_keep_the_order_of_the_file(base: DeviceModel) -> None:
    given = sweep(base, 1e-7)
    mixed = np.random.default_rng(1).permutation(len(given))
    shuffled = points("cell", **{name: column[mixed] for name, column in given.columns.items()})
    ours, theirs = fit(given, base), fit(shuffled, base)
    np.testing.assert_allclose(ours.residuals[mixed], theirs.residuals, atol=1e-18)
    assert ours.residual_rms == pytest.approx(np.sqrt(np.sum(ours.residuals**2) / 42))
    assert [c.law for c in ours.comparison] == ["cubic", "linear"]


def test_cell_says_what_it_extrapolates_and_what_it_did_not_try(base: DeviceModel) -> None:
    result = fit(sweep(base, 1e-7, span=(0.1, 0.8)), base)
    assert any("extrapolated: measured from 0.1 to 0.8 V" in note for note in result.notes)
    few = fit(sweep(base, 1e-7, coefficients=LINEAR, count=6), base)
    assert any("the cubic law was not tried: it needs at least 7 points at 5" in note for note in few.notes)
    trend = fit(sweep(base, 1e-7), base, law="linear")
    assert "asked for" in trend.selection
    assert any("follow a trend along the voltage" in note for note in trend.notes)


def test_cell_misfit_widens_the_intervals_or_is_refused(base: DeviceModel) -> None:
    def width(result: FitResult) -> float:
        return result.parameters[3].high - result.parameters[3].low

    plain = fit(sweep(base, 1e-7, repeats=2), base)
    bent = fit(sweep(base, 1e-7, repeats=2, bend=2e-7), base)
    assert any("the intervals are widened" in note for note in bent.notes)
    assert width(bent) > 1.5 * width(plain)
    worse = sweep(base, 1e-7, repeats=2, bend=6e-7)
    refused(["the cubic law misses the points by", "repeated points tell", "at most 3"], lambda: fit(worse, base))
    assert width(fit(worse, base, accept_misfit=True)) > 2 * width(bent)
    stated = sweep(base, 1e-7, stated=True)
    refused(["linear law misses", "stated standard deviations"], lambda: fit(stated, base, law="linear"))


def test_cell_refuses(base: DeviceModel) -> None:
    refused(["unknown law", "linear or cubic", "'quartic'"], lambda: fit(sweep(base, 0.0), base, law="quartic"))
    refused(["one voltage", "300 mV"], lambda: fit(sweep(base, 0.0, span=(0.3, 0.3)), base))
    refused(["too few points for the linear law", "4 points"], lambda: fit(sweep(base, 0.0, count=3), base))
    refused(["for the cubic law", "7 points at 5"], lambda: fit(sweep(base, 0.0, count=6), base, law="cubic"))
    refused(["all currents are equal"], lambda: fit(sweep(base, 0.0, coefficients=(1e-6, 0.0, 0.0, 0.0)), base))
    narrow = sweep(base, 1e-7, span=(0.4, 0.5))
    refused(["k3 of the cubic law is not determined", "cover 11%"], lambda: fit(narrow, base))
    wrong = sweep(base, 1e-7, repeats=2)
    wrong.columns["current"][10] += 5e-6
    refused(["lines 12 and 13", "same conditions differ by", "six times"], lambda: fit(wrong, base))
    refused(["v_inf means nothing for points of a cell"], lambda: fit(sweep(base, 0.0), base, v_inf=0.4))


# ---- retention


def truth(law: str, result: FitResult) -> dict[str, float]:
    """Return a law's constants; t0 belongs to the level that the fit took as reference."""
    constants = {**LAWS[law], "v_inf": 0.45}
    if law == "log_self_limited":
        top = float(str(result.leaves["retention.v_top"].value).removesuffix(" V"))
        constants["t0"] *= np.exp((0.9 - top) / constants["v_scale"])
    return constants


@pytest.mark.parametrize("written", [True, False], ids=["written", "unwritten"])
@pytest.mark.parametrize("law", LAWS)
def test_decay_without_noise_comes_back(base: DeviceModel, law: str, written: bool) -> None:
    result = fit(droop(law, 0.0, written=written), base)
    assert result.law == law
    true = truth(law, result)
    for p in result.parameters:
        assert p.value == pytest.approx(true[p.name], rel=EXACT if written else 10 * EXACT), p.name
        assert p.low <= p.value <= p.high


@pytest.mark.parametrize("written", [True, False], ids=["written", "unwritten"])
@pytest.mark.parametrize("law", LAWS)
def test_decay_intervals_hold_and_the_true_law_is_chosen(base: DeviceModel, law: str, written: bool) -> None:
    tally, chosen = Tally(), 0
    for seed in range(SEEDS):
        result = fit(droop(law, NOISE, seed, written=written, count=32), base)
        chosen += result.law == law
        if result.law == law:
            tally.add(result, truth(law, result), logarithmic=True)
    assert chosen >= SEEDS - 2  # AICc takes one number too many for real in 2 to 5 % of fits
    tally.check(SEEDS)


def test_decay_of_single_laws_holds_its_intervals(base: DeviceModel) -> None:
    for law in LAWS:  # asked for, so that more of them take no time
        tally = Tally()
        for seed in range(100, 100 + 3 * SEEDS):
            result = fit(droop(law, NOISE, seed, count=24), base, law=law)
            tally.add(result, truth(law, result), logarithmic=True)
        tally.check(3 * SEEDS)


@pytest.mark.parametrize("law", ["exponential", "log_self_limited"])
def test_spread_over_cells(base: DeviceModel, law: str) -> None:
    held, median = [], []
    for seed in range(SEEDS):
        result = fit(droop(law, NOISE, seed, cells=24, count=10), base, law=law)
        spread = next(p for p in result.parameters if p.name == "tau_sigma_ln")
        held += [spread.low <= 0.3 <= spread.high]
        median += [
            result.parameters[0].low <= truth(law, result)[result.parameters[0].name] <= result.parameters[0].high
        ]
        assert result.leaves["retention.tau_sigma_ln"].range is not None
    assert min(sum(held), sum(median)) >= stats.binom.ppf(RARE, SEEDS, 0.95)


def test_equal_cells_have_no_spread_beyond_the_noise(base: DeviceModel) -> None:
    result = fit(droop("exponential", NOISE, cells=12, sigma=0.0), base)
    spread = next(p for p in result.parameters if p.name == "tau_sigma_ln")
    assert spread.low == 0.0 and spread.value < 0.02


def test_cells_that_hardly_decayed_do_not_move_the_median(base: DeviceModel) -> None:
    given = droop("exponential", NOISE, cells=24, count=10)
    slow = np.array([cell == "c3" for cell in given.cells])
    given.columns["voltage"][slow] = given.columns["written"][slow] + NOISE * np.sin(np.arange(slow.sum()))
    result = fit(given, base)
    assert found(result)["tau"] == pytest.approx(5e-3, rel=0.3)
    assert any("1 of 24 cells hardly decayed" in note for note in result.notes)


def test_large_array_is_fitted_through_the_sparse_path(base: DeviceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given = droop("stretched", NOISE, cells=40, count=10, written=False)
    dense = fit(given, base, law="stretched")
    monkeypatch.setattr(decay, "_DENSE", 0)
    monkeypatch.setattr(decay, "_CHUNK", 1000)
    sparse = fit(given, base, law="stretched")
    for ours, theirs in zip(dense.parameters, sparse.parameters, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-4)
        assert ours.low == pytest.approx(theirs.low, rel=1e-3)


def test_population_is_the_textbook_one_where_the_errors_are_equal() -> None:
    theta = np.random.default_rng(0).normal(-5.0, 0.4, 30)
    spread = population(theta, np.full(30, 0.01))
    square = float(np.var(theta, ddof=1))
    assert spread.sigma == pytest.approx(np.sqrt(square - 0.01), rel=1e-6)
    assert spread.mean == pytest.approx(theta.mean())
    assert spread.mean_variance == pytest.approx(square / 30)
    assert spread.low == pytest.approx(np.sqrt(square * 29 / 45.722 - 0.01), rel=1e-4)  # chi-squared tables, 29 dof
    assert spread.high == pytest.approx(np.sqrt(square * 29 / 16.047 - 0.01), rel=1e-4)


def test_given_v_inf_is_held_and_written_as_assumed(base: DeviceModel) -> None:
    short = droop("exponential", 2e-4, levels=(0.9,), last=1e-4)
    result = fit(short, base, law="exponential", v_inf=0.45)
    assert found(result)["tau"] == pytest.approx(5e-3, rel=0.03)
    assert [p.name for p in result.parameters] == ["tau"]
    assert result.leaves["retention.v_inf"].kind == "assumed"
    assert any("measured up to 100 us (0.01" in note for note in result.notes)


def test_short_curve_takes_the_simplest_law_and_says_so(base: DeviceModel) -> None:
    result = fit(droop("exponential", 2e-4, levels=(0.9,), last=1e-4), base)
    assert result.law == "constant_current"
    assert any("hardly tell the constant_current law from" in note and "exponential" in note for note in result.notes)
    assert next(c.problem for c in result.comparison if c.law == "exponential") is not None


def test_level_of_a_law_that_stops_there(base: DeviceModel) -> None:
    other = load_device("gaincell_28nm", {"retention.v_inf": "0.4 V"})
    reached = droop("constant_current", 1e-3, last=4e-2)
    result = fit(reached, other)
    assert found(result)["v_inf"] == pytest.approx(0.45, abs=2e-3)
    held = fit(droop("constant_current", 1e-3, last=5e-3), base)
    assert "retention.v_inf" not in held.leaves
    assert any("v_inf is held at 0.45 V" in note for note in held.notes)


def test_temperature_is_referred_to_that_of_the_device(base: DeviceModel) -> None:
    hot = load_device("gaincell_28nm", {"retention.activation_energy": "0.5 eV"})
    given = droop("exponential", 0.0)
    reference = hot.retention.reference_temperature
    assert found(fit(given, hot, temperature=reference))["tau"] == pytest.approx(5e-3, rel=EXACT)
    result = fit(given, hot, temperature=358.15)
    speed = np.exp(-0.5 * 1.602176634e-19 / 1.380649e-23 * (1 / 358.15 - 1 / reference))
    assert found(result)["tau"] == pytest.approx(5e-3 * speed, rel=10 * EXACT)
    assert "measured at 358.15 K" in result.leaves["retention.tau"].note
    cold = load_device("gaincell_28nm", {"retention.activation_energy": "0 eV"})
    refused(["temperature", "activation_energy", "358.15 K"], lambda: fit(given, cold, temperature=358.15))


def test_decay_refuses_data_that_say_too_little(base: DeviceModel) -> None:
    short = droop("exponential", 2e-4, levels=(0.9,), last=1e-4)
    refused(
        ["the exponential law does not fit", "tau is not determined", "the data end at 0.11 tau"],
        lambda: fit(short, base, law="exponential"),
    )
    longer = droop("exponential", 1e-4, levels=(0.9,), last=6e-4)
    refused(["v_inf is not determined", "give v_inf"], lambda: fit(longer, base, law="exponential"))
    late = droop("log_self_limited", 1.5e-2, levels=(0.9,), t0=1e-10, v_scale=0.02)
    refused(["t0 is not determined", "the data start at"], lambda: fit(late, base, law="log_self_limited"))
    flat = droop("exponential", 0.0)
    flat.columns["voltage"][:] = flat.columns["written"] + 1e-3 * np.random.default_rng(0).standard_normal(80)
    refused(["is not determined"], lambda: fit(flat, base))
    coarse = droop("exponential", 0.15, count=4)
    refused(["is not determined", "points with a residual of"], lambda: fit(coarse, base, law="exponential"))
    two = droop("exponential", NOISE, cells=2, count=10)
    refused(["2 cells whose tau differ by a factor of", "measure more cells"], lambda: fit(two, base))


def test_decay_refuses(base: DeviceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    good = droop("exponential", NOISE)
    refused(["unknown law", "did you mean stretched"], lambda: fit(good, base, law="streched"))
    refused(["v_inf is out of range"], lambda: fit(good, base, v_inf=float("nan")))
    refused(["temperature is out of range"], lambda: fit(good, base, temperature=0.0))
    refused(["input_range means nothing"], lambda: fit(good, base, input_range=(0.0, 1.0)))
    t, v = np.array([0.0, 1e-3, 2e-3, 3e-3]), np.array([0.9, 0.8, 0.72, 0.65])
    refused(
        ["too few points for the constant_current"], lambda: fit(points("retention", time=t[:3], voltage=v[:3]), base)
    )
    refused(
        ["too few points for the stretched law", "at least 7 points at 4 times", "give v_inf"],
        lambda: fit(points("retention", time=t, voltage=v), base, law="stretched"),
    )
    refused(["all points lie at one time"], lambda: fit(points("retention", time=t[:1], voltage=v[:1]), base))
    cells = points("retention", ("a", "a", "a", "b"), time=t, voltage=v)
    refused(["cell 'b' was measured at one time only", "3 ms"], lambda: fit(cells, base))
    refused(["one voltage: nothing decays"], lambda: fit(points("retention", time=t, voltage=v * 0 + 0.5), base))
    squeezed = points(
        "retention", time=good.columns["time"], voltage=0.45 + 0.4 * np.exp(-((good.columns["time"] / 5e-3) ** 2))
    )
    refused(["beta = 2 is above 1"], lambda: fit(squeezed, base, law="stretched"))
    broad = droop("stretched", 0.0, beta=0.05, tau=1e-3)
    broad.columns["time"][:] = 1e-3 * (broad.columns["time"] / 1e-3) ** 0.6  # beta 0.05 / 0.6 stays; below is refused
    check = fit(broad, base, law="stretched").parameters[1]
    refused(
        ["beta cannot stand in a device file"], lambda: check_bounds("retention.beta", replace(check, value=0.01), "x")
    )
    monkeypatch.setattr(decay, "_EVALUATIONS", 2)
    refused(["the search does not converge"], lambda: fit(good, base, law="stretched"))


def test_decay_refuses_points_that_contradict_each_other(base: DeviceModel) -> None:
    twice = droop("exponential", NOISE, repeats=2)
    assert fit(twice, base).law == "exponential"
    twice.columns["voltage"][31] += 0.05
    refused(["lines 32 and 33", "same conditions differ by", "cell column"], lambda: fit(twice, base))
    wiggly = droop("exponential", 2e-4, repeats=3)
    wiggly.columns["voltage"][:] += 5e-3 * np.sin(3 * np.log(wiggly.columns["time"]))
    refused(["law misses the points by", "repeated points tell"], lambda: fit(wiggly, base))
    assert any("widened" in note for note in fit(wiggly, base, accept_misfit=True).notes)


# ---- converter


def test_ideal_converter_comes_back_within_the_spacing(base: DeviceModel) -> None:
    result = fit(transfer(*ramp(base)), base)
    values = found(result)
    assert values["bits"] == 5 and result.values["readout.bits"] == 5
    assert abs(values["gain"]) < 1e-3 and abs(values["offset [LSB]"]) < 1e-3
    for p in result.parameters[3:]:
        assert p.low == 0.0 and p.high < 0.05
    assert "readout.noise" not in result.values
    assert not result.residuals.any()


def test_converter_gain_offset_and_noise_hold_their_intervals(base: DeviceModel) -> None:
    rng, held, noise = np.random.default_rng(5), [], []
    for seed in range(2 * SEEDS):
        gain, offset = 0.02 * rng.standard_normal(), 0.3 * rng.standard_normal()
        reads = 1 + 4 * (seed % 2)
        given = ramp(base, gain=gain, offset=offset, noise=0.2, reads=reads, count=1501 // reads, span=0.93, seed=seed)
        result = {p.name: p for p in fit(transfer(*given), base).parameters}
        for name, true in (("gain", gain), ("offset [LSB]", offset), ("noise [LSB]", 0.2)):
            held.append(result[name].low <= true <= result[name].high)
        noise.append(result["noise [LSB]"].value)
    assert np.mean(held) >= stats.binom.ppf(RARE, 2 * SEEDS, 0.95) / (2 * SEEDS)
    assert np.mean(noise) == pytest.approx(0.2, abs=0.01)


def test_converter_inl_and_dnl_of_known_transitions(base: DeviceModel) -> None:
    rng = np.random.default_rng(3)
    at = (np.arange(-14, 16) - 0.5 + 0.2 * rng.standard_normal(30)) / 15
    x = np.linspace(-1, 1, 20001)
    codes = np.searchsorted(np.sort(at), x) - 15.0
    ideal = np.polyfit(np.sort(at), np.arange(-14, 16) - 0.5, 1)
    inl = np.polyval(ideal, np.sort(at)) - (np.arange(-14, 16) - 0.5)
    dnl = np.diff(np.sort(at)) * ideal[0] - 1
    values = found(fit(transfer(x, codes), base))
    assert values["gain"] == pytest.approx(ideal[0] / 15 - 1, abs=1e-4)
    assert values["offset [LSB]"] == pytest.approx(ideal[1], abs=1e-3)
    assert values["INL rms [LSB]"] == pytest.approx(np.sqrt(np.mean(inl**2)), rel=1e-3)
    assert values["DNL rms [LSB]"] == pytest.approx(np.sqrt(np.mean(dnl**2)), rel=1e-3)


def test_converter_strengths_give_the_emulator_the_measured_inl(base: DeviceModel) -> None:
    power = []
    for seed in range(3 * SEEDS):
        result = fit(transfer(*ramp(base, inl=0.3, seed=seed, count=3001)), base)
        power.append(result.values["readout.inl"] ** 2)
    assert np.sqrt(np.mean(power)) == pytest.approx(0.3, rel=0.25)  # a walk has few independent steps
    readout = replace(base.readout, bits=5)
    assert strengths(0.0, 0.0, readout) == (0.0, 0.0)
    inl, dnl = strengths(0.3, 0.15, readout)
    assert inl > 0.3 and dnl < 0.15  # the best line takes some INL off; the walk makes most of the DNL


def test_converter_inputs_in_other_units_and_unsigned_codes(base: DeviceModel) -> None:
    x, codes = ramp(base, gain=0.02, offset=0.3)
    plain = found(fit(transfer(x, codes), base))
    for given, options in (
        (transfer(x, codes + 15), {}),
        (transfer(x * base.saturation.av, codes, "A"), {}),
        (transfer(0.5 + 0.3 * x, codes, "V"), {"input_range": (0.2, 0.8)}),
    ):
        assert found(fit(given, base, **options)) == pytest.approx(plain, rel=1e-9, abs=1e-9)  # type: ignore[arg-type]
    three = fit(transfer(*ramp(base, bits=3)), base)
    assert three.values["readout.bits"] == 3
    missing = np.where(codes == 4, 5, codes)
    assert any("1 codes are missing" in note for note in fit(transfer(x, missing), base).notes)
    middle = np.abs(x) < 0.5
    assert any("cover 16 of 31 codes" in note for note in fit(transfer(x[middle], codes[middle]), base).notes)


def test_converter_refuses(base: DeviceModel) -> None:
    x, codes = ramp(base)
    refused(["codes fall while the input rises"], lambda: fit(transfer(x, -codes), base))
    fallen = np.where((x > 0.2) & (x < 0.4), codes - 4, codes)
    refused(["codes fall", "lines", "read each input several times"], lambda: fit(transfer(x, fallen), base))
    sparse = slice(None, None, 10)
    refused(["codes fall", "1.5 codes"], lambda: fit(transfer(x[sparse], fallen[sparse]), base))
    again = np.repeat(x[sparse], 12), np.repeat(np.where(np.abs(x - 0.31) < 0.02, codes - 1, codes)[sparse], 12)
    refused(["codes fall", "a fall by 1 codes"], lambda: fit(transfer(*again), base))
    refused(["too few points for 29 codes", "4 inputs per code"], lambda: fit(transfer(*ramp(base, count=80)), base))
    refused(["too few codes", "3 transitions"], lambda: fit(transfer(x, np.sign(codes)), base))
    refused(["too few codes"], lambda: fit(transfer(x, codes * 0), base))
    refused(["too many codes", "12 bits"], lambda: fit(transfer(x, codes * 1000), base))
    refused(["no number of bits", "check the range"], lambda: fit(transfer(1.45 * x, codes), base))
    refused(["full scale of the inputs"], lambda: fit(transfer(x, codes, "V"), base))
    refused(["input range is empty"], lambda: fit(transfer(x, codes), base, input_range=(1.0, 1.0)))
    refused(["accept_misfit means nothing"], lambda: fit(transfer(x, codes), base, accept_misfit=True))


# ---- writing


@pytest.mark.parametrize("law", LAWS)
def test_written_device_has_the_fitted_values_and_keeps_the_others(law: str, base: DeviceModel, tmp_path: Path) -> None:
    result = fit(droop(law, NOISE, cells=10, count=10), base, law=law)
    device = write_device(result, "gaincell_28nm", tmp_path / "mine.yaml")
    assert device == load_device(tmp_path / "mine.yaml")
    assert device.retention.kind == law
    for p in result.parameters:
        assert getattr(device.retention, p.name) == pytest.approx(p.value, rel=WRITTEN)
        leaf = device.provenance[f"retention.{p.name}"]
        assert (leaf.source, leaf.where, leaf.kind) == ("user", "data.csv", "measured")
        assert leaf.range == (str(p.written(p.low)), str(p.written(p.high)))
        assert law in str(leaf.note) and "200 points" in str(leaf.note) and "residual" in str(leaf.note)
    touched = {*result.leaves, *result.obsolete}
    assert {k: v for k, v in device.provenance.items() if k not in touched} == {
        k: v for k, v in base.provenance.items() if k not in touched
    }
    assert device.cost == base.cost and device.cell == base.cell
    assert "retention fitted to data.csv" in device.title


def test_fits_of_all_kinds_follow_each_other_into_one_file(base: DeviceModel, tmp_path: Path) -> None:
    cell = write_device(fit(sweep(base, 1e-7, coefficients=LINEAR), base), "gaincell_28nm", tmp_path / "a.yaml")
    assert cell.cell.law == "linear" and len(cell.cell.coefficients) == 1
    both = write_device(fit(droop("stretched", NOISE), cell), tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert (both.cell, both.retention.kind) == (cell.cell, "stretched")
    all_three = write_device(fit(transfer(*ramp(base, bits=4)), both), tmp_path / "b.yaml", tmp_path / "c.yaml")
    assert (all_three.readout.bits, all_three.cell, all_three.retention) == (4, cell.cell, both.retention)


def test_device_without_decay_gets_one(tmp_path: Path) -> None:
    ideal = load_device("ideal")
    decaying = write_device(fit(droop("log_self_limited", NOISE), ideal), "ideal", tmp_path / "a.yaml")
    assert (decaying.retention.kind, decaying.retention.v_inf) == ("log_self_limited", 0.45)
    assert decaying.provenance["retention.v_inf"].kind == "assumed"
    counted = write_device(fit(transfer(*ramp(load_device("gaincell_28nm"))), ideal), "ideal", tmp_path / "b.yaml")
    assert (counted.readout.codes, counted.readout.bits) == ("counter", 5)


def test_file_is_the_same_every_time_and_leaves_nothing_to_guess(base: DeviceModel, tmp_path: Path) -> None:
    odd = replace(droop("exponential", NOISE), file='folder/1e-4 "µ" no:\n# x.csv')
    for name in ("a.yaml", "b.yaml"):
        device = write_device(fit(odd, base), "gaincell_28nm", tmp_path / name)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert device.provenance["retention.tau"].where == '1e-4 "µ" no: # x.csv'
    tree = read_yaml(tmp_path / "a.yaml")
    assert tree["cost"] == read_device_file(preset_folder() / "gaincell_28nm.yaml")[0]["cost"]


def test_writing_refuses(base: DeviceModel, tmp_path: Path) -> None:
    result, out = fit(droop("exponential", NOISE), base), tmp_path / "mine.yaml"
    out.write_text("precious")
    refused([str(out), "the file exists", "nothing is overwritten"], lambda: write_device(result, "gaincell_28nm", out))
    assert out.read_text() == "precious"
    refused(["cannot be written"], lambda: write_device(result, "gaincell_28nm", tmp_path / "absent" / "x.yaml"))
    refused(["no such device file"], lambda: write_device(result, "gaincell_27nm", tmp_path / "x.yaml"))
    refused(["bfloat16_decay"], lambda: write_device(result, "parity_leroux2025", tmp_path / "x.yaml"))
    assert not (tmp_path / "x.yaml").exists()


def test_the_package_itself_needs_no_scipy() -> None:
    code = "import sys, device_models; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
