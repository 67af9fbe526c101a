"""The tables of the synthetic cohort against the layout of MIMIC-IV-Ext-CDM v1.1 and the specification's shares."""

from __future__ import annotations

import ast
import csv
import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from device_models.errors import InputError
from fllm.data.cdm_cases import DIAGNOSES
from fllm.data.cdm_files import COLUMNS
from fllm.data.synthetic import synthesize_cohort, write_cohort
from fllm.data.synthetic_patients import assign_hospitals, draw_labels
from fllm.data.synthetic_spec import specification
from fllm.data.synthetic_tables import SyntheticRecipe, SyntheticTables

_WHOLE, _FLOAT, _TEXT = r"\d+", r"-?\d+\.\d+", r"(?s).+"
FORMS: dict[str, tuple[str, ...]] = {
    "history_of_present_illness.csv": (r"9\d{7}", _TEXT),
    "physical_examination.csv": (r"9\d{7}", r"(?s).{40,}"),
    "laboratory_tests.csv": (r"9\d{7}", r"5\d{4}", _TEXT, rf"({_FLOAT})?", rf"({_FLOAT})?"),
    "lab_test_mapping.csv": (r"(\d{5}\.0)?", _TEXT, ".*", ".*", r"(\d+\.0)?", r"\[\d+(, \d+)*\]"),
    "radiology_reports.csv": (r"9\d{7}", r"SYN-9\d{7}-RR-\d", _TEXT, "Abdomen|Chest", _TEXT, _TEXT),
    "microbiology.csv": (r"9\d{7}", r"9\d{4}", _TEXT, r"7\d{4}"),
    "discharge_diagnosis.csv": (r"9\d{7}", _TEXT),
    "icd_diagnosis.csv": (r"9\d{7}", r"[A-Z].*"),
    "discharge_procedures.csv": (r"9\d{7}", r"[A-Za-z].*"),
    "icd_procedures.csv": (r"9\d{7}", r"\d{4}|[0-9A-Z]{7}", r"[A-Z].*", "9|10"),
}


@pytest.fixture(scope="module")
def tables() -> SyntheticTables:
    return synthesize_cohort(2400, n_hospitals=4, seed=0)


def _read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream, strict=True))


@pytest.mark.parametrize("name", COLUMNS)
def test_every_cell_has_the_form_of_its_column(synthetic_folder: Path, name: str) -> None:
    header, *rows = _read(synthetic_folder / name)
    assert tuple(header) == COLUMNS[name] and rows
    for column, form in zip(zip(*rows, strict=True), FORMS[name], strict=True):
        assert all(re.fullmatch(form, cell) for cell in set(column))


def test_the_mapping_names_every_test_once_and_counts_it(tables: SyntheticTables) -> None:
    counts = Counter(int(row[1]) for row in tables.rows["laboratory_tests.csv"])
    cultures = {int(row[1]) for row in tables.rows["microbiology.csv"]}
    named = [row for row in tables.rows["lab_test_mapping.csv"] if row[0]]
    itemids = [int(float(row[0])) for row in named]
    assert len(set(itemids)) == len(itemids) and set(itemids) >= {*counts, *cultures}
    for itemid, (_, _, fluid, category, count, ids) in zip(itemids, named, strict=True):
        assert itemid in ast.literal_eval(str(ids))
        if itemid in cultures:
            assert (fluid, category, count) == ("", "", "")
        else:
            assert fluid and category and float(count) == counts[itemid]
    assert sum(row[0] == "" for row in tables.rows["lab_test_mapping.csv"]) == 3


@pytest.mark.parametrize("name", ["laboratory_tests.csv", "microbiology.csv"])
def test_a_case_has_each_test_once(tables: SyntheticTables, name: str) -> None:
    keys = [row[:2] for row in tables.rows[name]]
    assert len(set(keys)) == len(keys)


def test_no_admission_is_below_ninety_million(tables: SyntheticTables) -> None:
    ids = [int(row[0]) for name, rows in tables.rows.items() if name != "lab_test_mapping.csv" for row in rows]
    assert min(ids) >= 90_000_000 and set(ids) == set(tables.hospitals)


