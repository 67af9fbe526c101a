"""The baselines on made-up texts, each against a plain way to get the same number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline

from device_models.errors import InputError
from fllm.baselines import FEDERATED_ROUNDS, baselines, language_baselines
from fllm.baselines.classification import linear_choices
from fllm.baselines.federated import INTERCEPT, INVERSE_PENALTY, average, hashed_tfidf
from fllm.baselines.language import bigram
from fllm.data.corpus import Example, Task, note_text
from fllm.data.draws import keyed_generator

TASK = Task("diagnosis", ("appendicitis", "cholecystitis", "pancreatitis"), "diagnosis:")
SIGNS = ("iliac fossa rebound", "murphy sign fatty meal", "epigastric to the back")
CLASSES = len(SIGNS)


def example(key: int, label: int, text: str) -> Example:
    return Example(key, (("history", text),), label)


def telling(*labels: int, first_key: int = 0) -> list[Example]:
    return [example(first_key + i, label, SIGNS[label]) for i, label in enumerate(labels)]


def noisy(size: int, seed: int) -> list[Example]:
    """Draw texts of ten words, of which each class prefers its own."""
    rng = keyed_generator(seed, "noisy texts")
    found = []
    for key in range(size):
        label = int(rng.integers(CLASSES))
        likely = 1.0 + 2.0 * (np.arange(60) % CLASSES == label)
        words = rng.choice(60, size=10, p=likely / likely.sum())
        found.append(example(key, label, " ".join(f"word{word}" for word in words)))
    return found


def texts_of(examples: Sequence[Example]) -> list[str]:
    return [note_text(each.sections, TASK) for each in examples]


def labels_of(examples: Sequence[Example]) -> np.ndarray:
    return np.array([each.label for each in examples])


def by_class(examples: Sequence[Example]) -> list[tuple[str, list[Example]]]:
    return [(f"site {label}", [each for each in examples if each.label == label]) for label in range(CLASSES)]


def pipeline_choices(train: Sequence[Example], test: Sequence[Example]) -> np.ndarray:
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=2000)
    )
    return np.asarray(pipeline.fit(texts_of(train), labels_of(train)).predict(texts_of(test)))


TRAIN, TEST = noisy(240, 0), noisy(150, 1)
SITES = [("a", TRAIN[:100]), ("b", TRAIN[100:160]), ("c", TRAIN[160:])]
FOUND = baselines(SITES, TEST, TASK, seed=0)


def test_entries_and_their_order() -> None:
    assert list(FOUND) == ["majority", "tfidf_logreg", "linear_local", "linear_federated"]
    assert [entry["kind"] for entry in FOUND.values()] == ["constant", "linear", "linear", "linear"]
    for entry in FOUND.values():
        for metric in ("accuracy", "macro_f1"):
            low, high = entry["interval_95"][metric]
            assert low <= entry[metric] <= high


def test_telling_words_are_learned() -> None:
    found = baselines([("a", telling(*4 * [0, 1, 2]))], telling(0, 1, 2, first_key=100), TASK, seed=0)
    for name in ("tfidf_logreg", "linear_local", "linear_federated"):
        assert (found[name]["accuracy"], found[name]["macro_f1"]) == (1.0, 1.0)
    assert found["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert found["majority"]["macro_f1"] == pytest.approx(0.5 / 3)


def test_majority_is_that_of_the_training_texts_and_the_last_name_among_equals() -> None:
    def accuracy(train: Sequence[Example], *truth: int) -> float:
        found = baselines([("a", train)], telling(*truth, first_key=100), TASK, seed=0)
        return float(found["majority"]["accuracy"])

    assert accuracy(telling(0, 0, 2), 2, 2, 2, 0) == 0.25
    assert accuracy(telling(0, 0, 2, 2), 2, 2, 2, 0) == 0.75


def test_pooled_classifier_is_the_usual_pipeline() -> None:
    chosen = pipeline_choices(TRAIN, TEST)
    truth = labels_of(TEST)
    assert 0.5 < (chosen == truth).mean() < 0.95  # neither trivial nor hopeless
    assert FOUND["tfidf_logreg"]["accuracy"] == (chosen == truth).mean()
    macro_f1 = f1_score(truth, chosen, average="macro", zero_division=0)
    assert FOUND["tfidf_logreg"]["macro_f1"] == pytest.approx(macro_f1, abs=1e-12)


def test_each_client_alone_knows_its_own_words_only() -> None:
    truth, entry = labels_of(TEST), FOUND["linear_local"]
    alone = [(pipeline_choices(train, TEST) == truth).mean() for _, train in SITES]
    assert [row["accuracy"] for row in entry["clients"]] == alone
    assert [row["client"] for row in entry["clients"]] == [0, 1, 2]
    assert (entry["min"], entry["max"]) == (min(alone), max(alone))
    assert entry["accuracy"] == pytest.approx(np.mean(alone))
    assert entry["macro_f1"] == pytest.approx(np.mean([row["macro_f1"] for row in entry["clients"]]))
    assert entry["accuracy"] < FOUND["tfidf_logreg"]["accuracy"]


def test_client_with_one_class_chooses_it() -> None:
    found = baselines(by_class(TRAIN), TEST, TASK, seed=0)
    shares = Counter(each.label for each in TEST)
    assert [row["accuracy"] for row in found["linear_local"]["clients"]] == [shares[c] / len(TEST) for c in range(3)]
    only = baselines([("a", telling(1, 1))], telling(0, 1, first_key=100), TASK, seed=0)
    assert [entry["accuracy"] for entry in only.values()] == [0.5] * 4


def test_federation_reaches_the_pooled_classifier_though_each_client_holds_one_class() -> None:
    found = baselines(by_class(TRAIN), TEST, TASK, seed=0)
    pooled = found["tfidf_logreg"]["accuracy"]
    assert abs(found["linear_federated"]["accuracy"] - pooled) < 0.03
    assert found["linear_federated"]["rounds"] == FEDERATED_ROUNDS
    early = baselines(by_class(TRAIN), TEST, TASK, rounds=1, seed=0)["linear_federated"]
    assert early["accuracy"] < pooled - 0.05 and early["rounds"] == 1


def test_order_of_clients_and_of_their_texts_does_not_matter() -> None:
    turned = baselines([(name, held[::-1]) for name, held in SITES[::-1]], TEST, TASK, seed=0)
    for name in ("majority", "tfidf_logreg", "linear_federated"):
        assert turned[name] == FOUND[name]
    assert turned["linear_local"]["clients"][0]["accuracy"] == FOUND["linear_local"]["clients"][2]["accuracy"]


def test_seed_moves_intervals_alone() -> None:
    other = baselines(SITES, TEST, TASK, seed=1)
    for name, entry in FOUND.items():
        assert other[name]["accuracy"] == entry["accuracy"]
    assert any(other[name]["interval_95"] != entry["interval_95"] for name, entry in FOUND.items())


def test_sections_that_are_not_shown_are_not_read() -> None:
    blind = [Example(i, (("history", "pain"),), i % 3) for i in range(12)]
    found = baselines([("a", blind)], telling(0, 1, 2, first_key=100), TASK, seed=0)
    assert found["tfidf_logreg"]["accuracy"] == pytest.approx(1 / 3)


def test_texts_without_words_are_an_error_but_not_at_one_client() -> None:
    task = Task("classification", ("a", "b"))
    mute = [Example(i, (("", "!"),), i % 2) for i in range(3)]
    with pytest.raises(InputError, match="no word"):
        baselines([("a", mute)], mute, task, seed=0)
    speaking = [Example(10 + i, (("", "word"),), i % 2) for i in range(3)]
    found = baselines([("a", mute), ("b", speaking)], mute, task, seed=0)
    assert found["linear_local"]["clients"][0]["accuracy"] == pytest.approx(2 / 3)


def test_linear_choices_drop_words_that_training_lacks() -> None:
    train, test = np.array([[2.0, 0, 0], [0, 1, 0]]), np.array([[1.0, 0, 9], [0, 1, 9]])
    from scipy.sparse import csr_matrix

    assert linear_choices(csr_matrix(train), np.array([1, 0]), csr_matrix(test)).tolist() == [1, 0]


# What the federated classifier is made of


def test_hashed_weights_are_those_of_the_pooled_vocabulary() -> None:
    few, unseen = TRAIN[:25], texts_of(TEST[:10])
    features, test = hashed_tfidf([texts_of(few[:10]), texts_of(few[10:])], unseen)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    pooled, of_test = vectorizer.fit_transform(texts_of(few)), vectorizer.transform(unseen)
    hashed = np.concatenate([each.toarray() for each in features])
    assert hashed.shape[1] == pooled.shape[1] + 1  # no two words share a column here
    assert np.allclose(hashed @ hashed.T, (pooled @ pooled.T).toarray() + INTERCEPT**2, atol=1e-12)
    assert np.allclose(test.toarray() @ hashed.T, (of_test @ pooled.T).toarray() + INTERCEPT**2, atol=1e-12)


def test_federated_optimum_is_that_of_logistic_regression() -> None:
    features, _ = hashed_tfidf([texts_of(TRAIN[:160]), texts_of(TRAIN[160:])], texts_of(TEST))
    labels = [labels_of(TRAIN[:160]), labels_of(TRAIN[160:])]
    rows = np.concatenate([each.toarray() for each in features])
    fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=5000, tol=1e-8).fit(rows[:, :-1], np.concatenate(labels))
    one = average([features[0]], labels[:1], CLASSES, rounds=600)
    alone = LogisticRegression(C=INVERSE_PENALTY, max_iter=5000, tol=1e-8).fit(features[0].toarray()[:, :-1], labels[0])
    assert np.allclose(one[:-1].T, alone.coef_, atol=1e-3)  # one client: no averaging error
    both = average(features, labels, CLASSES, rounds=600)
    scores = rows @ both
    likely = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.abs(likely - fitted.predict_proba(rows[:, :-1])).max() < 0.05  # two: local steps part from each other


def test_contradicting_labels_of_one_text_do_not_diverge() -> None:
    features, _ = hashed_tfidf([["same words"] * 5], ["same words"])
    theta = average(features, [np.array([0, 0, 0, 1, 2])], CLASSES, rounds=200)
    likely = np.exp(features[0][:1] @ theta)[0]
    assert np.allclose(likely / likely.sum(), [0.6, 0.2, 0.2], atol=0.02)


# Language modelling

PASSAGES = st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=8)


def naive_bigram(train: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray:
    """Return p(then | first), (first, then), the way it is written."""
    seen = Counter((a, b) for passage in train for a, b in pairwise(passage))

    def discount(counts: Sequence[int]) -> float:
        once, twice = counts.count(1), counts.count(2)
        return once / (once + 2 * twice) if once and twice else 0.5

    before = [len({a for a, b in seen if b == then}) for then in range(vocabulary)]
    lower = np.full(vocabulary, 1 / vocabulary)
    if seen:
        d = discount([n for n in before if n])
        spread = d * sum(n > 0 for n in before) / len(seen) / vocabulary
        lower = np.array([max(n - d, 0) / len(seen) + spread for n in before])
    found, d = np.tile(lower, (vocabulary, 1)), discount(list(seen.values()))
    for first in range(vocabulary):
        after = {b: n for (a, b), n in seen.items() if a == first}
        if after:
            total = sum(after.values())
            direct = np.array([max(after.get(then, 0) - d, 0) / total for then in range(vocabulary)])
            found[first] = direct + d * len(after) / total * lower
    return found


@given(PASSAGES)
@settings(max_examples=60, deadline=None)
def test_bigram_is_the_naive_estimate(train: list[list[int]]) -> None:
    first = np.array([a for passage in train for a in passage[:-1]], dtype=np.int64)
    then = np.array([b for passage in train for b in passage[1:]], dtype=np.int64)
    given_, truth = (index.ravel() for index in np.indices((7, 7)))
    likely, choices = bigram(first, then, given_, truth, 7)
    naive = naive_bigram(train, 7)
    assert np.allclose(naive.sum(axis=1), 1.0)
    assert np.allclose(likely.reshape(7, 7), naive, atol=1e-12)
    chosen = naive[np.arange(7), choices.reshape(7, 7)[:, 0]]
    assert np.allclose(chosen, naive.max(axis=1), atol=1e-12)


def test_unigram_adds_one() -> None:
    found = language_baselines([[0, 1, 1, 2]], [[2, 1, 3]], 4)["unigram"]
    assert found["perplexity"] == pytest.approx((7 / 3 * 7 / 1) ** 0.5)
    assert found["accuracy"] == 0.5
    assert found["kind"] == "constant"


def test_pairs_tell_more_than_single_tokens_and_passages_stay_apart() -> None:
    found = language_baselines([[0, 1, 0, 1, 0, 1], [2, 3, 2, 3]], [[0, 1, 0, 1], [2, 3]], 4)
    assert found["bigram"]["perplexity"] < found["unigram"]["perplexity"]
    assert found["bigram"]["accuracy"] == 1.0
    joined = language_baselines([[0, 1, 0, 1, 0, 1, 2, 3, 2, 3]], [[0, 1, 0, 1], [2, 3]], 4)
    assert joined["bigram"]["perplexity"] != found["bigram"]["perplexity"]


def test_without_training_tokens_all_are_equally_likely() -> None:
    found = language_baselines([], [[0, 1, 2]], 5)
    assert found["unigram"]["perplexity"] == found["bigram"]["perplexity"] == pytest.approx(5.0)


def test_nothing_to_predict_is_null() -> None:
    assert language_baselines([[0, 1]], [[3]], 5)["bigram"] == {
        "name": "frequencies of token pairs", "kind": "counts", "accuracy": None, "perplexity": None,
    }  # fmt: skip
