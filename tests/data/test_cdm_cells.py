"""Single values: ages, laboratory numbers, lists of tests, and counts that hold small ones back."""

from __future__ import annotations

import pytest

from fllm.data.cdm import leading_number
from fllm.data.cdm_age import age_of
from fllm.data.cdm_counts import count_text, number_of, partition_texts, share_text
from fllm.data.cdm_numbers import listed_ids


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("12.4 K/uL", 12.4),
        ("139.0", 139.0),
        ("-2 mEq/L", -2.0),
        ("NEG", None),
        ("<0.01 ng/mL", None),
        ("nan", None),
        ("", None),
        ("0-2 /hpf", None),
        ("1:40", None),
        ("1,200 IU/L", None),
        ("1e3", 1000.0),
    ],
)
def test_leading_number(value: str, number: float | None) -> None:
    assert leading_number(value) == number


@pytest.mark.parametrize(
    "text",
    [
        "57 year old man", " 57-year-old woman", "Ms. ___ is a 57 y/o F", "57yo", "57 yo with", "57 y.o. female",
        "57M with", "Pt is a 57F with", "57 years old", "57 yrs old", "57 years of age", "57 yr-old", "57yoM",
        "aged 57,", "Age: 57", "57 male", "57 Year Old Gentleman", "57-F", "fever of 101F. 57F with",
        "The patient, 57 y o, has",
    ],
)  # fmt: skip
def test_ages_are_found_in_the_forms_that_notes_use(text: str) -> None:
    assert age_of(text) == 57


@pytest.mark.parametrize(
    "text",
    [
        "___ year old man", "___ yo with a 57 year old son", "____M with; father 57yo", "10 year history of",
        "57 years ago", "fever to 102F", "T 101 F", "temp: 99F", "her 57 year old husband", "18F Foley", "since age 30",
        "Her mother, 57 years old, had", "57.5 year old", "on 3/57 yo", "57", "", "x " * 150 + "57 yo",
    ],
)  # fmt: skip
def test_what_is_no_age_of_the_patient_gives_none(text: str) -> None:
    assert age_of(text) is None


@pytest.mark.parametrize(("age", "found"), [(17, None), (18, 18), (120, 120), (121, None)])
def test_only_plausible_ages_count(age: int, found: int | None) -> None:
    assert age_of(f"{age} year old") == found


@pytest.mark.parametrize(
    ("cell", "ids"),
    [
        ("[51301, 51755]", [51301, 51755]), ("[]", []), (" [1.0] ", [1]), ("51301;51755", None), ("[a]", None),
        ("[007]", None), ("[...]", None), ("[1,,2]", None), ("[[1]]", None), ("", None),
    ],
)  # fmt: skip
def test_lists_of_tests_are_literals(cell: str, ids: list[int] | None) -> None:
    assert listed_ids(cell) == ids


@pytest.mark.parametrize(
    ("count", "total", "real", "shown"),
    [
        (0, 100, True, "0 %"), (4, 100, True, "< 5 cases"), (5, 100, True, "5 %"), (4, 100, False, "4 %"),
        (96, 100, True, "all but < 5 cases"), (95, 100, True, "95 %"), (100, 100, True, "100 %"),
        (96, 100, False, "96 %"), (5, 2400, True, "< 1 %"), (2395, 2400, True, "> 99 %"), (2, 3, True, "not shown"),
        (2, 3, False, "67 %"), (0, 0, True, "0 %"),
    ],
)  # fmt: skip
def test_shares_hold_back_small_counts_of_real_data(count: int, total: int, real: bool, shown: str) -> None:
    assert share_text(count, total, real=real) == shown


def test_counts_hold_back_small_ones_of_real_data() -> None:
    assert [count_text(count, real=True) for count in (0, 1, 4, 5, 2400)] == ["0", "< 5", "< 5", "5", "2,400"]
    assert count_text(3, real=False) == "3"
    assert partition_texts([900, 3, 60, 500], real=True) == ["900", "not shown", "not shown", "500"]
    assert partition_texts([900, 3, 60, 500], real=False) == ["900", "3", "60", "500"]
    assert (number_of(1, "row"), number_of(2400, "row")) == ("1 row", "2,400 rows")
