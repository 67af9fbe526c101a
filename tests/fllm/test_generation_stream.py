"""Text token by token: what a full pass would have written, past the window, in whole characters, from its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from device_models import InputError, load_device
from fllm.config import RunConfig
from fllm.evaluation import Prompt, generate_answers
from fllm.generation import Desk, Sampling, Writing, energy_rows, open_desk, text_of, tokens_of
from hwsim import emulate, gain_cell_layers, noise_key, restore, ring_cache
from hwsim.randomness import seed_of
from tests.fllm.small import SHORT

PROMPT = "Laboratory results: lipase 900 U/L. Imaging: ultrasound of the abdomen shows a thickened wall of the"
SMALL_WINDOW = {"window.tokens": 16, "tile.slots": 8}


def desk_on(device: dict[str, Any], name: str = "gaincell_28nm") -> Desk:
    return open_desk(RunConfig(threads=1, device_model=name, device=device), 0)


@pytest.fixture(scope="module")
def desk() -> Desk:
    return desk_on({})


@pytest.fixture(scope="module")
def windowed() -> Desk:
    """Return a desk whose device forgets soon, and whose noise is loud enough to change words."""
    return desk_on(SMALL_WINDOW | {"noise.flicker": 0.3})


def prompt_of(desk: Desk) -> list[int]:
    return tokens_of(PROMPT, desk.tokenizer, desk.model, "here")


def written(desk: Desk, most: int = 12, **sampling: Any) -> list[int]:
    return list(Writing(desk.model, prompt_of(desk), most, sampling=Sampling(**sampling)))


# Equal to a full pass.


@torch.no_grad()
@pytest.mark.parametrize(
    "device", [{}, SMALL_WINDOW, SMALL_WINDOW | {"noise.flicker": 0.3}], ids=["full", "16", "loud"]
)
def test_each_step_has_the_logits_of_a_full_pass(device: dict[str, Any]) -> None:
    """In double precision: prompt, window and cache are passed, the cells keep their noise."""
    desk = desk_on(device)
    model = desk.model.double()
    emulate(model, desk.device, die_seed=3, token_period=desk.period_s)
    ids = prompt_of(desk)
    tokens = torch.tensor([[*ids, *range(100, 130)]])
    with noise_key(torch.tensor([seed_of(5, "prompt", 0)])):
        whole = model(input_ids=tokens, use_cache=False).logits[0]
        cache, found = ring_cache(model), []
        for start, end in [(0, len(ids)), *((n, n + 1) for n in range(len(ids), tokens.shape[1]))]:
            out = model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
            found.append(out.logits[0, -1])
    assert len(found) == 31
    torch.testing.assert_close(torch.stack(found), whole[len(ids) - 1 :], rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("family", ["grouped heads", "own positions", "own sliding window"])
def test_ring_serves_other_families(family: str) -> None:
    """Attention alone, whose converters leave ties to the 8-bit inputs of a random model's linear layers."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    model = {
        "grouped heads": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "own positions": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
        "own sliding window": lambda: MistralForCausalLM(MistralConfig(**sizes, sliding_window=10)),
    }[family]()
    device = load_device("gaincell_28nm", SMALL_WINDOW | {"noise.flicker": 0.3})
    emulate(model.double().eval(), device, token_period=1e-5, linears=False)
    tokens = torch.randint(0, 64, (1, 50))
    with noise_key(3):
        whole = model(input_ids=tokens, use_cache=False).logits[0]
        cache, found = ring_cache(model), []
        for start, end in [(0, 20), *((n, n + 1) for n in range(20, 50))]:
            out = model(input_ids=tokens[:, start:end], past_key_values=cache, use_cache=True, logits_to_keep=1)
            found.append(out.logits[0, -1])
    torch.testing.assert_close(torch.stack(found), whole[19:], rtol=1e-5, atol=1e-6)  # norms are in single precision


@pytest.mark.parametrize("seed", [0, 7])
def test_greedy_text_is_that_of_the_evaluation_with_the_same_keys(windowed: Desk, seed: int) -> None:
    found = written(windowed, seed=seed)
    text = windowed.tokenizer.decode(found, skip_special_tokens=True)
    (theirs,) = generate_answers(
        windowed.model, windowed.tokenizer, [Prompt(tuple(prompt_of(windowed)), 0, False)], 1, 0, max_new_tokens=12,
        noise_seed=seed,
    )  # fmt: skip
    assert theirs and text.strip().startswith(theirs)


def test_noise_follows_from_the_seed(windowed: Desk) -> None:
    assert written(windowed, seed=1) == written(windowed, seed=1) != written(windowed, seed=2)


def test_memory_does_not_grow_once_the_window_is_full(windowed: Desk) -> None:
    cache, fed = ring_cache(windowed.model), torch.tensor([prompt_of(windowed)])
    sizes = []
    with torch.no_grad():
        for _ in range(4):
            windowed.model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            sizes.append([layer.keys.shape[-2] for layer in cache.layers])
            fed = torch.tensor([[100]])
    assert sizes == [[15] * len(gain_cell_layers(windowed.model))] * 4
    assert cache.get_seq_length() == len(prompt_of(windowed)) + 3


# When it ends.


def test_text_ends_at_the_end_token_or_at_the_most(desk: Desk) -> None:
    writing = Writing(desk.model, prompt_of(desk), 6)
    found = list(writing)
    assert len(found) == 6 == len(writing.tokens)
    ended = Writing(desk.model, prompt_of(desk), 6, end=found[2])
    assert list(ended) == found[: found.index(found[2])]
    assert ended.tokens[-1] == found[2]


