"""CSV files inside a page: numbers in full and in SI, nothing that a spreadsheet would run."""

import csv
from typing import Any

import pytest

from fllm.report.downloads import Download, csv_file, run_downloads
from fllm.results import rounds_csv


def _rows(file: Download) -> list[dict[str, str]]:
    return list(csv.DictReader(file.content.decode().splitlines()))


@pytest.fixture
def files(result: dict[str, Any]) -> dict[str, Download]:
    return {file.name: file for section in run_downloads(result).values() for file in section}


def test_rounds_are_those_of_the_file_beside_the_page(files: dict[str, Download], result: dict[str, Any]) -> None:
    assert files["rounds.csv"].content == rounds_csv(result).encode()


def test_energy_and_prices_are_those_of_the_result(files: dict[str, Download], result: dict[str, Any]) -> None:
    energy = {row["part"]: row for row in _rows(files["energy_by_part.csv"])}
    assert {part: float(row["energy_per_token_nominal_j"]) for part, row in energy.items()} == {
        part: found["nominal"] for part, found in result["final"]["energy"]["parts_j"].items()
    }
    assert energy["adapter"]["line"] == "digital accelerator"
    prices = {row["event"]: row for row in _rows(files["prices.csv"])}
    for row in result["final"]["prices"]:
        assert float(prices[row["event"]]["price_j"]) == row["price_j"]
        assert prices[row["event"]]["source"] == row["source"]


def test_device_numbers_are_in_si(files: dict[str, Download], result: dict[str, Any]) -> None:
    rows = {row["key"]: row for row in _rows(files["device_numbers.csv"])}
    assert len(rows) == len(result["device"]["values"]) + 1  # and the token period
    multiply = rows["linear.cell_mac"]
    assert (multiply["value"], multiply["si_unit"]) == ("1 fJ", "J")
    assert [float(multiply[key]) for key in ("value_si", "range_low_si", "range_high_si")] == [1e-15, 3e-16, 3e-15]
    assert (rows["write.ktc"]["value"], rows["write.ktc"]["value_si"], rows["write.ktc"]["si_unit"]) == ("True", "", "")
    assert (rows["input.levels"]["value_si"], rows["input.levels"]["si_unit"]) == ("16.0", "")


@pytest.mark.parametrize(
    ("value", "si", "unit"),
    [
        ("0.5 um**2", "5e-13", "m**2"),
        ("30 ps", "3e-11", "s"),
        ("2 mm", "0.002", "m"),
        ("9.47 ohm", "9.47", "ohm"),
        ("0.1 pJ/mm", "1e-10", "J/m"),
        ("940e6 1/s", "940000000.0", "1/s"),
        ("500 meV", "0.5", "eV"),
        ("5 florins", "", "florins"),
        ("[1 uA, 2 uA/V]", "", ""),
        ("fixed", "", ""),
    ],
)
def test_a_quantity_loses_its_prefix(result: dict[str, Any], value: str, si: str, unit: str) -> None:
    result["device"] |= {"values": [{"key": "one", "value": value, "range": None}], "token_period": None}
    result["assumptions"] = []
    (row,) = _rows(run_downloads(result)["device"][0])
    assert (row["value"], row["value_si"], row["si_unit"]) == (value, si, unit)


def test_clients_are_counted_by_label(files: dict[str, Download], result: dict[str, Any]) -> None:
    for row, client in zip(_rows(files["clients.csv"]), result["data"]["clients"], strict=True):
        assert int(row["num_train"]) == client["num_train"]
        counts = {label: int(row[f"num_train_{label}"]) for label in client["label_counts"]}
        assert counts == client["label_counts"]


def test_nothing_is_a_formula() -> None:
    cells = ["=1+1", "+a", "-a", "@a", "\ta", "-1.5", "+3", -2.5, 0.1, None, "a,b", 'say "x"']
    (row,) = list(csv.reader(csv_file("a.csv", ["c"] * len(cells), [cells]).content.decode().splitlines()))[1:]
    assert row == ["'=1+1", "'+a", "'-a", "'@a", "'\ta", "-1.5", "+3", "-2.5", "0.1", "", "a,b", 'say "x"']
    assert csv_file("a.csv", ["=c"], []).content == b"'=c\n"


def test_a_bare_result_offers_nothing() -> None:
    bare: dict[str, Any] = {"rounds": [], "data": {}, "device": {}, "final": None}
    assert not any(run_downloads(bare).values())
