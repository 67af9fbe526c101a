"""Generation with cells written once: numbers and counts of the whole sequence, also where no ring can serve."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from device_models import InputError, load_device
from hwsim import Die, emulate, gain_cell_layers, noise_key, ring_cache
from hwsim.functional.ring import RingBuffer
from hwsim.integrations.ring_cache import LEAST_ROOM
from tests import tolerances
from tests.hwsim.counted import counted
from tests.hwsim.models import (
    ARCHITECTURES,
    PERIOD,
    emulated_model,
    full_device,
    plain_model,
    set_scalers,
    token_ids,
    whole,
)
from tests.hwsim.test_paths import LAWS

TOKENS = 33  # the ring of 12 wraps twice
WINDOW = {"window.tokens": 12, "tile.slots": 8}
CONFIGS = sorted(path.stem for path in Path("configs").glob("*.yaml"))
STEPS = (5, *(1,) * (TOKENS - 5))
CHUNKS = (1, 1, 4, 1, 9, 1, 1, 1, 2, 1, 1, *(1,) * 4, 3, 1, 1, 1)
"""Several tokens at once: first, before and after each lap."""
KEYS = torch.tensor([11, -4])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """List the steps of rings, by the tokens that were in them."""
    steps: list[int] = []
    step = RingBuffer.step

    def noted(ring: RingBuffer, *given: Any, **more: Any) -> Tensor:
        steps.append(ring.tokens)
        return step(ring, *given, **more)

    monkeypatch.setattr(RingBuffer, "step", noted)
    yield steps


def fed(model: Any, ids: Tensor, sizes: Sequence[int], cache: Any = None) -> Tensor:
    """Return the logits of sequences that are fed in pieces."""
    cache = ring_cache(model) if cache is None else cache
    pieces = ids[:, : sum(sizes)].split(list(sizes), dim=1)
    return torch.cat([model(input_ids=piece, past_key_values=cache, use_cache=True).logits for piece in pieces], 1)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---- the numbers of the whole sequence


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_devices(name: str, served: list[int]) -> None:
    device = load_device(name, WINDOW)
    model, ids = emulated_model("llama", device), token_ids(2, TOKENS)
    with noise_key(KEYS):
        found, expected = fed(model, ids, STEPS), whole(model, ids)
    assert apart(found, expected) <= tolerances.PATHS
    serves = device.tile.assignment == "ring" and device.activation.kind != "softmax"
    assert len(served) == (2 * (TOKENS - 5) if serves else 0)


@torch.no_grad()
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("mistral", "gemma3")])
def test_architectures(architecture: str, emulated: Callable[[str], Any], served: list[int]) -> None:
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    assert apart(fed(model, ids, CHUNKS), whole(model, ids)) <= tolerances.PATHS
    assert len(served) == 2 * CHUNKS.count(1)


@torch.no_grad()
@pytest.mark.parametrize("law", LAWS)
def test_laws(law: str, served: list[int]) -> None:
    """Refreshes, spread or not, a law of its own for each cell, a range of the readout that is learned."""
    model, ids = emulated_model("qwen2", full_device(**LAWS[law])), token_ids(2, TOKENS)
    for cells in gain_cell_layers(model):
        if cells.full_scale is not None:
            cells.full_scale.copy_(torch.linspace(0.5, 1.5, 4))
    assert apart(fed(model, ids, CHUNKS), whole(model, ids)) <= tolerances.PATHS
    assert len(served) == (0 if law == "softmax" else 2 * CHUNKS.count(1))


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 100])
def test_windows(window: int, served: list[int]) -> None:
    """Shorter than a chunk, and longer than the text; more tokens than there is room for before they are moved."""
    model = emulated_model("llama", full_device(**{"window.tokens": window, "tile.slots": min(window, 8)}))
    ids, sizes = token_ids(1, 64), (1, 1, 20, *(1,) * 42)
    assert apart(fed(model, ids, sizes), whole(model, ids)) <= tolerances.PATHS
    assert len(served) == 2 * 44


@torch.no_grad()
def test_room_is_made_again_and_again(served: list[int]) -> None:
    model = emulated_model("gpt2", full_device())
    cache, ids = ring_cache(model), token_ids(1, 60)
    with noise_key(3):
        expected = whole(model, ids)
        found = [fed(model, ids[:, :5], (5,), cache)]
        sizes = []
        for piece in ids[:, 5:].split(1, dim=1):
            found.append(model(input_ids=piece, past_key_values=cache).logits)
            sizes.append(cache.layers[0].keys.untyped_storage().nbytes())
    assert apart(torch.cat(found, 1), expected) <= tolerances.PATHS
    width = cache.layers[0].keys[:, :, 0].numel() * 8
    assert max(sizes) <= (11 + 1 + LEAST_ROOM) * width


@torch.no_grad()
@pytest.mark.parametrize("rounding", ["bfloat16", "autocast"])
def test_rounded_models(rounding: str, served: list[int]) -> None:
    """Cells get the rounded keys and values of the model; arrays stay in float32."""
    model, ids = emulated_model("llama", full_device(), torch.float32), token_ids(2, TOKENS)
    if rounding == "bfloat16":
        model = model.bfloat16()
    former = hf.DynamicCache(config=model.config)
    with torch.autocast("cpu", torch.bfloat16, enabled=rounding == "autocast"):
        found, expected = fed(model, ids, STEPS), fed(model, ids, STEPS, former)
    assert len(served) == 2 * (TOKENS - 5)
    flips = ((found - expected).abs() > tolerances.FLOAT32 * expected.abs().max()).double().mean()
    assert flips <= tolerances.FLOAT32_FLIPS


# ---- whose cells they are


@torch.no_grad()
def test_generate_takes_it(emulated: Callable[[str], Any], served: list[int]) -> None:
    model, ids = emulated("llama"), token_ids(24, 9, 1)
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with noise_key(5):
        expected = model.generate(ids, **settings)
        assert not served
        found = model.generate(ids, past_key_values=ring_cache(model), **settings)
    assert found.tolist() == expected.tolist() and len(served) == 2 * 19
    assert sum(len(set(row[9:])) > 1 for row in found.tolist()) >= 6


@torch.no_grad()
def test_beams_take_their_cells_along(emulated: Callable[[str], Any], served: list[int]) -> None:
    model, ids = emulated("llama"), token_ids(3, 9, 1)
    settings = {"max_new_tokens": 14, "num_beams": 3, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **settings)
    assert model.generate(ids, past_key_values=ring_cache(model), **settings).tolist() == expected.tolist()
    assert served


@torch.no_grad()
def test_tokens_that_are_taken_back(emulated: Callable[[str], Any], served: list[int]) -> None:
    """Before the window is full; behind it with the past recorded, and a refusal in one line without."""
    model, ids, others = emulated("llama"), token_ids(1, TOKENS), token_ids(1, TOKENS, 1)
    for before, recorded in ((8, False), (20, True)):
        cache = ring_cache(model)
        if recorded:
            for layer in cache.layers:
                layer.activate_past_recording()
        fed(model, torch.cat([ids[:, :before], others[:, :3]], 1), (*(1,) * before, 1, 1, 1), cache)
        cache.crop(-3)
        found = fed(model, ids[:, before:], (1,) * (TOKENS - before), cache)
        assert apart(found, whole(model, ids)[:, before:]) <= tolerances.PATHS
    cache = ring_cache(model)
    fed(model, ids, STEPS, cache)
    with pytest.raises(RuntimeError, match="sliding window size was already reached"):
        cache.crop(-3)


@torch.no_grad()
def test_copies_and_other_modes(emulated: Callable[[str], Any], served: list[int]) -> None:
    """A prompt's cache goes on twice, and in inference mode: neither writes into the other's cells."""
    model, ids, others = emulated("llama"), token_ids(1, TOKENS), token_ids(1, TOKENS, 1)
    others[:, :20] = ids[:, :20]
    with torch.inference_mode():
        cache = ring_cache(model)
        fed(model, ids[:, :20], (8, *(1,) * 12), cache)
        second = copy.deepcopy(cache)
    for text, kept in ((ids, cache), (others, second)):
        found = [fed(model, text[:, 20:22], (1, 1), kept)]
        with torch.inference_mode():
            found.append(fed(model, text[:, 22:], (1,) * (TOKENS - 22), kept))
        assert apart(torch.cat(found, 1), whole(model, text)[:, 20:]) <= tolerances.PATHS
    assert len(served) == 2 * (12 + 2 * (TOKENS - 20))


@torch.no_grad()
def test_reset_forgets(emulated: Callable[[str], Any]) -> None:
    model, ids, cache = emulated("llama"), token_ids(1, TOKENS), ring_cache(emulated("llama"))
    fed(model, token_ids(1, TOKENS, 3), STEPS, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert apart(fed(model, ids, STEPS, cache), whole(model, ids)) <= tolerances.PATHS


@torch.no_grad()
@pytest.mark.parametrize("change", ["noise", "no noise", "die", "device", "period"])
def test_cells_of_another_life_are_not_read(change: str, served: list[int]) -> None:
    """As without cells: keys and values of before are written anew."""
    ids, device = token_ids(2, TOKENS), full_device()
    found = []
    for former in (False, True):
        model = emulated_model("llama", device)
        cache = hf.DynamicCache(config=model.config) if former else ring_cache(model)
        with noise_key(KEYS):
            fed(model, ids, (3, *(1,) * 17), cache)
        key: Any = {"noise": KEYS + 1, "no noise": None}.get(change, KEYS)
        if change == "die":
            emulate(model, device, die_seed=Die(9, device), token_period=PERIOD)
        for cells in gain_cell_layers(model):  # alone: emulate would bring another die as well
            if change == "device":
                cells.put_on(full_device(**{"readout.bits": 3}))
            elif change == "period":
                cells.token_period_s = 2 * PERIOD
        with noise_key(key):
            found.append(fed(model, ids[:, 20:], (1,) * (TOKENS - 20), cache))
    assert apart(*found) <= tolerances.PATHS and len(served) == 2 * (17 + TOKENS - 20)
    model = emulated_model("llama", device)
    with noise_key(KEYS):
        assert apart(found[0], whole(model, ids)[:, 20:]) > tolerances.MATTERS


# ---- what a ring cannot serve


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["mistral", "gemma3"])
def test_own_shorter_window(architecture: str, emulated: Callable[[str], Any], served: list[int]) -> None:
    """Of 8 tokens, as long as it says; gemma's second layer reads all."""
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    assert apart(fed(model, ids, CHUNKS), whole(model, ids)) <= tolerances.PATHS
    early = 3  # single tokens among the first eight, which read all before them
    assert len(served) == (2 * early if architecture == "mistral" else early + CHUNKS.count(1))


