"""What a result says about energy, latency and area, for cards, tables and figures; nothing is priced here.

A result of an unfinished run, or of an older version, lacks some of it: everything here then is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from device_models.costs import ACCELERATOR, ARRAYS, PARTS
from fllm.report.answer import answer
from fllm.report.formatting import Quantity, engineering, plural, significant
from fllm.results import value_at
from hwsim.training import NETWORK

LINES = (ARRAYS, ACCELERATOR)
PLACES = (*LINES, NETWORK)
"""Where training spends energy; the first two are those of a forward pass."""

Interval = Mapping[str, float]
Parts = dict[str, Interval]


def energy_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Energy, latency and area of one token, or an empty mapping."""
    return value_at(result, "final", "energy") or {}


def parts_of(result: Mapping[str, Any]) -> Parts:
    """Energy per token by part [J]; without intervals where the result has none."""
    return energy_of(result).get("parts_j") or {
        name: {"nominal": joule} for name, joule in answer(result).parts_j.items()
    }


def in_lines(parts: Mapping[str, Interval]) -> dict[str, Parts]:
    """Group parts by the line that they are summed in, largest first; parts of no known line stand last under ''."""
    ranked = sorted(parts, key=lambda part: (-parts[part]["nominal"], part))
    grouped = {line: {part: parts[part] for part in ranked if PARTS.get(part, "") == line} for line in (*LINES, "")}
    return {line: members for line, members in grouped.items() if members}


def lines_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Energy per token of arrays and of the digital accelerator [J], those that have parts."""
    grouped = in_lines(parts_of(result))
    return {line: sum(found["nominal"] for found in grouped[line].values()) for line in LINES if line in grouped}


def ends(found: Interval | None, unit: str = "J") -> str:
    """Write the 95 % interval, or low to high where there is none; empty where the value is exact or unknown."""
    found = found or {}
    low, high = found.get("lower_95", found.get("low")), found.get("upper_95", found.get("high"))
    if low is None or high is None or low == high:
        return ""
    return Quantity(f"{engineering(low, unit)} to {engineering(high, unit)}", low, unit, to=high)


def baselines_of(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Rows of the comparison with other hardware."""
    return list(energy_of(result).get("baselines") or [])


def telling(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Choose baselines for the first screen: in each scope the one that spends least, then the one most outdone.

    Returns:
        Their places among the rows.
    """
    real = [index for index, row in enumerate(rows) if row["ratio"] is not None and row.get("design", True)]
    chosen = [
        min((index for index in real if rows[index]["scope"] == scope), key=lambda index: rows[index]["ratio"])
        for scope in dict.fromkeys(rows[index]["scope"] for index in real)
    ]
    rest = [index for index in real if index not in chosen]
    return chosen + ([max(rest, key=lambda index: rows[index]["ratio"])] if rest else [])


def energy_lines(result: Mapping[str, Any]) -> list[str]:
    """Say below the energy of a token how sure it is, where it is spent, and what real prompts draw."""
    lines = []
    if shown := ends(energy_of(result).get("energy_per_token_j")):
        lines.append(f"95 % interval: {shown}")
    if spent := lines_of(result):
        split = [f"{line} {engineering(energy, 'J')}" for line, energy in spent.items()]
        both = " and ".join(split).replace("arrays", "Arrays", 1)
        lines.append(f"{both}, together" if len(split) > 1 else both)
    lines += [sentence.partition(";")[0] for sentence in dominating(result)]
    if activity := activity_line(result):
        lines.append(activity)
    return lines


def dominating(result: Mapping[str, Any]) -> list[str]:
    """Sentences about parts that take more than half of a line."""
    return [sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in energy_of(result).get("dominates") or []]


def activity_line(result: Mapping[str, Any]) -> str:
    """Say how much charge test prompts draw from the attention arrays, and the energy at it."""
    found = value_at(result, "final", "activity") or {}
    if found.get("qk") is None or found.get("av") is None:
        reason = found.get("reason")
        return f"Charge that test prompts draw was not measured: {reason}" if reason else ""
    drawn = f"{significant(found['qk'], 2)} and {significant(found['av'], 2)}"
    at_it = engineering(found.get("energy_per_token_j"), "J")
    return (
        f"Charge that test prompts draw in both attention arrays: {drawn} (1 is the stimulus behind the published "
        f"prices); with it {at_it}"
    )


def latency_lines(result: Mapping[str, Any]) -> list[str]:
    """Say below the latency of a token how far its times reach, and how fast a known text is read."""
    energy = energy_of(result)
    lines = []
    if shown := ends(energy.get("latency_per_token_s"), "s"):
        lines.append(f"Low to high: {shown}")
    if energy.get("interval_per_token_s"):
        lines.append(f"In a text known beforehand, a token every {engineering(energy['interval_per_token_s'], 's')}")
    return lines


def meanings(result: Mapping[str, Any]) -> list[str]:
    """Say what dominates the energy, and how the device stands against the hardware that spends least."""
    sentences = [f"{sentence}." for sentence in dominating(result)]
    rows = baselines_of(result)
    for index in telling(rows)[: len({row["scope"] for row in rows})]:
        row = rows[index]
        ratio = row["ratio"]
        verdict = (
            f"{significant(ratio)} times as much as this device" if ratio >= 1
            else f"less, this device {significant(1 / ratio)} times as much"
        )  # fmt: skip
        sentences.append(f"Energy, {row['scope']}: {row['name']} takes {verdict}; the number there is {row['kind']}.")
    return sentences


def certainty(result: Mapping[str, Any]) -> list[str]:
    """Say what the interval of the energy covers."""
    if not ends(energy_of(result).get("energy_per_token_j")):
        return []
    return [
        "The 95 % interval of the energy draws all prices at once from the ranges that the device file gives them; "
        "counts are exact, and what is not modelled is not in it."
    ]


def training_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Energy of the whole training in its places, or an empty mapping."""
    return value_at(result, "final", "training") or {}


def training_lines(result: Mapping[str, Any]) -> list[str]:
    """Say what the energy of training holds, and for how long the accelerator is busy with it."""
    training = training_of(result)
    if not training:
        return []
    lines = [
        f"Forward passes of {plural(int(training['tokens']), 'token')} on arrays and digital accelerator; backward "
        f"passes and {plural(int(training['steps']), 'optimiser step')} on the digital accelerator; adapters sent over "
        f"the network ({training.get('network_title') or training.get('network')}).",
    ]
    times = training.get("time_s") or {}
    if times:
        taken = ", ".join(f"{name} {engineering(seconds, 's')}" for name, seconds in times.items())
        whose = "the slowest client of each round" if training.get("devices") else "one client"
        lines.append(f"Modelled time of {whose}, one after another: {taken}.")
    return lines
