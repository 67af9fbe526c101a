"""Which cases train, which test, and which hospital holds them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from device_models.errors import InputError
from fllm.data.cdm import DIAGNOSES, Case
from fllm.data.draws import keyed_generator, permuted


@dataclass(frozen=True)
class Split:
    """Two disjoint sets of cases."""

    train: tuple[Case, ...] = field(repr=False)
    test: tuple[Case, ...] = field(repr=False)


def split_cases(cases: Sequence[Case], *, test_fraction: float, seed: int) -> Split:
    """Split cases at random within each diagnosis; the order of the input does not matter.

    Approximation: admissions are split, not patients. The release has no patient ids, and a few of its patients have
    two admissions.

    Raises:
        InputError: If the fraction lies outside (0, 1) or one of the sets would be empty.
    """
    if not 0.0 < test_fraction < 1.0:
        raise InputError("test fraction", expected="a number between 0 and 1, both excluded", received=test_fraction)
    train: list[Case] = []
    test: list[Case] = []
    for diagnosis in DIAGNOSES:
        group = _shuffled([case for case in cases if case.diagnosis == diagnosis], seed, "split", diagnosis)
        n_test = math.floor(test_fraction * len(group) + 0.5)
        n_test = min(max(n_test, 1), len(group) - 1) if len(group) > 1 else 0
        test += group[:n_test]
        train += group[n_test:]
    if not train or not test:
        raise InputError("too few cases to split", expected="two or more cases of a diagnosis", received=len(cases))
    return Split(_sorted(train), _sorted(test))


def _sorted(cases: Sequence[Case]) -> tuple[Case, ...]:
    return tuple(sorted(cases, key=lambda case: case.hadm_id))


def _shuffled(cases: Sequence[Case], seed: int, *words: str) -> list[Case]:
    return permuted(keyed_generator(seed, *words), _sorted(cases))


def partition_by_hospital(cases: Sequence[Case], num_clients: int, *, seed: int) -> list[tuple[str, tuple[Case, ...]]]:
    """Give the cases to clients: one per hospital, merged or split to the number asked for.

    The two smallest hospitals are merged (``"a+b"``) while there are too many; the hospital with the largest pieces is
    cut once more (``"a a"``, ``"a b"``) while there are too few. Without hospitals the cases go to equal random
    ``"site 1"``, ``"site 2"``, ... Every client has at least one case.

    Raises:
        InputError: If there are fewer cases than clients, or no clients.
    """
    if num_clients < 1 or num_clients > len(cases):
        raise InputError("number of clients", expected=f"1 to the number of cases, {len(cases)}", received=num_clients)
    if any(case.hospital is None for case in cases):
        parts = _pieces(_shuffled(cases, seed, "sites"), num_clients)
        return [(f"site {i}", part) for i, part in enumerate(parts, start=1)]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[str(case.hospital)].append(case)
    named = [(name, group) for name, group in sorted(groups.items())]
    while len(named) > num_clients:
        (first, small), (second, other), *rest = sorted(named, key=lambda item: (len(item[1]), item[0]))
        named = [*rest, ("+".join(sorted([*first.split("+"), *second.split("+")])), small + other)]
    return _cut(sorted(named), num_clients, seed)


def _cut(named: list[tuple[str, list[Case]]], num_clients: int, seed: int) -> list[tuple[str, tuple[Case, ...]]]:
    count = [1] * len(named)
    while sum(count) < num_clients:
        largest = max(range(len(named)), key=lambda i: (len(named[i][1]) / count[i], -i))
        count[largest] += 1
    clients = []
    for (name, group), pieces in zip(named, count, strict=True):
        parts = _pieces(_shuffled(group, seed, "cut", name), pieces)
        suffixes = [""] if pieces == 1 else [f" {_letters(i)}" for i in range(pieces)]
        clients += [(name + suffix, part) for suffix, part in zip(suffixes, parts, strict=True)]
    return clients


def _letters(index: int) -> str:
    """Count a, b, ..., z, aa, ab, ..."""
    text = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def _pieces(cases: list[Case], count: int) -> list[tuple[Case, ...]]:
    """Deal the cases out in turn, so that sizes differ by one at most."""
    return [_sorted(cases[i::count]) for i in range(count)]
