"""Federated LoRA fine-tuning of language models on emulated in-memory hardware."""

import os

# Third parties read these when they are imported. Hospital networks must see no telemetry, update check or hub
# look-up that nobody asked for; a user who has set them keeps what was set.
for _name, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("HF_HUB_OFFLINE", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("TOKENIZERS_PARALLELISM", "false"),
    ("TRANSFORMERS_VERBOSITY", "error"),
):
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> object:
    """Import the public functions on first use: they pull in torch, transformers and Flower."""
    if name in ("run", "RunResult"):
        from fllm import runs

        return getattr(runs, name)
    if name in ("load_cohort", "Cohort"):
        from fllm import data

        return getattr(data, name)
    if name == "RunConfig":
        from fllm.config import RunConfig

        return RunConfig
    raise AttributeError(f"module 'fllm' has no attribute {name!r}")


__all__ = ["Cohort", "RunConfig", "RunResult", "load_cohort", "run"]
