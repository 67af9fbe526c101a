"""Tiny random language models of nine architectures, put on a device on which their attention matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from device_models import DeviceModel, load_device
from hwsim import emulate, gain_cell_layers
from tests.hwsim.comparison import every_effect

VOCABULARY = 40
PERIOD = 1e-4  # [s] the oldest of 12 tokens keeps 79 % at 5 ms

_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, **_SHARED,
}  # fmt: skip


def _of(model: str, config: str, **settings: object) -> Callable[[], Any]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**settings))


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "bitnet": _of("BitNetForCausalLM", "BitNetConfig", **_LLAMA),
    "llama": _of("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
    "mistral": _of("MistralForCausalLM", "MistralConfig", **_LLAMA, sliding_window=8),
    "qwen2": _of("Qwen2ForCausalLM", "Qwen2Config", **_LLAMA),
    "qwen3": _of("Qwen3ForCausalLM", "Qwen3Config", **_LLAMA, head_dim=8),
    "gpt2": _of("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=4, n_positions=64, **_SHARED),
    "opt": _of(
        "OPTForCausalLM", "OPTConfig", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, **_SHARED,
    ),
    "gpt_neox": _of(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, **_SHARED,
    ),
    "gemma3": _of(
        "Gemma3ForCausalLM", "Gemma3TextConfig", **_LLAMA, head_dim=8, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
}  # fmt: skip


SMALL = {"window.tokens": 12, "tile.slots": 8, "saturation.qk": "15 uA", "saturation.av": "20 uA"}


def small_device(name: str = "gaincell_28nm", **overrides: object) -> DeviceModel:
    """Twelve tokens in sub-tiles of eight slots, saturating at the currents of eight dimensions."""
    return load_device(name, {**SMALL, **overrides})


def full_device(**overrides: object) -> DeviceModel:
    """Return a small device with every effect on; the oldest token is refreshed three times."""
    return every_effect(**{**SMALL, **overrides})


def plain_model(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    """Build a model whose weights are large enough that a token changes what follows.

    Random biases keep activations off the ties of 8-bit rounding: products of integer codes have rational ratios.
    """
    torch.manual_seed(7)
    model = ARCHITECTURES[architecture]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5.0)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
    return model


def set_scalers(model: Any) -> None:
    """Use the converters' range; offsets without a common factor keep outputs off the ties of 8-bit rounding."""
    rng = torch.Generator().manual_seed(11)
    for cells in gain_cell_layers(model):
        for scaler, gain, spread in ((cells.query, 0.3, 0.3), (cells.key, 0.3, 0.0), (cells.value, 0.3, 0.0)):
            scaler.gain.data.fill_(gain).mul_(1 + 0.1 * torch.rand(scaler.gain.shape, generator=rng))
            scaler.offset.data.add_(spread)
        cells.output.gain.data.fill_(3.0).mul_(1 + 0.1 * torch.rand(cells.output.gain.shape, generator=rng))
        cells.output.offset.data.copy_(0.1 * torch.randn(cells.output.offset.shape, generator=rng))


def emulated_model(
    architecture: str, device: DeviceModel | None = None, dtype: torch.dtype = torch.float64, **options: Any
) -> Any:
    model = plain_model(architecture, dtype)
    emulate(model, device or small_device(), **{"token_period": PERIOD, **options})
    set_scalers(model)
    return model


def token_ids(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def whole(model: Any, ids: Tensor) -> Tensor:
    """Return the logits (batch, tokens, vocabulary) of whole sequences at once."""
    return model(input_ids=ids, use_cache=False).logits
