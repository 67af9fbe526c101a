"""Turn the linear layers of a plain model into ternary ones, and state what that costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from device_models import InputError
from hwsim import BitLinear
from hwsim.functional.bitlinear import code_scale, ternary_codes
from hwsim.integrations.transformers import as_linear

RECORD = "conversion.json"
"""File beside a converted model that tells what the conversion cost."""
MOST_TOKENS = 1024
"""Tokens of the sample texts that the loss is measured on."""
MOST_PRODUCTS = 5e10
"""Tokens times parameters that the loss is measured with: about ten seconds on one core."""


@dataclass(frozen=True)
class Conversion:
    """What rounding trained weights to ternary cost.

    Attributes:
        layers: How many layers were converted.
        weight_error_mean: ``|W - s Wq| / |W|`` (root of the sums of squares), mean over the layers.
        weight_error_largest: That of the worst layer.
        tokens: Predicted tokens of the sample texts that the losses are over; 0 where they were not measured.
        loss_before_nat: [nat/token] of the plain model, in digital.
        loss_after_nat: [nat/token] of the ternary one, in digital.
    """

    layers: int
    weight_error_mean: float
    weight_error_largest: float
    tokens: int = 0
    loss_before_nat: float | None = None
    loss_after_nat: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return it for a result."""
        return {f"ternarising_{key}": value for key, value in asdict(self).items()}


@torch.no_grad()
def frozen_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (outputs, inputs) and scale () of master weights, both in float32.

    A matrix that is ternary already, -s, 0, s, keeps its s: the mean of ``|W|`` would be smaller by the share of zeros.
    """
    wide = weight.float()
    largest = wide.abs().max()
    if largest > 0 and bool(((wide == 0) | (wide.abs() == largest)).all()):
        return wide.sign(), largest
    return ternary_codes(wide), code_scale(wide)


@torch.no_grad()
def ternarise(model: PreTrainedModel, texts: Sequence[Tensor], *, pack: bool = False) -> Conversion | None:
    """Convert what is left of plain linear layers, in place, one after another; the LM head stays as it is.

    Args:
        model: A causal language model, not emulated.
        texts: Token ids (1, tokens) to measure the loss on.
        pack: Pack the codes of each layer whose outputs are a multiple of four.

    Returns:
        What it cost; None where all linear layers were ternary.

    Raises:
        InputError: If the model has no linear layer, ternary or not.
    """
    plain = _plain_linears(model)
    if not plain:
        if any(isinstance(layer, BitLinear) for layer in model.modules()):
            return None
        raise InputError("no linear layer to make ternary", where=type(model).__name__, expected="torch.nn.Linear")
    texts = _affordable(texts, sum(p.numel() for p in model.parameters()))
    before = _mean_loss(model, texts)
    errors = []
    for name in plain:
        layer = model.get_submodule(name)
        linear = as_linear(layer) if isinstance(layer, Conv1D) else layer
        assert isinstance(linear, nn.Linear)
        made, error = _converted(linear, pack=pack)
        model.set_submodule(name, made)
        errors.append(error)
    return Conversion(
        len(errors), sum(errors) / len(errors), max(errors), sum(ids.shape[1] - 1 for ids in texts), before,
        _mean_loss(model, texts),
    )  # fmt: skip


def _plain_linears(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return [
        name for name, layer in model.named_modules()
        if layer is not head and (type(layer) is nn.Linear or isinstance(layer, Conv1D))
    ]  # fmt: skip


def _converted(linear: nn.Linear, *, pack: bool) -> tuple[BitLinear, float]:
    """Return the ternary layer, in float32, and the relative error of its weights."""
    codes, scale = frozen_weight(linear.weight)
    wide = linear.weight.float()
    error = float((wide - scale * codes).norm() / wide.norm().clamp(min=1e-30))
    with torch.device("meta"):
        made = BitLinear(linear.in_features, linear.out_features, linear.bias is not None, offline=True)
    made.weight, made.weight_scale = nn.Parameter(codes, requires_grad=False), scale
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().float())
    if pack and linear.out_features % 4 == 0:
        made.pack_()
    return made.train(linear.training), error


def _affordable(texts: Sequence[Tensor], parameters: int) -> list[Tensor]:
    """Return as many of the first texts as the loss may be measured on; none predicts less than one token."""
    taken: list[Tensor] = []
    left = min(MOST_TOKENS, int(MOST_PRODUCTS / parameters))
    for ids in texts:
        if 1 < ids.shape[1] <= left:
            taken.append(ids)
            left -= ids.shape[1]
    return taken


def _mean_loss(model: PreTrainedModel, texts: Sequence[Tensor]) -> float | None:
    """Return the mean loss [nat/token]; None without texts."""
    if not texts:
        return None
    losses = [(ids.shape[1] - 1, model(input_ids=ids, labels=ids, use_cache=False).loss) for ids in texts]
    return float(sum(n * loss for n, loss in losses) / sum(n for n, _ in losses))


def write_record(conversion: Conversion, folder: Path) -> None:
    """Note beside a model what its conversion cost."""
    text = json.dumps(asdict(conversion), indent=2, sort_keys=True) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8", newline="\n")


def read_record(folder: Path) -> Conversion | None:
    """Return what a conversion cost that made a folder; None if none did.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return Conversion(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", where=str(folder / RECORD)) from None
