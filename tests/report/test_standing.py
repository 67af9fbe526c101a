"""Where a run stands: baselines in their order and by their names, and sentences that claim what intervals allow."""

import copy
from typing import Any

import pytest

from fllm.report.drawing import own_style
from fllm.report.findings import findings
from fllm.report.standing import baseline, baseline_standings, own_standings, shown_baselines
from fllm.report.standing_figure import draw_standing
from fllm.report.tables import accuracy_table, rounds_table
from tests.report.tasks import language, without_numbers
from tests.report.test_energy_figures import cut_off, overlapping, rows, texts

Result = dict[str, Any]


@pytest.fixture
def old(result: Result) -> Result:
    """Return a result of the first version: two baselines without names and intervals, no evaluation, no task."""
    made = copy.deepcopy(result)
    kept = {key: made["baselines"][key] for key in ("majority", "tfidf_logreg")}
    made["baselines"] = {key: {"accuracy": b["accuracy"], "macro_f1": b["macro_f1"]} for key, b in kept.items()}
    del made["task"], made["final"]["evaluation"]
    return made


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def cells(table: Any) -> list[tuple[str, ...]]:
    return [tuple(map(plain, row)) for group in table.groups for row in group.rows]


def test_the_table_has_the_model_then_baselines_from_the_nearest_to_the_simplest(result: Result) -> None:
    found = cells(accuracy_table(dict(result, baselines=dict(sorted(result["baselines"].items())))))
    assert [row[0] for row in found] == [
        "This model, ideal device", "This model, emulated hardware",
        "LoRA, centralised (hardware)", "LoRA, centralised (ideal)",
        "LoRA, each client alone (hardware, mean of 3 clients)", "lowest to highest client",
        "Logistic regression, pooled", "Logistic regression, federated",
        "Logistic regression, each client alone (mean of 3 clients)", "lowest to highest client",
        "Most frequent class",
    ]  # fmt: skip
    assert found[1] == ("This model, emulated hardware", "74.6 % (66.7 to 82.1)", "0.639 (0.540 to 0.733)")
    assert found[5] == ("lowest to highest client", "52.1 to 66.7 %", "0.382 to 0.490")


def test_intervals_of_the_evaluation_come_before_those_beside_it(result: Result) -> None:
    result["final"]["evaluation"]["hardware"]["accuracy"]["interval_95"] = [0.1, 0.9]
    assert own_standings(result)[1]["accuracy"].bounds == (0.1, 0.9)
    result["final"]["evaluation"] = None
    assert own_standings(result)[1]["accuracy"].bounds == (0.666667, 0.820833)


def test_an_older_result_keeps_its_names(old: Result) -> None:
    assert [one.label for one in baseline_standings(old)] == ["TF-IDF + logistic regression", "Majority class"]
    assert cells(accuracy_table(old))[-1] == ("Majority class", "40.0 %", "0.143")
    assert cells(accuracy_table(old))[0] == ("This model, ideal device", "74.2 % (65.8 to 81.7)", "0.635")


def test_what_a_later_version_adds_is_shown_as_well(result: Result) -> None:
    result["baselines"] = {"nearest_neighbour": {"accuracy": 0.5}, "majority": {"accuracy": 0.4}, "gone": None}
    assert [one.label for one in baseline_standings(result)] == ["Majority class", "Nearest neighbour"]
    assert baseline(result, "gone") is None


def test_clients_alone_on_the_ideal_device_are_left_to_the_download(result: Result) -> None:
    every = {(one.key, one.device) for one in baseline_standings(result)}
    assert every - {(one.key, one.device) for one in shown_baselines(result)} == {("lora_local", "ideal")}


@pytest.mark.parametrize(
    ("accuracy", "bounds", "verdict"),
    [
        (0.2, None, "clearly above; the whole interval on hardware"),
        (0.75, None, "not told apart; it lies inside"),
        (0.95, None, "clearly below; the whole interval on hardware"),
        (0.2, [0.1, 0.3], "clearly above; the 95 % intervals do not overlap"),
        (0.95, [0.9, 0.99], "clearly below; the 95 % intervals do not overlap"),
        (0.6, [0.55, 0.67], "above, but not told apart; the 95 % intervals overlap"),
        (0.95, [0.8, 0.99], "below, but not told apart; the 95 % intervals overlap"),
    ],
)
def test_a_baseline_is_placed_by_the_intervals(
    result: Result, accuracy: float, bounds: list[float] | None, verdict: str
) -> None:
    result["baselines"]["tfidf_logreg"] |= {"accuracy": accuracy, "interval_95": {"accuracy": bounds}}
    (sentence,) = [plain(line) for line in findings(result) if "regression, pooled (" in line]
    assert sentence.startswith(f"Against the logistic regression, pooled ({100 * accuracy:.1f} %): {verdict}")


