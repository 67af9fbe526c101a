"""Checks of the tables that never enter a case: outcomes, and the names of laboratory tests.

The outcome tables name the answer or its treatment. They are read here alone, to see whether the labels belong to these
admissions.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

from device_models.errors import InputError
from fllm.data.cdm_cases import DIAGNOSES, MIMIC_IDS, all_fabricated
from fllm.data.cdm_counts import number_of, share_text
from fllm.data.cdm_files import LABELS, OUTCOMES, RADIOLOGY, TEST_NAMES, CohortFiles
from fllm.data.cdm_finding import Finding, by_class
from fllm.data.cdm_numbers import integer_or_none, listed_ids
from fllm.data.cdm_tables import diagnoses

_DISCHARGE = "discharge_diagnosis.csv"
_ODD_DISAGREEMENT, _WRONG_LABELS = 0.10, 0.50
"""Shares of cases whose discharge diagnosis does not name the label: odd in a class, and too many in all."""

_PUBLISHED_COVERAGE = {"discharge_procedures.csv": "75 %", "icd_procedures.csv": "69 %"}


def read_outcomes(files: CohortFiles) -> dict[str, dict[int, list[str]]]:
    """Read the outcome tables: file -> admission -> texts. Only checks may use them.

    Tables and rows that cannot be read are left out; checks of the files name those.
    """
    outcomes: dict[str, dict[int, list[str]]] = {}
    for name in sorted(OUTCOMES):
        try:
            table = files.table(name)
        except InputError:
            continue
        column = next(column for column in table if column not in ("hadm_id", "icd_code", "icd_version"))
        outcomes[name] = {}
        for cell, text in zip(table["hadm_id"], table[column], strict=True):
            hadm_id = integer_or_none(cell)
            if hadm_id is not None:
                outcomes[name].setdefault(hadm_id, []).append(text)
    return outcomes


def check_outcomes(files: CohortFiles, histories: Container[int]) -> Iterator[Finding]:
    """Yield how many cases have outcomes, and whether the discharge diagnoses name the labels."""
    try:
        labels = {hadm_id: label for hadm_id, (label, _) in diagnoses(files).items() if hadm_id in histories}
    except InputError:
        return
    real = not _fabricated(files, labels)
    for name, texts in read_outcomes(files).items():
        without = sum(hadm_id not in texts for hadm_id in labels)
        if texts and labels and without:
            release = f"; {_PUBLISHED_COVERAGE[name]} of v1.1 have one" if name in _PUBLISHED_COVERAGE else ""
            what = f"no row: {share_text(without, len(labels), real=real)} of the cases"
            yield Finding(name, "note", what, f"an inner join would drop them; nothing joins to this table{release}")
        strangers = sum(len(rows) for hadm_id, rows in texts.items() if hadm_id not in histories)
        if strangers and labels:
            what = f"{number_of(strangers, 'row')} of admissions that the history file lacks"
            yield Finding(name, "warning", what, "is the history file complete?")
        if name == _DISCHARGE and texts and labels:
            yield from _agreement({hadm_id: " ".join(rows).lower() for hadm_id, rows in texts.items()}, labels, real)


def _fabricated(files: CohortFiles, admissions: Iterable[int]) -> bool:
    try:
        return all_fabricated(admissions, files.table(RADIOLOGY)["note_id"])
    except InputError:
        return False


def _agreement(texts: Mapping[int, str], labels: Mapping[int, str], real: bool) -> Iterator[Finding]:
    judged = {hadm_id: label for hadm_id, label in labels.items() if texts.get(hadm_id, "").strip()}
    unnamed = dict.fromkeys(DIAGNOSES, 0)
    sizes = dict(unnamed)
    for hadm_id, label in judged.items():
        sizes[label] += 1
        unnamed[label] += label not in texts[hadm_id]
    shares = by_class({name: share_text(unnamed[name], sizes[name], real=real) for name in DIAGNOSES})
    released = " (in v1.1: 0 to 2 %, pancreatitis 6 %)" if judged and min(judged) in MIMIC_IDS else ""
    if sum(unnamed.values()) > _WRONG_LABELS * max(len(judged), 1):
        what = f"the discharge diagnosis does not name the label of {shares}"
        # Another hospital's notes may be in another language.
        certain = not real or bool(released)
        meaning = "the labels belong to other admissions" if certain else "other words, or labels of other admissions"
        yield Finding(LABELS, "error" if certain else "warning", what, meaning + released)
        return
    odd = any(unnamed[name] > _ODD_DISAGREEMENT * sizes[name] for name in DIAGNOSES if sizes[name])
    meaning = "the label is that of the label file; nothing is guessed from this text" + released
    yield Finding(_DISCHARGE, "warning" if odd else "ok", f"does not name the label of {shares}", meaning)


def check_mapping(files: CohortFiles) -> Iterator[Finding]:
    """Yield what the names of laboratory tests lack."""
    try:
        table = files.table(TEST_NAMES)
    except InputError:
        return
    numbers = [integer_or_none(cell) for cell in table["itemid"]]
    panels = sum(number is None for number in numbers)
    if panels:
        yield Finding(
            TEST_NAMES, "ok", f"{number_of(panels, 'row')} without an itemid", "names of panels; no result has them"
        )
    names: dict[int, str] = {}
    again = sum(names.setdefault(n, label) != label for n, label in zip(numbers, table["label"], strict=True) if n)
    if again:
        yield Finding(TEST_NAMES, "warning", f"two names: {number_of(again, 'itemid')}", "the first name counts")
    cells = [cell for cell in table["corresponding_ids"] if cell.strip().lower() not in ("", "nan")]
    malformed = sum(listed_ids(cell) is None for cell in cells)
    if malformed:
        what = f"corresponding_ids is no list of numbers: {number_of(malformed, 'row')}"
        yield Finding(TEST_NAMES, "warning", what, "runs do not use them; the file may be damaged")
