"""The baselines on a cohort of a few lines."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fllm.baselines import baselines
from fllm.data import Case

SIGNS = {
    "appendicitis": "iliac fossa rebound",
    "cholecystitis": "murphy sign fatty meal",
    "diverticulitis": "left sided fever",
    "pancreatitis": "epigastric to the back",
}


def cases(*diagnoses: str, telling: bool = True) -> list[Case]:
    return [
        Case(i, name, SIGNS[name] if telling else "pain", f"exam {i % 3}", (), (), None)
        for i, name in enumerate(diagnoses)
    ]


def score(train: Sequence[Case], test: Sequence[Case]) -> dict[str, dict[str, float]]:
    return baselines(train, test, ["history", "examination"])


def test_telling_words_are_learned() -> None:
    found = score(cases(*4 * list(SIGNS)), cases(*SIGNS))
    assert found["tfidf_logreg"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert found["majority"]["accuracy"] == 0.25
    assert found["majority"]["macro_f1"] == pytest.approx(0.4 / 4)


def test_majority_is_that_of_the_training_cases() -> None:
    train = cases("appendicitis", "appendicitis", "pancreatitis")
    test = cases("pancreatitis", "pancreatitis", "pancreatitis", "appendicitis")
    assert score(train, test)["majority"]["accuracy"] == 0.25


def test_classifier_reads_the_asked_fields_alone() -> None:
    train, test = cases(*4 * list(SIGNS)), cases(*SIGNS)
    assert baselines(train, test, ["examination"])["tfidf_logreg"]["accuracy"] < 1.0


def test_one_diagnosis_alone_has_no_classifier() -> None:
    assert set(score(cases("appendicitis", "appendicitis"), cases("appendicitis"))) == {"majority"}


def test_scores_do_not_depend_on_order() -> None:
    train, test = cases(*4 * list(SIGNS), telling=False), cases(*SIGNS)
    assert score(train, test)["majority"] == score(train[::-1], test[::-1])["majority"]
