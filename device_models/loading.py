"""Device files to :class:`DeviceModel`: strict, typed, each error one line with its key path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from device_models.consistency import check_together, taken_along
from device_models.errors import InputError, nearest
from device_models.fields import Quantity
from device_models.provenance import USER, Provenance, is_leaf, read_provenance, written
from device_models.quantities import parse_quantity
from device_models.schema import COEFFICIENT_UNITS, DeviceModel
from device_models.strict_yaml import parse_yaml

_SCHEMA_VERSION = 1
_HEADER = {"schema_version", "title", "include"}
_SECTIONS = {f.name for f in fields(DeviceModel)} - {"name", "title", "provenance", "file_sha256"}


def preset_folder() -> Path:
    """Return the folder of the shipped device files (inside the wheel, or ``configs/`` of a checkout)."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def preset_names() -> list[str]:
    """Return the names of the shipped device files."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def load_device(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> DeviceModel:
    """Load a device model.

    Args:
        name_or_path: Path of a device file, or the name of a shipped preset.
        overrides: New values by dotted key, written as in the file: ``{"readout.bits": 6, "retention.tau": "1 ms"}``.

    Returns:
        The device, with an override's provenance marked as the user's assumption.

    Raises:
        InputError: If the file is absent or not valid: unknown or missing key, wrong unit, bare number, value out of
            range, number without source.
    """
    path = _find(name_or_path)
    tree, digest = read_device_file(path)
    overrides = overrides or {}
    for key, value in overrides.items():
        for gone in taken_along(key, value):
            _drop(tree, gone)
    for key, value in overrides.items():
        _override(tree, key, value, where=str(path))
    values, provenance = read_leaves(tree, str(path))
    device = _validate({"name": path.stem, "title": str(tree.get("title", path.stem)), **values}, str(path))
    check_together(device, str(path))
    for key, found in provenance.items():
        section, _, name = key.partition(".")
        check_range(found, getattr(getattr(device, section), name), key_units()[key], f"{path}: {key}")
    return replace(device, provenance=provenance, file_sha256=digest)


def read_device_file(path: Path) -> tuple[dict[str, Any], str]:
    """Read a device file together with the parts that it includes; a leaf of the file itself wins.

    Returns:
        The sections with their leaves, without ``include``, and a digest over the bytes of all files read.

    Raises:
        InputError: If a file cannot be read, is no device file of this version or has an unknown section.
    """
    tree, content = _read_one(path)
    digest = hashlib.sha256(content)
    names = tree.pop("include", [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(n, str) and re.fullmatch(r"[\w.+-]+", n) for n in names):
        raise InputError(
            "wrong include", where=f"{path}: include", expected="the name of a part, or a list", received=names
        )
    for name in names:
        part_path = _part(name, path)
        part, content = _read_one(part_path)
        digest.update(content)
        if "include" in part:
            raise InputError("a part includes another", where=str(part_path), expected="no include in a part")
        for section, keys in part.items():
            if section in _HEADER:
                continue
            if not isinstance(keys, dict):
                raise InputError("not a section", where=f"{part_path}: {section}", expected="keys below it")
            own = tree.setdefault(section, {})
            if isinstance(own, dict):
                tree[section] = {**keys, **own}
    return tree, digest.hexdigest()


def _read_one(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read ({type(error).__name__})", where=str(path), expected="a device file"
        ) from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict) or tree.get("schema_version") != _SCHEMA_VERSION:
        raise InputError(
            "not a device file of this version",
            where=str(path),
            expected=f"schema_version: {_SCHEMA_VERSION} at the top",
            received=tree.get("schema_version") if isinstance(tree, dict) else type(tree).__name__,
        )
    for key in tree:
        if key not in _SECTIONS | _HEADER:
            raise InputError("unknown key", where=f"{path}: {key}", remedy=nearest(str(key), _SECTIONS))
    return tree, content


def _part(name: str, device: Path) -> Path:
    """Find an included part: a file beside the device file, or a shipped one."""
    beside, shipped = device.parent / f"{name}.yaml", preset_folder() / "parts" / f"{name}.yaml"
    for path in (beside, shipped):
        if path.is_file():
            return path
    known = sorted(path.stem for path in shipped.parent.glob("*.yaml"))
    raise InputError(
        "no such part", where=f"{device}: include", expected=f"a shipped part or {beside.name} beside the device file",
        received=name, remedy=nearest(name, known),
    )  # fmt: skip


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    preset = preset_folder() / f"{name_or_path}.yaml"
    if path.suffix == "" and path.name == str(name_or_path) and preset.is_file():
        return preset
    raise InputError(
        "no such device file",
        where=str(name_or_path),
        expected="the path of a device file or the name of a shipped one",
        remedy=nearest(path.stem, preset_names()),
    )


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for section, keys in tree.items():
        if section not in _HEADER and isinstance(keys, dict):
            for key, leaf in keys.items():
                yield section, str(key), leaf


def read_leaves(tree: Mapping[str, Any], where: str) -> tuple[dict[str, dict[str, Any]], dict[str, Provenance]]:
    """Part the values of a file from their sources."""
    values: dict[str, dict[str, Any]] = {}
    provenance: dict[str, Provenance] = {}
    for section in tree:
        if section not in _HEADER and not isinstance(tree[section], dict):
            raise InputError("not a section", where=f"{where}: {section}", expected="keys below it")
    for section, key, leaf in _leaves(tree):
        path = f"{section}.{key}"
        if not is_leaf(leaf):
            raise InputError(
                "a value without its source",
                where=f"{where}: {path}",
                expected="{value: ..., source: ..., where: ..., kind: ...}",
                received=leaf,
            )
        provenance[path] = read_provenance(leaf, f"{where}: {path}")
        value = leaf["value"]
        values.setdefault(section, {})[key] = (
            _coefficients(value, f"{where}: {path}") if path == "cell.coefficients" else value
        )
    return values, provenance


def _coefficients(value: object, where: str) -> tuple[float, ...]:
    """Read the cell polynomial, whose coefficients differ in unit."""
    if not isinstance(value, list) or len(value) not in (1, 4):
        raise InputError("wrong coefficients", where=where, expected="one (linear) or four (cubic) quantities")
    units = COEFFICIENT_UNITS if len(value) == 4 else COEFFICIENT_UNITS[1:2]
    try:
        return tuple(parse_quantity(text, unit) for text, unit in zip(value, units, strict=True))
    except ValueError as error:
        raise InputError(str(error), where=where, received=value) from None


def _drop(tree: dict[str, Any], dotted: str) -> None:
    section, _, key = dotted.partition(".")
    if isinstance(tree.get(section), dict):
        tree[section].pop(key, None)


def _override(tree: dict[str, Any], dotted: str, value: object, *, where: str) -> None:
    section, _, key = dotted.partition(".")
    known = {f"{s}.{k}" for s, k, _ in _leaves(tree)} | set(key_units())
    if dotted not in known:
        namesakes = sorted(path for path in known if path.endswith(f".{dotted}"))
        remedy = f"did you mean {' or '.join(namesakes)}?" if namesakes else nearest(dotted, known)
        raise InputError("unknown device key", where=f"{where}: {dotted}", remedy=remedy)
    keys = tree.setdefault(section, {})
    if not isinstance(keys, dict):
        return  # read_leaves tells the user that this is no section
    leaf = keys.get(key)
    old = leaf["value"] if isinstance(leaf, dict) and is_leaf(leaf) else leaf
    keys[key] = {
        "value": value,
        "source": USER,
        "where": "override",
        "kind": "assumed",
        "note": f"set by the user; the file says {written(old)}",
    }


def check_range(found: Provenance, value: object, unit: str | None, where: str) -> None:
    """Check that the range of a number, if it has one, is in its unit and in order.

    A value outside of it, as after a change of the value alone, widens the range where it acts.

    Raises:
        InputError: If it is not.
    """
    if found.range is None or isinstance(value, bool) or not isinstance(value, int | float):
        return
    try:
        low, high = range_ends(found, unit)
        in_order = low < high
    except ValueError:
        in_order = False
    if not in_order:
        expected = "[lowest, highest]" + (f" in {unit}" if unit else ", numbers")
        raise InputError("wrong range", where=f"{where}.range", expected=expected, received=" to ".join(found.range))


def range_ends(found: Provenance, unit: str | None) -> tuple[float, float]:
    """Return both ends of a number's range in an SI unit, None for plain numbers; ValueError where they are not."""
    assert found.range is not None
    low, high = (float(text) if unit is None else parse_quantity(text, unit) for text in found.range)
    return low, high


