"""Networks and baselines: every shipped number with its source, and files that are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import device_models
from device_models import InputError, references
from device_models.loading import preset_folder
from device_models.machines import load_baselines, load_network, network_names
from device_models.provenance import Kind
from device_models.quantities import parse_quantity
from device_models.strict_yaml import read_yaml

BASELINES = Path(device_models.__file__).parent / "baselines.yaml"
FILES = [*sorted((preset_folder() / "networks").glob("*.yaml")), BASELINES]


def leaves(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for section, keys in read_yaml(path).items():
        if isinstance(keys, dict):
            yield from ((f"{section}.{key}", leaf) for key, leaf in keys.items())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_has_its_source(path: Path) -> None:
    found = dict(leaves(path))
    assert len(found) >= 4
    for key, leaf in found.items():
        assert leaf["source"] in references(), key
        assert leaf["kind"] in get_args(Kind), key
        assert leaf["where"].strip(), key
        if leaf["kind"] == "assumed" or leaf["source"] == "project":
            assert leaf.get("note", "").strip(), key
        for end in leaf.get("range", ()):
            assert end.split()[1:] == leaf["value"].split()[1:], key
        if "range" in leaf:
            low, value, high = (float(text.split()[0]) for text in (leaf["range"][0], leaf["value"], leaf["range"][1]))
            assert low <= value <= high and low < high, key


@pytest.mark.parametrize("name", ["lan", "wifi", "5g"])
def test_shipped_network(name: str) -> None:
    network = load_network(name)
    assert network.name == name and network.title != name
    found = dict(leaves(preset_folder() / "networks" / f"{name}.yaml"))
    assert set(network.provenance or ()) == set(found)
    for key, leaf in found.items():
        number = getattr(network, key.partition(".")[2])
        assert number == parse_quantity(leaf["value"], "J" if key.endswith("_bit") else "1/s")
    assert 1e-10 < network.downlink_bit <= network.uplink_bit < 1e-6


def test_networks_are_those_three() -> None:
    assert set(network_names()) == {"lan", "wifi", "5g"}


def test_mobile_costs_more_than_cable() -> None:
    lan, mobile = load_network("lan"), load_network("5g")
    assert mobile.uplink_bit > 10 * lan.uplink_bit
    assert (mobile.uplink_bit, mobile.downlink_bit) == (29.15e-9, 13.52e-9)


def test_baselines_hold_every_number_of_their_file() -> None:
    made = load_baselines()
    found = dict(leaves(BASELINES))
    assert set(made.provenance or ()) == set(found)
    for key, leaf in found.items():
        section, _, name = key.partition(".")
        magnitude = float(leaf["value"].split()[0])
        assert getattr(getattr(made, section), name) > 0 and magnitude > 0, key
    assert made.h100.power / made.h100.bandwidth == pytest.approx(26.1e-12, rel=1e-3, abs=0.0)
    assert made.jetson_orin.power / made.jetson_orin.bandwidth == pytest.approx(36.6e-12, rel=1e-3, abs=0.0)


# ---- files that are wrong

Change = Callable[[dict[str, Any]], object]
WRONG: list[tuple[str, Change, str]] = [
    ("section", lambda t: t.update(networks=t.pop("network")), "not a network file"),
    ("two-sections", lambda t: t.update(cost={}), "one section `network` with its numbers"),
    ("no-section", lambda t: t.update(network=5), "not a network file"),
    ("unknown", lambda t: t["network"].update(uplnk_bit=t["network"]["uplink_bit"]), "did you mean uplink_bit"),
    ("absent", lambda t: t["network"].pop("uplink_bit"), "network.uplink_bit: missing"),
    ("bare", lambda t: t["network"].update(uplink_bit="2 nJ"), "network.uplink_bit: a value without its source"),
    ("unit", lambda t: t["network"]["uplink_bit"].update(value="2 nW"), "network.uplink_bit: .*in J"),
    ("negative", lambda t: t["network"]["uplink_bit"].update(value="-2 nJ"), "network.uplink_bit: .*>= 0"),
    ("no-rate", lambda t: t["network"]["uplink_rate"].update(value="0 1/s"), "network.uplink_rate: .*> 0"),
    ("source", lambda t: t["network"]["uplink_bit"].update(source="nobody2020"), "uplink_bit.source: .*nobody2020"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_network_is_one_line(change: Change, said: str, tmp_path: Path) -> None:
    tree = copy.deepcopy(read_yaml(preset_folder() / "networks" / "lan.yaml"))
    change(tree)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=said) as caught:
        load_network(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_own_network_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes((preset_folder() / "networks" / "wifi.yaml").read_bytes())
    assert load_network(path).name == "mine"
    assert load_network(path).uplink_bit == load_network("wifi").uplink_bit


@pytest.mark.parametrize(("name", "said"), [("wifii", "did you mean wifi"), ("4g", "no such network"), ("", "no such")])
def test_unknown_network_lists_the_known_ones(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_network(name)
    assert "5g, lan, wifi or a file" in str(caught.value)


def test_network_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (preset_folder() / "networks" / "lan.yaml").read_text()
    path.write_text(text.replace("schema_version: 1", "schema_version: 7"))
    with pytest.raises(InputError, match="not a network file of this version; expected schema_version: 1; received 7"):
        load_network(path)


@pytest.mark.parametrize("text", ["", "- a\n", "just words"])
def test_file_that_is_no_network(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="not a network file"):
        load_network(path)


@pytest.mark.parametrize("ends", [["1 s", "20 s"], ["4 nJ", "1 nJ"], ["2 nJ", "2 nJ"]], ids=str)
def test_wrong_range_of_a_network(ends: list[str], tmp_path: Path) -> None:
    tree = copy.deepcopy(read_yaml(preset_folder() / "networks" / "lan.yaml"))
    tree["network"]["uplink_bit"]["range"] = ends
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=r"uplink_bit\.range: wrong range; expected \[lowest, highest\] in J"):
        load_network(path)
