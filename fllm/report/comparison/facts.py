"""What runs, or sweeps, have in common and where they differ: settings, device numbers, data, model, software.

Of several results the first is the one that the others are compared with; their order is the reader's and is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_models.loading import key_units
from device_models.quantities import parse_quantity
from fllm.report.answer import device_entries
from fllm.report.formatting import NOTHING, plural
from fllm.results import value_at

Result = Mapping[str, Any]
Results = Sequence[Result]

_ORIGINS: dict[str, tuple[str, ...]] = {
    "data": ("sha256", "source", "synthetic", "num_cases", "num_train", "num_test", "truncated_prompts",
             "tokens_per_prompt"),
    "model": (),
    "device": ("name", "title", "file_sha256", "activation"),
    "network": ("name", "title"),
    "environment": (),
}  # fmt: skip
_LONGEST_HASH = 16  # characters that tell two hashes apart at a glance


@dataclass(frozen=True)
class Differences:
    """Values by key, those that are not the same everywhere, and how many are.

    Attributes:
        values: Key to one value per result, in the order of the results; None where a result has none.
        equal: Number of keys whose values are the same in all results.
    """

    values: Mapping[str, tuple[Any, ...]]
    equal: int

    @property
    def total(self) -> int:
        """Number of all keys."""
        return len(self.values) + self.equal


def distinct(names: Sequence[str], most: int = 60) -> list[str]:
    """Return names on one line each, printable, cut to so many characters, and no two equal.

    Args:
        names: As given; equal ones get a number behind them.
        most: Longest name.
    """
    plain = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in names]
    cut = [name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}" for name in plain]
    made: list[str] = []
    for name in (name or "unnamed" for name in cut):
        number, shown = 1, name
        while shown in made or (number == 1 and cut.count(name) > 1):
            shown = f"{name} ({number})"
            number += 1
        made.append(shown)
    return made


def settings_differences(results: Results) -> Differences:
    """Compare configurations by dotted key; a sweep's own settings stand under ``sweep``."""
    return _compare([flatten({**(result.get("config") or {}), **_of_sweep(result)}) for result in results])


def origin_differences(results: Results) -> Differences:
    """Compare data, model, device file, network and software, hashes included."""
    return _compare([_origins(result) for result in results])


def device_differences(results: Results) -> Differences:
    """Compare the numbers of the devices: value in SI, kind and range; the values are the entries themselves."""
    entries = [device_entries(result) for result in results]
    keys = sorted({key for found in entries for key in found})
    differing = {}
    for key in keys:
        found = tuple(of_one.get(key) for of_one in entries)
        if len({_canonical(key, entry) for entry in found}) > 1:
            differing[key] = found
    return Differences(differing, len(keys) - len(differing))


def same_cases(one: Result, other: Result) -> bool:
    """Whether two results were tested on the same cases: the same data, cut by the same rule, seed and fraction."""
    what = (("data", "sha256"), ("data", "num_test"), ("config", "seed"), ("config", "test_fraction"))
    known = value_at(one, "data", "sha256") is not None and _cut(one) == _cut(other)
    return known and all(value_at(one, *path) == value_at(other, *path) for path in what) and (
        one.get("seeds") == other.get("seeds") if one.get("kind") == "sweep" else True
    )  # fmt: skip


def _cut(result: Result) -> tuple[Any, ...]:
    """How the test cases were chosen; older results know one way."""
    name = value_at(result, "config", "split") or "holdout"
    keys = ("fold", "num_folds") if name == "kfold" else ("split_column",) if name == "column" else ()
    return name, *(value_at(result, "config", key) for key in keys)


def same_line(results: Results, settings: Differences, device: Differences, origins: Differences) -> str:
    """Say in one sentence what is the same everywhere."""
    parts = []
    if _equal(results, "data", "sha256"):
        parts.append(f"the data and their {plural(results[0]['data'].get('num_test') or 0, 'test case')}"
                     if all(same_cases(results[0], other) for other in results[1:]) else "the data")  # fmt: skip
    if _equal(results, "model", "sha256"):
        parts.append(f"the model ({results[0]['model'].get('name') or 'unnamed'})")
    if device.total:
        parts.append(_all_or_some(device, "device number"))
    if settings.total:
        parts.append(_all_or_some(settings, "setting"))
    if not any(key.startswith("environment.") for key in origins.values) and results[0].get("environment"):
        parts.append("the software")
    if not parts:
        return "Nothing is the same in all of them."
    return f"The same in all: {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}."


