"""Noise belongs to a sequence and its key: not to the batch, the order, the neighbours or the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from hwsim import Die, count_events, emulate, gain_cell_layers, noise_key
from tests import tolerances
from tests.hwsim.models import (
    PERIOD,
    emulated_model,
    full_device,
    plain_model,
    set_scalers,
    small_device,
    token_ids,
    whole,
)

TOKENS = 20
ROOT = Path(__file__).parents[2]
KEYS = torch.tensor([11, -4, 2**40, 0])


@pytest.fixture(scope="module")
def model() -> Any:
    return emulated_model("llama", full_device())


def keyed(model: Any, ids: Tensor, keys: Tensor | int | None, **more: Any) -> Tensor:
    with torch.no_grad(), noise_key(keys):
        return model(input_ids=ids, use_cache=False, **more).logits


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---- one key for each sequence


def test_a_sequence_does_not_see_its_batch(model: Any) -> None:
    ids = token_ids(4, TOKENS)
    together = keyed(model, ids, KEYS)
    for row in range(4):
        alone = keyed(model, ids[row : row + 1], KEYS[row : row + 1])
        assert apart(alone[0], together[row]) <= tolerances.PATHS


def test_order_of_the_batch_does_not_matter(model: Any) -> None:
    ids, order = token_ids(4, TOKENS), torch.tensor([2, 0, 3, 1])
    assert apart(keyed(model, ids[order], KEYS[order]), keyed(model, ids, KEYS)[order]) <= tolerances.PATHS


def test_neighbours_do_not_matter(model: Any) -> None:
    ids, others = token_ids(4, TOKENS), token_ids(4, TOKENS, 1)
    others[2] = ids[2]
    keys = KEYS + 100
    keys[2] = KEYS[2]
    assert apart(keyed(model, others, keys)[2], keyed(model, ids, KEYS)[2]) <= tolerances.PATHS


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter(model: Any, side: str) -> None:
    """Rows of 20, 13 and 4 tokens: each as alone, with its own key."""
    lengths, ids = [20, 13, 4], token_ids(3, TOKENS)
    batch, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(TOKENS - length, TOKENS) if side == "left" else slice(length)
        batch[row, where], mask[row, where] = ids[row, :length], 1
    position = (mask.cumsum(1) - 1).clamp(min=0)
    together = keyed(model, batch, KEYS[:3], attention_mask=mask, position_ids=position)
    for row, length in enumerate(lengths):
        alone = keyed(model, ids[row : row + 1, :length], KEYS[row : row + 1])[0]
        assert apart(together[row][mask[row].bool()], alone) <= tolerances.PATHS


@torch.no_grad()
def test_a_generation_is_one_life(model: Any) -> None:
    """Token by token with a cache inside one block: the noise of writes lasts, that of reads is the whole pass's."""
    ids, cache = token_ids(2, TOKENS), hf.DynamicCache(config=model.config)
    with noise_key(KEYS[:2]):
        steps = [model(input_ids=token, past_key_values=cache).logits for token in ids.split(1, dim=1)]
    assert apart(torch.cat(steps, dim=1), keyed(model, ids, KEYS[:2])) <= tolerances.PATHS
    prompts = token_ids(2, 7)
    mask = torch.ones_like(prompts)
    with noise_key(KEYS[:2]):
        both = model.generate(prompts, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row in range(2):
        with noise_key(KEYS[row : row + 1]):
            alone = model.generate(prompts[row : row + 1], attention_mask=mask[:1], max_new_tokens=8, do_sample=False)
        assert alone[0].tolist() == both[row].tolist()


# ---- keys


def test_other_keys_are_other_noise_and_none_is_silence(model: Any) -> None:
    ids = token_ids(1, TOKENS)
    found = [keyed(model, ids, key) for key in (0, 1, 2, None)]
    assert all(apart(a, b) > tolerances.MATTERS for n, a in enumerate(found) for b in found[:n])
    assert torch.equal(keyed(model, ids, 1), found[1])
    with pytest.warns(UserWarning, match="no noise key was given"):
        quiet = emulated_model("llama", full_device(), noise_seed=None)
    assert torch.equal(whole(quiet, ids), found[3])


def test_equal_sequences_with_equal_keys_are_equal(model: Any) -> None:
    ids = token_ids(1, TOKENS).expand(3, -1)
    shared, own = keyed(model, ids, 7), keyed(model, ids, torch.tensor([1, 2, 1]))
    assert apart(shared[0], shared[1]) <= tolerances.PATHS and apart(own[0], own[2]) <= tolerances.PATHS
    assert apart(own[0], own[1]) > tolerances.MATTERS


def test_the_seed_of_the_model_holds_where_no_block_is_open(model: Any) -> None:
    ids = token_ids(1, TOKENS)
    with torch.no_grad():
        before = whole(model, ids)
        with noise_key(5):
            with noise_key(6):
                inner = whole(model, ids)
            outer = whole(model, ids)
        after = whole(model, ids)
    assert torch.equal(before, after) and torch.equal(before, keyed(model, ids, 0))
    assert torch.equal(inner, keyed(model, ids, 6)) and torch.equal(outer, keyed(model, ids, 5))
    other = emulated_model("llama", full_device(), noise_seed=6)
    with torch.no_grad():
        assert torch.equal(whole(other, ids), inner)


def test_block_ends_with_an_error(model: Any) -> None:
    ids = token_ids(1, TOKENS)
    with pytest.raises(ZeroDivisionError), noise_key(5):
        raise ZeroDivisionError
    with torch.no_grad():
        assert torch.equal(whole(model, ids), keyed(model, ids, 0))


def test_as_many_keys_as_sequences(model: Any) -> None:
    with pytest.raises((RuntimeError, ValueError), match="3"):
        keyed(model, token_ids(3, 4), torch.tensor([1, 2]))


def test_counting_does_not_draw(model: Any) -> None:
    ids = token_ids(1, TOKENS)
    with torch.no_grad():
        before = whole(model, ids)
        with count_events():
            assert torch.equal(whole(model, ids), before)


# ---- chips


@torch.no_grad()
def test_another_die_is_another_model_and_none_is_the_design() -> None:
    ids = token_ids(1, TOKENS)
    seeds: list[Any] = [0, 1, Die(1, full_device())]
    first, second, given = (whole(emulated_model("llama", full_device(), die_seed=s), ids) for s in seeds)
    with pytest.warns(UserWarning, match="no die was given"):
        design = whole(emulated_model("llama", full_device(), die_seed=None), ids)
    assert torch.equal(second, given)
    assert min(apart(first, second), apart(first, design), apart(second, design)) > tolerances.MATTERS


@torch.no_grad()
def test_layers_lie_on_different_arrays_of_the_die() -> None:
    model = emulated_model("llama", full_device())
    dies = [cells.die for cells in gain_cell_layers(model)]
    assert [die.layer for die in dies] == [0, 1] and dies[0].seed == dies[1].seed == 0


@torch.no_grad()
def test_another_device_brings_its_own_die() -> None:
    """Back and forth between devices, noises and chips: nothing of before is left."""
    ids, model = token_ids(1, TOKENS), emulated_model("llama", full_device(), die_seed=3, noise_seed=4)
    first = whole(model, ids)
    emulate(model, small_device(**{"variability.gain_sigma": 0.3}), token_period=PERIOD)
    assert apart(whole(model, ids), first) > tolerances.MATTERS
    emulate(model, full_device(), die_seed=3, noise_seed=4, token_period=PERIOD)
    assert torch.equal(whole(model, ids), first)


SCRIPT = """
import torch
from tests.hwsim.models import emulated_model, full_device, token_ids, whole
with torch.no_grad():
    print(whole(emulated_model("llama", full_device()), token_ids(1, 20)).double().sum().item().hex())
"""


def test_another_process_draws_the_same() -> None:
    ids = token_ids(1, TOKENS)
    plain = plain_model("llama")
    emulate(plain, full_device(), token_period=PERIOD)
    set_scalers(plain)
    with torch.no_grad():
        here = whole(plain, ids).double().sum().item().hex()
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == here
