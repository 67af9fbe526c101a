"""Scores against hand computations, on a model whose next token depends on the last one alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fllm.evaluation import Prompt, bootstrap_interval, evaluate, macro_f1, padded

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


def prompts(*rows: tuple[int, ...], truth: int = 0) -> list[Prompt]:
    return [Prompt(row, truth, False) for row in rows]


def choice(model: Bigram, row: tuple[int, ...], answers: list[list[int]]) -> int:
    """Find the diagnosis that evaluate chooses: the one for which it says "right"."""
    found = [evaluate(model, prompts(row, truth=d), answers, 1, PAD).correct[0] for d in range(4)]
    assert sum(found) == 1
    return found.index(True)


@pytest.mark.parametrize("last", range(9))
def test_single_token_answers_take_the_likeliest(last: int) -> None:
    model = Bigram()
    scores = [model.logp(last, answer[0]) for answer in ANSWERS]
    assert choice(model, (5, last), ANSWERS) == int(np.argmax(scores))


def test_the_last_token_decides_not_the_padding() -> None:
    model = Bigram()
    model.table[6, 1:5] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    model.table[7, 1:5] = torch.tensor([0.0, 0.0, 9.0, 0.0])
    scores = evaluate(
        model, [Prompt((5, 6), 1, False), Prompt((5, 5, 5, 5, 7), 2, False), Prompt((6, 7), 1, False)], ANSWERS, 3, PAD
    )
    assert scores.correct == (True, True, False)
    assert scores.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(6))
def test_long_answers_are_scored_by_the_mean_over_their_tokens(seed: int) -> None:
    model = Bigram(seed)
    answers = [[1], [2, 3], [4, 5, 6], [7, 1]]
    for last in range(9):
        means = [
            np.mean([model.logp(before, token) for before, token in zip([last, *answer], answer, strict=False)])
            for answer in answers
        ]
        assert choice(model, (8, 8, last), answers) == int(np.argmax(means))


def test_a_long_answer_is_not_punished_for_its_length() -> None:
    model = Bigram()
    model.table[:9] = -20.0
    model.table[5, 1], model.table[5, 2] = 0.0, 0.1  # log 0.475, log 0.525
    model.table[2, 3] = 0.0  # sure, but for the other tokens: log 1
    model.table[3, 3] = 0.0
    model.table[2, 4] = 0.0  # now log 0.5: the sum of [2, 3] is below log 0.475, its mean is not
    assert sum([model.logp(5, 2), model.logp(2, 3)]) < model.logp(5, 1) < -0.6
    model.table[2, 4] = -1.0
    assert model.logp(5, 2) + model.logp(2, 3) < model.logp(5, 1) < (model.logp(5, 2) + model.logp(2, 3)) / 2
    assert choice(model, (8, 5), [[1], [2, 3], [6], [7]]) == 1


@pytest.mark.parametrize("answers", [ANSWERS, [[1], [2, 3], [4, 5, 6], [7, 1]]], ids=["short", "long"])
def test_neither_batch_size_nor_order_matters(answers: list[list[int]]) -> None:
    model = Bigram()
    rng = np.random.default_rng(0)
    cases = [
        Prompt(tuple(int(x) for x in rng.integers(0, 9, size=rng.integers(2, 9))), int(rng.integers(4)), False)
        for _ in range(23)
    ]
    one = evaluate(model, cases, answers, 1, PAD)
    for batch_size in (2, 7, 23, 100):
        many = evaluate(model, cases, answers, batch_size, PAD)
        assert many.correct == one.correct
        assert many.perplexity == pytest.approx(one.perplexity, rel=1e-6)
    order = rng.permutation(len(cases))
    shuffled = evaluate(model, [cases[i] for i in order], answers, 4, PAD)
    assert shuffled.correct == tuple(one.correct[i] for i in order)
    assert (shuffled.accuracy, shuffled.macro_f1) == (one.accuracy, one.macro_f1)


def test_perplexity_is_per_token_of_the_prompts_without_the_answers() -> None:
    model = Bigram()
    losses = [-model.logp(a, b) for a, b in [(1, 2), (2, 3), (3, 4), (5, 6)]]  # not a mean of means: 3 tokens and 1
    scores = evaluate(model, prompts((1, 2, 3, 4), (5, 6)), ANSWERS, 2, PAD)
    assert scores.perplexity == pytest.approx(math.exp(sum(losses) / 4), rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_evaluated_in_evaluation_mode_and_put_back(training: bool) -> None:
    model = Bigram().train(training)
    evaluate(model, prompts((1, 2)), ANSWERS, 1, PAD)
    assert model.was_training == [False]
    assert model.training is training


def test_prompt_shows_no_token() -> None:
    assert "123" not in repr(Prompt((123, 456), 0, False))


def test_padded_marks_what_is_real() -> None:
    tokens, real = padded([[1, 2, 3], [4]], PAD)
    assert tokens.tolist() == [[1, 2, 3], [4, PAD, PAD]]
    assert real.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("truth", "chosen", "value"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
        ([0, 0, 1, 2], [0, 1, 1, 2], (2 / 3 + 2 / 3 + 1 + 0) / 4),  # the fourth diagnosis never occurs: counts 0
        ([0, 0, 0, 1], [0, 0, 0, 0], (6 / 7) / 4),
        ([0, 1], [1, 0], 0.0),
    ],
)
def test_macro_f1_by_hand(truth: list[int], chosen: list[int], value: float) -> None:
    assert macro_f1(np.array(truth), np.array(chosen)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_bootstrap_interval_holds_the_mean_and_shrinks(share: float) -> None:
    widths = []
    for cases in (20, 100, 1000):
        flags = [i < share * cases for i in range(cases)]
        low, high = bootstrap_interval(flags, seed=0)
        assert 0 <= low <= np.mean(flags) <= high <= 1
        assert bootstrap_interval(flags, seed=0) == (low, high)
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] if 0 < share < 1 else widths == [0, 0, 0]


def test_bootstrap_interval_has_the_width_of_a_binomial() -> None:
    low, high = bootstrap_interval([i % 2 == 0 for i in range(400)], seed=1)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 400), rel=0.15)
