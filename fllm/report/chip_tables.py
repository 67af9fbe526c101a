"""What the last model does on every client's chip and on unseen chips, and what training across chips gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fllm.report.answer import is_trained
from fllm.report.data_tables import client_name
from fllm.report.formatting import (
    engineering,
    interval,
    percent,
    plural,
    points,
    points_between,
    shown_count,
)
from fllm.report.tables import Group, Row, Table
from fllm.report.task import accuracy_name, case_noun
from fllm.results import value_at

Result = Mapping[str, Any]
Number = Mapping[str, Any]
Cell = str | float | int | None

_PLACES = {
    "trained_on": "the chip that it was trained on",
    "others": "other clients' chips",
    "unseen": "unseen chips",
}
"""Where models are compared, by its key, and what it is called."""
_NO_CHIPS = {
    "new": "Every client trained on another chip in each round, so none has a chip of its own: unseen ones alone.",
    "design": "Clients trained on the device as designed, so none has a chip of its own: unseen ones alone.",
}


def chips_of(result: Result) -> Mapping[str, Any]:
    """Return the last model chip by chip; empty where the run did not ask for it."""
    return value_at(result, "final", "chips") or {}


def compared(result: Result) -> dict[str, Mapping[str, Any]]:
    """Return the chips of the baselines that were compared chip by chip, by their key."""
    found = {key: value_at(result, "baselines", key) or {} for key in ("lora_one_chip", "lora_local")}
    return {key: one["chips"] | {"model": one["name"]} for key, one in found.items() if one.get("chips")}


def chip_lines(result: Result) -> list[str]:
    """Say what a chip costs, whether a chip that was trained on costs less, and what training across chips gives."""
    chips, noun = chips_of(result), case_noun(result)
    if not chips:
        return []
    own, unseen = chips.get("own"), chips["unseen"]
    lines = [
        f"The {'last' if is_trained(result) else 'given'} model answers all test {noun}s on each chip. The cost of a "
        f"chip is the accuracy on the ideal device less that on the chip, in points, paired {noun} by {noun}. "
        f"Intervals are those over test {noun}s; ± is the standard deviation from chip to chip."
    ]
    if result.get("client_devices"):
        lines.append("Clients have devices of several kinds; the ideal device and unseen chips are of the run's own.")
    if own:
        lines.append(
            f"What its own chip costs a client: {_said(own['cost'])} in the mean{_spread(own, len(chips['clients']))}."
        )
        lines.append(
            f"Each {noun} on the chip of its own client: {percent(chips['home']['accuracy']['value'])}, a cost of "
            f"{_said(chips['home']['cost'])}."
        )
        lines.append(
            f"{'Chips that were trained on' if is_trained(result) else 'Chips of clients'} against unseen chips: "
            f"{_said(chips['own_minus_unseen'], signed=True)} for the former; {_verdict(chips['own_minus_unseen'])}."
        )
    else:
        lines.append(_NO_CHIPS.get(chips.get("training_chips", ""), _NO_CHIPS["design"]))
    lines.append(f"A chip that nobody trained on costs {_said(unseen['cost'])}{_spread(unseen, len(unseen['chips']))}.")
    return lines + list(_gains(result))


def _gains(result: Result) -> Iterator[str]:
    """Say what federating across chips gives over training on one."""
    one = compared(result).get("lora_one_chip")
    if one:
        rest = one.get("others") or one["unseen"]
        where = _PLACES["others" if one.get("others") else "unseen"]
        yield (
            f"The same federation with all clients on the chip of {client_name(one)}: on {where} it answers "
            f"{percent(rest['accuracy']['value'])}, the federation across chips {percent(rest['federated']['value'])}, "
            f"so training across chips gives {_said(rest['gain'], signed=True)}; {_verdict(rest['gain'])}."
        )
    alone = compared(result).get("lora_local")
    if alone and alone.get("own_minus_others"):
        found = alone["own_minus_others"]
        yield (
            f"A client's own model, trained alone on its own chip, does {_said(found, signed=True)} better there than "
            f"on other clients' chips; {_verdict(found)}."
        )


def chips_table(result: Result) -> Table | None:
    """Accuracy and cost of every chip: of clients, then those that nobody trained on, with their means."""
    chips = chips_of(result)
    if not chips:
        return None
    noun, name, smallest = case_noun(result), accuracy_name(result), result["data"].get("smallest_cell")
    blank = ("",) * 3
    groups = [Group([("Ideal device", "", *_shown(chips["ideal"]), "", "", *blank)])]
    own, unseen = chips.get("own"), chips["unseen"]
    if own:
        rows: list[Row] = [
            (
                client_name(client),
                client["device"],
                *_shown(client["accuracy"]),
                *_cost(client["cost"]),
                shown_count(client["cases"], smallest),
                *_shown(client["own_cases"]),
            )
            for client in chips["clients"]
        ]
        groups.append(
            Group(rows, ("Clients' own chips, mean", "", *_shown(own["accuracy"]), *_cost(own["cost"]), *blank))
        )
        home = chips["home"]
        row = (f"Each {noun} on its own client's chip", "", *_shown(home["accuracy"]), *_cost(home["cost"]), *blank)
        groups.append(Group([row]))
    rows = [
        (f"chip {number}", one["device"], *_shown(one["accuracy"]), *_cost(one["cost"]), *blank)
        for number, one in enumerate(unseen["chips"])
    ]
    heading = ("Unseen chips, mean", "", *_shown(unseen["accuracy"]), *_cost(unseen["cost"]), *blank)
    groups.append(Group(rows, heading))
    columns = ("Chip", "Device", name, "95 % interval", "Cost of the chip [points]", "95 % interval",
               f"Own test {noun}s", f"{name} on them", "95 % interval")  # fmt: skip
    caption = f"The last model on every chip, all test {noun}s; at the right each client's own {noun}s on its own chip"
    return Table(caption, columns, groups, frozenset(range(2, len(columns))), sortable=True)


def gains_table(result: Result) -> Table | None:
    """Compare models that were trained on one chip with the federated one, on the same chips."""
    found = compared(result)
    rows: list[Row] = [
        (one["model"], where, *_shown(one[key]["accuracy"]), percent(one[key]["federated"]["value"]),
         *_cost(one[key]["gain"]))
        for one in found.values() for key, where in _PLACES.items() if one.get(key)
    ]  # fmt: skip
    if not rows:
        return None
    name = accuracy_name(result)
    columns = ("Model", "Evaluated on", name, "95 % interval", f"{name}, federated across chips",
               "Gain by federating [points]", "95 % interval")  # fmt: skip
    caption = f"What federating across chips gives, on the same chips and test {case_noun(result)}s; gains are paired"
    return Table(caption, columns, [Group(rows)], frozenset(range(2, len(columns))))


def client_devices_table(result: Result) -> Table | None:
    """Who has which device, and the energy of training on each kind; None where all have the run's."""
    devices = value_at(result, "client_devices", "devices")
    if not devices:
        return None
    spent = value_at(result, "final", "training", "devices") or [{} for _ in devices]
    places = ("arrays", "digital accelerator", "network")
    rows: list[Row] = [
        (
            device.get("title") or device["name"],
            plural(len(device["clients"]), "client"),
            *(engineering(value_at(share, "lines_j", place, "nominal"), "J") for place in places),
        )
        for device, share in zip(devices, spent, strict=True)
    ]
    columns = ("Device of the clients", "Clients", *(place.capitalize() for place in places))
    return Table("Energy of training by kind of device", columns, [Group(rows)], frozenset({2, 3, 4}))


