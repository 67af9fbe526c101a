from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from device_models.errors import InputError
from fllm.data import load_cohort
from fllm.data.cdm_files import COLUMNS, OUTCOMES

SECRET, FIRST_ID = "zebrafish", 10000001  # those of conftest.small_release
HPI, PE, LABS = "history_of_present_illness.csv", "physical_examination.csv", "laboratory_tests.csv"
MAPPING, RADIOLOGY, MICROBIOLOGY = "lab_test_mapping.csv", "radiology_reports.csv", "microbiology.csv"
LABELS, HOSPITALS = "pathology_ids.json", "hospital_ids.json"


def test_multi_line_fields_and_masks_survive(release: Path) -> None:
    case = load_cohort(release).cases[0]
    assert case.history == f' ___ is a ___ year old with {SECRET},\n"quoted" pain'
    assert case.examination == f"Abd: soft, {SECRET}\n\nExt: warm"
    assert '____ , "quoted"' in case.radiology[1].text


def test_real_ids_are_not_synthetic_and_source_is_a_name(release: Path) -> None:
    cohort = load_cohort(release)
    assert not cohort.synthetic
    assert cohort.hospitals == () and all(case.hospital is None for case in cohort.cases)
    assert cohort.source == release.name
    assert [case.diagnosis for case in cohort.cases] == [
        "appendicitis",
        "cholecystitis",
        "pancreatitis",
        "diverticulitis",
    ]


def test_na_strings_stay_text_and_first_value_counts(release: Path) -> None:
    labs = {lab.itemid: lab for lab in load_cohort(release).cases[0].labs}
    assert labs[50861].value == "NA" and labs[50861].number is None
    assert labs[50956].number == 180.0
    assert labs[50889].lower is None and labs[50889].upper is None and labs[50889].number is None
    assert (labs[51755].label, labs[51755].fluid) == ("White Blood Cells", "Blood")
    none = load_cohort(release).cases[2].labs[0]
    assert (none.value, none.label) == ("None", "item 59999")


def test_a_case_may_lack_labs_and_reports(release: Path) -> None:
    case = load_cohort(release).cases[3]
    assert case.labs == () and case.radiology == ()


def test_repr_shows_no_text_and_no_ids(release: Path) -> None:
    cohort = load_cohort(release)
    case = cohort.cases[0]
    shown = repr(cohort) + repr(case) + repr(case.labs) + repr(case.radiology) + repr(case.microbiology)
    for hidden in (SECRET, str(FIRST_ID), "12.4", "SECRETNAME", "appendicitis", "White Blood Cells", "Abdomen"):
        assert hidden not in shown


def test_digest_covers_the_files_read_in_name_order(release: Path) -> None:
    for name in OUTCOMES:
        (release / name).write_text("never read")
    names = sorted([HPI, PE, LABS, MAPPING, MICROBIOLOGY, RADIOLOGY, LABELS])
    digest = hashlib.sha256(b"".join((release / name).read_bytes() for name in names)).hexdigest()
    assert load_cohort(release).sha256 == digest


def test_hospitals_are_read_when_present(release: Path) -> None:
    names = {str(FIRST_ID + i): "north" if i else "south  wing" for i in range(4)}
    (release / HOSPITALS).write_text(json.dumps(names))
    cohort = load_cohort(release)
    assert cohort.hospitals == ("north", "south wing")
    assert cohort.cases[0].hospital == "south wing"


def test_bom_crlf_and_extra_columns_are_accepted(release: Path) -> None:
    lines = (release / LABS).read_text().splitlines()
    lines = [lines[0] + ",flag", *(line + "," for line in lines[1:])]
    (release / LABS).write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert load_cohort(release).cases[0].labs[0].value == "12.4 K/uL"


def test_the_columns_of_the_layout_may_stand_in_another_order(release: Path) -> None:
    (release / PE).write_text("pe,hadm_id\n" + "".join(f"soft {i},{FIRST_ID + i}\n" for i in range(4)))
    assert [case.examination for case in load_cohort(release).cases] == ["soft 0", "soft 1", "soft 2", "soft 3"]


