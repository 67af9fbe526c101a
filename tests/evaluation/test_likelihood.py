"""Scores against hand computations, on a model whose next token depends on the last one alone."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from device_models import load_device
from fllm.evaluation import Prompt, evaluate, padded
from hwsim import emulate
from tests.fllm.small import fresh_model

PAD = 9
ANSWERS = [[1], [2], [3], [4]]


class Bigram(nn.Module):
    """Logits are a table of the last token. The row of the padding is NaN: whoever reads it shows it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = torch.randn(10, 10, generator=torch.Generator().manual_seed(seed))
        self.table[PAD] = math.nan
        self.was_training: list[bool] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> SimpleNamespace:
        self.was_training.append(self.training)
        assert torch.equal(attention_mask.bool(), input_ids != PAD)
        return SimpleNamespace(logits=self.table[input_ids])

    def logp(self, last: int, token: int) -> float:
        return math.log(math.exp(self.table[last, token]) / sum(math.exp(x) for x in self.table[last]))


def prompts(*rows: tuple[int, ...], truth: int | None = 0) -> list[Prompt]:
    return [Prompt(row, truth, False) for row in rows]


def choice(model: Bigram, row: tuple[int, ...], answers: list[list[int]]) -> int:
    """Find the class that evaluate chooses: the one for which it says "right"."""
    scores = [evaluate(model, prompts(row, truth=d), answers, 1, PAD) for d in range(4)]
    found = [one.correct[0] for one in scores]
    assert sum(found) == 1
    assert all(one.chosen.tolist() == [found.index(True)] for one in scores)
    return found.index(True)


def random_prompts(seed: int = 0, cases: int = 23, labelled: bool = True) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    rows = [tuple(int(x) for x in rng.integers(0, 9, size=rng.integers(2, 9))) for _ in range(cases)]
    return [Prompt(row, int(rng.integers(4)) if labelled else None, False) for row in rows]


@pytest.mark.parametrize("last", range(9))
def test_single_token_answers_take_the_likeliest(last: int) -> None:
    model = Bigram()
    scores = [model.logp(last, answer[0]) for answer in ANSWERS]
    assert choice(model, (5, last), ANSWERS) == int(np.argmax(scores))
    found = evaluate(model, prompts((5, last)), ANSWERS, 1, PAD)
    assert found.log_likelihoods is not None and found.probabilities is not None
    assert found.log_likelihoods[0] == pytest.approx(scores, abs=1e-5)
    assert found.probabilities[0] == pytest.approx(np.exp(scores) / np.exp(scores).sum(), rel=1e-5)


def test_the_last_token_decides_not_the_padding() -> None:
    model = Bigram()
    model.table[6, 1:5] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    model.table[7, 1:5] = torch.tensor([0.0, 0.0, 9.0, 0.0])
    scores = evaluate(
        model, [Prompt((5, 6), 1, False), Prompt((5, 5, 5, 5, 7), 2, False), Prompt((6, 7), 1, False)], ANSWERS, 3, PAD
    )
    assert scores.correct == (True, True, False)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.truth is not None and scores.truth.tolist() == [1, 2, 1]
    assert scores.chosen.tolist() == [1, 2, 2]


@pytest.mark.parametrize("seed", range(6))
def test_long_answers_are_scored_by_all_their_tokens_together(seed: int) -> None:
    model = Bigram(seed)
    answers = [[1], [2, 3], [4, 5, 6], [7, 1]]
    for last in range(9):
        sums = [
            sum(model.logp(before, token) for before, token in zip([last, *answer], answer, strict=False))
            for answer in answers
        ]
        assert choice(model, (8, 8, last), answers) == int(np.argmax(sums))
        found = evaluate(model, prompts((8, 8, last)), answers, 1, PAD).log_likelihoods
        assert found is not None and found[0] == pytest.approx(sums, abs=1e-5)


def test_easy_last_tokens_do_not_make_an_unlikely_name_likely() -> None:
    """A mean over tokens would choose the long name, written in two of five cases, over the one written in three."""
    model = Bigram()
    model.table[:9] = -20.0
    model.table[5, 1], model.table[5, 2] = math.log(1.5), 0.0  # 0.6 and 0.4
    model.table[2, 3] = model.table[3, 4] = model.table[4, 6] = 0.0  # sure once begun
    long = [2, 3, 4, 6]
    mean = sum(model.logp(before, token) for before, token in zip([5, *long], long, strict=False)) / 4
    assert mean > model.logp(5, 1) > 4 * mean
    assert choice(model, (8, 5), [[1], long, [6], [7]]) == 0


