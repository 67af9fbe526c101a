"""``fllm device fit``: prints the fit, writes the device, refuses in one line and writes nothing then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_models import load_device
from tests.fllm.conftest import Terminal

Fit = Callable[..., str]


@pytest.fixture
def device_fit(terminal: Terminal) -> Fit:
    """Return a function that runs ``fllm device fit`` and returns what it prints."""

    def run(*arguments: object, code: int = 0) -> str:
        out, err = terminal("device", "fit", *arguments, code=code, columns=200)
        return err if code else out

    return run


def table(path: Path, header: str, *columns: np.ndarray) -> Path:
    lines = [",".join(f"{value:.9g}" for value in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture
def droop(tmp_path: Path) -> Path:
    time = np.geomspace(1e-5, 2e-2, 40)
    voltage = 0.45 + 0.45 * np.exp(-time / 3e-3) + 1e-3 * np.random.default_rng(0).standard_normal(40)
    return table(tmp_path / "droop.csv", "time_ms,voltage_mV,written_V", time * 1e3, voltage * 1e3, np.full(40, 0.9))


def test_retention_is_shown_and_written(device_fit: Fit, droop: Path, tmp_path: Path) -> None:
    out = device_fit(droop, "--base", "gaincell_28nm", "--out", tmp_path / "mine.yaml")
    for words in (
        "droop.csv: retention, 40 points, residual", "exponential: the simplest law within 2 units", "95 % interval",
        "retention.tau", "retention.v_inf", "stretched", "log_self_limited", "constant_current", "AICc", "taken",
        "note: measured up to 20 ms", "mine.yaml: gaincell_28nm with retention.kind",
    ):  # fmt: skip
        assert words in out, words
    mine = load_device(tmp_path / "mine.yaml")
    assert mine.retention.tau == pytest.approx(3e-3, rel=0.03)
    assert mine.provenance["retention.tau"].where == "droop.csv"


def test_without_out_nothing_is_written(device_fit: Fit, droop: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    out = device_fit(droop, "--base", "gaincell_28nm", "--law", "exponential", "--v_inf", "450 mV")
    assert "the exponential law was asked for" in out
    assert "log_self_limited" not in out
    assert sorted(tmp_path.iterdir()) == before


def test_cell_and_converter(device_fit: Fit, tmp_path: Path) -> None:
    voltage = np.linspace(0.0, 0.9, 20)
    cell = table(tmp_path / "cell.csv", "voltage_V,current_uA", voltage, 19.3 * (voltage - 0.45))
    assert "19.3 uA/V" in device_fit(cell, "--base", "gaincell_28nm")
    x = np.linspace(0.0, 0.9, 1001)
    ramp = table(tmp_path / "ramp.csv", "input_V,code", x, np.round(15 * (x / 0.45 - 1)))
    out = device_fit(ramp, "--base", "gaincell_28nm", "--input-range", "0 V", "0.9 V", "--out", tmp_path / "adc.yaml")
    assert "5 bits" in out and "INL rms [LSB]" in out
    assert load_device(tmp_path / "adc.yaml").readout.bits == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "gaincell_27nm"], ["no such device file", "gaincell_28nm"]),
        (["--base", "gaincell_28nm", "--v-inf", "0.45"], ["--v-inf", "unit is missing", "'0.45'"]),
        (["--base", "gaincell_28nm", "--temperature", "85 V"], ["--temperature", "in K"]),
        (["--base", "gaincell_28nm", "--law", "expnential"], ["unknown law", "exponential"]),
        (["--base", "gaincell_28nm", "--input-range", "a", "1"], ["--input-range", "number without unit"]),
        (["--base", "gaincell_28nm", "--input-range", "0", "1"], ["input_range means nothing"]),
        ([], ["--base"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--base") else "",
)
def test_bad_input_is_one_line(
    device_fit: Fit, droop: Path, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    error = device_fit(droop, "--out", tmp_path / "mine.yaml", *arguments, code=2)
    assert error.startswith("error: ")
    for words in said:
        assert words in error, error
    assert not (tmp_path / "mine.yaml").exists()


def test_an_existing_file_stays(device_fit: Fit, droop: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    error = device_fit(droop, "--base", "gaincell_28nm", "--out", tmp_path / "mine.yaml", code=2)
    assert "the file exists" in error
    assert (tmp_path / "mine.yaml").read_text() == "precious"
