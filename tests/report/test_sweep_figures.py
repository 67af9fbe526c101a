"""Figures of a sweep show its numbers in the right place, at any shape and state, and no label is cut off."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fllm.report.drawing import Drawn, own_style
from fllm.report.sweep.cost_figures import draw_energy_parts, draw_front, draw_latency
from fllm.report.sweep.costs import changing
from fllm.report.sweep.curve_figures import draw_cloud, draw_curve
from fllm.report.sweep.curves import curves
from fllm.report.sweep.facts import analyse
from fllm.report.sweep.figures import _figures, draw_sweep, file_name
from fllm.report.sweep.front import pareto_front
from fllm.report.sweep.map_figure import _readable, draw_map, has_map
from fllm.report.sweep.required import main_required, required_values
from fllm.report.sweep.required_figure import draw_required
from tests.report.sweep_example import PRESETS, TAUS, drawn_points, grid, hand_made, make_sweep

NASTY = "<script>alert('x')</script> $x_1$ | \n a"
SHAPES: dict[str, Callable[[], dict[str, Any]]] = {
    "grid": lambda: make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 4, 5, 6, 7, 8])),
    "one key": lambda: make_sweep(grid(retention__tau=["0.2 ms", "0.5 ms", "1 ms", "2 ms", "4 ms", "10 ms", "50 ms"])),
    "words": lambda: make_sweep(grid(device_model=PRESETS)),
    "words and bits": lambda: make_sweep(grid(device_model=PRESETS, readout__bits=[3, 5, 8])),
    "tau and words": lambda: make_sweep(grid(retention__tau=TAUS, device_model=PRESETS[:4])),
    "three keys": lambda: make_sweep(
        grid(retention__tau=TAUS[1:], readout__bits=[4, 6], variability__gain_sigma=[0.0, 0.02, 0.1])
    ),
    "sobol": lambda: make_sweep(drawn_points(24), design="sobol"),
    "one die": lambda: make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5]), dies=1),
    "failed": lambda: make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5]), failed={1: NASTY, 5: "no memory"}),
    "train": lambda: make_sweep(grid(retention__tau=TAUS, readout__bits=[4, 6]), mode="train", seeds=(0, 1, 2), dies=2),
    "empty": lambda: make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5]), status="running", finished=0),
    "unfinished": lambda: make_sweep(
        grid(retention__tau=TAUS, readout__bits=[3, 5]), status="interrupted", finished=13
    ),
    "many": lambda: make_sweep(
        grid(retention__tau=[f"{0.1 * 1.5**n:.4g} ms" for n in range(15)], readout__bits=list(range(3, 13))), dies=2
    ),
    "one energy": lambda: make_sweep(grid(variability__gain_sigma=[0.0, 0.02, 0.05, 0.1, 0.2])),
}


def cut_off(figure: Figure) -> list[str]:
    """Texts that reach beyond the figure."""
    page = figure.bbox
    return [
        text.get_text() for text, box in seen(figure)
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1
    ]  # fmt: skip


def seen(figure: Figure) -> list[tuple[Text, Any]]:
    """Visible texts with their boxes; matplotlib keeps some labels of ticks beyond the axis that it never draws."""
    figure.draw_without_rendering()
    unseen = set()
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            slack = 1e-9 * abs(high - low)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                inside = min(low, high) - slack <= tick.get_loc() <= max(low, high) + slack
                unseen |= set() if inside else {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in unseen]
    return [(text, text.get_window_extent()) for text in texts]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that meet; the box of a slanted one says little."""
    level = [(text, box) for text, box in seen(figure) if text.get_rotation() in (0, 90)]
    pairs = itertools.combinations(level, 2)
    return [(a.get_text(), b.get_text()) for (a, first), (b, second) in pairs if first.overlaps(second)]


def texts(drawn: Drawn) -> str:
    return " | ".join(text.get_text() for text, _ in seen(drawn.figure)).replace("\xa0", " ")


