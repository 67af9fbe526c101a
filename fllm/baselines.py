"""What a model must beat: the most frequent diagnosis, and a linear classifier on the pooled text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fllm.data import DIAGNOSES, Case, build_note
from fllm.evaluation import macro_f1


def baselines(train: Sequence[Case], test: Sequence[Case], fields: Sequence[str]) -> dict[str, dict[str, float]]:
    """Score both baselines on the same split and fields that the model gets.

    ``tfidf_logreg`` is trained on the text of all clients pooled, which a federation may not do: TF-IDF of words and
    word pairs, sublinear, then L2-regularised logistic regression (C = 10).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    truth = np.array([DIAGNOSES.index(case.diagnosis) for case in test])
    counts = Counter(case.diagnosis for case in train)
    common = max(DIAGNOSES, key=lambda name: (counts[name], name))
    found = {"majority": np.full(len(test), DIAGNOSES.index(common))}
    if len(counts) > 1:
        classifier = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=2000)
        )
        classifier.fit([build_note(case, fields) for case in train], [case.diagnosis for case in train])
        guesses = classifier.predict([build_note(case, fields) for case in test])
        found["tfidf_logreg"] = np.array([DIAGNOSES.index(name) for name in guesses])
    return {
        name: {"accuracy": float((chosen == truth).mean()), "macro_f1": macro_f1(truth, chosen)}
        for name, chosen in found.items()
    }
