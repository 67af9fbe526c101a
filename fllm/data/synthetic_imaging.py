"""Radiology reports of a fabricated case: which studies were done, and what their findings say."""

from __future__ import annotations

import numpy as np

from fllm.data.draws import chance, keyed_generator, permuted, pick
from fllm.data.synthetic_patients import Patient
from fllm.data.synthetic_spec import phrases as bank
from fllm.data.synthetic_spec import specification

ReportRow = tuple[int, str, str, str, str, str]
"""hadm_id, note_id, modality, region, exam_name, text: the columns of radiology_reports.csv."""

_CT, _US, _MRCP = "CT_Abdomen", "Ultrasound_Abdomen", "MRCP_Abdomen"
_ORGANS = {
    "normal_appendix_sentence": ("appendicitis", "appendectomy_remote", (_CT,)),
    "normal_pancreas_sentence": ("pancreatitis", "", (_CT, _US, _MRCP)),
    "normal_gallbladder_sentence": ("cholecystitis", "cholecystectomy_remote", (_CT, _US, _MRCP)),
}
_CT_ONLY = ("diverticulosis_only", "nonspecific_stranding", "prominent_nodes", "basal_atelectasis")


def _studies(rng: np.random.Generator, patient: Patient) -> list[str]:
    """Return the studies done; every case has at least one of the abdomen."""
    plan = specification()["modality_plan"]
    done = []
    for study, by_class in plan.items():
        probability = by_class[patient.image_class]
        if study == _US:
            probability = min(0.98, max(0.02, probability + patient.hospital.profile["us_first"]))
        if chance(rng, probability):
            done.append(study)
    if not any(study.endswith("_Abdomen") for study in done):
        done.append(max((_CT, _US), key=lambda study: plan[study][patient.image_class]))
    return done


def _diagnostic(rng: np.random.Generator, patient: Patient, study: str, equivocal: bool) -> list[str]:
    """Return the sentences that show the disease, and the second one of a dual pathology."""
    spec, sentences = specification(), []
    for disease in (patient.image_class, patient.dual):
        if disease is None or study not in bank()["imaging_diagnostic"][disease]:
            continue
        fits = study in spec["modality_fits"][disease] and not equivocal
        if chance(rng, spec["diagnostic_sentence_prob"][study] if fits else 0.1):
            sentence = pick(rng, bank()["imaging_diagnostic"][disease][study])
            sizes = rng.random(3)
            sentences.append(
                sentence.format(
                    appendix=8 + int(7 * sizes[0]), wall=4 + int(5 * sizes[1]), collection=12 + int(24 * sizes[2])
                )
            )
    return sentences


def _stone_probability(patient: Patient) -> float:
    if "cholecystectomy_remote" in patient.past:
        return 0.0
    gallstone_pancreatitis = patient.image_class == "pancreatitis" and patient.etiology == "gallstone"
    return 0.45 if gallstone_pancreatitis else float(specification()["incidental"]["gallstones_only"])


def _incidental(rng: np.random.Generator, patient: Patient, study: str) -> list[str]:
    """Return clutter that does not depend on the class, apart from the stones of a gallstone pancreatitis."""
    probabilities = dict(specification()["incidental"])
    probabilities["gallstones_only"] = _stone_probability(patient)
    if patient.age < 40:
        probabilities["diverticulosis_only"] = 0.05
    elif patient.age > 60:
        probabilities["diverticulosis_only"] = 0.30
    if not patient.female:
        probabilities["ovarian_cyst"] = 0.0
    words = bank()["incidental"]
    return [
        pick(rng, words[name])
        for name, probability in probabilities.items()
        if name in words and (study == _CT or name not in _CT_ONLY) and chance(rng, probability)
    ]


def _normal_organs(rng: np.random.Generator, patient: Patient, study: str, stones: bool) -> list[str]:
    said, incidental = [], specification()["incidental"]
    for name, (disease, removed_by, studies) in _ORGANS.items():
        healthy = disease not in (patient.image_class, patient.dual, patient.label)
        healthy = healthy and not (stones and disease == "cholecystitis")
        if healthy and removed_by not in patient.past and study in studies and chance(rng, incidental[name]):
            said.append(pick(rng, bank()["imaging_normal"][name]))
    return said


def _abdomen_findings(rng: np.random.Generator, patient: Patient, study: str, equivocal: bool) -> list[str]:
    if study == "Radiograph_Abdomen":
        return [pick(rng, bank()["plain_abdomen"])]
    shown = _diagnostic(rng, patient, study, equivocal)
    unclear = [] if shown else permuted(rng, bank()["imaging_equivocal"])[: 1 + int(rng.random() * 2)]
    clutter = _incidental(rng, patient, study)
    stones = any(sentence in bank()["incidental"]["gallstones_only"] for sentence in clutter)
    return permuted(rng, shown + unclear + clutter + _normal_organs(rng, patient, study, stones))


def _closing_remarks(rng: np.random.Generator, patient: Patient) -> list[str]:
    """Return masked mentions of the own disease and denials of other ones, both at the release's published rates."""
    spec, said = specification(), []
    if chance(rng, spec["mask_rate"][patient.label]):
        said.append(pick(rng, bank()["mask_sentences"]))
    for other, probability in spec["cross_mentions"][patient.label].items():
        present = other in (patient.image_class, patient.dual)
        if chance(rng, probability) and not present:
            said.append(pick(rng, bank()["cross_mention"]).format(other=other))
    return said


def _report_text(study: str, exam_name: str, findings: list[str]) -> str:
    technique = bank()["technique"][study]
    return f"EXAMINATION:\n{exam_name}\n\nTECHNIQUE:\n{technique}\n\nFINDINGS:\n{' '.join(findings)}\n\n"


def write_reports(hadm_id: int, patient: Patient, seed: int) -> list[ReportRow]:
    """Write all radiology reports of a case; remarks stand in the first report of the abdomen."""
    spec = specification()
    rng = keyed_generator(seed, "imaging", patient.index)
    equivocal = chance(rng, spec["equivocal_imaging"][patient.presentation])
    remarks = _closing_remarks(rng, patient)
    rows = []
    for k, study in enumerate(_studies(rng, patient), start=1):
        modality, region = study.split("_")
        exam_name = pick(rng, spec["exam_names"][study])
        if region == "Abdomen":
            findings = _abdomen_findings(rng, patient, study, equivocal) + remarks
            remarks = []
        else:
            findings = [pick(rng, bank()["chest"])]
        note_id = spec["note_id_format"].format(hadm_id=hadm_id, k=k)
        rows.append((hadm_id, note_id, modality, region, exam_name, _report_text(study, exam_name, findings)))
    return rows
