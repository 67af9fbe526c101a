"""Text from an emulated device, one token after another, as its ring buffer of keys and values would write it.

The prompt is one forward pass (prefill), each further token is one more (decode). The cache keeps as many tokens as the
device's window, and their cells as they were written, so that time and memory of a token stay the same however long the
text grows; positions and ring slots go on counting. All passes share one noise key: a cell that was written once keeps
its deviation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase

from device_models import DeviceModel, InputError
from fllm.config import RunConfig, threads_of
from fllm.data.budget import TokenizerEncoder
from fllm.model.adapters import attach_adapter
from fllm.model.base import load_model
from fllm.model.identity import adapter_folder
from fllm.preparation import device_of, evaluation_die, sample_notes, start_from, token_period_of
from hwsim import Cost, EventCounts, count_events, emulate, noise_key, price, ring_cache
from hwsim.randomness import generator, seed_of


@dataclass(frozen=True, eq=False)
class Desk:
    """A model on a chip, and what its tokens are priced by.

    Attributes:
        model: The model with its adapter, if it has one.
        tokenizer: Its tokenizer.
        device: The device.
        period_s: [s] time between two tokens; None for a device that does not decay.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    device: DeviceModel
    period_s: float | None


def open_desk(config: RunConfig, die: int) -> Desk:
    """Load the model and adapter of a configuration on one of its chips for evaluation.

    Raises:
        InputError: If one of them cannot be loaded, or they do not belong together.
    """
    torch.set_num_threads(threads_of(config))
    device = device_of(config)
    loaded = load_model(config.model, device, token_period_of(config), sample_notes(config.fields), config.adaptation)
    model, period_s = loaded.model, loaded.placing.token_period_s
    if config.adapter is not None:
        model = attach_adapter(model, config.lora, base_name=loaded.name, seed=config.seed)
        start_from(model, loaded, adapter_folder(config.adapter))
    emulate(model, device, die_seed=evaluation_die(config, device, die), token_period=period_s)
    return Desk(model.eval(), loaded.tokenizer, device, period_s)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only so many of the likeliest tokens are drawn from; None is all.
        seed: Key of the draws, and of the noise of the device.
    """

    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def choose(self, logits: Tensor, place: int) -> int:
        """Choose a token by logits (vocabulary,); the draw depends on seed and place alone."""
        if self.temperature == 0:
            return int(logits.argmax())
        logits = logits.double() / self.temperature
        if self.top_k is not None and self.top_k < len(logits):
            least = logits.topk(self.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        draw = generator(self.seed, "next token", place)
        return int(torch.multinomial(logits.softmax(dim=0).cpu(), 1, generator=draw))


@dataclass
class Phase:
    """Prefill or decoding: what was counted, and how long the simulator itself took.

    Attributes:
        counts: Events of the forward passes.
        simulated_s: [s] our own running time, which says nothing of the hardware.
    """

    counts: EventCounts = field(default_factory=EventCounts)
    simulated_s: float = 0.0

    def cost(self, device: DeviceModel, token_period_s: float | None) -> Cost:
        """Price the events."""
        return price(self.counts, device, token_period_s=token_period_s)


@dataclass
class Writing:
    """A text in the making: iterate over it to get its tokens.

    Args:
        model: Emulated causal language model in evaluation mode.
        prompt: Token ids.
        most: Most new tokens.
        end: Token that ends a text; None if there is none.
        sampling: How tokens are chosen.
    """

    model: nn.Module
    prompt: list[int]
    most: int
    end: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    prefill: Phase = field(default_factory=Phase)
    decode: Phase = field(default_factory=Phase)
    tokens: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[int]:
        """Yield new tokens as they are chosen; the end token is counted but not yielded."""
        cache = ring_cache(self.model)
        fed = self.prompt
        while len(self.tokens) < self.most:
            phase = self.decode if self.tokens else self.prefill
            logits = self._pass(fed, cache, phase)
            token = self.sampling.choose(logits, len(self.tokens))
            self.tokens.append(token)
            if token == self.end:
                return
            yield token
            fed = [token]

    @torch.no_grad()
    def _pass(self, fed: list[int], cache: Cache, phase: Phase) -> Tensor:
        """Write some tokens and return the logits behind the last of them."""
        began = time.perf_counter()
        key = torch.tensor([seed_of(self.sampling.seed, "prompt", 0)])
        with noise_key(key), count_events() as counts:
            out = self.model(
                input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True, logits_to_keep=1
            )  # fmt: skip
        phase.counts.add(counts)
        phase.simulated_s += time.perf_counter() - began
        logits: Tensor = out.logits[0, -1]
        return logits


def tokens_of(prompt: str, tokenizer: PreTrainedTokenizerBase, model: nn.Module, where: str) -> list[int]:
    """Return a prompt as token ids.

    Raises:
        InputError: If it is empty or the model has no position left behind it; neither error quotes it.
    """
    encoder = TokenizerEncoder(tokenizer)
    text = encoder.ids_of(prompt)
    if not text:
        raise InputError("the prompt is empty", where=where, expected="a text to go on with")
    ids = [*encoder.start, *text]
    if room_behind(ids, model, 1) < 1:
        raise InputError(
            "the prompt is longer than the model's positions", where=where, received=f"{len(ids)} tokens",
            expected=f"at most {len(ids) + room_behind(ids, model, 1) - 1}", remedy="shorten it",
        )  # fmt: skip
    return ids


def room_behind(prompt: list[int], model: nn.Module, most: int) -> int:
    """Return how many tokens, at most ``most``, fit into the model's positions behind a prompt; 0 or less if none."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if limit is None else min(most, int(limit) - len(prompt))


def text_of(tokens: Iterator[int], prompt: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the text of tokens in whole characters: bytes of one that is not complete are held back.

    Args:
        tokens: New tokens.
        prompt: Token ids before them, which decide whether a word begins with a space.
        tokenizer: The model's tokenizer.

    Raises:
        InputError: If the tokenizer has no fast form.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise InputError("the tokenizer cannot be streamed", where=type(tokenizer).__name__, expected="tokenizer.json")
    stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
    for token in tokens:
        piece = stream.step(fast, token)
        if piece:
            yield str(piece)


def energy_rows(costs: Mapping[str, Cost]) -> list[tuple[str, dict[str, float | None]]]:
    """Return energy per token [J] by part and line, for each phase; None where a phase had no token."""

    def per_token(part: str) -> dict[str, float | None]:
        found = {name: (cost.energy_j | cost.lines_j).get(part, 0.0) for name, cost in costs.items()}
        return {name: energy / costs[name].tokens if costs[name].tokens else None for name, energy in found.items()}

    known = next(iter(costs.values()))
    spent = [part for part in known.energy_j if any(cost.energy_j[part] for cost in costs.values())]
    rows = [(part, per_token(part)) for part in spent]
    rows += [(f"all {line}", per_token(line)) for line in known.lines_j]
    return [*rows, ("both together", {name: cost.energy_per_token_j for name, cost in costs.items()})]
