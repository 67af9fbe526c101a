"""Checkpoints are whole or refused, and the one before is offered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from device_models import InputError
from fllm.checkpoints import (
    Checkpoint,
    drop_old_checkpoints,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)


def made(number: int) -> Checkpoint:
    strategy = {"mean/a": np.full((2, 3), 0.1 * number), "square/a": np.arange(6, dtype=np.float32)[::2]}
    return Checkpoint(number, {"b": torch.full((3,), 1.0 * number), "a": torch.ones(2, 3).t()}, strategy)


def test_comes_back_to_the_bit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(7))
    found = load_checkpoint(tmp_path, 7)
    assert list(found.adapter) == ["a", "b"]
    for name, tensor in made(7).adapter.items():
        assert torch.equal(found.adapter[name], tensor)
    for name, value in made(7).strategy.items():
        assert found.strategy[name].dtype == value.dtype
        assert found.strategy[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("name", ["adapter.safetensors", "strategy.safetensors", "sha256.json"])
@pytest.mark.parametrize("how", ["torn", "one bit", "gone"])
def test_damage_is_refused_and_the_one_before_offered(tmp_path: Path, name: str, how: str) -> None:
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, made(number))
    file = tmp_path / "state" / "round-00003" / name
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "torn":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"round 3 is damaged.*--from-round 2"):
        load_checkpoint(tmp_path, 3)
    assert load_checkpoint(tmp_path, 2).number == 2


def test_only_a_whole_one_is_offered(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save_checkpoint(tmp_path, made(number))
    for number in (2, 3):
        (tmp_path / "state" / f"round-0000{number}" / "adapter.safetensors").write_bytes(b"half a fi")
    with pytest.raises(InputError, match="--from-round 1"):
        load_checkpoint(tmp_path, 3)
    (tmp_path / "state" / "round-00001" / "sha256.json").unlink()
    with pytest.raises(InputError, match="start a new run"):
        load_checkpoint(tmp_path, 3)


def test_newer_round_is_offered_where_an_old_one_is_gone(tmp_path: Path) -> None:
    for number in (4, 5):
        save_checkpoint(tmp_path, made(number))
    with pytest.raises(InputError, match=r"round 2 is gone.*--from-round 5"):
        load_checkpoint(tmp_path, 2)


def test_what_was_cut_off_while_it_was_written_does_not_count(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1))
    aside = tmp_path / "state" / "round-00002.part"
    aside.mkdir()
    (aside / "adapter.safetensors").write_bytes(b"half a fi")
    with pytest.raises(InputError, match=r"round 2 is gone.*--from-round 1"):
        load_checkpoint(tmp_path, 2)
    save_checkpoint(tmp_path, made(2))
    assert load_checkpoint(tmp_path, 2).number == 2
    assert not aside.exists()


def test_last_two_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        save_checkpoint(tmp_path, made(number))
        drop_old_checkpoints(tmp_path, number)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["round-00004", "round-00005"]
    remove_checkpoints(tmp_path)
    assert not (tmp_path / "state").exists()
