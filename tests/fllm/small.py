"""Small things that the tests of fllm share: settings, models, cohorts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

import fllm
from device_models import load_device
from fllm.config import LoraSettings
from fllm.data import write_cohort
from fllm.model.adapters import attach_adapter
from fllm.model.base import SHIPPED as NAME
from fllm.model.base import load_model

SHIPPED = Path(fllm.__file__).parent / "model" / "assets" / NAME
CANARY = "zebrafish"
"""A word that no synthetic note holds; put into every text, it must never come out."""

TINY: dict[str, Any] = {
    "num_cases": 60, "num_clients": 3, "num_rounds": 2, "local_steps": 1, "batch_size": 4, "threads": 1,
}  # fmt: skip
"""Settings of the smallest run that has everything a run has."""


def copied(folder: Path, to: Path) -> Path:
    """Copy a folder; the copy may be written to."""
    return Path(shutil.copytree(folder, to))


def edit_json(file: Path, **changes: object) -> None:
    """Change top-level keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def fresh_model() -> torch.nn.Module:
    """Load the shipped base model on the gain-cell device, without an adapter."""
    return load_model(None, load_device("gaincell_28nm"), 1e-5, []).model


def adapted_model(r: int = 4, seed: int = 0) -> PeftModel:
    """Load the shipped base model with a new adapter."""
    return attach_adapter(fresh_model(), LoraSettings(r=r), base_name=NAME, seed=seed).eval()


def scrambled(adapter: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return an adapter of the same shapes whose every value is random: both factors act."""
    made = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(tensor.shape, generator=made) for name, tensor in adapter.items()}


def logits(model: torch.nn.Module, tokens: Tensor | None = None) -> Tensor:
    """Return the logits of a fixed batch."""
    if tokens is None:
        tokens = torch.arange(2, 42).reshape(2, 20)
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def cohort_with_canary(folder: Path, num_cases: int = 60, hospitals: int = 3) -> Path:
    """Write a synthetic cohort and put the canary into every text of every table."""
    write_cohort(folder, num_cases, n_hospitals=hospitals, seed=0)
    replaced = 0
    for name, texts in (
        ("history_of_present_illness.csv", (" with ", " and ")),
        ("physical_examination.csv", ("soft", "Abd", "HEENT")),
        ("radiology_reports.csv", ("FINDINGS:",)),
    ):
        text = (folder / name).read_text(encoding="utf-8")
        for part in texts:
            replaced += text.count(part)
            text = text.replace(part, f"{part} {CANARY} ")
        (folder / name).write_text(text, encoding="utf-8")
    if replaced < 3 * num_cases:
        raise AssertionError("the canary stands in too few texts: the phrases of the synthetic cohort changed")
    return folder
