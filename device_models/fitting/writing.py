"""A base device file with fitted leaves in the place of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from device_models.errors import InputError
from device_models.fitting.result import FitResult, Leaf
from device_models.loading import load_device, preset_folder, read_device_file
from device_models.provenance import USER
from device_models.schema import DeviceModel


def write_device(result: FitResult, base: str | Path, out: str | Path) -> DeviceModel:
    """Write a complete device file: the base with the fitted leaves; its comments are lost, its other leaves are not.

    Args:
        result: From a fit.
        base: Path of a device file, or the name of a shipped one.
        out: New file.

    Returns:
        The written device, loaded.

    Raises:
        InputError: If the base is not valid, ``out`` exists or cannot be written, or the outcome is no valid device.
    """
    load_device(base)
    path, out = Path(base), Path(out)
    tree = {"schema_version": 1} | read_device_file(path if path.is_file() else preset_folder() / f"{base}.yaml")[0]
    text = _document(merged(tree, result), f"fitted to {result.file} over {path.stem}")
    try:
        with out.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise InputError("the file exists", where=str(out), remedy="name a new one; nothing is overwritten") from None
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(out), remedy="check the folder") from None
    try:
        return load_device(out)
    except InputError:
        out.unlink()
        raise


def merged(tree: Mapping[str, Any], result: FitResult) -> dict[str, Any]:
    """Return the tree of a device file with a fit's leaves put in and those that lost their meaning taken out."""
    new = {key: dict(part) if isinstance(part, Mapping) else part for key, part in tree.items()}
    new["title"] = f"{tree.get('title', 'Device')}; {result.kind} fitted to {result.file}"
    for key in result.obsolete:
        section, name = key.split(".")
        new.get(section, {}).pop(name, None)
    for key, leaf in result.leaves.items():
        section, name = key.split(".")
        new.setdefault(section, {})[name] = _as_tree(leaf, result.file)
    return new


def _as_tree(leaf: Leaf, file: str) -> dict[str, Any]:
    found = {"value": leaf.value, "source": USER, "where": file, "kind": leaf.kind}
    return found | ({"range": list(leaf.range)} if leaf.range else {}) | {"note": leaf.note}


def _document(tree: Mapping[str, Any], made: str) -> str:
    """Write a device file the way the shipped ones look, in the order of the tree: the same text every time."""
    lines = [f"# A device {made}; written by `fllm device fit`."]
    for key, part in tree.items():
        if not isinstance(part, Mapping):
            lines.append(f"{key}: {_scalar(part)}")
            continue
        lines += ["", f"{key}:"]
        for name, leaf in part.items():
            shown = [f"{field}: {_scalar(value)}" for field, value in leaf.items() if field != "note"]
            note = f",\n      note: {_scalar(leaf['note'])}" if "note" in leaf else ""
            lines += [f"  {name}:", f"    {{{', '.join(shown)}{note}}}"]
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    """Write a value as JSON, which is YAML 1.2 and leaves nothing to guess: ``"no"`` and ``"1e-4"`` stay strings."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
