"""Constant and linear classifiers: pooled, each client alone, and federated, on the texts that the model gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from device_models.errors import InputError
from fllm.baselines.federated import INVERSE_PENALTY, ROUNDS, Labels, Sparse, federated_choices
from fllm.data.corpus import Example, Task, note_text
from fllm.evaluation.facts import scores_facts
from fllm.evaluation.metrics import macro_f1


def baselines(
    clients: Sequence[tuple[str, Sequence[Example]]], test: Sequence[Example], task: Task, *, rounds: int = ROUNDS,
    seed: int,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Score every baseline on the split and fields that the model gets, with each text whole.

    - ``majority``: the most frequent class of all clients' training texts.
    - ``tfidf_logreg``: TF-IDF of words and word pairs, sublinear, then L2-regularised logistic regression, trained on
      the texts of all clients pooled, which a federation may not do.
    - ``linear_local``: the same by each client alone, with its own words, on the whole test set: mean over clients,
      and each of them. A client with one class always chooses that.
    - ``linear_federated``: the same kind of classifier, federated; see :mod:`fllm.baselines.federated`.

    Args:
        clients: Name and training texts of each client, one text or more.
        test: Texts held out.
        task: A task with classes.
        rounds: Rounds of the federated classifier.
        seed: Key of the redraws behind the intervals; the classifiers themselves draw nothing.

    Returns:
        For each baseline ``name``, ``kind``, ``accuracy`` and ``macro_f1`` [1] and ``interval_95`` of both over redraws
        of the test texts.

    Raises:
        InputError: If the training texts hold no word.
    """
    pooled = sorted((example for _, examples in clients for example in examples), key=lambda example: example.key)
    row_of = {example.key: row for row, example in enumerate(pooled)}
    held = [np.array(sorted(row_of[example.key] for example in examples)) for _, examples in clients]
    texts, test_texts = ([note_text(example.sections, task) for example in part] for part in (pooled, test))
    labels, truth = _labels(pooled), _labels(test)
    words, test_words = _word_counts(texts, test_texts)

    def scored(name: str, *choices: Labels, kind: str = "linear") -> dict[str, Any]:
        return {"name": name, "kind": kind} | scores_facts(truth, np.stack(choices), task.classes, seed=seed)

    alone = [linear_choices(words[rows], labels[rows], test_words) for rows in held]
    parts = [([texts[row] for row in rows], labels[rows]) for rows in sorted(held, key=lambda rows: int(rows[0]))]
    shared, parameters = federated_choices(parts, test_texts, len(task.classes), rounds=rounds)
    return {
        "majority": scored("most frequent class", _most_frequent(labels, len(truth), task), kind="constant"),
        "tfidf_logreg": scored("logistic regression, pooled", linear_choices(words, labels, test_words)),
        "linear_local": scored("logistic regression, each client alone", *alone) | _by_client(truth, alone, task),
        "linear_federated": scored("logistic regression, federated", shared)
        | {"rounds": rounds, "parameters": parameters},
    }


def _labels(examples: Sequence[Example]) -> Labels:
    return np.array([example.label for example in examples], dtype=np.int64)


def _most_frequent(labels: Labels, size: int, task: Task) -> Labels:
    """Return the most frequent class, the last by name among equals, for every text."""
    counts = Counter(task.classes[label] for label in labels)
    common = max(task.classes, key=lambda name: (counts[name], name))
    return np.full(size, task.classes.index(common))


def _word_counts(texts: Sequence[str], test_texts: Sequence[str]) -> tuple[Sparse, Sparse]:
    """Count the words and word pairs of the training texts, in both; columns in alphabetical order."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(ngram_range=(1, 2), dtype=np.float64)
    analyse = counter.build_analyzer()
    if not any(analyse(text) for text in texts):
        raise InputError("the training texts hold no word of two letters or more", remedy="is this the text column?")
    return counter.fit_transform(texts), counter.transform(test_texts)


def linear_choices(train: Sparse, labels: Labels, test: Sparse) -> Labels:
    """Train TF-IDF and logistic regression on word counts, (texts, words), and return its choices for test texts.

    Words that the training texts lack are dropped, so that a client has a vocabulary of its own.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    if (labels == labels[0]).all():
        return np.full(test.shape[0], labels[0])
    own = np.flatnonzero(train.getnnz(axis=0))
    if not own.size:
        return np.full(test.shape[0], np.bincount(labels).argmax())
    weighting = TfidfTransformer(sublinear_tf=True)
    classifier = LogisticRegression(C=INVERSE_PENALTY, max_iter=2000)
    classifier.fit(weighting.fit_transform(train[:, own]), labels)
    return np.asarray(classifier.predict(weighting.transform(test[:, own])), dtype=np.int64)


def _by_client(truth: Labels, choices: Sequence[Labels], task: Task) -> dict[str, Any]:
    rows = [
        {
            "client": client,
            "accuracy": float((chosen == truth).mean()),
            "macro_f1": macro_f1(truth, chosen, len(task.classes)),
        }
        for client, chosen in enumerate(choices)
    ]
    accuracies = [row["accuracy"] for row in rows]
    return {"clients": rows, "min": min(accuracies), "max": max(accuracies)}
