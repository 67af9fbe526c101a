"""Every shipped device file, every leaf of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

import pytest

from device_models import load_device, preset_names, references
from device_models.cell import cell_current
from device_models.loading import preset_folder
from device_models.provenance import Kind
from device_models.quantities import parse_quantity
from device_models.strict_yaml import read_yaml

PRESETS = preset_names()
_UNIT = re.compile(r"^\S+\s+(.*)$")


def leaves(name: str) -> list[tuple[str, Mapping[str, Any]]]:
    tree = read_yaml(preset_folder() / f"{name}.yaml")
    sections = {section: keys for section, keys in tree.items() if isinstance(keys, dict)}
    return [(f"{section}.{key}", leaf) for section, keys in sections.items() for key, leaf in keys.items()]


def number(value: object) -> float:
    """Magnitude of a value in the SI unit of what stands behind its number."""
    if isinstance(value, str):
        unit = _UNIT.match(value)
        assert unit, value
        si = re.sub(r"^(?:[afpnumkMGT])(?=[JsVA])", "", unit.group(1))
        return parse_quantity(value, si)
    assert isinstance(value, int | float)
    return float(value)


def test_there_are_presets() -> None:
    assert {"gaincell_28nm", "ideal", "parity_leroux2025"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_every_leaf_has_its_provenance(name: str) -> None:
    device = load_device(name)
    found = leaves(name)
    assert device.name == name
    assert set(device.provenance) == {path for path, _ in found}
    assert len(device.file_sha256) == 64
    for path, leaf in found:
        provenance = device.provenance[path]
        assert provenance.source == leaf["source"], path
        assert provenance.kind in get_args(Kind), path
        assert provenance.where.strip(), path


@pytest.mark.parametrize("name", PRESETS)
def test_sources_exist_and_assumptions_are_explained(name: str) -> None:
    for path, leaf in leaves(name):
        assert leaf["source"] in references(), path
        if leaf["kind"] == "assumed" or leaf["source"] == "project":
            assert leaf.get("note", "").strip(), path


@pytest.mark.parametrize("name", PRESETS)
def test_values_lie_within_their_ranges(name: str) -> None:
    ranged = [(path, leaf) for path, leaf in leaves(name) if leaf.get("range")]
    assert name == "ideal" or ranged
    for path, leaf in ranged:
        low, high = (number(bound) for bound in leaf["range"])
        assert low < high, path
        assert low <= number(leaf["value"]) <= high, path


def test_every_reference_is_used_by_some_preset() -> None:
    text = "\n".join(f"{leaf['source']} {leaf.get('note', '')}" for name in PRESETS for _, leaf in leaves(name))
    unused = {key for key in references() if not re.search(rf"\b{key}\b", text)} - {"project"}
    assert not unused


def test_citations_name_a_year_and_stand_on_one_line() -> None:
    for key, citation in references().items():
        assert "\n" not in citation
        assert key in ("project", "leroux2025code") or re.search(r"\b(19|20)\d\d\b", citation), key


@pytest.mark.parametrize("name", PRESETS)
def test_every_price_is_zero_or_above(name: str) -> None:
    cost = load_device(name).cost
    for field, value in vars(cost).items():
        assert math.isfinite(value) and value >= 0, field


@pytest.mark.parametrize("name", PRESETS)
def test_cell_current_grows_with_the_stored_voltage(name: str) -> None:
    import numpy as np

    device = load_device(name)
    w = np.linspace(device.storage.v_min, device.storage.v_max, 101) - device.storage.v_zero
    assert (np.diff(cell_current(w, device.cell)) > 0).all()
