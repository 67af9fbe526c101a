"""History and physical examination of a fabricated case.

A finding is stated present, explicitly denied, or not mentioned. Denials put the words of the *other* diseases into
the text, which is what defeats counting keywords.
"""

from __future__ import annotations

import numpy as np

from fllm.data.draws import chance, draw_from, keyed_generator, lognormal, permuted, pick
from fllm.data.synthetic_patients import VAGUE, Patient, class_index
from fllm.data.synthetic_spec import phrases as bank
from fllm.data.synthetic_spec import specification

PAST_HISTORY = "Past Medical History: "
"""Where the past history starts in the ``hpi`` column."""

_TEMPLATES = ("narrative", "telegraphic", "problem_list")
_EXAM_SITE_OF_PAIN = {"band_upper": "epigastric", "chest": "epigastric", "suprapubic": "lower"}


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _abbreviated(rng: np.random.Generator, text: str, probability: float) -> str:
    for long, short in bank()["abbreviations"].items():
        if long in text and chance(rng, probability):
            text = text.replace(long, short)
    return text


def _duration(rng: np.random.Generator, text_class: str) -> str:
    median, sigma = specification()["duration_hours"][text_class]
    hours = int(np.clip(round(lognormal(rng, median, sigma)), 3, 336))
    return f"{hours} hours" if hours < 48 else f"{round(hours / 24)} days"


def pain_site(patient: Patient, seed: int) -> str:
    """Return where the pain is, which both the history and the examination need."""
    rng = keyed_generator(seed, "pain site", patient.index)
    return draw_from(rng, specification()["pain_location"][patient.text_class])


def _opener(rng: np.random.Generator, patient: Patient, site: str) -> str:
    redacted = chance(rng, specification()["demographics"]["age_redacted"])
    slots = {
        "age": "___" if redacted else str(patient.age),
        "sex": pick(rng, ("woman", "female") if patient.female else ("man", "male")),
        "sex_letter": "F" if patient.female else "M",
        "title": "Ms." if patient.female else "Mr.",
        "duration": _duration(rng, patient.text_class),
        "location": pick(rng, bank()["location"][site]),
    }
    return pick(rng, bank()["hpi_openers"]).format(**slots)


def _history_findings(rng: np.random.Generator, patient: Patient) -> tuple[list[str], list[str], list[str]]:
    """Return the clauses on the pain, the symptoms present and the symptoms denied."""
    spec, words, column = specification(), bank(), class_index(patient.text_class)
    excluded_by = {second: first for first, second in spec["history_exclusive"]}
    pain: list[str] = []
    present: list[str] = []
    denied: list[str] = []
    stated: set[str] = set()
    for name, row in spec["history_findings"].items():
        if chance(rng, row["p"][column]) and excluded_by.get(name) not in stated:
            stated.add(name)
            (pain if name in spec["pain_character"] else present).append(pick(rng, words["history_positive"][name]))
        elif chance(rng, min(1.0, row["n"] * patient.hospital.profile["verbosity"])):
            denied.append(words["history_negative"][name])
    return permuted(rng, pain), permuted(rng, present), permuted(rng, denied)


def _narrative(
    rng: np.random.Generator, patient: Patient, pain: list[str], present: list[str], denied: list[str]
) -> list[str]:
    pronoun = "She" if patient.female else "He"
    sentences = [", ".join(pain)] if pain else []
    while present:
        size = 1 + int(rng.random() * 3)
        group, present = present[:size], present[size:]
        sentences.append(pick(rng, bank()["positive_frames"]).format(pronoun=pronoun, list=", ".join(group)))
    if denied:
        frame = pick(rng, bank()["negative_frames"])
        sentences.append(frame.format(pronoun=pronoun, list=", ".join(denied)))
    return sentences


def _telegraphic(pain: list[str], present: list[str], denied: list[str]) -> list[str]:
    parts = [", ".join(pain)] if pain else []
    parts += ["(+) " + ", ".join(present)] if present else []
    parts += ["(-) " + ", ".join(denied)] if denied else []
    return parts


def _problem_list(pain: list[str], present: list[str], denied: list[str]) -> list[str]:
    parts = ["# Pain: " + "; ".join(pain)] if pain else []
    parts += ["# Associated: " + "; ".join(present)] if present else []
    parts += ["# Denies: " + "; ".join(denied)] if denied else []
    return parts


