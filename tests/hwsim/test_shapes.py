"""Sizes of published models out of their configurations, and configurations that are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from device_models import InputError
from hwsim.shapes import FAMILIES, ModelShape, model_shape, rotary_share

BITNET_2B4T = {
    "model_type": "bitnet", "hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 30,
    "num_attention_heads": 20, "num_key_value_heads": 5, "vocab_size": 128256, "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
LLAMA_3_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 50,
}  # fmt: skip


def words(shape: ModelShape) -> int:
    return shape.vocabulary * shape.hidden * (1 if shape.tied else 2) + shape.positions * shape.hidden


def test_bitnet_2b4t() -> None:
    shape = model_shape(BITNET_2B4T)
    assert shape.linear_weights == 30 * (2 * 2560**2 + 2 * 2560 * 640 + 3 * 2560 * 6912) == 2_084_044_800
    layer = shape.layers[0]
    assert (len(shape.layers), layer.heads, layer.kv_heads, layer.head_dim, layer.rotary_dim) == (30, 20, 5, 128, 128)
    assert layer.norm_values == 2 * 2560 + 2560 + 6912  # two of its norms stand before output projections
    assert words(shape) == 128256 * 2560


def test_gpt2() -> None:
    shape = model_shape(GPT2)
    assert shape.linear_weights == 12 * 12 * 768**2 == 84_934_656
    assert words(shape) + shape.linear_weights == 124_318_464  # 124.4M less biases and norms
    assert (shape.tied, shape.positions, shape.layers[0].rotary_dim, shape.layers[0].gate) == (True, 1024, 0, 0)


def test_llama_3_8b() -> None:
    shape = model_shape(LLAMA_3_8B)
    assert shape.linear_weights == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) == 6_979_321_856
    assert words(shape) + shape.linear_weights == pytest.approx(8.03e9, rel=1e-3)
    assert not shape.tied


# ---- what families differ in


@pytest.mark.parametrize("inside", [LLAMA_3_8B, {"text_config": LLAMA_3_8B, "vision_config": {}}], ids=["own", "text"])
def test_name_is_the_type_or_the_given_one(inside: dict[str, Any]) -> None:
    assert model_shape(inside).name == "llama"
    assert model_shape(inside, "mine").name == "mine"


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"model_type": "mistral", "sliding_window": 16}, [16] * 4),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 4),
        ({"model_type": "llama", "sliding_window": 16}, [None] * 4),
        ({"model_type": "qwen2", "sliding_window": 16}, [None] * 4),
        ({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3},
         [None, None, None, 16]),
        ({"model_type": "gemma3_text", "sliding_window": 16, "sliding_window_pattern": 2}, [16, None, 16, None]),
        ({"model_type": "gemma3_text", "sliding_window": 16}, [16] * 4),
        ({"model_type": "qwen3", "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
         [16, None, 16, None]),
    ],
    ids=str,
)  # fmt: skip
def test_sliding_windows(config: dict[str, Any], windows: list[int | None]) -> None:
    assert [layer.window for layer in model_shape(SMALL | config).layers] == windows


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({"model_type": "llama"}, 1.0),
        ({"model_type": "gpt_neox"}, 0.25),
        ({"model_type": "gpt_neox", "rotary_pct": 0.5}, 0.5),
        ({"model_type": "llama", "partial_rotary_factor": 0.75}, 0.75),
        ({"model_type": "gpt_neox", "rope_parameters": {"partial_rotary_factor": 1.0}, "rotary_pct": 0.5}, 1.0),
    ],
    ids=str,
)
def test_share_that_a_rotary_embedding_turns(config: dict[str, Any], share: float) -> None:
    assert rotary_share(config) == share
    assert model_shape(SMALL | config).layers[0].rotary_dim == 8 * share


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "absent",
    ["head_dim", "tie_word_embeddings", "rope_parameters", "layer_types", "num_key_value_heads", "sliding_window"],
)
def test_absent_key_means_what_its_class_takes(family: str, absent: str) -> None:
    full = CONFIG_MAPPING[family]().to_dict()
    bare = {key: value for key, value in full.items() if key != absent}
    assert model_shape(bare) == model_shape(full)


# ---- errors

OPT = SMALL | {"model_type": "opt", "ffn_dim": 96, "max_position_embeddings": 32}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "lama"}, "did you mean llama"),
    ({"model_type": "gpt3"}, "did you mean gpt2"),
    ({}, "received None"),
    (SMALL | {"model_type": "llama", "hidden_size": None}, "hidden_size is missing or no size"),
    (SMALL | {"model_type": "llama", "vocab_size": "50"}, "vocab_size is missing.*received '50'"),
    (SMALL | {"model_type": "llama", "num_hidden_layers": 0}, "num_hidden_layers is missing.*received 0"),
    (SMALL | {"model_type": "llama", "num_attention_heads": True}, "num_attention_heads.*received True"),
    (
        SMALL | {"model_type": "qwen3", "layer_types": ["full_attention"]},
        "expected 4 types.*received '1: full_attention'",
    ),
    (SMALL | {"model_type": "llama", "layer_types": 5}, "layer_types do not fit.*received 5"),
    (
        SMALL | {"model_type": "llama", "layer_types": ["linear_attention"] * 4},
        "layer_types do not fit.*linear_attention",
    ),
    (SMALL | {"model_type": "mistral", "sliding_window": "a"}, "sliding_window is missing or no size.*received 'a'"),
    (SMALL | {"model_type": "mistral", "sliding_window": -5}, "sliding_window is missing or no size.*received -5"),
    (SMALL | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": "z"}, "max_window_layers is no"),
    (SMALL | {"model_type": "gemma3_text", "sliding_window_pattern": "x"}, "sliding_window_pattern is missing"),
    (SMALL | {"model_type": "llama", "num_hidden_layers": 10**9}, "from 1 to 10000; received 1000000000"),
    ({"model_type": ["llama"]}, "unknown model_type"),
    ({"text_config": 5}, "unknown model_type"),
    (GPT2 | {"n_head": 7}, "expected a divisor of 768.*received 7"),
    (SMALL | {"model_type": "llama", "hidden_size": 61}, "expected a divisor of 61.*received 8"),
    (SMALL | {"model_type": "llama", "num_key_value_heads": 3}, "heads cannot share.*received 3"),
    (OPT | {"word_embed_proj_dim": 32}, "this kind of OPT is not known"),
    (OPT | {"do_layer_norm_before": False}, "this kind of OPT is not known"),
]


@pytest.mark.parametrize(("config", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_configuration_is_one_line(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        model_shape(config, "here")
    assert str(caught.value).startswith("here: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"rope_parameters": [1]}, {"partial_rotary_factor": "x"}, {"rotary_pct": 5}], ids=str
)
def test_wrong_share_of_the_rotary_embedding(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"no object|no share"):
        model_shape(SMALL | {"model_type": "llama"} | wrong)


def test_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        model_shape({"model_type": "mamba"})
    assert all(family in str(caught.value) for family in FAMILIES)
