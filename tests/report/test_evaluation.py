"""The section on the final evaluation: every number with its interval, few cases marked, nothing claimed beyond it."""

import csv
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from fllm.report.downloads import run_downloads
from fllm.report.drawing import ink_on, own_style, shorten_middle
from fllm.report.evaluation_facts import evaluation_lines, generation_line, introduction, mcnemar_line, source_lines
from fllm.report.evaluation_figures import draw_confusion, draw_reliability
from fllm.report.evaluation_tables import (
    client_scores_table,
    confusion_table,
    generation_table,
    mcnemar_table,
    mean_count,
    metrics_table,
    recall_table,
)
from fllm.report.figures import draw_rounds, figure_names
from fllm.report.formatting import NOTHING
from tests.report.conftest import ALWAYS, FIGURES
from tests.report.tasks import ABSENT, CLASSES, language, many_classes, without_numbers
from tests.report.test_energy_figures import cut_off, overlapping, texts
from tests.report.test_standing import cells

Result = dict[str, Any]
HtmlOf = Callable[[Result], str]


@pytest.fixture
def evaluation(result: Result) -> dict[str, Any]:
    return result["final"]["evaluation"]


def test_every_metric_stands_with_its_interval_and_paired_difference(result: Result) -> None:
    rows = {row[0]: row[1:] for row in cells(metrics_table(result))}
    assert list(rows) == ["Accuracy", "Macro-F1", "Mean-class accuracy", "ECE", "Brier score", "NLL [nat]",
                          "Perplexity"]  # fmt: skip
    assert rows["Accuracy"] == ("higher", "74.2 %", "65.8 to 81.7 %", "74.6 %", "66.7 to 82.1 %", "+0.4",
                                "\N{MINUS SIGN}1.2 to +2.1")  # fmt: skip
    assert rows["Macro-F1"][5:] == ("+0.004", "\N{MINUS SIGN}0.017 to +0.022")
    assert rows["ECE"] == ("lower", "0.061", "0.033 to 0.092", "0.072", "0.044 to 0.103", NOTHING, NOTHING)
    assert [row[0] for row in cells(metrics_table(language(result)))] == [
        "Next-token accuracy", "Perplexity", "Bits per byte",
    ]  # fmt: skip


def test_classes_with_few_test_cases_are_marked(result: Result) -> None:
    rows = {row[0]: row for row in cells(recall_table(result))}
    assert rows["diverticulitis"] == (
        "diverticulitis", "13", "15.4 %", "4.3 to 42.2 %", "15.4 %", "4.3 to 42.2 %", "15.4 %", "uncertain",
    )  # fmt: skip
    assert rows["appendicitis"][-1] == ""
    many = {row[0]: row for row in cells(recall_table(many_classes(result)))}
    assert list(many) == CLASSES
    assert many[ABSENT] == (ABSENT, "0", *(NOTHING,) * 4, "absent")
    result["data"]["smallest_cell"] = 20
    assert {row[0]: row[1] for row in cells(recall_table(result))}["diverticulitis"] == "< 20"


def test_confusion_keeps_half_cases_of_a_mean_over_dies(result: Result, evaluation: dict[str, Any]) -> None:
    table = confusion_table(result)
    assert table is not None and [group.heading[0] for group in table.groups if group.heading] == [
        "Ideal device", "Emulated hardware",
    ]  # fmt: skip
    for group, device in zip(table.groups, ("ideal", "hardware"), strict=True):
        for row, counts in zip(group.rows, evaluation[device]["confusion"], strict=True):
            assert [float(cell) for cell in row[1:]] == counts
    assert [mean_count(value) for value in (3.0, 2.5, 1 / 3)] == ["3", "2.5", "0.3"]


def test_the_worst_client_is_named_and_small_ones_are_not(result: Result, evaluation: dict[str, Any]) -> None:
    assert [row[-1] for row in cells(client_scores_table(result))] == ["", "", "worst"]
    (line,) = [line for line in evaluation_lines(result) if line.startswith("Worst client")]
    assert "urban_academic with 67.6" in line and "a spread of 11.4 points over 3 clients" in line
    evaluation["ideal"]["worst_client"]["client"] = 0
    assert [row[-1] for row in cells(client_scores_table(result))] == ["worst, ideal", "", "worst, hardware"]
    result["data"]["smallest_cell"] = 5
    evaluation["ideal"]["clients"][1] |= {"cases": None, "accuracy": None, "interval_95": None, "macro_f1": None}
    assert cells(client_scores_table(result))[1][:4] == ("rural_critical_access", "hidden", NOTHING, NOTHING)


