"""What a client keeps is whole, of an earlier round, and not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fllm.federation.kept import KEPT, Kept


def made(number: int) -> dict[str, torch.Tensor]:
    return {"personal/b": torch.full((2, 3), float(number)).t(), "lost/a": torch.arange(3.0) * number}


def test_comes_back_to_the_bit_in_the_order_of_names(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "clients")
    assert kept.load(3, 9) == {}
    kept.save(3, 1, made(7))
    found = kept.load(3, 2)
    assert list(found) == ["lost/a", "personal/b"]
    assert all(torch.equal(found[name], tensor) for name, tensor in made(7).items())


def test_a_round_reads_what_an_earlier_one_left(tmp_path: Path) -> None:
    """So that doing a round once more, after the server was killed in it, gives the same."""
    kept = Kept(tmp_path)
    for number in (1, 2, 5):
        kept.save(0, number, made(number))
    assert kept.load(0, 1) == {}
    for before, expected in ((2, 1), (3, 2), (5, 2), (6, 5), (99, 5)):
        assert torch.equal(kept.load(0, before)["lost/a"], made(expected)["lost/a"]), before
    kept.save(0, 2, made(22))
    assert torch.equal(kept.load(0, 3)["lost/a"], made(22)["lost/a"])


def test_clients_do_not_see_each_other(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.save(1, 1, made(1))
    kept.save(11, 1, made(11))
    assert kept.load(0, 2) == {}
    assert torch.equal(kept.load(11, 2)["lost/a"], made(11)["lost/a"])


def test_as_many_rounds_are_kept_as_a_run_can_go_back(tmp_path: Path) -> None:
    """It goes on from one of two checkpoints, and may have been stopped within the round after them."""
    kept = Kept(tmp_path)
    for number in range(1, 8):
        kept.save(0, number, made(number))
        assert len(list((tmp_path / "00000").iterdir())) == min(number, KEPT)
    for number in (6, 7):  # from round 5 on again, and from round 6
        assert torch.equal(kept.load(0, number)["lost/a"], made(number - 1)["lost/a"])


def test_rounds_beyond_99999_are_not_mistaken_for_earlier_ones(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for number in (99_999, 100_000):
        kept.save(0, number, made(number))
    assert torch.equal(kept.load(0, 100_000)["lost/a"], made(99_999)["lost/a"])


def test_half_a_file_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path)
    kept.save(0, 1, made(1))

    def stop(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        kept.save(0, 2, made(2))
    monkeypatch.undo()
    assert torch.equal(kept.load(0, 3)["lost/a"], made(1)["lost/a"])
    kept.save(0, 2, made(2))
    assert sorted(path.name for path in (tmp_path / "00000").iterdir()) == [
        "round-00001.safetensors", "round-00002.safetensors",
    ]  # fmt: skip
