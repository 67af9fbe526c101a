"""Sizes of a language model, read off its configuration: what analytic counts need, without weights or torch.

A family is one function from a Hugging Face configuration to a :class:`ModelShape`; ``FAMILIES`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from device_models.errors import InputError, nearest

Config = Mapping[str, Any]
RMS_NORM, LAYER_NORM = "digital.rms_norm_value", "digital.layer_norm_value"


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers fed by one input, which run at the same time on arrays of their own."""

    inputs: int
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer.

    Attributes:
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Dimensions of a head.
        rotary_dim: Of them, how many the rotary embedding turns.
        window: Tokens that a query sees, where the model limits them; None sees all.
        linears: Groups of linear layers, in the order in which they run.
        norm: Event of its norms.
        norm_values: Values of one token through all its norms.
        activation: Values through the activation function of the feed-forward block.
        gate: Values multiplied by their gate; 0 without one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    window: int | None
    linears: tuple[LinearGroup, ...]
    norm: str
    norm_values: int
    activation: int
    gate: int


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only language model.

    Attributes:
        name: For people.
        layers: Its decoder layers.
        hidden: Width of the residual stream.
        vocabulary: Rows of the word embedding and outputs of the LM head.
        positions: Rows of a table of learned positions; 0 without one.
        tied: Whether the LM head shares the word embedding.
        final_norm: Event of the norm behind the last layer.
    """

    name: str
    layers: tuple[LayerShape, ...]
    hidden: int
    vocabulary: int
    positions: int
    tied: bool
    final_norm: str

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers of the decoder."""
        return sum(group.inputs * sum(group.outputs) for layer in self.layers for group in layer.linears)


def rotary_share(config: Config) -> float:
    """Return the share [1] of a head's dimensions that the rotary embedding turns.

    Raises:
        InputError: If the configuration names something that is no share.
    """
    parameters = config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise InputError("rope_parameters is no object", where="config", received=type(parameters).__name__)
    share = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct")
    share = share or (0.25 if config.get("model_type") == "gpt_neox" else 1.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError("partial_rotary_factor is no share", where="config", expected="0 to 1", received=share)
    return float(share)


def model_shape(config: Config, name: str | None = None) -> ModelShape:
    """Read the sizes of a model off its configuration.

    Args:
        config: Content of a ``config.json``.
        name: For people; None is the model's type.

    Raises:
        InputError: If the type is not known, or a size is missing or no positive whole number.
    """
    config = config.get("text_config") or config
    family = config.get("model_type") if isinstance(config, Mapping) else type(config).__name__
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            "unknown model_type", where=name or "config", expected=f"one of {', '.join(FAMILIES)}", received=family,
            remedy=nearest(str(family), FAMILIES),
        )  # fmt: skip
    return FAMILIES[str(family)](config, name or str(family))


MOST = 10_000
"""Largest number of layers; other sizes may be ten thousand times that."""


def _size(config: Config, name: str, *keys: str, default: int | None = None) -> int:
    found = next((config[key] for key in keys if config.get(key) is not None), default)
    most = MOST if "layer" in keys[0] else MOST**2
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= most:
        raise InputError(
            f"{keys[0]} is missing or no size", where=name, expected=f"a whole number from 1 to {most}", received=found
        )
    return found


_KV_HEADS = {"bitnet": 5, "gemma2": 4, "gemma3_text": 4, "mistral": 8}
"""Key/value heads where a configuration does not name them and its class has a number of its own for that."""


def _llama(config: Config, name: str) -> ModelShape:
    """Gated feed-forward blocks, RMS norms, rotary embedding: Llama and those after it."""
    kind = config["model_type"]
    hidden, inner = _size(config, name, "hidden_size"), _size(config, name, "intermediate_size")
    heads = _size(config, name, "num_attention_heads")
    kv_heads = _size(config, name, "num_key_value_heads", default=_KV_HEADS.get(kind, heads))
    if heads % kv_heads:
        raise InputError(
            "heads cannot share", where=name, expected=f"a divisor of {heads} key/value heads", received=kv_heads
        )
    own = 256 if kind.startswith("gemma") else 128 if kind == "qwen3" else None
    head_dim = _size(config, name, "head_dim", default=own or _divided(hidden, heads, name))
    norms = 2 * hidden
    if kind == "bitnet":  # norms before the output projections
        norms += heads * head_dim + inner
    if kind in ("gemma2", "gemma3_text"):  # norms behind both blocks
        norms += 2 * hidden
    if kind in ("qwen3", "gemma3_text", "olmo2"):  # norms of queries and keys
        norms += (heads + kv_heads) * head_dim
    stored = kv_heads * head_dim
    joined = kind == "phi3"  # queries, keys and values in one matrix, gate and up in another
    linears = (
        LinearGroup(hidden, (heads * head_dim + 2 * stored,) if joined else (heads * head_dim, stored, stored)),
        LinearGroup(heads * head_dim, (hidden,)),
        LinearGroup(hidden, (2 * inner,) if joined else (inner, inner)),
        LinearGroup(inner, (hidden,)),
    )
    layers = tuple(
        LayerShape(heads, kv_heads, head_dim, int(head_dim * rotary_share(config)), window, linears, RMS_NORM, norms,
                   inner, inner)
        for window in _windows(config, name)
    )  # fmt: skip
    tied = bool(config.get("tie_word_embeddings", kind.startswith("gemma")))
    return ModelShape(name, layers, hidden, _size(config, name, "vocab_size"), 0, tied, RMS_NORM)


