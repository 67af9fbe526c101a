"""Closed-form counts against counted runs: each number, layer by layer, however a model runs, on any device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers as hf

from device_models import DeviceModel, InputError, load_device
from fllm.model.adapters import attach_adapter
from fllm.sections import LoraSettings
from hwsim import EventCounts, emulate
from hwsim.analytic import analytic_events
from hwsim.events import EVENTS
from tests.hwsim.counted import counted, whole
from tests.hwsim.models import ARCHITECTURES, PERIOD, emulated_model, full_device, plain_model, small_device, token_ids

TOKENS = 20  # the ring of 12 wraps
SOFTMAX = {"activation.kind": "softmax", "readout_qk.bits": 6}
DEVICES: dict[str, DeviceModel] = {
    "plain": small_device(),
    "refresh": full_device(),
    "softmax": small_device(**SOFTMAX),
    "softmax-refresh": full_device(**SOFTMAX),
    "signed-softmax": small_device(**SOFTMAX, **{"input.signed": True}),
    "short-rows": small_device(**{"tile.rows": 5, "linear.rows": 24, "linear.columns": 20}),
    "long-window": small_device(**{"window.tokens": 50}),
    "droop": full_device(**{"refresh.kind": "on_droop", "refresh.droop": 0.2}),
    "sram": load_device("sram_dcim_28nm", {"window.tokens": 12, "tile.slots": 8}),
}

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def config_of(model: Any) -> dict[str, Any]:
    return model.config.to_dict()


def by_layer(counts: EventCounts) -> dict[int | None, Counter[str]]:
    """Events by layer, without layers and kinds that count nothing."""
    found = {layer: Counter({e: n for e, n in events.items() if n}) for layer, events in counts.by_layer.items()}
    return {layer: events for layer, events in found.items() if events}


def same_events(got: EventCounts, expected: EventCounts) -> None:
    assert by_layer(got) == by_layer(expected)
    assert got.tokens == expected.tokens


def same(got: EventCounts, expected: EventCounts) -> None:
    same_events(got, expected)
    assert got.subtiles == expected.subtiles
    assert sum(got.arrays.values()) == sum(expected.arrays.values())
    assert sum(got.weight_bits.values()) == sum(expected.weight_bits.values())


@pytest.mark.filterwarnings("ignore:.*no effect of")
@every_architecture
@pytest.mark.parametrize("name", DEVICES)
def test_whole_texts(architecture: str, name: str) -> None:
    device = DEVICES[name]
    model = emulated_model(architecture, device)
    period = PERIOD if device.decays else None
    for tokens, batch in ((7, 1), (TOKENS, 3)):
        run = whole(model, token_ids(batch, tokens))
        same(analytic_events(config_of(model), device, tokens=tokens, batch=batch, token_period_s=period), run)


@every_architecture
def test_token_by_token(architecture: str, emulated: Any) -> None:
    """A cached run is the sum of its steps, and each of the last steps is one analytic step."""
    model, device, ids = emulated(architecture), full_device(), token_ids(2, TOKENS)
    config, cache = config_of(model), hf.DynamicCache(config=model.config)
    steps, total, run = EventCounts(), EventCounts(), None
    for start in range(TOKENS):
        run = counted(lambda at=start: model(input_ids=ids[:, at : at + 1], past_key_values=cache))
        step = analytic_events(config, device, tokens=1, batch=2, start=start, token_period_s=PERIOD)
        same(step, run)
        steps.add(step)
        total.add(run)
    same(steps, total)
    same(steps, analytic_events(config, device, tokens=TOKENS, batch=2, token_period_s=PERIOD))


@every_architecture
def test_adapter_beside_every_ternary_layer(architecture: str) -> None:
    model = plain_model(architecture, torch.float32)
    emulate(model, small_device(), token_period=PERIOD)
    adapted = attach_adapter(model, LoraSettings(r=3), base_name="tiny", seed=0).eval()
    run = whole(adapted, token_ids(2, 9))
    assert run["digital.adapter_mac"] > 0
    same(analytic_events(config_of(model), small_device(), tokens=9, batch=2, adapter_rank=3), run)
    with adapted.disable_adapter():
        same_events(
            analytic_events(config_of(model), small_device(), tokens=9, batch=2), whole(adapted, token_ids(2, 9))
        )


def test_every_kind_of_event_is_met() -> None:
    """By two architectures on the devices above: an event that nobody counts would be equal for nothing."""
    met: Counter[str] = Counter()
    for architecture in ("gemma3", "gpt2"):
        model = ARCHITECTURES[architecture]()
        met += analytic_events(
            config_of(model), DEVICES["softmax-refresh"], tokens=TOKENS, token_period_s=PERIOD, adapter_rank=2
        ).events
    assert set(met) == set(EVENTS)


@pytest.mark.parametrize("window", [3, 8, 11, 30])
def test_window_of_the_model_shorter_and_longer_than_that_of_the_device(window: int) -> None:
    settings = {"sliding_window": window, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 64}
    model = hf.MistralForCausalLM(hf.MistralConfig(**settings)).double().eval()
    emulate(model, small_device(), token_period=PERIOD)
    run = whole(model, token_ids(1, TOKENS))
    assert run["attention.phi_conversion"] == 4 * sum(min(t + 1, window, 12) for t in range(TOKENS))
    same(analytic_events(config_of(model), small_device(), tokens=TOKENS), run)


def test_head_asked_for_the_last_token_only() -> None:
    model = emulated_model("llama")
    run = counted(lambda: model(input_ids=token_ids(2, 9), use_cache=False, logits_to_keep=1))
    same(analytic_events(config_of(model), small_device(), tokens=9, batch=2, head_tokens=1), run)


# ---- configurations as files have them

OPTIONAL = (
    "head_dim", "layer_types", "rope_parameters", "tie_word_embeddings", "n_inner",
    "max_window_layers", "use_sliding_window", "partial_rotary_factor",
)  # fmt: skip


@every_architecture
def test_file_without_optional_keys_has_the_defaults_of_its_family(architecture: str) -> None:
    made = ARCHITECTURES[architecture]()
    bare = {key: value for key, value in made.config.to_dict().items() if key not in OPTIONAL}
    model = type(made)(type(made.config).from_dict(bare)).double().eval()
    emulate(model, small_device(), token_period=PERIOD)
    same(analytic_events(bare, small_device(), tokens=9), whole(model, token_ids(1, 9)))


def test_absent_key_value_heads_are_all_heads() -> None:
    full = ARCHITECTURES["llama"]().config.to_dict()
    bare = {key: value for key, value in full.items() if key not in ("num_key_value_heads", "head_dim")}
    counts = analytic_events(bare, small_device(), tokens=9)
    assert counts["attention.write_conversion"] == 9 * 2 * 2 * 32
    assert counts["attention.shared_array_pass"] == 0


# ---- families that the nine do not stand for


@pytest.mark.parametrize(
    ("model", "more"),
    [("Gemma", {"head_dim": 8}), ("Gemma2", {"head_dim": 8, "sliding_window": 8}), ("Granite", {}), ("Olmo2", {}),
     ("Phi3", {})],
)  # fmt: skip
def test_further_families(model: str, more: dict[str, int]) -> None:
    settings: dict[str, Any] = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    made = getattr(hf, f"{model}ForCausalLM")(getattr(hf, f"{model}Config")(**settings, **more)).double().eval()
    emulate(made, small_device(), token_period=PERIOD)
    same(analytic_events(config_of(made), small_device(), tokens=TOKENS, batch=2), whole(made, token_ids(2, TOKENS)))


# ---- errors


@pytest.mark.parametrize("asked", [-1, 6])
def test_head_is_asked_for_tokens_that_are_there(asked: int) -> None:
    with pytest.raises(ValueError, match=f"0 to 5, received {asked}"):
        analytic_events(ARCHITECTURES["llama"]().config.to_dict(), small_device(), tokens=5, head_tokens=asked)


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"batch": 0}, {"start": -1}, {"adapter_rank": 0}], ids=str)
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    asked: dict[str, Any] = {"tokens": 1, **wrong}
    with pytest.raises(ValueError, match="tokens, batch and adapter_rank start at 1"):
        analytic_events(ARCHITECTURES["llama"]().config.to_dict(), small_device(), **asked)


def test_device_that_refreshes_needs_a_period() -> None:
    with pytest.raises(ValueError, match="gaincell_28nm refreshes: give token_period_s"):
        analytic_events(ARCHITECTURES["llama"]().config.to_dict(), full_device(), tokens=1)


def test_unknown_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="did you mean llama"):
        analytic_events({"model_type": "lama"}, small_device(), tokens=1)
