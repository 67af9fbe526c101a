"""What a report says about the data: who holds what, what was cut or hidden, and what a reader must know."""

import csv
from typing import Any

import pytest

from fllm.report.answer import certainty, limits
from fllm.report.data_facts import data_lines, truncation_sentence
from fllm.report.data_figure import draw_label_mix
from fllm.report.data_tables import clients_table, truncation_table
from fllm.report.downloads import run_downloads
from fllm.report.drawing import own_style
from fllm.report.formatting import NOTHING
from tests.report.tasks import language, many_classes, without_numbers
from tests.report.test_energy_figures import cut_off, rows
from tests.report.test_standing import cells, plain

Result = dict[str, Any]


@pytest.fixture
def hidden(result: Result) -> Result:
    """Return a result of real data, some of whose counts are hidden."""
    data = result["data"]
    data["smallest_cell"] = 5
    for client in data["clients"][:2]:
        client["label_counts"] |= {"diverticulitis": None, "pancreatitis": None}
    data["clients"][2] |= {"num_test": None, "test_label_counts": dict.fromkeys(data["label_counts"])}
    return result


def lines(result: Result) -> str:
    return plain("\n".join(data_lines(result)))


def test_both_splits_of_every_client_are_listed(result: Result) -> None:
    table = clients_table(result)
    assert [group.heading[0] for group in table.groups if group.heading] == [
        "Training cases by client", "Test cases by client", "Whole data set",
    ]  # fmt: skip
    for group, key in zip(table.groups, ("label_counts", "test_label_counts"), strict=False):
        for row, client in zip(group.rows, result["data"]["clients"], strict=True):
            assert [int(cell) for cell in row[2:]] == list(client[key].values())
            assert int(row[1]) == sum(client[key].values())
    result["data"]["num_validation"] = 60
    assert ("Validation cases", "60", *(NOTHING,) * 4) in cells(clients_table(result))


def test_classes_stand_in_the_order_of_the_task(result: Result) -> None:
    result["task"]["classes"] = ["pancreatitis", "appendicitis", "cholecystitis", "diverticulitis"]
    assert clients_table(result).columns[2:] == tuple(result["task"]["classes"])
    del result["task"]
    assert clients_table(result).columns[2:4] == ("appendicitis", "cholecystitis")


def test_an_older_result_lists_its_training_cases(result: Result) -> None:
    for client in result["data"]["clients"]:
        del client["num_test"], client["test_label_counts"]
    table = clients_table(result)
    assert [group.heading[0] for group in table.groups if group.heading] == [
        "Training cases by client", "Whole data set",
    ]  # fmt: skip


def test_hidden_counts_are_called_so_and_never_zero(hidden: Result) -> None:
    found = {row[0]: row for row in cells(clients_table(hidden))[:3]}
    assert found["community"] == ("community", "151", "37", "50", "hidden", "hidden")
    assert cells(clients_table(hidden))[5] == ("urban_academic", *("hidden",) * 5)
    assert "Counts of fewer than 5 real cases are hidden" in lines(hidden)
    (file,) = run_downloads(hidden)["clients"]
    read = list(csv.DictReader(file.content.decode().splitlines()))
    assert read[0]["num_train_diverticulitis"] == read[2]["num_test"] == ""
    assert read[1]["num_test_diverticulitis"] == "0"
    hidden["data"]["clients"][0]["label_counts"]["appendicitis"] = 3  # a count that should not have come so far
    assert cells(clients_table(hidden))[0][2] == "< 5"


def test_split_partition_and_cues_are_told(result: Result) -> None:
    said = lines(result)
    assert "Split: drawn at random within each class: 80 % train, 20 % test." in said
    assert "Clients: by group (hospital, folder or client column). Their mixes of classes lie 0.0815 bit" in said
    assert "masked words of the reports are replaced by a neutral one; studies go by their modality alone" in said
    result["data"]["partition"] |= {"alpha": 0.3, "js_divergence": None}
    result["data"]["cues"] = {"panel": "full", "other": "on"}
    result["data"]["num_validation"] = 60
    said = lines(result)
    assert "client column) (alpha = 0.300).\n" in said
    assert "long panel of laboratory tests is asked of every case; other: on." in said
    assert "480 for training, 60 for validation and 120 for the test" in said


def test_what_was_cut_is_counted(result: Result) -> None:
    assert plain(truncation_sentence(result)) == (
        "21 of 600 prompts were cut to fit the token budget: field imaging lost 3.0 % of its tokens."
    )
    assert cells(truncation_table(result))[1] == (
        "imaging", "600", "64", "21", "24,310", "23,580", "730", "3.0 %",
    )  # fmt: skip
    assert cells(truncation_table(result))[0][-2:] == ("0", "0 %")
    assert "Token budget: at most 384 tokens per prompt; every field keeps its beginning" in lines(result)
    result["data"]["truncation"]["fields"]["imaging"]["tokens_lost"] = 1
    assert "less than 0.1 %" in plain(truncation_sentence(result))
    result["data"]["truncation"]["prompts_cut"] = 0
    assert truncation_sentence(result) == "" and "No prompt was cut." in lines(result)
    result["data"]["truncation"] = None
    assert truncation_sentence(result).startswith("21 prompts did not fit") and "Truncated: 21." in lines(result)
    assert truncation_table(result) is None


def test_what_a_reader_must_know_stands_on_the_first_screen_and_among_the_limits(result: Result) -> None:
    for told in (certainty(result), limits(result)):
        assert any("two admissions of one patient" in line for line in told)
        assert any("21 of 600 prompts were cut" in plain(line) for line in told)
    assert not any("admissions" in line for line in certainty(without_numbers(result)))


def test_bars_are_the_mix_of_each_client(result: Result) -> None:
    with own_style():
        drawn = draw_label_mix(result)
        assert cut_off(drawn.figure) == []
    axes = drawn.figure.axes[0]
    assert rows(drawn) == [client["name"] for client in result["data"]["clients"]]
    for row, client in enumerate(result["data"]["clients"]):
        widths = [bar.get_width() for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        assert widths == pytest.approx([count / client["num_train"] for count in client["label_counts"].values()])
    numbers = [text.get_text() for text in axes.texts]
    assert "87" in numbers and "151" in numbers
    assert "1" not in numbers  # no room in its piece
    assert "community, most often cholecystitis" in drawn.alt


def test_hidden_counts_are_hatched(hidden: Result) -> None:
    drawn = draw_label_mix(hidden)
    hatched = [bar.get_width() for bar in drawn.figure.axes[0].patches if bar.get_hatch()]
    assert hatched == pytest.approx([1 - 87 / 151, 1 - 126 / 165])
    assert "Hatched" in drawn.caption
    hidden["data"]["clients"][0]["num_train"] = None
    assert next(bar.get_width() for bar in draw_label_mix(hidden).figure.axes[0].patches if bar.get_hatch()) == 1.0


def test_many_classes_share_a_colour_and_many_clients_fit(result: Result) -> None:
    made = many_classes(result)
    with own_style():
        drawn = draw_label_mix(made)
        assert cut_off(drawn.figure) == []
    assert "23 other classes" in [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert len(rows(drawn)) == 16
    made["data"]["clients"] *= 3
    assert "The first 40 of 48 clients are shown." in draw_label_mix(made).caption
    assert "no data" in draw_label_mix(language(result)).alt