def test_windows_line_ends_give_the_same_texts(release: Path) -> None:
    before = load_cohort(release).cases
    for name in COLUMNS:
        (release / name).write_bytes((release / name).read_bytes().replace(b"\n", b"\r\n"))
    assert load_cohort(release).cases == before


def test_a_field_longer_than_the_parser_allows_is_read_and_the_limit_of_the_process_stays(release: Path) -> None:
    before = csv.field_size_limit()
    report = "liver normal. " * 15_000  # 210 kB
    _append(RADIOLOGY, f"{FIRST_ID},N-9,CT,Abdomen,CT,{report}\n")(release)
    assert load_cohort(release).cases[0].radiology[-1].text == report
    assert csv.field_size_limit() == before


def test_microbiology_has_names_and_may_be_absent_for_a_case_or_for_all(release: Path) -> None:
    first, second = load_cohort(release).cases[0].microbiology
    assert (first.test_itemid, first.test, first.value, first.spec_itemid) == (
        90201, "Blood Culture", f"NO GROWTH {SECRET}.", 70012,
    )  # fmt: skip
    assert second.test == "item 90039" and second.value.endswith(", None")
    assert load_cohort(release).cases[1].microbiology == ()
    for name in (MICROBIOLOGY, *OUTCOMES):
        (release / name).write_text(",".join(COLUMNS[name]) + "\n")
    assert all(case.microbiology == () for case in load_cohort(release).cases)


def test_rank_is_the_place_in_the_list_of_the_class(release: Path) -> None:
    first = FIRST_ID
    lists = {"pancreatitis": [7, first + 2, first], "appendicitis": [first + 3], "cholecystitis": [first + 1]}
    (release / LABELS).write_text(json.dumps(lists))
    assert [case.rank for case in load_cohort(release).cases] == [2, 0, 1, 0]


def test_age_comes_from_the_history_where_it_is_not_masked(release: Path) -> None:
    assert [case.age for case in load_cohort(release).cases] == [None] * 4
    _replace(HPI, " ___ is a ___ year old", " ___ is a 57 year old")(release)
    assert [case.age for case in load_cohort(release).cases] == [57, None, None, None]


def test_several_reports_of_one_modality_and_region_are_kept(release: Path) -> None:
    _append(RADIOLOGY, f"{FIRST_ID},N-8,CT,Abdomen,CT ABD,second\n")(release)
    assert [report.modality for report in load_cohort(release).cases[0].radiology].count("CT") == 2


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8", newline="")

    return damage


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def _pack(folder: Path, name: str) -> None:
    (folder / name).write_bytes(gzip.compress((folder / name).read_bytes()))


