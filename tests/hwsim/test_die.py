"""A chip: the same whoever asks for it, in whatever order; saved, measured and described."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from device_models import DeviceModel, InputError
from hwsim import Die, gain_cell_attention
from hwsim.die import ARRAYS, CELLS, readout_codes_of
from hwsim.effects import without
from tests.hwsim.comparison import every_effect, inputs

CPU = torch.device("cpu")
SIZE = {"window.tokens": 16, "tile.slots": 8, "saturation.qk": "3 uA"}


def device(**overrides: object) -> DeviceModel:
    return every_effect(**{**SIZE, **overrides})


def outputs(die: Die, on: DeviceModel | None = None, tokens: int = 30) -> Tensor:
    tensors = inputs(1, 4, 2, tokens, 8)
    return gain_cell_attention(*tensors, on or die.device, token_period_s=1e-4, die=die, read_key=1)


# ---- a function of place


def test_deviates_do_not_depend_on_who_asked_before() -> None:
    fresh = Die(3, device())
    expected = fresh.cells("gain", "key", 2, torch.arange(12), 8)
    other = Die(3, device())
    other.at_layer(4).cells("gain", "key", 2, torch.arange(9), 8)
    other.cells("offset", "key", 2, torch.arange(12), 8)
    other.cells("gain", "value", 2, torch.arange(12), 8)
    outputs(other)
    backwards = other.cells("gain", "key", 2, torch.arange(11, -1, -1), 8)
    assert torch.equal(backwards.flip(1), expected)
    assert torch.equal(other.cells("gain", "key", 2, torch.tensor([7, 7, 2]), 8), expected[:, [7, 7, 2]])


def test_a_map_that_grows_keeps_its_values() -> None:
    growing = Die(3, device())
    for slots in (1, 5, 64, 3, 200):
        small = growing.cells("gain", "key", 2, torch.arange(slots), 8)
        assert torch.equal(small, Die(3, device()).cells("gain", "key", 2, torch.arange(200), 8)[:, :slots])
        columns = growing.columns("phi", 2, torch.arange(slots))
        assert torch.equal(columns, Die(3, device()).columns("phi", 2, torch.arange(200))[:, :slots])


def test_another_geometry_has_the_same_cells() -> None:
    """Cells are named by head, slot and dimension, not by how many there are."""
    wide = Die(3, device()).cells("gain", "key", 4, torch.arange(12), 16)
    assert torch.equal(wide[:2, :, :8], Die(3, device()).cells("gain", "key", 2, torch.arange(12), 8))
    many = Die(3, device()).circuits("readout inl", CPU, 2, 3, 8, 63)
    assert torch.equal(many[:1, :2, :4, :31], Die(3, device()).circuits("readout inl", CPU, 1, 2, 4, 31))


def test_no_cells_need_no_map() -> None:
    assert Die(3, device()).cells("gain", "key", 2, torch.arange(0), 8).shape == (2, 0, 8)


def test_every_map_is_a_map_of_its_own() -> None:
    die, slots = Die(0, device()), torch.arange(200)
    maps = {(what, a, layer): die.at_layer(layer).cells(what, a, 2, slots, 8).flatten()
            for what in CELLS for a in ARRAYS for layer in (0, 1)}  # fmt: skip
    maps["seed"] = Die(1, device()).cells("gain", "key", 2, slots, 8).flatten()
    stack = torch.stack(list(maps.values())).double()
    r = torch.corrcoef(stack).fill_diagonal_(0.0)
    assert r.abs().max() * stack.shape[1] ** 0.5 < 4.5


def test_layers_are_views_of_one_chip() -> None:
    die = Die(5, device())
    assert die.at_layer(2).at_layer(0).layer == 0 and die.at_layer(2).seed == 5
    assert torch.equal(outputs(die.at_layer(1).at_layer(0)), outputs(Die(5, device())))
    assert not torch.equal(outputs(die.at_layer(1)), outputs(die))
    assert torch.equal(outputs(copy.deepcopy(die)), outputs(die))


def test_sequence_length_and_repetition_do_not_matter() -> None:
    die = Die(5, device())
    long = outputs(die, tokens=30)
    assert torch.equal(outputs(die, tokens=30), long)
    q, k, v = (x[:, :, :9] for x in inputs(1, 4, 2, 30, 8))
    short = gain_cell_attention(q, k, v, die.device, token_period_s=1e-4, die=die, read_key=1)
    assert (short - long[:, :, :9]).abs().max() < 1e-12


@pytest.mark.parametrize("effect", ["gain mismatch", "cell offset", "DAC INL", "readout INL", "wire drop"])
def test_one_chip_serves_a_changed_device(effect: str) -> None:
    """Deviates are of unit spread, so a chip may be looked at with one effect less; nothing of before sticks to it."""
    die, less = Die(5, device()), without(device(), effect)
    before = outputs(die)
    assert torch.equal(outputs(die, less), outputs(Die(5, less)))
    assert torch.equal(outputs(die), before)
    assert not torch.equal(outputs(die, less), before)


def test_a_copy_with_another_seed_is_another_chip() -> None:
    die = Die(0, device())
    outputs(die)
    assert torch.equal(outputs(replace(die, seed=1)), outputs(Die(1, device())))


# ---- files


def save(tmp_path: Path, die: Die) -> Path:
    path = tmp_path / "chip.safetensors"
    die.save(path, layers=2, heads=2, head_dim=8)
    return path


def test_round_trip(tmp_path: Path) -> None:
    die = Die(5, device())
    path = save(tmp_path, die)
    again = Die.load(path, device())
    assert again.seed == 5 and len(again.measured) == 2 * len(CELLS) * len(ARRAYS)
    for layer in (0, 1, 2):  # the third was not saved and is drawn
        assert torch.equal(outputs(again.at_layer(layer)), outputs(die.at_layer(layer)))
    with safe_open(str(path), "pt") as file:
        facts = json.loads(file.metadata()["die"])
    assert facts == {"seed": 5, "device": "gaincell_28nm", "device_sha256": device().file_sha256}


def test_round_trip_of_a_window_that_does_not_fill_its_last_subtile(tmp_path: Path) -> None:
    die = Die(5, device(**{"window.tokens": 12}))
    again = Die.load(save(tmp_path, die), die.device)
    assert torch.equal(outputs(again), outputs(die))


def test_measured_deviates_replace_the_drawn_ones(tmp_path: Path) -> None:
    path = save(tmp_path, Die(5, device()))
    with safe_open(str(path), "pt") as file:
        maps, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    maps["0.gain.key"] = maps["0.gain.key"] * 0 + 1.5
    save_file(maps, str(path), metadata)
    loaded = Die.load(path, device())
    assert (loaded.cells("gain", "key", 2, torch.tensor([3]), 8) == 1.5).all()
    assert torch.equal(loaded.cells("gain", "value", 2, torch.tensor([3]), 8), maps["0.gain.value"][:, [3]])
    assert not torch.equal(outputs(loaded), outputs(Die(5, device())))


def test_measured_die_of_a_smaller_model_is_refused(tmp_path: Path) -> None:
    loaded = Die.load(save(tmp_path, Die(5, device())), device())
    for heads, slots, dims in ((3, 16, 8), (2, 17, 8), (2, 16, 9)):
        with pytest.raises(InputError, match=r"another geometry.*0\.gain\.key|0\.gain\.key.*another geometry") as error:
            loaded.cells("gain", "key", heads, torch.arange(slots), dims)
        assert "(2, 16, 8)" in str(error.value) and str((heads, slots, dims)) in str(error.value)
    assert loaded.cells("gain", "key", 1, torch.arange(4), 3).shape == (1, 4, 3)
    flat = Die(0, device(), measured={"0.gain.key": torch.zeros(12)})
    with pytest.raises(InputError, match="another geometry"):
        flat.cells("gain", "key", 1, torch.arange(1), 1)


@pytest.mark.parametrize("content", [None, b"", b"not a die at all, but long enough to be read as one", "other"])
def test_what_is_no_die_is_an_input_error(tmp_path: Path, content: object) -> None:
    path = tmp_path / "chip.safetensors"
    if content == "other":
        save_file({"weight": torch.zeros(2)}, str(path), {"format": "pt"})
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match="not a die") as error:
        Die.load(path, device())
    assert str(path) in str(error.value) and "Die.save" in str(error.value)


# ---- description


def test_described_spread_is_that_of_the_device() -> None:
    die = Die(1, every_effect(**{"window.tokens": 64}))
    rows = {row["what"]: row for row in die.describe(heads=4, head_dim=64)}
    assert set(rows) == set(CELLS)
    expected = {"gain": 0.1, "offset": 5e-3, "retention": 0.4, "capacitor": 0.03, "pedestal": 3e-3}
    for what, row in rows.items():
        assert row["nominal"] == pytest.approx(expected[str(what)])
        assert row["cells"] == 2 * 4 * 64 * 64
        deviation = abs(float(row["measured"]) / float(row["nominal"]) - 1) * (2 * float(row["cells"])) ** 0.5  # type: ignore[arg-type]
        assert 0 < deviation < 3, what
    assert [row["unit"] for row in die.describe()] == ["1", "V", "ln", "1", "V"]


def test_effects_of_zero_strength_are_not_described() -> None:
    gainless = without(device(), "gain mismatch", "pedestal", "retention spread")
    assert [row["what"] for row in Die(1, gainless).describe()] == ["offset", "capacitor"]


def test_codes_of_the_readout() -> None:
    assert readout_codes_of(device()) == 31
    assert readout_codes_of(device(**{"readout.codes": "published_33"})) == 33
