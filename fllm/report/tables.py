"""The tables of a report as plain data: headers, groups of rows, cells that are text or marked-up safe text.

Order never depends on the order of keys in the result, which a round trip through JSON may change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from device_models.provenance import KINDS
from fllm.report.answer import device_entries
from fllm.report.formatting import (
    NOTHING,
    between,
    count,
    engineering,
    estimate,
    interval,
    percent,
    significant,
    spread,
)
from fllm.report.standing import Standing, own_standings, shown_baselines
from fllm.report.task import LANGUAGE, accuracy_name, case_noun, kind_of
from fllm.results import value_at

_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/[^\s\"<>,;]+)", re.IGNORECASE)

Row = tuple[str, ...]
_NUMBER_COLUMNS = ("Key", "Value", "Kind", "Source", "Where", "Note")


@dataclass(frozen=True)
class Group:
    """Rows under one heading row; the heading may be absent."""

    rows: list[Row]
    heading: Row | None = None


@dataclass(frozen=True)
class Table:
    """A table: its caption, its columns, which of them hold numbers or prose, and its rows in groups.

    A cell is text, safe markup, or a :class:`~fllm.report.formatting.Quantity`, which knows the number that it shows;
    a page sorts by that number. A sortable table gets a button in each heading and is sorted inside its groups; a
    filterable one gets a field that hides the rows without the words typed, for tables too long to see at once.
    """

    caption: str
    columns: tuple[str, ...]
    groups: list[Group]
    numeric: frozenset[int] = field(default_factory=frozenset)
    prose: frozenset[int] = field(default_factory=frozenset)
    wide: bool = False
    sortable: bool = False
    filterable: bool = False

    def css(self, column: int) -> str:
        """Class of the cells of a column."""
        return "number" if column in self.numeric else "prose" if column in self.prose else "plain"


def accuracy_table(result: Mapping[str, Any]) -> Table:
    """Accuracy and macro-F1 with their intervals: the model on both devices, then the baselines, nearest first."""
    language = kind_of(result) == LANGUAGE
    second, heading = ("perplexity", "Perplexity") if language else ("macro_f1", "Macro-F1")
    own = [_standing_row(standing, second) for standing in own_standings(result)]
    others: list[Row] = []
    for standing in shown_baselines(result):
        others.append(_standing_row(standing, second))
        if standing.ranges:
            ends = interval(standing.ranges.get("accuracy")), between(standing.ranges.get(second))
            others.append(("lowest to highest client", *ends))
    blank = ("",) * 2
    groups = [Group(own), Group(others, ("Baselines", *blank))] if others else [Group(own)]
    caption = f"{accuracy_name(result)} on the test {case_noun(result)}s; in brackets: 95 % interval"
    return Table(caption, ("", accuracy_name(result), heading), groups, frozenset({1, 2}))


def rounds_table(result: Mapping[str, Any]) -> Table:
    """One row per round: learning, both devices, communication, modelled energy and latency."""
    accuracy, classes = accuracy_name(result), kind_of(result) != LANGUAGE
    averaged = any(row.get("aggregation_error") is not None for row in result["rounds"])
    columns = ("Round", "Training loss [nat]", f"{accuracy}, ideal", f"{accuracy}, hardware",
               *(("Macro-F1, ideal", "Macro-F1, hardware") if classes else ()),
               "Perplexity, ideal", "Perplexity, hardware", *(("Averaging error",) if averaged else ()),
               "Uplink", "Downlink", "Tokens",
               "Energy, forward passes", "Energy per token", "Latency per token")  # fmt: skip
    rows = [_round_row(row, classes=classes, averaged=averaged) for row in result["rounds"]]
    caption = (
        "All rounds; ± is the standard deviation over dies; energy is that of the forward passes of training, arrays "
        "and digital accelerator together"
    )
    if averaged:
        caption += "; averaging error is how far the averaged adapter is from the average of the clients' products B A"
    return Table(
        caption,
        columns,
        [Group(rows)],
        frozenset(range(1, len(columns))),
        wide=True,
        sortable=True,
    )


def device_table(result: Mapping[str, Any]) -> Table:
    """Every number of the device with its provenance; assumptions stand first."""
    entries = device_entries(result)
    kinds = [*KINDS, *sorted({str(entry.get("kind")) for entry in entries.values()} - set(KINDS))]
    groups = []
    for kind in kinds:
        members = sorted((entry for entry in entries.values() if str(entry.get("kind")) == kind), key=_key)
        if members:
            heading = (f"{kind.capitalize()} ({len(members)})", "", "", "", "", "")
            groups.append(Group([_device_row(entry, result) for entry in members], heading))
    caption = f"{len(entries)} numbers, grouped by kind"
    return Table(caption, _NUMBER_COLUMNS, groups, prose=frozenset({5}), filterable=True)


def network_table(result: Mapping[str, Any]) -> Table | None:
    """Every number of the clients' link to the server, with its provenance."""
    entries = value_at(result, "network", "values")
    if not entries:
        return None
    caption = f"Numbers of the network: {result['network'].get('title') or result['network'].get('name')}"
    rows = [_device_row(entry, result) for entry in sorted(entries, key=_key)]
    return Table(caption, _NUMBER_COLUMNS, [Group(rows)], prose=frozenset({5}))


