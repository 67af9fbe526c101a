"""Cohorts in the layout of MIMIC-IV-Ext-CDM v1.1, real or fabricated, as the emulator's federations read them.

Every table of the layout must be there. The outcome tables (discharge diagnosis, procedures, ICD codes) are looked for
but never opened: they name the answer or its treatment.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from device_models.errors import InputError
from fllm.data.cdm_age import age_of
from fllm.data.cdm_cases import (
    DIAGNOSES,
    MIMIC_IDS,
    PUBLISHED_COUNTS,
    SYNTHETIC_FIRST_ID,
    SYNTHETIC_NOTE,
    Case,
    Cohort,
    Culture,
    LabResult,
    RadiologyReport,
    all_fabricated,
)
from fllm.data.cdm_counts import count_text, number_of, share_text
from fllm.data.cdm_files import COLUMNS, HISTORY, HOSPITALS, LABELS, LABS, MICROBIOLOGY, RADIOLOGY, CohortFiles
from fllm.data.cdm_numbers import leading_number
from fllm.data.cdm_tables import (
    LONGEST_HOSPITAL,
    cultures,
    diagnoses,
    examinations,
    hospital_names,
    is_hospital_name,
    item_names,
    lab_results,
    reports,
    require,
    texts,
)

__all__ = [
    "DIAGNOSES", "SYNTHETIC_FIRST_ID", "Case", "Cohort", "Culture", "LabResult", "RadiologyReport", "client_folders",
    "leading_number", "load_cohort", "names_itself",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Read:
    """What one folder gave."""

    cases: tuple[Case, ...] = field(repr=False)
    sha256: str
    strangers: Counter[str]
    repeated: int
    unused: tuple[str, ...] = ()


def load_cohort(folder: str | Path) -> Cohort:
    """Read a folder in the layout of MIMIC-IV-Ext-CDM v1.1, or a folder of such folders, one for each hospital.

    The admissions are those of the history file; rows of the other files join to them. Laboratory, microbiology and
    radiology rows may be absent for a case, its examination and its label may not. Microbiology and the outcome tables
    may hold their header alone.

    Raises:
        InputError: If a file is absent, unreadable or contradicts the layout, if a case has no single label, stands in
            two folders, or if fabricated cases are mixed with others.
    """
    path = Path(folder)
    clients = client_folders(path)
    if clients:
        parts = {client.name: _read(CohortFiles(client, inside=f"{client.name}/")) for client in clients}
        read = _joined(parts)
    else:
        read = _read(CohortFiles(path))
    synthetic = _synthetic(read.cases)
    return Cohort(
        cases=read.cases,
        synthetic=synthetic,
        hospitals=tuple(sorted({case.hospital for case in read.cases if case.hospital is not None})),
        sha256=read.sha256,
        source=path.resolve().name,
        warnings=tuple(_warnings(read, synthetic)),
    )


def client_folders(folder: Path) -> list[Path]:
    """Return the folders of the hospitals in name order, or nothing for a folder that is a cohort itself.

    Raises:
        InputError: If some folders inside hold the layout and others do not, or a single one does, or if a name is too
            long for a report.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in (*COLUMNS, LABELS)):
        return []
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    holding = [path for path in inside if (path / HISTORY).is_file()]
    if len(holding) == 1 == len(inside):
        raise InputError("file missing", where=HISTORY, remedy=f"name the folder {inside[0].name}/ inside this one")
    if holding and len(holding) < len(inside):
        other = next(path for path in inside if path not in holding)
        raise InputError(
            "file missing", where=f"{other.name}/{HISTORY}", expected="one hospital's tables in each folder inside"
        )
    if not all(is_hospital_name(path.name) for path in holding):
        expected = f"printable names of at most {LONGEST_HOSPITAL} characters"
        raise InputError("a hospital's folder has no fit name", where=str(folder), expected=expected)
    return holding


def _read(files: CohortFiles) -> _Read:
    _require_files(files)
    histories = texts(files, HISTORY)
    examined = examinations(files, histories)
    names = item_names(files)
    labs = lab_results(files, histories, names)
    radiology = reports(files, histories)
    microbiology = cultures(files, histories, names)
    labels = diagnoses(files)
    require(labels, histories, files.shown(LABELS), "no label")
    hospitals = hospital_names(files) if files.has(HOSPITALS) else None
    if hospitals is not None:
        require(hospitals, histories, files.shown(HOSPITALS), "no hospital")
    cases = tuple(
        Case(
            hadm_id=hadm_id,
            diagnosis=labels[hadm_id][0],
            history=history,
            examination=examined[hadm_id],
            labs=tuple(labs.of.get(hadm_id, ())),
            radiology=tuple(radiology.of.get(hadm_id, ())),
            hospital=hospitals[hadm_id] if hospitals is not None else None,
            microbiology=tuple(microbiology.of.get(hadm_id, ())),
            age=age_of(history),
            rank=labels[hadm_id][1],
        )
        for hadm_id, history in histories.items()
    )
    strangers = Counter({LABS: labs.strangers, RADIOLOGY: radiology.strangers, MICROBIOLOGY: microbiology.strangers})
    strangers[LABELS] = sum(hadm_id not in histories for hadm_id in labels)
    return _Read(cases, files.sha256(), strangers, labs.repeated)