@pytest.mark.parametrize("shape", SHAPES)
def test_no_label_is_cut_off_or_meets_another_and_every_figure_says_what_it_shows(shape: str) -> None:
    for name, draw in _figures(analyse(SHAPES[shape]())).items():
        with own_style():
            drawn = draw()
            assert cut_off(drawn.figure) == [], name
            assert overlapping(drawn.figure) == [], name
        assert len(drawn.caption) > 40 and drawn.caption.endswith("."), name
        assert len(drawn.alt) > 20 and "nan" not in drawn.alt, name


def test_figures_of_a_grid() -> None:
    names = [picture.name for picture in draw_sweep(SHAPES["grid"]())]
    assert names == [
        "accuracy_retention_tau", "accuracy_readout_bits", "required_retention_tau", "required_readout_bits",
        "heat_map", "accuracy_energy", "energy_parts", "latency",
    ]  # fmt: skip


def test_figures_that_have_nothing_to_show_are_left_out() -> None:
    assert "heat_map" not in _figures(analyse(SHAPES["one key"]()))
    assert {"heat_map", "latency"} & set(_figures(analyse(SHAPES["sobol"]()))) == set()
    assert "required_device_model" not in _figures(analyse(SHAPES["words"]()))
    assert not has_map(analyse(make_sweep(grid(retention__tau=TAUS, readout__bits=[5]))))


def test_file_names_are_harmless() -> None:
    assert file_name("accuracy", "retention.tau") == "accuracy_retention_tau"
    assert file_name("accuracy", "../<x>|y") == "accuracy_x_y"


def test_lines_pass_through_the_means() -> None:
    sweep = analyse(SHAPES["one key"]())
    with own_style():
        axes = draw_curve(sweep, curves(sweep)[0]).figure.axes[0]
    line = next(line for line in axes.lines if len(line.get_xdata()) == 7)
    assert list(line.get_xdata()) == pytest.approx(sweep.keys[0].values)
    assert list(line.get_ydata()) == pytest.approx([point.accuracy for point in sweep.points[:7]])
    assert axes.get_xscale() == "log"


def test_bars_are_the_intervals_over_dies() -> None:
    sweep = analyse(SHAPES["one key"]())
    with own_style():
        axes = draw_curve(sweep, curves(sweep)[0]).figure.axes[0]
    ends = [bar[2][0].get_segments()[0][:, 1] for bar in axes.containers]
    for point, (low, high) in zip(sweep.points[:7], ends, strict=True):
        assert (low, high) == pytest.approx(point.accuracy_interval)