def mapping_table(caption: str, columns: tuple[str, str], values: Mapping[str, Any]) -> Table:
    """Any nested mapping as two columns, keys dotted and sorted."""
    rows = sorted(_flatten(values))
    return Table(caption, columns, [Group([(key, _plain(value)) for key, value in rows])])


def source_list(result: Mapping[str, Any]) -> list[tuple[str, str, Markup]]:
    """Sources as (anchor, key, citation with its DOI linked)."""
    sources = result.get("sources") or {}
    return [(_anchor(key, sources), key, link_doi(str(sources[key]))) for key in sorted(sources)]


def kind_badge(kind: object) -> Markup:
    """Show the kind of a number as a word on its colour."""
    name = str(kind) if kind else NOTHING
    css = name if name in KINDS else "other"
    return Markup('<span class="kind kind-{}">{}</span>').format(css, name)


def _standing_row(standing: Standing, second: str) -> Row:
    """Write a name, its accuracy, and its number of a second metric."""
    accuracy, other = standing["accuracy"], standing[second]
    return (
        standing.label,
        estimate(accuracy.value, accuracy.bounds),
        estimate(other.value, other.bounds, fraction=False),
    )


def _round_row(row: Mapping[str, Any], *, classes: bool, averaged: bool) -> Row:
    """Write the cells of one round; macro-F1 only where there are classes, the error where adapters are averaged."""
    hardware = row.get("hardware") or {}

    def over_dies(metric: str, *, fraction: bool = False) -> str:
        entry = hardware.get(metric) or {}
        return spread(entry.get("mean"), entry.get("std"), entry.get("dies"), fraction=fraction)

    return (
        str(row["round"]),
        significant(row.get("train_loss")),
        percent(value_at(row, "ideal", "accuracy")),
        over_dies("accuracy", fraction=True),
        *((significant(value_at(row, "ideal", "macro_f1")), over_dies("macro_f1")) if classes else ()),
        significant(value_at(row, "ideal", "perplexity")),
        over_dies("perplexity"),
        *((percent(row.get("aggregation_error")),) if averaged else ()),
        engineering(row.get("uplink_bytes"), "B"),
        engineering(row.get("downlink_bytes"), "B"),
        count(row.get("tokens")),
        engineering(value_at(row, "energy_j", "total"), "J"),
        engineering(row.get("energy_per_token_j"), "J"),
        engineering(row.get("latency_per_token_s"), "s"),
    )


def _device_row(entry: Mapping[str, Any], result: Mapping[str, Any]) -> Row:
    """Write the cells of one device number."""
    value = _plain(entry.get("value"))
    bounds = entry.get("range")
    if bounds:
        value = f"{value} (range {' to '.join(_plain(bound) for bound in bounds)})"
    return (
        entry["key"],
        value,
        kind_badge(entry.get("kind")),
        link_sources(entry.get("source"), result),
        entry.get("where") or NOTHING,
        entry.get("note") or NOTHING,
    )


def _key(entry: Mapping[str, Any]) -> str:
    """Sort key of a device number."""
    return str(entry["key"])


def _flatten(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Write nested keys with dots."""
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += (
            _flatten(value, f"{before}{key}.") if isinstance(value, Mapping) and value else [(f"{before}{key}", value)]
        )
    return flat


def _plain(value: object) -> str:
    """Show a value as text: strings as they are, null as a dash, lists with commas, all else as JSON."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "(none)"
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _anchor(key: str, sources: Mapping[str, str]) -> str:
    """Name the place of a source on the page; numbered, because a key may hold any character."""
    return f"source-{sorted(sources).index(key) + 1}"


def link_sources(keys: str | None, result: Mapping[str, Any]) -> str:
    """Link source keys, separated by commas, to the list of sources; a name that is not listed there stays text."""
    if not keys:
        return NOTHING
    sources = result.get("sources") or {}
    linked = [
        Markup('<a href="#{}">{}</a>').format(_anchor(key, sources), key) if key in sources else Markup.escape(key)
        for key in re.split(r"\s*[,;]\s*", keys)
    ]
    return Markup(", ").join(linked)


def link_doi(citation: str) -> Markup:
    """Link the DOIs of a citation; a link is no request until a reader follows it."""
    shown, end = Markup(""), 0
    for match in _DOI.finditer(citation):
        doi = match.group(1).rstrip(".)")
        link = Markup('<a href="https://doi.org/{0}">doi:{0}</a>').format(doi)
        shown += Markup.escape(citation[end : match.start()]) + link
        end = match.start(1) + len(doi)
    return shown + Markup.escape(citation[end:])
