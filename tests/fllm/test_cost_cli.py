"""``fllm cost``: what it prints and writes is what was priced, and bad input is one line and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_models.quantities import format_quantity
from fllm import cli

MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
FIGURES = ("energy_parts", "baselines", "tornado", "timeline")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    return folder


@pytest.fixture
def cost(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that calls ``fllm cost`` on the small model: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "250")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        chosen = [] if "--model" in arguments else ["--model", str(model)]
        monkeypatch.setattr(sys, "argv", ["fllm", "cost", *chosen, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def priced(cost: Callable, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that gives what ``--json FILE`` wrote."""

    def call(*arguments: str | Path) -> Any:
        file = tmp_path / "cost.json"
        assert cost(*arguments, "--json", file)[0] == 0
        return json.loads(file.read_text(encoding="utf-8"))

    return call


def row_of(text: str, name: str) -> str:
    rows = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    assert len(rows) == 1, (name, text)
    return rows[0]


def test_table_shows_the_numbers_of_the_json(cost: Callable, priced: Callable) -> None:
    facts = priced("--tokens", "300")
    code, text, errors = cost("--tokens", "300")
    assert (code, errors) == (0, "")
    for mode in ("decode", "prefill"):
        for part, found in facts[mode]["parts_j"].items():
            assert format_quantity(found["nominal"], "J") in row_of(text, part)
        for line, found in facts[mode]["lines_j"].items():
            assert format_quantity(found["nominal"], "J") in row_of(text, f"all {line}")
        assert format_quantity(facts[mode]["energy_per_token_j"]["nominal"], "J") in row_of(text, "both together")
    latency = facts["decode"]["latency_per_token_s"]
    assert format_quantity(latency["nominal"], "s") in row_of(text, "latency of a token (decode)")
    for found in facts["decode"]["baselines"]:
        rows = [line for line in text.splitlines() if line.strip().startswith(f"{found['name']}  ")]
        assert any(format_quantity(found["energy_per_token_j"], "J") in row for row in rows), found["name"]
    assert "small on gaincell_28nm" in text
    assert all(sentence in text for sentence in facts["decode"]["dominates"])


def test_parts_add_up_to_lines_and_lines_to_the_total(priced: Callable) -> None:
    for mode in ("decode", "prefill"):
        found = priced("--tokens", "300", "--adapter-rank", "8")[mode]
        total = found["energy_per_token_j"]["nominal"]
        assert sum(part["nominal"] for part in found["parts_j"].values()) == pytest.approx(total, rel=1e-12)
        assert sum(line["nominal"] for line in found["lines_j"].values()) == pytest.approx(total, rel=1e-12)
        for interval in (found["energy_per_token_j"], *found["parts_j"].values(), *found["lines_j"].values()):
            assert interval["lower_95"] <= interval["nominal"] <= interval["upper_95"]
            assert interval["low"] <= interval["nominal"] <= interval["high"]


def test_json_to_a_dash_is_the_json_and_nothing_else(cost: Callable, tmp_path: Path) -> None:
    code, text, errors = cost("--json", "-")
    assert (code, errors) == (0, "")
    assert cost("--json", tmp_path / "file.json")[0] == 0
    assert text == (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text)["schema_version"] == 1


@pytest.mark.usefixtures("_sketched")
def test_equal_questions_give_equal_bytes(cost: Callable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert cost("--json", tmp_path / f"{name}.json", "--figures", tmp_path / name)[0] == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}


@pytest.mark.usefixtures("_sketched")
def test_two_devices_stand_beside_each_other(cost: Callable, priced: Callable, tmp_path: Path) -> None:
    devices = ("gaincell_28nm", "gaincell_igzo")
    facts = priced("--compare", *devices)
    assert [found["device"]["name"] for found in facts] == list(devices)
    code, text, _ = cost("--compare", *devices, "--figures", tmp_path / "figures")
    assert code == 0
    row = row_of(text, "both together")
    for found in facts:
        assert format_quantity(found["decode"]["energy_per_token_j"]["nominal"], "J") in row
    expected = {f"{number}_{name}_{figure}" for number, name in enumerate(devices, 1) for figure in FIGURES}
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == expected | {"comparison"}


@pytest.mark.usefixtures("_sketched")
def test_one_device_beside_itself_has_figures_of_both(cost: Callable, tmp_path: Path) -> None:
    assert cost("--compare", "ideal", "ideal", "--figures", tmp_path / "figures")[0] == 0
    assert len(list((tmp_path / "figures").iterdir())) == 2 * (2 * len(FIGURES) + 1)


def test_set_window_period_and_activity_reach_the_price(priced: Callable) -> None:
    def spent(*arguments: str) -> dict[str, float]:
        return {part: found["nominal"] for part, found in priced(*arguments)["decode"]["parts_j"].items()}

    before = spent()
    double = spent("--set", "cost.write_conversion='5.16 pJ'")
    assert double["writes"] == pytest.approx(2 * before["writes"], rel=1e-9)
    assert spent("--window", "64")["attention arrays"] < before["attention arrays"]
    assert spent("--token-period", "1 s")["leakage of attention arrays"] > 100 * before["leakage of attention arrays"]
    assert spent("--activity", "0.5", "0.5")["attention arrays"] < before["attention arrays"]
    assert "adapter" not in before
    assert spent("--adapter-rank", "4")["adapter"] > 0


def test_a_device_that_cannot_keep_up_is_named_and_takes_its_own_time(cost: Callable, priced: Callable) -> None:
    code, text, _ = cost("--token-period", "1 ns")
    assert code == 0
    assert "gaincell_28nm cannot keep up" in text
    slow, own = priced("--token-period", "1 ns"), priced()
    assert slow["too_slow"] and not own["too_slow"]
    assert slow["decode"] == own["decode"]