def test_lines_of_a_grid_are_shifted_less_than_a_quarter_step() -> None:
    sweep = analyse(SHAPES["grid"]())
    with own_style():
        axes = draw_curve(sweep, curves(sweep)[1]).figure.axes[0]
    lines = [np.asarray(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(lines) == 4
    assert all(abs(line - np.arange(3, 9)).max() <= 0.25 for line in lines)
    assert len({line[0] for line in lines}) == 4


def test_the_base_device_is_marked() -> None:
    sweep = analyse(SHAPES["one key"]())
    with own_style():
        drawn = draw_curve(sweep, curves(sweep)[0])
        assert "as published: 5 ms, " in texts(drawn)
    base = sweep.points[sweep.base]
    stars = [line for line in drawn.figure.axes[0].lines if line.get_marker() == "*"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in stars] == [(0.005, pytest.approx(base.accuracy))]


def test_a_base_device_without_accuracy_has_a_line_but_no_star() -> None:
    sweep = analyse(make_sweep(grid(retention__tau=TAUS), failed={2: "no memory"}))
    with own_style():
        drawn = draw_curve(sweep, curves(sweep)[0])
        assert "as published: 5 ms" in texts(drawn) and "failed" in texts(drawn)
    assert not [line for line in drawn.figure.axes[0].lines if line.get_marker() == "*"]


def test_one_line_or_several_for_the_ideal_device() -> None:
    def drawn(shape: str) -> str:
        sweep = analyse(SHAPES[shape]())
        with own_style():
            made = draw_curve(sweep, curves(sweep)[0])
            return f"{texts(made)} || {made.caption}"

    assert "Ideal device, 78.5 %" in drawn("grid")
    assert "Thin lines without marks: the ideal device" in drawn("train")
    assert "Ideal device, " not in drawn("train")


def test_the_majority_class_is_a_line_unless_it_is_far_away() -> None:
    def drawn(hits: list[int]) -> str:
        sweep = analyse(hand_made("readout.bits", [3, 4, 5], [[n] for n in hits], ideal=80))
        with own_style():
            made = draw_curve(sweep, curves(sweep)[0])
            return f"{texts(made)} || {made.caption}".replace("\xa0", " ")

    assert "Majority class, 40.0 %" in drawn([45, 60, 80])
    assert "The majority class (40.0 %) lies below the axis." in drawn([78, 79, 80])


def test_captions_say_what_bars_are_and_what_is_held() -> None:
    def caption(shape: str) -> str:
        sweep = analyse(SHAPES[shape]())
        with own_style():
            return draw_curve(sweep, curves(sweep)[0]).caption

    assert "95 % interval of the mean over dies (Student t)" in caption("grid")
    assert "over seeds, each by the mean over its dies" in caption("train")
    assert "One replicate of each point: no bars." in caption("one die")
    assert "variability.gain_sigma is held at 0.02, the swept value nearest to 0.05 as published." in caption(
        "three keys"
    )


def test_rows_of_words_name_the_base_device_in_bold() -> None:
    sweep = analyse(SHAPES["words"]())
    with own_style():
        drawn = draw_curve(sweep, curves(sweep)[0])
        labels = drawn.figure.axes[0].get_yticklabels()
        assert [label.get_text() for label in labels] == PRESETS
        assert [label.get_text() for label in labels if label.get_fontweight() == "bold"] == ["gaincell_28nm"]
    assert "Bold: as published." in drawn.caption


def test_a_cloud_shows_every_point_and_the_other_key_by_its_marks() -> None:
    sweep = analyse(SHAPES["sobol"]())
    with own_style():
        drawn = draw_cloud(sweep, sweep.keys[0])
    marks = [bar[0] for bar in drawn.figure.axes[0].containers]
    assert len(marks) == 24
    assert {mark.get_marker() for mark in marks} == {"o", "s", "^"}
    assert "the other keys vary as well" in drawn.caption


def test_a_large_cloud_has_no_bars() -> None:
    sweep = analyse(make_sweep(drawn_points(160), design="random", dies=2))
    with own_style():
        drawn = draw_cloud(sweep, sweep.keys[0])
        assert "drawn without bars" in drawn.caption and "Bars:" not in drawn.caption
        assert "drawn without bars" in draw_front(sweep).caption


def test_cells_of_the_map() -> None:
    sweep = analyse(SHAPES["grid"]())
    with own_style():
        drawn = draw_map(sweep)
        axes = drawn.figure.axes[0]
        cells = np.asarray(axes.images[0].get_array())
        assert cells.shape == (6, 4)
        for point in sweep.points:
            row = int(point.values["readout.bits"]) - 3
            column = TAUS.index(point.settings["retention.tau"])
            assert cells[row, column] == pytest.approx(point.accuracy)
            assert f"{100 * point.accuracy:.1f}" in [text.get_text() for text in axes.texts]
        assert [text.get_text() for text in axes.get_xticklabels()] == [tau.replace(" ", "\xa0") for tau in TAUS]
    frame = axes.patches[-1]
    assert (frame.get_x() + 0.46, frame.get_y() + 0.46) == pytest.approx((2, 2)), "5 ms, 5 bits"
    assert "Framed: the device as published." in drawn.caption


@pytest.mark.parametrize("share", np.linspace(0, 1, 21))
def test_numbers_are_readable_on_their_colour(share: float) -> None:
    """Contrast of WCAG 2.1 AA, 4.5 to 1."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    def luminance(color: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colormaps["cividis"](share)[:3]), luminance(to_rgb(_readable(share)))))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_cells_without_accuracy_say_so() -> None:
    with own_style():
        drawn = draw_map(analyse(SHAPES["failed"]()))
        assert texts(drawn).count("failed") == 2
    assert "Crossed cells have no accuracy" in drawn.caption


def test_a_base_device_outside_the_map_is_said_to_be() -> None:
    with own_style():
        drawn = draw_map(analyse(SHAPES["three keys"]()))
    assert "The device as published is not one of the cells." in drawn.caption


def test_the_front_is_a_line_of_steps() -> None:
    sweep = analyse(SHAPES["grid"]())
    front = pareto_front(sweep)
    with own_style():
        axes = draw_front(sweep).figure.axes[0]
    (line,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert list(line.get_xdata()) == pytest.approx([sweep.points[place].energy for place in front])
    assert list(line.get_ydata()) == pytest.approx([sweep.points[place].accuracy for place in front])


@pytest.mark.parametrize(("ratio", "scale"), [(4.9, "linear"), (5.1, "log")])
def test_energies_that_span_more_than_five_are_on_a_log_axis(ratio: float, scale: str) -> None:
    result = hand_made("readout.bits", [3, 4], [[60], [70]], ideal=80, energies=[1e-7, ratio * 1e-7])
    with own_style():
        assert draw_front(analyse(result)).figure.axes[0].get_xscale() == scale


def test_bars_of_parts_add_up_to_the_energy() -> None:
    sweep = analyse(SHAPES["grid"]())
    with own_style():
        drawn = draw_energy_parts(sweep)
    axes = drawn.figure.axes[0]
    for row, tau in enumerate(TAUS):
        bars = [container[0] for container in axes.containers]
        widths = [bar.get_width() for bar in bars if round(bar.get_y() + 0.31) == row]
        place = next(n for n, p in enumerate(sweep.points) if p.settings == {"retention.tau": tau, "readout.bits": "5"})
        assert sum(widths) * 1e-9 == pytest.approx(sweep.points[place].energy)
    assert "readout.bits is held at 5, as published." in drawn.caption
    assert "No varied key changes the energy" not in drawn.caption
    with own_style():
        assert (
            "No varied key changes the energy noticeably." in draw_energy_parts(analyse(SHAPES["one energy"]())).caption
        )


def test_latency_is_drawn_against_the_keys_that_change_it() -> None:
    sweep = analyse(SHAPES["grid"]())
    with own_style():
        drawn = draw_latency(sweep, changing(sweep, "latency_per_token_s"))
    (axes,) = drawn.figure.axes
    assert axes.get_xlabel() == "readout.bits"
    assert "retention.tau is held at 5\xa0ms, as published." in drawn.caption
    with own_style():
        assert "No varied key changes the latency" in texts(draw_latency(sweep, []))


def test_required_values_beyond_the_sweep_are_arrows() -> None:
    values = ["0.1 ms", "1 ms", "10 ms", "100 ms"]
    sweep = analyse(hand_made("retention.tau", values, [[40, 40], [66, 66], [69, 69], [70, 70]], ideal=72))
    ((curve, lines),) = required_values(sweep)
    with own_style():
        drawn = draw_required(sweep, curve, main_required(curve, lines))
        assert texts(drawn).count("not\nreached") == 2, "half a point and one point below the ideal device"
        low, high = drawn.figure.axes[0].get_ylim()
    dots = [line for line in drawn.figure.axes[0].lines if line.get_marker() in "os" and len(line.get_xdata()) == 1]
    found = main_required(curve, lines)
    expected = [r.value(r.at) for r in (*found.ideal, *found.end) if r.value(r.at) is not None]
    assert sorted(float(dot.get_ydata()[0]) for dot in dots) == pytest.approx(sorted(expected))
    assert low < 1e-4 and high > 0.1
    assert "1 points not reached" in drawn.alt
