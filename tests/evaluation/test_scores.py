"""Scores of made-up likelihoods: means over dies, calibration by an empty prompt, temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllm.evaluation.calibration import TEMPERATURES, at_temperature, calibrated, fit_temperature
from fllm.evaluation.metrics import Array
from fllm.evaluation.scores import METRICS, Scores, classified, joined, over_dies, predicted, softmax

seeds = st.integers(0, 10_000)


def scored(seed: int = 0, cases: int = 60, scale: float = 1.0) -> Scores:
    """Scores of a model that states the right probabilities where ``scale`` is 1."""
    rng = np.random.default_rng(seed)
    likelihoods = 1.5 * rng.standard_normal((cases, 4))
    truth = np.array([rng.choice(4, p=softmax(row)) for row in likelihoods])
    return classified(scale * likelihoods, truth, np.stack([rng.random(cases), np.ones(cases)], axis=1))


def loss(likelihoods: Array, truth: Array) -> float:
    return float(-np.log(softmax(likelihoods)[np.arange(len(truth)), truth]).mean())


def known(scores: Scores) -> tuple[Array, Array]:
    assert scores.log_likelihoods is not None and scores.truth is not None
    return scores.log_likelihoods, scores.truth


def test_scores_of_likelihoods_by_hand() -> None:
    likelihoods = np.log(np.array([[0.5, 0.25], [0.1, 0.3], [0.2, 0.2]]))
    found = classified(likelihoods, np.array([0, 0, 1]), np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]]))
    assert found.chosen.tolist() == [0, 1, 0]  # the first of equals
    assert found.correct == (1.0, 0.0, 0.0)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.macro_f1 == pytest.approx((2 / 4 + 0) / 2)
    assert found.probabilities == pytest.approx(np.array([[2 / 3, 1 / 3], [0.25, 0.75], [0.5, 0.5]]))
    assert found.perplexity == pytest.approx(math.e)
    assert math.isnan(classified(likelihoods, np.array([0, 0, 1])).perplexity)


def test_means_over_dies() -> None:
    one, two = scored(0), scored(1)
    found = over_dies([one, two])
    for name in METRICS:
        assert getattr(found, name) == pytest.approx((getattr(one, name) + getattr(two, name)) / 2)
    assert found.correct == tuple((a + b) / 2 for a, b in zip(one.correct, two.correct, strict=True))
    with pytest.raises(ValueError, match="no likelihoods"):
        found.chosen  # noqa: B018


def test_language_modelling_has_no_classes() -> None:
    one = predicted(np.array([2.0, 0.0]), np.array([[4.0, 4.0], [1.0, 1.0]]))
    assert (one.accuracy, one.macro_f1, one.correct) == (0.4, None, (0.5, 0.0))
    found = over_dies([one, one])
    assert (found.accuracy, found.macro_f1, found.perplexity) == (0.4, None, math.e)
    for use in (lambda: one.chosen, lambda: one.without_content(scored()), lambda: scored().without_content(one)):
        with pytest.raises(ValueError, match="no likelihoods"):
            use()


@given(seeds, st.integers(0, 3))
def test_what_a_name_gets_in_front_of_no_text_is_taken_off(seed: int, favoured: int) -> None:
    """A model that favours one name whatever it reads scores as one that does not."""
    fair = scored(seed)
    likelihoods, truth = known(fair)
    bias = np.eye(4)[favoured] * 3.0
    favouring = classified(likelihoods + bias, truth, fair.losses)
    content_free = classified((bias - 7.0)[None], np.array([0]))
    found = favouring.without_content(content_free)
    assert found.correct == fair.correct
    assert (found.accuracy, found.macro_f1, found.perplexity) == (fair.accuracy, fair.macro_f1, fair.perplexity)
    assert found.probabilities == pytest.approx(fair.probabilities)


def test_calibration_by_an_empty_prompt_is_that_of_the_paper() -> None:
    """Softmax of the difference is diag(p_cf)^-1 p, made to sum to 1."""
    p, empty = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]), np.array([0.5, 0.4, 0.1])
    expected = p / empty / (p / empty).sum(axis=1, keepdims=True)
    assert softmax(calibrated(np.log(p), np.log(empty))) == pytest.approx(expected)
    assert softmax(calibrated(np.log(p), np.log(empty))).argmax(axis=1).tolist() == [0, 2]
    assert softmax(calibrated(np.log(p[:1]), np.log([0.9, 0.05, 0.05]))).argmax() == 1


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_fitted_temperature_makes_up_for_a_scale(scale: float) -> None:
    """Fitted on many cases, the temperature is the factor that likelihoods are too large by."""
    assert fit_temperature(*known(scored(1, cases=4000, scale=scale))) == pytest.approx(scale, rel=0.08)


@given(seeds, st.floats(0.2, 5.0))
def test_no_other_temperature_suits_better(seed: int, other: float) -> None:
    likelihoods, truth = known(scored(seed))
    best = fit_temperature(likelihoods, truth)
    fitted, elsewhere = (loss(at_temperature(likelihoods, t), truth) for t in (best, best * other))
    assert fitted <= elsewhere + 1e-9
    assert best == fit_temperature(likelihoods, truth)


def test_temperature_ends_at_its_limits() -> None:
    """All choices right: be sure. All wrong: know nothing."""
    likelihoods = np.log(np.array([[0.7, 0.3], [0.2, 0.8]]))
    assert fit_temperature(likelihoods, np.array([0, 1])) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(likelihoods, np.array([1, 0])) == pytest.approx(TEMPERATURES[1], rel=1e-3)


def test_temperature_of_validation_cases_changes_probabilities_alone() -> None:
    test, validation = scored(2, scale=3.0), scored(3, cases=500, scale=3.0)
    found = test.at_fitted_temperature(validation)
    assert (found.correct, found.perplexity) == (test.correct, test.perplexity)
    assert found.losses is test.losses
    assert (test.temperature, found.temperature) == (1.0, fit_temperature(*known(validation)))
    assert found.probabilities is not None and test.probabilities is not None
    sure_before, sure_now = (one.max(axis=1).mean() for one in (test.probabilities, found.probabilities))
    assert sure_now < sure_before - 0.1
    assert loss(*known(found)) < loss(*known(test)) - 0.1


@pytest.mark.parametrize("language", [False, True])
def test_scores_of_parts_join_to_those_of_the_whole(language: bool) -> None:
    """Each case scored by one of three models, in any order."""
    rng = np.random.default_rng(3)
    places = np.split(rng.permutation(30), [7, 8])
    losses = np.stack([rng.random(30), rng.integers(1, 9, 30).astype(float)], axis=1)
    hits = np.floor(losses[:, 1] * rng.random(30))
    likelihoods, truth = rng.standard_normal((30, 4)), rng.integers(0, 4, 30)

    def of(part: Array) -> Scores:
        return (
            predicted(hits[part], losses[part])
            if language
            else classified(likelihoods[part], truth[part], losses[part])
        )

    found, whole = joined([of(part) for part in places], [part.tolist() for part in places]), of(np.arange(30))
    assert found == whole and found.losses is not None and whole.losses is not None
    np.testing.assert_array_equal(found.losses, losses)
    if not language:
        assert known(found)[0].tolist() == likelihoods.tolist() and known(found)[1].tolist() == truth.tolist()
        assert found.probabilities is not None and whole.probabilities is not None
        np.testing.assert_array_equal(found.probabilities, whole.probabilities)