def _windows(config: Config, name: str) -> list[int | None]:
    """Return the sliding window of each layer."""
    count, types, kind = _size(config, name, "num_hidden_layers"), config.get("layer_types"), config["model_type"]
    default = 4096 if kind in ("mistral", "gemma2", "gemma3_text") else None
    window = None
    if config.get("sliding_window", default) is not None:
        window = _size(config, name, "sliding_window", default=default)
    if types is None and kind in ("gemma2", "gemma3_text"):
        keys = ("sliding_window_pattern", "_sliding_window_pattern")
        every = _size(config, name, *keys, default=2 if kind == "gemma2" else 6)
        types = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    if types is None and kind in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", count) if config.get("use_sliding_window") else count
        if not isinstance(first, int):
            raise InputError("max_window_layers is no number", where=name, expected="a layer", received=first)
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    if types is None:
        return [window if kind in ("mistral", "phi3") else None] * count
    if not isinstance(types, list) or len(types) != count or not set(types) <= {"full_attention", "sliding_attention"}:
        received = f"{len(types)}: {', '.join(sorted(map(str, set(types))))}" if isinstance(types, list) else types
        raise InputError(
            "layer_types do not fit", where=name, expected=f"{count} types, full_attention or sliding_attention",
            received=received,
        )  # fmt: skip
    return [window if kind == "sliding_attention" else None for kind in types]


def _divided(hidden: int, heads: int, name: str) -> int:
    """Return the dimensions of a head; raises InputError where heads do not divide the width."""
    if hidden % heads:
        raise InputError("heads do not divide the width", where=name, expected=f"a divisor of {hidden}", received=heads)
    return hidden // heads


def _plain_layers(
    name: str, *, hidden: int, inner: int, heads: int, layers: int, joined: bool, rotary: float = 0.0
) -> tuple[LayerShape, ...]:
    """Two LayerNorms and a feed-forward block without gate; queries, keys and values joined in one matrix or apart."""
    head_dim = _divided(hidden, heads, name)
    linears = (
        LinearGroup(hidden, (3 * hidden,) if joined else (hidden, hidden, hidden)), LinearGroup(hidden, (hidden,)),
        LinearGroup(hidden, (inner,)), LinearGroup(inner, (hidden,)),
    )  # fmt: skip
    layer = LayerShape(heads, heads, head_dim, int(head_dim * rotary), None, linears, LAYER_NORM, 2 * hidden, inner, 0)
    return (layer,) * layers


def _gpt2(config: Config, name: str) -> ModelShape:
    hidden = _size(config, name, "n_embd", "hidden_size")
    inner = _size(config, name, "n_inner", default=4 * hidden)
    heads = _size(config, name, "n_head", "num_attention_heads")
    count = _size(config, name, "n_layer", "num_hidden_layers")
    layers = _plain_layers(name, hidden=hidden, inner=inner, heads=heads, layers=count, joined=True)
    positions = _size(config, name, "n_positions", "max_position_embeddings", default=1024)
    tied = bool(config.get("tie_word_embeddings", True))
    return ModelShape(name, layers, hidden, _size(config, name, "vocab_size"), positions, tied, LAYER_NORM)


def _opt(config: Config, name: str) -> ModelShape:
    hidden, inner = _size(config, name, "hidden_size"), _size(config, name, "ffn_dim")
    if config.get("word_embed_proj_dim", hidden) != hidden or config.get("do_layer_norm_before") is False:
        raise InputError(
            "this kind of OPT is not known", where=name, expected="embeddings as wide as the model, norms before blocks"
        )
    heads, count = _size(config, name, "num_attention_heads"), _size(config, name, "num_hidden_layers")
    layers = _plain_layers(name, hidden=hidden, inner=inner, heads=heads, layers=count, joined=False)
    positions = _size(config, name, "max_position_embeddings") + 2  # its table starts at 2
    tied = bool(config.get("tie_word_embeddings", True))
    return ModelShape(name, layers, hidden, _size(config, name, "vocab_size"), positions, tied, LAYER_NORM)


def _gpt_neox(config: Config, name: str) -> ModelShape:
    hidden, inner = _size(config, name, "hidden_size"), _size(config, name, "intermediate_size")
    heads, count = _size(config, name, "num_attention_heads"), _size(config, name, "num_hidden_layers")
    layers = _plain_layers(
        name, hidden=hidden, inner=inner, heads=heads, layers=count, joined=True, rotary=rotary_share(config)
    )
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(name, layers, hidden, _size(config, name, "vocab_size"), 0, tied, LAYER_NORM)


FAMILIES: Mapping[str, Callable[[Config, str], ModelShape]] = {
    "bitnet": _llama,
    "gemma": _llama,
    "gemma2": _llama,
    "gemma3_text": _llama,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "granite": _llama,
    "llama": _llama,
    "mistral": _llama,
    "olmo2": _llama,
    "opt": _opt,
    "phi3": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
}
"""How to read the configuration of each ``model_type``."""