@torch.no_grad()
def test_padding_before_the_text(emulated: Callable[[str], Any], served: list[int]) -> None:
    model, long, short = emulated("llama"), token_ids(1, 11, 1), token_ids(1, 5, 2)
    batch = torch.cat([long, torch.nn.functional.pad(short, (6, 0))])
    mask = torch.ones_like(batch)
    mask[1, :6] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = model.generate(batch, **settings)
    assert model.generate(batch, past_key_values=ring_cache(model), **settings).tolist() == expected.tolist()
    assert not served


def test_gradients_flow_through_what_is_kept(emulated: Callable[[str], Any], served: list[int]) -> None:
    model, ids = emulated("llama"), token_ids(1, 15)
    weights = [model.model.layers[0].self_attn.k_proj.weight, gain_cell_layers(model)[0].value.gain]
    found = torch.autograd.grad(fed(model, ids, (5, *(1,) * 10)).square().sum(), weights)
    expected = torch.autograd.grad(whole(model, ids).square().sum(), weights)
    assert not served
    for a, b in zip(found, expected, strict=True):
        assert apart(a, b) <= tolerances.PATHS * float(b.abs().max())
    cache = ring_cache(model)  # with and without gradients in turns
    with torch.no_grad():
        parts = [fed(model, ids, (5, 1, 1), cache)]
    parts.append(fed(model, ids[:, 7:], (1, 1), cache))
    with torch.no_grad():
        parts.append(fed(model, ids[:, 9:], (1,) * 6, cache))
        assert apart(torch.cat(parts, 1), whole(model, ids)) <= tolerances.PATHS
    assert len(served) == 2 * 8


