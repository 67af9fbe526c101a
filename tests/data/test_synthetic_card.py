from __future__ import annotations

import re
from pathlib import Path

import pytest

from fllm.data.cdm_cases import DIAGNOSES
from fllm.data.synthetic import DATA_CARD, synthesize_cohort, write_cohort
from fllm.data.synthetic_card import data_card
from fllm.data.synthetic_spec import difficulty
from fllm.data.synthetic_tables import SyntheticTables


@pytest.fixture(scope="module")
def tables() -> SyntheticTables:
    return synthesize_cohort(300, n_hospitals=3, seed=2, label_concentration=0.5)


def _cells(card: str, first: str) -> list[str]:
    """Return the cells of the table row that starts with a word."""
    line = next(line for line in card.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_it_says_first_that_everything_is_fabricated(tables: SyntheticTables) -> None:
    card = data_card(tables)
    assert "FABRICATED" in card.splitlines()[2]
    for word in ("no MIMIC\ncontent", "not epidemiology", "clinical use", "Apache-2.0", "90000000", "SYN-"):
        assert word in card


def test_it_names_all_that_made_the_cohort(tables: SyntheticTables) -> None:
    card = data_card(tables)
    assert _cells(card, "n_cases")[1] == "300" and _cells(card, "n_hospitals")[1] == "3"
    assert _cells(card, "seed")[1] == "2" and _cells(card, "label_concentration")[1] == "0.5"
    assert _cells(card, "realistic")[1] == "False" and "fllm" in _cells(card, "generator")[1]


def test_its_counts_are_those_of_the_tables(tables: SyntheticTables) -> None:
    card = data_card(tables)
    for name, rows in tables.rows.items():
        assert _cells(card, name)[1] == str(len(rows))
    assert _cells(card, "discharge_procedures.csv")[2] == str(len(tables.rows["discharge_procedures.csv"]))
    assert _cells(card, "all")[1:] == [*(str(len(tables.labels[name])) for name in DIAGNOSES), "300"]
    for hospital in set(tables.hospitals.values()):
        assert _cells(card, hospital)[-1] == str(list(tables.hospitals.values()).count(hospital))
    appendicitis = [p for p in tables.patients if p.label == "appendicitis"]
    women = 100 * sum(p.female for p in appendicitis) / len(appendicitis)
    assert _cells(card, "women [%]")[1] == f"{women:.1f}"
    ct = {row[0] for row in tables.rows["radiology_reports.csv"] if row[2] == "CT"}
    ids = tables.labels["pancreatitis"]
    assert _cells(card, "CT, Abdomen")[4] == f"{100 * sum(i in ct for i in ids) / len(ids):.1f}"


def test_it_cites_the_measured_difficulty(tables: SyntheticTables) -> None:
    _, card = data_card(tables).split("## Measured difficulty")
    for row in difficulty()["rows"]:
        assert _cells(card, row["shown"])[1] == " / ".join(f"{value:.3f}" for value in row["accuracy"])
    assert "Not of this cohort" in card


def test_its_tables_are_aligned_and_no_slot_is_left(tables: SyntheticTables) -> None:
    card = data_card(tables)
    blocks = re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1
    assert "{" not in card and "}" not in card and max(map(len, card.splitlines())) <= 120


def test_it_is_written_beside_the_tables_and_holds_no_date(tmp_path: Path) -> None:
    tables = synthesize_cohort(12, n_hospitals=2, seed=1)
    folder = write_cohort(tmp_path / "x", 12, n_hospitals=2, seed=1)
    card = (folder / DATA_CARD).read_bytes().decode("utf-8")
    assert card == data_card(tables) and card.isascii()
    assert not re.search(r"\b20[2-9]\d-\d\d", card)


def test_classes_without_cases_show_a_dash() -> None:
    card = data_card(synthesize_cohort(1, n_hospitals=1, seed=0))
    assert "-" in _cells(card, "women [%]")[1:] and "nan" not in card


def test_the_realistic_card_says_so() -> None:
    card = data_card(synthesize_cohort(20, n_hospitals=1, seed=0, realistic=True))
    assert _cells(card, "realistic")[1] == "True" and "as long as in the real release" in card
