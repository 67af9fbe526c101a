"""What one hospital does in one round: train the adapter on its own cases, through its own device.

Knows torch and prompts, not Flower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from fllm.evaluation import Prompt, padded
from fllm.model.adapters import get_adapter, set_adapter
from fllm.sections import Optimiser
from hwsim import EventCounts, count_events, noise_key
from hwsim.randomness import generator, seed_of

NOTE_STRIDE = 16
"""One in so many tokens of a note gets a loss in each step."""


@dataclass(frozen=True)
class LocalTraining:
    """Settings of local training.

    Attributes:
        steps: Optimiser steps per round.
        batch_size: Cases per step.
        piece: Most cases in one forward pass; a larger batch adds up the gradients of its pieces.
        learning_rate: Peak rate; it warms up over the first quarter of each round, as the
            optimiser is new in each round and AdamW's first steps have no averages yet, and falls
            linearly over the rounds towards a tenth.
        note_loss: Weight of the note's own tokens beside the answer.
        rounds: Rounds of the whole run, for the learning rate.
        seed: Seed of the run.
        optimiser: ``adamw``, or ``sgd`` without momentum.
    """

    steps: int
    batch_size: int
    learning_rate: float
    note_loss: float
    rounds: int
    seed: int
    piece: int = 32
    optimiser: Optimiser = "adamw"

    def rate(self, server_round: int, step: int) -> float:
        """Return the learning rate of a step (both counted from 1)."""
        done = (server_round - 1) * self.steps + step
        total = self.rounds * self.steps
        warm = min(1.0, step / (1 + self.steps // 4))
        return self.learning_rate * warm * falling(done, total)


@dataclass(frozen=True)
class Update:
    """What a client sends back.

    Attributes:
        adapter: Trained tensors.
        loss: Mean training loss [nat] of the answers over the steps.
        examples: Cases of the client, the weight of its update.
        counts: Events of the forward passes on its device.
    """

    adapter: dict[str, Tensor]
    loss: float
    examples: int
    counts: EventCounts


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """Losses of the tokens of a batch.

    Attributes:
        loss: (cases, places) [nat].
        is_answer: (cases, places) whether a token is of the answer.
        is_note: (cases, places) whether it is of the note.
        sampled: (places,) whether a place has a loss for its own sake, and not for another case's answer.
    """

    loss: Tensor
    is_answer: Tensor
    is_note: Tensor
    sampled: Tensor


@dataclass(eq=False)
class Hospital:
    """One client: its cases as prompts, and the model it trains on.

    Attributes:
        partition: Index of the client.
        prompts: Its training cases.
        model: Emulated model with adapter; shared by clients of one process, its adapter is set anew each time.
        answers: Token ids of each class; none for language modelling.
        pad_id: Padding token.
        training: Settings.
        put_on_chip: Puts the model on the chip that this hospital trains on in a round; None leaves it where it is.
    """

    partition: int
    prompts: Sequence[Prompt] = field(repr=False)
    model: PeftModel = field(repr=False)
    answers: Sequence[Sequence[int]]
    pad_id: int
    training: LocalTraining
    put_on_chip: Callable[[int], object] | None = None

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each case."""
        return [len(prompt.tokens) for prompt in self.prompts]

    def train(self, adapter: Mapping[str, Tensor], server_round: int, *, proximal_mu: float = 0.0) -> Update:
        """Train one round from the given adapter; a function of (adapter, seed, round, partition) alone.

        Args:
            adapter: Tensors to start from.
            server_round: Round, counted from 1.
            proximal_mu: Weight of half the squared distance from them in the loss (Li et al. 2020, FedProx).
        """
        model, training = self.model, self.training
        set_adapter(model, adapter)
        if self.put_on_chip is not None:
            self.put_on_chip(server_round)
        model.train()
        weights = [p for p in model.parameters() if p.requires_grad]
        first = [p.detach().clone() for p in weights] if proximal_mu else []
        optimiser = _optimiser(training.optimiser, weights)
        order = self._order(server_round)
        losses: list[float] = []
        with count_events() as counts, torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(training.seed, "dropout", server_round, self.partition).initial_seed())
            for step in range(1, training.steps + 1):
                for group in optimiser.param_groups:
                    group["lr"] = training.rate(server_round, step)
                optimiser.zero_grad(set_to_none=True)
                losses += self._gradient(order, server_round, step)
                for weight, start in zip(weights, first, strict=bool(first)):
                    assert weight.grad is not None
                    weight.grad.add_(weight.detach() - start, alpha=proximal_mu)
                self._cut(weights)
                optimiser.step()
        model.eval()
        return Update(get_adapter(model), math.fsum(losses) / max(1, len(losses)), len(self.prompts), counts)

    def _gradient(self, order: Sequence[int], server_round: int, step: int) -> list[float]:
        """Leave the gradient of a step at the weights; the mean loss of its cases, if it has any."""
        size = self.training.batch_size
        batch = [self.prompts[i] for i in order[(step - 1) * size : step * size]]
        return [self._backward(batch, server_round, step)]

    def _cut(self, weights: list[torch.nn.Parameter]) -> None:
        """Cut the gradient before the optimiser sees it."""
        torch.nn.utils.clip_grad_norm_(weights, 1.0)

    def _backward(self, batch: Sequence[Prompt], server_round: int, step: int) -> float:
        """Add up the gradients of a batch, piece by piece; its mean loss."""
        training, total = self.training, 0.0
        for start in range(0, len(batch), training.piece):
            part = batch[start : start + training.piece]
            share, place = len(part) / len(batch), (start,) if start else ()
            # The tokens of each pass are written anew: new noise
            with noise_key(seed_of(training.seed, "noise", server_round, self.partition, step, *place)):
                answer_loss, note_loss = self._losses(part, step)
                (share * (answer_loss + training.note_loss * note_loss)).backward()
            total += share * answer_loss.item()
        return total

    def _order(self, server_round: int) -> list[int]:
        """Return the case of each place in the round's batches: whole shuffled passes, continued over the rounds.

        Cases of like length share a batch, as they would otherwise be padded to the longest of it; batches keep a
        random order.
        """
        need, batch = self.training.steps * self.training.batch_size, self.training.batch_size
        size = len(self.prompts)
        first = (server_round - 1) * need
        order: list[int] = []
        for lap in range(first // size, -(-(first + need) // size)):
            shuffle = generator(self.training.seed, "cases", self.partition, lap)
            order += torch.randperm(size, generator=shuffle).tolist()
        skip = first - first // size * size
        drawn = sorted(order[skip : skip + need], key=lambda case: self.lengths[case])
        shuffle = generator(self.training.seed, "batches", self.partition, server_round)
        places = torch.randperm(self.training.steps, generator=shuffle).tolist()
        return [case for place in places for case in drawn[place * batch : (place + 1) * batch]]

    def _losses(self, batch: Sequence[Prompt], step: int) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the answers' tokens and of those of the notes; without classes, the text's own."""
        if not self.answers:
            return self._text_loss(batch)
        losses = self.token_losses(batch, step)
        loss, is_note = losses.loss, losses.is_note
        note_loss = loss[is_note].mean() if bool(is_note.any()) else loss.new_zeros(())
        return loss[losses.is_answer].mean(), note_loss

    def token_losses(self, batch: Sequence[Prompt], step: int) -> TokenLosses:
        """Return the losses of the answers' tokens and of one in ``NOTE_STRIDE`` tokens of the notes.

        The LM head only runs where a loss is taken; which ones they are moves on with the step.
        """
        rows = [(*prompt.tokens, *self.answers[label_of(prompt)]) for prompt in batch]
        tokens, real = padded(rows, self.pad_id)
        start = torch.tensor([len(prompt.tokens) for prompt in batch])[:, None]
        place = torch.arange(1, tokens.shape[1])
        sampled = (place % NOTE_STRIDE == step % NOTE_STRIDE) & (self.training.note_loss > 0)
        place = place[sampled | ((place >= start) & real[:, 1:].bool()).any(0)]
        logits = self.model(
            input_ids=tokens, attention_mask=real, use_cache=False, logits_to_keep=place - 1
        ).logits.float()  # fmt: skip
        loss = cross_entropy(logits.transpose(1, 2), tokens[:, place], reduction="none")
        return TokenLosses(loss, (place >= start) & real[:, place].bool(), place < start, sampled[place - 1])

    def _text_loss(self, batch: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Return the mean loss of all tokens, and nothing beside it."""
        tokens, real = padded([prompt.tokens for prompt in batch], self.pad_id)
        logits = self.model(input_ids=tokens, attention_mask=real, use_cache=False).logits.float()
        wanted = real[:, 1:].bool()
        loss = cross_entropy(logits[:, :-1][wanted], tokens[:, 1:][wanted])
        return loss, loss.new_zeros(())


def falling(step: int, steps: int) -> float:
    """Return the share of a rate at a step, counted from 1, that falls linearly over all steps towards a tenth."""
    return 1.0 - 0.9 * (step - 1) / steps


def _optimiser(kind: Optimiser, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return a new optimiser; each step sets its rate."""
    if kind == "sgd":
        return torch.optim.SGD(weights, lr=0.0)
    return torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)


def label_of(prompt: Prompt) -> int:
    """Return the class of a prompt that has one."""
    if prompt.label is None:
        raise ValueError("a prompt without a class among labelled ones")
    return prompt.label