def _require_files(files: CohortFiles) -> None:
    """Check that all tables are there, also those that are never opened: an incomplete download is the likely cause."""
    missing = [name for name in (*COLUMNS, LABELS) if not files.has(name)]
    if len(missing) == 1:
        raise files.missing(missing[0])
    if missing:
        raise InputError(
            "files missing", where=", ".join(map(files.shown, missing)), remedy="name the folder that holds them all"
        )


def _joined(parts: dict[str, _Read]) -> _Read:
    """Join the hospitals; a case's hospital is the name of its folder."""
    cases: list[Case] = []
    before: Counter[str] = Counter()
    folder_of: dict[int, str] = {}
    for name, part in parts.items():
        for case in part.cases:
            if case.hadm_id in folder_of:
                raise InputError(
                    "an admission stands in two folders, so it could be trained and tested on",
                    where=f"{folder_of[case.hadm_id]}/ and {name}/", expected="each admission in one of them",
                )  # fmt: skip
            folder_of[case.hadm_id] = name
            cases.append(replace(case, hospital=name, rank=case.rank + before[case.diagnosis]))
        for label in DIAGNOSES:
            before[label] += 1 + max((case.rank for case in part.cases if case.diagnosis == label), default=-1)
    digest = hashlib.sha256("".join(f"{name}/{part.sha256}\n" for name, part in parts.items()).encode())
    strangers = sum((part.strangers for part in parts.values()), Counter())
    unused = tuple(name for name, part in parts.items() if any(case.hospital is not None for case in part.cases))
    return _Read(tuple(cases), digest.hexdigest(), strangers, sum(part.repeated for part in parts.values()), unused)


def _synthetic(cases: Sequence[Case]) -> bool:
    """Tell whether all cases are fabricated; raises InputError when only some are."""
    notes = [report.note_id for case in cases for report in case.radiology]
    if all_fabricated((case.hadm_id for case in cases), notes):
        return True
    if any(note_id.startswith(SYNTHETIC_NOTE) for note_id in notes):
        raise InputError(
            "fabricated cases are mixed with others",
            where=HISTORY, expected="either only fabricated cases or none", remedy="keep them in folders of their own",
        )  # fmt: skip
    return False


def names_itself(text: str, diagnosis: str) -> bool:
    """Tell whether a text names the diagnosis that it must not tell."""
    return diagnosis in text.lower()


def _warnings(read: _Read, synthetic: bool) -> Iterable[str]:
    """Yield what a reader of a result must know, one sentence each."""
    cases, total = read.cases, len(read.cases)
    ids, real = [case.hadm_id for case in cases], not synthetic
    if all(hadm_id in MIMIC_IDS for hadm_id in ids):
        yield (
            "The release has no patient identifiers, so splits are by admission: 17 of its patients have more than one"
            " admission, 10 of them under different diagnoses."
        )
        counts = Counter(case.diagnosis for case in cases)
        if any(counts[name] != published for name, published in PUBLISHED_COUNTS.items()):
            published = "/".join(str(count) for count in PUBLISHED_COUNTS.values())
            yield (
                f"The cohort has {total:,} cases, and not the 2,400 ({published}) of MIMIC-IV-Ext-CDM v1.1, so figures"
                " published for that release do not compare."
            )
        absent = sum(not case.microbiology for case in cases)
        yield f"Cases without microbiology: {share_text(absent, total, real=True)} (23 % in the release)."
    elif real:
        yield (
            "The layout has no patient identifiers, so splits are by admission, and a patient with several admissions"
            " may be trained and tested on."
        )
    if real and any(hadm_id >= SYNTHETIC_FIRST_ID for hadm_id in ids):
        yield (
            f"Some admissions are numbered from {SYNTHETIC_FIRST_ID:,}, as fabricated ones are; they count as real,"
            f" because their reports are not marked {SYNTHETIC_NOTE}."
        )
    for name, what in (("history", "histories"), ("examination", "examinations")):
        leaks = sum(names_itself(getattr(case, name), case.diagnosis) for case in cases)
        if leaks:
            yield f"The {what} of {count_text(leaks, real=real)} cases name their own diagnosis, which is the answer."
    for name, rows in read.strangers.items():
        if rows:
            yield f"Left out of {name}: {number_of(rows, 'row')} of admissions that {HISTORY} lacks."
    if read.repeated:
        repeat = "that repeats a test of its" if read.repeated == 1 else "that repeat a test of their"
        yield f"Left out of {LABS}: {number_of(read.repeated, 'row')} {repeat} admission."
    if read.unused:
        yield f"Not used: the {HOSPITALS} in {', '.join(read.unused)}, since a folder is a hospital."
