"""The plain note that a language model reads, and the answer it must write.

The same fields, the same laboratory panel and the same study order serve every case, whatever its label: the reference
code of the release chooses the panel by the true class, which tells the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from device_models.errors import InputError, nearest
from fllm.data.cdm import DIAGNOSES, Case, LabResult, RadiologyReport

FIELDS: tuple[str, ...] = ("history", "examination", "labs", "imaging")
"""What a note may show, in its order."""

PANEL: dict[str, tuple[int, ...]] = {
    "wbc": (51301, 51755, 51300),
    "neutrophils": (51256,),
    "alt": (50861,),
    "ast": (50878,),
    "alk phos": (50863,),
    "bilirubin": (50885, 50883),
    "lipase": (50956,),
    "amylase": (50867,),
    "crp": (50889, 51652),
    "lactate": (50813,),
}
"""The fixed panel: short name -> itemids, the first one measured counts."""

VERY_HIGH = 3.0
"""Multiple of the upper limit from which a value is called very high [1]; the enzyme criterion of pancreatitis."""

_STUDIES = {"CT": "ct", "MRCP": "mrcp", "Ultrasound": "us", "Radiograph": "radiograph", "MRI": "mri", "CTU": "ctu"}
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 /&,()'-]{2,60}):[ \t]*", re.MULTILINE)
_NOT_FINDINGS = (
    "EXAM", "TECHNIQUE", "DOSE", "PROCEDURE", "INDICATION", "HISTORY", "CLINICAL", "MEDICAL HISTORY", "COMPARISON",
    "REASON", "IMPRESSION", "CONCLUSION", "COMMENT", "RECOMMENDATION", "NOTIFICATION", "REFERENCE", "DATE", "OPERATORS",
    "CONTRAST", "FINAL REPORT", "STUDY",
)  # fmt: skip
_LEAKS = ("discharge", "procedure", "icd", "diagnos", "label", "patholog")


def answer(diagnosis: str) -> str:
    """Return the text that follows a note: a blank and the name of the diagnosis.

    Raises:
        InputError: If the diagnosis is none of the four.
    """
    if diagnosis not in DIAGNOSES:
        raise InputError("unknown diagnosis", expected=", ".join(DIAGNOSES), remedy=nearest(diagnosis, DIAGNOSES))
    return f" {diagnosis}"


def build_note(case: Case, fields: Sequence[str] = FIELDS) -> str:
    """Write a case as one line per field, ending in ``diagnosis:``.

    Raises:
        InputError: If a field is unknown or would tell the answer.
    """
    lines = [f"{name}: {text}" for name, text in note_sections(case, fields)]
    return "\n".join([*lines, "diagnosis:"])


def note_sections(case: Case, fields: Sequence[str] = FIELDS) -> list[tuple[str, str]]:
    """Return name and text of each field that has any content, in the order asked for.

    Raises:
        InputError: If a field is unknown or would tell the answer.
    """
    check_fields(fields)
    writers = {
        "history": ("history", lambda: plain(case.history)),
        "examination": ("exam", lambda: plain(case.examination)),
        "labs": ("labs", lambda: labs_text(case.labs)),
        "imaging": ("imaging", lambda: imaging_text(case.radiology)),
    }
    sections = [(writers[name][0], writers[name][1]()) for name in fields]
    return [(name, text) for name, text in sections if text]


def check_fields(fields: Sequence[str]) -> None:
    """Check the names of the fields of a note.

    Raises:
        InputError: If a field is unknown, stands twice or would tell the answer, or if there is none.
    """
    if not fields:
        raise InputError("no fields", expected="one or more of " + ", ".join(FIELDS))
    for name in fields:
        if name in FIELDS:
            continue
        if any(stem in name.lower() for stem in _LEAKS):
            raise InputError(
                f"field {name!r} leaks the answer",
                expected=", ".join(FIELDS),
                remedy="outcomes are never shown to a model",
            )
        raise InputError(f"unknown field {name!r}", expected=", ".join(FIELDS), remedy=nearest(name, FIELDS))
    if len(set(fields)) < len(fields):
        raise InputError("a field stands twice", expected=", ".join(FIELDS), received=",".join(fields))


def plain(text: str) -> str:
    """Lower the case, collapse white space, and replace each run of underscores by one."""
    return " ".join(re.sub(r"_+", "_", text).lower().split())


def grade(result: LabResult) -> str | None:
    """Grade a value against its own row's reference range: low, normal, high, or very high from 3 x the upper limit.

    Returns:
        The grade, or None when the value is no number or a limit is missing.
    """
    if result.number is None or result.lower is None or result.upper is None:
        return None
    if result.number < result.lower:
        return "low"
    if result.number <= result.upper:
        return "normal"
    return "very high" if result.number >= VERY_HIGH * result.upper else "high"


def labs_text(labs: Sequence[LabResult]) -> str:
    """Write the fixed panel; tests that were not measured or cannot be graded are left out."""
    grades = {result.itemid: grade(result) for result in labs}
    parts = []
    for name, itemids in PANEL.items():
        found = next((grades[itemid] for itemid in itemids if grades.get(itemid)), None)
        if found is not None:
            parts.append(f"{name} {found}")
    return ", ".join(parts)


def imaging_text(reports: Sequence[RadiologyReport]) -> str:
    """Write the findings of the diagnostic studies of the abdomen: CT, MRCP, ultrasound, radiograph, then the rest.

    Interventional modalities (ERCP, drainage) are left out, as they name the treatment.
    """
    order = list(_STUDIES)
    shown = [report for report in reports if report.region == "Abdomen" and report.modality in _STUDIES]
    shown.sort(key=lambda report: order.index(report.modality))
    found = [(report.modality, findings(report.text)) for report in shown]
    return " ".join(f"{_STUDIES[modality]} abdomen: {text}" for modality, text in found if text)


def findings(report: str) -> str:
    """Return the findings of a report in plain form.

    They start at the heading ``FINDINGS``, or at the beginning when there is none; sections that are no findings, such
    as the technique, are dropped, and headings of organs stay in the text.
    """
    marks = list(_HEADING.finditer(report))
    names = [mark.group(1) for mark in marks]
    first = next((i for i, name in enumerate(names) if name.startswith("FINDINGS")), None)
    kept = [] if first is not None or not marks else [report[: marks[0].start()]]
    if not marks:
        kept = [report]
    for i, mark in enumerate(marks):
        end = marks[i + 1].start() if i + 1 < len(marks) else len(report)
        if (first is not None and i < first) or names[i].startswith(_NOT_FINDINGS):
            continue
        kept.append(report[mark.end() if i == first else mark.start() : end])
    return plain(" ".join(kept))
