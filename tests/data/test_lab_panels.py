from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fllm.data import DIAGNOSES, Cohort, LabResult, load_cohort, note_sections
from fllm.data.lab_panels import FULL_PANEL, PANEL, URINALYSIS, Panel, grade, labs_text
from fllm.data.prompts import Cues
from fllm.data.synthetic_spec import specification


def _lab(value: float | None, lower: float | None = 10.0, upper: float | None = 60.0, itemid: int = 50956) -> LabResult:
    return LabResult(itemid, "Lipase", "Blood", str(value), value, lower, upper)


def _urine(itemid: int, value: str, number: float | None = None, upper: float | None = None) -> LabResult:
    return LabResult(itemid, "", "Urine", value, number, None if upper is None else 0.0, upper)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(9.9, "low"), (10.0, "normal"), (60.0, "normal"), (60.1, "high"), (179.9, "high"), (180.0, "very high")],
)
def test_grades_at_their_limits(value: float, expected: str) -> None:
    assert grade(_lab(value)) == expected


def test_values_without_number_or_range_have_no_grade() -> None:
    assert grade(_lab(None)) is None
    assert grade(_lab(5.0, lower=None)) is None
    assert grade(_lab(5.0, upper=None)) is None


def test_an_alternate_itemid_stands_in_when_the_first_cannot_be_graded(release: Path) -> None:
    case = load_cohort(release).cases[0]
    labs = (_lab(None, itemid=51301), _lab(61.0, itemid=51300))
    assert dict(note_sections(replace(case, labs=labs), ("labs",))) == {"labs": "wbc high"}


def test_the_panels_are_those_of_the_specification() -> None:
    """34 tests of the blood and ten of the urine, none twice; the short panel is a part of the full one."""
    itemids = [itemid for ids in (*FULL_PANEL.values(), *URINALYSIS.values()) for itemid in ids]
    assert len(itemids) == len(set(itemids)) and (len(FULL_PANEL), len(URINALYSIS), len(PANEL)) == (34, 10, 10)
    assert PANEL.items() <= FULL_PANEL.items()
    blood = {test["itemid"] for test in specification()["labs"]}
    firsts = {ids[0] for ids in FULL_PANEL.values()}
    assert firsts <= blood
    assert {ids[0] for ids in URINALYSIS.values()} == {
        test["itemid"] for test in specification()["urinalysis"]["items"]
    }


@pytest.mark.parametrize(("panel", "names"), [("short", PANEL), ("full", FULL_PANEL)])
def test_a_panel_does_not_depend_on_the_label(cohort: Cohort, panel: Panel, names: dict[str, tuple[int, ...]]) -> None:
    known = {i for itemids in names.values() for i in itemids}
    for diagnosis in DIAGNOSES:
        shown: set[str] = set()
        for case in (case for case in cohort.cases if case.diagnosis == diagnosis):
            entries = dict(note_sections(case, ("labs",), Cues(panel=panel))).get("labs", "").split(", ")
            blood = [entry for entry in entries if entry and not entry.startswith("urine")]
            found = [max((name for name in names if entry.startswith(name + " ")), key=len) for entry in blood]
            assert found == [name for name in names if name in found]
            measured = {lab.itemid for lab in case.labs} & known
            assert len(found) == len({name for name, ids in names.items() if measured & set(ids)})
            shown |= set(found)
        assert shown == set(names)


def test_the_urine_is_told_in_words_when_it_is_abnormal() -> None:
    labs = [
        _urine(51508, "DkAmb"),  # no word of the closed list
        _urine(51506, "Hazy"),
        _urine(51498, "1.020", 1.020),  # without a range nobody knows whether this is normal
        _urine(51487, "POS"),
        _urine(51985, "mod."),  # an alternate
        _urine(51484, "40 mg/dL", 40.0),
        _urine(51478, "0.0 mg/dL", 0.0),
        _urine(51464, "NEG"),
        _urine(51492, "HOLD. Mr. Zebrafish called."),
    ]
    assert labs_text(labs, "full") == (
        "urine appearance hazy, urine nitrite positive, urine leukocytes moderate, urine ketone present"
    )
    assert labs_text(labs) == ""


def test_a_normal_urine_is_told_from_one_that_was_not_taken() -> None:
    assert labs_text([_urine(51487, "NEG"), _urine(51508, "Straw")], "full") == "urine normal"
    assert labs_text([_urine(51492, "see comment")], "full") == ""
    assert labs_text([_urine(51491, "9.0 units", 9.0, upper=8.0)], "full") == "urine ph high"
    assert labs_text([_lab(5.0), _urine(51487, "NEG")], "full") == "lipase low, urine normal"
