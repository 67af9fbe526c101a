from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pytest

from device_models.errors import InputError
from fllm.data import DIAGNOSES, Case, Cohort, partition_by_hospital, split_cases


def _ids(cases: Sequence[Case]) -> list[int]:
    return [case.hadm_id for case in cases]


def _without_hospital(cohort: Cohort) -> list[Case]:
    return [dataclasses.replace(case, hospital=None) for case in cohort.cases]


def test_a_split_is_disjoint_complete_and_stratified(cohort: Cohort) -> None:
    split = split_cases(cohort.cases, test_fraction=0.2, seed=3)
    assert sorted(_ids(split.train) + _ids(split.test)) == sorted(_ids(cohort.cases))
    assert len(split.test) == 480
    for name in DIAGNOSES:
        tested = sum(case.diagnosis == name for case in split.test)
        assert tested == pytest.approx(0.2 * sum(case.diagnosis == name for case in cohort.cases), abs=0.5)


def test_a_split_depends_on_the_seed_and_not_on_the_order(cohort: Cohort) -> None:
    first = split_cases(cohort.cases, test_fraction=0.2, seed=3)
    assert split_cases(cohort.cases[::-1], test_fraction=0.2, seed=3) == first
    assert split_cases(cohort.cases, test_fraction=0.2, seed=4) != first


def test_rare_classes_stand_on_both_sides(cohort: Cohort) -> None:
    few = [next(c for c in cohort.cases if c.diagnosis == name) for name in DIAGNOSES]
    few += [next(c for c in cohort.cases[::-1] if c.diagnosis == name) for name in DIAGNOSES]
    split = split_cases(few, test_fraction=0.1, seed=0)
    assert Counter(c.diagnosis for c in split.test) == Counter(DIAGNOSES)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_fractions_outside_the_open_interval_are_refused(cohort: Cohort, fraction: float) -> None:
    with pytest.raises(InputError, match="test fraction"):
        split_cases(cohort.cases, test_fraction=fraction, seed=0)


def test_too_few_cases_cannot_be_split(cohort: Cohort) -> None:
    for cases in ([], cohort.cases[:1]):
        with pytest.raises(InputError, match="too few cases"):
            split_cases(cases, test_fraction=0.5, seed=0)


@pytest.mark.parametrize("num_clients", [1, 2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("known", [True, False])
def test_clients_are_disjoint_complete_and_never_empty(cohort: Cohort, num_clients: int, known: bool) -> None:
    cases = list(cohort.cases) if known else _without_hospital(cohort)
    clients = partition_by_hospital(cases, num_clients, seed=0)
    assert len(clients) == num_clients == len({name for name, _ in clients})
    assert all(held for _, held in clients)
    assert sorted(i for _, held in clients for i in _ids(held)) == sorted(_ids(cases))
    assert partition_by_hospital(cases[::-1], num_clients, seed=0) == clients


def test_one_client_for_each_hospital(cohort: Cohort) -> None:
    clients = partition_by_hospital(cohort.cases, 4, seed=0)
    assert tuple(name for name, _ in clients) == cohort.hospitals
    assert all({case.hospital for case in held} == {name} for name, held in clients)


def test_the_smallest_hospitals_are_merged(cohort: Cohort) -> None:
    sizes = Counter(case.hospital for case in cohort.cases)
    two_smallest = sorted(sizes, key=lambda name: (sizes[name], name))[:2]
    merged = [name for name, _ in partition_by_hospital(cohort.cases, 3, seed=0) if "+" in name]
    assert merged == ["+".join(sorted(map(str, two_smallest)))]
    (all_names, held), *rest = partition_by_hospital(cohort.cases, 1, seed=0)
    assert all_names == "+".join(cohort.hospitals) and len(held) == 2400 and not rest


def test_the_largest_hospital_is_cut(cohort: Cohort) -> None:
    sizes = Counter(case.hospital for case in cohort.cases)
    largest = max(sizes, key=lambda name: sizes[name])
    clients = dict(partition_by_hospital(cohort.cases, 5, seed=0))
    halves = clients[f"{largest} a"], clients[f"{largest} b"]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert largest not in clients
    assert partition_by_hospital(cohort.cases, 5, seed=1) != partition_by_hospital(cohort.cases, 5, seed=0)


def test_every_case_can_be_a_client_of_its_own(cohort: Cohort) -> None:
    clients = partition_by_hospital(cohort.cases[:80], 80, seed=0)
    assert all(len(held) == 1 for _, held in clients)
    assert len({name for name, _ in clients}) == 80


def test_sites_without_hospitals_are_of_equal_size_and_mixed(cohort: Cohort) -> None:
    clients = partition_by_hospital(_without_hospital(cohort), 7, seed=0)
    assert [name for name, _ in clients] == [f"site {i}" for i in range(1, 8)]
    sizes = [len(held) for _, held in clients]
    assert max(sizes) - min(sizes) <= 1
    shares = [sum(case.diagnosis == "appendicitis" for case in held) / len(held) for _, held in clients]
    assert max(shares) - min(shares) < 0.2


@pytest.mark.parametrize("num_clients", [0, -1, 11])
def test_impossible_numbers_of_clients_are_refused(cohort: Cohort, num_clients: int) -> None:
    with pytest.raises(InputError, match="number of clients"):
        partition_by_hospital(cohort.cases[:10], num_clients, seed=0)
