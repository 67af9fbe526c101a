"""What became of each client in the rounds: who took part, whose update stood out, and what a link costs it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fllm.report.data_tables import client_name, clients_of
from fllm.report.formatting import NOTHING, Quantity, engineering, plural, significant
from fllm.report.tables import Group, Row, Table
from fllm.report.task import own_adapters_line
from fllm.results import value_at

Result = Mapping[str, Any]
Found = Mapping[str, Any]


def asked(result: Result) -> dict[int, list[Found]]:
    """Return what became of each client, round by round; empty where nobody was asked, or an old result tells not."""
    found: dict[int, list[Found]] = {}
    for row in result["rounds"]:
        for one in row.get("participants") or ():
            found.setdefault(one["client"], []).append(one | {"round": row["round"], "norm_ratio": _ratio(one, row)})
    return dict(sorted(found.items()))


def participants_lines(result: Result) -> list[str]:
    """Say how clients were chosen, what travelled, and what the columns mean."""
    if not asked(result):
        return []
    config = result["config"]
    everybody, chosen = config.get("num_clients"), config.get("clients_per_round")
    lines = [
        f"In each round {chosen} of {everybody} clients were asked, drawn from the seed and the round."
        if chosen and everybody and chosen < everybody
        else "All clients were asked in every round."
    ]
    lines.append(
        "A client is left out of a round where it fails, is late or sends something unusable; an update that stands out"
        " is named and used all the same, unless the strategy is one that leaves such updates out."
    )
    lines += [line for line in (own_adapters_line(result), _wire(config), _ranks(config)) if line]
    return lines


def participants_table(result: Result) -> Table | None:
    """One row per client: its rounds, the reasons why it was left out, its bytes, and how its updates compare."""
    clients = asked(result)
    if not clients:
        return None
    names = _names(result)
    rows: list[Row] = [
        (
            names.get(client, f"client {client}"),
            f"{sum(one['reason'] is None for one in found)} of {len(found)}",
            _reasons(found),
            engineering(_mean(found, "uplink_bytes"), "B"),
            engineering(_mean(found, "downlink_bytes"), "B"),
            _furthest(found),
            significant(min(_known(found, "update_cosine"), default=None), 2),
            _outliers(found),
        )
        for client, found in clients.items()
    ]
    columns = ("Client", "Rounds", "Left out", "Uplink per round", "Downlink per round", "Norm furthest from median",
               "Smallest cosine", "Stood out")  # fmt: skip
    caption = (
        "Clients in all rounds that they were asked in; norms are those of a client's change of the adapter over the "
        "median of its round, cosines those with the sum of the others' changes"
    )
    numeric, long = frozenset({3, 4, 5, 6}), len(rows) > _MANY
    return Table(caption, columns, [Group(rows)], numeric, frozenset({2, 7}), wide=True, sortable=True, filterable=long)


def links_table(result: Result) -> Table | None:
    """Energy and time of one client's traffic of a round on the run's link and on the shipped ones."""
    links, clients = value_at(result, "network", "links") or [], asked(result)
    if not links or not clients:
        return None
    names, own = _names(result), value_at(result, "network", "name")
    columns: tuple[str, ...] = ("Client",)
    for link in links:
        shown = f"{link['name']} (this run)" if link["name"] == own else link["name"]
        columns += (f"Energy, {shown}", f"Time, {shown}")
    sent = {client: (_mean(found, "uplink_bytes"), _mean(found, "downlink_bytes")) for client, found in clients.items()}
    if len(set(sent.values())) == 1:  # a row each would say the same
        sent, names = {0: sent[next(iter(sent))]}, {0: "Every client"}
    rows: list[Row] = [
        (names.get(client, f"client {client}"), *(cell for link in links for cell in _on(link, *traffic)))
        for client, traffic in sent.items()
    ]
    caption = "Network of one client in one round, a mean over the rounds that it was asked in, by link"
    numeric = frozenset(range(1, len(columns)))
    return Table(caption, columns, [Group(rows)], numeric, wide=True, sortable=True)


def _on(link: Found, up: float, down: float) -> tuple[str, str]:
    """Price bytes on a link: energy at the client's interface, and time one after the other."""
    energy = 8 * (up * link["uplink_bit_j"] + down * link["downlink_bit_j"])
    seconds = 8 * (up / link["uplink_bits_per_s"] + down / link["downlink_bits_per_s"])
    return engineering(energy, "J"), engineering(seconds, "s")


def _names(result: Result) -> dict[int, str]:
    return {client["client"]: client_name(client) for client in clients_of(result) if "client" in client}


def _ratio(one: Found, row: Found) -> float | None:
    """Return the norm of an update over the median of its round."""
    norms = [other["update_norm"] for other in row["participants"] if other["update_norm"] is not None]
    median = statistics.median(norms) if norms else 0.0
    return one["update_norm"] / median if one["update_norm"] is not None and median > 0 else None


def _known(found: Sequence[Found], key: str) -> list[float]:
    return [one[key] for one in found if one[key] is not None]


def _mean(found: Sequence[Found], key: str) -> float:
    return statistics.fmean(one[key] for one in found)


def _furthest(found: Sequence[Found]) -> str:
    """Write the ratio of norms that is furthest from 1, either way."""
    ratios = _known(found, "norm_ratio")
    if not ratios:
        return NOTHING
    ratio = max(ratios, key=lambda value: max(value, 1 / value) if value > 0 else float("inf"))
    return Quantity(f"{significant(ratio)}\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}", ratio)


def _reasons(found: Sequence[Found]) -> str:
    counted = Counter(str(one["reason"]) for one in found if one["reason"] is not None)
    return "; ".join(_often(reason, number) for reason, number in sorted(counted.items())) or NOTHING


def _often(what: str, number: int) -> str:
    return what if number == 1 else f"{what} ({number} times)"


def _outliers(found: Sequence[Found]) -> str:
    noted = [f"round {one['round']}: {one['outlier']}" for one in found if one["outlier"]]
    more = len(noted) - _NOTES
    return "; ".join(noted[:_NOTES]) + (f"; and {plural(more, 'round')} more" if more > 0 else "") or NOTHING


_NOTES, _MANY = 3, 20
"""Rounds whose notes are written out, and clients from which on a table can be filtered."""


def _wire(config: Found) -> str:
    wire = config.get("wire") or "float32"
    if wire == "float32":
        return ""
    return (
        f"Adapters travel as {wire}; what rounding takes from a client's change is added to the next one that it sends."
    )


def _ranks(config: Found) -> str:
    ranks = value_at(config, "strategy", "client_ranks")
    if not ranks:
        return ""
    shown = ", ".join(map(str, ranks))
    return f"Ranks of the clients' adapters, dealt in turn: {shown}; the server's is {value_at(config, 'lora', 'r')}."
