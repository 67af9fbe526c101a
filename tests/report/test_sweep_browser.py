"""The page of a sweep in a real browser."""

from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser

from fllm.report import render
from tests.report.browser import check_page, download, open_page
from tests.report.test_sweep_figures import SHAPES


def test_the_page_works(browser: Browser, tmp_path: Path) -> None:
    check_page(browser, render(SHAPES["failed"](), tmp_path)[0])


def test_points_are_sorted_by_the_size_of_their_settings(browser: Browser, tmp_path: Path) -> None:
    path = render(SHAPES["one key"](), tmp_path)[0]
    with open_page(browser, path) as page:
        table = page.locator("#points table")
        table.get_by_role("button", name="retention.tau").click()
        assert table.locator("td:nth-child(2)").all_inner_texts()[:3] == ["0.2 ms", "0.5 ms", "1 ms"]
        table.get_by_role("button", name="retention.tau").click()
        assert table.locator("td:nth-child(2)").all_inner_texts()[:3] == ["50 ms", "10 ms", "5 ms"]
        assert download(page, "sweep_rows.csv").startswith(b"point,seed,die,status,reason,retention.tau_s,")