def test_mcnemar_counts_cases_die_by_die(result: Result) -> None:
    assert cells(mcnemar_table(result)) == [("die 0", "1", "3", "0.62"), ("die 1", "2", "1", "1.00")]
    assert "p < 0.05 on 0 of 2 dies; smallest p: 0.62." in mcnemar_line(result)
    assert "not corrected for their number" in mcnemar_line(result)


def test_written_answers_tell_how_many_could_not_be_read(result: Result) -> None:
    assert cells(generation_table(result))[1] == (
        "Emulated hardware", "69.2 %", "61.2 to 76.7 %", "64.2 %", "0.551", "0.491 to 0.621", "7.5 %", "9", "2",
    )  # fmt: skip
    line = generation_line(result).replace("\N{NO-BREAK SPACE}", " ")
    assert "An answer that names no class is unparsable and counts as wrong" in line
    assert line.endswith("Unparsable: 5.8 % on the ideal device, 7.5 % on the emulated hardware.")
    for device in ("ideal", "hardware"):
        result["final"]["evaluation"]["generation"][device]["recall"]["appendicitis"] = 0.5  # without its interval
    assert cells(recall_table(result))[0][6] == "50.0 %"
    result["task"]["kind"] = "classification"
    assert "Hager" not in generation_line(result)


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        ({"kind": "none", "temperature": None}, "used as they are"),
        ({"kind": "content_free", "temperature": None}, "content-free"),
        ({"kind": "temperature", "temperature": {"ideal": 1.31, "hardware": None}}, "1.31 on the ideal device. It"),
    ],
)
def test_calibration_is_told(
    result: Result, evaluation: dict[str, Any], calibration: dict[str, Any], said: str
) -> None:
    evaluation["calibration"] = calibration
    evaluation["ideal"]["ece"]["by_chance"] = 0.0456
    del evaluation["hardware"]["ece"]["by_chance"]
    first, second, *_ = evaluation_lines(result)
    assert said in first
    assert "by chance: on average 0.0456 on the ideal device." in second


def test_sources_are_those_of_what_is_shown(result: Result) -> None:
    assert [str(line).partition(",")[0] for line in source_lines(result)] == [
        "B. Efron and R. J. Tibshirani", "C. Guo et al.", "G. W. Brier", "Q. McNemar", "P. Hager et al.",
    ]  # fmt: skip
    assert len(source_lines(language(result))) == 1
    assert "ECE" in introduction(result) and "ECE" not in introduction(language(result))


def test_a_result_without_the_evaluation_says_so(result: Result, html_of: HtmlOf) -> None:
    del result["final"]["evaluation"]
    html = html_of(result)
    section = html[html.index('<section id="evaluation"') : html.index('<section id="rounds"')]
    assert "holds no evaluation beyond" in section and "ECE" not in section
    assert figure_names(result) == ["standing", *ALWAYS, "label_mix"]


@pytest.mark.parametrize("change", [language, many_classes, without_numbers])
def test_other_tasks_and_missing_numbers_render(result: Result, html_of: HtmlOf, change: Callable[..., Result]) -> None:
    made = change(result)
    html = html_of(made)
    assert "None" not in html and "nan" not in html.replace("nano", "")
    if change is language:
        assert "how well does the model predict text" in html and "Next-token accuracy is counted" in html
        assert figure_names(made) == ["standing", *ALWAYS]
    if change is many_classes:
        assert "sort texts into 30 classes" in html and figure_names(made) == list(FIGURES)


def test_figures_of_the_example_are_those_that_the_tests_expect(result: Result) -> None:
    assert figure_names(result) == list(FIGURES)


# Figures.


def test_cells_of_the_confusion_matrix_have_counts_and_shares(result: Result, evaluation: dict[str, Any]) -> None:
    with own_style():
        drawn = draw_confusion(result, "hardware")
        assert cut_off(drawn.figure) == overlapping(drawn.figure) == []
    axes = drawn.figure.axes[0]
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text for text in axes.texts}
    counts = np.array(evaluation["hardware"]["confusion"])
    assert set(written) == {(int(row), int(column)) for row, column in np.argwhere(counts)}
    assert written[1, 1].get_text() == "22.5\n70 %"
    np.testing.assert_allclose(axes.images[0].get_array(), counts / counts.sum(axis=1)[:, None])
    assert next(label.get_text() for label in axes.get_yticklabels()) == "appendicitis (48)"
    for (row, column), text in written.items():
        color = axes.images[0].cmap(counts[row, column] / counts[row].sum())
        assert contrast(color, text.get_color()) >= 4.5
    assert "diverticulitis 15" in drawn.alt


