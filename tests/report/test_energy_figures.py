"""Figures of energy show the numbers of the result, in the right place, and nothing of them is cut off."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from device_models import InputError
from device_models.costs import ACCELERATOR, ARRAYS, PARTS
from fllm.report.drawing import Drawn, own_style
from fllm.report.energy_figures import (
    LINE_COLORS,
    draw_baselines,
    draw_parts,
    draw_timeline,
    draw_tornado,
    write_cost_figures,
)
from fllm.report.figures import draw_all
from fllm.report.formatting import engineering, times
from fllm.report.interval_figures import draw_comparison, draw_training

Result = dict[str, Any]


@pytest.fixture
def energy(result: Result) -> dict[str, Any]:
    return result["final"]["energy"]


@pytest.fixture
def facts(energy: dict[str, Any]) -> dict[str, Any]:
    """Return what ``fllm cost`` has of a device, as far as figures read it."""
    return {"device": {"name": "one"}, "model": {"name": "small"}, "tokens": 7, "decode": energy}


def bars(drawn: Drawn) -> list[tuple[float, float, str]]:
    """Left end, right end and colour of every bar, in the unit of the axis."""
    found = []
    for container in drawn.figure.axes[0].containers:
        if isinstance(container, BarContainer):
            for bar in container:
                found.append((bar.get_x(), bar.get_x() + bar.get_width(), to_hex(bar.get_facecolor()).upper()))
    return found


def texts(drawn: Drawn) -> list[str]:
    return [text.get_text().replace("\n", " ") for text in drawn.figure.findobj(Text) if text.get_text()]


def rows(drawn: Drawn) -> list[str]:
    return [label.get_text().replace("\n", " ") for label in drawn.figure.axes[0].get_yticklabels()]


def dots(drawn: Drawn) -> dict[float, float]:
    """Position of single marks: height to value."""
    lines = drawn.figure.axes[0].lines
    return {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in lines if len(line.get_xdata()) == 1}


def test_bars_are_the_parts_in_their_lines(energy: dict[str, Any]) -> None:
    drawn = draw_parts(energy["parts_j"])
    names = rows(drawn)
    assert set(names) == {part for part, found in energy["parts_j"].items() if found["nominal"] > 0}
    assert [PARTS[name] for name in names] == sorted((PARTS[name] for name in names), key=[ARRAYS, ACCELERATOR].index)
    unit = {"µ": 1e-6, "n": 1e-9, "p": 1e-12}[drawn.figure.axes[0].get_xlabel().split("[")[1][0]]
    for name, (left, right, color) in zip(names, bars(drawn), strict=True):
        assert left == 0.0
        assert right * unit == pytest.approx(energy["parts_j"][name]["nominal"])
        assert color == LINE_COLORS[PARTS[name]]
        assert engineering(energy["parts_j"][name]["nominal"], "J") in texts(drawn)
    for line in (ARRAYS, ACCELERATOR):
        assert f"{line}, {engineering(energy['lines_j'][line]['nominal'], 'J')}" in texts(drawn)


def test_whiskers_are_the_interval(energy: dict[str, Any]) -> None:
    part = {"refresh": {"nominal": 3e-9, "low": 1e-9, "high": 9e-9, "lower_95": 2e-9, "upper_95": 7e-9}}
    (whisker,) = draw_parts(part).figure.axes[0].collections
    ((start, end),) = [segment[:, 0] for segment in whisker.get_segments()]
    assert (start, end) == pytest.approx((2.0, 7.0))
    exact = {"refresh": {"nominal": 3e-9, "low": 3e-9, "high": 3e-9, "lower_95": 3e-9, "upper_95": 3e-9}}
    assert not draw_parts(exact).figure.axes[0].collections
    assert not draw_parts({"refresh": {"nominal": 3e-9}}).figure.axes[0].collections


def test_parts_of_nothing_are_left_out_and_unknown_ones_are_not(energy: dict[str, Any]) -> None:
    drawn = draw_parts({"refresh": {"nominal": 0.0}, "writes": {"nominal": 1e-9}, "old part": {"nominal": 2e-9}})
    assert rows(drawn) == ["writes", "old part"]
    assert bars(drawn)[1][2] == LINE_COLORS[""]
    assert "No part takes energy" in texts(draw_parts({"refresh": {"nominal": 0.0}}))
    assert "No data" in texts(draw_parts({}))


def test_baselines_stand_where_their_energy_is(energy: dict[str, Any]) -> None:
    found = energy["baselines"]
    drawn = draw_baselines(found)
    axes = drawn.figure.axes[0]
    assert axes.get_xscale() == "log"
    names = dict(zip(axes.get_yticks(), rows(drawn), strict=True))
    shown = dots(drawn)
    for scope in {row["scope"] for row in found}:
        members = [row for row in found if row["scope"] == scope]
        (own,) = [height for height, name in names.items() if name == f"{scope}: this device"]
        assert shown[own] == members[0]["device_energy_per_token_j"]
        below = [height for height in sorted(names) if height > own][: len(members)]
        for row, height in zip(sorted(members, key=lambda row: row["energy_per_token_j"]), below, strict=True):
            assert names[height].replace("- ", "-") == row["name"]
            assert shown[height] == row["energy_per_token_j"]
            assert engineering(row["energy_per_token_j"], "J") in texts(drawn)
            assert times(row["ratio"]) in texts(drawn)
    assert {row["kind"] for row in found} | {"this device"} <= set(texts(drawn))


def test_a_device_without_energy_has_baselines_but_no_ratio(energy: dict[str, Any]) -> None:
    for row in energy["baselines"]:
        row |= {"device_energy_per_token_j": 0.0, "ratio": None}
    drawn = draw_baselines(energy["baselines"])
    assert len(dots(drawn)) == len(energy["baselines"])
    assert not any("×" in text for text in texts(drawn))  # noqa: RUF001
    assert "No data" in texts(draw_baselines([]))


def test_tornado_reaches_from_end_to_end(energy: dict[str, Any]) -> None:
    found, nominal = energy["tornado"], energy["energy_per_token_j"]["nominal"]
    drawn = draw_tornado(found, nominal)
    unit = {"µ": 1e-6, "n": 1e-9}[drawn.figure.axes[0].get_xlabel().split("[")[1][0]]
    assert rows(drawn) == [f"{row['key']} {row['value']}, {row['kind']}" for row in found]
    drawn_bars = bars(drawn)
    for row, low, high in zip(found, drawn_bars[::2], drawn_bars[1::2], strict=True):
        assert low[0] * unit == high[0] * unit == pytest.approx(nominal)
        assert low[1] * unit == pytest.approx(row["low_j"])
        assert high[1] * unit == pytest.approx(row["high_j"])
        assert {row["low"], row["high"]} <= set(texts(drawn))


def test_tornado_without_ranges_says_so() -> None:
    assert "No number with a range moves it" in texts(draw_tornado([], 1e-9))
    assert "No data" in texts(draw_tornado([], None))


def test_timeline_is_in_nanoseconds(energy: dict[str, Any]) -> None:
    drawn = draw_timeline(energy["timeline"])
    assert drawn.figure.axes[0].get_xlabel().endswith("[ns]")
    assert rows(drawn) == [phase["name"] for phase in energy["timeline"]]
    for phase, (start, end, _) in zip(energy["timeline"], bars(drawn), strict=True):
        assert (start, end) == pytest.approx((phase["start_s"] * 1e9, phase["end_s"] * 1e9))
        assert f"{end - start:.3g} ns" in texts(drawn)
    assert "No step takes time" in texts(draw_timeline([]))
    assert "No data" in texts(draw_timeline(None))


def test_training_has_three_places_with_their_parts(result: Result) -> None:
    training = result["final"]["training"]
    drawn = draw_training(training)
    assert drawn.figure.axes[0].get_xscale() == "log"
    names, shown = rows(drawn), dots(drawn)
    places = [names.index(place) for place in (ARRAYS, ACCELERATOR, "network")]
    assert places == sorted(places)
    for place, start, end in zip(training["lines_j"], places, [*places[1:], len(names)], strict=True):
        assert shown[start] == training["lines_j"][place]["nominal"]
        for height in range(start + 1, end):
            assert shown[height] == training["parts_j"][place][names[height]]["nominal"]
        assert set(names[start + 1 : end]) == {p for p, found in training["parts_j"][place].items() if found["nominal"]}
    assert "No data" in texts(draw_training({}))


def test_training_without_a_link_keeps_the_other_places(result: Result) -> None:
    training = copy.deepcopy(result["final"]["training"])
    for found in (training["lines_j"]["network"], *training["parts_j"]["network"].values()):
        found.update(dict.fromkeys(found, 0.0))
    shown = rows(draw_training(training))
    assert "network" in shown
    assert "uplink" not in shown


def test_comparison_shows_both_devices(energy: dict[str, Any]) -> None:
    other = copy.deepcopy(energy)
    other["parts_j"] = {"refresh": {"nominal": 5e-9}, "writes": {"nominal": 0.0}}
    drawn = draw_comparison([("one", energy), ("other", other)])
    names = rows(drawn)
    assert names[-3:] == [f"all {ARRAYS}", f"all {ACCELERATOR}", "both together"]
    assert "refresh" in names
    shown = dots(drawn)
    assert shown[names.index("writes") - 0.2] == energy["parts_j"]["writes"]["nominal"]
    assert names.index("writes") + 0.2 not in shown
    assert shown[names.index("refresh") + 0.2] == 5e-9
    assert {"one", "other"} <= set(texts(drawn))


def cut_off(figure: Figure) -> list[str]:
    """Texts that lie outside of the figure."""
    figure.draw_without_rendering()
    page = figure.bbox
    unseen = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)  # shared axes have no labels
            unseen |= {label for tick, label in ticks if not low <= tick <= high}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in unseen]
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    return [
        name for name, box in boxes
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1
    ]  # fmt: skip


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of labels of rows and values that meet."""
    axes = figure.axes[0]
    labels = [*axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels()]
    inside = [label for label in labels if label.get_text() and figure.bbox.overlaps(label.get_window_extent())]
    boxes = [(label.get_text(), label.get_window_extent()) for label in inside]
    return [(a, b) for (a, first), (b, second) in itertools.combinations(boxes, 2) if first.overlaps(second)]


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e9])
@pytest.mark.parametrize("name", ["parts", "baselines", "timeline", "training", "comparison"])
def test_no_label_is_cut_off_or_meets_another(result: Result, name: str, size: float) -> None:
    energy = result["final"]["energy"]
    for row in energy["baselines"]:
        row |= {"device_energy_per_token_j": row["device_energy_per_token_j"] / size, "ratio": row["ratio"] * size}
    draw: dict[str, Callable[[], Drawn]] = {
        "parts": lambda: draw_parts(energy["parts_j"]),
        "baselines": lambda: draw_baselines(energy["baselines"]),
        "timeline": lambda: draw_timeline(energy["timeline"]),
        "training": lambda: draw_training(result["final"]["training"]),
        "comparison": lambda: draw_comparison([("one", energy), ("other", energy)]),
    }
    with own_style():
        figure = draw[name]().figure
        assert cut_off(figure) == []
        assert overlapping(figure) == []


