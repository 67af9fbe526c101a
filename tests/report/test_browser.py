"""The run page in a real browser, opened from its file."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, ViewportSize, expect

from fllm.report import render
from fllm.report.formatting import NOTHING
from fllm.report.page import fill
from fllm.results import read_result, rounds_csv
from tests.report.browser import (
    NARROW,
    check_contrast,
    check_narrow,
    check_page,
    check_pictures,
    check_print,
    check_without_script,
    download,
    open_page,
    tab_to,
)
from tests.report.tasks import many_classes

RESULT = Path(__file__).with_name("example_result.json")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the example's page."""
    return render(read_result(RESULT), tmp_path_factory.mktemp("report"))[0]


def test_the_page_works(browser: Browser, path: Path) -> None:
    check_page(browser, path)


def test_quantities_are_sorted_by_their_size_and_names_by_their_numbers(
    browser: Browser, tmp_path: Path, html_of: Callable[[dict[str, Any]], str], result: dict[str, Any]
) -> None:
    energies = (1.25e-7, None, 2e-3, 9.04e-9)
    for row, energy in zip(result["rounds"], energies, strict=True):
        row["energy_per_token_j"] = energy
    for client, name in zip(result["data"]["clients"], ("client 10", "client 9", "Client 1"), strict=True):
        client["name"] = name
    file = tmp_path / "report.html"
    file.write_text(html_of(result), encoding="utf-8")
    with open_page(browser, file) as page:
        rounds, clients = page.locator("#rounds table"), page.locator("#clients table").first
        rounds.get_by_role("button", name="Energy per token").click()
        assert rounds.locator("td:nth-child(13)").all_inner_texts() == ["9.04 nJ", "125 nJ", "2.00 mJ", NOTHING]
        rounds.get_by_role("button", name="Energy per token").click()
        assert rounds.locator("td:nth-child(13)").all_inner_texts() == ["2.00 mJ", "125 nJ", "9.04 nJ", NOTHING]
        clients.get_by_role("button", name="Client").click()
        names = 2 * ["Client 1", "client 9", "client 10"] + ["All cases", "Test cases"]  # training, then test
        assert clients.locator("tr:not(.heading) th[scope=row]").all_inner_texts() == names
        expect(rounds.locator("th[aria-sort=descending]")).to_have_count(1)  # each table keeps its own order


def test_the_keyboard_alone_filters_and_sorts(browser: Browser, path: Path) -> None:
    with open_page(browser, path) as page:
        section = page.locator("#device")
        tab_to(page, section.get_by_role("searchbox", name="Filter rows"))
        page.keyboard.type("assumed digital")
        expect(section.get_by_role("status")).to_have_text("3 of 18 rows")
        page.keyboard.press("Escape")
        expect(section.get_by_role("status")).to_have_text("18 rows")
        button = page.locator("#rounds").get_by_role("button", name="Training loss")
        tab_to(page, button)
        page.keyboard.press("Space")
        expect(page.locator("#rounds th[aria-sort=ascending]")).to_have_text("Training loss [nat]")


def test_downloads_hold_full_numbers(browser: Browser, path: Path) -> None:
    result = read_result(RESULT)
    with open_page(browser, path, accept_downloads=True) as page:
        names = [link.get_attribute("download") for link in page.locator("a[download]").all()]
        files = {}
        for number, name in enumerate(names):
            if number == 9:
                page.wait_for_timeout(1500)  # Chromium drops an eleventh download within a second
            files[name] = download(page, name)
    assert files["rounds.csv"] == rounds_csv(result).encode()
    assert list(files) == [
        "evaluation.csv", "standing.csv", "recall.csv", "confusion.csv", "reliability.csv", "client_accuracy.csv",
        "mcnemar.csv", "rounds.csv", "energy_by_part.csv", "prices.csv", "clients.csv", "device_numbers.csv",
    ]  # fmt: skip
    tables = {name: list(csv.DictReader(content.decode().splitlines())) for name, content in files.items()}
    parts = {row["part"]: float(row["energy_per_token_nominal_j"]) for row in tables["energy_by_part.csv"]}
    assert parts == {part: found["nominal"] for part, found in result["final"]["energy"]["parts_j"].items()}


def test_many_classes_and_clients_do_not_widen_the_page(
    browser: Browser, tmp_path: Path, html_of: Callable[[dict[str, Any]], str], result: dict[str, Any]
) -> None:
    file = tmp_path / "report.html"
    file.write_text(html_of(many_classes(result)), encoding="utf-8")
    with open_page(browser, file, viewport=ViewportSize(width=NARROW, height=800)) as page:
        check_narrow(page)
        check_contrast(page)


def test_the_first_table_fits_a_narrow_screen(browser: Browser, path: Path) -> None:
    with open_page(browser, path, viewport=ViewportSize(width=NARROW, height=800)) as page:
        box = page.locator("#answer .scroll").first
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


@pytest.mark.parametrize(
    ("flaw", "check", "complaint"),
    [
        ("<script>document.title = 'foreign'</script>", Page.title, "Content Security Policy"),
        ("<script src='https://example.org/x.js'></script>", Page.title, "example.org"),
        ("<img alt='' src='https://example.org/x.png'>", Page.title, "example.org"),
        ("<img alt='' src='data:image/svg+xml,nothing'>", check_pictures, "0"),
        ("<p style='color: #888888'>pale</p>", check_contrast, "pale"),
        ("<p style='width: 900px'>wide</p>", check_narrow, "scrollWidth"),
        ("<p class='downloads' style='display: block !important'>for the screen</p>", check_print, "is_visible"),
    ],
)
def test_the_checks_find_what_they_look_for(
    browser: Browser, tmp_path: Path, flaw: str, check: Callable[[Page], object], complaint: str
) -> None:
    file = tmp_path / "report.html"
    file.write_text(fill("base.html.j2").replace("</body>", f"{flaw}</body>"), encoding="utf-8")
    narrow = ViewportSize(width=NARROW, height=800)
    with pytest.raises(AssertionError, match=complaint), open_page(browser, file, viewport=narrow) as page:
        check(page)


def test_a_dead_control_is_found(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(fill("base.html.j2").replace("</body>", "<button>dead</button></body>"), encoding="utf-8")
    with pytest.raises(AssertionError, match="count"):
        check_without_script(browser, file)
