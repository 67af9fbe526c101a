"""Parts that a device file includes: which leaf wins, where parts are found, what is refused."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from device_models import InputError, load_device
from device_models.loading import preset_folder, read_device_file
from device_models.strict_yaml import read_yaml

Tree = dict[str, Any]
Write = Callable[[object], Path]
PARTS = ["attention_leroux2025", "linear_imc_28nm", "digital_28nm"]


def leaf(value: object) -> Tree:
    return {"value": value, "source": "leroux2025", "where": "p. 1", "kind": "simulated"}


@pytest.fixture
def own() -> Tree:
    """The shipped file alone, without what it includes."""
    return copy.deepcopy(read_yaml(preset_folder() / "gaincell_28nm.yaml"))


def part(folder: Path, name: str, **sections: object) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"schema_version": 1, "title": name, **sections}))
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_device(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shipped_file_includes_the_parts(own: Tree) -> None:
    assert own["include"] == PARTS and "cost" not in own and "digital" not in own
    merged, _ = read_device_file(preset_folder() / "gaincell_28nm.yaml")
    assert "include" not in merged
    for name in PARTS:
        for section, keys in read_yaml(preset_folder() / "parts" / f"{name}.yaml").items():
            if isinstance(keys, dict):
                assert merged[section] == keys, section


def test_leaf_of_the_file_itself_wins(own: Tree, write: Write) -> None:
    own["cost"] = {"qk_mac": leaf("1 fJ")}
    device, shipped = load_device(write(own)), load_device("gaincell_28nm")
    assert device.cost.qk_mac == 1e-15
    assert device.provenance["cost.qk_mac"].where == "p. 1"
    assert device.cost.av_mac == shipped.cost.av_mac
    assert device.provenance["cost.av_mac"] == shipped.provenance["cost.av_mac"]


def test_later_part_gives_what_earlier_ones_leave_out(own: Tree, write: Write) -> None:
    path = write({**own, "include": ["cheap", *PARTS]})
    part(path.parent, "cheap", cost={"qk_mac": leaf("2 fJ")})
    assert load_device(path).cost.qk_mac == 2e-15


def test_part_beside_the_file_comes_before_the_shipped_one(own: Tree, write: Write) -> None:
    path, shipped = write(own), read_yaml(preset_folder() / "parts" / "digital_28nm.yaml")
    shipped["digital"]["mac"] = leaf("3 pJ")
    part(path.parent, "digital_28nm", digital=shipped["digital"], adc=shipped["adc"])
    assert load_device(path).digital.mac == 3e-12


def test_one_name_needs_no_list(own: Tree, write: Write) -> None:
    path = write({**own, "include": "all"})
    sections: Tree = {}
    for name in PARTS:
        sections |= read_yaml(preset_folder() / "parts" / f"{name}.yaml")
    part(path.parent, "all", **{name: keys for name, keys in sections.items() if isinstance(keys, dict)})
    assert load_device(path).cost == load_device("gaincell_28nm").cost


def test_overrides_reach_into_parts(own: Tree, write: Write) -> None:
    device = load_device(write(own), {"digital.mac": "5 pJ"})
    assert device.digital.mac == 5e-12
    assert "the file says 0.76 pJ" in (device.provenance["digital.mac"].note or "")


def test_digest_is_that_of_all_bytes_read(own: Tree, write: Write) -> None:
    path = write({**own, "include": ["beside", *PARTS]})
    beside = part(path.parent, "beside", cost={"qk_mac": leaf("2 fJ")})
    before = load_device(path)
    content = [path.read_bytes(), beside.read_bytes()]
    content += [(preset_folder() / "parts" / f"{name}.yaml").read_bytes() for name in PARTS]
    assert before.file_sha256 == hashlib.sha256(b"".join(content)).hexdigest()
    beside.write_bytes(beside.read_bytes() + b"# a comment\n")
    assert load_device(path).file_sha256 != before.file_sha256
    assert load_device(path).cost == before.cost


# ---- what is refused


@pytest.mark.parametrize(
    ("include", "said"),
    [
        (["digital_28"], ["include: no such part", "'digital_28'", "did you mean digital_28nm"]),
        (5, ["wrong include", "received 5"]),
        ([5], ["wrong include", "the name of a part, or a list"]),
        ({"part": "digital_28nm"}, ["wrong include"]),
        (None, ["wrong include", "received None"]),
        (["../gaincell_28nm_logic"], ["wrong include"]),
        (["attention_leroux2025", "linear_imc_28nm"], [": digital", "missing"]),
    ],
    ids=str,
)
def test_wrong_include_is_one_line(include: object, said: list[str], own: Tree, write: Write) -> None:
    message = refused(write({**own, "include": include}))
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema_version: 1\ninclude: [digital_28nm]\n", "a part includes another; expected no include in a part"),
        ("schema_version: 2\n", "not a device file of this version"),
        ("- a\n", "not a device file of this version"),
        ("schema_version: 1\ncots: {}\n", "cots: unknown key; did you mean cost?"),
        ("schema_version: 1\ncost: {qk_mc: {value: 1 J, source: leroux2025, where: p. 1, kind: derived}}\n", "qk_mc"),
        ("schema_version: 1\ncost: {qk_mac: 1 fJ}\n", "cost.qk_mac: a value without its source"),
        ("schema_version: 1\ncost: 5\n", "not a section"),
    ],
)
def test_wrong_part_is_one_line(text: str, said: str, own: Tree, write: Write) -> None:
    path = write({**own, "include": ["mine", *PARTS]})
    (path.parent / "mine.yaml").write_text(text)
    assert said in refused(path)


def test_section_of_the_file_that_is_no_section(own: Tree, write: Write) -> None:
    assert "cost: not a section" in refused(write({**own, "cost": 5}))
