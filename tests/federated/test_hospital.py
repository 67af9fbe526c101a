"""What a hospital does in one round depends on the adapter, seed, round and partition alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

import fllm.federation.task
from fllm.config import RunConfig
from fllm.evaluation import Prompt
from fllm.federation.task import Hospital, LocalTraining, label_of
from fllm.model.adapters import adapter_digest, get_adapter, set_adapter
from fllm.observer import Observer
from fllm.preparation import Prepared, prepare
from hwsim import emulate
from hwsim.events import EVENTS
from tests import tolerances
from tests.fllm.small import SHORT, scrambled

Adapter = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def start(prepared: Prepared) -> Adapter:
    return get_adapter(prepared.model)


def train(hospital: Hospital, adapter: Adapter, server_round: int = 1) -> tuple[str, float, int]:
    update = hospital.train(adapter, server_round)
    return adapter_digest(update.adapter), update.loss, update.counts.tokens


def test_equal_bits_whatever_happened_in_between(prepared: Prepared, start: Adapter) -> None:
    first, second, _ = prepared.hospitals
    before = train(first, start)
    train(second, scrambled(start), 3)
    torch.manual_seed(99)
    torch.rand(7)
    prepared.model.eval()
    assert train(first, start) == before


@pytest.mark.parametrize("what", ["adapter", "round", "partition", "seed"])
def test_each_of_its_arguments_matters(prepared: Prepared, start: Adapter, what: str) -> None:
    hospital = prepared.hospitals[0]
    before = train(hospital, start)
    if what == "adapter":
        after = train(hospital, scrambled(start))
    elif what == "round":
        after = train(hospital, start, 2)
    elif what == "partition":
        after = train(prepared.hospitals[1], start)
    else:
        other = replace(hospital.training, seed=5)
        after = train(Hospital(0, hospital.prompts, hospital.model, hospital.answers, hospital.pad_id, other), start)
    assert after[0] != before[0]


def test_global_generator_is_left_alone(prepared: Prepared, start: Adapter) -> None:
    state = torch.get_rng_state()
    prepared.hospitals[0].train(start, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_given_adapter_is_not_changed_and_the_update_is_a_copy(prepared: Prepared, start: Adapter) -> None:
    given = {name: tensor.clone() for name, tensor in start.items()}
    update = prepared.hospitals[0].train(given, 1)
    assert adapter_digest(given) == adapter_digest(start)
    before = adapter_digest(update.adapter)
    assert before != adapter_digest(start)
    set_adapter(prepared.model, start)
    assert adapter_digest(update.adapter) == before


def test_only_the_adapter_learns(prepared: Prepared, start: Adapter) -> None:
    frozen = {name: p.detach().clone() for name, p in prepared.model.named_parameters() if not p.requires_grad}
    prepared.hospitals[0].train(start, 1)
    now = dict(prepared.model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())


def test_update_says_cases_loss_and_events(prepared: Prepared, start: Adapter) -> None:
    hospital = prepared.hospitals[0]
    update = hospital.train(start, 1)
    assert update.examples == len(hospital.prompts)
    assert 0 < update.loss < 2 * math.log(2048)
    assert set(update.counts.events) <= set(EVENTS)
    assert update.counts["attention.layer_pass"] == update.counts.tokens * prepared.record["model"]["layers"]
    batch = [hospital.prompts[i] for i in hospital._order(1)]
    fed = sum(len(prompt.tokens) + len(hospital.answers[prompt.label]) for prompt in batch)
    assert update.counts.tokens == fed  # no padding, and the forward pass alone


class Seen(list[Prompt]):
    """Prompts that remember in which order they were taken."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        super().__init__(prompts)
        self.order: list[int] = []

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        self.order.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize(("cases", "batch", "steps", "rounds"), [(7, 2, 2, 4), (3, 4, 1, 3), (5, 5, 1, 2)])
def test_every_case_is_seen_before_any_repeats(
    prepared: Prepared, start: Adapter, cases: int, batch: int, steps: int, rounds: int
) -> None:
    template = prepared.hospitals[0]
    seen = Seen(Prompt(prompt.tokens[:8], prompt.label, True) for prompt in template.prompts[:cases])
    training = LocalTraining(steps, batch, 1e-3, 0.1, rounds, seed=3)
    hospital = Hospital(1, seen, prepared.model, template.answers, template.pad_id, training)
    seen.order.clear()
    for number in range(1, rounds + 1):
        hospital.train(start, number)
        assert len(seen.order) == number * steps * batch
        times = [seen.order.count(case) for case in range(cases)]
        assert max(times) - min(times) <= 1
    first, second = seen.order[: steps * batch], seen.order[steps * batch : 2 * steps * batch]
    assert first != second  # shuffled anew


