"""Each way in which a device file can be wrong, met once; and overrides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_models import InputError, load_device

Write = Callable[[object], Path]
Change = Callable[[dict[str, Any]], object]


def leaf(value: object, **more: object) -> dict[str, object]:
    return {"value": value, "source": "leroux2025", "where": "p. 1", "kind": "simulated", **more}


def put(path: str, value: object) -> Change:
    section, key = path.split(".")
    return lambda tree: tree.setdefault(section, {}).__setitem__(key, value)


def set_value(path: str, value: object) -> Change:
    section, key = path.split(".")
    return lambda tree: tree[section][key].__setitem__("value", value)


def set_in_leaf(path: str, field: str, value: object) -> Change:
    section, key = path.split(".")
    return lambda tree: tree[section][key].__setitem__(field, value)


def drop(path: str, field: str | None = None) -> Change:
    section, key = path.split(".")
    return lambda tree: tree[section].pop(key) if field is None else tree[section][key].pop(field)


def several(*changes: Change) -> Change:
    return lambda tree: [change(tree) for change in changes]


WRONG: list[tuple[str, Change, list[str]]] = [
    ("no-version", lambda t: t.pop("schema_version"), ["schema_version: 1"]),
    ("other-version", lambda t: t.update(schema_version=2), ["schema_version: 1", "received 2"]),
    ("unknown-section", lambda t: t.update(retenton=t.pop("retention")), ["retenton", "did you mean retention"]),
    ("section-of-number", lambda t: t.update(input=16), [": input", "not a section"]),
    ("absent-section", lambda t: t.pop("readout"), [": readout", "missing"]),
    ("absent-key", drop("cost.qk_mac"), ["cost.qk_mac", "missing"]),
    ("unknown-key", put("retention.tao", leaf("1 ms")), ["retention.tao", "did you mean tau"]),
    ("bare-value", put("retention.tau", "5 ms"), ["retention.tau", "without its source", "'5 ms'"]),
    ("no-value", drop("retention.tau", "value"), ["retention.tau", "without its source"]),
    ("no-source", drop("retention.tau", "source"), ["retention.tau", "source is missing"]),
    ("no-where", drop("retention.tau", "where"), ["retention.tau", "where is missing"]),
    ("where-number", set_in_leaf("retention.tau", "where", 821), ["retention.tau", "where is missing"]),
    ("no-kind", drop("retention.tau", "kind"), ["retention.tau", "kind is missing"]),
    ("unknown-kind", set_in_leaf("retention.tau", "kind", "guess"), ["retention.tau.kind", "measured", "'guess'"]),
    (
        "unknown-source",
        set_in_leaf("retention.tau", "source", "leroux2026"),
        ["retention.tau.source", "'leroux2026'", "did you mean leroux2025"],
    ),
    ("leaf-key", set_in_leaf("retention.tau", "sources", "x"), ["retention.tau.sources", "did you mean source"]),
    ("assumed-no-note", put("retention.tau", leaf("5 ms", kind="assumed")), ["retention.tau", "no note"]),
    ("range-of-one", set_in_leaf("retention.tau", "range", ["1 ms"]), ["retention.tau.range", "lowest, highest"]),
    ("range-word", set_in_leaf("retention.tau", "range", "1-5 ms"), ["retention.tau.range", "'1-5 ms'"]),
    ("wrong-unit", set_value("retention.tau", "5 mV"), ["retention.tau", "in s", "'5 mV'"]),
    ("bare-number", set_value("retention.tau", 5), ["retention.tau", "in s", "bare"]),
    ("no-unit", set_value("retention.tau", "5"), ["retention.tau", "unit is missing"]),
    ("infinite", set_value("retention.tau", "1e999 s"), ["retention.tau", "finite"]),
    ("huge-exponent", set_value("retention.tau", "1e9999999 s"), ["retention.tau", "finite"]),
    ("mistyped-unit", set_value("retention.tau", "5 ms("), ["retention.tau", "in s", "'5 ms('"]),
    ("not-positive", set_value("retention.tau", "0 s"), ["retention.tau", "> 0", "'0 s'"]),
    ("too-large", set_value("cost.qk_mac", "1 J"), ["cost.qk_mac", "<= 0.001 J", "'1 J'"]),
    ("negative-price", set_value("cost.qk_mac", "-1 fJ"), ["cost.qk_mac", ">= 0"]),
    ("one-level", set_value("input.levels", 1), ["input.levels", "from 2 to 65536", "received 1"]),
    ("float-level", set_value("input.levels", 16.0), ["input.levels", "whole number"]),
    ("true-level", set_value("input.levels", True), ["input.levels", "whole number", "True"]),
    ("factor-with-unit", set_value("linear.system_multiplier", "2 V"), ["linear.system_multiplier", "without unit"]),
    ("factor-below", set_value("linear.system_multiplier", 0.5), ["linear.system_multiplier", "1 to 100"]),
    ("factor-nan", set_value("linear.system_multiplier", float("nan")), ["linear.system_multiplier", "1 to 100"]),
    ("word", set_value("readout.codes", "counterr"), ["readout.codes", "'counter'", "'counterr'"]),
    ("two-coefficients", set_value("cell.coefficients", ["1 uA", "1 uA/V"]), ["cell.coefficients", "four (cubic)"]),
    ("coefficient-number", set_value("cell.coefficients", 3), ["cell.coefficients", "one (linear)"]),
    ("coefficient-unit", set_value("cell.coefficients", ["1 uA"]), ["cell.coefficients", "A/V"]),
    ("law-and-count", set_value("cell.coefficients", ["1 uA/V"]), [": cell", "cubic with 1"]),
    ("voltages", set_value("storage.v_zero", "1 V"), [": storage", "v_min <= v_zero <= v_max"]),
    ("no-swing", several(set_value("storage.v_min", "0.45 V"), set_value("storage.v_max", "0.45 V")), [": storage"]),
    ("decay-no-tau", drop("retention.tau"), [": retention", "tau is missing", "exponential"]),
    ("no-decay-tau", set_value("retention.kind", "none"), [": retention", "tau would do nothing", "drop it"]),
    ("slope-alone", put("cell.surrogate_slope", leaf("19.3 uA/V")), [": cell", "both or neither"]),
    ("surrogate-no-slope", put("cell.backward", leaf("linear")), [": cell", "both or neither"]),
    ("bits-and-ideal", set_value("readout.codes", "ideal"), [": readout", "bits 5, codes ideal"]),
    ("no-bits-counter", set_value("readout.bits", None), [": readout", "bits None, codes counter"]),
    ("one-bit-counter", set_value("readout.bits", 1), ["readout.bits", "2 to 12"]),
    (
        "bfloat-elsewhere",
        several(put("parity.bfloat16_decay", leaf(True)), set_value("retention.v_inf", "0.3 V")),
        [": parity", "towards v_zero"],
    ),
]


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_file_is_one_line_that_names_the_place(
    change: Change, said: list[str], tree: dict[str, Any], write: Write
) -> None:
    change(tree)
    path = write(tree)
    with pytest.raises(InputError) as caught:
        load_device(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert message.startswith(str(path))
    for words in said:
        assert words in message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just words", "5"])
def test_file_that_is_no_device(text: str, write: Write) -> None:
    with pytest.raises(InputError, match="schema_version: 1"):
        load_device(write(text))


def test_file_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "device.yaml"
    path.write_bytes(b"title: \xff\xfe")
    with pytest.raises(InputError, match=r"cannot be read \(UnicodeDecodeError\)"):
        load_device(path)


@pytest.mark.parametrize("name", ["gaincell_28", "../configs/gaincell_28nm", "", "gaincell_28nm.yml", "configs"])
def test_unknown_name_lists_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match="gaincell_28nm") as caught:
        load_device(name)
    assert "\n" not in str(caught.value)


def test_unchanged_copy_is_the_shipped_device(tree: dict[str, Any], write: Write) -> None:
    ours, theirs = load_device(write(tree)), load_device("gaincell_28nm")
    for section in ("input", "storage", "retention", "cell", "saturation", "readout", "tile", "window", "cost"):
        assert getattr(ours, section) == getattr(theirs, section)


# ---- overrides


def test_override_changes_value_and_provenance_only_there() -> None:
    device, plain = load_device("gaincell_28nm", {"retention.tau": "0.9 ms"}), load_device("gaincell_28nm")
    assert device.retention.tau == 9e-4
    changed = device.provenance["retention.tau"]
    assert (changed.kind, changed.source, changed.text) == ("assumed", "user", "0.9 ms")
    assert "5 ms" in (changed.note or "")
    others = set(plain.provenance) - {"retention.tau"}
    assert all(device.provenance[key] == plain.provenance[key] for key in others)
    assert device.cost == plain.cost
    assert device.file_sha256 == plain.file_sha256


def test_no_decay_drops_the_constants_of_decay() -> None:
    device = load_device("gaincell_28nm", {"retention.kind": "none"})
    assert (device.decays, device.retention.tau, device.retention.v_inf) == (False, None, None)
    assert {key for key in device.provenance if key.startswith("retention.")} == {"retention.kind"}


def test_override_may_add_an_optional_key() -> None:
    device = load_device("gaincell_28nm", {"cell.backward": "linear", "cell.surrogate_slope": "19.3 uA/V"})
    assert device.cell.surrogate_slope == 19.3e-6
    assert "the file says none" in (device.provenance["cell.surrogate_slope"].note or "")


def test_ideal_can_be_made_to_decay() -> None:
    wanted = {"retention.kind": "exponential", "retention.tau": "1 ms", "retention.v_inf": "0.45 V"}
    assert load_device("ideal", wanted).retention.tau == 1e-3


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"retention.tua": "1 ms"}, ["retention.tua", "did you mean retention.tau"]),
        ({"tau": "1 ms"}, ["tau", "did you mean drift.tau or retention.tau?"]),
        ({"retention": "none"}, ["retention", "did you mean"]),
        ({"retention.tau": 5}, ["retention.tau", "in s"]),
        ({"readout.bits": 40}, ["readout.bits", "from 1 to 12"]),
        ({"retention.kind": "none", "retention.tau": "1 ms"}, ["retention", "would do nothing"]),
        ({"title": "x"}, ["title", "unknown device key"]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_wrong_override_is_an_input_error(overrides: dict[str, object], said: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_device("gaincell_28nm", overrides)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [lambda t: t.update(input=5), put("input.levels", 3), lambda t: t.pop("input")],
    ids=["number", "bare-leaf", "absent"],
)
def test_override_of_a_broken_section_is_no_traceback(change: Change, tree: dict[str, Any], write: Write) -> None:
    change(tree)
    path = write(tree)
    try:
        device = load_device(path, {"input.levels": 4})
    except InputError as error:
        assert ": input" in str(error)
    else:
        assert device.input.levels == 4


def test_override_no_decay_on_a_file_without_retention(tree: dict[str, Any], write: Write) -> None:
    del tree["retention"]
    assert not load_device(write(tree), {"retention.kind": "none"}).decays


# ---- imports


def test_import_stays_light() -> None:
    code = (
        "import sys, device_models; print(*{'torch', 'pydantic', 'pint', 'transformers', 'hwsim'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("ends", [["1 V", "9 V"], ["9 ms", "1 ms"], ["1 ms", "1 ms"]], ids=str)
def test_wrong_range_of_a_number(ends: list[str], tree: dict[str, Any], write: Callable[..., Path]) -> None:
    tree["retention"]["tau"]["range"] = ends
    with pytest.raises(InputError, match=r"retention\.tau\.range: wrong range; expected \[lowest, highest\] in s"):
        load_device(write(tree))