@torch.no_grad()
def test_charges_are_shown(emulated: Callable[[str], Any], served: list[int]) -> None:
    model, shown, cells = emulated("llama"), [], gain_cell_layers(emulated("llama"))[0]
    cells.watch = lambda charges: shown.append(charges.shape)
    try:
        fed(model, token_ids(1, 15), (5, *(1,) * 10))
    finally:
        cells.watch = None
    assert len(shown) > 10 and len(served) == 10


# ---- counts


@pytest.mark.parametrize("architecture", ["bitnet", "gpt2", "mistral"])
@pytest.mark.parametrize("sizes", [STEPS, CHUNKS])
def test_counts_are_those_of_the_whole(architecture: str, sizes: tuple[int, ...], emulated: Callable) -> None:
    model, ids = emulated(architecture), token_ids(2, TOKENS)
    expected = counted(lambda: whole(model, ids))
    found = counted(lambda: fed(model, ids, sizes))
    assert found.events == expected.events and expected["attention.refresh_conversion"]
    assert (found.tokens, found.subtiles) == (expected.tokens, expected.subtiles) == (2 * TOKENS, expected.subtiles)


# ---- misuse


def test_model_that_is_on_no_device_is_refused() -> None:
    with pytest.raises(InputError, match="no attention on gain cells"):
        ring_cache(plain_model("llama"))


@torch.no_grad()
def test_window_that_has_grown_is_refused() -> None:
    model = emulated_model("llama", full_device())
    cache = ring_cache(model)
    emulate(model, full_device(**{"window.tokens": 16}), token_period=PERIOD)
    set_scalers(model)
    with pytest.raises(InputError, match="fewer tokens than the arrays; expected at most 12; received 16") as error:
        fed(model, token_ids(1, 5), (5,), cache)
    assert str(error.value).count("\n") == 0
