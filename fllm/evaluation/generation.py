"""Let a model write its answers: greedy decoding, one token after another, on whatever device the model is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fllm.evaluation.prompts import Prompt
from hwsim import noise_key
from hwsim.randomness import seed_of

MAX_NEW_TOKENS = 25
"""What the published evaluation reserves for an answer."""


@torch.no_grad()
def generate_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], batch_size: int, pad_id: int,
    *, max_new_tokens: int = MAX_NEW_TOKENS, noise_seed: int = 0,
) -> list[str]:  # fmt: skip
    """Write the likeliest next token of each prompt until the model ends, a line ends, or there is no room.

    The texts are a model's words about patients: score them, never store or print them. Each prompt has a noise key of
    its own, which stays over all its tokens, so its text does not depend on the batch that it is in.

    Args:
        model: Causal language model; its mode is restored afterwards.
        tokenizer: The model's tokenizer.
        prompts: The cases.
        batch_size: Prompts that are continued together.
        pad_id: Token used as padding.
        max_new_tokens: Most tokens of an answer.
        noise_seed: Key of the noise of the device, if it has any.

    Returns:
        The text behind each prompt, in the order given, up to the first line that has any.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].tokens), i))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        answers = [_Answer(prompts[i], _room(model, prompts[i], max_new_tokens), tokenizer) for i in part]
        keys = torch.tensor([seed_of(noise_seed, "prompt", i) for i in part])
        if any(not answer.done for answer in answers):
            _write(model, answers, keys, pad_id)
        for index, answer in zip(part, answers, strict=True):
            texts[index] = answer.text()
    model.train(was_training)
    return texts


class _Answer:
    """One answer in the making."""

    def __init__(self, prompt: Prompt, room: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.prompt, self.room, self.tokenizer = prompt, room, tokenizer
        self.tokens: list[int] = []
        self.done = room <= 0

    def add(self, token: int) -> None:
        """Take the next token, unless the answer is complete."""
        if self.done:
            return
        self.tokens.append(token)
        ended = token == self.tokenizer.eos_token_id or len(self.tokens) >= self.room
        self.done = ended or "\n" in self._decoded().lstrip()

    def text(self) -> str:
        """Return the first line that is not empty."""
        return next(iter(self._decoded().strip().splitlines()), "").strip()

    def _decoded(self) -> str:
        return str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))


def _room(model: nn.Module, prompt: Prompt, most: int) -> int:
    """Return how many tokens fit behind a prompt."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return most if limit is None else min(most, int(limit) - len(prompt.tokens))


def _write(model: nn.Module, answers: Sequence[_Answer], keys: Tensor, pad_id: int) -> None:
    """Complete answers of one batch; keys and values of the tokens so far stay in the model's cache."""
    tokens, real = _padded_left([answer.prompt.tokens for answer in answers], pad_id)
    positions, cache = (real.cumsum(dim=1) - 1).clamp(min=0), None
    while answers:
        with noise_key(keys):
            out = model(
                input_ids=tokens, attention_mask=real, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        cache, chosen = out.past_key_values, out.logits[:, -1].argmax(dim=-1)
        for answer, token in zip(answers, chosen.tolist(), strict=True):
            answer.add(token)
        going = torch.tensor([place for place, answer in enumerate(answers) if not answer.done], dtype=torch.long)
        if len(going) < len(answers):  # a step costs as much as all tokens so far, so complete answers leave
            cache.batch_select_indices(going)
            answers, keys = [answer for answer in answers if not answer.done], keys[going]
        tokens, positions = chosen[going, None], positions[going, -1:] + 1
        real = torch.cat([real[going], real.new_ones(len(going), 1)], dim=1)


def _padded_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad token lists on the left, so that all end together; return ids and attention mask, both (rows, longest)."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*([pad_id] * (width - len(row))), *row] for row in rows])
    real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return tokens, real