def test_cases_of_like_length_share_a_batch(prepared: Prepared, start: Adapter) -> None:
    template = prepared.hospitals[0]
    tokens = template.prompts[0].tokens
    seen = Seen(Prompt(tokens[: 6 + i], 0, True) for i in range(12))
    hospital = Hospital(
        0, seen, prepared.model, template.answers, template.pad_id, LocalTraining(4, 3, 1e-3, 0.0, 1, seed=5)
    )
    seen.order.clear()
    hospital.train(start, 1)
    batches = [seen.order[i : i + 3] for i in range(0, 12, 3)]
    assert all(max(batch) - min(batch) == 2 for batch in batches)
    assert batches != sorted(batches)


def test_learning_rate_warms_up_in_each_round_and_falls_to_a_tenth() -> None:
    training = LocalTraining(steps=20, batch_size=1, learning_rate=2.0, note_loss=0.0, rounds=5, seed=0)
    rates = [[training.rate(number, step) for step in range(1, 21)] for number in range(1, 6)]
    for in_round in rates:  # the optimiser is new in each round, so each round warms up
        peak = in_round.index(max(in_round))
        assert 0 < peak < 10
        assert in_round[: peak + 1] == sorted(in_round[: peak + 1])
        assert in_round[peak:] == sorted(in_round[peak:], reverse=True)
    assert 1.6 < max(rates[0]) <= 2.0
    assert rates[-1][-1] == pytest.approx(0.2, rel=0.1)
    falls = [a[-1] - b[-1] for a, b in pairwise(rates)]
    assert falls == pytest.approx([falls[0]] * len(falls))  # a straight line, across the rounds


def test_learning_rate_of_a_run_of_one_step_is_the_peak() -> None:
    assert LocalTraining(1, 1, 2.0, 0.0, 1, 0).rate(1, 1) == 2.0


# Where it trains.


