"""What a cohort says of itself: warnings, whether it is fabricated, and one hospital for each folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from device_models.errors import InputError
from fllm.data import Cohort, load_cohort
from fllm.data.cdm import client_folders
from fllm.data.cdm_files import COLUMNS, EXAMINATION, HISTORY, HOSPITALS, LABELS, LABS, MICROBIOLOGY

SECRET, FIRST_ID = "zebrafish", 10000001  # those of conftest.small_release


def _change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8", newline="")


def _renumbered(folder: Path, first: int, *, notes: str = "N-", before: int = FIRST_ID) -> Cohort:
    """Give a release of four cases other admissions, and its reports other names."""
    for name in (*COLUMNS, LABELS):
        text = (folder / name).read_text(encoding="utf-8").replace(str(before)[:-1], str(first)[:-1])
        (folder / name).write_text(text.replace("N-", notes), encoding="utf-8", newline="")
    return load_cohort(folder)


def test_warnings_say_what_was_left_out_and_nothing_of_a_patient(release: Path) -> None:
    labels = json.loads((release / LABELS).read_text())
    labels["appendicitis"].append(77)
    (release / LABELS).write_text(json.dumps(labels))
    assert load_cohort(release).warnings == (
        "The layout has no patient identifiers, so splits are by admission, and a patient with several admissions may"
        " be trained and tested on.",
        f"Left out of {LABS}: 1 row of admissions that {HISTORY} lacks.",
        f"Left out of {MICROBIOLOGY}: 1 row of admissions that {HISTORY} lacks.",
        f"Left out of {LABELS}: 1 row of admissions that {HISTORY} lacks.",
        f"Left out of {LABS}: 1 row that repeats a test of its admission.",
    )


def test_ids_of_the_release_bring_its_warnings(release: Path) -> None:
    cohort = _renumbered(release, 20000001)
    assert not cohort.synthetic
    assert cohort.warnings[0].startswith("The release has no patient identifiers")
    assert "17 of its patients" in cohort.warnings[0] and "10 of them" in cohort.warnings[0]
    assert "has 4 cases, and not the 2,400 (957/648/257/538)" in cohort.warnings[1]
    assert cohort.warnings[2] == "Cases without microbiology: not shown (23 % in the release)."


def test_only_numbers_and_marked_reports_make_a_cohort_fabricated(release: Path) -> None:
    high = _renumbered(release, 90000001)
    assert not high.synthetic and "they count as real" in high.warnings[1]
    marked = _renumbered(release, 90000001, notes="SYN-", before=90000001)
    assert marked.synthetic and not any("identifiers" in warning for warning in marked.warnings)


@pytest.mark.parametrize(("name", "what"), [(HISTORY, "histories"), (EXAMINATION, "examinations")])
def test_a_text_that_names_its_own_diagnosis_is_a_warning(release: Path, name: str, what: str) -> None:
    first, rest = (release / name).read_text().split(str(FIRST_ID + 1))[0], SECRET
    _change(release / name, first, first.replace(rest, "Cholecystitis"))
    assert not any("own diagnosis" in warning for warning in load_cohort(release).warnings)
    _change(release / name, "Cholecystitis", "Appendicitis")
    assert load_cohort(release).warnings[1].startswith(f"The {what} of < 5 cases name their own diagnosis")


@pytest.fixture
def two_hospitals(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two folders that have no case in common."""
    parent = tmp_path_factory.mktemp("clients")
    shutil.copytree(release, parent / "south")
    shutil.copytree(release, parent / "north")
    _renumbered(parent / "north", 30000001)
    return parent


def test_a_folder_of_folders_holds_one_hospital_in_each(two_hospitals: Path) -> None:
    (two_hospitals / ".cache").mkdir()
    cohort = load_cohort(two_hospitals)
    assert cohort.hospitals == ("north", "south") and len(cohort.cases) == 8
    assert [case.hospital for case in cohort.cases] == ["north"] * 4 + ["south"] * 4
    assert len({(case.diagnosis, case.rank) for case in cohort.cases}) == 8
    assert f"Left out of {LABS}: 2 rows of admissions that {HISTORY} lacks." in cohort.warnings
    assert [folder.name for folder in client_folders(two_hospitals)] == ["north", "south"]


def test_the_digest_of_several_folders_covers_all_and_their_names(two_hospitals: Path) -> None:
    first = load_cohort(two_hospitals).sha256
    (two_hospitals / "south").rename(two_hospitals / "west")
    renamed = load_cohort(two_hospitals).sha256
    _change(two_hospitals / "west" / EXAMINATION, "soft", "hard")
    assert len({first, renamed, load_cohort(two_hospitals).sha256}) == 3


def test_a_hospital_file_inside_of_a_hospitals_folder_is_said_to_be_unused(two_hospitals: Path) -> None:
    names = {str(FIRST_ID + i): "elsewhere" for i in range(4)}
    (two_hospitals / "south" / HOSPITALS).write_text(json.dumps(names))
    cohort = load_cohort(two_hospitals)
    assert cohort.hospitals == ("north", "south")
    assert cohort.warnings[-1] == f"Not used: the {HOSPITALS} in south, since a folder is a hospital."


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "file absent": (
        lambda f: (f / "south" / EXAMINATION).unlink(),
        f"south/{EXAMINATION}: file missing; put it into south/",
    ),
    "file damaged": (
        lambda f: _change(f / "south" / EXAMINATION, str(FIRST_ID), SECRET),
        f"south/{EXAMINATION}, row 1: hadm_id is no whole",
    ),
    "other folder": (lambda f: (f / "notes").mkdir(), f"notes/{HISTORY}: file missing; expected one hospital's tables"),
    "a single one": (
        lambda f: shutil.rmtree(f / "north"),
        f"{HISTORY}: file missing; name the folder south/ inside this one",
    ),
    "a case in both": (
        lambda f: shutil.copytree(f / "south", f / "west"),
        "south/ and west/: an admission stands in two folders",
    ),
    "long name": (lambda f: (f / "south").rename(f / ("s" * 61)), "a hospital's folder has no fit name"),
    "fabricated in one": (
        lambda f: _renumbered(f / "north", 90000001, notes="SYN-", before=30000001),
        "fabricated cases are mixed",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders_of_hospitals_give_one_line(two_hospitals: Path, name: str) -> None:
    damage, pattern = DAMAGES[name]
    damage(two_hospitals)
    with pytest.raises(InputError, match=pattern) as caught:
        load_cohort(two_hospitals)
    assert SECRET not in str(caught.value) and str(FIRST_ID) not in str(caught.value)
