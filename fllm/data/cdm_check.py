"""``fllm data check``: what a folder in the layout of MIMIC-IV-Ext-CDM holds, what is odd, and what that means.

All errors are collected. A folder without any is one that :func:`fllm.data.cdm.load_cohort` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from device_models.errors import InputError
from fllm.data.cdm import client_folders, load_cohort
from fllm.data.cdm_cases import MIMIC_IDS
from fllm.data.cdm_check_content import check_content
from fllm.data.cdm_check_outcomes import check_mapping, check_outcomes
from fllm.data.cdm_counts import number_of
from fllm.data.cdm_files import (
    COLUMNS,
    EXAMINATION,
    HISTORY,
    HOSPITALS,
    LABELS,
    LABS,
    MICROBIOLOGY,
    OUTCOMES,
    RADIOLOGY,
    TEST_NAMES,
    CohortFiles,
)
from fllm.data.cdm_finding import Finding, Level
from fllm.data.cdm_numbers import integers, limits
from fllm.data.cdm_tables import (
    cultures,
    diagnoses,
    hospital_names,
    item_names,
    lab_results,
    reports,
    require,
    texts,
)

Result = TypeVar("Result")

PUBLISHED_ROWS: dict[str, int] = dict(
    zip(COLUMNS, (2400, 2400, 138_788, 1209, 5960, 4403, 2400, 17_357, 2122, 2917), strict=True)
)
"""Rows of each table of v1.1.