def units_of(kind: type) -> dict[str, str | None]:
    """Return the SI unit of each field of a section; None for what has none."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: _unit(hints[f.name]) for f in fields(kind)}


@cache
def _sections() -> dict[str, type]:
    hints = get_type_hints(DeviceModel)
    return {name: hints[name] for name in _SECTIONS}


@cache
def key_units() -> Mapping[str, str | None]:
    """Return every key of a device file, in the schema's order, with the SI unit of its value.

    None for words, switches, whole numbers and factors, and for the cell polynomial, whose units differ.
    """
    units: dict[str, str | None] = {}
    for name in (f.name for f in fields(DeviceModel) if f.name in _SECTIONS):
        units |= {f"{name}.{key}": unit for key, unit in units_of(_sections()[name]).items()}
    return units


def _unit(hint: Any) -> str | None:
    """Find the quantity of an annotation such as ``Annotated[float, Quantity("s")] | None``."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        unit = part.unit if isinstance(part, Quantity) else _unit(part)
        if unit is not None:
            return unit
    return None


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _validate(values: dict[str, Any], where: str) -> DeviceModel:
    from pydantic import ValidationError

    try:
        return _adapter(DeviceModel).validate_python(values)
    except ValidationError as error:
        raise _first_problem(error, where) from None


def validated(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Make one section of a file into its dataclass; raises InputError with the first problem."""
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = str(problem["loc"][0]) if problem["loc"] else ""
        raise _in_one_line(problem, f"{where}.{key}", key, [f.name for f in fields(kind)]) from None


def _first_problem(error: Any, where: str) -> InputError:
    """Turn pydantic's first finding into our one line."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"] if not str(part).startswith("function-plain")]
    section, key = location[0], location[1] if len(location) > 1 else None
    path = f"{section}.{key}" if key else section
    place = f"{where}: {path}"
    known = [f.name for f in fields(_sections()[section])] if key and section in _SECTIONS else sorted(_SECTIONS)
    return _in_one_line(problem, place, location[-1], known)


def _in_one_line(problem: Mapping[str, Any], where: str, key: str, known: list[str]) -> InputError:
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return InputError("unknown key", where=where, remedy=nearest(key, known))
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return InputError(
            "missing", where=where, expected="a value with its source", remedy="see configs/ for an example"
        )
    return InputError(problem["msg"].removeprefix("Value error, "), where=where, received=problem["input"])
