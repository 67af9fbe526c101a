"""The section on chips: what each costs, what training across them gives, and who has which device."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest

from fllm.report.chip_figure import draw_chips, has_chip_figure
from fllm.report.chip_tables import chip_lines, chips_table, client_devices_table, gains_table
from fllm.report.downloads import run_downloads
from fllm.report.drawing import Picture, own_style
from fllm.report.energy_facts import training_lines
from fllm.report.figures import figure_names
from fllm.report.markdown import run_markdown
from tests.report.test_energy_figures import cut_off, overlapping, rows, texts

Result = dict[str, Any]


def number(value: float, half: float = 0.05) -> dict[str, Any]:
    return {"value": value, "interval_95": [value - half, value + half]}


def on_chip(accuracy: float, **more: Any) -> dict[str, Any]:
    return {"accuracy": number(accuracy), "cost": number(0.9 - accuracy, 0.02), **more}


def gain(accuracy: float, federated: float) -> dict[str, Any]:
    return {"accuracy": number(accuracy), "federated": number(federated), "gain": number(federated - accuracy, 0.01)}


@pytest.fixture
def chips(result: Result) -> Result:
    """Return the example with three clients' chips, three unseen ones, and both baselines on chips."""
    names = [client["name"] for client in result["data"]["clients"]]
    result["final"]["chips"] = {
        "ideal": number(0.9),
        "clients": [
            on_chip(0.9 - 0.02 * i, client=i, name=name, device="gaincell_28nm", die_seed=2**62 + i, cases=40 - 20 * i,
                    own_cases=number(0.8))
            for i, name in enumerate(names)
        ],
        "own": on_chip(0.88, std=0.02, min=0.86, max=0.9),
        "home": on_chip(0.89),
        "unseen": on_chip(0.85, std=0.01, min=0.84, max=0.86)
        | {"chips": [on_chip(0.84 + 0.01 * i, device="gaincell_28nm", die_seed=i) for i in range(3)]},
        "own_minus_unseen": number(0.03, 0.01),
        "training_chips": "own",
    }  # fmt: skip
    result["baselines"]["lora_one_chip"] = result["baselines"]["lora_centralised"] | {
        "name": "LoRA, federated on one chip",
        "chips": {
            "client": 0, "name": names[0], "device": "gaincell_28nm", "die_seed": 2**62,
            "trained_on": gain(0.91, 0.9), "others": gain(0.8, 0.87), "unseen": gain(0.81, 0.85),
            "own_minus_others": number(0.11),
        },
    }  # fmt: skip
    result["baselines"]["lora_local"]["chips"] = {
        "trained_on": gain(0.6, 0.88), "others": gain(0.55, 0.88), "own_minus_others": number(0.05, 0.1), "clients": [],
    }  # fmt: skip
    return result


@pytest.fixture
def mixed(chips: Result) -> Result:
    """Return the same with two kinds of devices."""
    kinds = [("gaincell_28nm", [0, 2]), ("gaincell_igzo", [1])]
    chips["client_devices"] = {
        "sha256": "0", "devices": [{"name": name, "title": f"The {name}", "clients": who} for name, who in kinds],
    }  # fmt: skip
    lines = {"arrays": {"nominal": 1e-3}, "digital accelerator": {"nominal": 2e-3}, "network": {"nominal": 0.5}}
    chips["final"]["training"] |= {"devices": [{"name": name, "lines_j": lines} for name, _ in kinds]}
    return chips


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def cells(table: Any) -> list[tuple[str, ...]]:
    found = [tuple(map(plain, row)) for group in table.groups for row in ([group.heading] if group.heading else [])
             + group.rows]  # fmt: skip
    assert {len(row) for row in found} == {len(table.columns)}
    return found


def test_run_without_the_table_says_nothing_of_it(result: Result, html_of: Callable[[Result], str]) -> None:
    assert chip_lines(result) == []
    assert chips_table(result) is gains_table(result) is client_devices_table(result) is None
    assert run_downloads(result)["chips"] == []
    assert 'id="chips"' not in html_of(result) and "chips" not in figure_names(result)


def test_lines_say_what_chips_cost_and_what_training_across_them_gives(chips: Result) -> None:
    said = [plain(line) for line in chip_lines(chips)]
    assert "a client: 2.0 points (95 % interval +0.0 to +4.0) in the mean ± 2.0 (accuracy on 3 chips: 86.0" in said[1]
    assert "own client: 89.0 %, a cost of 1.0 points" in said[2]
    assert said[3].endswith("+3.0 points (95 % interval +2.0 to +4.0) for the former; zero lies outside the interval.")
    assert said[4].startswith("A chip that nobody trained on costs 5.0 points")
    name = chips["data"]["clients"][0]["name"]
    assert f"on the chip of {name}: on other clients' chips it answers 80.0 %, the federation across" in said[5]
    assert "gives +7.0 points" in said[5] and "zero lies outside" in said[5]
    assert "+5.0 points" in said[6] and said[6].endswith("zero lies inside the interval.")
    chips["config"]["evaluate_only"] = True
    assert chip_lines(chips)[3].startswith("Chips of clients against unseen chips")
    chips["baselines"]["lora_one_chip"]["chips"]["others"] = None  # a federation of one client
    assert "on unseen chips it answers 81.0 %" in plain(chip_lines(chips)[5])


