"""``check_folder``: what it finds, that it finds all errors, and that it never repeats what a record says."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_models.errors import InputError
from fllm.data import DIAGNOSES, load_cohort
from fllm.data.cdm_check import PUBLISHED_ROWS, check_folder
from fllm.data.cdm_check_outcomes import read_outcomes
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
)  # fmt: skip
from fllm.data.cdm_finding import LEVELS, Finding
from tests.data.test_cdm import DAMAGES

SECRET, FIRST_ID = "zebrafish", 10000001  # those of conftest.small_release
SIZES, RELEASED = (12, 9, 7, 8), 20_000_001
DISCHARGE = "discharge_diagnosis.csv"
NUMBERS = {"hadm_id", "itemid", "ref_range_lower", "ref_range_upper", "count", "corresponding_ids", "test_itemid"} | {
    "spec_itemid", "icd_version"
}  # fmt: skip


def _write(folder: Path, name: str, rows: Sequence[Sequence[object]]) -> None:
    with (folder / name).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS[name], *rows])


def _read(folder: Path, name: str) -> list[list[str]]:
    with (folder / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))[1:]


@pytest.fixture
def tidy(tmp_path: Path) -> Path:
    """Return a release in which nothing is odd but its size; the ids are invented."""
    folder = tmp_path / "tidy"
    folder.mkdir()
    labels = [name for name, size in zip(DIAGNOSES, SIZES, strict=True) for _ in range(size)]
    ids = [RELEASED + at for at in range(len(labels))]
    tables: dict[str, list[list[object]]] = {
        HISTORY: [[i, f"57 year old number {i} with pain"] for i in ids],
        EXAMINATION: [[i, "Abdomen soft, tender in the right lower quadrant"] for i in ids],
        LABS: [[i, item, "9.0 K/uL", 4.0, 11.0] for i in ids for item in (51301, 50956)],
        TEST_NAMES: [
            ["51301.0", "White Blood Cells", "Blood", "", "", "[51301]"],
            ["50956.0", "Lipase", "", "", "", "[]"],
        ],
        RADIOLOGY: [[i, f"N-{i}", "CT", "Abdomen", "CT ABD", "FINDINGS: liver normal"] for i in ids],
        MICROBIOLOGY: [[i, 90201, "NO GROWTH.", 70012] for i in ids],
        DISCHARGE: [[i, f"acute {label}"] for i, label in zip(ids, labels, strict=True)],
        "icd_diagnosis.csv": [[i, "Pain"] for i in ids],
        "discharge_procedures.csv": [[i, "none"] for i in ids],
        "icd_procedures.csv": [[i, "1", "none", 9] for i in ids],
    }
    for name, rows in tables.items():
        _write(folder, name, rows)
    by_label = {name: [i for i, label in zip(ids, labels, strict=True) if label == name] for name in DIAGNOSES}
    (folder / LABELS).write_text(json.dumps(by_label))
    return folder


def _edit(name: str, change: Callable[[list[list[str]]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        rows = _read(folder, name)
        change(rows)
        _write(folder, name, rows)

    return damage


def _set(name: str, column: str, value: str, rows: slice = slice(0, 1)) -> Callable[[Path], None]:
    def change(table: list[list[str]]) -> None:
        for row in table[rows]:
            row[COLUMNS[name].index(column)] = value

    return _edit(name, change)


def _labels(change: Callable[[dict[str, list[int]]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        table = json.loads((folder / LABELS).read_text())
        change(table)
        (folder / LABELS).write_text(json.dumps(table))

    return damage


def _rotate(table: dict[str, list[int]]) -> None:
    lists = list(table.values())
    for name, ids in zip(table, lists[1:] + lists[:1], strict=True):
        table[name] = ids


def _hospitals(sizes: Sequence[int]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        names = [f"hospital {at}" for at, size in enumerate(sizes) for _ in range(size)]
        (folder / HOSPITALS).write_text(json.dumps({str(RELEASED + at): name for at, name in enumerate(names)}))

    return damage


def _renumber(folder: Path, first: int, notes: str) -> None:
    for name in (*COLUMNS, LABELS):
        text = (folder / name).read_text().replace(str(RELEASED)[:-2], str(first)[:-2]).replace("N-", notes)
        (folder / name).write_text(text)


def _at_least(findings: Sequence[Finding], level: str) -> list[Finding]:
    return [finding for finding in findings if LEVELS.index(finding.level) >= LEVELS.index(level)]


def test_a_tidy_release_is_odd_by_its_size_alone(tidy: Path) -> None:
    odd = _at_least(check_folder(tidy), "warning")
    assert {finding.file for finding in odd} == {*COLUMNS, LABELS}
    assert all("v1.1" in finding.what + finding.meaning for finding in odd)
    assert (PUBLISHED_ROWS[LABS], PUBLISHED_ROWS[RADIOLOGY], PUBLISHED_ROWS[DISCHARGE]) == (138_788, 5960, 2400)


def test_every_file_has_a_first_line_with_its_size(tidy: Path) -> None:
    first: dict[str, Finding] = {}
    for finding in check_folder(tidy):
        first.setdefault(finding.file, finding)
    assert list(first) == [*COLUMNS, LABELS, "cohort"]
    assert first[LABS].what == "72 rows, 5 columns, 2 kB, 36 admissions" and first[LABS].level == "ok"
    assert first[LABELS].what == "appendicitis 12, cholecystitis 9, diverticulitis 7, pancreatitis 8"


FOUND: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "history names it": (
        _set(HISTORY, "hpi", "Appendicitis"), "error", HISTORY, "< 5 cases name their own diagnosis",
    ),
    "examination names it": (
        _set(EXAMINATION, "pe", f"{'x' * 40} appendicitis", slice(0, 6)), "error", EXAMINATION, "6 cases name their",
    ),
    "report names it": (
        _set(RADIOLOGY, "text", "no appendicitis", slice(0, 5)), "warning", RADIOLOGY, "5 cases name their own",
    ),
    "equal histories": (
        _set(HISTORY, "hpi", "the same words", slice(0, 6)), "warning", HISTORY, "6 cases share their history",
    ),
    "no history": (_set(HISTORY, "hpi", " ", slice(0, 9)), "warning", HISTORY, "no text: 25 %"),
    "age redacted": (_set(HISTORY, "hpi", "___ year old", slice(0, 9)), "note", HISTORY, "age stated: 75 %"),
    "short examination": (_set(EXAMINATION, "pe", "soft", slice(0, 9)), "warning", EXAMINATION, "under 40 .*: 25 %"),
    "no labs": (_edit(LABS, lambda rows: rows.__delitem__(slice(0, 18))), "warning", LABS, "no result: 25 %"),
    "repeated test": (
        _edit(LABS, lambda rows: rows.extend(rows[:3])), "warning", LABS, "3 rows with a test that its admission",
    ),
    "stranger's labs": (
        _edit(LABS, lambda rows: rows.append(["7", "51301", "", "", ""])), "warning", LABS, "^1 row of admissions that",
    ),
    "unnamed test": (
        _set(LABS, "itemid", "7", slice(0, 36, 2)), "note", LABS, "no name in the mapping: 1 test, 25 % of the rows",
    ),
    "no range": (_set(LABS, "ref_range_lower", "", slice(0, 18)), "note", LABS, "no reference range: 25 %"),
    "inverted range": (_set(LABS, "ref_range_lower", "99", slice(0, 2)), "warning", LABS, "below its start: 2 rows"),
    "no number": (_set(LABS, "valuestr", "NEG", slice(0, 18)), "note", LABS, "value is no number: 25 %"),
    "two names": (
        _edit(TEST_NAMES, lambda rows: rows.append(["51301", "Red", "", "", "", ""])), "warning", TEST_NAMES,
        "two names: 1 itemid",
    ),
    "panels": (_set(TEST_NAMES, "itemid", ""), "ok", TEST_NAMES, "1 row without an itemid"),
    "malformed list": (
        _set(TEST_NAMES, "corresponding_ids", "1;2"), "warning", TEST_NAMES, "no list of numbers: 1 row",
    ),
    "masks": (
        _set(RADIOLOGY, "text", "____", slice(0, 6)), "note", RADIOLOGY, "masked words: appendicitis 50 %, chole",
    ),
    "modality": (
        _set(RADIOLOGY, "modality", "Ultrasound", slice(0, 6)), "note", RADIOLOGY, "with CT: appendicitis 50 %, chole",
    ),
    "rare modality": (_set(RADIOLOGY, "modality", SECRET, slice(0, 9)), "note", RADIOLOGY, "rarer modalities: 25 %"),
    "no abdomen": (_set(RADIOLOGY, "region", "Chest", slice(0, 9)), "warning", RADIOLOGY, "no report of the abd.*25 %"),
    "no note id": (_set(RADIOLOGY, "note_id", "", slice(0, 2)), "warning", RADIOLOGY, "2 reports without note_id"),
    "repeated study": (
        _edit(RADIOLOGY, lambda rows: rows.extend([r[0], f"M-{r[0]}", *r[2:]] for r in rows[:9])), "note", RADIOLOGY,
        "9 reports with a modality and region that the case already has: 25 %",
    ),
    "no microbiology": (
        _edit(MICROBIOLOGY, lambda rows: rows.__delitem__(slice(0, 9))), "note", MICROBIOLOGY, "no culture: 25 %",
    ),
    "microbiology empty": (_edit(MICROBIOLOGY, list.clear), "warning", MICROBIOLOGY, "only a header: no case"),
    "outcome empty": (_edit("icd_diagnosis.csv", list.clear), "warning", "icd_diagnosis.csv", "only a header$"),
    "outcome damaged": (
        _set("icd_diagnosis.csv", "hadm_id", "x"), "warning", "icd_diagnosis.csv", "row 1: hadm_id is no whole number",
    ),
    "no procedure": (
        _edit("discharge_procedures.csv", lambda rows: rows.__delitem__(slice(0, 9))), "note",
        "discharge_procedures.csv", "no row: 25 % of the cases",
    ),
    "stranger's outcome": (
        _edit(DISCHARGE, lambda rows: rows.append(["7", "x"])), "warning", DISCHARGE, "^1 row of admissions that",
    ),
    "discharge disagrees": (
        _set(DISCHARGE, "discharge_diagnosis", "colic", slice(0, 6)), "warning", DISCHARGE,
        "does not name the label of appendicitis 50 %, cholecystitis 0 %",
    ),
    "labels of others": (_labels(_rotate), "error", LABELS, "does not name the label of 100 % in every class"),
    "labelled stranger": (
        _labels(lambda table: table["appendicitis"].append(7)), "warning", LABELS, "^1 row of admissions that the hist",
    ),
    "small class": (
        _labels(lambda t: t["appendicitis"].extend([t["diverticulitis"].pop() for _ in range(4)])), "warning", LABELS,
        "appendicitis 16, cholecystitis 9, diverticulitis not shown, pancreatitis not shown",
    ),
    "empty class": (
        _labels(lambda t: t["appendicitis"].extend([t["diverticulitis"].pop() for _ in range(7)])), "warning", LABELS,
        "a class without any case",
    ),
    "hospitals": (_hospitals((20, 16)), "ok", "cohort", "2 hospitals; cases of the smallest: 16, of the largest: 20"),
    "a small hospital": (_hospitals((33, 3)), "warning", "cohort", "smallest: not shown, of the largest: not"),
    "byte order mark": (
        lambda f: (f / LABS).write_bytes(b"\xef\xbb\xbf" + (f / LABS).read_bytes()), "note", LABS, "a byte order mark",
    ),
    "line ends": (
        lambda f: (f / LABS).write_bytes((f / LABS).read_bytes().replace(b"\n", b"\r\n")), "note", LABS, "of Windows",
    ),
    "more columns": (
        lambda f: (f / LABS).write_text(re.sub("\n", ",x\n", (f / LABS).read_text())), "note", LABS, "1 column more",
    ),
    "other order": (
        lambda f: (f / EXAMINATION).write_text("\n".join(["pe,hadm_id", *(f"{t},{i}" for i, t in [
            (i, t.replace(",", "")) for i, t in _read(f, EXAMINATION)]), ""])), "note", EXAMINATION, "in another order",
    ),
    "several lines": (_set(HISTORY, "hpi", "a\nb", slice(0, 2)), "ok", HISTORY, "hpi spans several lines in 2 rows"),
    "lost characters": (_set(HISTORY, "hpi", "37 \ufffdC"), "warning", HISTORY, "hpi lost characters in 1 row"),
    "no hospitals": (lambda f: None, "note", "cohort", "no hospitals are named"),
    "released numbers": (lambda f: None, "note", "cohort", "36 cases with identifiers of MIMIC-IV"),
    "other numbers": (lambda f: _renumber(f, 30_000_001, "N-"), "note", "cohort", "36 cases with .*not of MIMIC-IV"),
    "high numbers": (lambda f: _renumber(f, 90_000_001, "N-"), "warning", "cohort", "numbered from 90,000,000"),
    "fabricated": (lambda f: _renumber(f, 90_000_001, "SYN-"), "ok", "cohort", "36 cases, all FABRICATED"),
    "mixed": (_set(RADIOLOGY, "note_id", "SYN-1"), "error", "cohort", "fabricated cases are mixed with others"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_oddities_are_found_with_their_level_and_meaning(tidy: Path, name: str) -> None:
    damage, level, file, what = FOUND[name]
    damage(tidy)
    findings = check_folder(tidy)
    found = [f for f in findings if f.file == file and f.level == level and re.search(what, f.what) and f.meaning]
    assert len(found) == 1, [f for f in findings if f.file == file]
    if level != "error":
        assert not _at_least(findings, "error")
        load_cohort(tidy)


def test_an_own_diagnosis_is_no_error_outside_of_the_release(tidy: Path) -> None:
    _renumber(tidy, 30_000_001, "N-")
    _set(HISTORY, "hpi", "history of appendicitis", slice(0, 6))(tidy)
    findings = check_folder(tidy)
    assert [f.level for f in findings if "own diagnosis" in f.what and f.file == HISTORY] == ["warning"]


def test_labels_of_others_are_no_error_where_notes_may_be_in_another_language(tidy: Path) -> None:
    _renumber(tidy, 30_000_001, "N-")
    _labels(_rotate)(tidy)
    found = [f for f in check_folder(tidy) if "does not name the label" in f.what]
    assert [(f.level, f.meaning) for f in found] == [("warning", "other words, or labels of other admissions")]


def test_medians_of_small_classes_are_not_shown(tidy: Path) -> None:
    _labels(lambda t: t["appendicitis"].extend([t["diverticulitis"].pop() for _ in range(4)]))(tidy)
    assert any(f.what.startswith("median results: appendicitis 2") and "diverticulitis not shown" in f.what
               for f in check_folder(tidy))  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_what_a_run_refuses_is_an_error(release: Path, name: str) -> None:
    DAMAGES[name][0](release)
    findings = check_folder(release)
    assert _at_least(findings, "error")
    shown = repr(findings)
    assert SECRET not in shown and str(FIRST_ID) not in shown


def test_all_errors_are_collected_one_line_each(release: Path) -> None:
    (release / EXAMINATION).unlink()
    (release / LABELS).write_text("{")
    (release / LABS).write_text("hadm_id,itemid,valuestr,ref_range_lower,ref_range_upper\nx,y,1,z,w\n")
    (release / RADIOLOGY).write_text("hadm_id\n1\n")
    errors = [finding.what for finding in _at_least(check_folder(release), "error")]
    expected = [f"{EXAMINATION}: file missing", f"{LABS}, row 1: hadm_id", f"{LABS}, row 1: itemid"]
    expected += [f"{LABS}, row 1: ref_range_lower", f"{LABS}, row 1: ref_range_upper"]
    expected += [f"{RADIOLOGY}: column 'note_id' missing", f"{LABELS}, line 1: malformed JSON"]
    assert [sum(what.startswith(start) for what in errors) for start in expected] == [1] * 7
    assert len(errors) == 7 and not any("\n" in what for what in errors)
    assert "was not looked at" in check_folder(release)[-1].what


def test_a_digest_that_differs_from_the_list_of_the_download_is_an_error(release: Path) -> None:
    names = (HISTORY, LABS, "LICENSE.txt")
    lines = [f"{hashlib.sha256((release / name).read_bytes()).hexdigest()} {name}" for name in names[:2]]
    (release / "SHA256SUMS.txt").write_text("\n".join([*lines, f"{'0' * 64} {names[2]}"]))
    assert any(f.what == "2 files are listed" for f in check_folder(release))
    assert not _at_least(check_folder(release), "error")
    (release / LABS).write_text((release / LABS).read_text() + "\n")
    errors = _at_least(check_folder(release), "error")
    assert [(f.file, f.what) for f in errors] == [(LABS, "not the file that SHA256SUMS.txt lists")]


def test_several_folders_are_checked_each_and_together(release: Path, tidy: Path, tmp_path: Path) -> None:
    parent = tmp_path / "clients"
    shutil.copytree(release, parent / "north", ignore=shutil.ignore_patterns("tidy", "clients"))
    shutil.copytree(tidy, parent / "south")
    findings = check_folder(parent)
    assert {f.file for f in findings} >= {f"north/{HISTORY}", f"south/{LABS}", HISTORY, "cohort"}
    assert any("2 hospitals; cases of the smallest: not shown" in f.what for f in findings)
    (parent / "south" / LABS).unlink()
    assert [f.file for f in _at_least(check_folder(parent), "error")] == [f"south/{LABS}"]
    shutil.rmtree(parent / "south")
    shutil.copytree(parent / "north", parent / "west")
    assert "an admission stands in two folders" in _at_least(check_folder(parent), "error")[0].what


def test_outcomes_are_read_for_checks_and_damaged_ones_are_left_out(release: Path) -> None:
    assert set(read_outcomes(CohortFiles(release))) == OUTCOMES
    (release / "icd_procedures.csv").write_text("damaged")
    outcomes = read_outcomes(CohortFiles(release))
    assert set(outcomes) == OUTCOMES - {"icd_procedures.csv"}
    assert outcomes["discharge_procedures.csv"] == {FIRST_ID: [f"Appendectomy {SECRET}"]}


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_folder_without_the_layout_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        check_folder(tmp_path / folder)


def test_no_word_of_any_text_column_is_ever_shown(release: Path) -> None:
    (release / HOSPITALS).write_text(json.dumps({str(FIRST_ID + at): SECRET for at in range(4)}))
    for name, columns in COLUMNS.items():
        rows = _read(release, name)
        for row in rows:
            row[:] = [cell if c in NUMBERS else f"{cell} {SECRET}" for c, cell in zip(columns, row, strict=True)]
        _write(release, name, rows)
    assert sum((release / name).read_text().count(SECRET) for name in COLUMNS) > 60
    cohort, findings = load_cohort(release), check_folder(release)
    case = cohort.cases[0]
    shown = repr([findings, cohort.warnings, case, case.labs, case.radiology, case.microbiology])
    assert SECRET not in shown and str(FIRST_ID) not in shown


def _corrupted(content: bytes, kind: str, at: float, junk: bytes) -> bytes:
    lines, place = content.split(b"\n"), int(at * (len(content) - 1))
    line = int(at * (len(lines) - 1))
    if kind == "overwrite":
        return content[:place] + junk + content[place + len(junk) :]
    if kind == "insert":
        return content[:place] + junk + content[place:]
    if kind == "cut off":
        return content[:place]
    if kind == "drop a line":
        return b"\n".join(lines[:line] + lines[line + 1 :])
    return b"\n".join([*lines[: line + 1], lines[line], *lines[line + 1 :]])


KINDS = ("overwrite", "insert", "cut off", "drop a line", "repeat a line")
JUNK = (
    b"\0",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\xff",
    b"\xef\xbb\xbf",
    b"[",
    b"}",
    b"-",
    b"9",
    b"e",
    b"nan",
    b"\xe2\x80\xa8",
)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.data.conftest import small_release

    return small_release(tmp_path_factory.mktemp("damaged"))


@settings(max_examples=150, deadline=None, derandomize=True)
@example(name="icd_diagnosis.csv", kind="overwrite", at=0.359375, junk=b'"')  # a header that swallows an identifier
@given(
    name=st.sampled_from([*COLUMNS, LABELS]),
    kind=st.sampled_from(KINDS),
    at=st.floats(0, 1),
    junk=st.sampled_from(JUNK),
)
def test_any_damage_gives_a_cohort_or_one_line(damaged: Path, name: str, kind: str, at: float, junk: bytes) -> None:
    file = damaged / name
    whole = file.read_bytes()
    try:
        file.write_bytes(_corrupted(whole, kind, at, junk))
        findings = check_folder(damaged)
        try:
            shown, loads = repr(load_cohort(damaged)), True
        except InputError as problem:
            shown, loads = str(problem), False
        assert loads or _at_least(findings, "error")
        for text in (shown, repr(findings)):
            assert SECRET not in text and str(FIRST_ID) not in text and "\n" not in text
    finally:
        file.write_bytes(whole)
