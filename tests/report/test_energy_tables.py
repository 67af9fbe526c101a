"""Tables and sentences of energy, latency, area and training hold the numbers of the result, with their certainty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_models.costs import ACCELERATOR, ARRAYS
from fllm.report import energy_facts, render
from fllm.report.energy_tables import (
    area_table,
    baselines_table,
    comparison_table,
    prices_table,
    square_mm,
    training_rounds_table,
    training_table,
)
from fllm.report.formatting import engineering, significant, times
from fllm.report.tables import Table, network_table

Result = dict[str, Any]
HtmlOf = Callable[[Result], str]


@pytest.fixture
def energy(result: Result) -> dict[str, Any]:
    return result["final"]["energy"]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def headings(table: Table | None) -> dict[str, tuple[str, ...]]:
    assert table is not None
    return {group.heading[0]: group.heading for group in table.groups if group.heading}


def test_parts_carry_their_interval_and_lines_their_sum(result: Result, energy: dict[str, Any]) -> None:
    found = headings(prices_table(result))
    for part, interval in energy["parts_j"].items():
        assert found[part][5] == engineering(interval["nominal"], "J")
        assert found[part][6] == energy_facts.ends(interval)
    for line in (ARRAYS, ACCELERATOR):
        assert found[f"All {line}"][5] == engineering(energy["lines_j"][line]["nominal"], "J")
    assert found["Arrays and digital accelerator together"][5] == engineering(
        energy["energy_per_token_j"]["nominal"], "J"
    )
    assert list(found)[-2:] == [f"All {ACCELERATOR}", "Arrays and digital accelerator together"]


def test_shares_of_the_energy_table_add_up(result: Result) -> None:
    found = headings(prices_table(result))
    sums = {name: float(plain(row[-1]).split()[0]) for name, row in found.items() if "<" not in row[-1]}
    lines = [sums.pop(f"All {line}") for line in (ARRAYS, ACCELERATOR)]
    assert sums.pop("Arrays and digital accelerator together") == 100.0
    assert sum(lines) == pytest.approx(100.0, abs=0.11)
    assert sum(sums.values()) == pytest.approx(100.0, abs=0.1 * len(found))


def test_events_keep_price_kind_and_source(result: Result) -> None:
    table = prices_table(result)
    assert table is not None
    rows = {row[0]: row for group in table.groups for row in group.rows}
    assert set(rows) == {row["event"] for row in result["final"]["prices"]}
    for row in result["final"]["prices"]:
        assert rows[row["event"]][2] == engineering(row["price_j"], "J")
        assert row["kind"] in rows[row["event"]][3]
        assert row["source"] in rows[row["event"]][4]


def test_an_older_result_has_a_total_without_intervals(result: Result) -> None:
    del result["final"]["energy"]
    result["final"]["energy_per_token_parts_j"] = {"attention": 2e-9, "memory": 1e-9}
    result["final"]["prices"] = []
    found = headings(prices_table(result))
    assert list(found) == ["attention", "memory", "Total"]
    assert plain(found["Total"][5]) == "3.00 nJ"
    assert {row[6] for row in found.values()} == {""}


def test_baselines_have_ratio_kind_source_and_caveat(result: Result, energy: dict[str, Any]) -> None:
    table = baselines_table(result)
    assert table is not None
    assert list(headings(table)) == [f"Scope: {s}" for s in dict.fromkeys(row["scope"] for row in energy["baselines"])]
    rows = [row for group in table.groups for row in group.rows]
    assert len(rows) == len(energy["baselines"])
    for found in energy["baselines"]:
        (row,) = [row for row in rows if f">{found['name']}<" in row[0]
                  and row[2] == engineering(found["device_energy_per_token_j"], "J")
                  and row[1] == engineering(found["energy_per_token_j"], "J")]  # fmt: skip
        assert row[3] == times(found["ratio"])
        assert found["kind"] in row[4]
        assert row[6] == found["caveat"]


def test_citations_of_baselines_are_linked(result: Result, energy: dict[str, Any]) -> None:
    result["sources"] |= {"maker2023": "Data sheet"}
    energy["baselines"] = [energy["baselines"][0] | {"citations": ["maker2023"]}]
    table = baselines_table(result)
    assert table is not None
    assert ">maker2023</a>" in table.groups[0].rows[0][5]


def test_first_screen_compares_with_the_hardest_of_each_scope_and_the_most_outdone(energy: dict[str, Any]) -> None:
    rows = energy["baselines"]
    chosen = energy_facts.telling(rows)
    real = [row for row in rows if not row["name"].startswith("thermal")]
    assert len(real) < len(rows)
    for scope in {row["scope"] for row in rows}:
        (least,) = [rows[i] for i in chosen[:-1] if rows[i]["scope"] == scope]
        assert least["ratio"] == min(row["ratio"] for row in real if row["scope"] == scope)
    assert rows[chosen[-1]]["ratio"] == max(row["ratio"] for row in real)
    assert energy_facts.telling([]) == []
    assert energy_facts.telling([row | {"ratio": None} for row in rows]) == []


def test_each_compared_name_leads_to_its_caveat(result: Result, energy: dict[str, Any], html_of: HtmlOf) -> None:
    table = comparison_table(result)
    assert table is not None
    html = html_of(result)
    first = html[: html.index('<section id="rounds"')]
    for row, index in zip(table.groups[0].rows, energy_facts.telling(energy["baselines"]), strict=True):
        found = energy["baselines"][index]
        assert row[2] == times(found["ratio"])
        assert found["kind"] in row[3]
        assert f'<a href="#baseline-{index + 1}">{found["name"]}</a>' in first
        place = html.index(f'<span id="baseline-{index + 1}">{found["name"]}</span>')
        assert found["caveat"] in html[place : html.index("</tr>", place)].replace("&#39;", "'")


def test_less_elsewhere_is_said_as_less(result: Result, energy: dict[str, Any]) -> None:
    row = energy["baselines"][0]
    energy["baselines"] = [row | {"ratio": 0.5, "name": "Chip A"}]
    assert "Chip A takes less, this device 2.00 times as much" in " ".join(energy_facts.meanings(result))
    energy["baselines"] = [row | {"ratio": 2.0, "name": "Chip A"}]
    assert "Chip A takes 2.00 times as much as this device" in " ".join(energy_facts.meanings(result))


def test_cards_tell_interval_lines_activity_and_range(result: Result, energy: dict[str, Any], html_of: HtmlOf) -> None:
    html = html_of(result)
    first = html[: html.index('<section id="rounds"')]
    activity = result["final"]["activity"]
    for expected in (
        f"95 % interval: {plain(energy_facts.ends(energy['energy_per_token_j']))}",
        f"Arrays {plain(engineering(energy['lines_j'][ARRAYS]['nominal'], 'J'))} and digital accelerator "
        f"{plain(engineering(energy['lines_j'][ACCELERATOR]['nominal'], 'J'))}, together",
        f"{significant(activity['qk'], 2)} and {significant(activity['av'], 2)} (1 is the stimulus behind the "
        "published prices)",
        f"Low to high: {plain(energy_facts.ends(energy['latency_per_token_s'], 's'))}",
        *energy["dominates"],
    ):
        assert expected in first, expected


def test_refresh_that_dominates_is_on_the_first_screen(result: Result, html_of: HtmlOf) -> None:
    sentence = "Refresh dominates the arrays: 80 % of their energy per token; a longer retention time takes it away"
    result["final"]["energy"]["dominates"] = [sentence]
    html = html_of(result)
    card, _, rest = html[: html.index('<section id="rounds"')].partition("What it means")
    assert sentence.partition(";")[0] in card
    assert f"{sentence}." in rest


def test_activity_that_was_not_measured_is_not_told(result: Result) -> None:
    assert energy_facts.activity_line(result)
    result["final"]["activity"] = {"qk": None, "av": None, "texts": 0, "energy_per_token_j": None}
    assert energy_facts.activity_line(result) == ""
    result["final"]["activity"]["reason"] = "too many refreshes"
    assert energy_facts.activity_line(result).endswith("was not measured: too many refreshes")
    del result["final"]["activity"]
    assert energy_facts.activity_line(result) == ""


def test_area_names_the_technology_of_each_part(result: Result, energy: dict[str, Any]) -> None:
    table = area_table(result)
    assert table is not None
    rows = {row[0]: row for row in table.groups[0].rows}
    assert set(rows) == set(energy["area_m2"]["parts"])
    for part, area in energy["area_m2"]["parts"].items():
        assert rows[part][1] == square_mm(area)
        assert energy["area_technology"][part].removeprefix("technology: ") in rows[part][2]
    name, whole, reach = table.groups[1].heading or ("", "", "")
    assert name.startswith("Whole chip")
    assert whole == square_mm(energy["area_m2"]["total"]["nominal"])
    assert square_mm(energy["area_m2"]["total"]["low"]) in reach
    assert headings(table)["One stored attention head"][1] == square_mm(energy["area_m2"]["attention_head"])
    assert plain(square_mm(1.2345e-6)) == "1.23 mm²"
    assert plain(square_mm(6.3e-3)) == "6,300 mm²"


def test_training_is_three_places_and_never_their_sum(result: Result, html_of: HtmlOf) -> None:
    training = result["final"]["training"]
    found = headings(training_table(result))
    assert list(found) == ["Arrays", "Digital accelerator", "Network"]
    for line, interval in training["lines_j"].items():
        assert found[line.capitalize()][1:3] == (engineering(interval["nominal"], "J"), energy_facts.ends(interval))
    html = html_of(result)
    section = html[html.index('<section id="training"') : html.index('<section id="clients"')]
    assert "three different places" in section
    assert "Evaluation passes between the rounds are not in these numbers" in section
    total = sum(interval["nominal"] for interval in training["lines_j"].values())
    assert plain(engineering(total, "J")) not in section
    for entry in result["network"]["values"]:
        assert entry["key"] in section
        assert entry["value"] in section


def test_training_by_round(result: Result) -> None:
    table = training_rounds_table(result)
    assert table is not None
    recorded = [row for row in result["rounds"] if "training" in row]
    assert [row[0] for row in table.groups[0].rows] == [str(row["round"]) for row in recorded]
    for cells, row in zip(table.groups[0].rows, recorded, strict=True):
        assert cells[1:] == tuple(engineering(found["nominal"], "J") for found in row["training"]["lines_j"].values())


def test_an_unfinished_run_tells_its_rounds_and_no_total(result: Result, html_of: HtmlOf) -> None:
    result |= {"status": "interrupted", "final": None}
    assert training_table(result) is None
    html = html_of(result)
    section = html[html.index('<section id="training"') : html.index('<section id="clients"')]
    assert "The whole is known when the run is finished" in section
    assert "Energy of training by round" in section
    assert "compares with no other hardware" in html
    assert "The numbers that matter most" not in html
    assert " and digital accelerator " in html[: html.index('<section id="rounds"')]
    assert "no timeline and no area" in html


@pytest.mark.usefixtures("_laid_out")
@pytest.mark.parametrize("gone", ["energy", "activity", "training", "prices"])
def test_a_result_without_one_of_them_renders(result: Result, tmp_path: Path, html_of: HtmlOf, gone: str) -> None:
    result["final"][gone] = result["final"]["evaluation"] = None  # the latter's figures take no part in this
    page = render(result, tmp_path)[0].read_text(encoding="utf-8")
    assert "</html>" in page
    of_null = html_of(result)
    del result["final"][gone]
    assert html_of(result) == of_null


def test_a_result_without_network_has_no_table_of_it(result: Result) -> None:
    assert network_table(result) is not None
    del result["network"]
    assert network_table(result) is None


@pytest.mark.usefixtures("_laid_out")
def test_zero_prices_render(result: Result, tmp_path: Path) -> None:
    """The ideal device."""
    energy = result["final"]["energy"]
    zero = dict.fromkeys(("low", "nominal", "high", "lower_95", "upper_95"), 0.0)
    energy |= {"energy_per_token_j": zero, "parts_j": {}, "lines_j": {}, "tornado": [], "dominates": [], "timeline": []}
    for row in energy["baselines"]:
        row |= {"device_energy_per_token_j": 0.0, "ratio": None}
    result["final"] |= {"energy_per_token_j": 0.0, "energy_per_token_parts_j": {"writes": 0.0}}
    html = render(result, tmp_path)[0].read_text(encoding="utf-8")
    assert "nan J" not in html
    assert comparison_table(result) is None