def test_the_difference_to_the_ideal_device_is_paired(result: Result) -> None:
    first = plain(findings(result)[0])
    assert "0.4 points above the ideal device; paired, case by case: +0.4 points" in first
    assert "(95 % interval \N{MINUS SIGN}1.2 to +2.1), exact McNemar p = 0.62 on die 0; zero lies inside" in first
    difference = result["final"]["evaluation"]["difference"]
    difference["accuracy"]["interval_95"] = [0.001, 0.02]
    difference["mcnemar"][0]["p_value"] = 1e-6
    assert findings(result)[0].endswith("exact McNemar p < 0.001 on die 0; zero lies outside the interval.".replace(
        "< 0", "<\N{NO-BREAK SPACE}0"))  # fmt: skip
    difference["mcnemar"][0]["p_value"] = 0.06
    assert findings(result)[0].endswith("yet the exact test establishes no difference on any die.")
    result["final"]["evaluation"] = None
    assert findings(result)[0].endswith("their 95 % intervals overlap, so they alone establish no difference.")


def test_federation_is_compared_with_going_alone_and_with_pooling(result: Result) -> None:
    _, alone, pooled, *_ = map(plain, findings(result))
    assert alone.startswith("Is federation better than going alone? Macro-F1 on hardware 0.639 against 0.448 (LoRA, ")
    assert "mean of 3 clients, 0.382 to 0.490): clearly above" in alone
    assert pooled.startswith("What does federation cost? Macro-F1 on hardware 0.639 against 0.612 (LoRA, centralised)")
    assert pooled.endswith("above, but not told apart; the 95 % intervals overlap.")
    result["baselines"]["lora_local"]["macro_f1"] = None
    assert "Accuracy on hardware 74.6 % against 61.3 %" in plain(findings(result)[1])
    result["final"]["evaluation"] = None
    assert findings(result)[2].endswith("there is no interval to tell how sure that is.")


def test_language_models_stand_by_their_perplexity(result: Result) -> None:
    made = language(result)
    assert accuracy_table(made).columns == ("", "Next-token accuracy", "Perplexity")
    assert cells(accuracy_table(made))[1][2] == "18.6 (18.1 to 19.1)"
    said = [plain(line) for line in findings(made)]
    assert "Against the frequencies of token pairs (perplexity 68.0): clearly below;" in " ".join(said)
    assert any(line.endswith("Lower is better.") for line in said)
    assert not any("Macro-F1" in column for column in rounds_table(made).columns)
    made["final"]["evaluation"]["hardware"]["perplexity"]["interval_95"] = None
    assert any(plain(line).endswith("(perplexity 68.0): below; lower is better.") for line in findings(made))


def test_the_figure_shows_what_the_table_shows(result: Result) -> None:
    with own_style():
        drawn = draw_standing(result)
        assert cut_off(drawn.figure) == overlapping(drawn.figure) == []
    names = rows(drawn)
    assert len(names) == len([row for row in cells(accuracy_table(result)) if row[0] != "lowest to highest client"])
    left, right = drawn.figure.axes
    for axes, metric in ((left, "accuracy"), (right, "macro_f1")):
        marks = {float(line.get_ydata()[0]): float(line.get_xdata()[0])
                 for line in axes.lines if len(line.get_xdata()) == 1}  # fmt: skip
        assert marks[names.index("Most frequent class")] == result["baselines"]["majority"][metric]
        spans = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
        assert list(result["final"]["evaluation"]["hardware"][metric]["interval_95"]) in spans
    assert [0.520833, 0.666667] in [list(line.get_xdata()) for line in left.lines]  # the clients' own models
    assert "LoRA, centralised (ideal) 76.7 % (Macro-F1 0.620)" in plain(drawn.alt)


def test_the_figure_of_language_models_and_of_nothing(result: Result) -> None:
    with own_style():
        drawn = draw_standing(language(result))
        assert cut_off(drawn.figure) == overlapping(drawn.figure) == []
    assert drawn.figure.axes[1].get_xscale() == "log"
    assert "Next-token accuracy [%]" in texts(drawn)
    empty = without_numbers(result) | {"final": None, "rounds": []}
    assert "no data" in draw_standing(empty).alt
