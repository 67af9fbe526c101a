"""Registration of the sites' public keys at a running SuperLink."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from device_models import InputError
from fllm.deployment.control import RefusedCommand
from fllm.deployment.folders import NODE_KEYS_FOLDER
from fllm.deployment.settings import Federation
from fllm.deployment.submitting import control_of
from fllm.results import replace_file

REGISTERED = "registered.json"
_KNOWN = "already in use"


def register_sites(folder: Path, federation: Federation) -> Iterator[tuple[str, str]]:
    """Register the key of each site that is not registered yet.

    Args:
        folder: The server's folder.
        federation: Its settings.

    Yields:
        Name of a site, and what became of it.

    Raises:
        InputError: If there are no keys.
        RefusedCommand: If the SuperLink refuses for another reason than that it knows a key.
    """
    keys = sorted((folder / NODE_KEYS_FOLDER).glob("*.pub"))
    if not federation.tls or not keys:
        raise InputError("sites have no keys", where=str(folder), remedy="make the federation with --tls")
    control, known = control_of(folder, federation), registered(folder)
    for key in keys:
        try:
            known[key.stem] = control.register(key)
        except RefusedCommand as problem:
            if _KNOWN not in str(problem):
                raise
            yield key.stem, "is registered already"
        else:
            replace_file(folder / NODE_KEYS_FOLDER / REGISTERED, json.dumps(known, indent=1) + "\n")
            yield key.stem, "registered"


def registered(folder: Path) -> dict[str, str]:
    """Return Flower's number of each site's node, by the site's name."""
    file = folder / NODE_KEYS_FOLDER / REGISTERED
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
