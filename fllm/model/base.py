"""Load a base model and its tokenizer, and put them on a device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from device_models import DeviceModel, InputError
from fllm.model.checkpoints import LINEAR, Conversion, load_causal_lm, read_scalers, set_scalers
from hwsim import (
    Adaptation,
    BitLinear,
    adapt_range_scalers,
    calibrate_linear_arrays,
    calibrate_range_scalers,
    calibrate_readout,
    emulate,
    gain_cell_layers,
    linear_twin,
)

SHIPPED = "fllm-tiny-bitnet"
"""Name of the base model inside the package."""
SAMPLE_TOKENS = 256
"""Longest piece of a sample text that statistics are taken from."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A base model on a device, with its tokenizer.

    Attributes:
        name: Name of its folder, or of the shipped model.
        sha256: Digest over the files of the folder.
        conversion: What rounding trained weights to ternary cost; None where they were trained as ternary.
        folder: Where its files are, for messages.
        scalers: Range scalers of the folder by name, whatever device they are for; none where it has no such file.
        texts: Token ids of the sample texts that statistics are taken from.
        placing: What putting it on the device came to.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    sha256: str
    conversion: Conversion | None
    folder: Path
    scalers: Mapping[str, Tensor]
    texts: list[Tensor]
    placing: Placing

    @property
    def ternarised(self) -> bool:
        """Whether full-precision weights were rounded to ternary after training."""
        return self.conversion is not None

    @property
    def calibrated(self) -> bool:
        """Whether range scalers were set from statistics because the folder has none."""
        return not self.scalers


@dataclass(frozen=True)
class Placing:
    """What putting a model on a device came to.

    Attributes:
        token_period_s: [s] time between two tokens; None for a device that does not decay.
        readout_calibrated: Whether the range of the readout was set from statistics.
        adaptation: What the two-step adaptation came to, if it was asked for.
    """

    token_period_s: float | None
    readout_calibrated: bool = False
    adaptation: Adaptation | None = None


def load_model(
    folder: str | Path | None,
    device: DeviceModel,
    token_period: float | str,
    sample: Sequence[str],
    adaptation: Literal["none", "two_step"] = "none",
) -> LoadedModel:
    """Load a causal language model and emulate it.

    Args:
        folder: Hugging Face model folder; None is the shipped base model.
        device: The device.
        token_period: [s], or ``"auto"``.
        sample: Texts without patient data, from whose statistics scalers and ranges are set.
        adaptation: ``two_step`` adapts the scalers to the device from what they give on its linear twin.

    Returns:
        The model in evaluation mode, computing in float32.

    Raises:
        InputError: If the folder is no loadable causal language model, or its scalers are made for another attention.
    """
    if folder is None:
        with as_file(files("fllm.model") / "assets" / SHIPPED) as path:
            return _load(path, SHIPPED, device, token_period, sample, adaptation)
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            "no such model folder", where=str(path), expected="a Hugging Face model folder", remedy="check --model"
        )
    return _load(path, path.name, device, token_period, sample, adaptation)


def _load(
    path: Path, name: str, device: DeviceModel, token_period: float | str, sample: Sequence[str], adaptation: str
) -> LoadedModel:
    _check_adaptation(device, adaptation)
    tokenizer = load_tokenizer(path)
    texts = sample_ids(tokenizer, sample)
    found = load_causal_lm(path, texts, vocabulary=len(tokenizer))
    scalers = read_scalers(path)
    placing = _place(found.model, path, scalers, texts, device, token_period, adaptation)
    return LoadedModel(found.model, tokenizer, name, _digest(path), found.conversion, path, scalers, texts, placing)


def place(loaded: LoadedModel, device: DeviceModel, token_period: float | str, adaptation: str = "none") -> Placing:
    """Put a loaded model on another device, as if it had been loaded on it; an adapter must not act meanwhile.

    Raises:
        InputError: If the model's scalers are made for another attention, or there is nothing to adapt to.
    """
    _check_adaptation(device, adaptation)
    for layer in loaded.model.modules():
        if isinstance(layer, BitLinear):
            layer.set_range(None)
    for layer in gain_cell_layers(loaded.model):
        layer.reset_scalers(device)
    return _place(loaded.model, loaded.folder, loaded.scalers, loaded.texts, device, token_period, adaptation)


