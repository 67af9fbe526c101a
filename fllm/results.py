"""The record of a run or a sweep, ``result.json``, and its tables: written atomically, read strictly.

All are functions of the result alone. ``rounds.csv`` and ``clients.csv`` hold no wall-clock time and no date, so that
two runs with one seed give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from device_models.errors import InputError

SCHEMA_VERSION = 1

SWEEP = "sweep"
"""``kind`` of the result of a sweep; that of a run has none."""

_UNFINISHED = ".tmp"
_REQUIRED: dict[str, type] = {
    "status": str,
    "name": str,
    "config": dict,
    "data": dict,
    "model": dict,
    "device": dict,
}
_RESULT = "the result.json of a run or a sweep"
_LISTS = {None: ("rounds",), SWEEP: ("keys", "points", "rows", "adapters")}

# Column of rounds.csv -> where its number lies in a round. Ratios and counts have no unit; all else carries it.
# energy_j is that of forward passes; three more are all of training, in three places that are not one system.
_ROUND_PATHS: dict[str, tuple[str, ...]] = {
    "round": ("round",),
    "clients": ("clients",),
    "train_loss_nat": ("train_loss",),
    "accuracy_ideal": ("ideal", "accuracy"),
    "macro_f1_ideal": ("ideal", "macro_f1"),
    "perplexity_ideal": ("ideal", "perplexity"),
    "accuracy_hardware_mean": ("hardware", "accuracy", "mean"),
    "accuracy_hardware_std": ("hardware", "accuracy", "std"),
    "macro_f1_hardware_mean": ("hardware", "macro_f1", "mean"),
    "macro_f1_hardware_std": ("hardware", "macro_f1", "std"),
    "perplexity_hardware_mean": ("hardware", "perplexity", "mean"),
    "perplexity_hardware_std": ("hardware", "perplexity", "std"),
    "dies": ("hardware", "accuracy", "dies"),
    "uplink_bytes": ("uplink_bytes",),
    "downlink_bytes": ("downlink_bytes",),
    "tokens": ("tokens",),
    "energy_j": ("energy_j", "total"),
    "energy_per_token_j": ("energy_per_token_j",),
    "latency_per_token_s": ("latency_per_token_s",),
    "energy_arrays_j": ("training", "lines_j", "arrays", "nominal"),
    "energy_digital_accelerator_j": ("training", "lines_j", "digital accelerator", "nominal"),
    "energy_network_j": ("training", "lines_j", "network", "nominal"),
    "aggregation_error": ("aggregation_error",),
}

_PRIVACY_PATHS: dict[str, tuple[str, ...]] = {"epsilon": ("privacy", "epsilon"), "delta": ("privacy", "delta")}
"""Columns of a run with differential privacy alone."""

ROUND_COLUMNS: tuple[str, ...] = tuple(_ROUND_PATHS)
CLIENT_COLUMNS = (
    "round", "client", "status", "reason", "train_loss", "uplink_bytes", "downlink_bytes", "update_norm",
    "update_cosine", "outlier",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def value_at(record: Mapping[str, Any], *path: str) -> Any:
    """Follow keys into nested mappings; None when one of them is absent or null."""
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def write_result(path: Path | str, result: Mapping[str, Any]) -> None:
    """Write ``result.json`` atomically: a reader sees the old file or the new one, never half of one.

    Keys are sorted, so that equal results are equal files.

    Args:
        path: Where to write; its folder exists.
        result: What to write; plain JSON values.

    Raises:
        ValueError: If a number is NaN or infinite (write null instead).
    """
    text = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    replace_file(Path(path), f"{text}\n")


def read_result(path: Path | str) -> dict[str, Any]:
    """Read the ``result.json`` of a run or a sweep.

    Raises:
        InputError: If the file cannot be read, is not JSON, has another schema version or lacks a required key.
    """
    where = str(path)
    result = _parse(_text(Path(path)), where)
    if not isinstance(result, dict):
        raise InputError("not a result", where=where, expected="a JSON object", received=type(result).__name__)
    version = result.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise InputError(
            "unknown schema_version",
            where=where,
            expected=str(SCHEMA_VERSION),
            received=version,
            remedy="run again with this version of fllm, or read it with the version that wrote it",
        )
    if result.get("kind") not in _LISTS:
        raise InputError("unknown kind", where=where, expected="a run or a sweep", received=result["kind"])
    lists = dict.fromkeys(_LISTS[result.get("kind")], list)
    for key, kind in {**_REQUIRED, **lists}.items():
        if not isinstance(result.get(key), kind):
            received = type(result[key]).__name__ if key in result else "no such key"
            expected = {"str": "a string", "dict": "an object", "list": "a list"}[kind.__name__]
            raise InputError(f"bad value of {key!r}", where=where, expected=expected, received=received)
    return result


def write_rounds_csv(path: Path | str, result: Mapping[str, Any]) -> None:
    """Write ``rounds.csv`` atomically."""
    replace_file(Path(path), rounds_csv(result))


def rounds_csv(result: Mapping[str, Any]) -> str:
    """Return one row per round, columns :data:`ROUND_COLUMNS`; a number that is not known is an empty cell.

    A run with differential privacy has two columns more, ``epsilon`` and ``delta``.
    """
    private = any(row.get("privacy") for row in result["rounds"])
    paths = _ROUND_PATHS | (_PRIVACY_PATHS if private else {})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(paths)
    for row in result["rounds"]:
        writer.writerow([value_at(row, *keys) for keys in paths.values()])
    return text.getvalue()


def write_clients_csv(path: Path | str, result: Mapping[str, Any]) -> None:
    """Write ``clients.csv`` atomically, if any client was asked for anything."""
    text = clients_csv(result)
    if text.count("\n") > 1:
        replace_file(Path(path), text)


def clients_csv(result: Mapping[str, Any]) -> str:
    """Return one row per round and client that was asked, columns :data:`CLIENT_COLUMNS`; what is not known is empty.

    A client is known by its number, as in ``result.json``.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CLIENT_COLUMNS)
    for row in result["rounds"]:
        for one in row.get("participants") or ():
            status = "used" if one["reason"] is None else "left out"
            found = one | {"round": row["round"], "status": status}
            writer.writerow([harmless(found[column]) for column in CLIENT_COLUMNS])
    return text.getvalue()


def harmless(cell: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would take for a formula; reasons may come from elsewhere."""
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not is_number(cell):
        return f"'{cell}"
    return cell


def is_number(text: str) -> bool:
    """Tell whether a text is one number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(path: Path) -> str:
    """Read a text file, any failure as one InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected=_RESULT, remedy="check the path") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"cannot be read ({reason})", where=str(path), expected=_RESULT, remedy="check the path"
        ) from None
    except UnicodeDecodeError:
        raise InputError("not a text file", where=str(path), expected="JSON in UTF-8") from None


def _parse(text: str, where: str) -> Any:
    """Parse strict JSON: NaN and Infinity are refused."""

    def refuse(constant: str) -> NoReturn:
        raise InputError("not a JSON number", where=where, expected="a finite number or null", received=constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}, column {error.colno}"
        raise InputError(f"not JSON ({error.msg})", where=place, expected=_RESULT) from None
    except RecursionError:
        raise InputError("nested too deeply", where=where, expected=_RESULT) from None


def replace_file(path: Path, text: str) -> None:
    """Write beside the target, flush to disk, then put it in the target's place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes the file private to its owner
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove files that a process was writing into a folder when it was killed; none other may be writing there."""
    for leftover in folder.glob(f".*{_UNFINISHED}"):
        leftover.unlink(missing_ok=True)
