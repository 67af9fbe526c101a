"""Events and their cost: the same however a model runs, equal to a closed form, nothing lost, nothing counted twice."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from device_models import load_device
from hwsim import BitLinear, EventCounts, count_events, emulate
from hwsim.events import EVENTS
from hwsim.linear import OnArrays
from tests.hwsim.counted import counted, whole
from tests.hwsim.models import ARCHITECTURES, PERIOD, emulated_model, full_device, plain_model, small_device, token_ids

TOKENS = 20


def in_chunks(model: Any, ids: Tensor, size: int) -> EventCounts:
    cache = hf.DynamicCache(config=model.config)
    return counted(lambda: [model(input_ids=part, past_key_values=cache) for part in ids.split(size, dim=1)])


def padded(model: Any, ids: Tensor, before: int, after: int) -> EventCounts:
    """Pad some rows only, beside one row that fills the width."""
    wide = nn.functional.pad(ids, (before, after))
    mask = nn.functional.pad(torch.ones_like(ids), (before, after))
    position = (mask.cumsum(1) - 1).clamp(min=0)
    return counted(lambda: model(input_ids=wide, attention_mask=mask, position_ids=position, use_cache=False))


WAYS: dict[str, Callable[[Any, Tensor], EventCounts]] = {
    "token-by-token": lambda model, ids: in_chunks(model, ids, 1),
    "chunks-of-7": lambda model, ids: in_chunks(model, ids, 7),
    "left-padded": lambda model, ids: padded(model, ids, 5, 0),
    "right-padded": lambda model, ids: padded(model, ids, 0, 5),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_counts_however_it_runs(architecture: str, way: str) -> None:
    model, ids = emulated_model(architecture, full_device()), token_ids(2, TOKENS)
    expected, got = whole(model, ids), WAYS[way](model, ids)
    assert got.events == expected.events
    assert (got.tokens, got.subtiles) == (expected.tokens, expected.subtiles)
    assert expected.tokens == 2 * TOKENS


def test_rows_of_different_length_add_up(llama: Any) -> None:
    long, short = token_ids(1, 19), token_ids(1, 11, 1)
    apart = EventCounts()
    apart.add(whole(llama, long))
    apart.add(whole(llama, short))
    batch = torch.cat([long, nn.functional.pad(short, (8, 0))])
    mask = torch.ones_like(batch)
    mask[1, :8] = 0
    left = counted(lambda: llama(input_ids=batch, attention_mask=mask, use_cache=False))
    right = counted(lambda: llama(input_ids=batch.flip(1), attention_mask=mask.flip(1), use_cache=False))
    assert left.events == right.events == apart.events
    assert left.tokens == apart.tokens == 30


def test_counts_are_the_closed_form(llama: Any) -> None:
    """2 layers, 4 heads on 2 stored heads of 8, hidden 32, MLP 48, vocabulary 40; ring of 12 in sub-tiles of 8."""
    batch, layers, heads, stored, dim, hidden, mlp, vocabulary = 3, 2, 4, 2, 8, 32, 48, 40
    tokens = batch * TOKENS
    held = [min(t + 1, 12) for t in range(TOKENS)]
    tiles = [1 if n <= 8 else 2 for n in held]
    read = batch * layers * sum(held)
    passed = batch * layers * sum(tiles)
    shapes = [
        (hidden, hidden),
        (hidden, 16),
        (hidden, 16),
        (hidden, hidden),
        (hidden, mlp),
        (hidden, mlp),
        (mlp, hidden),
    ]
    inputs = hidden + hidden + hidden + mlp  # of q k v, o, gate up, down
    bits = 8 * layers * tokens  # input cycles of all tokens; every matrix fits one array of 256 x 256
    expected = {
        "attention.qk_mac": read * heads * dim,
        "attention.av_mac": read * heads * dim,
        "attention.phi_conversion": read * heads,
        "attention.av_conversion": passed * heads * dim,
        "attention.write_conversion": tokens * layers * 2 * stored * dim,
        "attention.subtile_pass": passed * heads,
        "attention.layer_pass": tokens * layers,
        "attention.tile_add": batch * layers * sum(n - 1 for n in tiles),
        "attention.shared_array_pass": tokens * layers * 1,
        "linear.cell_mac": bits * sum(i * o for i, o in shapes),
        "linear.adc_conversion": bits * sum(o for _, o in shapes),
        "linear.shift_add": bits * sum(o for _, o in shapes),
        "linear.row_drive": bits * sum(i for i, _ in shapes),
        "linear.layer_pass": tokens * layers * 4,  # q k v share one input, gate and up another
        "digital.mac": tokens * hidden * vocabulary,
        "attention.scaler_value": tokens * layers * 2 * (heads + stored) * dim,
        "attention.rotary_value": tokens * layers * (heads + stored) * dim,
        "linear.input_value": tokens * layers * inputs,
        "linear.output_value": tokens * layers * sum(o for _, o in shapes),
        "digital.rms_norm_value": tokens * hidden * (2 * layers + 1),
        "digital.activation_value": tokens * layers * mlp,
        "digital.gate_value": tokens * layers * mlp,
        "digital.residual_value": tokens * layers * 2 * hidden,
        "memory.weight_bit": 16 * tokens * (hidden * vocabulary + hidden),
        "wire.bit": tokens * layers * 2 * 16 * hidden,
    }
    counts = whole(llama, token_ids(batch, TOKENS))
    assert dict(counts.events) == expected
    assert set(EVENTS) - set(expected) == {
        "attention.refresh_conversion", "attention.softmax", "digital.adapter_mac", "digital.layer_norm_value",
    }  # fmt: skip
    assert counts.subtiles == {0: stored * 2, 1: stored * 2}


@pytest.mark.parametrize(
    ("inputs", "outputs", "row_tiles", "column_tiles"),
    [(256, 256, 1, 1), (257, 256, 2, 1), (256, 257, 1, 2), (700, 600, 3, 3)],
)
def test_large_matrices_take_several_arrays(inputs: int, outputs: int, row_tiles: int, column_tiles: int) -> None:
    layer = BitLinear(inputs, outputs)
    layer.put_on(OnArrays(load_device("gaincell_28nm").linear))
    counts = counted(lambda: layer(torch.randn(5, inputs)))
    assert counts["linear.cell_mac"] == 5 * 8 * inputs * outputs
    assert counts["linear.adc_conversion"] == counts["linear.shift_add"] == 5 * 8 * outputs * row_tiles
    assert counts["linear.row_drive"] == 5 * 8 * inputs * column_tiles
    assert counts["digital.mac"] == 0


def test_large_heads_take_several_rows_of_subtiles() -> None:
    device = small_device(**{"tile.rows": 4})
    model = emulated_model("llama", device)
    counts, plain = whole(model, token_ids(1, 9)), whole(emulated_model("llama"), token_ids(1, 9))
    assert counts["attention.subtile_pass"] == 2 * plain["attention.subtile_pass"]
    assert sum(counts.subtiles.values()) == 2 * sum(plain.subtiles.values())
    assert counts["attention.qk_mac"] == plain["attention.qk_mac"]


def test_layers_that_stay_digital_are_counted_as_such() -> None:
    model, ids = emulated_model("llama", linears=False), token_ids(1, 5)
    counts = whole(model, ids)
    weights = 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48)
    assert counts["digital.mac"] == 5 * (weights + 32 * 40)
    assert not [event for event in counts.events if event.startswith("linear.")]


def test_generation_counts_each_token_once(llama: Any) -> None:
    ids = token_ids(1, 6)
    counts = counted(
        lambda: llama.generate(ids, max_new_tokens=9, do_sample=False, attention_mask=torch.ones_like(ids))
    )  # fmt: skip
    expected = whole(llama, token_ids(1, 14))  # the last new token is never fed back
    for event in EVENTS:
        unasked = {"digital.mac": 5 * 32 * 40, "memory.weight_bit": 5 * 32 * 40 * 16}.get(event, 0)
        assert counts[event] == expected[event] - unasked, event  # the head is asked for the last prompt token only
    assert counts.tokens == 14


# ---- blocks


def test_nothing_is_counted_outside_a_block(llama: Any) -> None:
    with count_events() as counts:
        pass
    whole(llama, token_ids(1, 4))
    llama(input_ids=token_ids(1, 4))
    assert counts.events == Counter() and counts.tokens == 0
    assert counted(lambda: None).events == Counter()


def test_innermost_of_nested_blocks_counts_once(llama: Any) -> None:
    ids = token_ids(1, 6)
    alone = whole(llama, ids)
    with torch.no_grad(), count_events() as outer:
        llama(input_ids=ids, use_cache=False)
        with count_events() as inner:
            llama(input_ids=ids, use_cache=False)
        with count_events() as other:
            emulate(llama, small_device(), token_period=PERIOD)
    assert inner.events == outer.events == alone.events
    assert other.events == Counter()


def test_auto_period_is_the_same_inside_a_block() -> None:
    periods = []
    for inside in (False, True):
        model = plain_model("llama")
        if inside:
            with count_events() as counts:
                emulate(model, small_device())
            assert counts.events == Counter()
        else:
            emulate(model, small_device())
        periods.append(model.model.layers[0].self_attn.gain_cell.token_period_s)
    assert periods[0] == periods[1] > 0


def test_block_ends_with_an_error(llama: Any) -> None:
    with pytest.raises(ZeroDivisionError), count_events() as counts:
        raise ZeroDivisionError
    llama(input_ids=token_ids(1, 4))
    assert counts.events == Counter()


def test_threads_do_not_see_each_other(llama: Any) -> None:
    ids, found = token_ids(1, 5), {}
    ready = threading.Barrier(2)

    def run(name: str) -> None:
        with torch.no_grad(), count_events() as counts:
            ready.wait()
            llama(input_ids=ids, use_cache=False)
            ready.wait()
            found[name] = counts.events

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["a"] == found["b"] == whole(llama, ids).events


# ---- layers


def test_layers_sum_to_the_events(llama: Any) -> None:
    counts = whole(llama, token_ids(2, TOKENS))
    assert set(counts.by_layer) == {0, 1, None}
    assert counts.by_layer[0] == counts.by_layer[1]
    assert set(counts.by_layer[None]) == {"digital.mac", "digital.rms_norm_value", "memory.weight_bit"}
    assert counts.events == counts.by_layer[0] + counts.by_layer[1] + counts.by_layer[None]
    assert all(counts[event] == n for event, n in counts.events.items())


def test_events_are_a_copy_and_layers_may_be_unknown() -> None:
    counts = EventCounts.of({"digital.mac": 3}, tokens=2)
    counts.events["digital.mac"] += 1
    assert (counts["digital.mac"], counts.tokens, list(counts.by_layer)) == (3, 2, [None])
    counts.record(4, {"digital.mac": 2, "wire.bit": 0})
    assert counts.by_layer[4] == Counter({"digital.mac": 2}) and "wire.bit" not in counts.by_layer[4]
    assert counts["digital.mac"] == 5
    assert EventCounts.of({}).by_layer == {}


def test_attention_that_stays_digital_is_announced() -> None:
    model = emulated_model("llama", attention=False)
    with pytest.warns(UserWarning, match="attention that is not emulated is not counted"):
        counts = whole(model, token_ids(2, 5))
    assert not [event for event in counts.events if event.startswith("attention.")]
    assert counts["linear.cell_mac"] > 0 and counts.tokens == 10


@pytest.mark.parametrize("architecture", ["gemma3", "gpt2"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_are_counted_once(architecture: str, reentrant: bool) -> None:
    model, ids = emulated_model(architecture, dtype=torch.float32).train(), token_ids(2, 9)
    expected = whole(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    with count_events() as counts:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert counts.by_layer == expected.by_layer


PRICING = """
import hwsim, sys
from hwsim.analytic import analytic_events
from hwsim.baselines import baselines
from hwsim.costing import price
from hwsim.uncertainty import uncertainty
from device_models import load_device
device = load_device("gaincell_28nm")
model = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 1, "vocab_size": 9}
counts = analytic_events(model, device, tokens=3)
assert price(counts, device).total_energy_j > 0 and baselines(counts, device) and uncertainty(counts, device, samples=9)
print(*{"torch", "transformers", "peft"} & set(sys.modules))
"""


def test_pricing_needs_no_tensor_library() -> None:
    done = subprocess.run([sys.executable, "-c", PRICING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
