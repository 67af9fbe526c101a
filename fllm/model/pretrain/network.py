"""The untrained tokenizer and model of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import BitNetConfig, BitNetForCausalLM, PreTrainedTokenizerFast

from device_models import DeviceModel, load_device
from fllm.model.pretrain.recipe import Recipe
from hwsim import calibrate_linear_arrays, emulate, gain_cell_layers
from hwsim.effects import without
from hwsim.randomness import seed_of

END = "<|end|>"
PAD = "<|pad|>"


def put_on_design(model: nn.Module, device: DeviceModel, *, token_period: float) -> None:
    """Emulate a model in training: the design, not one chip of it, as chips are what fine-tuning meets.

    The converters of the ternary layers are left out: their ranges are set when the trained model is loaded.
    """
    exact = without(device, "linear converter")
    emulate(model, exact, die_seed=None, noise_seed=None, token_period=token_period)


def put_in_use(model: nn.Module, device: DeviceModel, *, token_period: float, sample: Sequence[Tensor]) -> None:
    """Emulate a trained model, on the design, with the converters of its ternary layers and ranges for them.

    Args:
        model: The model.
        device: The device.
        token_period: [s].
        sample: Token ids (batch, tokens), without padding, from whose statistics the ranges are set.
    """
    emulate(model, device, die_seed=None, noise_seed=None, token_period=token_period)
    calibrate_linear_arrays(model, sample)


def train_tokenizer(texts: Iterable[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=END)


def new_model(recipe: Recipe, vocabulary: int, tokenizer: PreTrainedTokenizerFast) -> BitNetForCausalLM:
    """Make the untrained model on its device."""
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (END, PAD))
    config = BitNetConfig(
        vocab_size=-(-vocabulary // 16) * 16,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(recipe.seed, "base weights"))
        model = BitNetForCausalLM(config)
    put_on_design(model, load_device(recipe.device), token_period=recipe.token_period_s)
    with torch.no_grad():
        for layer in gain_cell_layers(model):
            layer.key.gain.fill_(recipe.key_gain)
            layer.value.gain.fill_(recipe.key_gain)
            layer.output.gain.fill_(recipe.output_gain)
    return model
