"""Numbers of the page: three significant digits, the right prefix, a dash for nothing."""

import copy
import math
import pickle

import pytest

from fllm.report.drawing import shorten
from fllm.report.formatting import (
    NOTHING,
    Quantity,
    between,
    change,
    change_between,
    count,
    engineering,
    estimate,
    interval,
    p_value,
    percent,
    plural,
    points,
    points_between,
    score,
    share,
    shown_count,
    significant,
    spread,
    times,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.7e-14, "J", "17.0 fJ"),
        (9.996e-10, "J", "1.00 nJ"),
        (6.1e-9, "J", "6.10 nJ"),
        (6.5e-8, "s", "65.0 ns"),
        (3.84e-5, "s", "38.4 µs"),
        (999.6, "B", "1.00 kB"),
        (1.0, "s", "1.00 s"),
        (-2.5e-3, "V", "-2.50 mV"),
        (0.0, "J", "0 J"),
        (5e-27, "J", "0.00500 yJ"),
        (None, "J", NOTHING),
        (math.inf, "J", NOTHING),
    ],
)
def test_engineering(value: float | None, unit: str, text: str) -> None:
    assert engineering(value, unit).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.91234, "0.912"), (0.99999, "1.00"), (12.34, "12.3"), (4567.0, "4567"), (3.2e9, "3.20e+09"), (1e-6, "1.00e-06")],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "1.00 x"), (0.5812, "0.581 x"), (999.6, "1000 x"), (29_949.0, "29,900 x"), (2.621e8, "2.62·10⁸ x"),
        (1.66e-5, "1/60,200"), (0.0, NOTHING), (None, NOTHING), (math.nan, NOTHING),
    ],
)  # fmt: skip
def test_times(ratio: float | None, text: str) -> None:
    assert times(ratio).replace("\N{NO-BREAK SPACE}", " ").replace("\N{MULTIPLICATION SIGN}", "x") == text


def test_shorten() -> None:
    assert shorten("12345", 5) == "12345"
    assert shorten("123456", 5) == "1234\N{HORIZONTAL ELLIPSIS}"


def test_words_around_numbers() -> None:
    assert count(65536) == "65,536"
    assert count(2_621_440).split() == ["2.62", "M"]
    assert count(1.5) == "1.50"
    assert count(17370.6) == "17,371"
    assert percent(0.8375).split() == ["83.8", "%"]
    assert interval([0.6, 0.705]).split() == ["60.0", "to", "70.5", "%"]
    assert interval(None) == interval([]) == NOTHING
    assert [share(part, 1.0).replace("\N{NO-BREAK SPACE}", " ") for part in (0.0, 1e-9, 0.25)] == [
        "0.0 %",
        "< 0.1 %",
        "25.0 %",
    ]
    assert share(1.0, 0.0) == NOTHING
    assert spread(0.8, 0.01, 4).split() == ["80.0", "±", "1.0", "%"]
    assert spread(1.5, 0.0, 1, fraction=False) == "1.50"
    assert (plural(1, "round"), plural(1000, "round")) == ("1 round", "1,000 rounds")


@pytest.mark.parametrize(
    ("quantity", "value", "exact"),
    [
        (engineering(5.9512e-7, "J"), 5.9512e-7, "5.9512e-07 J"),
        (engineering(0.0, "B"), 0.0, "0 B"),
        (percent(0.74166), 0.74166, "0.74166"),
        (spread(0.746, 0.0123, 4), 0.746, "0.746 ± 0.0123"),
        (interval([0.658, 0.817]), 0.658, "0.658 to 0.817"),
        (count(1_048_576), 1_048_576, "1048576"),
        (share(1e-9, 1.0), 1e-9, "1e-09"),
        (times(1 / 240), 1 / 240, repr(1 / 240)),
        (significant(1.2345), 1.2345, "1.2345"),
    ],
)
def test_what_is_written_knows_its_number(quantity: str, value: float, exact: str) -> None:
    assert isinstance(quantity, Quantity)
    assert (quantity.value, quantity.exact) == (value, exact)
    for copied in (copy.deepcopy(quantity), pickle.loads(pickle.dumps(quantity))):
        assert (copied, copied.value, copied.exact) == (quantity, value, exact)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (score(0.0953), "0.095"),
        (score(1.0), "1.00"),
        (score(18.24), "18.2"),
        (score(math.nan), NOTHING),
        (between([0.0331, 1.25]), "0.033 to 1.25"),
        (between(None), NOTHING),
        (estimate(0.742, [0.658, 0.817]), "74.2 % (65.8 to 81.7)"),
        (estimate(0.635, [0.531, 0.732], fraction=False), "0.635 (0.531 to 0.732)"),
        (estimate(0.742, None), "74.2 %"),
        (estimate(None, [0.1, 0.2]), NOTHING),
        (points(-0.0042), "\N{MINUS SIGN}0.4"),
        (points_between([-0.0125, 0.021]), "\N{MINUS SIGN}1.2 to +2.1"),
        (points_between(None), NOTHING),
        (change(0.0042), "+0.004"),
        (change_between([-0.5, None][:1]), NOTHING),
        (change_between([-0.5, 1.5]), "\N{MINUS SIGN}0.500 to +1.500"),
        (p_value(0.625), "0.62"),
        (p_value(0.0412), "0.041"),
        (p_value(2e-7), "< 0.001"),
        (p_value(None), NOTHING),
        (shown_count(4, None), "4"),
        (shown_count(4, 5), "< 5"),
        (shown_count(0, 5), "0"),
        (shown_count(None, 5), "hidden"),
        (shown_count(None, None), NOTHING),
    ],
)
def test_scores_differences_and_hidden_counts(shown: str, text: str) -> None:
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == text


def test_an_estimate_breaks_only_before_its_interval() -> None:
    shown = estimate(0.7421, [0.6583, 0.8167])
    assert shown.split(" ") == ["74.2\N{NO-BREAK SPACE}%", "(65.8\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}81.7)"]
    assert isinstance(shown, Quantity)
    assert (shown.value, shown.exact) == (0.7421, "0.7421 (0.6583 to 0.8167)")
