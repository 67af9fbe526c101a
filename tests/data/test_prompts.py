from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from device_models.errors import InputError
from fllm.data import DIAGNOSES, FIELDS, Cohort, LabResult, answer, build_note, load_cohort, note_sections
from fllm.data.prompts import PANEL, findings, grade, plain

SECRET = "zebrafish"  # that of conftest.small_release


def test_a_note_of_the_small_release_in_full(release: Path) -> None:
    case = load_cohort(release).cases[0]
    assert build_note(case) == (
        f'history: _ is a _ year old with {SECRET}, "quoted" pain\n'
        f"exam: abd: soft, {SECRET} ext: warm\n"
        "labs: wbc high, lipase very high\n"
        f'imaging: ct abdomen: liver: normal. appendix: _ , "quoted" us abdomen: sonogram {SECRET}.\n'
        "diagnosis:"
    )


def test_fields_without_content_are_left_out(release: Path) -> None:
    case = load_cohort(release).cases[3]
    assert [name for name, _ in note_sections(case, FIELDS)] == ["history", "exam"]
    assert build_note(case, ("labs",)) == "diagnosis:"


def test_fields_come_in_the_order_asked_for(cohort: Cohort) -> None:
    sections = note_sections(cohort.cases[0], ("labs", "history"))
    assert [name for name, _ in sections] == ["labs", "history"]


def test_every_note_is_plain_and_ends_before_the_answer(cohort: Cohort) -> None:
    for case in cohort.cases:
        note = build_note(case)
        assert note == note.lower()
        assert note.endswith("\ndiagnosis:") and note.count("diagnosis:") == 1
        assert "__" not in note and "  " not in note
        assert case.diagnosis not in note
        assert str(case.hadm_id) not in note and "syn-" not in note


def test_outcomes_and_exam_names_never_enter(cohort: Cohort) -> None:
    case = dataclasses.replace(cohort.cases[0], diagnosis="pancreatitis", hospital="elsewhere", hadm_id=1)
    assert build_note(case) == build_note(cohort.cases[0])
    for case in cohort.cases[:200]:
        note = build_note(case)
        assert not any(report.exam_name.lower() in note for report in case.radiology)
        assert "mdct" not in note and "examination" not in note and "chest:" not in note


def test_the_panel_does_not_depend_on_the_label(cohort: Cohort) -> None:
    known = {i for itemids in PANEL.values() for i in itemids}
    for diagnosis in DIAGNOSES:
        shown: set[str] = set()
        for case in (case for case in cohort.cases if case.diagnosis == diagnosis):
            entries = dict(note_sections(case, ("labs",))).get("labs", "").split(", ")
            names = [next(name for name in PANEL if entry.startswith(name + " ")) for entry in entries if entry]
            assert names == [name for name in PANEL if name in names]
            measured = {lab.itemid for lab in case.labs} & known
            assert len(names) == len({name for name, ids in PANEL.items() if measured & set(ids)})
            shown |= set(names)
        assert shown == set(PANEL)


def _lab(value: float | None, lower: float | None = 10.0, upper: float | None = 60.0, itemid: int = 50956) -> LabResult:
    return LabResult(itemid, "Lipase", "Blood", str(value), value, lower, upper)


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
    assert dict(note_sections(dataclasses.replace(case, labs=labs), ("labs",))) == {"labs": "wbc high"}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("FINDINGS:\nLiver ok.\n\n", "liver ok."),
        ("EXAMINATION:\nCT\n\nFINDINGS:\nOk.\n\nIMPRESSION:\nsecret\n\n", "ok."),
        (
            "TECHNIQUE:\nfast\n\nCT ABDOMEN:\nSpleen ok.\n\nCT PELVIS:\nfine\n\n",
            "ct abdomen: spleen ok. ct pelvis: fine",
        ),
        ("just words", "just words"),
        ("Preamble.\nTECHNIQUE: fast\nLUNGS: clear", "preamble. lungs: clear"),
        ("IMPRESSION:\nsecret", ""),
        ("", ""),
    ],
)
def test_only_findings_are_kept(report: str, expected: str) -> None:
    assert findings(report) == expected


def test_plain_text() -> None:
    assert plain("  Mr. ___ has\n\tPAIN ____. ") == "mr. _ has pain _."


def test_the_answer_follows_after_a_blank() -> None:
    assert [answer(name) for name in DIAGNOSES] == [f" {name}" for name in DIAGNOSES]
    with pytest.raises(InputError, match="did you mean pancreatitis"):
        answer("pancreatits")


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ((), "no fields"),
        (("histroy",), "unknown field 'histroy'.*did you mean history"),
        (("history", "history"), "stands twice"),
        (("discharge_diagnosis",), "leaks the answer"),
        (("procedures",), "leaks the answer"),
        (("history", "ICD"), "leaks the answer"),
        (("discharge diagnosis",), "leaks the answer"),
    ],
)
def test_wrong_fields_are_refused(cohort: Cohort, fields: tuple[str, ...], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        build_note(cohort.cases[0], fields)
    assert "\n" not in str(caught.value)