def _template(patient: Patient, seed: int) -> str:
    """Return the form of a history: mostly the hospital's own, sometimes as its author likes it."""
    rng = keyed_generator(seed, "author", patient.index)
    spec = specification()["hospitals"]
    own = str(patient.hospital.profile["template"])
    return own if chance(rng, spec["house_template"]) else pick(rng, _TEMPLATES)


def write_history(patient: Patient, seed: int) -> str:
    """Write the ``hpi`` column: present illness, past, social and family history in one line."""
    rng = keyed_generator(seed, "history", patient.index)
    words, profile = bank(), patient.hospital.profile
    parts = [_opener(rng, patient, pain_site(patient, seed))]
    pain, present, denied = _history_findings(rng, patient)
    template = _template(patient, seed)
    if template == "narrative":
        parts += _narrative(rng, patient, pain, present, denied)
    elif template == "telegraphic":
        parts += _telegraphic(pain, present, denied)
    else:
        parts += _problem_list(pain, present, denied)
    if chance(rng, 0.45 * profile["verbosity"]):
        parts.append(pick(rng, words["closing"]))
    past = [pick(rng, words["past_history"][name]) for name in permuted(rng, sorted(patient.past))]
    parts.append(PAST_HISTORY + (", ".join(past) or "none"))
    parts.append("Social History: ___")
    parts.append("Family History: " + pick(rng, words["family_pool"]))
    text = " ".join(_sentence(part) for part in parts)
    return " " + _abbreviated(rng, text, profile["abbreviation"])


def _vitals(rng: np.random.Generator, patient: Patient) -> str:
    vitals = specification()["vitals"]
    usual = patient.label if patient.text_class == VAGUE else patient.text_class

    def normal(mean: float, sd: float) -> float:
        return float(mean + sd * rng.standard_normal())

    temperature = normal(*vitals["temp_f"][usual]) + patient.severe * vitals["temp_f"]["severe_add"]
    pulse = normal(*vitals["hr"][usual]) + patient.severe * vitals["hr"]["severe_add"]
    systolic = max(80.0, normal(*vitals["sbp"]))
    diastolic = systolic * (0.55 + 0.1 * float(rng.random()))
    breaths, oxygen = max(10.0, normal(*vitals["rr"])), min(100.0, normal(*vitals["spo2"]))
    return (
        f"T {max(95.0, temperature):.1f} HR {max(45.0, pulse):.0f} BP {systolic:.0f}/{diastolic:.0f} "
        f"RR {breaths:.0f} O2 {oxygen:.0f}% RA"
    )


def _exam_site(rng: np.random.Generator, patient: Patient, pain: str) -> str:
    pain = _EXAM_SITE_OF_PAIN.get(pain, pain)
    repeated = chance(rng, 0.70)
    return pain if repeated else draw_from(rng, specification()["tenderness_site"][patient.text_class])


def _exam_findings(rng: np.random.Generator, patient: Patient) -> dict[str, str]:
    column, words, said = class_index(patient.text_class), bank(), {}
    for name, row in specification()["exam_findings"].items():
        if chance(rng, row["p"][column]):
            said[name] = pick(rng, words["exam_positive"][name])
        elif chance(rng, row["n"]):
            said[name] = pick(rng, words["exam_negative"][name])
    return said


def write_examination(patient: Patient, seed: int) -> str:
    """Write the ``pe`` column: vital signs, general look, abdomen."""
    rng = keyed_generator(seed, "examination", patient.index)
    words, profile = bank(), patient.hospital.profile
    site = _exam_site(rng, patient, pain_site(patient, seed))
    said = _exam_findings(rng, patient)
    head = [said.pop(name) for name in ("icterus", "dry_mucosa") if name in said]
    back = said.pop("cva_tenderness", None)
    tender = "nontender" if site == "none" else f"tender in the {pick(rng, words['location'][site])} area"
    if site == "diffuse":
        tender = "diffusely tender"
    parts = ["Vitals: " + _vitals(rng, patient), "Gen: " + pick(rng, words["general_exam"])]
    parts += ["HEENT: " + ", ".join(head)] if head else []
    if chance(rng, 0.6 * profile["verbosity"]):
        parts.append("CV/Lungs: " + pick(rng, words["exam_heart_lungs"]))
    parts.append(
        "Abd: " + ", ".join([pick(rng, ("soft", "soft", "firm")), tender, *permuted(rng, list(said.values()))])
    )
    parts += [f"Back: {back}"] if back else []
    if chance(rng, 0.5):
        parts.append("Ext: warm, no edema")
    return _abbreviated(rng, " ".join(_sentence(part) for part in parts), profile["abbreviation"])
