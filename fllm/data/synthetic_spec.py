"""The numbers and the wording of the synthetic cohort, read once from the package's own YAML files."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

Table = dict[str, Any]


def _asset(name: str) -> Table:
    text = resources.files("fllm.data").joinpath("assets", name).read_text(encoding="utf-8")
    table: Table = yaml.safe_load(text)
    return table


@lru_cache(maxsize=1)
def specification() -> Table:
    """Return the probabilities, laboratory tests and report plan of ``assets/synthetic_cdm_spec.yaml``."""
    return _asset("synthetic_cdm_spec.yaml")


@lru_cache(maxsize=1)
def phrases() -> Table:
    """Return the phrase banks of ``assets/synthetic_cdm_phrases.yaml``."""
    return _asset("synthetic_cdm_phrases.yaml")


@lru_cache(maxsize=1)
def difficulty() -> Table:
    """Return the measured difficulty of the standard cohort, ``assets/synthetic_difficulty.yaml``."""
    return _asset("synthetic_difficulty.yaml")