def cautions(results: Results, names: Sequence[str]) -> list[tuple[str, str]]:
    """Warn of what makes the results hard to compare, as (two words, sentence)."""
    others = results[1:]
    found = []
    if not _equal(results, "data", "sha256"):
        found.append(("Different data.", f"{_groups(results, names, 'data', 'sha256')} were tested on different cases: "
                      "their accuracies, macro-F1 and perplexities are not comparable."))  # fmt: skip
    elif not all(same_cases(results[0], other) for other in others):
        found.append(("Different test cases.", "The data are the same, but the cases held out for the test are not: "
                      "a difference in accuracy is also one between two sets of cases."))  # fmt: skip
    if not _equal(results, "config", "seed"):
        found.append(("Different seeds.", "Split, adapters, batches and chips follow from the seed, and made-up "
                      "patients too: every difference holds its luck, whatever else was changed."))  # fmt: skip
    if not _equal(results, "model", "sha256"):
        found.append(("Different models.", "Perplexities compare only where the tokenizers are the same, and energy "
                      "per token is that of another network."))  # fmt: skip
    if not all(_equal(results, "config", key) for key in ("fields", "max_tokens", "field_tokens", "cues")):
        found.append(("Different prompts.", "The models read different parts or lengths of the notes: energy per token "
                      "and perplexity are those of different texts."))  # fmt: skip
    if not _equal(results, "environment", "packages", "fllm"):
        found.append(("Different versions of this program.", "Physics and prices may have changed between them; its "
                      "CHANGELOG lists numbers that moved."))  # fmt: skip
    if len({bool(result["data"].get("synthetic")) for result in results}) > 1:
        found.append(("Fabricated beside real patients.", "Some of the data are synthetic, others are not."))
    return found


def plain(value: object) -> str:
    """Show a value as text: hashes cut, null as a dash, lists with commas, all else as JSON."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        hashed = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return f"{value[:_LONGEST_HASH]}\N{HORIZONTAL ELLIPSIS}" if hashed else value
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or "(none)"
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Write nested keys with dots; what is null is left out, like a key that is not there."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{before}{key}.")
        elif value is not None:
            flat[f"{before}{key}"] = value
    return flat


def setting_in_si(key: str, value: Any) -> Any:
    """Return a device key's value as a number in SI, where it is a quantity; else as it is."""
    unit = "s" if key == "token_period" else key_units().get(key)
    if unit and isinstance(value, str):
        try:
            return float(f"{parse_quantity(value, unit):.12g}")
        except ValueError:
            return value
    return value


def _compare(sides: Sequence[Mapping[str, Any]]) -> Differences:
    keys = sorted({key for side in sides for key in side})
    values = {key: tuple(side.get(key) for side in sides) for key in keys}
    differing = {key: found for key, found in values.items() if any(value != found[0] for value in found[1:])}
    return Differences(differing, len(keys) - len(differing))


def _of_sweep(result: Result) -> dict[str, Any]:
    if result.get("kind") != "sweep":
        return {}
    vary = {entry["key"]: entry.get("spec") for entry in result.get("keys") or []}
    own = {name: result.get(name) for name in ("mode", "design", "dies", "seeds")}
    return {"sweep": {**own, "vary": vary}}


def _origins(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, keys in _ORIGINS.items():
        values = result.get(section) or {}
        found |= flatten({key: values.get(key) for key in keys} if keys else values, f"{section}.")
    for adapter in result.get("adapters") or []:
        found[f"adapter.seed {adapter.get('seed')}.sha256"] = adapter.get("sha256")
    return found


def _canonical(key: str, entry: Mapping[str, Any] | None) -> str | None:
    """Write an entry so that "5 ms" and "0.005 s" are the same."""
    if entry is None:
        return None
    value, ends = setting_in_si(key, entry.get("value")), entry.get("range") or []
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        value = float(value)
    return json.dumps([value, [setting_in_si(key, end) for end in ends], entry.get("kind")], sort_keys=True)


def _equal(results: Results, *path: str) -> bool:
    return all(value_at(result, *path) == value_at(results[0], *path) for result in results[1:])


def _groups(results: Results, names: Sequence[str], *path: str) -> str:
    """Name those that share a value together: "(a, b) and c"."""
    groups: dict[Any, list[str]] = {}
    for name, result in zip(names, results, strict=True):
        groups.setdefault(value_at(result, *path), []).append(name)
    shown = [f"({', '.join(group)})" if len(group) > 1 else group[0] for group in groups.values()]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _all_or_some(differences: Differences, noun: str) -> str:
    if not differences.values:
        return f"all {plural(differences.equal, noun)}"
    return f"{differences.equal} of {plural(differences.total, noun)}"


def less(one: float | None, other: float | None) -> float | None:
    """Return the difference of two numbers; None where one is unknown."""
    return None if one is None or other is None else one - other
