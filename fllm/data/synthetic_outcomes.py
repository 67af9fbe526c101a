"""Cultures and outcome tables of a fabricated case: what was grown, found, coded and done.

The outcomes follow the label. They name the answer or its treatment, so the loader never puts them into a case; the
files exist so that a fabricated folder has everything the release has.
"""

from __future__ import annotations

from dataclasses import dataclass

from fllm.data.draws import chance, draw_from, keyed_generator, pick
from fllm.data.synthetic_patients import Patient
from fllm.data.synthetic_spec import specification

CultureRow = tuple[int, int, str, int]
"""hadm_id, test_itemid, valuestr, spec_itemid: the columns of microbiology.csv."""

_URINE_CULTURE = 90039
_NO_PROCEDURE = "none"
_REMOVES_GALLBLADDER = "laparoscopic cholecystectomy"


@dataclass(frozen=True)
class Outcomes:
    """What the outcome tables say of one case.

    Args:
        discharge_diagnosis: Text of the discharge diagnosis, one or two lines.
        icd_titles: Titles of the coded diagnoses, the primary one first.
        procedure: Name of the procedure, or None.
        procedure_code: Code, title and ICD version of the procedure, or None where it was not coded.
    """

    discharge_diagnosis: str
    icd_titles: tuple[str, ...]
    procedure: str | None
    procedure_code: tuple[str, str, int] | None


def draw_cultures(hadm_id: int, patient: Patient, seed: int) -> list[CultureRow]:
    """Return the first result of each culture; none for a case whose cultures were not taken."""
    spec = specification()["microbiology"]
    rng = keyed_generator(seed, "microbiology", patient.index)
    if not chance(rng, spec["avail"][patient.image_class]):
        return []
    rows: list[CultureRow] = []
    for test in spec["tests"]:
        taken, value = chance(rng, test["p"]), draw_from(rng, test["values"])
        # The urine culture stands last and is done when nothing else was, so that a case with cultures has one.
        if taken or (not rows and test["test_itemid"] == _URINE_CULTURE):
            rows.append((hadm_id, test["test_itemid"], value, test["spec_itemid"]))
    return rows


def _discharge_diagnosis(patient: Patient, seed: int) -> str:
    table = specification()["discharge_diagnosis"]
    rng = keyed_generator(seed, "discharge", patient.index)
    primary = draw_from(rng, table[patient.label])
    extra = table["extra_lines"]
    return f"{primary}\n{pick(rng, extra['pool'])}" if chance(rng, extra["p"]) else primary


def _procedure(patient: Patient, seed: int) -> str | None:
    rng = keyed_generator(seed, "procedure", patient.index)
    done = draw_from(rng, specification()["procedures"][patient.label])
    gone = done == _REMOVES_GALLBLADDER and "cholecystectomy_remote" in patient.past
    return None if gone or done == _NO_PROCEDURE else done


def _procedure_code(patient: Patient, procedure: str, icd10: bool, seed: int) -> tuple[str, str, int] | None:
    spec = specification()
    if not chance(keyed_generator(seed, "procedure code", patient.index), spec["procedure_coded"]):
        return None
    codes = {version: (code, title, version) for code, version, title in spec["procedure_codes"][procedure]}
    return codes.get(10 if icd10 else 9, codes[9])


def _icd_titles(patient: Patient, icd10: bool, seed: int) -> tuple[str, ...]:
    spec, version = specification(), 10 if icd10 else 9
    rng = keyed_generator(seed, "icd titles", patient.index)
    present = [patient.label] if patient.dual is None else [patient.label, patient.dual]
    titles = [pick(rng, [title for title, v in spec["icd_titles"][name] if v == version]) for name in present]
    comorbidities = spec["icd_comorbidities"]
    return (*titles, *(pair[icd10] for name, pair in comorbidities.items() if name in patient.past))


def draw_outcomes(patient: Patient, seed: int) -> Outcomes:
    """Draw the outcome tables of a case; its ICD version is the same in both tables and depends on the hospital."""
    rng = keyed_generator(seed, "icd version", patient.index)
    icd10 = chance(rng, patient.hospital.profile["icd10"])
    procedure = _procedure(patient, seed)
    return Outcomes(
        discharge_diagnosis=_discharge_diagnosis(patient, seed),
        icd_titles=_icd_titles(patient, icd10, seed),
        procedure=procedure,
        procedure_code=_procedure_code(patient, procedure, icd10, seed) if procedure else None,
    )