def test_no_label_of_the_tornado_is_cut_off(energy: dict[str, Any]) -> None:
    with own_style():
        figure = draw_tornado(energy["tornado"], energy["energy_per_token_j"]["nominal"]).figure
        assert cut_off(figure) == []
        assert overlapping(figure) == []


@pytest.mark.usefixtures("_laid_out")
def test_every_figure_says_what_it_shows(result: Result) -> None:
    for made in draw_all(result):
        assert len(made.caption) > 30
        assert len(made.alt) > 30
        assert "nan" not in made.alt


def test_cost_figures_are_equal_for_equal_facts(facts: dict[str, Any], tmp_path: Path) -> None:
    written = write_cost_figures([facts], tmp_path / "a" / "b")
    write_cost_figures([copy.deepcopy(facts)], tmp_path / "c")
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "c").iterdir())
    assert {path.stem for path in written} == {"energy_parts", "baselines", "tornado", "timeline"}
    for path in written:
        assert path.read_bytes() == (tmp_path / "c" / path.name).read_bytes()


@pytest.mark.usefixtures("_sketched")
def test_cost_figures_of_two_devices(facts: dict[str, Any], tmp_path: Path) -> None:
    written = write_cost_figures([facts, facts], tmp_path / "both")
    names = {path.name for path in written}
    assert len(names) == len(written) == 2 * (4 + 4 + 1)
    assert {"1_one_timeline.svg", "2_one_timeline.png", "comparison.svg"} <= names


@pytest.mark.usefixtures("_sketched")
def test_cost_figures_need_a_place(facts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be made"):
        write_cost_figures([facts], tmp_path / "file" / "figures")