@pytest.mark.parametrize(("where", "word"), [("new", "another chip in each round"), ("design", "as designed")])
def test_clients_without_chips_are_told_of(chips: Result, where: str, word: str) -> None:
    chips["final"]["chips"] |= {
        "clients": [], "own": None, "home": None, "own_minus_unseen": None, "training_chips": where,
    }  # fmt: skip
    del chips["baselines"]["lora_one_chip"], chips["baselines"]["lora_local"]
    said = chip_lines(chips)
    assert word in said[1] and len(said) == 3
    assert [row[0] for row in cells(chips_table(chips))] == [
        "Ideal device", "Unseen chips, mean", "chip 0", "chip 1", "chip 2",
    ]  # fmt: skip
    assert gains_table(chips) is None


def test_table_has_every_chip_with_its_cost(chips: Result) -> None:
    found = cells(chips_table(chips))
    assert found[0][:3] == ("Ideal device", "", "90.0 %")
    assert found[1][:6] == ("Clients' own chips, mean", "", "88.0 %", "83.0 to 93.0 %", "+2.0", "+0.0 to +4.0")
    assert found[4][4:] == ("+4.0", "+2.0 to +6.0", "0", "80.0 %", "75.0 to 85.0 %")
    chips["data"]["smallest_cell"] = 5
    chips["final"]["chips"]["clients"][2] |= {"cases": None, "own_cases": None}
    assert cells(chips_table(chips))[4][6:] == ("hidden", "\N{EN DASH}", "\N{EN DASH}")
    gains = cells(gains_table(chips))
    assert [row[:2] for row in gains][:2] == [
        ("LoRA, federated on one chip", "the chip that it was trained on"),
        ("LoRA, federated on one chip", "other clients' chips"),
    ]
    assert gains[1][4:] == ("87.0 %", "+7.0", "+6.0 to +8.0")
    assert len(gains) == 5


def test_section_stands_in_both_formats_with_its_download(mixed: Result, html_of: Callable[[Result], str]) -> None:
    page = html_of(mixed)
    assert 'id="chips"' in page and 'href="#chips"' in page and 'download="chips.csv"' in page
    blank = [Picture(name, "Caption.", "Description.", b"", b"") for name in figure_names(mixed)]
    text = run_markdown(mixed, blank)
    assert "\n## Every client's chip\n" in text and "figures/chips.svg" in text and "\n\n\n" not in text
    (file,) = run_downloads(mixed)["chips"]
    found = list(csv.DictReader(io.StringIO(file.content.decode())))
    assert [row["chip"] for row in found] == ["ideal", *["own"] * 3, "mean of own", *["unseen"] * 3, "mean of unseen"]
    assert found[2]["die_seed"] == str(2**62 + 1)  # all digits
    assert float(found[3]["cost"]) == pytest.approx(0.04) and found[3]["own_cases"] == "0.8"
    assert found[0]["cost"] == ""


def test_devices_of_clients_are_listed_with_their_energy(mixed: Result) -> None:
    found = cells(client_devices_table(mixed))
    assert found[0] == ("The gaincell_28nm", "2 clients", "1.00 mJ", "2.00 mJ", "500 mJ")
    assert "slowest client of each round" in training_lines(mixed)[-1]
    assert "devices of several kinds" in chip_lines(mixed)[1]
    mixed["final"] = None  # an unfinished run
    assert cells(client_devices_table(mixed))[1][2:] == ("\N{EN DASH}",) * 3


def test_figure_shows_the_costs(chips: Result) -> None:
    with own_style():
        drawn = draw_chips(chips)
        assert cut_off(drawn.figure) == overlapping(drawn.figure) == []
    names = [client["name"] for client in chips["data"]["clients"]]
    assert rows(drawn) == [*names, "unseen chip 0", "unseen chip 1", "unseen chip 2"]
    marks = [float(line.get_xdata()[0]) for line in drawn.figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert marks == pytest.approx([0.0, -0.02, -0.04, -0.06, -0.05, -0.04])
    assert any("90.0" in text for text in texts(drawn))
    chips["final"]["chips"]["clients"] *= 20
    assert not has_chip_figure(chips)