def test_json_holds_prices_numbers_and_sources(priced: Callable) -> None:
    found = priced()
    spent = sum(row["energy_per_token_j"] for row in found["decode"]["prices"])
    assert spent == pytest.approx(found["decode"]["energy_per_token_j"]["nominal"], rel=1e-9, abs=0.0)
    used = {source for row in found["decode"]["prices"] for source in row["source"].split(", ")}
    used |= {row["source"] for row in found["device_values"]}
    used |= {key for row in found["decode"]["baselines"] for key in row["citations"] if "kT" not in key}
    assert used <= set(found["sources"])


def test_leakage_stands_beside_each_scope(priced: Callable) -> None:
    found = priced()["decode"]
    rows = {row["scope"]: row["device_leakage_per_token_j"] for row in found["baselines"]}
    for scope, part in (("attention", "leakage of attention arrays"), ("linear layers", "leakage of linear arrays")):
        assert rows[scope] == pytest.approx(found["parts_j"][part]["nominal"], rel=1e-9, abs=0.0)
    assert rows["whole forward pass"] == 0.0


def test_resolution_that_prices_do_not_follow_is_said(cost: Callable) -> None:
    assert "prices belong to input.levels 16" in cost("--set", "input.levels=64")[1]


def test_refresh_that_dominates_is_said(cost: Callable) -> None:
    refresh = ("refresh.kind=periodic", "refresh.interval='30 us'", "retention.tau='1 ms'")
    _, text, _ = cost(*(word for setting in refresh for word in ("--set", setting)), "--token-period", "1 ms")
    assert "Refresh dominates the arrays" in text


def broken(content: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "model.json").write_text(content, encoding="utf-8")
        return ["--model", str(folder / "model.json")]

    return write


def edited(**changes: object) -> Callable[[Path], list[str]]:
    return broken(json.dumps(MODEL | changes))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "absent"], "absent: no such model"),
        (["--model", "bitnet-2b4"], "did you mean bitnet-2b4t?"),
        (["--model", "."], "no config.json in the folder"),
        (broken("["), "model.json: cannot be read"),
        (broken("[]"), "model.json: no configuration"),
        (broken("{}"), "unknown model_type"),
        (edited(model_type="t5"), "unknown model_type"),
        (edited(num_hidden_layers=0), "num_hidden_layers"),
        (edited(hidden_size=-64), "hidden_size"),
        (edited(vocab_size="512"), "vocab_size"),
        (edited(num_attention_heads=None), "num_attention_heads"),
        (["--tokens", "0"], "--tokens: out of range"),
        (["--tokens", "10000001"], "--tokens: out of range"),
        (["--tokens", "many"], "--tokens"),
        (["--adapter-rank", "0"], "--adapter-rank: out of range"),
        (["--activity", "-1", "1"], "--activity: out of range"),
        (["--activity", "1", "nan"], "--activity: out of range"),
        (["--activity", "1"], "--activity"),
        (["--token-period", "5"], "the unit is missing"),
        (["--token-period", "5 V"], "does not convert"),
        (["--token-period", "0 s"], "--token-period: out of range"),
        (["--window", "0"], "window.tokens"),
        (["--device-model", "gaincell_28mm"], "did you mean gaincell_28nm"),
        (["--compare", "gaincell_28nm", "absent"], "absent: no such device file"),
        (["--set", "readout.bits"], "key=value"),
        (["--set", "readout.bitz=3"], "did you mean readout.bits"),
        (["--set", "readout.bits=99"], "readout.bits"),
        (["--set", "readout.bits=["], "not valid YAML"),
        (["--set", "cost.av_adc=magic"], "cost.av_adc"),
        (["--bogus"], "--bogus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_writes_nothing(
    cost: Callable, tmp_path: Path, arguments: list[str] | Callable[[Path], list[str]], named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    given = arguments if isinstance(arguments, list) else arguments(tmp_path)
    code, text, errors = cost(*given, "--json", "cost.json", "--figures", "figures")
    assert (code, text) == (2, "")
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert named in errors
    assert list(place.iterdir()) == []


def test_refresh_that_leaves_no_time_is_one_line(cost: Callable) -> None:
    refresh = ("refresh.kind=periodic", "refresh.interval='100 ns'")
    code, text, errors = cost(*(word for setting in refresh for word in ("--set", setting)))
    assert (code, text) == (2, "")
    assert len(errors.splitlines()) == 1
    assert "refresh" in errors


def test_existing_folder_of_figures_is_left_alone(cost: Callable, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    code, text, errors = cost("--figures", tmp_path / "figures", "--json", tmp_path / "cost.json")
    assert (code, text) == (2, "")
    assert "is there already" in errors
    assert len(errors.splitlines()) == 1
    assert list((tmp_path / "figures").iterdir()) == []
    assert not (tmp_path / "cost.json").exists()


@pytest.mark.usefixtures("_sketched")
@pytest.mark.parametrize("option", ["--json", "--figures"])
def test_place_that_cannot_be_written_is_one_line(cost: Callable, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, text, errors = cost(option, tmp_path / "file" / "inside")
    assert (code, text) == (2, "")
    assert len(errors.splitlines()) == 1
    assert "inside" in errors


WHAT_IT_IMPORTS = """
import sys
from fllm.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "matplotlib", "jinja2", "flwr", "ray"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""


def test_table_needs_neither_torch_nor_matplotlib() -> None:
    """Seconds of imports for a table that takes a tenth of one would be noticed."""
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IT_IMPORTS, "cost", "--model", "bitnet-2b4t"],
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "heavy: []\n"
    assert "both together" in done.stdout
