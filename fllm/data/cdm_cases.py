"""What a case of MIMIC-IV-Ext-CDM holds once its tables are joined."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

DIAGNOSES: tuple[str, ...] = ("appendicitis", "cholecystitis", "diverticulitis", "pancreatitis")
"""The four classes, in the order of every table of this package."""

SYNTHETIC_FIRST_ID = 90_000_000
"""Fabricated cases have identifiers from here on; those of MIMIC-IV lie in :data:`MIMIC_IDS`."""

SYNTHETIC_NOTE = "SYN-"
"""Start of the note id of each fabricated report."""

MIMIC_IDS = range(20_000_000, 30_000_000)
"""Identifiers of admissions of MIMIC-IV."""

PUBLISHED_COUNTS: dict[str, int] = dict(zip(DIAGNOSES, (957, 648, 257, 538), strict=True))
"""Cases of each class in v1.1.

Source: pathology_ids.json of MIMIC-IV-Ext-CDM v1.1, doi 10.13026/2pfq-5b68.
"""


@dataclass(frozen=True)
class LabResult:
    """First value of one laboratory test in an admission.

    Attributes:
        itemid: Test number of MIMIC-IV.
        label: Name of the test.
        fluid: Material, such as ``Blood``.
        value: The value as written.
        number: The leading number of the value, in the unit the value names; None when it is no number.
        lower: Lower limit of the row's own reference range, same unit, or None.
        upper: Upper limit, or None.
    """

    itemid: int
    label: str = field(repr=False)
    fluid: str = field(repr=False)
    value: str = field(repr=False)
    number: float | None = field(repr=False)
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class RadiologyReport:
    """One radiology report without its impression, as the release has it; its ``repr`` shows nothing."""

    note_id: str = field(repr=False)
    modality: str = field(repr=False)
    region: str = field(repr=False)
    exam_name: str = field(repr=False)
    text: str = field(repr=False)


@dataclass(frozen=True)
class Culture:
    """First result of one microbiological test in an admission.

    Attributes:
        test_itemid: Test number of MIMIC-IV.
        test: Name of the test, from the same table as those of the laboratory.
        value: Organisms or comment, as written.
        spec_itemid: Number of the specimen; the release does not name it.
    """

    test_itemid: int
    test: str = field(repr=False)
    value: str = field(repr=False)
    spec_itemid: int


@dataclass(frozen=True)
class Case:
    """One admission; its ``repr`` shows nothing of it.

    Attributes:
        hadm_id: Identifier of the admission.
        diagnosis: One of :data:`DIAGNOSES`.
        history: History of present illness, with past, social and family history in the same text.
        examination: Physical examination.
        labs: Laboratory results, in the order of their file; may be none.
        radiology: Radiology reports, in the order of their file; may be none.
        hospital: Its name, or None where the folder names no hospitals.
        microbiology: Cultures, in the order of their file; may be none.
        age: Age as the history states it [years], or None where that is redacted or absent.
        rank: Position in its class's list of ``pathology_ids.json``, from 0; published splits depend on that order.
    """

    hadm_id: int = field(repr=False)
    diagnosis: str = field(repr=False)
    history: str = field(repr=False)
    examination: str = field(repr=False)
    labs: tuple[LabResult, ...] = field(repr=False)
    radiology: tuple[RadiologyReport, ...] = field(repr=False)
    hospital: str | None = field(repr=False)
    microbiology: tuple[Culture, ...] = field(default=(), repr=False)
    age: int | None = field(default=None, repr=False)
    rank: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Cohort:
    """All cases of one folder.

    Attributes:
        cases: In the order of the history file; of several folders, in the order of their names.
        synthetic: Whether every case is fabricated, by the identifiers of its admission and of its reports.
        hospitals: Sorted names; empty when the folder names no hospitals.
        sha256: Digest over the bytes of all files read, in name order.
        source: Name of the folder, without its path.
        warnings: What a reader of a result must know about the data, one sentence each, without text or identifiers.
    """

    cases: tuple[Case, ...] = field(repr=False)
    synthetic: bool
    hospitals: tuple[str, ...]
    sha256: str
    source: str
    warnings: tuple[str, ...] = ()


def all_fabricated(admissions: Iterable[int], note_ids: Iterable[str]) -> bool:
    """Tell whether a cohort is fabricated: numbers that no release has, and marked reports, of which there are some.

    Numbers alone do not decide, since a hospital may number its admissions as high.
    """
    marked = [note_id.startswith(SYNTHETIC_NOTE) for note_id in note_ids]
    return bool(marked) and all(marked) and all(hadm_id >= SYNTHETIC_FIRST_ID for hadm_id in admissions)
