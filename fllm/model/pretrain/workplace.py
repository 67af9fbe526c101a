"""Where a base model is built: its folder holds the finished model or the state of an unfinished one, never both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from device_models import InputError
from fllm.results import replace_file
from hwsim import BitLinear


@dataclass(frozen=True)
class Workplace:
    """The folder of a model to be built.

    Until the model is finished, everything lies in its subfolder ``training``, whose ``settings.json`` says what is
    being built.

    Attributes:
        folder: Of the finished model.
    """

    folder: Path

    @property
    def training(self) -> Path:
        """Folder of all that goes away when the model is finished."""
        return self.folder / "training"

    @property
    def state(self) -> Path:
        """File of weights and optimiser."""
        return self.training / "state.pt"

    @property
    def finished(self) -> Path:
        """Folder in which the model's files are written one by one."""
        return self.training / "finished"

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder and keep the settings; raises InputError where it is not empty."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            remedy = "go on with --resume" if self.training.is_dir() else "name a new one"
            raise InputError("the folder is not empty", where=str(self.folder), remedy=remedy)
        self.training.mkdir(parents=True)
        replace_file(self.training / "settings.json", json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def settings(self) -> dict[str, Any]:
        """Return what :meth:`begin` kept; raises InputError where no training is unfinished."""
        try:
            found: dict[str, Any] = json.loads((self.training / "settings.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(
                "no unfinished training", where=str(self.folder), expected="a folder that was interrupted"
            ) from None
        return found

    def abandon(self, *, folder: bool) -> None:
        """Take everything away again, and the folder with it if it is ours."""
        shutil.rmtree(self.training)
        if folder:
            self.folder.rmdir()

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Write ``provenance.json``, put all files in their place, weights last, and take the rest away."""
        text = json.dumps(provenance, indent=2, sort_keys=True) + "\n"
        (self.finished / "provenance.json").write_text(text, encoding="utf-8", newline="\n")
        for file in sorted(self.finished.iterdir(), key=lambda file: (file.suffix == ".safetensors", file.name)):
            file.replace(self.folder / file.name)
        shutil.rmtree(self.training)


def model_facts(model: nn.Module) -> dict[str, Any]:
    """Return what ``provenance.json`` says about any model."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "ternary_parameters": sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, BitLinear)),
        "torch": torch.__version__,
    }
