from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fllm.data.cdm_cases import DIAGNOSES
from fllm.data.synthetic import load_synthetic, synthesize_cohort
from fllm.data.synthetic_realistic import filler_lab_rows, lengthen_history
from fllm.data.synthetic_spec import phrases, specification
from fllm.data.synthetic_tables import SyntheticTables

HISTORY, LABS = "history_of_present_illness.csv", "laboratory_tests.csv"


@pytest.fixture(scope="module")
def realistic() -> SyntheticTables:
    return synthesize_cohort(600, n_hospitals=2, seed=4, realistic=True)


@pytest.fixture(scope="module")
def compact() -> SyntheticTables:
    return synthesize_cohort(600, n_hospitals=2, seed=4)


def test_histories_are_as_long_as_specified(realistic: SyntheticTables) -> None:
    lengths = {int(row[0]): len(str(row[1])) for row in realistic.rows[HISTORY]}
    for name in DIAGNOSES:
        median = np.median([lengths[i] for i in realistic.labels[name]])
        assert median == pytest.approx(specification()["hpi_target_chars"][name], rel=0.15)


def test_there_are_about_as_many_tests_as_in_the_release(realistic: SyntheticTables) -> None:
    assert 50 <= np.median(list(Counter(row[0] for row in realistic.rows[LABS]).values())) <= 60
    keys = [row[:2] for row in realistic.rows[LABS]]
    assert len(set(keys)) == len(keys)


def test_nothing_is_taken_away(realistic: SyntheticTables, compact: SyntheticTables) -> None:
    assert set(compact.rows[LABS]) < set(realistic.rows[LABS])
    for (_, short), (_, long) in zip(compact.rows[HISTORY], realistic.rows[HISTORY], strict=True):
        present, past = str(short).split("Past Medical History: ")
        assert str(long).startswith(present) and str(long).endswith(past)
    for name in ("physical_examination.csv", "radiology_reports.csv", "microbiology.csv", "icd_diagnosis.csv"):
        assert realistic.rows[name] == compact.rows[name]


def test_fillers_do_not_name_a_diagnosis() -> None:
    banned = {word for words in specification()["banned_in_own_hpi"].values() for word in words}
    text = " ".join(phrases()["history_filler"]).lower()
    assert not any(word in text for word in banned)


def test_filler_tests_are_known_and_new(realistic: SyntheticTables) -> None:
    spec = specification()
    tests = [test for group in spec["filler_labs"] for test in group["tests"]]
    usual = {test["itemid"] for test in (*spec["labs"], *spec["urinalysis"]["items"])}
    itemids = [test["itemid"] for test in tests]
    assert len(set(itemids)) == len(itemids) and not usual & set(itemids)
    named = {row[0] for row in realistic.rows["lab_test_mapping.csv"]}
    assert {f"{itemid}.0" for itemid in itemids} <= named
    for test in tests:
        assert ("values" in test) != ("dist" in test)
        assert sum(test.get("values", {"": 1.0}).values()) == pytest.approx(1.0)


def test_urine_is_not_examined_further_without_a_urinalysis(compact: SyntheticTables) -> None:
    sediment = {t["itemid"] for g in specification()["filler_labs"] if g.get("beside") for t in g["tests"]}
    patients = compact.patients[:100]
    without = [row[1] for p in patients for row in filler_lab_rows(90_000_001, p, 4, urinalysis=False)]
    beside = [row[1] for p in patients for row in filler_lab_rows(90_000_001, p, 4, urinalysis=True)]
    assert sediment and not sediment & set(without) and sediment <= set(beside)


def test_a_long_history_stays_as_it_is(compact: SyntheticTables) -> None:
    long = " " + "word " * 4000 + "Past Medical History: none."
    assert lengthen_history(long, compact.patients[0], 4) == long


def test_the_realistic_cohort_loads() -> None:
    cohort = load_synthetic(40, n_hospitals=2, seed=4, realistic=True)
    assert cohort.synthetic and min(len(case.labs) for case in cohort.cases) > 20
