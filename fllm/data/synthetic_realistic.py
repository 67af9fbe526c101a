"""What only the realistic cohort has: histories and laboratory lists about as long as those of the real release.

The additions are neutral: sentences without a diagnosis in them, and tests whose presence and values do not depend on
the class. Only the length of a history depends on it, as it does in the release.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fllm.data.draws import chance, draw_from, keyed_generator, lognormal, permuted
from fllm.data.synthetic_labs import LabRow, as_float_text
from fllm.data.synthetic_patients import Patient
from fllm.data.synthetic_spec import phrases as bank
from fllm.data.synthetic_spec import specification
from fllm.data.synthetic_text import PAST_HISTORY


def lengthen_history(history: str, patient: Patient, seed: int) -> str:
    """Add neutral sentences before the past history, up to the length drawn for the class [characters].

    A history that is long enough already stays as it is, and the sentences may run out before the length is reached.
    """
    target = specification()["hpi_target_chars"]
    rng = keyed_generator(seed, "history length", patient.index)
    missing = lognormal(rng, target[patient.image_class], target["sigma"]) - len(history)
    added = ""
    for sentence in permuted(rng, bank()["history_filler"]):
        if len(added) + len(sentence) / 2 > missing:
            break
        added += sentence + ". "
    present, past = history.split(PAST_HISTORY, 1)
    return present + added + PAST_HISTORY + past


def _row(rng: np.random.Generator, hadm_id: int, test: dict[str, Any]) -> LabRow:
    if "values" in test:
        return hadm_id, test["itemid"], draw_from(rng, test["values"]), "", ""
    value = as_float_text(lognormal(rng, *test["dist"]), test["dec"])
    return hadm_id, test["itemid"], f"{value} {test['unit']}", f"{test['lo']:.2f}", f"{test['hi']:.2f}"


def filler_lab_rows(hadm_id: int, patient: Patient, seed: int, *, urinalysis: bool) -> list[LabRow]:
    """Return the additional tests of a case; groups of urine tests only where a urinalysis was done."""
    rng = keyed_generator(seed, "filler labs", patient.index)
    rows = []
    for group in specification()["filler_labs"]:
        ordered = chance(rng, group["avail"]) and (urinalysis or group.get("beside") != "urinalysis")
        drawn = [_row(rng, hadm_id, test) for test in group["tests"]]
        rows += drawn if ordered else []
    return rows
