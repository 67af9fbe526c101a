"""What an adapter belongs to, in a file beside it: its base model, the device it was trained on, its settings.

Light: the command line reads it before torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from device_models import InputError
from fllm.config import RunConfig
from fllm.sections import LoraSettings

FILE = "fllm_adapter.json"
WEIGHTS = "adapter_model.safetensors"
SCALERS = "gain_cell.safetensors"
"""Range scalers that were trained with the adapter: a file of their own, so that PEFT knows every name in its own."""
_INSIDE_A_RUN = "adapter"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseIdentity(_Strict):
    """The base model of an adapter: its name, and the digest over its files."""

    name: str
    sha256: str


class DeviceIdentity(_Strict):
    """The device that an adapter was trained on: its file, what was changed of it, and the token period as given."""

    name: str
    file_sha256: str
    overrides: dict[str, Any]
    token_period: str


class AdapterIdentity(_Strict):
    """Content of :data:`FILE`."""

    schema_version: int = 1
    base: BaseIdentity
    device: DeviceIdentity
    lora: LoraSettings


def write_identity(folder: Path, identity: AdapterIdentity) -> None:
    """Write the file into the folder of an adapter; equal identities give equal bytes."""
    text = json.dumps(identity.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8", newline="\n")


def read_identity(folder: Path) -> AdapterIdentity:
    """Read the file of an adapter.

    Raises:
        InputError: If it is missing or not of this form.
    """
    file = folder / FILE
    try:
        found = AdapterIdentity.model_validate_json(file.read_bytes())
    except OSError:
        raise InputError(
            "no adapter that a run saved",
            where=str(folder),
            expected=f"{FILE} beside {WEIGHTS}",
            remedy="check --adapter",
        ) from None
    except ValidationError as error:
        place = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise InputError("not the identity of an adapter", where=f"{file}: {place}" if place else str(file)) from None
    if found.schema_version != 1:
        raise InputError("unknown schema_version", where=str(file), expected="1", received=found.schema_version)
    return found


def adapter_folder(given: str | Path) -> Path:
    """Return the folder of an adapter, which may be given by the folder of its run."""
    folder = Path(given)
    if not folder.is_dir():
        raise InputError(
            "no such adapter folder", where=str(folder), expected="a folder with an adapter", remedy="check --adapter"
        )
    inside = folder / _INSIDE_A_RUN
    return inside if (inside / FILE).is_file() and not (folder / FILE).is_file() else folder


def with_settings_of_adapter(config: RunConfig) -> RunConfig:
    """Return a configuration whose ``lora`` is that of its adapter; unchanged without one.

    Raises:
        InputError: If the adapter cannot be read, or a setting that was given explicitly is not the adapter's.
    """
    if config.adapter is None:
        return config
    folder = adapter_folder(config.adapter)
    lora = read_identity(folder).lora
    given: Mapping[str, Any] = config.lora.model_dump(include=config.lora.model_fields_set)
    for key, value in given.items() if "lora" in config.model_fields_set else ():
        own = getattr(lora, key)
        if value != own:
            raise InputError(
                f"contradicts the adapter {folder}", where=f"lora.{key}", expected=repr(own), received=value,
                remedy="leave it out: an adapter brings its own settings",
            )  # fmt: skip
    return config.model_copy(update={"lora": lora})
