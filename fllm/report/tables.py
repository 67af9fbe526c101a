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
from fllm.report.answer import BASELINES, answer, device_entries
from fllm.report.formatting import NOTHING, count, engineering, interval, percent, significant, spread
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
    """Accuracy and macro-F1 of the model on both devices, beside the baselines."""
    found = answer(result)
    rows: list[Row] = [
        (
            "This model, ideal device",
            percent(found.accuracy_ideal),
            interval(found.interval_ideal),
            significant(value_at(found.last, "ideal", "macro_f1")),
        ),
        (
            "This model, emulated hardware",
            percent(found.accuracy_hardware),
            interval(found.interval_hardware),
            significant(value_at(found.last, "hardware", "macro_f1", "mean")),
        ),
    ]
    for key, name in BASELINES.items():
        scores = value_at(result, "baselines", key) or {}
        rows.append(
            (f"{name} (baseline)", percent(scores.get("accuracy")), NOTHING, significant(scores.get("macro_f1")))
        )
    columns = ("", "Accuracy", "95 % interval", "Macro-F1")
    return Table("Accuracy on the test cases", columns, [Group(rows)], frozenset({1, 2, 3}))


def rounds_table(result: Mapping[str, Any]) -> Table:
    """One row per round: learning, both devices, communication, modelled energy and latency."""
    columns = ("Round", "Training loss [nat]", "Accuracy, ideal", "Accuracy, hardware", "Macro-F1, ideal",
               "Macro-F1, hardware", "Perplexity, ideal", "Perplexity, hardware", "Uplink", "Downlink", "Tokens",
               "Energy, forward passes", "Energy per token", "Latency per token")  # fmt: skip
    rows = [_round_row(row) for row in result["rounds"]]
    caption = (
        "All rounds; ± is the standard deviation over dies; energy is that of the forward passes of training, arrays "
        "and digital accelerator together"
    )
    return Table(
        caption,
        columns,
        [Group(rows)],
        frozenset(range(1, len(columns))),
        wide=True,
        sortable=True,
    )


def clients_table(result: Mapping[str, Any]) -> Table:
    """Clients with their cases and label counts, then the sums of both splits."""
    data = result["data"]
    clients = data.get("clients") or []
    labels = sorted({label for source in (data, *clients) for label in source.get("label_counts") or {}})
    rows: list[Row] = [
        (
            client.get("name") or f"client {client['client']}",
            count(client.get("num_train")),
            *_counts(client.get("label_counts"), labels),
        )
        for client in clients
    ]
    sums: list[Row] = [
        ("All cases", count(data.get("num_cases")), *_counts(data.get("label_counts"), labels)),
        ("Test cases", count(data.get("num_test")), *_counts(data.get("test_label_counts"), labels)),
    ]
    columns = ("Client", "Cases", *labels)
    blank = ("",) * (len(columns) - 1)
    groups = [Group(rows, ("Training cases by client", *blank)), Group(sums, ("Whole data set", *blank))]
    return Table("Cases and their labels", columns, groups, frozenset(range(1, len(columns))), sortable=True)


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
    return [(_anchor(key, sources), key, _link_doi(str(sources[key]))) for key in sorted(sources)]


def kind_badge(kind: object) -> Markup:
    """Show the kind of a number as a word on its colour."""
    name = str(kind) if kind else NOTHING
    css = name if name in KINDS else "other"
    return Markup('<span class="kind kind-{}">{}</span>').format(css, name)


def _round_row(row: Mapping[str, Any]) -> Row:
    """Write the cells of one round."""
    hardware = row.get("hardware") or {}

    def over_dies(metric: str, *, fraction: bool = False) -> str:
        entry = hardware.get(metric) or {}
        return spread(entry.get("mean"), entry.get("std"), entry.get("dies"), fraction=fraction)

    return (
        str(row["round"]),
        significant(row.get("train_loss")),
        percent(value_at(row, "ideal", "accuracy")),
        over_dies("accuracy", fraction=True),
        significant(value_at(row, "ideal", "macro_f1")),
        over_dies("macro_f1"),
        significant(value_at(row, "ideal", "perplexity")),
        over_dies("perplexity"),
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


def _counts(counts: Mapping[str, int] | None, labels: list[str]) -> Row:
    """Write the label counts of one row; labels that do not occur count as 0."""
    return tuple(count((counts or {}).get(label, 0)) for label in labels)


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


def _link_doi(citation: str) -> Markup:
    """Link the DOIs of a citation; a link is no request until a reader follows it."""
    shown, end = Markup(""), 0
    for match in _DOI.finditer(citation):
        doi = match.group(1).rstrip(".)")
        link = Markup('<a href="https://doi.org/{0}">doi:{0}</a>').format(doi)
        shown += Markup.escape(citation[end : match.start()]) + link
        end = match.start(1) + len(doi)
    return shown + Markup.escape(citation[end:])
