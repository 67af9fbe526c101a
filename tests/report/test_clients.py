"""Clients round by round: their table beside that of rounds, and their section where a result tells of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from device_models.machines import load_network
from fllm.cli import MOST_LINES, _Terminal
from fllm.record import network_facts
from fllm.report.client_tables import asked, links_table, participants_lines, participants_table
from fllm.report.downloads import run_downloads
from fllm.report.drawing import Picture
from fllm.report.evaluation_facts import evaluation_lines
from fllm.report.markdown import run_markdown
from fllm.report.tables import Table
from fllm.results import CLIENT_COLUMNS, clients_csv, write_clients_csv
from fllm.summary import client_lines
from tests.report.conftest import FIGURES

Result = dict[str, Any]
PICTURES = [Picture(name, "Caption.", "Description.", b"", b"") for name in FIGURES]
LATE = "no answer in time"


def one(client: int, norm: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "client": client, "reason": None, "train_loss": 1.25, "uplink_bytes": 1000, "downlink_bytes": 2000,
        "update_norm": norm, "update_cosine": 0.5, "outlier": None,
    } | changes  # fmt: skip


@pytest.fixture
def told(result: Result) -> Result:
    """Return the example with two rounds of clients: one is late once, one stands out in both."""
    late = {"reason": LATE, "train_loss": None, "uplink_bytes": 0, "update_cosine": None}
    far = {"update_cosine": -0.25, "outlier": "it points against the others"}
    first, second = result["rounds"][1:3]
    first["participants"] = [one(0, 1.0), one(1, 2.0), one(2, 8.0, **far)]
    second["participants"] = [one(0, None, **late), one(1, 1.0), one(2, 4.0, outlier="its norm is large")]
    result["network"] |= {"links": network_facts(load_network("lan"))["links"]}
    return result


def cells(table: Table | None) -> list[tuple[str, ...]]:
    assert table is not None
    return [
        tuple(str(c).replace("\N{NO-BREAK SPACE}", " ") for c in row) for group in table.groups for row in group.rows
    ]


def test_table_of_files_has_a_row_per_round_and_client(told: Result, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(clients_csv(told))))
    assert len(rows) == 6 and tuple(rows[0]) == CLIENT_COLUMNS
    assert [(row["round"], row["client"]) for row in rows] == [(r, c) for r in "12" for c in "012"]
    assert rows[3] == {
        "round": "2", "client": "0", "status": "left out", "reason": LATE, "train_loss": "", "uplink_bytes": "0",
        "downlink_bytes": "2000", "update_norm": "", "update_cosine": "", "outlier": "",
    }  # fmt: skip
    assert rows[2]["status"] == "used" and rows[2]["outlier"] == "it points against the others"
    for name in ("a", "b"):
        write_clients_csv(tmp_path / name, told)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == clients_csv(told).encode()
    (download,) = run_downloads(told)["participants"]
    assert download.content == clients_csv(told).encode()


def test_reason_that_a_spreadsheet_would_run_is_put_in_quotes(told: Result) -> None:
    told["rounds"][1]["participants"][0]["reason"] = "=HYPERLINK(1)"
    assert "'=HYPERLINK(1)" in clients_csv(told)


def test_result_without_clients_has_no_file_and_no_section(
    result: Result, html_of: Callable[[Result], str], tmp_path: Path
) -> None:
    assert asked(result) == {} and participants_table(result) is None and links_table(result) is None
    write_clients_csv(tmp_path / "clients.csv", result)
    assert not list(tmp_path.iterdir())
    assert run_downloads(result)["participants"] == []
    assert "round by round" not in html_of(result) and "round by round" not in run_markdown(result, PICTURES)


def test_each_client_has_its_rounds_and_what_stood_out(told: Result) -> None:
    names = [client["name"] for client in told["data"]["clients"]]
    found = {row[0]: row[1:] for row in cells(participants_table(told))}
    assert list(found) == names
    none = "\N{EN DASH}"
    assert found[names[0]] == ("1 of 2", LATE, "500 B", "2.00 kB", "0.500 ×", "0.50", none)  # noqa: RUF001
    assert found[names[1]] == ("2 of 2", none, "1.00 kB", "2.00 kB", "0.400 ×", "0.50", none)  # noqa: RUF001
    outlier = "round 1: it points against the others; round 2: its norm is large"
    assert found[names[2]] == ("2 of 2", none, "1.00 kB", "2.00 kB", "4.00 ×", "-0.25", outlier)  # noqa: RUF001


def test_repeated_reasons_and_notes_are_counted(told: Result) -> None:
    late = told["rounds"][2]["participants"]
    for number in range(3, 7):
        told["rounds"].append(told["rounds"][2] | {"round": number, "participants": late})
    first, _, third = cells(participants_table(told))
    assert first[2] == f"{LATE} (5 times)"
    assert third[7].endswith("round 3: its norm is large; and 3 rounds more")


def test_network_is_priced_on_every_link(told: Result) -> None:
    table = links_table(told)
    assert table is not None
    assert table.columns[1:3] == ("Energy, lan (this run)", "Time, lan (this run)")
    assert {column.split(", ")[1] for column in table.columns[3:]} == {"5g", "wifi"}
    quantities = table.groups[0].rows[1]
    for place, name in ((1, "lan"), (3, table.columns[3].split(", ")[1]), (5, table.columns[5].split(", ")[1])):
        link = load_network(name)
        energy, seconds = quantities[place], quantities[place + 1]
        assert energy.value == pytest.approx(8 * (1000 * link.uplink_bit + 2000 * link.downlink_bit))  # type: ignore[attr-defined]
        assert seconds.value == pytest.approx(8 * (1000 / link.uplink_rate + 2000 / link.downlink_rate))  # type: ignore[attr-defined]


def test_links_have_one_row_where_all_sent_the_same(told: Result) -> None:
    del told["rounds"][2]
    assert [row[0] for row in cells(links_table(told))] == ["Every client"]


def test_section_stands_on_the_page_and_in_markdown(told: Result, html_of: Callable[[Result], str]) -> None:
    for text in (html_of(told), run_markdown(told, PICTURES)):
        assert "Clients, round by round" in text and "it points against the others" in text
        assert "5g" in text and "(this run)" in text
    assert 'id="participants"' in html_of(told) and "\n\n\n" not in run_markdown(told, PICTURES)


def test_reason_is_text_and_no_markup(told: Result, html_of: Callable[[Result], str]) -> None:
    told["rounds"][1]["participants"][0]["reason"] = "<script>alert(1)</script>"
    assert "<script>alert" not in html_of(told)


def test_lines_say_what_travelled_and_who_was_asked(told: Result) -> None:
    assert participants_lines(told)[0].startswith("All clients were asked")
    told["config"] |= {"clients_per_round": 2, "num_clients": 3, "wire": "int8",
                       "strategy": {"factors": "svd", "client_ranks": [2, 4]}, "lora": {"r": 8}}  # fmt: skip
    lines = participants_lines(told)
    assert lines[0].startswith("In each round 2 of 3 clients")
    assert any("travel as int8" in line for line in lines)
    assert any("2, 4; the server's is 8" in line for line in lines)
    told["config"]["strategy"] = {"factors": "share_a"}
    assert any("adapter of its own client" in line for line in participants_lines(told))
    assert any("adapter of its own client" in line for line in evaluation_lines(told))


def test_terminal_names_who_was_left_out_and_who_stands_out(told: Result) -> None:
    names = {client["client"]: client["name"] for client in told["data"]["clients"]}
    assert client_lines(told["rounds"][2], names) == [
        f"client 0 ({names[0]}) was left out: {LATE}", f"client 2 ({names[2]}) stands out: its norm is large",
    ]  # fmt: skip
    assert client_lines(told["rounds"][0], names) == []
    many = [one(number, None, reason=LATE) for number in range(MOST_LINES + 5)]
    console = Console(record=True, width=200)
    with _Terminal(console) as terminal:
        terminal.run_started(told, Path())
        terminal.round_done(told["rounds"][2], 3)
        terminal.round_done(told["rounds"][2] | {"participants": many}, 3)
    text = console.export_text()
    assert f"client 0 ({names[0]}) was left out: {LATE}" in text
    assert "and 5 more such lines; all are in clients.csv" in text
