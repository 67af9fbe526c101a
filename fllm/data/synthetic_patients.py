"""Who the fabricated patients are: label, hospital, age, sex, and how the disease presents.

One case follows the story label -> hospital -> demographics -> severity and cause -> presentation. The channels
(history and examination, laboratory, imaging) then only look at the :class:`Patient` made here, each with its own
generator, so a change in one channel leaves the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fllm.data.cdm import DIAGNOSES
from fllm.data.draws import chance, draw_from, keyed_generator, permuted
from fllm.data.synthetic_spec import specification

VAGUE = "vague"
_HOSPITAL_DRAWS = 64


def class_index(name: str) -> int:
    """Return the column of a class, or of the vague presentation, in the specification's lists."""
    return len(DIAGNOSES) if name == VAGUE else DIAGNOSES.index(name)


@dataclass(frozen=True)
class Hospital:
    """One hospital with its documentation style, its patients and its laboratory.

    Args:
        name: Name in ``hospital_ids.json``.
        profile: Row of ``hospitals.profiles`` in the specification.
        extra_missing: Share of laboratory tests that this hospital orders less often [1].
        gain: Analyser gain by itemid [1].
        range_shift: Shift of the reference range by itemid, in widths of the range [1].
    """

    name: str
    profile: dict[str, Any]
    extra_missing: float
    gain: dict[int, float]
    range_shift: dict[int, float]


@dataclass(frozen=True)
class Patient:
    """Latent state of one fabricated case.

    Args:
        index: Position in the cohort; part of every random key.
        label: The diagnosis.
        hospital: Where the case was treated.
        age: Age [years].
        female: Whether the patient is a woman.
        severe: Whether the disease is severe.
        presentation: ``typical``, ``vague`` or ``mimic``.
        text_class: Class whose tables write history and examination; may be ``vague``.
        lab_class: Class whose tables give the laboratory values.
        image_class: Class whose findings the imaging shows.
        dual: Second condition that is really present, or None.
        etiology: Cause of a pancreatitis, or None.
        biliary: Whether the bile duct is obstructed.
        past: Past findings mentioned in the history.
    """

    index: int
    label: str
    hospital: Hospital
    age: int
    female: bool
    severe: bool
    presentation: str
    text_class: str
    lab_class: str
    image_class: str
    dual: str | None
    etiology: str | None
    biliary: bool
    past: frozenset[str]


def draw_labels(n_cases: int, seed: int) -> list[str]:
    """Return the diagnoses: shares as close to the priors as whole cases allow, in random order."""
    priors = specification()["priors"]
    exact = np.array([priors[name] for name in DIAGNOSES]) * n_cases / sum(priors.values())
    counts = np.floor(exact).astype(int)
    for i in np.argsort(counts - exact, kind="stable")[: n_cases - counts.sum()]:
        counts[i] += 1
    ordered = [name for name, count in zip(DIAGNOSES, counts, strict=True) for _ in range(count)]
    return permuted(keyed_generator(seed, "labels", n_cases), ordered)


def draw_hospitals(n_hospitals: int, seed: int) -> list[Hospital]:
    """Return the hospitals; profiles are cycled, laboratories are drawn."""
    spec = specification()
    profiles, shift = spec["hospitals"]["profiles"], spec["hospital_lab_shift"]
    hospitals = []
    for h in range(n_hospitals):
        profile, repeat = profiles[h % len(profiles)], h // len(profiles)
        rng = keyed_generator(seed, "hospital", h)
        gain, moved = {}, {}
        for test in spec["labs"]:
            # Tests of small spread, such as sodium, are calibrated better than the common figure.
            sd = min(shift["analyser_gain_sd"], 0.5 * min(sigma for _, sigma in test["dist"].values()))
            gain[test["itemid"]] = float(np.exp(sd * rng.standard_normal()))
            sign = 1.0 if chance(rng, 0.5) else -1.0
            varied = chance(rng, shift["ref_range_variant_prob"])
            moved[test["itemid"]] = sign * shift["ref_range_shift"] if varied else 0.0
        least, most = shift["extra_missing"]
        missing = least + (most - least) * float(rng.random())
        name = profile["name"] if repeat == 0 else f"{profile['name']}_{repeat + 1}"
        hospitals.append(Hospital(name, profile, missing, gain, moved))
    return hospitals


