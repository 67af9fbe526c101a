"""Tables to download from a page: CSV files that lie inside it, with full-precision numbers in SI."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from device_models.quantities import parse_quantity
from fllm.report.answer import device_entries
from fllm.report.chip_tables import chip_rows, chips_of
from fllm.report.client_tables import asked
from fllm.report.data_tables import clients_of
from fllm.report.energy_facts import in_lines, parts_of
from fllm.report.evaluation_downloads import evaluation_files
from fllm.report.task import classes_of
from fllm.results import clients_csv, harmless, is_number, rounds_csv, value_at

Cell = str | float | int | None

_ENDS = ("nominal", "lower_95", "upper_95", "low", "high")
_UNIT = re.compile(r"(?<![A-Za-z])[afpnumkMGT]?(ohm|Hz|eV|J|V|s|F|A|W|K|m)(?![A-Za-z])")


@dataclass(frozen=True)
class Download:
    """A file that a reader can save from a page, with its suggested name."""

    name: str
    content: bytes


def csv_file(name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Download:
    """Write a table as CSV: numbers in full, an empty cell where nothing is known.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([harmless(column) for column in columns])
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return Download(name, text.getvalue().encode())


def run_downloads(result: Mapping[str, Any]) -> dict[str, list[Download]]:
    """Files of a run by the section of the page that offers them; tables without a row are left out."""
    prices = value_at(result, "final", "prices")
    return {
        "evaluation": [csv_file(*file) for file in evaluation_files(result)],
        "rounds": [Download("rounds.csv", rounds_csv(result).encode())] if result["rounds"] else [],
        "participants": [Download("clients_by_round.csv", clients_csv(result).encode())] if asked(result) else [],
        "chips": [csv_file("chips.csv", *chip_rows(result))] if chips_of(result) else [],
        "energy": ([_energy(result)] if parts_of(result) else []) + ([_prices(prices)] if prices else []),
        "clients": [_clients(result)] if clients_of(result) else [],
        "device": [_device(result)] if device_entries(result) else [],
    }


def _energy(result: Mapping[str, Any]) -> Download:
    """Energy per token by part."""
    columns = ("line", "part", *(f"energy_per_token_{end}_j" for end in _ENDS))
    rows = [
        (line, part, *(found.get(end) for end in _ENDS))
        for line, members in in_lines(parts_of(result)).items()
        for part, found in members.items()
    ]
    return csv_file("energy_by_part.csv", columns, rows)


def _prices(prices: Iterable[Mapping[str, Any]]) -> Download:
    """Every priced event."""
    columns = ("part", "event", "count_per_token", "price_j", "energy_per_token_j", "kind", "source")
    ranked = sorted(prices, key=lambda row: (str(row["part"]), str(row["event"])))
    return csv_file("prices.csv", columns, [[row.get(column) for column in columns] for row in ranked])


def _clients(result: Mapping[str, Any]) -> Download:
    """Cases of each client by class, those for training and those of the test; a hidden count is an empty cell."""
    classes = classes_of(result)
    splits = {"train": "label_counts", "test": "test_label_counts"}
    columns: tuple[str, ...] = ("client", "name")
    for split in splits:
        columns += (f"num_{split}", *(f"num_{split}_{label}" for label in classes))
    rows = []
    for client in clients_of(result):
        cells = [client.get("client"), client.get("name")]
        for split, key in splits.items():
            counts = client.get(key)
            cells += [client.get(f"num_{split}"), *(counts.get(label, 0) if counts else None for label in classes)]
        rows.append(cells)
    return csv_file("clients.csv", columns, rows)


def _device(result: Mapping[str, Any]) -> Download:
    """Every number of the device: as its file writes it, and in SI where it is one number."""
    columns = (
        "key",
        "value",
        "value_si",
        "range_low_si",
        "range_high_si",
        "si_unit",
        "kind",
        "source",
        "where",
        "note",
    )
    entries = device_entries(result)
    rows = []
    for key in sorted(entries):
        entry = entries[key]
        value = entry.get("value")
        unit = _si_unit(value)
        low, high = entry.get("range") or (None, None)
        numbers = [_in_si(bound, unit) for bound in (value, low, high)]
        rows.append([key, value, *numbers, unit, *(entry.get(column) for column in columns[6:])])
    return csv_file("device_numbers.csv", columns, rows)


def _si_unit(value: object) -> str:
    """Unit of a quantity string without its prefixes: "m**2" for "0.5 um**2"; empty for a bare number."""
    unit = str(value).partition(" ")[2]
    return _UNIT.sub(r"\1", unit) if is_number(str(value).partition(" ")[0]) else ""


def _in_si(value: object, unit: str) -> float | None:
    """Read a quantity string or a bare number; None where it is neither."""
    if value is None or isinstance(value, bool):
        return None
    if not unit:
        return float(str(value)) if is_number(str(value)) else None
    try:
        return parse_quantity(value, unit)
    except ValueError:  # a unit that is not known here stays in the column of the text
        return None