def _place(
    model: nn.Module, folder: Path, scalers: Mapping[str, Tensor], texts: Sequence[Tensor], device: DeviceModel,
    token_period: float | str, adaptation: str,
) -> Placing:  # fmt: skip
    """Emulate, take the folder's scalers, and set what is missing from statistics."""
    emulate(model, device, token_period=token_period)  # type: ignore[arg-type]  # "auto" or seconds, checked before
    found = set_scalers(model, scalers, folder)
    stored = found - {LINEAR}
    _check_activation(device, stored, folder)
    readout = device.readout.range != "fixed" and "full_scale" not in stored
    adapted = None
    if adaptation == "two_step":
        adapted = _adapt(model, device, texts, calibrate=not stored, readout=readout)
    elif not stored:
        calibrate_range_scalers(model, texts)
    if readout:
        calibrate_readout(model, texts, most=1.0)
    if texts and LINEAR not in found:  # without texts the converters keep what their arrays are expected to need
        calibrate_linear_arrays(model, texts)
    return Placing(gain_cell_layers(model)[0].token_period_s, readout, adapted)


def _check_adaptation(device: DeviceModel, adaptation: str) -> None:
    if adaptation == "two_step" and device.cell.law == "linear":
        raise InputError(
            "the cell is linear: there is nothing to adapt to", where="adaptation", expected="none for this device",
            received=adaptation,
        )  # fmt: skip


def _check_activation(device: DeviceModel, stored: Set[str], path: Path) -> None:
    """Refuse scalers of a model that was made for the other attention function."""
    softmax = device.activation.kind == "softmax"
    if stored and softmax != ("logit_gain" in stored):
        made_for = "hard_sigmoid" if softmax else "softmax"
        raise InputError(
            f"the model's range scalers are made for {made_for} attention", where=str(path),
            expected=f"a model for activation.kind {device.activation.kind}",
            remedy=f"set activation.kind={made_for}, or take a stock softmax model (--model)"
            if softmax else f"set activation.kind={made_for}",
        )  # fmt: skip


def _adapt(
    model: nn.Module, device: DeviceModel, texts: Sequence[Tensor], *, calibrate: bool, readout: bool
) -> Adaptation:
    """Set what is missing on the linear twin of the device, then adapt to the device."""
    for layer in gain_cell_layers(model):
        layer.put_on(linear_twin(device))
    if calibrate:
        calibrate_range_scalers(model, texts)
    if readout:
        calibrate_readout(model, texts, most=1.0)
    return adapt_range_scalers(model, device, texts)


def sample_ids(tokenizer: PreTrainedTokenizerBase, sample: Sequence[str]) -> list[Tensor]:
    """Return token ids (1, tokens) of sample texts, none longer than ``SAMPLE_TOKENS``."""
    return [tokenizer(text, return_tensors="pt").input_ids[:, :SAMPLE_TOKENS] for text in sample]


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder; raises InputError if there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file meets many parsers, each with errors of its own
        first = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise InputError(f"no loadable tokenizer ({first})", where=str(path), expected="tokenizer.json") from None
    return tokenizer


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".model")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def model_facts(loaded: LoadedModel) -> dict[str, object]:
    """Describe a model for a report, before an adapter is attached."""
    model = loaded.model
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    heads = config.num_attention_heads
    adapted = loaded.placing.adaptation
    facts: dict[str, object] = {} if adapted is None else {
        "adaptation_iterations": adapted.iterations,
        "adaptation_largest_mismatch": adapted.mismatch,
    }  # fmt: skip
    ternary = [layer for layer in model.modules() if isinstance(layer, BitLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in ternary)
    stored = sum(layer.weight.numel() for layer in ternary)  # four weights in one element where they are packed
    return facts | (loaded.conversion.facts() if loaded.conversion is not None else {}) | {
        "name": loaded.name,
        "sha256": loaded.sha256,
        "parameters": sum(p.numel() for p in model.parameters()) - stored + weights,
        "ternary_parameters": weights,
        "layers": len(gain_cell_layers(model)),
        "heads": heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "ternarised_after_training": loaded.ternarised,
        "range_scalers_from_statistics": loaded.calibrated,
        "readout_range_from_statistics": loaded.placing.readout_calibrated,
    }  # fmt: skip