def contrast(one: Any, two: Any) -> float:
    """Return the ratio of WCAG 2.1."""
    levels = []
    for color in (one, two):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        levels.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.parametrize("color", ["#000000", "#777777", "#767676", "#FFFFFF", "#0072B2", "#009E73"])
def test_ink_is_readable_on_any_colour(color: str) -> None:
    assert contrast(color, ink_on(color)) >= 4.5


def test_thirty_classes_fit_and_are_numbered(result: Result) -> None:
    with own_style():
        drawn = draw_confusion(many_classes(result), "ideal")
        assert cut_off(drawn.figure) == []
    labels = [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()]
    assert labels[4].endswith("type 4 (0)  5") and len(labels) == 30
    assert not drawn.figure.axes[0].texts and "numbered as the rows" in drawn.figure.axes[0].get_xlabel()
    assert shorten_middle("abcdefghij", 7) == "abc…hij" and shorten_middle("abc", 3) == "abc"


def test_the_reliability_diagram_shows_cases_of_every_bin(result: Result, evaluation: dict[str, Any]) -> None:
    with own_style():
        drawn = draw_reliability(result)
        assert cut_off(drawn.figure) == []
    upper, lower = drawn.figure.axes
    bins = [row for row in evaluation["ideal"]["reliability"] if row["cases"]]
    np.testing.assert_allclose(
        upper.collections[0].get_offsets(), [(row["confidence"], row["accuracy"]) for row in bins]
    )
    assert [bar.get_height() for bar in lower.containers[0]] == [row["cases"] for row in bins]
    sizes = upper.collections[0].get_sizes()
    assert np.argmax(sizes) == np.argmax([row["cases"] for row in bins])
    for device in ("ideal", "hardware"):
        for row in evaluation[device]["reliability"]:
            row |= {"cases": 0, "confidence": None, "accuracy": None}
    assert "no data" in draw_reliability(result).alt


def test_only_four_baselines_are_lines_in_the_figure_of_rounds(result: Result) -> None:
    labels = [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts(draw_rounds(result))]
    assert [label for label in labels if label.endswith(" %")] == [
        "LoRA, centralised, 75.8 %", "LoRA, each client alone, 61.3 %", "logistic regression, pooled, 83.3 %",
        "most frequent class, 40.0 %",
    ]  # fmt: skip


# Downloads.


def test_downloads_hold_the_numbers_of_the_result(result: Result, evaluation: dict[str, Any]) -> None:
    files = {
        file.name: list(csv.DictReader(file.content.decode().splitlines()))
        for file in run_downloads(result)["evaluation"]
    }
    metrics = {(row["device"], row["metric"]): row for row in files["evaluation.csv"]}
    assert float(metrics["hardware", "brier"]["value"]) == evaluation["hardware"]["brier"]["value"]
    assert float(metrics["difference", "accuracy"]["lower_95"]) == -0.0125
    assert float(metrics["ideal", "generation_unparsable"]["value"]) == evaluation["generation"]["ideal"]["unparsable"]
    confusion = [float(row["cases"]) for row in files["confusion.csv"] if row["device"] == "hardware"]
    assert confusion == [cell for row in evaluation["hardware"]["confusion"] for cell in row]
    assert len(files["reliability.csv"]) == 30 and len(files["recall.csv"]) == 8
    worst = next(row for row in files["client_accuracy.csv"] if row["client"] == "2" and row["device"] == "hardware")
    assert float(worst["accuracy"]) == evaluation["hardware"]["worst_client"]["accuracy"]
    standing = {(row["model"], row["device"]): row for row in files["standing.csv"]}
    assert float(standing["linear_local", ""]["accuracy_lowest_client"]) == 0.575
    assert float(standing["lora_local", "ideal"]["macro_f1"]) == 0.451402
    assert [row["p_value"] for row in files["mcnemar.csv"]] == ["0.625", "1.0"]
    bare: Result = {"rounds": [], "data": {}, "device": {}, "final": None}
    assert run_downloads(bare)["evaluation"] == []
