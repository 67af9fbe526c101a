"""The plain note that a language model reads, and the answer it must write.

The same fields, the same laboratory panel and the same study order serve every case, whatever its label: the reference
code of the release chooses the panel by the true class, which tells the answer. Outcomes (discharge diagnosis,
procedures, ICD codes) cannot be selected.

What a note still tells without describing the disease, and which switch of :class:`Cues` or token budget
(:mod:`fllm.data.budget`) takes it away:

- the mask of the own disease, ``____``: ``mask``;
- names of *other* diseases, which the own one never has (the release drops or masks it): ``mentions``;
- which studies were done: ``studies="hidden"`` hides their names. Their number stays, and so do words in a report that
  only one modality uses;
- the length of the history: a budget for the field ``history``;
- which tests were measured: nothing takes it away. The panel is fixed, but a test that nobody ordered has no value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from device_models.errors import InputError, nearest
from fllm.data.cdm import DIAGNOSES, Case, Cohort, RadiologyReport
from fllm.data.corpus import Corpus, Example, Task, answer_text, note_text
from fllm.data.lab_panels import Panel, labs_text

FIELDS: tuple[str, ...] = ("history", "examination", "labs", "imaging")
"""What a note may show, in its order."""

DIAGNOSIS = Task("diagnosis", DIAGNOSES, "diagnosis:")
"""The task that a note ends in."""

_SECTIONS = {"history": "history", "examination": "exam", "labs": "labs", "imaging": "imaging"}
_STUDIES = {"CT": "ct", "MRCP": "mrcp", "Ultrasound": "us", "Radiograph": "radiograph", "MRI": "mri", "CTU": "ctu"}
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 /&,()'-]{2,60}):[ \t]*", re.MULTILINE)
_NOT_FINDINGS = (
    "EXAM", "TECHNIQUE", "DOSE", "PROCEDURE", "INDICATION", "HISTORY", "CLINICAL", "MEDICAL HISTORY", "COMPARISON",
    "REASON", "IMPRESSION", "CONCLUSION", "COMMENT", "RECOMMENDATION", "NOTIFICATION", "REFERENCE", "DATE", "OPERATORS",
    "CONTRAST", "FINAL REPORT", "STUDY",
)  # fmt: skip
_LEAKS = ("discharge", "procedure", "icd", "diagnos", "label", "patholog", "outcome", "treatment", "impression")
# Lines of a report are wrapped, so a line break alone ends no sentence
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n[ \t]*\n|\n(?=[ \t]*[A-Z][A-Za-z0-9 /&,()'-]{1,60}:)")
_MASK = re.compile(r"_{4,}")
_NAMES = re.compile("|".join(DIAGNOSES), re.IGNORECASE)


Mask = Literal["keep", "neutral", "drop_sentence"]
Studies = Literal["exam_name", "modality", "hidden"]
Mentions = Literal["keep", "neutral"]


@dataclass(frozen=True)
class Cues:
    """Switches against what tells the diagnosis without describing it, and the laboratory panel.

    Attributes:
        mask: The release masks a case's own disease by four underscores in examination and radiology, and what
            identifies a person by three. ``neutral`` writes both as one underscore; ``keep`` leaves the mask of the
            disease as it is; ``drop_sentence`` removes the sentences with a mask of four or more.
        studies: ``modality`` names a study as in ``ct abdomen: ...``; ``exam_name`` adds the name of the examination;
            ``hidden`` writes ``study: ...``.
        mentions: ``neutral`` writes the names of the four diseases as one underscore, wherever they stand; ``keep``
            leaves them.
        panel: ``short`` is ten tests of the blood, ``full`` is 34 and the urinalysis.

    Raises:
        InputError: If a switch has no such position.
    """

    mask: Mask = "neutral"
    studies: Studies = "modality"
    mentions: Mentions = "keep"
    panel: Panel = "short"

    def __post_init__(self) -> None:
        for name, kind in {"mask": Mask, "studies": Studies, "mentions": Mentions, "panel": Panel}.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    "unknown position of a switch",
                    where=f"cues.{name}",
                    expected=", ".join(get_args(kind)),
                    received=getattr(self, name),
                )


DEFAULT_CUES = Cues()
"""The default: masks are neutral, studies go by their modality."""


def answer(diagnosis: str) -> str:
    """Return the text that follows a note: a blank and the name of the diagnosis.

    Raises:
        InputError: If the diagnosis is none of the four.
    """
    if diagnosis not in DIAGNOSES:
        raise InputError("unknown diagnosis", expected=", ".join(DIAGNOSES), remedy=nearest(diagnosis, DIAGNOSES))
    return answer_text(diagnosis)


def diagnosis_corpus(cohort: Cohort, fields: Sequence[str] = FIELDS, cues: Cues = DEFAULT_CUES) -> Corpus:
    """Write every case of a cohort as an example: its note in sections, its diagnosis as a label.

    Raises:
        InputError: If a field is unknown or would tell the answer.
    """
    examples = tuple(
        Example(
            key=case.hadm_id,
            sections=tuple(note_sections(case, fields, cues)),
            label=DIAGNOSES.index(case.diagnosis),
            group=case.hospital,
            age=case.age,
            rank=case.rank,
        )
        for case in cohort.cases
    )
    return Corpus(DIAGNOSIS, examples, cohort.synthetic, cohort.sha256, cohort.source, cohort.warnings)


def build_note(case: Case, fields: Sequence[str] = FIELDS, cues: Cues = DEFAULT_CUES) -> str:
    """Write a case as one line per field, ending in ``diagnosis:``.

    Raises:
        InputError: If a field is unknown or would tell the answer.
    """
    return note_text(tuple(note_sections(case, fields, cues)), DIAGNOSIS)


def note_sections(case: Case, fields: Sequence[str] = FIELDS, cues: Cues = DEFAULT_CUES) -> list[tuple[str, str]]:
    """Return name and text of each field that has any content, in the order asked for.

    Raises:
        InputError: If a field is unknown or would tell the answer.
    """
    check_fields(fields)
    writers = {
        # A history holds no masks of diseases: cases whose history names the own one are not in the release
        "history": lambda: _shown(case.history, replace(cues, mask="neutral")),
        "examination": lambda: _shown(case.examination, cues),
        "labs": lambda: labs_text(case.labs, cues.panel),
        "imaging": lambda: imaging_text(case.radiology, cues),
    }
    sections = [(_SECTIONS[name], writers[name]()) for name in fields]
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


def plain(text: str, *, keep_mask: bool = False) -> str:
    """Lower the case, collapse white space, and replace each run of underscores by one.

    Args:
        text: Any text.
        keep_mask: Write runs of four or more, the masks of diseases, as four.
    """
    runs = re.sub(r"_+", lambda run: "____" if keep_mask and _MASK.match(run.group()) else "_", text)
    return " ".join(runs.lower().split())


def _shown(text: str, cues: Cues) -> str:
    if cues.mask == "drop_sentence":
        text = "\n".join(sentence for sentence in _SENTENCE_END.split(text) if not _MASK.search(sentence))
    if cues.mentions == "neutral":
        text = _NAMES.sub("_", text)
    return plain(text, keep_mask=cues.mask == "keep")


def imaging_text(reports: Sequence[RadiologyReport], cues: Cues = DEFAULT_CUES) -> str:
    """Write the findings of the diagnostic studies of the abdomen: CT, MRCP, ultrasound, radiograph, then the rest.

    Interventional modalities (ERCP, drainage) are left out, as they name the treatment.
    """
    order = list(_STUDIES)
    shown = [report for report in reports if report.region == "Abdomen" and report.modality in _STUDIES]
    shown.sort(key=lambda report: order.index(report.modality))
    found = [(_study(report, cues), findings(report.text, cues)) for report in shown]
    return " ".join(f"{study}: {text}" for study, text in found if text)


def _study(report: RadiologyReport, cues: Cues) -> str:
    if cues.studies == "hidden":
        return "study"
    exam_name = _shown(report.exam_name, cues) if cues.studies == "exam_name" else ""
    return f"{_STUDIES[report.modality]} abdomen" + (f" ({exam_name})" if exam_name else "")


def findings(report: str, cues: Cues = DEFAULT_CUES) -> str:
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
    return " ".join(text for text in (_shown(part, cues) for part in kept) if text)
