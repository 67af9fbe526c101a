"""The section on differential privacy: there where a run has it, and absent otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fllm.report.drawing import Picture
from fllm.report.markdown import run_markdown
from fllm.report.privacy_tables import privacy_lines, privacy_table
from fllm.results import ROUND_COLUMNS, rounds_csv
from fllm.sections import PrivacySettings, SecureSettings
from tests.report.conftest import FIGURES

PICTURES = [Picture(name, "Caption.", "Description.", b"", b"") for name in FIGURES]


def private(result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Give a result privacy, of which each round spends 1.25."""
    result["config"]["privacy"] = PrivacySettings(**settings).model_dump(mode="json")
    for row in result["rounds"][1:]:
        row["privacy"] = {"kind": settings["kind"], "epsilon": 1.25 * row["round"], "delta": 1e-5}
    return result


def test_run_without_privacy_says_nothing_of_it(
    result: dict[str, Any], html_of: Callable[[dict[str, Any]], str]
) -> None:
    assert privacy_lines(result) == []
    assert privacy_table(result) is None
    assert "Privacy" not in html_of(result)
    assert rounds_csv(result).splitlines()[0] == ",".join(ROUND_COLUMNS)
    result["config"]["privacy"] = PrivacySettings().model_dump(mode="json")
    assert privacy_lines(result) == []


@pytest.mark.parametrize(("kind", "who"), [("client", "Whole clients"), ("record", "Single cases")])
def test_run_with_privacy_says_who_is_protected_and_what_was_spent(
    result: dict[str, Any], html_of: Callable[[dict[str, Any]], str], kind: str, who: str
) -> None:
    result = private(result, kind=kind, noise_multiplier=2.0, clipping_norm=0.5)
    lines = privacy_lines(result)
    assert lines[0].startswith(who)
    assert "norm of 0.5" in lines[0] and "noise of 2 times" in lines[0]
    assert any(line.startswith("Not protected: losses") for line in lines)
    assert any("follows from its seed" in line for line in lines)
    table = privacy_table(result)
    assert table is not None
    assert ("the largest over the clients" in table.caption) == (kind == "record")
    assert [row for group in table.groups for row in group.rows] == [
        (str(row["round"]), f"{1.25 * row['round']:.2f}", "1.00e-05") for row in result["rounds"][1:]
    ]
    page, text = html_of(result), run_markdown(result, PICTURES)
    assert 'id="privacy"' in page and "<td" in page and who in page
    assert "\n## Privacy\n" in text and who in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize(("threshold", "of"), [(None, "two thirds of the clients"), (3, "3 clients together")])
def test_secure_aggregation_is_told(
    result: dict[str, Any], html_of: Callable[[dict[str, Any]], str], threshold: int | None, of: str
) -> None:
    result["config"]["secure"] = SecureSettings(aggregation=True, threshold=threshold).model_dump(mode="json")
    (line,) = privacy_lines(result)
    assert "the server was sent the clients' sums alone" in line and of in line
    assert 'id="privacy"' in html_of(result) and line in run_markdown(result, PICTURES)
    result = private(result, kind="record")
    assert privacy_lines(result)[0] == line and privacy_lines(result)[1].startswith("Single cases")


def test_secret_noise_and_an_early_end_are_told(result: dict[str, Any]) -> None:
    result = private(result, kind="client", secret_noise=True)
    result["privacy"] = {"ended": "round 4 would spend more than the budget of privacy"}
    lines = privacy_lines(result)
    assert not any("seed" in line for line in lines)
    assert lines[-1] == "Round 4 would spend more than the budget of privacy."


def test_table_of_rounds_has_two_columns_more(result: dict[str, Any], tmp_path: Path) -> None:
    header, first, second, *_ = rounds_csv(private(result, kind="record")).splitlines()
    assert header == ",".join([*ROUND_COLUMNS, "epsilon", "delta"])
    assert first.endswith(",,")
    assert second.endswith(",1.25,1e-05")
