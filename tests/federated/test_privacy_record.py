"""DP-SGD at a client: gradients of single cases, their bound, the draw of cases, and the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fllm.evaluation import Prompt
from fllm.federation.privacy_noise import NoiseSource
from fllm.federation.privacy_record import GradientPrivacy, PrivateHospital, clipped_sum, gradients_by_case
from fllm.federation.task import LocalTraining
from fllm.model.adapters import adapter_digest, get_adapter, set_adapter
from fllm.preparation import Prepared
from hwsim import emulate, noise_key
from tests import tolerances
from tests.fllm.small import scrambled

Gradient = list[torch.Tensor]


def made(
    prepared: Prepared, *, noise: float = 1e-9, norm: float = 1.0, answers: Any = None, seed: int | None = 3,
    prompts: Sequence[Prompt] = (), **training: Any,
) -> PrivateHospital:  # fmt: skip
    """Return the first hospital, on its chip, with DP-SGD; the noise is next to none."""
    template = prepared.hospitals[0]
    settings = replace(LocalTraining(1, 6, 1e-3, 0.05, 1, seed=3), **training)
    return PrivateHospital(
        0, prompts or template.prompts, prepared.model, template.answers if answers is None else answers,
        template.pad_id, settings, template.put_on_chip, privacy=GradientPrivacy(noise, norm, NoiseSource(seed)),
    )  # fmt: skip


def of_length(prepared: Prepared, *lengths: int) -> list[Prompt]:
    given = prepared.hospitals[0].prompts
    return [Prompt(given[i].tokens[:length], given[i].label, True) for i, length in enumerate(lengths)]


@pytest.fixture(autouse=True)
def _scrambled_adapter(prepared: Prepared) -> Iterator[None]:
    """Both factors of the adapter act, so that both have gradients; on the chip of the first hospital."""
    start = get_adapter(prepared.model)
    put_on_chip = prepared.hospitals[0].put_on_chip
    assert put_on_chip is not None
    put_on_chip(1)
    set_adapter(prepared.model, scrambled(start))
    prepared.model.train()
    yield
    prepared.model.zero_grad(set_to_none=True)
    prepared.model.eval()
    set_adapter(prepared.model, start)
    put_on_chip(1)


def weights_of(hospital: PrivateHospital) -> list[torch.nn.Parameter]:
    return [p for p in hospital.model.parameters() if p.requires_grad]


def by_case(hospital: PrivateHospital, batch: Sequence[Prompt], step: int = 1) -> Gradient:
    """Return each case's gradient, by Opacus, all cases at once."""
    with noise_key(11), gradients_by_case(hospital.model):
        answer_loss, note_loss = hospital.losses_by_case(batch, step)
        (answer_loss + hospital.training.note_loss * note_loss).sum().backward()
        return [weight.grad_sample.clone() for weight in weights_of(hospital)]  # type: ignore[attr-defined]


def of_one(hospital: PrivateHospital, prompt: Prompt, step: int = 1) -> Gradient:
    """Return the gradient of the loss that training without privacy has for a batch of one case."""
    hospital.model.zero_grad(set_to_none=True)
    with noise_key(11):
        answer_loss, note_loss = hospital._losses([prompt], step)
        (answer_loss + hospital.training.note_loss * note_loss).backward()
    return [weight.grad.clone() for weight in weights_of(hospital) if weight.grad is not None]


def norm(gradient: Gradient) -> float:
    return math.sqrt(sum(part.double().square().sum().item() for part in gradient))


def less(one: Gradient, other: Gradient) -> Gradient:
    return [a.double() - b.double() for a, b in zip(one, other, strict=True)]


def cut_sum(hospital: PrivateHospital, batch: Sequence[Prompt], bound: float) -> Gradient:
    with noise_key(11), gradients_by_case(hospital.model):
        answer_loss, note_loss = hospital.losses_by_case(batch, 1)
        (answer_loss + note_loss).sum().backward()
        return clipped_sum(weights_of(hospital), bound)


# Gradients of single cases.


@pytest.mark.parametrize("task", ["labels", "text"])
@pytest.mark.parametrize("where", ["chip", "ideal"])
def test_gradients_of_cases_are_those_of_batches_of_one(prepared: Prepared, task: str, where: str) -> None:
    """Of unlike lengths, padded to the longest; with the chip's noise, of which each sequence has its own."""
    if where == "ideal":
        emulate(prepared.model, prepared.ideal, die_seed=None, token_period=prepared.period_s)
    hospital = made(prepared, answers=[] if task == "text" else None)
    batch = of_length(prepared, 20, 34, 9, 48, 17)
    found = by_case(hospital, batch)
    for number, prompt in enumerate(batch):
        alone = of_one(hospital, prompt)
        assert len(alone) == len(found)
        assert norm(alone) > 1e-3
        assert norm(less([part[number] for part in found], alone)) < tolerances.BATCH_OF_ONE * norm(alone)


