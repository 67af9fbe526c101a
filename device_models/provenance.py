"""Where a number comes from: each leaf of a device file carries its source, and every report prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from device_models.errors import InputError, nearest
from device_models.strict_yaml import parse_yaml

Kind = Literal["measured", "simulated", "derived", "assumed"]
KINDS: tuple[Kind, ...] = ("assumed", "derived", "simulated", "measured")
"""Kinds of numbers, the weakest first: a price is as sure as the weakest that it is made of."""
USER = "user"
"""Source of a value that was given on the command line or in code instead of in a device file."""

_LEAF_KEYS = {"value", "source", "where", "kind", "range", "note"}


@dataclass(frozen=True)
class Provenance:
    """One number of a device file as it was written, with its source.

    Attributes:
        text: The value as written in the file, for example ``"5 ms"``.
        source: Key of ``references.yaml``, or ``"user"``.
        where: Page, equation, figure or file of the source.
        kind: How the source got it.
        range: Lowest and highest plausible value as written, where the source gives them.
        note: What a reader must know; required for assumed values.
    """

    text: str
    source: str
    where: str
    kind: Kind
    range: tuple[str, str] | None = None
    note: str | None = None


@cache
def references() -> Mapping[str, str]:
    """Return every citation we use, by key."""
    text = (files("device_models") / "references.yaml").read_text(encoding="utf-8")
    return {key: " ".join(str(citation).split()) for key, citation in parse_yaml(text, "references.yaml").items()}


def is_leaf(node: object) -> bool:
    """Say whether a node of a device file is a number with its source rather than a section."""
    return isinstance(node, Mapping) and "value" in node


def read_provenance(leaf: Mapping[str, object], where: str) -> Provenance:
    """Check one leaf ``{value, source, where, kind, range?, note?}`` of a device file.

    Raises:
        InputError: If a key is unknown or missing, the kind or the source is unknown, or an assumption has no note.
    """
    for key in leaf:
        if key not in _LEAF_KEYS:
            raise InputError("unknown key", where=f"{where}.{key}", remedy=nearest(str(key), _LEAF_KEYS))
    for key in ("source", "where", "kind"):
        if not isinstance(leaf.get(key), str) or not str(leaf[key]).strip():
            raise InputError(f"{key} is missing", where=where, expected=f"a text under `{key}:` beside the value")
    kind, source, note = leaf["kind"], str(leaf["source"]), leaf.get("note")
    if kind not in get_args(Kind):
        raise InputError("unknown kind", where=f"{where}.kind", expected=" | ".join(get_args(Kind)), received=kind)
    if source != USER and source not in references():
        raise InputError(
            "unknown source", where=f"{where}.source", received=source, remedy=nearest(source, [*references(), USER])
        )
    if kind == "assumed" and not note:
        raise InputError("an assumed value has no note", where=where, remedy="say under `note:` why it was chosen")
    bounds = leaf.get("range")
    if bounds is not None and (not isinstance(bounds, list) or len(bounds) != 2):
        raise InputError("wrong range", where=f"{where}.range", expected="[lowest, highest]", received=bounds)
    return Provenance(
        text=written(leaf["value"]),
        source=source,
        where=str(leaf["where"]),
        kind=kind,  # type: ignore[arg-type]  # checked against Kind above
        range=(written(bounds[0]), written(bounds[1])) if bounds else None,
        note=" ".join(str(note).split()) if note else None,
    )


def written(value: object) -> str:
    """Write a value of a device file as a person reads it."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return "[" + ", ".join(written(item) for item in value) + "]"
    return str(value)
