"""Small things that the tests of fllm share: settings, models, cohorts."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

import fllm
from device_models import load_device
from fllm.data import write_cohort
from fllm.data.cdm_files import COLUMNS, OUTCOMES
from fllm.model.adapters import attach_adapter
from fllm.model.base import SHIPPED as NAME
from fllm.model.base import load_model
from fllm.model.identity import AdapterIdentity, BaseIdentity, DeviceIdentity
from fllm.sections import LoraSettings

SHIPPED = Path(fllm.__file__).parent / "model" / "assets" / NAME
IDENTITY = AdapterIdentity(
    base=BaseIdentity(name=NAME, sha256="0" * 64),
    device=DeviceIdentity(name="gaincell_28nm", file_sha256="1" * 64, overrides={}, token_period="10 us"),
    lora=LoraSettings(r=4),
)
"""What is written beside an adapter of a test that has no run."""
CANARY = "zebrafish"
"""A word that no synthetic note holds; put into every text, it must never come out."""

TINY: dict[str, Any] = {
    "num_cases": 60, "num_clients": 3, "num_rounds": 2, "local_steps": 1, "batch_size": 4, "threads": 1,
    "lora_baselines": [],
}  # fmt: skip
"""Settings of the smallest run that has everything a run has, but for baselines that must be trained."""

SHORT: dict[str, Any] = TINY | {"num_cases": 40, "num_rounds": 1, "max_tokens": 48}
"""Settings of a run that takes two seconds without its report: prompts lose most of their text."""

OUTCOME_NAMES = sorted(
    {name for file in OUTCOMES for name in (file, file.removesuffix(".csv"), *COLUMNS[file])} - {"hadm_id"}
)
"""Every file and column that tells the answer or its treatment."""

OUTCOME_CANARIES: dict[tuple[str, str], str] = {
    ("discharge_diagnosis.csv", "discharge_diagnosis"): "quokkaria",
    ("icd_diagnosis.csv", "icd_diagnosis"): "wombatine",
    ("discharge_procedures.csv", "discharge_procedure"): "numbatomy",
    ("icd_procedures.csv", "icd_code"): "bilbyZ9",
    ("icd_procedures.csv", "icd_title"): "potorooscopy",
}
"""Column of an outcome table -> a word in each of its cells; none of them may reach a model or a result."""

HIDDEN_CANARIES: dict[tuple[str, str], str] = {
    ("radiology_reports.csv", "note_id"): "dingonote",
    ("microbiology.csv", "valuestr"): "emucoccus",
    ("lab_test_mapping.csv", "category"): "kowariclass",
}
"""The same for columns that no prompt ever shows."""

EXAM_CANARY = "galahscan"
"""Stands in the name of each study, which only ``cues.studies: exam_name`` shows."""


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


def cohort_with_canaries(folder: Path, num_cases: int = 60, hospitals: int = 3) -> Path:
    """Write a cohort with the canary in every text, and a word of its own in each column that no model may see."""
    cohort_with_canary(folder, num_cases, hospitals)
    for (table, column), word in {**OUTCOME_CANARIES, **HIDDEN_CANARIES}.items():
        edit_column(folder / table, column, lambda cell, word=word: f"{cell} {word}")  # type: ignore[misc]
    edit_column(folder / "radiology_reports.csv", "exam_name", lambda cell: f"{cell} {EXAM_CANARY}")
    return folder


def edit_column(file: Path, column: str, edit: Callable[[str], str]) -> None:
    """Change every cell of one column of a CSV file."""
    with file.open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    at = header.index(column)
    rewrite(file, header, [[*row[:at], edit(row[at]), *row[at + 1 :]] for row in rows])


def rewrite(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV file."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def as_if_real(folder: Path) -> Path:
    """Renumber a synthetic cohort so that it counts as one of real patients: made-up numbers of MIMIC's range."""
    for name in (*COLUMNS, "pathology_ids.json", "hospital_ids.json"):
        text = (folder / name).read_text(encoding="utf-8")
        text = re.sub(r"\b9(\d{7})\b", r"2\1", text).replace("SYN-", "")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


CLASSES = ("calm", "storm", "thaw")


def table_of_texts(file: Path, rows: int = 60, word: str = CANARY) -> Path:
    """Write a CSV table of three classes, three clients and three parts, with a word in every text."""
    signs = {"calm": "still air", "storm": "high wind", "thaw": "wet snow"}
    found = []
    for row in range(rows):
        label = CLASSES[row % 3]
        part = "test" if row % 5 == 0 else "validation" if row % 5 == 1 else "train"
        text = f"Report {row}: {signs[label]} and {word} at the {'coast' if row % 2 else 'pass'}."
        found.append([text, label, f"station {row // 3 % 3}", part])
    rewrite(file, ["text", "label", "station", "part"], found)
    return file


def file_of_text(file: Path, paragraphs: int = 24, word: str = CANARY) -> Path:
    """Write a text of paragraphs of about 1500 characters, each of which becomes a passage."""
    lines = [
        " ".join(f"Line {line} of part {number} tells of {word} and rain." for line in range(40))
        for number in range(paragraphs)
    ]
    file.write_text("\n\n".join(lines), encoding="utf-8")
    return file