def _append(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text((folder / name).read_text() + text, newline="")

    return damage


def _labels(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        table = json.loads((folder / LABELS).read_text())
        change(table)
        (folder / LABELS).write_text(json.dumps(table))

    return damage


def _rename_pancreatitis(table: dict[str, object]) -> None:
    table["pancreatitus"] = table.pop("pancreatitis")


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "history absent": (lambda f: (f / HPI).unlink(), f"{HPI}: file missing"),
    "radiology absent": (lambda f: (f / RADIOLOGY).unlink(), f"{RADIOLOGY}: file missing"),
    "empty file": (_write(PE, ""), f"{PE}: the file is empty"),
    "blank file": (_write(PE, "\n \n"), f"{PE}: the file is empty"),
    "no rows": (_write(HPI, "hadm_id,hpi\n"), f"{HPI}: no rows"),
    "no lab rows": (_write(LABS, "hadm_id,itemid,valuestr,ref_range_lower,ref_range_upper\n"), f"{LABS}: no rows"),
    "open quote": (_append(HPI, f'10000009,"never closed {SECRET}\n'), f"{HPI}, line .*malformed CSV"),
    "too many fields": (_append(PE, f"10000009,{SECRET},more\n"), f"{PE}, row 5: malformed CSV.*2 fields; received 3"),
    "too few fields": (_append(LABS, f"{FIRST_ID},51301\n"), f"{LABS}, row 10: malformed CSV.*5 fields; received 2"),
    "renamed column": (_replace(LABS, "itemid", "litemid"), "'itemid' missing.*did you mean litemid"),
    "no header": (_replace(HPI, "hadm_id,hpi\n", ""), f"{HPI}: column 'hadm_id' missing"),
    "repeated column": (_replace(PE, "hadm_id,pe", "hadm_id,hadm_id"), "'hadm_id' stands twice"),
    "id no number": (_append(PE, f"12x,{SECRET}\n"), f"{PE}, row 5: hadm_id is no whole number"),
    "itemid fraction": (_append(LABS, f"{FIRST_ID},513.5,1,,\n"), f"{LABS}, row 10: itemid is no whole"),
    "mapping itemid": (_append(MAPPING, "abc,x,,,,[]\n"), f"{MAPPING}, row 6: itemid is no whole"),
    "limit no number": (_append(LABS, f"{FIRST_ID},51301,1,{SECRET},\n"), "row 10: ref_range_lower is no number"),
    "duplicate history": (_append(HPI, f"{FIRST_ID},{SECRET}\n"), f"{HPI}, row 5: duplicate hadm_id"),
    "duplicate examination": (_append(PE, f"{FIRST_ID},{SECRET}\n"), f"{PE}, row 5: duplicate hadm_id"),
    "no label": (_labels(lambda t: t.update(appendicitis=[])), f"{LABELS}: no label for 1 case of {HPI}"),
    "no examination": (
        _replace(PE, str(FIRST_ID), "10000077"),
        f"{PE}: no examination for 1 case",
    ),
    "labels absent": (lambda f: (f / LABELS).unlink(), f"{LABELS}: file missing.*v1.0.*download v1.1"),
    "labels malformed": (_write(LABELS, "{"), f"{LABELS}, line 1: malformed JSON"),
    "labels huge number": (_write(LABELS, "9" * 5000), f"{LABELS}: malformed JSON"),
    "labels a list": (_write(LABELS, "[1]"), f"{LABELS}: malformed content.*object"),
    "unknown diagnosis": (
        _labels(_rename_pancreatitis),
        "unknown diagnosis 'pancreatitus'; expected appendicitis.*did you mean pancreatitis",
    ),
    "inverted labels": (
        _labels(lambda t: t.update({str(FIRST_ID): "appendicitis"})),
        "a key that is none of the diagnoses; expected appendicitis",
    ),
    "labels no list": (_labels(lambda t: t.update(appendicitis=3)), "appendicitis holds no list"),
    "label id no number": (_labels(lambda t: t.update(appendicitis=[SECRET])), "entry 0: hadm_id is no whole"),
    "two classes": (
        _labels(lambda t: t.update(cholecystitis=[FIRST_ID])),
        "two diagnoses for 1 case",
    ),
    "zip renamed": (
        _write(HPI, b"PK\x03\x04\x14\x00\xff\xfe\x80\x81"),
        "this is a zip archive.*unpack it first",
    ),
    "utf-16": (_write(LABELS, "{}".encode("utf-16")), f"{LABELS}: this is UTF-16 text; save it as UTF-8"),
    "gzip renamed": (lambda f: _pack(f, PE), f"{PE}: this is gzip-compressed.*unpack it first"),
    "utf-16 without mark": (_write(LABELS, ("{}" * 20).encode("utf-16-le")), f"{LABELS}: this is UTF-16 text"),
    "latin-1": (_write(PE, "hadm_id,pe\n10000001,37 \xb0C\n".encode("latin-1")), f"{PE}: byte 23 is no UTF-8 text"),
    "a login page": (_write(LABELS, "<!DOCTYPE html>\n<html>"), f"{LABELS}: this is a web page.*credentials"),
    "NUL bytes": (_replace(PE, "soft", "so\0ft"), f"{PE}: the file holds NUL bytes"),
    "packed": (lambda f: (f / HPI).rename(f / f"{HPI}.gz"), f"{HPI}: file missing; unpack {HPI}.gz first"),
    "packed under its stem": (lambda f: (f / LABS).rename(f / "laboratory_tests.zip"), "unpack laboratory_tests.zip"),
    "two absent": (lambda f: [(f / name).unlink() for name in (PE, LABELS)], f"{PE}, {LABELS}: files missing"),
    "microbiology absent": (lambda f: (f / MICROBIOLOGY).unlink(), f"{MICROBIOLOGY}: file missing"),
    "outcomes absent": (lambda f: (f / "icd_diagnosis.csv").unlink(), "icd_diagnosis.csv: file missing"),
    "semicolons": (_write(PE, "hadm_id;pe\n1;x\n"), f"{PE}: column 'hadm_id' missing.*separate the columns by commas"),
    "capital columns": (_replace(PE, "hadm_id,pe", "HADM_ID,pe"), f"{PE}: column 'hadm_id' missing.*in lower case"),
    "scientific ids": (_replace(PE, f"{FIRST_ID},", "1.0E+07,"), f"{PE}, row 1: hadm_id is no whole.*loses some"),
    "fractional id": (_replace(PE, f"{FIRST_ID},", f"{FIRST_ID}.5,"), f"{PE}, row 1: hadm_id is no whole number"),
    "several no numbers": (_write(PE, "hadm_id,pe\nx,a\n1,b\ny,c\nz,d\n"), "row 1: .*, as in 2 more of its rows"),
    "infinite limit": (_append(LABS, f"{FIRST_ID},51301,1,inf,\n"), "row 10: ref_range_lower is no number"),
    "limit with underscore": (_append(LABS, f"{FIRST_ID},51301,1,,1_0\n"), "row 10: ref_range_upper is no number"),
    "duplicate report": (_append(RADIOLOGY, f"{FIRST_ID},N-2,CT,Abdomen,CT,x\n"), "row 6: duplicate note_id"),
    "culture no number": (_append(MICROBIOLOGY, f"{FIRST_ID},x,y,1\n"), "row 4: test_itemid is no whole number"),
    "specimen no number": (_append(MICROBIOLOGY, f"{FIRST_ID},1,y,\n"), "row 4: spec_itemid is no whole number"),
    "label a truth value": (_labels(lambda t: t.update(appendicitis=[True])), "entry 0: hadm_id is no whole"),
    "label key twice": (_write(LABELS, '{"appendicitis": [], "appendicitis": []}'), f"{LABELS}: a key stands twice"),
    "fabricated reports": (_replace(RADIOLOGY, "N-1", "SYN-1"), f"{HPI}: fabricated cases are mixed with others"),
    "hospital a text": (_write(HOSPITALS, json.dumps({str(FIRST_ID): SECRET * 9})), "entry 0: hospital is no name"),
    "hospital twice": (_write(HOSPITALS, '{"1": "a", "1.0": "b"}'), "entry 1: this case also has another hospital"),
    "hospital absent": (_write(HOSPITALS, json.dumps({str(FIRST_ID): "north"})), "no hospital for 3 cases"),
    "hospital no name": (_write(HOSPITALS, json.dumps({str(FIRST_ID): 3})), "entry 0: hospital is no name"),
    "hospital id": (_write(HOSPITALS, json.dumps({SECRET: "north"})), "entry 0: hadm_id is no whole"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_release_gives_one_line_without_patient_data(release: Path, name: str) -> None:
    damage, pattern = DAMAGES[name]
    damage(release)
    with pytest.raises(InputError) as caught:
        load_cohort(release)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message
    assert SECRET not in message and str(FIRST_ID) not in message


def test_a_folder_in_place_of_a_table_is_reported_missing(release: Path) -> None:
    (release / PE).unlink()
    (release / PE).mkdir()
    with pytest.raises(InputError, match="file missing"):
        load_cohort(release)


def test_the_folder_must_exist_and_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_cohort(tmp_path / "absent")
    (tmp_path / "cdm.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"this is a file.*unpack"):
        load_cohort(str(tmp_path / "cdm.zip"))


def test_an_unreadable_file_is_an_input_error(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"history_of_present_illness.csv: cannot be read \(Permission denied\)"):
        load_cohort(release)


def test_an_empty_folder_is_told_apart_from_one_with_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no file of the layout is here; expected {HPI}"):
        load_cohort(tmp_path)
