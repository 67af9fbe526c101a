"""Required values: interpolation against hand-worked numbers, and honest ends where the sweep does not reach."""

import math

import numpy as np
import pytest

from fllm.report.sweep.facts import analyse
from fllm.report.sweep.required import ALLOWED, Required, crossing, main_required, required_values
from fllm.report.sweep.tables import required_table
from tests.report.sweep_example import TAUS, grid, hand_made, make_sweep

PLACES = np.array([0.0, 1.0, 2.0, 3.0])


def at(drops: list[float], allowed: float) -> float:
    return float(crossing(PLACES, np.array([drops]), allowed)[0])


def test_crossing_is_interpolated() -> None:
    assert at([0.30, 0.10, 0.02, 0.01], 0.05) == pytest.approx(1.0 + 0.05 / 0.08)
    assert at([0.30, 0.10, 0.02, 0.01], 0.02) == pytest.approx(2.0), "a drop of the allowed size is allowed"
    assert at([0.30, 0.10, 0.02, 0.01], 0.10) == pytest.approx(1.0)


def test_the_last_crossing_counts() -> None:
    assert at([0.30, 0.01, 0.07, 0.01], 0.05) == pytest.approx(2.0 + 0.02 / 0.06)
    assert at([0.01, 0.01, 0.07, 0.01], 0.05) == pytest.approx(2.0 + 0.02 / 0.06)


def test_beyond_the_sweep_nothing_is_extrapolated() -> None:
    assert at([0.30, 0.20, 0.10, 0.06], 0.05) == math.inf
    assert at([0.01, 0.02, 0.03, 0.06], 0.05) == math.inf
    assert at([0.04, 0.03, 0.02, 0.01], 0.05) == -math.inf
    assert at([0.05, 0.05, 0.05, 0.05], 0.05) == -math.inf


def test_rows_are_independent() -> None:
    rows = np.array([[0.3, 0.1, 0.02, 0.01], [0.01, 0.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.3]])
    assert crossing(PLACES, rows, 0.06).tolist() == pytest.approx([1.5, -math.inf, math.inf])


def only(result: dict, allowed: float, reference: str = "ideal") -> Required:
    ((curve, lines),) = required_values(analyse(result))
    return getattr(main_required(curve, lines), reference)[ALLOWED.index(allowed)]


def test_tau_is_interpolated_in_its_logarithm() -> None:
    """Drops 30, 4, 1 and 0 points at 0.1, 1, 10 and 100 ms: 2 points lie two thirds of a decade above 1 ms."""
    values = ["0.1 ms", "1 ms", "10 ms", "100 ms"]
    result = hand_made("retention.tau", values, [[50, 50], [76, 76], [79, 79], [80, 80]], ideal=80)
    found = only(result, 0.02)
    assert found.value(found.at) == pytest.approx(1e-3 * 10 ** (2 / 3))
    assert found.text(found.at) == "4.64\xa0ms"
    assert found.rising and found.whole_text == ""
    assert found.value(found.lower) <= found.value(found.at) <= found.value(found.upper)
    one = only(result, 0.01)
    assert one.value(one.at) == pytest.approx(1e-2)


def test_bits_are_interpolated_as_they_are_and_rounded_up() -> None:
    result = hand_made("readout.bits", [3, 4, 5, 6], [[60, 60], [74, 74], [79, 79], [80, 80]], ideal=80)
    found = only(result, 0.02)
    assert found.value(found.at) == pytest.approx(4.8)
    assert (found.text(found.at), found.whole_text) == ("4.8", "5")
    exact = only(result, 0.01)
    assert (exact.text(exact.at), exact.whole_text) == ("5", "5")


def test_a_falling_key_has_a_largest_value() -> None:
    hits = [[80, 80], [79, 79], [76, 76], [50, 50]]
    result = hand_made("variability.gain_sigma", [0.0, 0.1, 0.2, 0.3], hits, ideal=80)
    found = only(result, 0.02)
    assert not found.rising
    assert found.value(found.at) == pytest.approx(0.1 + 0.1 * 1 / 3)
    assert found.value(found.lower) >= found.value(found.at) >= found.value(found.upper), "the upper end demands more"


def test_the_end_of_the_sweep_is_the_other_reference() -> None:
    """The device loses 10 points to other effects: no tau reaches the ideal device, but its own share is known."""
    values = ["0.1 ms", "1 ms", "10 ms", "100 ms"]
    result = hand_made("retention.tau", values, [[40, 40], [66, 66], [69, 69], [70, 70]], ideal=80)
    ideal, end = only(result, 0.02), only(result, 0.02, "end")
    assert (ideal.at, ideal.text(ideal.at), ideal.never) == (math.inf, "not reached", pytest.approx(1.0, abs=0.02))
    assert end.value(end.at) == pytest.approx(1e-3 * 10 ** (2 / 3))


@pytest.mark.parametrize(
    ("key", "values", "text"),
    [
        ("readout.bits", [3, 4, 5], "≤ 3"),
        ("retention.tau", ["1 ms", "5 ms", "50 ms"], "≤ 1\xa0ms"),
    ],
)
def test_met_everywhere(key: str, values: list, text: str) -> None:
    found = only(hand_made(key, values, [[79, 79], [79, 79], [80, 80]], ideal=80), 0.05)
    assert (found.at, found.text(found.at)) == (-math.inf, text)
    assert found.value(found.at) is None and found.whole_text == ""
    assert found.always > 0.9


def test_met_everywhere_by_a_falling_key() -> None:
    result = hand_made("variability.gain_sigma", [0.01, 0.02, 0.05], [[80, 80], [79, 79], [79, 79]], ideal=80)
    assert only(result, 0.05).text(-math.inf) == "≥ 0.05"


def test_shares_of_draws_add_up_and_bound_the_interval() -> None:
    """Near an end of the sweep a part of the draws leaves it; an interval then ends there, not in a number."""
    result = hand_made("readout.bits", [3, 4, 5], [[70, 70], [75, 75], [78, 78]], ideal=80)
    found = only(result, 0.02)
    assert 0.2 < found.never < 0.8
    assert found.upper == math.inf and "to\xa0not\xa0reached" in found.interval_text
    assert 0.0 <= found.always + found.never <= 1.0


def test_too_few_values_and_words_are_not_asked() -> None:
    assert required_values(analyse(make_sweep(grid(retention__tau=["1 ms", "5 ms"])))) == []
    assert required_values(analyse(make_sweep(grid(device_model=["ideal", "gaincell_28nm", "gaincell_igzo"])))) == []
    assert required_values(analyse(make_sweep(grid(retention__tau=TAUS), finished=0))) == []


def test_no_records_no_interval() -> None:
    result = hand_made("readout.bits", [3, 4, 5], [[60, 60], [74, 74], [79, 79]], ideal=80)
    for row in result["rows"]:
        row["correct"] = None
    found = only(result, 0.02)
    assert not found.has_interval and found.interval_text == ""
    assert found.value(found.at) == pytest.approx(4.8)


def test_table_names_what_is_missing_and_how_often_it_leaves_the_sweep() -> None:
    result = make_sweep(grid(retention__tau=TAUS, readout__bits=[3, 5]), failed={5: "no memory"})
    ((curve, lines),) = required_values(analyse(result))
    table = required_table(curve, lines)
    cells = [" | ".join(row).replace("\xa0", " ") for group in table.groups for row in group.rows]
    assert len(table.groups) == 2 and len(cells) == 4
    assert cells[1].startswith("readout.bits = 5 (retention.tau = 5 ms missing)")
    assert "not reached in" in cells[1] and "% of draws" in cells[1]
