"""Find the configuration of a model: a shipped one by name, a model folder, or a ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from device_models.errors import InputError, nearest
from device_models.loading import preset_folder


def model_names() -> list[str]:
    """Return the names of the shipped model configurations."""
    return sorted(path.stem for path in (preset_folder() / "models").glob("*.json"))


def read_model_config(name_or_path: str) -> tuple[str, dict[str, Any]]:
    """Read a model's configuration; no weights are needed.

    Args:
        name_or_path: Name of a shipped configuration, a model folder, or a JSON file.

    Returns:
        A name for people, and the content of the configuration.

    Raises:
        InputError: If there is none, or it is no JSON object.
    """
    path = Path(name_or_path)
    shipped = preset_folder() / "models" / f"{name_or_path}.json"
    if path.is_dir():
        path, name = path / "config.json", path.resolve().name
    elif path.is_file():
        name = path.resolve().parent.name if path.name == "config.json" else path.stem
    elif path.name == name_or_path and shipped.is_file():
        path, name = shipped, name_or_path
    else:
        raise InputError(
            "no such model", where=name_or_path,
            expected="a model folder, a config.json or a shipped model",
            remedy=nearest(name_or_path, model_names()),
        )  # fmt: skip
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no config.json in the folder", where=name_or_path, expected="a model folder") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", where=str(path), expected="JSON") from None
    if not isinstance(config, dict):
        raise InputError("no configuration", where=str(path), expected="a JSON object", received=type(config).__name__)
    return name, config
