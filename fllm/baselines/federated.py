r"""Federated averaging of multinomial logistic regression: what hospitals get without a language model.

Clients share no vocabulary, whose words could name a patient. Words and word pairs are hashed to 2^18 columns; each
client sends how many of its texts hold something in each column, and its number of texts. Only the sums over clients
are needed, so secure aggregation can hide each client's own numbers. They fix the columns in use and their weights,
:math:`\mathrm{idf} = \ln\frac{1 + n}{1 + \mathrm{df}} + 1`. From then on parameters are exchanged alone. A hash is no
secret: who guesses a word can look up whether anybody's texts hold it.

In each round every client takes ``LOCAL_STEPS`` steps of gradient descent on all of its texts, starting from the
common parameters :math:`\theta`, and the server averages by number of texts, with momentum:
:math:`v \leftarrow \beta v + \sum_k \frac{n_k}{n} (\theta_k - \theta)`, :math:`\theta \leftarrow \theta + v`. The
step follows from the largest curvature of a client, one number that each client tells. Nothing is random, and the order
of clients does not matter.

Source: McMahan et al., AISTATS 2017, algorithm 1 with B = infinity; Hsu, Qi and Brown, arXiv:1909.06335 (2019): server
momentum, without which clients that hold different classes keep the average from the pooled optimum for many rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 50
"""Rounds: with four classes and 4 to 16 clients, accuracy was then within about a point of the pooled classifier's,
even where most clients held little but one class."""

LOCAL_STEPS = 5
"""Steps of a client in each round."""

INTERCEPT = 0.25
"""Value of the column of ones: less than the norm of the words, 1, so that these and not it set the largest step."""

MOMENTUM = 0.9
"""Share of the server's last move that is kept [1], as in Hsu et al."""

INVERSE_PENALTY = 10.0
"""C of scikit-learn: the penalty is ``|W|^2 / (2 C)`` beside the sum of all texts' losses; the intercept has none."""

COLUMNS = 2**18
"""Columns that words are hashed to."""

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]
Sparse = Any  # scipy's csr_matrix, which carries no types here


def federated_choices(
    clients: Sequence[tuple[Sequence[str], Labels]], test_texts: Sequence[str], classes: int, *, rounds: int = ROUNDS
) -> tuple[Labels, int]:
    """Train the federated classifier, and return its choices for test texts and its number of parameters.

    Args:
        clients: Training texts of each client and their classes.
        test_texts: Texts to classify.
        classes: Number of classes.
        rounds: Rounds.
    """
    features, test = hashed_tfidf([texts for texts, _ in clients], test_texts)
    theta = average(features, [labels for _, labels in clients], classes, rounds=rounds)
    return np.argmax(test @ theta, axis=1), theta.size


def hashed_tfidf(clients: Sequence[Sequence[str]], test_texts: Sequence[str]) -> tuple[list[Sparse], Sparse]:
    """Return TF-IDF of hashed words, scaled to norm 1, then the intercept's, for each client and the test texts.

    Columns that no client uses are left out, as a vocabulary would leave words out.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    hashing = HashingVectorizer(ngram_range=(1, 2), n_features=COLUMNS, alternate_sign=False, norm=None)
    counts = [hashing.transform(texts) for texts in clients]
    frequency = sum(each.getnnz(axis=0) for each in counts)
    used = np.flatnonzero(frequency)
    idf = np.log((1 + sum(map(len, clients))) / (1 + frequency[used])) + 1

    def weighted(count: Sparse) -> Sparse:
        count = count[:, used]
        count.data = (1 + np.log(count.data)) * idf[count.indices]
        return hstack([normalize(count), csr_matrix(np.full((count.shape[0], 1), INTERCEPT))], format="csr")

    return [weighted(each) for each in counts], weighted(hashing.transform(test_texts))


def average(features: Sequence[Sparse], labels: Sequence[Labels], classes: int, *, rounds: int) -> Floats:
    """Train by federated averaging; return the parameters, (columns, classes), those of the intercept last.

    Args:
        features: (texts, columns) of each client, the last column that of the intercept.
        labels: (texts,) classes of each client's texts.
        classes: Number of classes.
        rounds: Rounds.
    """
    shares = np.array([len(each) for each in labels]) / sum(map(len, labels))
    # The penalty of the mean loss over all texts, alike for all, so that clients seek one optimum together
    penalty = np.full((features[0].shape[1], 1), 1.0 / (INVERSE_PENALTY * sum(map(len, labels))))
    penalty[-1] = 0.0
    losses = [_Loss(rows, rows.T.tocsr(), np.eye(classes)[own]) for rows, own in zip(features, labels, strict=True)]
    step = 1.0 / max(_curvature(rows) for rows in features)
    theta = np.zeros((len(penalty), classes))
    move = np.zeros_like(theta)
    for _ in range(rounds):
        move *= MOMENTUM
        for share, loss in zip(shares, losses, strict=True):
            own = theta
            for _ in range(LOCAL_STEPS):
                own = own - step * (loss.gradient(own) + penalty * own)
            move += share * (own - theta)
        theta = theta + move
    return theta


def _curvature(rows: Sparse, iterations: int = 20) -> float:
    """Return the largest curvature of the mean cross-entropy over texts, whatever the parameters.

    It is half the largest eigenvalue of ``X^T X / n``, found by power iteration. No entry is negative, so a vector of
    ones has a share of the eigenvector, and an estimate too low by less than half still gives steps that descend.

    Source: Boehning, Annals of the Institute of Statistical Mathematics 44, 197 (1992).
    """
    vector = np.ones(rows.shape[0])
    for _ in range(iterations):
        vector = rows @ (rows.T @ (vector / np.linalg.norm(vector)))
    return float(np.linalg.norm(vector)) / rows.shape[0] / 2


@dataclass(frozen=True, eq=False)
class _Loss:
    """Mean cross-entropy over one client's texts.

    Attributes:
        rows: (texts, columns).
        columns: Its transpose.
        wanted: (texts, classes) 1 at the true class.
    """

    rows: Sparse
    columns: Sparse
    wanted: Floats

    def gradient(self, theta: Floats) -> Floats:
        """Return ``X^T (softmax(X theta) - Y) / n``, (columns, classes)."""
        scores = self.rows @ theta
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        return np.asarray(self.columns @ (likely - self.wanted)) / len(self.wanted)
