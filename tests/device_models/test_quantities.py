from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_models.quantities import format_quantity, parse_quantity

UNITS = ["J", "s", "V", "A", "A/V", "A/V**2", "A/V**3", "1/s", "m**2"]


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("17.1 fJ", "J", 1.71e-14),
        ("5 ms", "s", 5e-3),
        ("0.9V", "V", 0.9),
        ("-2.620446 uA/V**2", "A/V**2", -2.620446e-6),
        ("31250 um**2", "m**2", 3.125e-8),
        ("256e9 1/s", "1/s", 2.56e11),
        ("1 GHz", "1/s", 1e9),
        ("0.76 pJ", "J", 0.76e-12),
        ("27 degC", "K", 300.15),
        ("-40 °C", "K", 233.15),
        ("300 K", "K", 300.0),
        (" 1e-3  ns ", "s", 1e-12),
        ("+.5 aJ", "J", 0.5e-18),
    ],
)
def test_reads_to_the_nearest_float(text: str, unit: str, expected: float) -> None:
    assert parse_quantity(text, unit) == expected


@pytest.mark.parametrize("value", [5, 5.0, None, True, math.nan, ["5 ms"]], ids=repr)
def test_bare_value_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"in s.*bare value"):
        parse_quantity(value, "s")


@pytest.mark.parametrize("text", ["5 ", "5", "1e-3"])
def test_missing_unit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="unit is missing"):
        parse_quantity(text, "s")


@pytest.mark.parametrize("text", ["5 V", "5 mS", "5 ms**2", "5 1/s", "5 degC", "5 10 ms"])
def test_other_dimension_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"in s\b"):
        parse_quantity(text, "s")


@pytest.mark.parametrize("text", ["5 parsnips", "5 ms extra", "5 fjj"])
def test_unknown_unit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no known unit"):
        parse_quantity(text, "s")


@pytest.mark.parametrize("text", ["nan s", "inf s", "-inf s", "1e400 s", "1e9999999 s", "1e99999999999999999999 s"])
def test_not_finite_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_quantity(text, "s")


@pytest.mark.parametrize(("text", "unit"), [("80 degF", "K"), ("3 dBm", "W")])
def test_unit_that_no_factor_converts_is_refused(text: str, unit: str) -> None:
    """80 degF is 300 K, not 80 times the 256 K of 1 degF."""
    with pytest.raises(ValueError, match="not proportional"):
        parse_quantity(text, unit)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789.eE+-*/ ()[]{}\\'\"%^mskVAJuµ,;:_#\n", max_size=8))
@example("V(")
@example("**")
@example("'")
@example("s**1e400")
def test_any_text_is_a_number_or_a_value_error(unit: str) -> None:
    try:
        value = parse_quantity(f"5 {unit}", "s")
    except ValueError as error:
        assert "in s" in str(error)
    else:
        assert math.isfinite(value)


@given(
    value=st.floats(min_value=1e-30, max_value=1e22).flatmap(lambda x: st.sampled_from([x, -x])),
    unit=st.sampled_from(UNITS),
    digits=st.integers(2, 15),
)
@settings(max_examples=300, deadline=None)
def test_format_and_parse_are_inverse_to_the_digits_shown(value: float, unit: str, digits: int) -> None:
    again = parse_quantity(format_quantity(value, unit, digits), unit)
    # a number shown by %g after one division keeps `digits` digits; the division costs one rounding
    assert again == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits) + 1e-15)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.71e-14, "J", "17.1 fJ"),
        (9.997e-4, "s", "1 ms"),
        (1e-3, "s", "1 ms"),
        (0.45, "V", "450 mV"),
        (-1.5e-9, "V", "-1.5 nV"),
        (0.0, "J", "0 J"),
        (6.15e-9, "J", "6.15 nJ"),
        (1.93e-5, "A/V", "19.3 uA/V"),
        (3.125e-8, "m**2", "3.12e-08 m**2"),
        (1e9, "1/s", "1e+09 1/s"),
        (math.inf, "s", "inf s"),
    ],
)
def test_format_reads_well(value: float, unit: str, text: str) -> None:
    assert format_quantity(value, unit) == text


def test_prefix_is_exact_where_floats_multiply_inexactly() -> None:
    assert 17.1 * 1e-15 != 1.71e-14  # what a float factor would give
    assert parse_quantity("17.1 fJ", "J") == 1.71e-14
