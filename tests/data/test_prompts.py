from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from device_models.errors import InputError
from fllm.data import DIAGNOSES, FIELDS, Cohort, RadiologyReport, answer, build_note, load_cohort, note_sections
from fllm.data.cdm_files import COLUMNS, OUTCOMES
from fllm.data.corpus import note_text
from fllm.data.prompts import (
    DIAGNOSIS,
    Cues,
    check_fields,
    diagnosis_corpus,
    findings,
    imaging_text,
    plain,
)

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


def test_the_mask_of_a_disease_can_be_told_from_that_of_a_person() -> None:
    text = "Dr. ___ saw ____ in ______."
    assert plain(text) == "dr. _ saw _ in _."
    assert plain(text, keep_mask=True) == "dr. _ saw ____ in ____."


MASKED = """EXAMINATION:
CT of ____

FINDINGS:
Dr. ___ was told. Findings compatible with
____ of 4.5 cm. No free air.

APPENDIX:
dilated ____

LIVER: normal
"""


def test_sentences_with_a_mask_can_be_dropped() -> None:
    """A sentence ends at a full stop, an empty line or before a heading, not where a line is wrapped."""
    assert findings(MASKED, Cues(mask="drop_sentence")) == "dr. _ was told. no free air. liver: normal"
    kept = "dr. _ was told. findings compatible with ____ of 4.5 cm. no free air. appendix: dilated ____ liver: normal"
    assert findings(MASKED, Cues(mask="keep")) == kept
    assert findings(MASKED) == kept.replace("____", "_")


def test_masks_are_looked_for_in_examination_and_imaging(cohort: Cohort) -> None:
    case = dataclasses.replace(
        cohort.cases[0],
        history="Seen for ____. Well.",
        examination="Abd: known ____\nstill. Soft.\nRectal: ____\nExt: warm",
        radiology=(RadiologyReport("n", "CT", "Abdomen", "CT ____", "FINDINGS: Signs of ____. Else fine."),),
    )
    fields = ("history", "examination", "imaging")
    texts = {mask: dict(note_sections(case, fields, Cues(mask=mask))) for mask in ("keep", "neutral", "drop_sentence")}
    assert texts["keep"] == {
        "history": "seen for _. well.", "exam": "abd: known ____ still. soft. rectal: ____ ext: warm",
        "imaging": "ct abdomen: signs of ____. else fine.",
    }  # fmt: skip
    assert texts["neutral"] == {name: text.replace("____", "_") for name, text in texts["keep"].items()}
    assert texts["drop_sentence"] == {
        "history": "seen for _. well.", "exam": "soft. ext: warm", "imaging": "ct abdomen: else fine."
    }  # fmt: skip


def test_studies_are_named_as_asked_for() -> None:
    reports = [
        RadiologyReport("n", "Ultrasound", "Abdomen", "LIVER OR GALLBLADDER US ", "FINDINGS: Stones."),
        RadiologyReport("n", "CT", "Abdomen", "", "FINDINGS: Clear."),
    ]
    assert imaging_text(reports) == "ct abdomen: clear. us abdomen: stones."
    assert imaging_text(reports, Cues(studies="hidden")) == "study: clear. study: stones."
    named = "ct abdomen: clear. us abdomen (liver or gallbladder us): stones."
    assert imaging_text(reports, Cues(studies="exam_name")) == named


def test_names_of_diseases_can_be_made_neutral_everywhere(cohort: Cohort) -> None:
    case = dataclasses.replace(
        cohort.cases[0],
        history="Prior Pancreatitis.",
        examination="No cholecystitis.",
        radiology=(RadiologyReport("n", "CT", "Abdomen", "CT", "FINDINGS: No DIVERTICULITIS, no ____."),),
    )
    note = build_note(case, ("history", "examination", "imaging"), Cues(mentions="neutral"))
    assert note == "history: prior _.\nexam: no _.\nimaging: ct abdomen: no _, no _.\ndiagnosis:"
    assert "pancreatitis" in build_note(case) and "diverticulitis" in build_note(case)


def test_every_setting_of_the_switches_gives_a_plain_note(cohort: Cohort) -> None:
    positions = itertools.product(
        ("keep", "neutral", "drop_sentence"),
        ("exam_name", "modality", "hidden"),
        ("keep", "neutral"),
        ("short", "full"),
    )
    for cues in (Cues(*position) for position in positions):
        for case in cohort.cases[:10]:
            note = build_note(case, cues=cues)
            assert note == note.lower() and "  " not in note and note.endswith("\ndiagnosis:")
            assert case.diagnosis not in note.removesuffix("diagnosis:")


@pytest.mark.parametrize("name", ["mask", "studies", "mentions", "panel"])
def test_unknown_positions_are_refused(name: str) -> None:
    settings: dict[str, Any] = {name: "upside down"}
    with pytest.raises(InputError, match=f"cues.{name}: unknown position of a switch.*'upside down'"):
        Cues(**settings)


@pytest.mark.parametrize("cues", [Cues(), Cues("drop_sentence", "exam_name", "neutral", "full")])
def test_a_corpus_holds_the_notes(cohort: Cohort, cues: Cues) -> None:
    some = dataclasses.replace(cohort, cases=cohort.cases[:50], warnings=("take care",))
    corpus = diagnosis_corpus(some, ("labs", "imaging"), cues)
    assert corpus.task == DIAGNOSIS and corpus.task.classes == DIAGNOSES
    assert (corpus.synthetic, corpus.sha256, corpus.source) == (some.synthetic, some.sha256, some.source)
    assert corpus.warnings == ("take care",) and set(corpus.groups) <= set(some.hospitals)
    for case, example in zip(some.cases, corpus.examples, strict=True):
        assert note_text(example.sections, corpus.task) == build_note(case, ("labs", "imaging"), cues)
        assert (example.key, example.group) == (case.hadm_id, case.hospital)
        assert (example.age, example.rank, example.part) == (case.age, case.rank, None)
        assert DIAGNOSES[example.label or 0] == case.diagnosis
    assert any(example.age is not None for example in corpus.examples)


def _outcome_names() -> list[str]:
    """Return names of outcome tables and of their columns, and of the file of labels, in all spellings."""
    columns = {column for name in OUTCOMES for column in COLUMNS[name]} - {"hadm_id"}
    names = {*OUTCOMES, *(name.removesuffix(".csv") for name in OUTCOMES), *columns, "pathology_ids.json", "label"}
    names |= {name + "s" for name in columns}
    names |= {name.replace("_", " ") for name in names}
    return sorted({spelling for name in names for spelling in (name, name.upper(), name.title())})


@pytest.mark.parametrize("name", _outcome_names())
def test_outcomes_cannot_be_selected(name: str) -> None:
    for fields in ((name,), ("history", name)):
        with pytest.raises(InputError, match="leaks the answer"):
            check_fields(fields)


@pytest.mark.parametrize("name", sorted({column for columns in COLUMNS.values() for column in columns} | set(COLUMNS)))
def test_no_name_of_the_files_is_a_field(name: str) -> None:
    with pytest.raises(InputError, match=r"leaks the answer|unknown field"):
        check_fields((name,))


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
        (("outcome",), "leaks the answer"),
        (("Treatment",), "leaks the answer"),
        (("impression",), "leaks the answer"),
    ],
)
def test_wrong_fields_are_refused(cohort: Cohort, fields: tuple[str, ...], pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as caught:
        build_note(cohort.cases[0], fields)
    assert "\n" not in str(caught.value)
