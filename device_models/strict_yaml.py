"""YAML read as version 1.2: what a physicist types is what the program reads.

PyYAML alone reads ``1e-4`` as a string, ``no`` as False, ``12:30:00`` as a number, and keeps the last of duplicate
keys without a word. The loader here reads floats, booleans and integers by the 1.2 core schema and refuses duplicates.
"""

from __future__ import annotations

import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from device_models.errors import InputError


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and an error on duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_StrictLoader.yaml_implicit_resolvers.setdefault("", []).append(("tag:yaml.org,2002:null", re.compile(r"^$")))


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key that is no word", key_node.start_mark)
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _decimal_integer(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # PyYAML reads 010 as 8


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _decimal_integer)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; a text that was parsed before is not parsed again.

    Raises:
        InputError: If it is no valid YAML or repeats a key.
    """
    return deepcopy(_parsed(text, where))


@lru_cache(maxsize=64)  # each point of a sweep loads its device, nearly all of which is parsing
def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f"{where}, line {error.problem_mark.line + 1}" if error.problem_mark else where
        raise InputError(f"not valid YAML: {error.problem}", where=line, remedy="correct the file") from None
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {error}", where=where, remedy="correct the file") from None
    except (AttributeError, LookupError, RecursionError, ValueError):  # explicit tags that do not fit, endless nesting
        raise InputError(
            "not valid YAML: a value does not fit its tag", where=where, remedy="correct the file"
        ) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: If the file is absent, unreadable, not UTF-8, or no valid YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read ({type(error).__name__})", where=str(path), expected="a UTF-8 text file"
        ) from None
    return parse_yaml(text, str(path))
