from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from device_models.errors import InputError
from fllm.data import DIAGNOSES, Case, Cohort, load_cohort, load_synthetic, write_cohort
from fllm.data.cdm_files import COLUMNS
from fllm.data.draws import draw_from, keyed_generator, pick
from fllm.data.synthetic import DATA_CARD, synthesize_cohort
from fllm.data.synthetic_patients import hospital_shares
from fllm.data.synthetic_spec import phrases, specification


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def test_every_file_of_the_layout_has_exactly_its_columns(synthetic_folder: Path) -> None:
    for name, columns in COLUMNS.items():
        assert tuple(_rows(synthetic_folder / name)[0]) == columns
    names = {path.name for path in synthetic_folder.iterdir()}
    assert names == {*COLUMNS, "pathology_ids.json", "hospital_ids.json", DATA_CARD}


def test_the_round_trip_keeps_every_row(synthetic_folder: Path, cohort: Cohort) -> None:
    tables = synthesize_cohort(2400, n_hospitals=4, seed=0)
    history = dict(tables.rows["history_of_present_illness.csv"])
    examination = dict(tables.rows["physical_examination.csv"])
    assert [case.hadm_id for case in cohort.cases] == list(history)
    assert all(case.history == history[case.hadm_id] for case in cohort.cases)
    assert all(case.examination == examination[case.hadm_id] for case in cohort.cases)
    labs = [(c.hadm_id, lab.itemid, lab.value) for c in cohort.cases for lab in c.labs]
    assert labs == [row[:3] for row in tables.rows["laboratory_tests.csv"]]
    reports = [
        (c.hadm_id, r.note_id, r.modality, r.region, r.exam_name, r.text) for c in cohort.cases for r in c.radiology
    ]
    assert reports == tables.rows["radiology_reports.csv"]
    assert {case.hadm_id: case.hospital for case in cohort.cases} == tables.hospitals
    assert all(case.hadm_id in tables.labels[case.diagnosis] for case in cohort.cases)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path: Path) -> None:
    folders = [
        write_cohort(tmp_path / name, 60, n_hospitals=3, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    contents = [{path.name: path.read_bytes() for path in sorted(folder.iterdir())} for folder in folders]
    assert contents[0] == contents[1]
    assert contents[0]["history_of_present_illness.csv"] != contents[2]["history_of_present_illness.csv"]
    assert not any(b"\r" in content for content in contents[0].values())


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(1)  # noqa: NPY002 - the point of this test
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = synthesize_cohort(12, seed=3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert synthesize_cohort(12, seed=3) == first


def test_class_shares_follow_the_priors(cohort: Cohort) -> None:
    counts = Counter(case.diagnosis for case in cohort.cases)
    for name, prior in specification()["priors"].items():
        assert abs(counts[name] / len(cohort.cases) - prior) < 0.02


def test_every_case_is_complete_and_marked_as_fabricated(cohort: Cohort) -> None:
    assert cohort.synthetic and len(cohort.hospitals) == 4
    assert len({case.hadm_id for case in cohort.cases}) == 2400
    for case in cohort.cases:
        assert 90_000_000 <= case.hadm_id <= 99_999_999
        assert case.labs and any(report.region == "Abdomen" for report in case.radiology)
        assert len(case.examination) >= 40
        assert all(report.note_id.startswith("SYN-") for report in case.radiology)
        assert len({lab.itemid for lab in case.labs}) == len(case.labs)


def _own_words(case: Case) -> list[str]:
    return [*specification()["banned_in_own_hpi"][case.diagnosis], case.diagnosis]


def test_no_text_of_a_case_names_its_own_disease(cohort: Cohort) -> None:
    for case in cohort.cases:
        reports = " ".join(report.text for report in case.radiology)
        texts = (case.history + case.examination + reports).lower()
        assert not any(word in texts for word in _own_words(case))


def test_values_carry_their_decimals_and_units(cohort: Cohort) -> None:
    white = next(lab for lab in cohort.cases[0].labs if lab.itemid == 51301)
    assert white.value.endswith(" K/uL") and white.number is not None
    sodium = next(lab for lab in cohort.cases[0].labs if lab.itemid == 50983)
    assert sodium.value.endswith(".0 mEq/L")
    urine = [lab for case in cohort.cases for lab in case.labs if lab.itemid == 51487]
    assert {lab.value for lab in urine} == {"NEG", "POS"} and all(lab.lower is None for lab in urine)


def test_masks_come_at_the_rate_of_the_specification(cohort: Cohort) -> None:
    for name, rate in specification()["mask_rate"].items():
        cases = [case for case in cohort.cases if case.diagnosis == name]
        masked = sum(any("____" in report.text for report in case.radiology) for case in cases)
        assert abs(masked / len(cases) - rate) < 4 * (rate * (1 - rate) / len(cases)) ** 0.5


def test_lipase_separates_pancreatitis_but_not_always(cohort: Cohort) -> None:
    def share_very_high(name: str) -> float:
        values = [lab for c in cohort.cases if c.diagnosis == name for lab in c.labs if lab.itemid == 50956]
        return float(np.mean([lab.number is not None and lab.number >= 180 for lab in values]))

    assert 0.55 < share_very_high("pancreatitis") < 0.85
    assert share_very_high("appendicitis") < 0.1


def test_hospital_shares_keep_the_prior_and_leave_no_hospital_empty() -> None:
    for n_hospitals in (1, 4, 12):
        shares = hospital_shares(n_hospitals, seed=0, label_concentration=1.0)
        assert shares.shape == (4, n_hospitals)
        assert np.allclose(shares.sum(axis=1), 1.0)
    assert len(load_synthetic(12, n_hospitals=12, seed=1).hospitals) == 12


def test_labels_differ_between_hospitals(cohort: Cohort) -> None:
    shares = []
    for hospital in cohort.hospitals:
        counts = Counter(case.diagnosis for case in cohort.cases if case.hospital == hospital)
        shares.append([counts[name] / counts.total() for name in DIAGNOSES])
    assert np.ptp(np.array(shares), axis=0).max() > 0.2


def test_more_hospitals_than_profiles_get_names_of_their_own() -> None:
    assert len(set(synthesize_cohort(200, n_hospitals=10, seed=0).hospitals.values())) == 10


def test_load_synthetic_is_the_written_cohort(tmp_path: Path) -> None:
    direct = load_synthetic(40, n_hospitals=2, seed=9)
    read = load_cohort(write_cohort(tmp_path / "x", 40, n_hospitals=2, seed=9))
    assert direct.cases == read.cases and direct.sha256 == read.sha256
    assert direct.source == "synthetic-40-cases-2-hospitals-seed-9"


def test_written_json_is_sorted(synthetic_folder: Path) -> None:
    hospitals = json.loads((synthetic_folder / "hospital_ids.json").read_text())
    assert list(hospitals) == sorted(hospitals)
    assert list(json.loads((synthetic_folder / "pathology_ids.json").read_text())) == sorted(DIAGNOSES)


@pytest.mark.parametrize(("n_cases", "n_hospitals"), [(0, 1), (-3, 1), (250_001, 1), (5, 6), (5, 0)])
def test_impossible_sizes_are_refused(n_cases: int, n_hospitals: int) -> None:
    with pytest.raises(InputError, match="number of"):
        synthesize_cohort(n_cases, n_hospitals=n_hospitals)


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.csv").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        write_cohort(tmp_path, 10, n_hospitals=2)
    with pytest.raises(InputError, match="not empty"):
        write_cohort(tmp_path / "precious.csv", 10, n_hospitals=2)
    assert (tmp_path / "precious.csv").read_text() == "x"


def test_the_assets_hold_only_text_and_numbers() -> None:
    def leaves(node: object) -> list[object]:
        if isinstance(node, dict):
            assert all(isinstance(key, str) for key in node)
            return [leaf for value in node.values() for leaf in leaves(value)]
        return [leaf for value in node for leaf in leaves(value)] if isinstance(node, list) else [node]

    for leaf in leaves(specification()) + leaves(phrases()):
        assert isinstance(leaf, int | float | str) and not isinstance(leaf, bool)


def test_probabilities_of_the_specification_sum_to_one() -> None:
    spec = specification()
    tables = [spec["priors"], spec["presentation"], spec["severity"], spec["pancreatitis_etiology"]]
    tables += [*spec["mimic_of"].values(), *spec["pain_location"].values(), *spec["tenderness_site"].values()]
    tables += [spec["discharge_diagnosis"][name] for name in DIAGNOSES]
    tables += [item["values"] for item in spec["urinalysis"]["items"]]
    for table in tables:
        assert sum(table.values()) == pytest.approx(1.0, abs=0.021)


def test_every_finding_has_words() -> None:
    spec, words = specification(), phrases()
    for name, row in spec["history_findings"].items():
        assert words["history_positive"][name] and (row["n"] == 0 or name in words["history_negative"])
    for name, row in spec["exam_findings"].items():
        assert words["exam_positive"][name] and (row["n"] == 0 or words["exam_negative"][name])
    assert all(words["past_history"][name] for name in spec["past_history"])


def test_draws_depend_on_the_key_alone() -> None:
    assert keyed_generator(1, "a", 2).random() == keyed_generator(1, "a", 2).random()
    assert keyed_generator(1, "a", 2).random() != keyed_generator(1, "a", 3).random()
    rng = keyed_generator(0, "share")
    drawn = Counter(draw_from(rng, {"x": 1.0, "y": 3.0}) for _ in range(4000))
    assert abs(drawn["y"] / 4000 - 0.75) < 0.03
    assert {pick(rng, "ab") for _ in range(50)} == {"a", "b"}
