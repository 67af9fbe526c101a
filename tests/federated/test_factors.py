"""Averages of low-rank adapters against the dense matrices that the code avoids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fllm.federation.factors import Factors, average_error, best_average, factors_of

WEIGHTS = (3.0, 1.0, 6.0)
SHARES = (0.3, 0.1, 0.6)


def clients(
    ranks: Sequence[int] = (2, 2, 2), layers: Sequence[tuple[int, int]] = ((7, 5), (4, 9))
) -> list[dict[str, Factors]]:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    return [{f"l{i}": (normal(out, r), normal(r, into)) for i, (out, into) in enumerate(layers)} for r in ranks]


def exact(updates: list[dict[str, Factors]], name: str) -> Tensor:
    return sum(w * u[name][0] @ u[name][1] for w, u in zip(SHARES, updates, strict=True))  # type: ignore[return-value]


def averaged(updates: list[dict[str, Factors]]) -> dict[str, Factors]:
    return {
        n: tuple(sum(w * u[n][i] for w, u in zip(SHARES, updates, strict=True)) for i in (0, 1))  # type: ignore[misc]
        for n in updates[0]
    }


def dense_error(updates: list[dict[str, Factors]], sent: dict[str, Factors]) -> float:
    wrong = sum((b @ a - exact(updates, n)).square().sum().item() for n, (b, a) in sent.items())
    return math.sqrt(wrong / sum(exact(updates, n).square().sum().item() for n in sent))


def test_error_of_averaged_factors_is_that_of_the_dense_matrices() -> None:
    updates = clients()
    found = average_error(updates, WEIGHTS, averaged(updates))
    assert found == pytest.approx(dense_error(updates, averaged(updates)), rel=1e-12)
    assert found > 0.3


@pytest.mark.parametrize("which", [0, 1], ids=["B", "A"])
def test_equal_factors_on_one_side_average_exactly(which: int) -> None:
    updates = clients()
    for update in updates[1:]:
        for name, factors in update.items():
            shared = list(factors)
            shared[which] = updates[0][name][which]
            update[name] = (shared[0], shared[1])
    assert average_error(updates, WEIGHTS, averaged(updates)) < 1e-7


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ranks", [(2, 2, 2), (1, 4, 2)])
def test_best_average_is_the_truncated_svd(rank: int, ranks: tuple[int, ...]) -> None:
    updates = clients(ranks)
    sent = {n: best_average([u[n] for u in updates], WEIGHTS, rank) for n in updates[0]}
    for name, (b, a) in sent.items():
        assert b.shape[1] == a.shape[0] == rank
        u, s, vt = torch.linalg.svd(exact(updates, name))
        torch.testing.assert_close(b @ a, (u[:, :rank] * s[:rank]) @ vt[:rank], rtol=0, atol=1e-12)
        torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))
        assert (b.gather(0, b.abs().argmax(0, keepdim=True)) > 0).all()
    assert average_error(updates, WEIGHTS, sent) == pytest.approx(dense_error(updates, sent), rel=1e-9)


def test_best_average_of_enough_rank_is_exact() -> None:
    updates = clients(layers=((7, 5),))
    sent = {"l0": best_average([u["l0"] for u in updates], WEIGHTS, 5)}
    assert average_error(updates, WEIGHTS, sent) < 1e-7


def test_best_average_is_never_worse_than_averaged_factors() -> None:
    updates = clients()
    sent = {n: best_average([u[n] for u in updates], WEIGHTS, 2) for n in updates[0]}
    assert average_error(updates, WEIGHTS, sent) < average_error(updates, WEIGHTS, averaged(updates))


@pytest.mark.parametrize("rank", [2, 6, 8])
def test_rank_beyond_that_of_the_average_leaves_something_to_learn(rank: int) -> None:
    """All B zero, and a rank above the layer's smaller side: B is zero there, and A is not."""
    draw = torch.Generator().manual_seed(1)
    for scale in (0.0, 1.0):
        layer = [(scale * torch.randn(7, rank, generator=draw), torch.randn(rank, 5, generator=draw)) for _ in range(3)]
        b, a = best_average(layer, WEIGHTS, rank)
        assert (b.shape, a.shape) == ((7, rank), (rank, 5))
        assert (a.norm(dim=1) > 0.1).all()
        assert bool(b.any()) == bool(scale)
        expected = sum(w * x.double() @ y.double() for w, (x, y) in zip(SHARES, layer, strict=True))
        if rank >= 5:
            torch.testing.assert_close(b @ a, expected, rtol=0, atol=1e-5)


def test_no_change_is_no_error() -> None:
    zero = {"l": (torch.zeros(3, 1, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))}
    assert average_error([zero, zero], (1, 1), zero) == 0.0


def test_factors_are_found_by_name_also_where_a_is_not_sent() -> None:
    a, b = torch.ones(1, 2), torch.zeros(3, 1)
    whole = {"m.q.lora_A.weight": a, "m.q.lora_B.weight": b, "m.key.gain": torch.ones(1)}
    assert list(factors_of(whole)) == ["m.q.lora_A.weight"]
    found = factors_of({"m.q.lora_B.weight": b}, {"m.q.lora_A.weight": a})
    assert found["m.q.lora_A.weight"] == (b, a)