Source: the files of MIMIC-IV-Ext-CDM v1.1, doi 10.13026/2pfq-5b68; its web page counts one radiology report less.
"""

_CHECKSUMS = "SHA256SUMS.txt"
_INTEGER_COLUMNS = ("hadm_id", "itemid", "test_itemid", "spec_itemid", "icd_version")
_REFUSED = "no run reads this folder until it is repaired"


class _Findings:
    """Collects findings of one folder; an error met twice is kept once."""

    def __init__(self, files: CohortFiles) -> None:
        self.files = files
        self.all: list[Finding] = []

    def add(self, file: str, level: Level, what: str, meaning: str) -> None:
        finding = Finding(self.files.shown(file), level, what, meaning)
        if finding not in self.all:
            self.all.append(finding)

    def attempt(self, file: str, read: Callable[[], Result]) -> Result | None:
        """Return what a reader gives, or note its error."""
        try:
            return read()
        except InputError as problem:
            if file in OUTCOMES and self.files.has(file):
                self.add(file, "warning", str(problem), "no run reads this table; was it damaged?")
            else:
                self.add(file, "error", str(problem), _REFUSED)
            return None


def check_folder(folder: str | Path) -> list[Finding]:
    """Check a folder file by file, or a folder of such folders, one for each hospital.

    Returns:
        All findings, those of one file together. None shows text, an identifier or the content of a cell.

    Raises:
        InputError: If the folder is absent, or neither a cohort nor one folder for each hospital.
    """
    path = Path(folder)
    clients = client_folders(path)
    found: list[Finding] = []
    for each in clients or [path]:
        found += _check_files(CohortFiles(each, inside=f"{each.name}/" if clients else ""))
    if any(finding.level == "error" for finding in found):
        return [
            *_sorted(found),
            Finding("cohort", "note", "what the cases hold was not looked at", "repair the errors, then check again"),
        ]
    try:
        return _sorted([*found, *check_content(load_cohort(path))])
    except InputError as problem:
        return _sorted([*found, Finding("cohort", "error", str(problem), _REFUSED)])


def _sorted(found: list[Finding]) -> list[Finding]:
    """Put the findings of one file together, files in the order of their first finding."""
    order = list(dict.fromkeys(finding.file for finding in found))
    return sorted(found, key=lambda finding: order.index(finding.file))


def _check_files(files: CohortFiles) -> list[Finding]:
    findings = _Findings(files)
    histories = findings.attempt(HISTORY, partial(texts, files, HISTORY)) or {}
    for name in COLUMNS:
        _check_table(findings, name, histories)
    _check_records(findings, histories)
    for finding in (*check_mapping(files), *check_outcomes(files, histories)):
        findings.add(finding.file, finding.level, finding.what, finding.meaning)
    _check_checksums(findings)
    return findings.all


def _check_table(findings: _Findings, name: str, histories: dict[int, str]) -> None:
    files, where = findings.files, findings.files.shown(name)
    table = findings.attempt(name, partial(files.table, name))
    if table is None:
        return
    for column in table:
        if column in _INTEGER_COLUMNS and name != TEST_NAMES:
            findings.attempt(name, partial(integers, table, column, where))
        elif column.startswith("ref_range"):
            findings.attempt(name, partial(limits, table, column, where))
    rows = len(next(iter(table.values())))
    counted = f"{number_of(rows, 'row')}, {number_of(len(table), 'column')}, {len(files.content(name)) / 1e3:,.0f} kB"
    if "hadm_id" in table:
        counted += f", {number_of(len(set(table['hadm_id'])), 'admission')}"
    findings.add(name, "ok", counted, "every row was read" if name not in OUTCOMES else "read here, never by a run")
    for level, what, meaning in _form(files, name, table):
        findings.add(name, level, what, meaning)
    if not rows:
        what = "only a header" if name in OUTCOMES else "only a header: no case has microbiology"
        findings.add(name, "warning", what, "this table is left out, or its download was incomplete")
    elif histories and all(hadm_id in MIMIC_IDS for hadm_id in histories) and rows != PUBLISHED_ROWS[name]:
        what = f"{PUBLISHED_ROWS[name]:,} rows are in MIMIC-IV-Ext-CDM v1.1"
        findings.add(name, "warning", what, "figures published for v1.1 do not compare; is the download complete?")


def _form(files: CohortFiles, name: str, table: dict[str, list[str]]) -> Iterator[tuple[Level, str, str]]:
    """Yield what is odd about the form of a table that can be read."""
    content, header = files.content(name), files.header(name)
    if content.startswith(b"\xef\xbb\xbf"):
        yield "note", "a byte order mark", "read past; a spreadsheet has saved this file"
    if b"\r\n" in content:
        yield "note", "line ends of Windows", "read as plain ones, also inside of texts"
    if len(header) > len(table):
        yield "note", f"{number_of(len(header) - len(table), 'column')} more than the layout has", "not read"
    elif header != list(table):
        yield "note", "columns in another order", "read by their names"
    for column, cells in table.items():
        lines = sum("\n" in cell for cell in cells)
        if lines:
            yield "ok", f"{column} spans several lines in {number_of(lines, 'row')}", "read whole"
        damaged = sum("\N{REPLACEMENT CHARACTER}" in cell for cell in cells)
        if damaged:
            what = f"{column} lost characters in {number_of(damaged, 'row')}"
            yield "warning", what, "it was once saved in a wrong encoding"


def _check_records(findings: _Findings, histories: dict[int, str]) -> None:
    """Read each table into records, as a run does, and tell what does not belong together."""
    files = findings.files
    names = findings.attempt(TEST_NAMES, partial(item_names, files)) or {}
    joined = {
        LABS: findings.attempt(LABS, partial(lab_results, files, histories, names)),
        RADIOLOGY: findings.attempt(RADIOLOGY, partial(reports, files, histories)),
        MICROBIOLOGY: findings.attempt(MICROBIOLOGY, partial(cultures, files, histories, names)),
    }
    examined = findings.attempt(EXAMINATION, partial(texts, files, EXAMINATION))
    labels = findings.attempt(LABELS, partial(diagnoses, files))
    hospitals = findings.attempt(HOSPITALS, partial(hospital_names, files)) if files.has(HOSPITALS) else None
    if not histories:
        return
    for name, found, what in (
        (EXAMINATION, examined, "no examination"),
        (LABELS, labels, "no label"),
        (HOSPITALS, hospitals, "no hospital"),
    ):
        if found is not None:
            findings.attempt(name, partial(require, found, histories, files.shown(name), what))
            strangers = sum(hadm_id not in histories for hadm_id in found)
            _note_strangers(findings, name, strangers)
    for name, records in joined.items():
        if records is not None:
            _note_strangers(findings, name, records.strangers)
            if records.repeated:
                what = f"{number_of(records.repeated, 'row')} with a test that its admission already has"
                findings.add(name, "warning", what, "the first value counts; the release holds no second one")


def _note_strangers(findings: _Findings, name: str, count: int) -> None:
    if count:
        what = f"{number_of(count, 'row')} of admissions that the history file lacks"
        findings.add(name, "warning", what, "left out; is the history file complete?")


def _check_checksums(findings: _Findings) -> None:
    """Compare the files with the list of digests that a download from PhysioNet brings."""
    files = findings.files
    if not files.has(_CHECKSUMS):
        return
    lines = (findings.attempt(_CHECKSUMS, partial(files.text, _CHECKSUMS)) or "").splitlines()
    digests = {parts[1].lstrip("*./"): parts[0] for line in lines if len(parts := line.split()) == 2}
    listed = [name for name in (*COLUMNS, LABELS) if name in digests and files.has(name)]
    for name in listed:
        content = findings.attempt(name, partial(files.content, name))
        if content is not None and hashlib.sha256(content).hexdigest() != digests[name].lower():
            what = f"not the file that {_CHECKSUMS} lists"
            findings.add(name, "error", what, f"download it again; if you changed it on purpose, remove {_CHECKSUMS}")
    findings.add(_CHECKSUMS, "ok", f"{len(listed)} files are listed", "each was compared with its digest")
