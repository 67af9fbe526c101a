"""Metrics by hand, against scikit-learn, and weighted cases against repeated ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, log_loss, recall_score

from fllm.evaluation import metrics
from fllm.evaluation.metrics import Array, macro_f1
from tests.tolerances import FLOAT64

ONES = np.ones((1, 4))
TRUTH, CHOSEN = [0, 0, 1, 2], [0, 1, 1, 0]
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.05, 0.9, 0.05], [0.5, 0.1, 0.4]])
seeds = st.integers(0, 10_000)


def random_answers(seed: int, cases: int = 30, classes: int = 4) -> tuple[np.ndarray, np.ndarray, Array]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), size=cases)
    return rng.integers(classes, size=cases), probabilities.argmax(axis=1), probabilities


@pytest.mark.parametrize(
    ("truth", "chosen", "value"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
        ([0, 0, 1, 2], [0, 1, 1, 2], (2 / 3 + 2 / 3 + 1 + 0) / 4),  # the fourth class never occurs: counts 0
        ([0, 0, 0, 1], [0, 0, 0, 0], (6 / 7) / 4),
        ([0, 1], [1, 0], 0.0),
        ([0, 0, 1, 1], [0, -1, 1, -1], (2 / 3 + 2 / 3) / 4),  # an answer without a class is chosen for none
    ],
)
def test_macro_f1_by_hand(truth: list[int], chosen: list[int], value: float) -> None:
    assert macro_f1(np.array(truth), np.array(chosen), 4) == pytest.approx(value, rel=FLOAT64)


def test_macro_f1_is_over_the_classes_that_there_are() -> None:
    assert macro_f1(TRUTH, CHOSEN, 3) == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert macro_f1(TRUTH, CHOSEN, 5) == pytest.approx((1 / 2 + 2 / 3 + 0) / 5)


@pytest.mark.parametrize(("truth", "chosen"), [([0, 4], [0, 0]), ([0, 0], [0, 4])])
def test_class_beyond_the_number_is_refused(truth: list[int], chosen: list[int]) -> None:
    with pytest.raises(ValueError, match="beyond the 4"):
        macro_f1(truth, chosen, 4)


@given(seeds, st.integers(2, 6))
def test_as_scikit_learn_says(seed: int, classes: int) -> None:
    truth, chosen, probabilities = random_answers(seed, classes=classes)
    ones, names = np.ones((1, len(truth))), range(classes)
    assert macro_f1(truth, chosen, classes) == f1_score(truth, chosen, labels=names, average="macro", zero_division=0)
    occurring = sorted(set(truth.tolist()))
    expected = recall_score(truth, chosen, labels=occurring, average=None, zero_division=0)
    found = metrics.recalls(truth, chosen, classes, ones)[0]
    assert found[occurring] == pytest.approx(expected, rel=FLOAT64)
    assert np.isnan(np.delete(found, occurring)).all()
    assert metrics.confusion(truth, chosen, classes).tolist() == confusion_matrix(truth, chosen, labels=names).tolist()
    assert metrics.negative_log_likelihood(truth, probabilities, ones)[0] == pytest.approx(
        log_loss(truth, probabilities, labels=list(names)), rel=1e-9
    )


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@given(seeds)
def test_mean_class_accuracy_is_balanced_accuracy(seed: int) -> None:
    truth, chosen, _ = random_answers(seed, cases=12)
    found = metrics.mean_class_accuracy(truth, chosen, 4, np.ones((1, 12)))[0]
    assert found == pytest.approx(balanced_accuracy_score(truth, chosen), rel=FLOAT64)


@given(seeds)
def test_weights_repeat_cases(seed: int) -> None:
    """Every metric of a weighted test set is that of one in which cases stand as often as their weight."""
    truth, chosen, probabilities = random_answers(seed, cases=10)
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, 10)).astype(float)
    weights[:, 0] += 1  # no draw is empty
    losses = np.stack([probabilities[:, 0] * 50, truth + 1.0], axis=1)

    def all_of(truth: Array, chosen: Array, p: Array, losses: Array, w: Array) -> list[Array]:
        return [
            metrics.accuracy(truth, chosen, w),
            metrics.mean_f1(truth, chosen, 4, w),
            metrics.mean_class_accuracy(truth, chosen, 4, w),
            *metrics.recalls(truth, chosen, 4, w).T,
            metrics.brier_score(truth, p, w),
            metrics.negative_log_likelihood(truth, p, w),
            metrics.expected_calibration_error(truth == chosen, p.max(axis=1), w),
            metrics.perplexity(losses, w),
            metrics.mean_over_cases(truth == chosen, w, losses[:, 1]),
        ]

    weighted = all_of(truth, chosen, probabilities, losses, weights)
    for draw, row in enumerate(weights.astype(int)):
        again = np.repeat(np.arange(10), row)
        repeated = all_of(
            truth[again], chosen[again], probabilities[again], losses[again], np.ones((1, len(again)))
        )  # fmt: skip
        for many, one in zip(weighted, repeated, strict=True):
            assert many[draw] == pytest.approx(one[0], rel=1e-9, nan_ok=True)


def test_accuracies_by_hand() -> None:
    assert metrics.accuracy(TRUTH, CHOSEN, ONES)[0] == 0.5
    assert metrics.recalls(TRUTH, CHOSEN, 3, ONES)[0].tolist() == [0.5, 1.0, 0.0]
    assert metrics.mean_class_accuracy(TRUTH, CHOSEN, 3, ONES)[0] == pytest.approx(0.5)
    assert metrics.confusion(TRUTH, CHOSEN, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert metrics.confusion(TRUTH, [0, -1, 1, -1], 3).sum() == 2


def test_brier_score_by_hand_and_at_its_ends() -> None:
    each = [0.09 + 0.04 + 0.01, 0.49 + 0.36 + 0.01, 0.0025 + 0.01 + 0.0025, 0.25 + 0.01 + 0.36]
    assert metrics.brier_score(TRUTH, PROBABILITIES, ONES)[0] == pytest.approx(sum(each) / 4)
    sure = np.eye(3)[TRUTH]
    assert metrics.brier_score(TRUTH, sure, ONES)[0] == 0.0
    assert metrics.brier_score(TRUTH, np.roll(sure, 1, axis=1), ONES)[0] == 2.0


def test_negative_log_likelihood_by_hand_and_of_the_impossible() -> None:
    expected = -(math.log(0.7) + math.log(0.3) + math.log(0.9) + math.log(0.4)) / 4
    assert metrics.negative_log_likelihood(TRUTH, PROBABILITIES, ONES)[0] == pytest.approx(expected)
    impossible = np.roll(np.eye(3)[TRUTH], 1, axis=1)
    assert 700 < metrics.negative_log_likelihood(TRUTH, impossible, ONES)[0] < 710


def test_calibration_error_by_hand() -> None:
    """Two of three right at .68, .72, .73 (bin .667 to .733), and one wrong at .95."""
    confidence, correct = [0.68, 0.72, 0.73, 0.95], [1, 1, 0, 0]
    expected = (3 * abs(2 / 3 - 0.71) + 0.95) / 4
    assert metrics.expected_calibration_error(correct, confidence, ONES)[0] == pytest.approx(expected)
    heavier = np.array([[1.0, 1.0, 1.0, 0.0]])
    assert metrics.expected_calibration_error(correct, confidence, heavier)[0] == pytest.approx(abs(2 / 3 - 0.71))


def test_signs_cancel_within_a_bin_alone() -> None:
    """One right at .70 and one wrong at .71 share a bin; one right at .6 and one wrong at .7 do not."""
    both = np.ones((1, 2))
    assert metrics.expected_calibration_error([1, 0], [0.70, 0.71], both)[0] == pytest.approx(abs(0.5 - 0.705))
    assert metrics.expected_calibration_error([1, 0], [0.6, 0.7], both)[0] == pytest.approx((0.4 + 0.7) / 2)


def test_bins_hold_their_upper_end() -> None:
    edges = np.arange(1, 16) / 15
    assert metrics.bin_of(edges).tolist() == list(range(15))
    assert metrics.bin_of([0.0, 1e-9, 1 / 15 + 1e-9, 1.0]).tolist() == [0, 0, 1, 14]


def test_reliability_diagram_holds_the_calibration_error() -> None:
    truth, chosen, probabilities = random_answers(1, cases=200)
    correct, confidence = truth == chosen, probabilities.max(axis=1)
    rows = metrics.reliability(correct, confidence)
    assert [row["low"] for row in rows] == pytest.approx(np.arange(15) / 15)
    assert [row["high"] for row in rows] == pytest.approx(np.arange(1, 16) / 15)
    assert sum(row["cases"] for row in rows) == 200
    gaps = [row["cases"] * abs(row["accuracy"] - row["confidence"]) for row in rows if row["cases"]]
    expected = metrics.expected_calibration_error(correct, confidence, np.ones((1, 200)))[0]
    assert sum(gaps) / 200 == pytest.approx(expected)
    empty = [row for row in rows if not row["cases"]]
    assert empty and all(row["accuracy"] is row["confidence"] is None for row in empty)
    assert all(row["low"] < row["confidence"] <= row["high"] for row in rows if row["cases"])


def test_perplexity_is_per_token_not_per_case() -> None:
    losses = np.array([[6.0, 3.0], [4.0, 1.0], [0.0, 0.0]])
    assert metrics.perplexity(losses, np.ones((1, 3)))[0] == pytest.approx(math.exp(10 / 4))
    assert metrics.perplexity(losses, np.array([[2.0, 1.0, 5.0]]))[0] == pytest.approx(math.exp(16 / 7))
    assert metrics.perplexity(np.array([[1e6, 1.0]]), np.ones((1, 1)))[0] == math.inf


def test_bits_per_byte() -> None:
    """A uniform guess of 8 tokens of 3 bytes each out of 64: 6 bits per 3 bytes."""
    assert metrics.bits_per_byte(np.array([[8 * math.log(64), 8.0]]), 24) == pytest.approx(2.0)


def test_empty_draw_has_no_number() -> None:
    nothing = np.zeros((1, 4))
    for values in (
        metrics.accuracy(TRUTH, CHOSEN, nothing),
        metrics.brier_score(TRUTH, PROBABILITIES, nothing),
        metrics.expected_calibration_error([1, 0, 1, 0], [0.5] * 4, nothing),
        metrics.mean_class_accuracy(TRUTH, CHOSEN, 3, nothing),
    ):
        assert np.isnan(values).all()
