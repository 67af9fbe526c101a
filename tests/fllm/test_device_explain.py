"""``fllm device explain``: its figures against the published and the estimated ones, and how it prints them."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from device_models import load_device, preset_names
from device_models.retention import stored_voltage
from fllm import cli, device_explain
from fllm.device_explain import half_lsb_time, head_cost, resolution_table, retention_table, swing_left
from hwsim.counting import count_events, record_attention
from hwsim.functional.layout import slot_layout
from hwsim.snr import Trials
from tests import tolerances
from tests.fllm.small import SHIPPED

NAME = "gaincell_28nm"
LINEAR = {  # one factor fades all cells
    "cell.law": "linear", "cell.coefficients": ["19.3 uA/V"], "retention.v_inf": "0.45 V",
    "retention.tau_sigma_ln": 0.0, "variability.offset_sigma": "0 V",
}  # fmt: skip
Explain = Callable[..., str]


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Return a function that runs ``fllm device explain`` with few trials and returns what it prints."""

    def run(*arguments: object, code: int = 0, columns: int = 100) -> str:
        monkeypatch.setattr(device_explain, "Trials", lambda head_dim: Trials(head_dim, dies=1, columns=64))
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["fllm", "device", "explain", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert stop.value.code == code, err
        assert len(err.splitlines()) == (code != 0)
        return err if code else out

    return run


def rows(table: object) -> dict[str, list[str]]:
    """Cells of a table's rows, by what stands in the first."""
    console = Console(width=200)
    with console.capture() as printed:
        console.print(table)
    return cells(printed.get())


def cells(text: str) -> dict[str, list[str]]:
    parts = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {first: rest for first, *rest in parts}


# ---- figures


@pytest.mark.parametrize(
    ("tau", "period", "expected"),
    [
        ("0.9 ms", 65e-9, 0.93), ("0.9 ms", 0.78e-6, 0.41), ("5 ms", 65e-9, 0.987), ("5 ms", 0.78e-6, 0.852),
        ("5 ms", 10e-6, 0.129), ("100 ms", 100e-6, 0.36), ("1 s", 1e-3, 0.36), ("1000 s", 10e-3, 0.990),
    ],
)  # fmt: skip
def test_signal_left_at_the_oldest_token(tau: str, period: float, expected: float) -> None:
    device = load_device(NAME, {"retention.tau": tau})
    assert swing_left(device, 1024 * period, 0.0) == pytest.approx(expected, abs=0.006)


def test_swing_of_cells_that_fall_to_ground_is_what_tells_levels_apart() -> None:
    device = load_device("gaincell_28nm_logic")
    high = stored_voltage(0.9, 1e-5, device.retention, temperature=device.operation.temperature)
    assert swing_left(device, 1e-5, 0.0) == pytest.approx(float(high) / 0.9, rel=tolerances.SUM, abs=0.0)


def test_half_an_lsb_at_three_bits() -> None:
    """0.154 time constants at 3 bits, so 66 ms for a window of 10 us a token; 5.6 times that with a spread of 0.4."""
    device = load_device(NAME)
    assert half_lsb_time(device) == pytest.approx(-5e-3 * math.log(1 - 1 / 7), rel=1e-6, abs=0.0)
    found = rows(retention_table(device, 10e-6, 64))["median tau that loses it at the oldest"]
    median, worst = (float(text.removesuffix(" ms")) for text in found)
    assert median == pytest.approx(66, rel=0.01, abs=0.0)
    assert worst / median == pytest.approx(5.6, rel=0.02, abs=0.0)


@pytest.mark.parametrize(("period", "expected_nj"), [(10e-6, 5.1), (100e-6, 51), (1e-3, 511)])
def test_energy_of_refresh_by_the_deadline(period: float, expected_nj: float) -> None:
    shown = rows(retention_table(load_device(NAME), period, 64))["refresh by then"][0]
    assert float(re.search(r"([\d.]+) nJ", shown)[1]) == pytest.approx(
        expected_nj, rel=0.03, abs=0.0
    )  # whole refreshes


def test_energy_of_refresh_is_what_the_emulator_counts() -> None:
    device = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": "0.7 ms"})
    keys = torch.arange(device.window.tokens)
    layout = slot_layout(keys[None], (keys[-1] - keys)[None, None], device)
    with count_events() as counts:
        record_attention(0, layout, 1, 1, 64, 1, device, token_period_s=10e-6)
    energy = counts["attention.refresh_conversion"] * device.cost.refresh_conversion
    shown = rows(retention_table(device, 10e-6, 64))["refresh of the device, every 700 us"]
    assert shown == [f"14 x, {energy * 1e9:.3g} nJ per token"]


def test_head_costs_what_the_paper_prints() -> None:
    energy_j, latency_s = head_cost(load_device(NAME), 64)
    assert energy_j == pytest.approx(6.15e-9, rel=tolerances.SUM, abs=0.0)
    assert latency_s == pytest.approx(65e-9, rel=tolerances.SUM, abs=0.0)


def test_size_of_one_code() -> None:
    table = rows(resolution_table(load_device(NAME)))
    assert table["input pulse"] == ["16", "1 ns", "6.67 %"]
    assert table["storage"] == ["8", "129 mV", "14.3 %"]
    assert table["on 1 fF"] == ["0.129 fC = 802 electrons"]
    assert table["readout"] == ["31", "2.67 uA", "6.67 %"]
    digital = rows(resolution_table(load_device("sram_dcim_28nm")))
    assert digital["score converter"][0] == "65535"
    assert digital["readout"] == ["continuous"]
    pulses = load_device(NAME, {"readout_qk.bits": 4})
    assert rows(resolution_table(pulses))["score converter"] == ["16", "5.33 uA", "6.67 %"]
    gridded = load_device(NAME, {**LINEAR, "readout_qk.pulse_bits": 11})
    assert rows(resolution_table(gridded))["pulse grid"] == ["2048", "7.33 ps", "0.0489 %"]


@pytest.mark.parametrize(
    ("overrides", "row", "expected"),
    [
        ({"retention.tau_sigma_ln": 0.0}, "loses half an LSB in", ["771 us"]),
        ({"storage.levels": None}, "loses half an LSB in", None),
        ({"operation.temperature": "85 degC"}, "tau of the cell at 27 degC", ["5 ms", "886 us"]),
        (
            {"retention.kind": "constant_current", "retention.rate": "90 V/s", "retention.v_inf": "0.45 V"},
            "rate of the cell",
            ["90 V/s", "508 V/s"],
        ),
    ],
)
def test_rows_follow_the_law(overrides: dict[str, object], row: str, expected: list[str] | None) -> None:
    table = rows(retention_table(load_device(NAME, overrides), 10e-6, 64))
    assert table.get(row) == expected


# ---- what is printed


@pytest.mark.parametrize("name", preset_names())
def test_every_device_is_explained_within_100_columns(explain: Explain, name: str) -> None:
    out = explain(name)
    device = load_device(name)
    assert out.splitlines()[0] == device.title
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100
    assert "…" not in out
    assert ("\nRetention" in out) == device.decays
    for heading in ("Resolution", "SNR of a signed dot product of 64 terms", "SNR by age of the token [dB]"):
        assert f"\n{heading}" in out


def test_window_period_and_dimensions_are_those_asked_for(explain: Explain) -> None:
    out = explain(NAME, "--window", 256, "--token-period", "1us", "--head-dim", 32)
    assert "One head of 32 dimensions and 256 tokens" in out
    assert "A token every 1 us: the oldest in the window is 255 us old." in out
    assert "worst of 16384 (3.8 sigma)" in out
    assert "dot product of 32 terms" in out
    assert explain(NAME, "--token-period", "0.01 ms") == explain(NAME)  # the default of a run


def test_effects_name_the_values_that_set_them(explain: Explain) -> None:
    out = explain(NAME)
    found = cells(out)
    assert found["gain mismatch"][1:] == ["die", "variability.gain_sigma 0.05"]
    assert found["storage levels"][1:] == ["storage.levels 8"]
    assert found["write error"][1:] == ["write", "write.error_sigma 5 mV"]
    assert found["retention, median cell"][:2] == ["exact", "exact"]


def test_lost_signals_and_idle_effects_are_told_in_words(explain: Explain) -> None:
    assert cells(explain("gaincell_28nm_4t1c", "--token-period", "1 ms"))["retention with its spread"][1] == "< -20"
    assert "threshold drift does nothing here: drift.stress_time is 0" in explain("gaincell_igzo")
    assert "no effect: the product is exact" in explain("ideal")


def test_a_device_that_refreshes_too_often_gets_everything_else() -> None:
    device = load_device(NAME, {"refresh.kind": "periodic", "refresh.interval": "10 us"})
    console = Console(width=100)
    with console.capture() as printed:
        device_explain.explain(console, device, 10e-6, 8)
    out = printed.get()
    assert "left out: a token is refreshed more than 64 times in the window" in out
    assert "refresh of the device, every 10 us" in out


def test_clips_are_counted_on_request(explain: Explain) -> None:
    assert "converters' ranges" not in explain(NAME)
    out = explain(NAME, "--clips")
    assert "Values outside of the converters' ranges: fllm-tiny-bitnet, 16 made-up notes" in out
    found = cells(out.partition("converters' ranges")[2])
    shares = [float(share.removesuffix(" %")) for layer in "0123" for share in found[layer]]
    assert len(shares) == 24
    assert all(0.0 <= share < 100.0 for share in shares)
    assert explain(NAME, "--model", SHIPPED) == out  # the same model, by its folder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["absent"], "absent: no such device file"),
        ([NAME, "--token-period", "5"], "--token-period: expected a quantity in s"),
        ([NAME, "--token-period", "5 V"], "--token-period: expected a quantity in s"),
        ([NAME, "--token-period", "0 s"], "--token-period: out of range; expected > 0 s; received '0 s'"),
        ([NAME, "--window", "0"], "window.tokens: expected a whole number from 1"),
        ([NAME, "--head-dim", "0"], "--head-dim: out of range; expected 1 to 1024; received 0"),
        ([NAME, "--model", "nowhere"], "nowhere: no such model folder"),
    ],
    ids=lambda value: " ".join(value[1:]) or value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(explain: Explain, arguments: list[str], named: str) -> None:
    message = explain(*arguments, code=2)
    assert message.startswith("error: ")
    assert named in message


# ---- ternary layers


def test_arrays_of_ternary_layers_have_a_table_of_their_own(explain: Explain) -> None:
    shown = explain(NAME, columns=140)
    part = shown[shown.index("SNR of a product of a ternary layer") :]
    assert "8 cycles of 1 bit" in part
    assert float(cells(part)["weight gain mismatch"][0]) == pytest.approx(40.0, abs=0.3)
    assert "linear.gain_sigma 0.01" in cells(part)["weight gain mismatch"]
    assert "no effect: the product is exact" in explain("ideal")[-400:]