@pytest.mark.parametrize("name", DIAGNOSES)
def test_shares_of_a_class_follow_the_specification(tables: SyntheticTables, name: str) -> None:
    spec, ids = specification(), tables.labels[name]
    assert len(ids) / 2400 == pytest.approx(spec["priors"][name], abs=0.02)
    masked = {row[0] for row in tables.rows["radiology_reports.csv"] if spec["mask_token"] in str(row[5])}
    assert sum(i in masked for i in ids) / len(ids) == pytest.approx(spec["mask_rate"][name], abs=0.05)
    done = {row[0]: row[1] for row in tables.rows["discharge_procedures.csv"]}
    for procedure, share in spec["procedures"][name].items():
        measured = sum(done.get(i, "none") == procedure for i in ids) / len(ids)
        assert measured == pytest.approx(share, abs=0.06), procedure


def test_as_many_cases_have_a_procedure_as_in_the_release(tables: SyntheticTables) -> None:
    done = {row[0] for row in tables.rows["discharge_procedures.csv"]}
    coded = {row[0] for row in tables.rows["icd_procedures.csv"]}
    assert 0.6 <= len(done) / 2400 <= 0.8
    assert coded < done and len(coded) / len(done) == pytest.approx(specification()["procedure_coded"], abs=0.03)


def test_every_case_has_one_text_of_each_kind_and_at_least_one_title(tables: SyntheticTables) -> None:
    for name in ("history_of_present_illness.csv", "physical_examination.csv", "discharge_diagnosis.csv"):
        assert [row[0] for row in tables.rows[name]] == list(tables.hospitals)
    assert {row[0] for row in tables.rows["icd_diagnosis.csv"]} == set(tables.hospitals)
    abdomen = {row[0] for row in tables.rows["radiology_reports.csv"] if row[3] == "Abdomen"}
    assert abdomen == set(tables.hospitals) == {row[0] for row in tables.rows["laboratory_tests.csv"]}


def test_equal_seeds_give_an_equal_digest(tmp_path: Path) -> None:
    def digest(name: str, *, realistic: bool) -> str:
        folder = write_cohort(tmp_path / name, 50, n_hospitals=3, seed=11, realistic=realistic)
        content = b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.iterdir()))
        return hashlib.sha256(content).hexdigest()

    first = digest("a", realistic=False)
    assert digest("b", realistic=False) == first
    assert digest("c", realistic=True) == digest("d", realistic=True) != first


def _divergence(concentration: float, seed: int) -> float:
    """Return the Jensen-Shannon divergence of the hospitals' mixes of diagnoses, weighted by size [bit]."""
    labels = draw_labels(2400, seed)
    at = np.array(assign_hospitals(labels, 8, seed, concentration))
    counts = np.array([[np.sum(at[np.array(labels) == name] == h) for name in DIAGNOSES] for h in range(8)], float)

    def entropy(shares: np.ndarray) -> np.ndarray:
        return -np.sum(np.where(shares > 0, shares * np.log2(np.maximum(shares, 1e-300)), 0.0), axis=-1)

    sizes = counts.sum(axis=1)
    mixes = counts / sizes[:, None]
    return float(entropy(counts.sum(axis=0) / 2400) - sizes @ entropy(mixes) / 2400)


def test_hospitals_differ_more_as_the_label_concentration_falls() -> None:
    divergences = [np.mean([_divergence(alpha, seed) for seed in (0, 1)]) for alpha in (100.0, 10.0, 1.0, 0.1)]
    assert all(more > less for less, more in pairwise(divergences))


def test_progress_is_told_after_each_case() -> None:
    told: list[int] = []
    synthesize_cohort(5, n_hospitals=1, progress=told.append)
    assert told == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("concentration", [0.0, -1.0, 1e6, float("nan")])
def test_an_impossible_concentration_is_refused(concentration: float) -> None:
    with pytest.raises(InputError, match="label concentration"):
        SyntheticRecipe(label_concentration=concentration)


def test_the_repr_shows_no_text_and_no_identifier(tables: SyntheticTables) -> None:
    assert "9000" not in repr(tables) and "pain" not in repr(tables) and "n_cases=2400" in repr(tables)
