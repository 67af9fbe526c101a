"""Checkpoints of causal language models with ternary linear layers: loading any layout, writing the packed one."""

from fllm.model.checkpoints.causal_lm import LARGE, LoadedCheckpoint, load_causal_lm
from fllm.model.checkpoints.conversion import Conversion
from fllm.model.checkpoints.files import INDEX, WEIGHTS
from fllm.model.checkpoints.folders import Packed, pack_folder
from fllm.model.checkpoints.scalers import LINEAR, SCALERS, read_scalers, set_scalers
from fllm.model.checkpoints.writing import write_packed

__all__ = [
    "INDEX",
    "LARGE",
    "LINEAR",
    "SCALERS",
    "WEIGHTS",
    "Conversion",
    "LoadedCheckpoint",
    "Packed",
    "load_causal_lm",
    "pack_folder",
    "read_scalers",
    "set_scalers",
    "write_packed",
]