@pytest.mark.parametrize("answers", [ANSWERS, [[1], [2, 3], [4, 5, 6], [7, 1]], []], ids=["short", "long", "none"])
def test_neither_batch_size_nor_order_matters(answers: list[list[int]]) -> None:
    model = Bigram()
    cases = random_prompts()
    one = evaluate(model, cases, answers, 1, PAD)
    for batch_size in (2, 7, 23, 100):
        many = evaluate(model, cases, answers, batch_size, PAD)
        assert many.correct == one.correct
        assert many.perplexity == pytest.approx(one.perplexity, rel=1e-6)
        assert many.losses == pytest.approx(one.losses, rel=1e-6)
        assert many.log_likelihoods == pytest.approx(one.log_likelihoods, rel=1e-5) if answers else True
    order = np.random.default_rng(1).permutation(len(cases))
    shuffled = evaluate(model, [cases[i] for i in order], answers, 4, PAD)
    assert shuffled.correct == tuple(one.correct[i] for i in order)
    assert (shuffled.accuracy, shuffled.macro_f1) == (one.accuracy, one.macro_f1)


def test_perplexity_is_per_token_of_the_prompts_without_the_answers() -> None:
    model = Bigram()
    losses = [-model.logp(a, b) for a, b in [(1, 2), (2, 3), (3, 4), (5, 6)]]  # not a mean of means: 3 tokens and 1
    scores = evaluate(model, prompts((1, 2, 3, 4), (5, 6)), ANSWERS, 2, PAD)
    assert scores.perplexity == pytest.approx(math.exp(sum(losses) / 4), rel=1e-6)
    assert scores.losses is not None
    assert scores.losses[:, 1].tolist() == [3, 1]
    assert scores.losses[:, 0] == pytest.approx([sum(losses[:3]), losses[3]], rel=1e-6)


def test_language_modelling_counts_the_tokens_that_were_the_likeliest() -> None:
    model = Bigram()
    model.table[:9, PAD] = -9.0
    best = {token: int(model.table[token].argmax()) for token in range(9)}
    right, wrong = (5, best[5]), (5, (best[5] + 1) % 9)
    mixed = (*right, best[best[5]], 7, (best[7] + 1) % 9)
    hits = [sum(best[a] == b for a, b in pairwise(row)) for row in (right, wrong, mixed)]
    found = evaluate(model, prompts(right, wrong, mixed, (3,), truth=None), [], 2, PAD)
    assert hits[:2] == [1, 0] and 0 < hits[2] < 4
    assert found.correct == (1.0, 0.0, hits[2] / 4, 0.0)  # a text of one token predicts none
    assert found.accuracy == pytest.approx(sum(hits) / 6)
    assert (found.macro_f1, found.probabilities, found.log_likelihoods, found.truth) == (None, None, None, None)
    same = evaluate(model, prompts(right, wrong, mixed, (3,)), ANSWERS, 2, PAD)
    assert found.perplexity == same.perplexity


def test_nothing_to_predict_has_no_number() -> None:
    found = evaluate(Bigram(), prompts((3,), truth=None), [], 1, PAD)
    assert math.isnan(found.accuracy) and math.isnan(found.perplexity)


def test_class_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="without a class"):
        evaluate(Bigram(), prompts((1, 2), truth=None), ANSWERS, 1, PAD)


def test_noise_of_a_score_is_that_of_its_prompt() -> None:
    """The same text four times: four deviates, which neither the batch nor its other prompts change."""
    device = load_device("gaincell_28nm", {"noise.flicker": 0.1})
    model = emulate(fresh_model(), device, die_seed=1, token_period=1e-5)
    same = prompts(*[tuple(range(2, 20))] * 4)
    one, four = (evaluate(model, same, ANSWERS, size, 0, noise_seed=1).log_likelihoods for size in (1, 4))
    other = evaluate(model, same, ANSWERS, 4, 0, noise_seed=2).log_likelihoods
    assert one is not None and four is not None and other is not None
    assert np.abs(one - four).max() < 1e-4
    assert min(np.abs(four[i] - four[j]).max() for i in range(4) for j in range(i)) > 1e-3
    assert np.abs(four - other).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_model_is_evaluated_in_evaluation_mode_and_put_back(training: bool) -> None:
    model = Bigram().train(training)
    evaluate(model, prompts((1, 2)), ANSWERS, 1, PAD)
    assert model.was_training == [False]
    assert model.training is training


def test_neither_prompt_nor_scores_show_a_case() -> None:
    assert "123" not in repr(Prompt((123, 456), 0, False))
    shown = repr(evaluate(Bigram(), random_prompts(), ANSWERS, 5, PAD))
    assert shown.startswith("Scores(accuracy=") and "correct" not in shown and "array" not in shown


def test_padded_marks_what_is_real() -> None:
    tokens, real = padded([[1, 2, 3], [4]], PAD)
    assert tokens.tolist() == [[1, 2, 3], [4, PAD, PAD]]
    assert real.tolist() == [[1, 1, 1], [1, 0, 0]]
