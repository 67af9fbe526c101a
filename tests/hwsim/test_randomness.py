"""Deviates as a function of a key: the generator against big integers, and the statistics of what it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hwsim.functional.reads import Place, sequence_keys
from hwsim.randomness import FEW, POOL, generator, keyed, mixed, normal, normal_pool, pool_places, pool_rows, seed_of

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
GOLDEN_NORMALS = [1.0825579, 0.0891451, -1.3434443]
"""Another number here is another die for everyone: it belongs into the changelog."""
LARGEST = 4.5
"""Standard errors; 7 in a million tests of a true hypothesis go beyond, and the keys are fixed."""


def splitmix(counter: int) -> int:
    """One output of SplitMix64 in whole numbers."""
    z = (counter + GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def unsigned(x: Tensor) -> list[int]:
    return [value & MASK for value in x.flatten().tolist()]


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


# ---- the generator


def test_scrambler_is_the_published_one() -> None:
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # SplitMix64 from seed 0
    assert unsigned(mixed(torch.tensor([signed(n * GAMMA & MASK) for n in range(3)]))) == known
    some = [0, 1, -1, 2**62, -(2**63), 123456789]
    assert unsigned(mixed(torch.tensor(some))) == [splitmix(x & MASK) for x in some]


def test_many_numbers_are_scrambled_as_few_are() -> None:
    many = torch.arange(2 * FEW).view(2, FEW) * signed(GAMMA)
    few = torch.stack([mixed(number) for number in many.flatten()[:: FEW // 8]])
    assert torch.equal(mixed(many).flatten()[:: FEW // 8], few)
    assert torch.equal(mixed(many)[:, 1:9], mixed(many[:, 1:9]))


def test_scrambler_meets_no_state_twice() -> None:
    assert mixed(torch.arange(1 << 18)).unique().numel() == 1 << 18


def test_state_chains_key_and_indices() -> None:
    key, first, second = torch.tensor([[7], [-3]]), torch.tensor([[0, 1, 5]]), torch.tensor([[9, 9, -1]])
    expected = []
    for k in (7, -3):
        for a, b in ((0, 9), (1, 9), (5, -1)):
            state = splitmix(k & MASK)
            for index in (a, b):
                state = splitmix((state + splitmix(index & MASK)) & MASK)
            expected.append(state)
    assert unsigned(keyed(key, first, second)) == expected
    assert unsigned(keyed(key, first, second)) != unsigned(keyed(key, second, first))


def test_nothing_is_changed_in_place() -> None:
    key, index = torch.arange(4)[:, None], torch.arange(3)[None]
    state = keyed(key, index)
    before = state.clone()
    normal(state), normal(state, torch.float64), mixed(key)
    assert torch.equal(state, before)
    assert torch.equal(key, torch.arange(4)[:, None]) and torch.equal(index, torch.arange(3)[None])


def test_order_and_blocking_do_not_matter() -> None:
    whole = normal(keyed(torch.tensor(5), torch.arange(50)[:, None], torch.arange(40)))
    shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    parts = normal(keyed(torch.tensor(5), shuffled[:, None], torch.arange(7, 40)))
    assert torch.equal(parts, whole[shuffled, 7:])


def test_both_dtypes_draw_the_same_numbers() -> None:
    state = keyed(torch.tensor(1), torch.arange(1 << 18))
    assert (normal(state).double() - normal(state, torch.float64)).abs().max() < 1e-5
    place = Place(None, torch.tensor([3, 4]))
    index = torch.arange(1000).view(1, -1)
    assert torch.equal(place.draw("x", torch.float32, 7, index).double(), place.draw("x", torch.float64, 7, index))


def test_seeds_are_the_same_on_every_platform_and_in_every_version() -> None:
    assert seed_of(0, "die", 1) == seed_of(0, "die", 1) == 1752876183450248489
    assert len({seed_of(s, w, n) for s in range(20) for w in ("a", "b") for n in range(20)}) == 800
    assert seed_of(0, 11) != seed_of(0, 1, 1) != seed_of(0, "1", "1")
    drawn = normal(keyed(torch.tensor(seed_of(3, "golden")), torch.arange(3))).tolist()
    assert drawn == pytest.approx(GOLDEN_NORMALS, abs=1e-6)
    assert torch.equal(torch.randn(5, generator=generator(1, "x")), torch.randn(5, generator=generator(1, "x")))


# ---- statistics

N = 1 << 20
Z = normal(keyed(torch.tensor(11), torch.arange(64)[:, None, None], torch.arange(128)[:, None], torch.arange(128)))


def standard_errors(found: float, expected: float, deviation: float) -> float:
    return abs(found - expected) / deviation


def test_moments() -> None:
    z = Z.double().flatten().numpy()
    assert z.size == N
    assert standard_errors(z.mean(), 0.0, N**-0.5) < LARGEST
    assert standard_errors(z.var(), 1.0, (2 / N) ** 0.5) < LARGEST
    assert standard_errors((z**3).mean(), 0.0, (15 / N) ** 0.5) < LARGEST
    assert standard_errors((z**4).mean(), 3.0, (96 / N) ** 0.5) < LARGEST


def test_distribution() -> None:
    z = Z.double().flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-5
    edges = stats.norm.ppf(np.linspace(0, 1, 201))
    assert stats.chisquare(np.histogram(z, edges)[0]).pvalue > 1e-5
    assert np.abs(z).max() < 5.78
    for level in (3.0, 4.0):
        beyond, share = (np.abs(z) > level).sum(), 2 * stats.norm.sf(level)
        assert standard_errors(beyond, N * share, (N * share) ** 0.5) < LARGEST


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("lag", [1, 2, 16])
def test_neighbours_are_unrelated(axis: int, lag: int) -> None:
    a, b = Z.narrow(axis, 0, Z.shape[axis] - lag).double(), Z.narrow(axis, lag, Z.shape[axis] - lag).double()
    assert abs((a * b).mean()) * a.numel() ** 0.5 < LARGEST
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) / 2 * a.numel() ** 0.5 < LARGEST  # nor in size


def unrelated(a: Tensor, b: Tensor) -> bool:
    return abs((a.double() * b.double()).mean()) * a.numel() ** 0.5 < LARGEST


def test_neighbouring_keys_names_and_layers_are_unrelated() -> None:
    index = torch.arange(1 << 16).view(1, -1)

    def draw(key: int, what: str = "score", layer: int = 0) -> Tensor:
        return Place(None, torch.tensor([key]), layer).draw(what, torch.float32, 1, index)

    others = [draw(1), draw(-1), draw(1 << 40), draw(0, "charge"), draw(0, layer=1), draw(0).roll(1, 1)]
    assert all(unrelated(draw(0), other) for other in others)
    assert all(unrelated(a, b) for n, a in enumerate(others) for b in others[:n])


def test_swapped_indices_are_unrelated() -> None:
    z = Z[:, :64, :64].clone()
    upper = torch.triu(torch.ones(64, 64, dtype=torch.bool), 1)
    assert unrelated(z[:, upper], z.transpose(1, 2)[:, upper])
    assert unrelated(z[:, :, 0], z[:, 0, :])


# ---- keys of sequences


def test_one_number_is_shared_and_a_tensor_is_not() -> None:
    cpu = torch.device("cpu")
    assert sequence_keys(None, 3, cpu) is None
    shared = sequence_keys(5, 3, cpu)
    assert shared is not None and shared.shape == (1,)
    own = sequence_keys(torch.tensor([1, 2, 3], dtype=torch.int32), 3, cpu)
    assert own is not None and own.tolist() == [1, 2, 3] and own.dtype == torch.int64


def test_rows_of_the_pool_are_standard_normal_and_unrelated() -> None:
    """Of neighbouring states; the numbers of a row are those of the pool one after another."""
    states = keyed(torch.tensor(5), torch.arange(1 << 14))
    places = pool_places(states, 64)
    rows = pool_rows(places, 64)
    pool = normal_pool(torch.device("cpu"))
    assert int(places.min()) >= 0 and int(places.max()) <= POOL - 64
    assert torch.equal(rows[7], pool[places[7] : places[7] + 64])
    assert torch.equal(pool_rows(places, 64, torch.empty(1 << 14, 64)), rows)
    z, n = rows.double(), rows.numel()
    assert abs(z.mean()) * n**0.5 < LARGEST and abs(z.var() - 1) * (n / 2) ** 0.5 < LARGEST
    assert unrelated(rows[:-1], rows[1:]) and unrelated(rows[:, :-1], rows[:, 1:])
    assert abs(float(pool.double().mean())) < 1e-9 and abs(float(pool.double().var(correction=0)) - 1) < 1e-7
