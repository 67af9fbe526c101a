r"""DP-SGD at a client: no case moves a step by more than the clipping norm, and noise hides that much.

Every step draws each of the client's n cases with probability :math:`q = \min(1, L / n)`, where L is the batch size.
With :math:`g_i` the gradient of case i, C the clipping norm and z the noise multiplier, the optimiser is given

.. math:: \frac{1}{L} \Bigl( \sum_i g_i \min(1, C / \lVert g_i \rVert) + z C \, \mathcal N(0, 1) \Bigr)

(Abadi et al. 2016). One case more or less changes the sum by at most C, another case in its place by at most 2 C;
epsilon is stated for the former. A case's loss is the mean over its answer and ``note_loss`` times that over its note,
so that it does not depend on the cases drawn beside it; on the device neither does it, as a sequence has noise of its
own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fllm.evaluation import Prompt, padded
from fllm.federation.privacy_noise import NoiseSource
from fllm.federation.task import Hospital
from hwsim import noise_key
from hwsim.randomness import seed_of


@dataclass(frozen=True)
class GradientPrivacy:
    """Noise [clipping norms], clipping norm, and where draws come from."""

    noise_multiplier: float
    clipping_norm: float
    source: NoiseSource


@dataclass(eq=False, kw_only=True)
class PrivateHospital(Hospital):
    """A client that trains by DP-SGD.

    Attributes:
        privacy: Noise and clipping norm.
    """

    privacy: GradientPrivacy

    def _gradient(self, order: Sequence[int], server_round: int, step: int) -> list[float]:  # noqa: ARG002
        """Leave the noisy mean of the drawn cases' gradients at the weights; whom it draws, no order decides."""
        place = (server_round, self.partition, step)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p, dtype=torch.float64) for p in weights]
        losses: list[float] = []
        for number, batch in enumerate(self.drawn(server_round, step)):
            key = (*place, number * self.training.piece) if number else place
            with noise_key(seed_of(self.training.seed, "noise", *key)), gradients_by_case(self.model):
                answer_loss, note_loss = self.losses_by_case(batch, step)
                (answer_loss + self.training.note_loss * note_loss).sum().backward()
                cut = clipped_sum(weights, self.privacy.clipping_norm)
            total = [part + more for part, more in zip(total, cut, strict=True)]
            losses += answer_loss.tolist()
        spread = self.privacy.noise_multiplier * self.privacy.clipping_norm
        for number, (weight, part) in enumerate(zip(weights, total, strict=True)):
            noise = self.privacy.source.normal(part.shape, "privacy noise", *place, number)
            weight.grad = ((part + spread * noise) / self.training.batch_size).to(weight.dtype)
        return [sum(losses) / len(losses)] if losses else []

    def _cut(self, weights: list[nn.Parameter]) -> None:
        """Leave the gradient as it is: its parts are cut, and its noise must keep its size."""

    def drawn(self, server_round: int, step: int) -> list[list[Prompt]]:
        """Return the cases of a step, each drawn for itself, in pieces of like length."""
        rate = self.training.batch_size / len(self.prompts)
        draws = self.privacy.source.uniform(len(self.prompts), "cases of a step", server_round, self.partition, step)
        cases = sorted((draws < rate).nonzero().flatten().tolist(), key=lambda case: self.lengths[case])
        piece = self.training.piece
        return [[self.prompts[i] for i in cases[at : at + piece]] for at in range(0, len(cases), piece)]

    def losses_by_case(self, batch: Sequence[Prompt], step: int) -> tuple[Tensor, Tensor]:
        """Return the mean losses of each case's answer and note, both (cases,); 0 for what a case has not."""
        if not self.answers:
            return self._text_losses(batch)
        losses = self.token_losses(batch, step)
        return _means(losses.loss, losses.is_answer), _means(losses.loss, losses.is_note & losses.sampled)

    def _text_losses(self, batch: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        tokens, real = padded([prompt.tokens for prompt in batch], self.pad_id)
        logits = self.model(input_ids=tokens, attention_mask=real, use_cache=False).logits.float()
        loss = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return _means(loss, real[:, 1:].bool()), loss.new_zeros(len(batch))


def _means(loss: Tensor, where: Tensor) -> Tensor:
    """Return the mean of each row over its own places."""
    return (loss * where).sum(1) / where.sum(1).clamp(min=1)


def clipped_sum(weights: Sequence[nn.Parameter], norm: float) -> list[Tensor]:
    """Return the sum over cases of their gradients, each cut to a norm over all weights, in float64.

    Args:
        weights: Parameters with ``grad_sample`` (cases, ...).
        norm: The largest norm.

    Raises:
        FloatingPointError: If a gradient is not finite, which no factor would cut.
    """
    samples: list[Tensor] = [weight.grad_sample for weight in weights]  # type: ignore[attr-defined]
    parts = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in samples])
    norms = torch.linalg.vector_norm(parts, dim=0)
    if not bool(norms.isfinite().all()):
        raise FloatingPointError("the gradient of a case is not finite")
    factors = (norm / norms).clamp(max=1.0)  # 1 where a norm is 0
    return [torch.einsum("n,n...->...", factors, g.double()) for g in samples]


@contextmanager
def gradients_by_case(model: nn.Module) -> Iterator[None]:
    """Let ``backward`` of a sum over cases leave each case's gradient at ``grad_sample``, inside the block."""
    from opacus.grad_sample import GradSampleHooks

    hooks = GradSampleHooks(model, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # The first layer's input needs no gradient, as the embedding is frozen: so it is meant
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()