def test_gradient_of_a_case_does_not_depend_on_those_beside_it(prepared: Prepared) -> None:
    """Where another case's answer stands, this one's note would have one more loss."""
    hospital = made(prepared, note_loss=1.0)
    case, *others = of_length(prepared, 40, 12, 21, 30)
    alone = [part[0] for part in by_case(hospital, [case])]
    beside = [part[0] for part in by_case(hospital, [case, *others])]
    assert norm(less(beside, alone)) < tolerances.BATCH_OF_ONE * norm(alone)


def test_no_trace_is_left_on_the_model(prepared: Prepared) -> None:
    hospital = made(prepared, steps=2)
    before = {id(m): len(m._forward_hooks) + len(m._backward_hooks) for m in prepared.model.modules()}
    hospital.train(get_adapter(prepared.model), 1)
    assert {id(m): len(m._forward_hooks) + len(m._backward_hooks) for m in prepared.model.modules()} == before
    assert not any(
        hasattr(p, name) for p in prepared.model.parameters() for name in ("grad_sample", "_forward_counter")
    )
    assert not any(getattr(m, "activations", None) for m in prepared.model.modules())


# Their bound.


def test_one_case_more_moves_the_sum_by_the_norm_at_most_and_another_one_by_twice_that(prepared: Prepared) -> None:
    hospital, bound = made(prepared), 0.05
    batch = of_length(prepared, 20, 34, 9, 48, 17)
    assert all(norm([part[i] for part in by_case(hospital, batch)]) > 2 * bound for i in range(len(batch)))
    whole = cut_sum(hospital, batch, bound)
    removed = norm(less(whole, cut_sum(hospital, batch[1:], bound)))
    assert removed == pytest.approx(bound, rel=1e-4)  # all are cut, so each moves it by the whole norm
    other = replace(batch[0], label=(batch[0].label + 1) % 4, tokens=batch[0].tokens[:11])  # type: ignore[operator]
    replaced = norm(less(whole, cut_sum(hospital, [other, *batch[1:]], bound)))
    assert bound / 10 < replaced <= 2 * bound * (1 + 1e-4)


def test_gradients_below_the_norm_are_left_alone(prepared: Prepared) -> None:
    hospital = made(prepared, note_loss=1.0)
    batch = of_length(prepared, 20, 34, 9)
    plain = [part.sum(0) for part in by_case(hospital, batch)]
    assert norm(less(cut_sum(hospital, batch, 1e6), plain)) < tolerances.FLOAT32 * norm(plain)


def test_gradient_that_is_not_finite_stops_the_client() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad_sample = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="not finite"):
        clipped_sum([weight], 1.0)
    weight.grad_sample = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # type: ignore[attr-defined]
    assert clipped_sum([weight], 1.0)[0].tolist() == pytest.approx([0.6, 0.8])


# A step.


def gradient_of_step(hospital: PrivateHospital, server_round: int = 1, step: int = 1) -> Gradient:
    hospital.model.zero_grad(set_to_none=True)
    hospital._gradient([], server_round, step)
    return [weight.grad.clone() for weight in weights_of(hospital) if weight.grad is not None]


def test_step_is_the_sum_over_pieces_by_the_expected_number_of_cases(prepared: Prepared) -> None:
    """All cases are drawn where a batch is as large as the client; the rest is the formula."""
    prompts = of_length(prepared, 20, 34, 9, 48, 17)
    hospital = made(prepared, prompts=prompts, batch_size=5, piece=2, note_loss=0.0, norm=0.1)
    emulate(prepared.model, prepared.ideal, die_seed=None, token_period=prepared.period_s)
    alone = [of_one(hospital, prompt) for prompt in prompts]
    expected = [sum(0.1 / norm(one) * one[i].double() for one in alone) / 5 for i in range(len(alone[0]))]
    assert all(norm(one) > 0.1 for one in alone)
    found = gradient_of_step(hospital)
    assert norm(less(found, expected)) < tolerances.BATCH_OF_ONE * norm(found)  # type: ignore[arg-type]


def test_noise_of_a_step_has_the_size_that_is_accounted_for(prepared: Prepared) -> None:
    prompts = of_length(prepared, 20, 34)
    quiet = gradient_of_step(made(prepared, prompts=prompts, batch_size=2, norm=0.1))
    noisy = gradient_of_step(made(prepared, prompts=prompts, batch_size=2, norm=0.1, noise=3.0))
    noise = torch.cat([part.flatten() for part in less(noisy, quiet)])
    expected = 3.0 * 0.1 / 2
    assert abs(noise.std().item() - expected) < 5 * expected / math.sqrt(2 * len(noise))
    assert abs(noise.mean().item()) < 5 * expected / math.sqrt(len(noise))


