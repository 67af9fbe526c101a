"""``fllm device``: what the commands print, and that they refuse in one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from device_models import load_device, preset_names, references
from device_models.loading import key_units, preset_folder
from device_models.strict_yaml import read_yaml
from fllm import cli
from fllm.device_cli import _parted

Device = Callable[..., str]


@pytest.fixture
def device(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Device:
    """Return a function that runs ``fllm device`` and returns what it prints."""

    def run(*arguments: object, columns: int = 100, code: int = 0) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["fllm", "device", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert stop.value.code == code, err
        assert len(err.splitlines()) == (code != 0)
        return out if code == 0 else err

    return run


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the shipped device file with other texts for some values."""

    def write(**values: object) -> Path:
        tree = read_yaml(preset_folder() / "gaincell_28nm.yaml")
        for key, value in values.items():
            section, _, name = key.partition("__")
            tree[section][name]["value"] = value
        file = tmp_path / "changed.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return file

    return write


def squeezed(text: str) -> str:
    """Text without the table's frame and line breaks."""
    return re.sub(r"[\s\u2500-\u257f]+", " ", text)


def rows(table: str) -> list[list[str]]:
    """Cells of the rows of a table, heading left out."""
    lines = [line for line in table.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


# ---- show


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("columns", [80, 120, 400])
def test_show_tells_every_key_its_value_source_and_note(device: Device, name: str, columns: int) -> None:
    out = squeezed(device("show", name, columns=columns))
    loaded = load_device(name)
    assert loaded.title in out
    position = 0
    for key in key_units():
        position = out.index(f"{key} ", position)  # in the schema's order, each of them
    for key, found in loaded.provenance.items():
        start = out.index(f"{key} ")
        numbers, units = _parted(found.text)
        parts = [key, *numbers.split(), *units.split(), found.kind, found.source]
        parts += [found.note or "", *(found.range or ())]
        following = out[start : start + len(" ".join(parts)) + 200]
        for part in parts:
            assert part in following, (key, part)


def test_show_as_a_table_has_a_column_for_each_thing(device: Device) -> None:
    out = device("show", "gaincell_28nm", columns=400)
    table = {row[0]: row[1:] for row in rows(out)}
    where = "leroux2025, p. 815, exponential fit of Fig. 1f"
    note = load_device("gaincell_28nm").provenance["retention.tau"].note
    assert table["retention.tau"] == ["5", "ms", "simulated", where, "0.2 ms to 5 ms", note]
    assert table["retention.beta"] == ["none", "", "default", "not in the file", "", ""]
    assert table["input.inl"][:4] == ["0.05", "", "assumed", "project"]
    assert all(len(row) == 7 for row in rows(out))


def test_show_puts_each_coefficient_beside_its_unit(device: Device) -> None:
    for columns in (80, 400):
        out = device("show", "gaincell_28nm", columns=columns)
        for number, unit in [("0.521364", "uA"), ("13.612261", "uA/V"), ("-2.620446", "uA/V**2")]:
            assert re.search(rf"{re.escape(number)}[ │]+{re.escape(unit)}[ │\n]", out), number


@pytest.mark.parametrize("columns", [80, 149, 150, 200])
def test_show_fits_the_terminal(device: Device, columns: int) -> None:
    out = device("show", "gaincell_28nm", columns=columns)
    assert "…" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns


def test_show_shows_defaults_in_readable_units(device: Device) -> None:
    out = squeezed(device("show", "ideal", columns=80))
    assert "operation.temperature 300.15 K default" in out
    assert "wire.supply 900 mV default" in out


@pytest.mark.parametrize(
    ("text", "parted"),
    [
        ("5 ms", ("5", "ms")),
        ("256e9 1/s", ("256e9", "1/s")),
        ("-2.6 uA/V**2", ("-2.6", "uA/V**2")),
        ("16", ("16", "")),
        ("none", ("none", "")),
        ("log_self_limited", ("log_self_limited", "")),
        ("True", ("True", "")),
        ("[1 uA, 2 uA/V]", ("1\n2", "uA\nuA/V")),
    ],
)
def test_number_and_unit_are_parted(text: str, parted: tuple[str, str]) -> None:
    assert _parted(text) == parted


# ---- diff


def test_diff_lists_what_differs_and_nothing_else(device: Device, changed: Callable[..., Path]) -> None:
    file = changed(retention__tau="1 ms", readout__bits=6, noise__white=0.0)
    out = device("diff", "gaincell_28nm", file, columns=200)
    assert rows(out) == [
        ["retention.tau", "5 ms", "simulated", "1 ms", "simulated"],
        ["readout.bits", "5", "simulated", "6", "simulated"],
        ["noise.white", "0.004", "derived", "0.0", "derived"],
    ]
    assert str(file) in out and "gaincell_28nm" in out


def test_diff_shows_keys_that_one_file_leaves_at_their_default(device: Device) -> None:
    table = {row[0]: row[1:] for row in rows(device("diff", "ideal", "gaincell_28nm", columns=200))}
    assert table["write.capacitance"] == ["none", "default", "1 fF", "assumed"]
    assert table["retention.tau"] == ["none", "default", "5 ms", "simulated"]
    assert "wire.supply" not in table  # 0.9 V in both, though one file does not say so


def test_same_quantity_in_another_unit_does_not_differ(device: Device, changed: Callable[..., Path]) -> None:
    file = changed(retention__tau="0.005 s", storage__v_max="900 mV", operation__temperature="27 degC")
    assert device("diff", "gaincell_28nm", file, columns=400).startswith("no value differs")


# ---- cite


@pytest.mark.parametrize("name", preset_names())
def test_cite_gives_each_source_in_full_with_its_keys(device: Device, name: str) -> None:
    blocks = {}
    for block in re.split(r"\n(?=\S)", device("cite", name)):
        source, _, rest = block.partition("\n")
        blocks[source.strip()] = squeezed(rest).strip()
    used: dict[str, list[str]] = {}
    for key, found in load_device(name).provenance.items():
        used.setdefault(found.source, []).append(key)
    assert set(used) <= set(blocks) <= set(references())
    for source, block in blocks.items():
        citation, _, listed = block.rpartition(" used by ")
        assert citation == references()[source]
        assert [key for key in listed.split(", ") if not key.endswith("(note)")] == used.get(source, [])


def test_cite_tells_sources_that_only_a_note_names(device: Device) -> None:
    out = squeezed(device("cite", "gaincell_28nm"))
    assert f"{references()['iqbal2012']} used by retention.v_inf (note)" in out
    assert "retention.tau (note)" not in out


# ---- check and bad input


def test_check_counts_values_and_assumptions(device: Device) -> None:
    loaded = load_device("gaincell_28nm")
    assumed = sum(found.kind == "assumed" for found in loaded.provenance.values())
    out = device("check", "gaincell_28nm", "ideal")
    assert out.splitlines()[0] == f"gaincell_28nm: valid; {len(loaded.provenance)} values, {assumed} of them assumed"
    assert out.splitlines()[1].startswith("ideal: valid; ")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["check", "absent"], "no such device file"),
        (["show", "gaincell_28mm"], "did you mean gaincell_28nm"),
        (["show"], "NAME"),
        (["show", "ideal", "ideal"], "unexpected extra argument"),
        (["diff", "ideal"], "OTHER"),
        (["diff", "ideal", "absent"], "absent: no such device file"),
        (["cite", "absent.yaml"], "absent.yaml: no such device file"),
        (["shew", "ideal"], "shew"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(device: Device, arguments: list[str], named: str) -> None:
    message = device(*arguments, code=2)
    assert message.startswith("error: ")
    assert named in message


def test_contradiction_in_a_file_is_one_line(device: Device, changed: Callable[..., Path]) -> None:
    file = changed(retention__kind="none")
    assert f"{file}: retention: tau would do nothing" in device("show", file, code=2)
