"""What ``--vary key=values`` and ``--design`` lay out: every way to write it, every way to get it wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from device_models import InputError, parse_quantity
from fllm.sweeps.design import DRAWN, MOST_VALUES, Kind, Span, Vary, combinations, parse_vary

RARE = 1e-3
"""p-value below which a distribution counts as wrong; seeds are fixed, so a test that passes passes always."""


@pytest.mark.parametrize(
    ("text", "key", "spec"),
    [
        ("readout.bits=3:8", "readout.bits", "3:8"),
        (" readout.bits = 3 , 4 ", "readout.bits", "3 , 4"),
        ("device.readout.bits=3", "readout.bits", "3"),
        ("device_model=a=b.yaml", "device_model", "a=b.yaml"),
        ("readout.bits=", "readout.bits", ""),
    ],
)
def test_key_and_values_are_told_apart(text: str, key: str, spec: str) -> None:
    assert parse_vary(text) == Vary(key, spec)


@pytest.mark.parametrize("text", ["", "readout.bits", "=3", " =3", "device.=3"])
def test_what_names_no_key_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"cannot be read; expected key=values"):
        parse_vary(text)


@pytest.mark.parametrize(
    ("spec", "unit", "values"),
    [
        ("3,4,8", None, [3, 4, 8]),
        ("8, 3 ,8", None, [8, 3, 8]),
        ("5", None, [5]),
        ("3,4,", None, [3, 4]),
        ("0.5,1e-3,-2", None, [0.5, 1e-3, -2]),
        ("0.2 ms,1 ms", "s", ["0.2 ms", "1 ms"]),
        ("auto,10 us", "s", ["auto", "10 us"]),
        ("null,~,16", None, [None, None, 16]),
        ("true,false", None, [True, False]),
        ("no,on,yes", None, ["no", "on", "yes"]),
        ("counter,'3',\"a, b\"", None, ["counter", "3", "a, b"]),
        ("[labs],[labs,imaging]", None, [["labs"], ["labs", "imaging"]]),
        ("[0 A, 1 A/V]", None, [["0 A", "1 A/V"]]),
        ("größe.yaml", None, ["größe.yaml"]),
        ("010", None, [10]),
    ],
)
def test_list(spec: str, unit: str | None, values: list[object]) -> None:
    found = Vary("key", spec).values(unit)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("spec", "unit", "values"),
    [
        ("3:8", None, [3, 4, 5, 6, 7, 8]),
        (" 3 : 5 ", None, [3, 4, 5]),
        ("-2:1", None, [-2, -1, 0, 1]),
        ("3:9:2", None, [3, 5, 7, 9]),
        ("3:8:2", None, [3, 5, 7]),
        ("0:1:0.25", None, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0:0.3:0.1", None, [0.0, 0.1, 0.2, 0.3]),
        ("1e-3:3e-3:1e-3", None, [0.001, 0.002, 0.003]),
        ("1 ms:2 ms:500 us", "s", ["1 ms", "1.5 ms", "2 ms"]),
        ("0 s:20 us:10us", "s", ["0 s", "10 us", "20 us"]),
        ("log:1:100:3", None, [1.0, 10.0, 100.0]),
        ("log:0.2 ms:50 ms:7", "s", ["200 us", "502 us", "1.26 ms", "3.162 ms", "7.937 ms", "19.92 ms", "50 ms"]),
        ("lin:1 ms:5 ms:5", "s", ["1 ms", "2 ms", "3 ms", "4 ms", "5 ms"]),
        ("lin:0:0.3:4", None, [0.0, 0.1, 0.2, 0.3]),
        ("lin:-0.3:0.3:3", None, [-0.3, 0.0, 0.3]),
        ("lin:1:2:4", None, [1.0, 1.33333, 1.66667, 2.0]),
    ],
)
def test_range(spec: str, unit: str | None, values: list[object]) -> None:
    found = Vary("key", spec).values(unit)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize("spec", ["-0.3:0.3:0.1", "-1:1:0.2", "-0.7:0.7:0.1"])
def test_range_through_zero_holds_zero(spec: str) -> None:
    assert 0.0 in Vary("key", spec).values(None)


def test_range_of_quantities_through_zero_holds_zero() -> None:
    assert "0 V" in Vary("key", "-0.3 V:0.3 V:0.1 V").values("V")


@pytest.mark.parametrize(
    ("spec", "unit", "exact"),
    [
        ("27 degC:87 degC:10 K", "K", [300.15 + 10 * i for i in range(7)]),
        ("10 ms:10.003 ms:1 us", "s", [0.01, 0.010001, 0.010002, 0.010003]),
        ("100000:100001:0.25", None, [100000.0, 100000.25, 100000.5, 100000.75, 100001.0]),
        ("1000000:1000003:1", None, [1000000, 1000001, 1000002, 1000003]),
    ],
)
def test_range_keeps_the_digits_that_its_step_needs(spec: str, unit: str | None, exact: list[float]) -> None:
    """27 degC rounded to 300.1 K would no longer be the base device."""
    found = Vary("key", spec).values(unit)
    assert [parse_quantity(x, unit) if unit else x for x in found] == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("spec", ["lin:27 degC:87 degC:4", "log:27 degC:87 degC:4"])
def test_ends_of_a_spaced_range_are_those_that_were_given(spec: str) -> None:
    found = Vary("key", spec).values("K")
    assert [parse_quantity(found[end], "K") for end in (0, -1)] == [300.15, 360.15]


@pytest.mark.parametrize("spec", ["lin:1 ms:2 ms:5000", "log:1 ms:2 ms:5000", "lin:1 ms:1.001 ms:50"])
def test_values_that_lie_close_are_not_rounded_to_one(spec: str) -> None:
    found = Vary("key", spec).values("s")
    assert len(set(map(str, found))) == len(found)


@settings(deadline=None)
@given(
    low=st.integers(-1000, 1000), step=st.integers(1, 50), number=st.integers(1, 60), places=st.integers(0, 4)
)  # fmt: skip
def test_range_counts_in_exact_decimals(low: int, step: int, number: int, places: int) -> None:
    """Decimal ends and steps give the decimals that a person would count, both ends included."""
    unit = 10**places
    spec = f"{low / unit:.{places}f}:{(low + step * number) / unit:.{places}f}:{step / unit:.{places}f}"
    assert Vary("key", spec).values(None) == [(low + step * i) / unit for i in range(number + 1)]


@settings(deadline=None)
@given(low=st.floats(1e-9, 1e3), ratio=st.floats(1.1, 1e6), number=st.integers(2, 50))
def test_logarithmic_values_are_equal_factors_apart(low: float, ratio: float, number: int) -> None:
    values: Any = Vary("key", f"log:{low:.4g}:{low * ratio:.4g}:{number}").values(None)
    assert len(values) == number
    factor = math.log(values[-1] / values[0]) / (number - 1)
    assert np.diff(np.log(values)) == pytest.approx(np.full(number - 1, factor), abs=1e-5, rel=1e-3)  # six digits


@pytest.mark.parametrize(
    ("spec", "unit", "what"),
    [
        ("", None, "no value; expected at least one"),
        (",", None, "cannot be read; expected values separated by commas"),
        ("[3", None, "cannot be read; expected values separated by commas"),
        ("3 # eight", None, "cannot be read; expected values separated by commas"),
        ("3], [4", None, "cannot be read; expected values separated by commas"),
        ("!!python/name:os.system", None, "cannot be read; expected values separated by commas"),
        ("&a [*a]", None, "cannot be read; expected values separated by commas"),
        ("8:3", None, "impossible range; expected the lower end first"),
        ("3:3", None, "impossible range; expected the lower end first"),
        ("3 ms:1 ms:1 ms", "s", "impossible range; expected the lower end first"),
        ("1 ms:2 ms", "s", "step missing; expected lowest:highest:step"),
        ("0.1:0.5", None, "step missing; expected lowest:highest:step"),
        ("3:8:0", None, "step not above zero"),
        ("3:8:-1", None, "step not above zero"),
        ("1:2 ms:1 ms", "s", "impossible range; expected quantities in s, such as '1.5 s'"),
        ("1 ms:2 mV:1 ms", "s", "impossible range; expected quantities in s"),
        ("1 ms:2 ms:1 ms", None, "impossible range; expected plain numbers"),
        ("log:1:8", None, "number of values missing; expected log:lowest:highest:number"),
        ("lin:1:8", None, "number of values missing; expected lin:lowest:highest:number"),
        ("log:1:8:1", None, "too few values; expected 2 or more"),
        ("log:1:8:2.5", None, "cannot be read; expected log:lowest:highest:number"),
        ("log:a:b:3", None, "cannot be read; expected log:lowest:highest:number"),
        ("log:0:8:3", None, "impossible range; expected ends above zero"),
        ("log:-1:8:3", None, "impossible range; expected ends above zero"),
        ("lin:8:1:3", None, "impossible range; expected the lower end first"),
        (f"0:{MOST_VALUES}", None, "too many values; expected at most 100,000"),
        (f"log:1:8:{MOST_VALUES + 1}", None, "too many values; expected at most 100,000"),
        ("0:1e308:1e-300", None, "too many values; expected at most 100,000"),
        ("0:1e999:1", None, "impossible range"),
        ("log:1:1e999:3", None, "impossible range"),
    ],
)
def test_mistake_is_named_with_the_key_and_what_was_written(spec: str, unit: str | None, what: str) -> None:
    with pytest.raises(InputError) as error:
        Vary("some.key", spec).values(unit)
    assert str(error.value).startswith(f"--vary some.key: {what}")
    assert f"received {spec!r}"[:70] in str(error.value)


# Designs.


def lay(kind: Kind, *varied: tuple[str, str | None], points: int | None = None, seed: int = 0) -> Any:
    pairs = [(parse_vary(text), unit) for text, unit in varied]
    return combinations(pairs, kind, points=points, seed=seed)


def drawn(kind: Kind, spec: str, points: int, *, unit: str | None = None, seed: int = 0) -> list[Any]:
    return [value for (value,) in lay(kind, (f"key={spec}", unit), points=points, seed=seed).listed()]


def test_last_key_of_a_grid_changes_first() -> None:
    laid = lay("grid", ("a=1,2", None), ("b=x,y,z", None))
    assert laid.number == 6
    assert laid.listed() == [(1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z")]


def test_grid_is_counted_without_being_listed() -> None:
    assert lay("grid", *[(f"k{i}=0:99999", None) for i in range(4)]).number == 10**20


def test_list_takes_first_with_first() -> None:
    laid = lay("list", ("a=1,2,3", None), ("b=1 ms:3 ms:1 ms", "s"))
    assert (laid.number, laid.listed()) == (3, [(1, "1 ms"), (2, "2 ms"), (3, "3 ms")])


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"--design list: lists of different lengths; .* received 'a: 2, b: 3'"):
        lay("list", ("a=1,2", None), ("b=1,2,3", None))


@pytest.mark.parametrize("kind", ["grid", "list"])
def test_number_of_points_belongs_to_drawn_designs(kind: Kind) -> None:
    with pytest.raises(
        InputError, match=r"--points: has no meaning for this design; expected --design random or sobol"
    ):
        lay(kind, ("a=1,2", None), points=3)


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("points", [None, 0, -1])
def test_drawn_design_needs_a_number_of_points(kind: Kind, points: int | None) -> None:
    with pytest.raises(InputError, match="--points: zero points"):
        lay(kind, ("a=1:2", None), points=points)


@pytest.mark.parametrize("kind", DRAWN)
def test_too_many_drawn_points_are_refused(kind: Kind) -> None:
    with pytest.raises(InputError, match="--points: too many points; expected at most 100,000"):
        lay(kind, ("a=1:2", None), points=MOST_VALUES + 1)


@pytest.mark.parametrize(
    ("spec", "unit", "span"),
    [
        ("3:8", None, Span(3.0, 8.0, whole=True)),
        ("0.1:0.5", None, Span(0.1, 0.5)),
        ("0:0.5", None, Span(0.0, 0.5)),
        ("1 ms:5 ms", "s", Span(0.001, 0.005)),
        ("lin:1 ms:5 ms", "s", Span(0.001, 0.005)),
        ("log:0.2 ms:50 ms", "s", Span(0.0002, 0.05, logarithmic=True)),
        ("3,5", None, [3, 5]),
        ("0:1:0.5", None, [0.0, 0.5, 1.0]),
        ("log:1:100:3", None, [1.0, 10.0, 100.0]),
    ],
)
def test_span_of_a_drawn_design(spec: str, unit: str | None, span: object) -> None:
    assert Vary("key", spec).span(unit) == span


@pytest.mark.parametrize(("spec", "what"), [("log:0:1", "ends above zero"), ("8:3", "the lower end first"),
                                            ("0:1e999", "impossible range")])  # fmt: skip
def test_impossible_span_is_refused(spec: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        drawn("random", spec, 3)


@pytest.mark.parametrize("kind", DRAWN)
def test_draws_follow_from_the_seed(kind: Kind) -> None:
    several = [("a=0.1:0.5", None), ("b=log:0.2 ms:50 ms", "s"), ("c=3:8", None), ("d=x,y", None)]
    first, again, other = (lay(kind, *several, points=20, seed=seed).listed() for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert all(len({point[key] for point in first}) > 1 for key in range(4))


@pytest.mark.parametrize("kind", DRAWN)
@settings(max_examples=60, deadline=None)
@given(
    low=st.decimals(1, 999, places=3), width=st.decimals("0.001", 999, places=3), logarithmic=st.booleans(),
    quantity=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_draws_stay_inside_their_span(
    kind: Kind, low: Any, width: Any, logarithmic: bool, quantity: bool, seed: int
) -> None:
    unit, word = ("s", " ms") if quantity else (None, "")
    ends = [parse_quantity(f"{end} ms", "s") if quantity else float(end) for end in (low, low + width)]
    spec = ("log:" if logarithmic else "") + f"{low}{word}:{low + width}{word}"
    for value in drawn(kind, spec, 16, unit=unit, seed=seed):
        assert ends[0] <= (parse_quantity(value, "s") if quantity else value) <= ends[1], value


@pytest.mark.parametrize("kind", DRAWN)
def test_whole_numbers_are_equally_likely_with_both_ends(kind: Kind) -> None:
    values = drawn(kind, "3:8", 600)
    assert {type(value) for value in values} == {int}
    numbers, counts = np.unique(values, return_counts=True)
    assert numbers.tolist() == [3, 4, 5, 6, 7, 8]
    assert chisquare(counts).pvalue > RARE


@pytest.mark.parametrize("kind", DRAWN)
def test_choices_are_equally_likely(kind: Kind) -> None:
    values = drawn(kind, "a,b,c", 600)
    assert chisquare([values.count(word) for word in "abc"]).pvalue > RARE


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("logarithmic", [False, True])
def test_draws_are_uniform_in_the_number_or_in_its_logarithm(kind: Kind, logarithmic: bool) -> None:
    values = np.array(drawn(kind, ("log:" if logarithmic else "") + "0.2:50.0", 500))
    even = {
        False: (values - 0.2) / 49.8,
        True: np.log(values / 0.2) / math.log(50 / 0.2),
    }
    assert kstest(even[logarithmic], "uniform").pvalue > RARE
    assert kstest(even[not logarithmic], "uniform").pvalue < RARE  # the test tells both laws apart


def test_sobol_points_are_spread_evenly() -> None:
    """Of 64 points every sixteenth of a key holds four; independent draws do not keep that."""
    for kind, even in (("sobol", True), ("random", False)):
        laid = lay(kind, ("a=0:1.0", None), ("b=0:1.0", None), points=64).listed()  # type: ignore[arg-type]
        counts = [np.histogram([point[key] for point in laid], bins=16, range=(0, 1))[0] for key in range(2)]
        assert all((count == 4).all() for count in counts) == even


def test_keys_of_a_drawn_design_are_independent() -> None:
    first, second = np.array(lay("random", ("a=0.0:1", None), ("b=0.0:1", None), points=400).listed()).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15