@pytest.mark.parametrize("what", ["round", "step", "partition", "seed"])
def test_noise_of_a_step_is_its_own(prepared: Prepared, what: str) -> None:
    """Two cases of next to no gradient beside the noise."""
    hospital = made(prepared, prompts=of_length(prepared, 9, 9), noise=1e3, norm=1e-3)
    first = torch.cat([part.flatten() for part in gradient_of_step(hospital)])
    assert torch.equal(first, torch.cat([part.flatten() for part in gradient_of_step(hospital)]))
    other = made(prepared, prompts=hospital.prompts, noise=1e3, norm=1e-3, seed=4 if what == "seed" else 3)
    other.partition = 1 if what == "partition" else 0
    second = gradient_of_step(other, 2 if what == "round" else 1, 2 if what == "step" else 1)
    flat = torch.cat([part.flatten() for part in second])
    assert abs(torch.corrcoef(torch.stack([first, flat]))[0, 1].item()) < 5 / math.sqrt(len(flat))
    halves = first[: len(first) // 2 * 2].view(2, -1)
    assert abs(torch.corrcoef(halves)[0, 1].item()) < 5 / math.sqrt(halves.shape[1])


@pytest.mark.parametrize("seed", [3, None])
def test_cases_are_drawn_each_for_itself(prepared: Prepared, seed: int | None) -> None:
    """120 cases at a rate of 0.05: as many draws, sizes and pairs as independent ones give."""
    prompts = [Prompt((1, 2, number), 0, True) for number in range(120)]
    hospital = made(prepared, prompts=prompts, batch_size=6, piece=4, seed=seed)
    draws = [hospital.drawn(1, step) for step in range(400)]
    cases = [[prompt.tokens[2] for piece in pieces for prompt in piece] for pieces in draws]
    assert all(len(piece) <= 4 for pieces in draws for piece in pieces)
    assert all(len(set(drawn)) == len(drawn) for drawn in cases)
    sizes = torch.tensor([len(drawn) for drawn in cases], dtype=torch.float64)
    variance = 120 * 0.05 * 0.95
    assert abs(sizes.mean().item() - 6) < 5 * math.sqrt(variance / 400)
    assert abs(sizes.var().item() - variance) < 5 * variance * math.sqrt(2 / 400)
    times = torch.bincount(torch.tensor([case for drawn in cases for case in drawn]), minlength=120).double()
    assert (times - 20).abs().max().item() < 5 * math.sqrt(400 * 0.05 * 0.95)


# A round.


def test_round_depends_on_seed_round_and_partition_alone(prepared: Prepared) -> None:
    start = get_adapter(prepared.model)
    hospital = made(prepared, steps=2, noise=0.5)
    state = torch.get_rng_state()
    first = hospital.train(start, 1)
    assert torch.equal(torch.get_rng_state(), state)
    hospital.train(start, 2)
    again = made(prepared, steps=2, noise=0.5).train(start, 1)
    assert adapter_digest(again.adapter) == adapter_digest(first.adapter)
    assert (again.loss, again.counts.tokens, again.examples) == (first.loss, first.counts.tokens, len(hospital.prompts))
    secret = [made(prepared, steps=2, noise=0.5, seed=None).train(start, 1) for _ in range(2)]
    assert len({adapter_digest(one.adapter) for one in (first, *secret)}) == 3


def test_round_without_any_drawn_case_is_noise_alone(prepared: Prepared) -> None:
    hospital = made(prepared, prompts=of_length(prepared, 9, 9), noise=1.0)
    hospital.drawn = lambda *_: []  # type: ignore[method-assign]
    start = get_adapter(prepared.model)
    update = hospital.train(start, 1)
    assert update.loss == 0.0
    assert update.counts.tokens == 0
    assert all(not torch.equal(update.adapter[name], tensor) for name, tensor in start.items())


def test_sgd_keeps_the_size_of_the_noise(prepared: Prepared) -> None:
    """Training without privacy cuts a step's gradient to norm 1, which would shrink the noise with what it hides."""
    hospital = made(prepared, prompts=of_length(prepared, 9, 9), batch_size=2, noise=50.0, optimiser="sgd",
                    learning_rate=0.01)  # fmt: skip
    start = get_adapter(prepared.model)
    update = hospital.train(start, 1).adapter
    moved = norm([update[name] - start[name] for name in start])
    expected = 0.01 * hospital.training.rate(1, 1) / 0.01 * 50.0 / 2 * math.sqrt(sum(t.numel() for t in start.values()))
    assert moved == pytest.approx(expected, rel=0.05)
