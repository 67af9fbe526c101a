"""Runs that differ in nothing but the seed: Student's interval, differences taken seed by seed, and who is left out."""

import copy
import csv
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from fllm.report.comparison.page import render_comparison
from fllm.report.comparison.score_tables import baselines_table, scores_table
from fllm.report.comparison.seed_figures import draw_differences, draw_models
from fllm.report.comparison.seed_tables import differences_over_seeds_table, models_table, seed_lines, seeds_csv
from fllm.report.comparison.seeds import Seeds, over_seeds, same_sign, spread_of
from fllm.report.drawing import own_style
from tests.report.tasks import language
from tests.report.test_energy_figures import cut_off, overlapping, rows
from tests.report.test_standing import cells, plain

Result = dict[str, Any]

SHIFTS = {"ideal": (0.0, 0.02, -0.01, 0.03), "hardware": (-0.01, 0.0, -0.01, 0.01), "lora_local": (0.0, 0.0, 0.01, 0.0)}
"""What each seed adds to accuracy and macro-F1 of the example."""


def seeded(result: Result) -> list[Result]:
    """Return the example in four seeds."""
    made = []
    for seed in range(4):
        one = copy.deepcopy(result)
        one["config"]["seed"] = seed
        one["data"]["sha256"] = f"{seed:064x}"  # made-up patients are others in every seed
        for device in ("ideal", "hardware"):
            one["final"][f"accuracy_{device}"] += SHIFTS[device][seed]
            if one["final"]["evaluation"][device]["macro_f1"]:
                one["final"]["evaluation"][device]["macro_f1"]["value"] += SHIFTS[device][seed]
        if "lora_local" in one["baselines"]:
            one["baselines"]["lora_local"]["accuracy"] += SHIFTS["lora_local"][seed]
        made.append(one)
    return made


@pytest.fixture
def seeds(result: Result) -> Seeds:
    found = over_seeds(seeded(result))
    assert found is not None
    return found


def test_the_interval_is_students() -> None:
    values = [0.71, 0.74, 0.70, 0.78, 0.73]
    found = spread_of([*values, None])
    assert found is not None and found.count == 5
    assert found.std == pytest.approx(statistics.stdev(values))
    expected = stats.t.interval(0.95, 4, loc=statistics.fmean(values), scale=stats.sem(values))
    assert found.bounds == pytest.approx(expected)
    assert spread_of([None]) is None
    single = spread_of([0.5])
    assert single is not None and (single.std, single.bounds) == (None, None)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((0.1, 0.2, -0.1, None), (2, "higher")),
        ((-0.1, -0.2, 0.1), (2, "lower")),
        ((0.0, 0.0), (2, "equal")),
        ((0.1, 0.0), (1, "higher")),
    ],
)
def test_signs_are_counted_on_the_side_of_the_mean(values: tuple[float | None, ...], found: tuple[int, str]) -> None:
    assert same_sign(values) == found


def _other_rank(result: Result) -> None:
    result["config"]["lora"]["r"] = 16


def _same_seed(result: Result) -> None:
    result["config"]["seed"] = 0


def _other_model(result: Result) -> None:
    result["model"]["sha256"] = "0" * 64


def _other_device(result: Result) -> None:
    result["device"]["values"][0]["value"] = "32"


def _no_seed(result: Result) -> None:
    del result["config"]["seed"]


@pytest.mark.parametrize("change", [_other_rank, _same_seed, _other_model, _other_device, _no_seed])
def test_runs_that_differ_in_more_are_no_seeds(result: Result, change: Callable[[Result], None]) -> None:
    runs = seeded(result)
    assert over_seeds(runs) is not None
    change(runs[3])
    assert over_seeds(runs) is None


def test_differences_are_taken_seed_by_seed(seeds: Seeds) -> None:
    differences = {one.label: one.values for one in seeds.differences}
    assert list(differences) == [
        "hardware \N{MINUS SIGN} ideal device", "federated \N{MINUS SIGN} each client alone",
        "federated \N{MINUS SIGN} centralised",
    ]  # fmt: skip
    between = (0.745833 - 0.741667 + SHIFTS["hardware"][seed] - SHIFTS["ideal"][seed] for seed in range(4))
    assert differences["hardware \N{MINUS SIGN} ideal device"]["accuracy"] == pytest.approx(list(between))
    alone = (0.745833 - 0.6125 + SHIFTS["hardware"][seed] - SHIFTS["lora_local"][seed] for seed in range(4))
    assert differences["federated \N{MINUS SIGN} each client alone"]["accuracy"] == pytest.approx(list(alone))


def test_tables_have_every_model_and_both_metrics(seeds: Seeds) -> None:
    table = models_table(seeds)
    assert [group.heading[0] for group in table.groups if group.heading] == ["Accuracy", "Macro-F1"]
    names = [row[0] for row in table.groups[0].rows]
    assert names[:3] == ["Federated LoRA, ideal", "Federated LoRA, hardware", "LoRA, centralised"]
    assert names[-1] == "Most frequent class" and len(names) == 9
    assert cells(table)[1] == ("Federated LoRA, hardware", "4", "74.3 %", "1.0 %", "72.8 to 75.9 %")
    assert cells(table)[8] == ("Most frequent class", "4", "40.0 %", "0.0 %", "40.0 to 40.0 %")
    shown = differences_over_seeds_table(seeds)
    assert cells(shown)[0] == (
        "Hardware \N{MINUS SIGN} ideal device", "4", "\N{MINUS SIGN}0.8", "1.0",
        "\N{MINUS SIGN}2.4 to +0.7", "3 of 4 lower",
    )  # fmt: skip