@pytest.mark.parametrize(("where", "chips"), [("own", 3), ("new", 6), ("design", 1)])
def test_chips_of_training(where: Any, chips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clients in two rounds; the chips of evaluation are never among them."""
    prepared = prepare(RunConfig(**SHORT | {"num_clients": 3, "training_chips": where}), Observer())
    used: list[Any] = []
    monkeypatch.setattr("fllm.preparation.emulate", lambda *_, die_seed, **__: used.append(die_seed))
    for server_round in (1, 2):
        for hospital in prepared.hospitals:
            assert hospital.put_on_chip is not None
            hospital.put_on_chip(server_round)
    seeds = [None if die is None else die.seed for die in used]
    assert len(set(seeds)) == chips
    assert not set(seeds) & {die.seed for die in prepared.dies}
    assert prepared.record["seeds"]["client_dies"] == (seeds[:3] if where == "own" else [])


# What moves an adapter.


def moved(prepared: Prepared, start: Adapter, steps: int, mu: float = 0.0) -> Adapter:
    """Train one round of SGD and return what was added."""
    hospital = copy.copy(prepared.hospitals[0])
    hospital.training = LocalTraining(steps, 4, 0.5, 0.0, 1, 0, optimiser="sgd")
    update = hospital.train(start, 1, proximal_mu=mu).adapter
    return {name: update[name] - start[name] for name in start}


def norm(step: Adapter) -> float:
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in step.values()))


def test_step_of_sgd_is_the_gradient_times_the_rate(prepared: Prepared, start: Adapter) -> None:
    """AdamW would move every number by the rate; a gradient of norm 1 or less moves all together by that much."""
    step = moved(prepared, start, steps=1)
    assert 0.01 < norm(step) <= 0.5 * (1 + 1e-5)
    assert max(t.abs().max().item() for t in step.values()) < 0.4


def test_proximal_term_pulls_towards_the_global_adapter(prepared: Prepared, start: Adapter) -> None:
    """The first step starts there and is not touched; the second one is."""
    first, pulled = moved(prepared, start, steps=1), moved(prepared, start, steps=1, mu=0.1)
    assert all(torch.equal(tensor, pulled[name]) for name, tensor in first.items()) and pulled.keys() == first.keys()
    assert norm(moved(prepared, start, steps=4, mu=0.5)) < norm(moved(prepared, start, steps=4))


# A batch in pieces.


@pytest.fixture
def _on_the_ideal_device(prepared: Prepared) -> Iterator[None]:
    emulate(prepared.model, prepared.ideal, die_seed=None, token_period=prepared.period_s)
    yield
    put_back = prepared.hospitals[0].put_on_chip
    assert put_back is not None
    put_back(1)


def in_pieces(prepared: Prepared, piece: int, answers: list[list[int]] | None = None) -> Hospital:
    template = prepared.hospitals[0]
    training = LocalTraining(1, 6, 1e-3, 0.0, 1, seed=3, piece=piece)
    own = template.answers if answers is None else answers
    return Hospital(0, template.prompts, prepared.model, own, template.pad_id, training)


def loss_and_gradient(hospital: Hospital, batch: list[Prompt], start: Adapter) -> tuple[float, dict[str, torch.Tensor]]:
    """Return both for a batch, on the device that the model is on."""
    set_adapter(hospital.model, scrambled(start))
    hospital.model.train()
    hospital.model.zero_grad(set_to_none=True)
    loss = hospital._backward(batch, 1, 1)
    found = {name: p.grad.clone() for name, p in hospital.model.named_parameters() if p.grad is not None}
    hospital.model.zero_grad(set_to_none=True)
    hospital.model.eval()
    return loss, found


@pytest.mark.usefixtures("_on_the_ideal_device")
@pytest.mark.parametrize("piece", [1, 2, 3])
@pytest.mark.parametrize("task", ["labels", "text"])
def test_batch_in_pieces_has_the_gradient_of_the_whole(
    prepared: Prepared, start: Adapter, piece: int, task: str
) -> None:
    """Without noise; every piece has as many tokens with a loss, so its mean counts by its cases."""
    batch = [Prompt(prompt.tokens[:20], prompt.label, True) for prompt in prepared.hospitals[0].prompts[:6]]
    answers = [] if task == "text" else None
    whole, gradient = loss_and_gradient(in_pieces(prepared, 6, answers), batch, start)
    loss, found = loss_and_gradient(in_pieces(prepared, piece, answers), batch, start)
    assert loss == pytest.approx(whole, rel=1e-4)
    assert set(found) == set(gradient)
    assert norm(gradient) > 0
    # Sums of other shapes differ in their last bits, which may move an activation over the edge of an 8-bit code
    assert norm({name: found[name] - tensor for name, tensor in gradient.items()}) < 1e-3 * norm(gradient)


def test_pieces_count_by_their_cases(prepared: Prepared, start: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last piece of 5 by 2 holds one case, and a fifth of the loss."""
    losses = iter([10.0, 20.0, 30.0])
    weight = next(p for p in prepared.model.parameters() if p.requires_grad)
    hospital = in_pieces(prepared, 2)
    monkeypatch.setattr(hospital, "_losses", lambda *_: (next(losses) + 0 * weight.sum(), 0 * weight.sum()))
    assert loss_and_gradient(hospital, hospital.prompts[:5], start)[0] == pytest.approx(0.4 * 10 + 0.4 * 20 + 0.2 * 30)


def noise_keys(hospital: Hospital, size: int, step: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    keys: list[int] = []
    with monkeypatch.context() as patch:
        used = fllm.federation.task.noise_key
        patch.setattr("fllm.federation.task.noise_key", lambda key: keys.append(key) or used(key))
        hospital._backward(hospital.prompts[:size], 1, step)
    hospital.model.zero_grad(set_to_none=True)
    return keys


def test_every_piece_has_noise_of_its_own(prepared: Prepared, start: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    set_adapter(prepared.model, start)
    keys = [noise_keys(in_pieces(prepared, 2), 6, step, monkeypatch) for step in (1, 2)]
    assert [len(found) for found in keys] == [3, 3]
    assert len({key for found in keys for key in found}) == 6
    assert noise_keys(in_pieces(prepared, 6), 6, 1, monkeypatch) == keys[0][:1]  # an undivided batch is its first piece


# Language modelling.


@pytest.mark.usefixtures("_on_the_ideal_device")
def test_loss_of_texts_is_the_mean_over_all_their_tokens(prepared: Prepared, start: Adapter) -> None:
    set_adapter(prepared.model, scrambled(start))
    hospital = in_pieces(prepared, 6, answers=[])
    batch = [Prompt(hospital.prompts[i].tokens[:length], None, False) for i, length in enumerate((12, 30, 21))]
    losses = []
    with torch.no_grad():
        for prompt in batch:
            tokens = torch.tensor([prompt.tokens])
            found = log_softmax(prepared.model(input_ids=tokens, use_cache=False).logits[0].double(), dim=-1)
            losses += [-float(found[place - 1, tokens[0, place]]) for place in range(1, len(prompt.tokens))]
        loss, beside = hospital._losses(batch, 1)
    assert len(losses) == 11 + 29 + 20
    assert float(loss) == pytest.approx(math.fsum(losses) / len(losses), rel=tolerances.FLOAT32)
    assert float(beside) == 0.0


def test_hospital_without_classes_learns_from_its_texts(prepared: Prepared, start: Adapter) -> None:
    template = prepared.hospitals[0]
    prompts = [Prompt(prompt.tokens[:16], None, False) for prompt in template.prompts[:4]]
    updates = [
        Hospital(
            0, prompts, prepared.model, [], template.pad_id, LocalTraining(2, 2, 1e-3, note_loss, 1, seed=3),
            template.put_on_chip,
        ).train(start, 1)
        for note_loss in (0.5, 0.0)
    ]  # fmt: skip
    digests = [adapter_digest(update.adapter) for update in updates]
    assert digests[0] != adapter_digest(start)
    assert digests[0] == digests[1]  # there is no note beside the answer
    assert updates[0].counts.tokens == 4 * 16


def test_prompt_without_a_class_among_labelled_ones_is_our_mistake(prepared: Prepared) -> None:
    assert label_of(Prompt((1, 2), 3, False)) == 3
    with pytest.raises(ValueError, match="without a class"):
        label_of(Prompt((1, 2), None, False))
    hospital = in_pieces(prepared, 6)
    with pytest.raises(ValueError, match="without a class"):
        hospital._losses([Prompt((1, 2), None, False)], 1)