@pytest.mark.parametrize("text", ["", None])
def test_prompt_of_no_token_or_of_too_many_is_refused(desk: Desk, text: str | None) -> None:
    limit = desk.model.config.max_position_embeddings
    given = "lipase " * 2 * limit if text is None else text
    with pytest.raises(InputError) as error:
        tokens_of(given, desk.tokenizer, desk.model, "--prompt")
    message = str(error.value)
    assert "lipase" not in message
    assert ("is empty" if text == "" else f"at most {limit - 1}") in message


# How tokens are chosen.


LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])


def test_temperature_zero_takes_the_likeliest() -> None:
    assert {Sampling(seed=seed).choose(LOGITS, place) for seed in range(3) for place in range(3)} == {4}


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.0, None), (1.0, 3)])
def test_draws_follow_the_softmax(temperature: float, top_k: int | None) -> None:
    sampling = Sampling(temperature, top_k, seed=1)
    draws = 4000
    counts = np.bincount([sampling.choose(LOGITS, place) for place in range(draws)], minlength=5)
    expected = torch.softmax(LOGITS / temperature, 0)
    if top_k is not None:
        expected = torch.where(LOGITS.topk(top_k).values[-1] <= LOGITS, expected, 0)
        expected = expected / expected.sum()
        assert np.count_nonzero(counts) == top_k
    deviation = (draws * expected * (1 - expected)).sqrt().clamp(min=1e-9).numpy()
    assert (np.abs(counts - draws * expected.numpy()) <= 4 * deviation).all()


def test_sampled_text_follows_from_the_seed(desk: Desk) -> None:
    hot = {"temperature": 2.0, "top_k": 50}
    assert written(desk, 8, **hot, seed=3) == written(desk, 8, **hot, seed=3) != written(desk, 8, **hot, seed=4)
    assert written(desk, 8, temperature=1e-4, seed=3) == written(desk, 8, seed=3)


# Whole characters.


def test_bytes_of_a_character_are_held_back_until_it_is_whole(desk: Desk) -> None:
    text = "naïve, 37 °C, β = 0.5, 発熱, 🩺 fever"
    ids = desk.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text.split())
    pieces = list(text_of(iter(ids), prompt_of(desk), desk.tokenizer))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) and len(pieces) > 5
    cut = next(n for n in range(len(ids)) if desk.tokenizer.decode(ids[: n + 1]).endswith("\ufffd"))
    assert "\ufffd" not in "".join(text_of(iter(ids[: cut + 1]), [], desk.tokenizer))


def test_special_tokens_are_not_text(desk: Desk) -> None:
    ids = desk.tokenizer(" wall", add_special_tokens=False)["input_ids"]
    end = desk.tokenizer.eos_token_id
    assert "".join(text_of(iter([end, *ids, end]), [], desk.tokenizer)) == " wall"


def test_tokenizer_without_a_fast_form_is_refused() -> None:
    def one() -> Iterator[int]:
        yield 1

    with pytest.raises(InputError, match="cannot be streamed"):
        list(text_of(one(), [], object()))  # type: ignore[arg-type]


# What it costs.


def test_prefill_and_decode_are_counted_apart(desk: Desk) -> None:
    writing = Writing(desk.model, prompt_of(desk), 5)
    list(writing)
    layers = len(gain_cell_layers(desk.model))
    assert writing.prefill.counts.tokens == len(prompt_of(desk))
    assert writing.decode.counts.tokens == 4  # the last token is chosen, not written
    assert writing.decode.counts["attention.layer_pass"] == 4 * layers
    assert writing.prefill.simulated_s > 0 and writing.decode.simulated_s > 0
    costs = {
        name: phase.cost(desk.device, desk.period_s)
        for name, phase in (("prefill", writing.prefill), ("decode", writing.decode))
    }
    rows = dict(energy_rows(costs))
    for name, cost in costs.items():
        lines = sum(value[name] or 0 for row, value in rows.items() if row.startswith("all "))
        parts = sum(value[name] or 0 for row, value in rows.items() if row in cost.energy_j)
        assert lines == pytest.approx(rows["both together"][name]) == pytest.approx(parts)
    head = "LM head and other digital layers"
    assert rows[head]["decode"] > 5 * rows[head]["prefill"]  # asked for every token, or for the last one alone


def test_one_token_needs_no_decoding(desk: Desk) -> None:
    writing = Writing(desk.model, prompt_of(desk), 1)
    assert len(list(writing)) == 1
    costs = {"prefill": writing.prefill.cost(desk.device, 1e-5), "decode": writing.decode.cost(desk.device, 1e-5)}
    assert dict(energy_rows(costs))["both together"]["decode"] is None


# With an adapter.


def test_adapter_acts_and_another_device_too(tmp_path: Path) -> None:
    from fllm.model.adapters import attach_adapter, save_adapter, set_adapter, whole_adapter
    from fllm.model.base import load_model
    from tests.fllm.small import IDENTITY, scrambled

    loaded = load_model(None, load_device("gaincell_28nm"), 1e-5, [])
    model = attach_adapter(loaded.model, IDENTITY.lora, base_name=loaded.name, seed=0)
    set_adapter(model, scrambled(whole_adapter(model)))
    base = IDENTITY.base.model_copy(update={"sha256": loaded.sha256})
    save_adapter(model, tmp_path, IDENTITY.model_copy(update={"base": base}))
    settings = {key: SHORT[key] for key in ("threads",)}
    with_adapter = open_desk(RunConfig(**settings, adapter=str(tmp_path), lora=IDENTITY.lora), 0)
    without = open_desk(RunConfig(**settings), 0)
    coarse = open_desk(RunConfig(**settings, device={"readout.bits": 2}), 0)
    assert len({tuple(written(found, 8)) for found in (with_adapter, without, coarse)}) == 3
    assert restore(without.model) is without.model