def test_one_sentence_states_the_outcome(seeds: Seeds) -> None:
    outcome, how = map(plain, seed_lines(seeds))
    assert outcome.startswith("Over 4 seeds the federated model reaches 74.3 % on the hardware, macro-F1 0.636; ")
    assert "points of accuracy (\N{MINUS SIGN}2.4 to +0.7; 3 of 4 seeds lower; not established)" in outcome
    assert "each client alone: +0.188 of macro-F1 (+0.173 to +0.203; 4 of 4 seeds higher; established)" in outcome
    assert outcome.count(".") - outcome.count("0.") >= 1 and outcome.endswith(").")
    assert "Student 1908" in how and "(0, 1, 2, 3)" in how


def test_a_baseline_that_a_seed_lacks_is_a_mean_of_the_others(result: Result) -> None:
    runs = seeded(result)
    del runs[0]["baselines"]["lora_local"]
    runs[1] |= {"final": None, "status": "interrupted", "rounds": []}
    found = over_seeds(runs)
    assert found is not None
    counts = {row[0]: row[1] for row in models_table(found).groups[0].rows}
    assert counts["LoRA, each client alone"] == counts["Federated LoRA, hardware"] == "3"
    shown = differences_over_seeds_table(found)
    assert shown is not None
    assert [row[1] for row in shown.groups[0].rows] == ["3", "2", "3"]


def test_runs_without_a_number_yet_have_no_outcome(result: Result) -> None:
    runs = [run | {"final": None, "rounds": [], "baselines": {}} for run in seeded(result)]
    found = over_seeds(runs)
    assert found is not None and len(seed_lines(found)) == 1
    assert differences_over_seeds_table(found) is None and models_table(found).groups == []
    assert "no data" in draw_models(found).alt and "no data" in draw_differences(found).alt


def test_language_models_are_compared_by_perplexity(result: Result) -> None:
    found = over_seeds(seeded(language(result)))
    assert found is not None and list(found.metrics.values()) == ["Next-token accuracy", "Perplexity"]
    shown = differences_over_seeds_table(found)
    assert shown is not None and [group.heading[0] for group in shown.groups if group.heading] == [
        "Next-token accuracy [points]", "Perplexity [lower is better]",
    ]  # fmt: skip
    assert draw_models(found).figure.axes[1].get_xscale() == "log"
    with own_style():
        drawn = draw_differences(found)
        assert cut_off(drawn.figure) == overlapping(drawn.figure) == []


def test_figures_show_every_seed_and_the_mean(seeds: Seeds) -> None:
    with own_style():
        for drawn in (draw_models(seeds), draw_differences(seeds)):
            assert cut_off(drawn.figure) == overlapping(drawn.figure) == []
    axes = drawn.figure.axes[0]
    assert rows(drawn)[0] == "Hardware \N{MINUS SIGN} ideal device"
    dots = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 4]
    assert dots == [pytest.approx(list(one.values["accuracy"])) for one in seeds.differences]
    marks = [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert marks == pytest.approx([statistics.fmean(one.values["accuracy"]) for one in seeds.differences])


def test_the_download_has_every_seed(seeds: Seeds) -> None:
    read = list(csv.DictReader(seeds_csv(seeds).content.decode().splitlines()))
    assert len(read) == (9 + 3) * 2 * 4
    first = [row for row in read if row["key"] == "federated" and row["metric"] == "accuracy"]
    assert [float(row["value"]) for row in first[:4]] == pytest.approx([0.741667, 0.761667, 0.731667, 0.771667])


def test_the_comparison_begins_with_seeds_and_lists_baselines(tmp_path: Path, result: Result) -> None:
    runs = seeded(result)[:2]
    page = render_comparison(runs, ["a", "b"], tmp_path)[0].read_text(encoding="utf-8")
    assert page.index('id="differences"') < page.index('id="seeds"') < page.index('id="accuracy"')
    assert (tmp_path / "figures" / "seed_differences.svg").is_file()
    assert "## Over seeds" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_scores_and_baselines_of_runs_have_intervals(result: Result) -> None:
    other = copy.deepcopy(result)
    other["baselines"] = {"majority": {"accuracy": 0.3, "macro_f1": 0.1}}
    scores = cells(scores_table([result, other], ["a", "b"]))
    assert scores[0][5:9] == ("0.635", "0.531 to 0.732", "0.639 ± 0.016", "0.540 to 0.733")
    table = baselines_table([other, result], ["a", "b"])
    assert table is not None and table.columns[-2:] == ("Most frequent class", "Majority class")
    assert cells(table)[0][-2:] == ("–", "30.0 %")  # noqa: RUF001
    assert cells(table)[1][1] == "75.8 % (68.3 to 83.0)"
    assert baselines_table([result | {"baselines": {}}] * 2, ["a", "b"]) is None
    assert len(scores_table([language(result)] * 2, ["a", "b"]).columns) == 7
