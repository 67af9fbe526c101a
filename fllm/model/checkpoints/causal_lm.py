"""Load a causal language model with ternary linear layers from any Hugging Face folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from device_models import InputError
from fllm.model.checkpoints.conversion import Conversion, read_record, ternarise
from fllm.model.checkpoints.files import StoredTensors, tensors_of
from fllm.model.checkpoints.formats import read_config, take_form, without_sub_norms
from fllm.model.checkpoints.loading import load_ternary
from fllm.model.checkpoints.scalers import SCALERS
from fllm.model.checkpoints.sixteen_bits import keep_sixteen_bits

LARGE = 500_000_000
"""Parameters above which a model is kept small instead of fast."""


@dataclass(frozen=True, eq=False)
class LoadedCheckpoint:
    """A causal language model with ternary linear layers.

    Attributes:
        model: The model, in digital, in evaluation mode.
        conversion: What making trained weights ternary cost, now or when the folder was made; None where they were
            trained as ternary.
    """

    model: PreTrainedModel
    conversion: Conversion | None


def load_causal_lm(
    folder: Path, texts: Sequence[Tensor] = (), *, vocabulary: int = 0, large: bool | None = None
) -> LoadedCheckpoint:
    """Load a model of any architecture and layout; linear layers that are not ternary are made so.

    Known layouts: packed BitNet weights of both conventions of the scale, their codes unpacked, master weights, norms
    inside linear layers, BitNet without sub-norms, and plain models. Safetensors in one file or in shards; plain
    models also in PyTorch's own format. Code that comes with a folder is never run.

    A small model is float32 throughout, ternary codes too: it is computed with many times. A large one keeps ternary
    weights packed and, if they are of 16 bits, embedding and LM head as stored; it computes in float32 all the same.
    Packed files are mapped into memory: data is read when it is used, and the files must stay as they are meanwhile.

    Args:
        folder: The model folder.
        texts: Token ids (1, tokens) that the loss of a conversion is measured on, where the model is not large.
        vocabulary: Tokens of the tokenizer, all of which the model must know.
        large: Whether to treat it as large; None decides by ``LARGE`` parameters.

    Returns:
        The model.

    Raises:
        InputError: If the folder holds no such model.
    """
    config, tensors = read_config(folder), tensors_of(folder)
    if large is None:
        large = tensors is not None and tensors.parameters > LARGE
    form = take_form(config, tensors or (), folder)
    if form is None:
        model = _load_plain(config, folder, large=large)
    else:
        tensors = tensors or StoredTensors(folder)  # which says that there are none
        model = load_ternary(without_sub_norms(config, tensors), form, tensors, large=large)
    _check_vocabulary(model, vocabulary, folder)
    conversion = ternarise(model, () if large else texts, pack=large)
    if form is None and large:
        _keep_small(model)
    return LoadedCheckpoint(model, conversion or read_record(folder))


def _load_plain(config: PretrainedConfig, folder: Path, *, large: bool) -> PreTrainedModel:
    """Load a model as transformers does, with its weights as stored where it is large."""
    if not any(file.name != SCALERS for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)):
        raise InputError(
            "no weights", where=str(folder), expected="*.safetensors beside config.json", remedy="check --model"
        )
    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False,
            dtype="auto" if large else torch.float32, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # a broken file meets many parsers, each with errors of its own
        first = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise InputError(f"not a loadable causal language model ({first})", where=str(folder)) from None
    if report["missing_keys"]:  # transformers fills them with random numbers
        raise InputError("a tensor is missing", where=f"{folder}: {min(report['missing_keys'])}")
    return model.eval()


def _check_vocabulary(model: PreTrainedModel, tokens: int, folder: Path) -> None:
    known = model.get_input_embeddings().weight.shape[0]
    if tokens > known:
        raise InputError(
            "the tokenizer has more tokens than the model", where=str(folder), expected=f"at most {known}",
            received=tokens, remedy="keep the files of one model together",
        )  # fmt: skip


def _keep_small(model: PreTrainedModel) -> None:
    """Widen to float32 what is not ternary, but for an embedding and LM head of 16 bits."""
    kept = {id(part.weight) for part in keep_sixteen_bits(model).values()}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.float()