def hospital_shares(n_hospitals: int, seed: int, label_concentration: float) -> np.ndarray:
    r"""Draw $P(h | y) \propto s_h q_h(y)$, shape (classes, hospitals), which keeps the global prior.

    $s \sim Dir(size)$ and $q_h \sim Dir(\alpha \cdot prior)$ with $\alpha$ the label concentration: small values give
    each hospital few diagnoses, large ones give all the same mix. The draw is repeated until every hospital expects at
    least a quarter of an equal share of the cases; after 64 draws the most even one is taken.
    """
    spec = specification()
    prior = np.array([spec["priors"][name] for name in DIAGNOSES])
    alpha, size = label_concentration, spec["hospitals"]["size_dirichlet"]
    best, best_least = np.full((len(prior), n_hospitals), 1.0 / n_hospitals), -1.0
    for attempt in range(_HOSPITAL_DRAWS):
        rng = keyed_generator(seed, "hospital shares", n_hospitals, attempt)
        weight = rng.dirichlet(np.full(n_hospitals, size))[:, None] * rng.dirichlet(alpha * prior, n_hospitals)
        total = weight.sum(axis=0)
        if np.any(total <= 0):
            continue
        shares = (weight / total).T
        least = float((prior @ shares).min()) * n_hospitals
        if least > best_least:
            best, best_least = shares, least
        if least >= 0.25:
            break
    return best


def assign_hospitals(labels: list[str], n_hospitals: int, seed: int, label_concentration: float) -> list[int]:
    """Return the hospital of each case; no hospital stays empty while there are enough cases."""
    shares = hospital_shares(n_hospitals, seed, label_concentration)
    cumulative = np.cumsum(shares, axis=1)
    chosen = []
    for i, label in enumerate(labels):
        mark = keyed_generator(seed, "hospital of", i).random()
        row = cumulative[DIAGNOSES.index(label)]
        chosen.append(min(int(np.searchsorted(row, mark, side="right")), n_hospitals - 1))
    for empty in sorted(set(range(n_hospitals)) - set(chosen)):
        fullest = max(range(n_hospitals), key=chosen.count)
        chosen[chosen.index(fullest)] = empty
    return chosen


def _draw_age(rng: np.random.Generator, story: str, shift: float) -> int:
    mixture = specification()["demographics"]["age"][story]
    part = draw_from(rng, {str(i): weight for i, (_, _, weight) in enumerate(mixture)})
    mean, sd, _ = mixture[int(part)]
    return int(np.clip(round(mean + shift + sd * rng.standard_normal()), 18, 95))


def _draw_past(
    rng: np.random.Generator, story: str, label: str, female: bool, etiology: str | None, hospital: Hospital
) -> frozenset[str]:
    spec = specification()
    probabilities = {name: row[DIAGNOSES.index(story)] for name, row in spec["past_history"].items()}
    if etiology is not None:
        for cause, rule in spec["past_history_by_etiology"].items():
            probabilities[rule["finding"]] = rule["given" if cause == etiology else "otherwise"]
    probabilities["alcohol_heavy"] = min(0.95, probabilities["alcohol_heavy"] * hospital.profile["alcohol_mult"])
    # An organ that is out cannot be inflamed, and the release drops histories that name the own disease.
    if label == "appendicitis":
        probabilities["appendectomy_remote"] = 0.0
    if label == "cholecystitis":
        probabilities["cholecystectomy_remote"] = 0.0
    if not female:
        probabilities["hysterectomy"] = 0.0
    return frozenset(name for name, p in probabilities.items() if chance(rng, p))


def draw_patient(index: int, label: str, hospital: Hospital, seed: int) -> Patient:
    """Draw the latent state of one case."""
    spec = specification()
    rng = keyed_generator(seed, "patient", index)
    lookalike = draw_from(rng, spec["mimic_of"][label])
    story = lookalike if chance(rng, spec["irreducible_swap"]) else label
    presentation = "typical" if story != label else draw_from(rng, spec["presentation"])
    text_class = {"typical": story, "vague": VAGUE, "mimic": lookalike}[presentation]
    lab_class = lookalike if presentation == "mimic" and chance(rng, 0.5) else story
    dual = next((name for name, p in spec["dual_pathology"].get(story, {}).items() if chance(rng, p)), None)
    if dual == label:
        dual = None
    age = _draw_age(rng, story, hospital.profile["age_shift"])
    female_share = spec["demographics"]["female"][story] + hospital.profile["female_shift"]
    female = chance(rng, min(0.97, max(0.03, female_share)))
    severe = draw_from(rng, spec["severity"]) == "severe"
    etiology = draw_from(rng, spec["pancreatitis_etiology"])
    obstructed = chance(rng, spec["biliary_obstruction"]["cholecystitis"])
    biliary = {"cholecystitis": obstructed, "pancreatitis": etiology == "gallstone"}.get(lab_class, False)
    cause = etiology if story == "pancreatitis" else None
    past = _draw_past(rng, story, label, female, cause, hospital)
    if dual == "cholecystitis" or "cholecystitis" in (story, lab_class):
        past -= {"cholecystectomy_remote"}
    return Patient(
        index=index,
        label=label,
        hospital=hospital,
        age=age,
        female=female,
        severe=severe,
        presentation=presentation,
        text_class=text_class,
        lab_class=lab_class,
        image_class=story,
        dual=dual,
        etiology=etiology if "pancreatitis" in (story, lab_class, dual) else None,
        biliary=biliary,
        past=past,
    )
