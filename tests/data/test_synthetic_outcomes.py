from __future__ import annotations

from dataclasses import replace

import pytest

from fllm.data.cdm_cases import DIAGNOSES
from fllm.data.synthetic import synthesize_cohort
from fllm.data.synthetic_outcomes import draw_cultures, draw_outcomes
from fllm.data.synthetic_patients import Patient
from fllm.data.synthetic_spec import specification


@pytest.fixture(scope="module")
def patients() -> tuple[Patient, ...]:
    return synthesize_cohort(800, n_hospitals=4, seed=5).patients


def test_outcomes_follow_the_label_and_not_the_findings(patients: tuple[Patient, ...]) -> None:
    spec = specification()
    swapped = [patient for patient in patients if patient.image_class != patient.label]
    assert swapped
    for patient in swapped:
        outcomes = draw_outcomes(patient, 5)
        assert outcomes.discharge_diagnosis.splitlines()[0] in spec["discharge_diagnosis"][patient.label]
        assert outcomes.icd_titles[0] in {title for title, _ in spec["icd_titles"][patient.label]}
        assert (outcomes.procedure or "none") in spec["procedures"][patient.label]


def test_a_second_condition_and_a_known_past_are_coded(patients: tuple[Patient, ...]) -> None:
    both = next(patient for patient in patients if patient.dual is not None)
    titles = {title for title, _ in specification()["icd_titles"][both.dual]}
    assert draw_outcomes(both, 5).icd_titles[1] in titles
    asthma = replace(both, past=frozenset({"asthma"}))
    assert draw_outcomes(asthma, 5).icd_titles[2].startswith(("Asthma", "Unspecified asthma"))


@pytest.mark.parametrize(("icd10", "version"), [(0.0, {9}), (1.0, {9, 10})])
def test_the_hospital_decides_the_version_of_the_codes(
    patients: tuple[Patient, ...], icd10: float, version: set[int]
) -> None:
    hospital = replace(patients[0].hospital, profile={**patients[0].hospital.profile, "icd10": icd10})
    codes = [draw_outcomes(replace(patient, hospital=hospital), 5).procedure_code for patient in patients]
    assert {code[2] for code in codes if code is not None} == version
    # The sphincterotomy has a code of version 9 alone.
    assert icd10 == 0.0 or {code[0] for code in codes if code is not None and code[2] == 9} <= {"5185", "5491"}


def test_an_organ_that_is_out_is_not_taken_out_again(patients: tuple[Patient, ...]) -> None:
    without = frozenset({"cholecystectomy_remote"})
    done = [draw_outcomes(p, 5).procedure for p in patients if p.label == "pancreatitis"]
    again = [draw_outcomes(replace(p, past=without), 5).procedure for p in patients if p.label == "pancreatitis"]
    assert "laparoscopic cholecystectomy" in done
    assert "laparoscopic cholecystectomy" not in again and "ERCP with sphincterotomy" in again


def test_cultures_come_at_the_rate_of_the_findings_class(patients: tuple[Patient, ...]) -> None:
    spec = specification()["microbiology"]
    values = {test["test_itemid"]: set(test["values"]) for test in spec["tests"]}
    for name in DIAGNOSES:
        of = [draw_cultures(90_000_001, patient, 5) for patient in patients if patient.image_class == name]
        assert sum(map(bool, of)) / len(of) == pytest.approx(spec["avail"][name], abs=0.12)
        for rows in of:
            assert all(value in values[itemid] for _, itemid, value, _ in rows)


def test_every_finding_that_is_coded_exists() -> None:
    spec = specification()
    assert set(spec["icd_comorbidities"]) <= set(spec["past_history"])
    assert {name for of in spec["procedures"].values() for name in of} - {"none"} == set(spec["procedure_codes"])
    for name in DIAGNOSES:
        assert {version for _, version in spec["icd_titles"][name]} == {9, 10}
        assert sum(spec["procedures"][name].values()) == pytest.approx(1.0)
    for test in spec["microbiology"]["tests"]:
        assert sum(test["values"].values()) == pytest.approx(1.0)