def chip_rows(result: Result) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Return columns and rows of the download, numbers unrounded."""
    chips = chips_of(result)
    numbers = ("accuracy", "cost", "own_cases")
    columns = ("chip", "client", "name", "device", "die_seed", *(f"{n}{end}" for n in numbers for end in _ENDS))
    if not chips:
        return columns, []
    unseen, own = chips["unseen"], chips.get("own") or {}
    rows = [("ideal", None, None, None, None, *_all({"accuracy": chips["ideal"]}, numbers))]
    rows += [
        ("own", one["client"], one["name"], one["device"], str(one["die_seed"]), *_all(one, numbers))
        for one in chips["clients"]
    ]
    rows += [("mean of own", None, None, None, None, *_all(own, numbers))] if own else []
    rows += [
        ("unseen", None, None, one["device"], str(one["die_seed"]), *_all(one, numbers)) for one in unseen["chips"]
    ]
    rows.append(("mean of unseen", None, None, None, None, *_all(unseen, numbers)))
    return columns, rows


_ENDS = ("", "_lower_95", "_upper_95")


def _all(found: Mapping[str, Any], numbers: Sequence[str]) -> list[Cell]:
    cells: list[Cell] = []
    for number in numbers:
        one = found.get(number) or {}
        cells += [one.get("value"), *(one.get("interval_95") or (None, None))]
    return cells


def _shown(found: Number | None) -> tuple[str, str]:
    found = found or {}
    return percent(found.get("value")), interval(found.get("interval_95"))


def _cost(found: Number) -> tuple[str, str]:
    return points(found["value"]), points_between(found["interval_95"])


def _said(found: Number, *, signed: bool = False) -> str:
    """Write a difference in a sentence with its interval."""
    value = points(found["value"]) if signed else str(points(found["value"])).removeprefix("+")
    bounds = found["interval_95"]
    return f"{value} points" + (f" (95 % interval {points_between(bounds)})" if bounds else "")


def _verdict(found: Number) -> str:
    bounds = found["interval_95"]
    if not bounds:
        return "there is no interval to tell how sure that is"
    return "zero lies inside the interval" if bounds[0] <= 0 <= bounds[1] else "zero lies outside the interval"


def _spread(found: Mapping[str, Any], chips: int) -> str:
    """Say how far chips differ; nothing of a single one."""
    if found.get("std") is None:
        return ""
    shown = str(points(found["std"])).removeprefix("+")
    return f" ± {shown} (accuracy on {plural(chips, 'chip')}: {interval([found['min'], found['max']])})"
