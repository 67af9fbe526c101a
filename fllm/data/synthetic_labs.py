"""Laboratory rows of a fabricated case, and the table that names the tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from fllm.data.cdm import DIAGNOSES
from fllm.data.draws import chance, draw_from, keyed_generator, lognormal
from fllm.data.synthetic_patients import Patient
from fllm.data.synthetic_spec import specification

LabRow = tuple[int, int, str, str, str]
"""hadm_id, itemid, valuestr, ref_range_lower, ref_range_upper: the columns of laboratory_tests.csv."""

MappingRow = tuple[str, str, str, str, str, str]
"""itemid, label, fluid, category, count, corresponding_ids: the columns of lab_test_mapping.csv."""

WHITE_CELLS = 51301
_ENZYMES_OF_PANCREAS = (50956, 50867)
_TRIGLYCERIDES = 51000
_URINE_COLOUR = 51508
_PANELS = (
    ("Complete Blood Count (CBC)", (51301, 51222, 51221, 51265, 51279)),
    ("Liver Function Tests (LFTs)", (50861, 50878, 50863, 50885)),
    ("Basic Metabolic Panel (BMP)", (50983, 50971, 50902, 50882, 51006, 50912, 50931)),
)
_ALTERNATES = {51301: (51755, 51300), 50889: (51652,)}


def _value(rng: np.random.Generator, patient: Patient, test: dict[str, Any]) -> float:
    itemid, lab_class = test["itemid"], patient.lab_class
    if itemid in _ENZYMES_OF_PANCREAS and patient.dual == "pancreatitis":
        lab_class = "pancreatitis"
    median, sigma = test["dist"][lab_class[0]]
    if itemid == _TRIGLYCERIDES and lab_class == "pancreatitis" and patient.etiology == "hypertriglyceridemia":
        median, sigma = test["htg_value"]
    value = lognormal(rng, median, sigma) * patient.hospital.gain[itemid]
    value *= test.get("severe_mult", 1.0) if patient.severe else 1.0
    value *= test.get("biliary_mult", 1.0) if patient.biliary else 1.0
    return min(value, test.get("cap", np.inf))


def as_float_text(value: float, decimals: int) -> str:
    """Write a number as the release does, where even whole numbers carry ``.0``."""
    return f"{value:.{decimals}f}" if decimals else f"{value:.0f}.0"


def _blood_row(rng: np.random.Generator, hadm_id: int, patient: Patient, test: dict[str, Any]) -> LabRow:
    value = as_float_text(_value(rng, patient, test), test["dec"])
    shift = patient.hospital.range_shift[test["itemid"]] * (test["hi"] - test["lo"])
    lower = test["lo"] + shift if test["lo"] else 0.0
    return hadm_id, test["itemid"], f"{value} {test['unit']}".strip(), f"{lower:.2f}", f"{test['hi'] + shift:.2f}"


def draw_lab_rows(hadm_id: int, patient: Patient, seed: int) -> list[LabRow]:
    """Return the first value of each test that was ordered; the white cells when nothing else was."""
    spec, column = specification(), DIAGNOSES.index(patient.lab_class)
    rng = keyed_generator(seed, "labs", patient.index)
    ordered = 1.0 - patient.hospital.extra_missing
    rows = []
    for test in spec["labs"]:
        present = chance(rng, test["avail"][column] * (ordered if test["avail"][column] < 0.9 else 1.0))
        row = _blood_row(rng, hadm_id, patient, test)
        if present:
            rows.append(row)
    if not rows:
        white = next(test for test in spec["labs"] if test["itemid"] == WHITE_CELLS)
        rows.append(_blood_row(rng, hadm_id, patient, white))
    if chance(rng, spec["urinalysis"]["avail"][column]):
        rows += [
            (hadm_id, item["itemid"], draw_from(rng, item["values"]), "", "") for item in spec["urinalysis"]["items"]
        ]
    return rows


def has_urinalysis(rows: list[LabRow]) -> bool:
    """Tell whether a urinalysis is among the laboratory rows of a case."""
    return any(row[1] == _URINE_COLOUR for row in rows)


def lab_mapping_rows(itemids: Iterable[int], *, realistic: bool = False) -> list[MappingRow]:
    """Return lab_test_mapping.csv as the release has it.

    Itemids and counts are written as floats, cultures have a name only, and panels have no itemid.
    """
    counts = Counter(itemids)
    spec = specification()
    tests = [(test["itemid"], test["label"], test["fluid"], test["category"]) for test in spec["labs"]]
    tests += [(item["itemid"], item["label"], "Urine", "Hematology") for item in spec["urinalysis"]["items"]]
    if realistic:
        tests += [
            (test["itemid"], test["label"], test["fluid"], test["category"])
            for group in spec["filler_labs"]
            for test in group["tests"]
        ]
    rows = []
    for itemid, label, fluid, category in tests:
        ids = [itemid, *_ALTERNATES.get(itemid, ())]
        rows += [(f"{one}.0", label, fluid, category, f"{counts[one]}.0", str(ids)) for one in ids]
    for test in spec["microbiology"]["tests"]:
        rows.append((f"{test['test_itemid']}.0", test["name"], "", "", "", str([test["test_itemid"]])))
    return rows + [("", label, "", "", "", str(list(ids))) for label, ids in _PANELS]
