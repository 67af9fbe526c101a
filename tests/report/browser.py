"""What every page of a report must do in a browser; a test of a new kind of page calls :func:`check_page` on it.

The browser is the fixture of ``conftest.py``; a check of one open page takes what :func:`open_page` yields.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Request

CONTRAST = 4.5
"""WCAG 2.1, success criterion 1.4.3, level AA for text of any size."""
NARROW = 380
_UNKNOWN = ("", "\N{EN DASH}")


@contextmanager
def open_page(browser: Browser, path: Path, **context: Any) -> Iterator[Page]:
    """Open a page from its file and close it again; anything it complains about or asks for is a failure.

    Args:
        browser: A running browser.
        path: The page.
        **context: Options of ``Browser.new_context``, such as ``java_script_enabled=False``.
    """
    complaints: list[str] = []

    def judge(request: Request) -> None:
        if request.url != path.resolve().as_uri() and not request.url.startswith("data:"):
            complaints.append(f"request to {request.url}")

    room = browser.new_context(**context)
    page = room.new_page()
    page.on("console", lambda message: complaints.append(f"console, {message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:80]}"))
    page.on("request", judge)
    page.goto(path.resolve().as_uri())
    try:
        yield page
    except AssertionError as failure:
        failure.add_note("\n".join(complaints))
        raise
    finally:
        room.close()
    assert not complaints


def check_page(browser: Browser, path: Path) -> None:
    """Check all that holds for every page: it works whole, narrow, dark, printed and without its script."""
    with open_page(browser, path) as page:
        assert page.title()
        check_pictures(page)
        check_sorting(page)
        check_filters(page)
        check_contrast(page)
        check_print(page)
    with open_page(browser, path, color_scheme="dark") as page:
        check_contrast(page)
    with open_page(browser, path, viewport={"width": NARROW, "height": 800}) as page:
        check_narrow(page)
    check_without_script(browser, path)


def check_pictures(page: Page) -> None:
    """Every picture has been drawn."""
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert all(width > 0 for width in widths), widths


def check_narrow(page: Page) -> None:
    """The page itself never scrolls sideways; only its tables do, each in a box that the keyboard reaches."""
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
    boxes = page.eval_on_selector_all(
        ".scroll", "boxes => boxes.map(box => box.scrollWidth <= box.clientWidth || box.tabIndex === 0)"
    )
    assert all(boxes)


def check_without_script(browser: Browser, path: Path) -> None:
    """Without its script a page shows every row and no control that would do nothing."""
    with open_page(browser, path) as page:
        _open_details(page)
        rows = page.locator("tbody tr").all_inner_texts()
    with open_page(browser, path, java_script_enabled=False) as page:
        _open_details(page)
        assert page.locator("button, input, select, output, [aria-sort], [hidden]").count() == 0
        assert page.locator("tbody tr").all_inner_texts() == rows
        assert page.locator("tbody tr").filter(visible=True).count() == len(rows)


def check_print(page: Page) -> None:
    """Paper shows no control and no download, and all rows even while a filter hides some."""
    filters = page.locator(".filter input")
    if filters.count():
        filters.first.fill("no such row")
    page.emulate_media(media="print")
    for control in page.locator(".filter, .downloads, nav").all():
        assert not control.is_visible()
    arrows = page.eval_on_selector_all(".sort", "all => all.map(one => getComputedStyle(one, '::after').display)")
    assert set(arrows) <= {"none"}
    assert page.eval_on_selector_all(
        "tbody, tbody tr", "all => all.every(one => getComputedStyle(one).display !== 'none')"
    )
    page.emulate_media(media="screen")
    if filters.count():
        filters.first.fill("")


def check_contrast(page: Page) -> None:
    """All text stands out from what is behind it."""
    _open_details(page)
    pale = page.evaluate(_PALE, CONTRAST)
    assert not pale, pale


def check_sorting(page: Page) -> None:
    """Each heading sorts both ways by the numbers behind the cells and goes back to the first order, by keyboard."""
    for table in page.locator("table[data-sort]").all():
        heads = table.locator("thead th")
        buttons = heads.get_by_role("button")
        assert buttons.count() == heads.count() > 0
        original = _cells(table)
        for index, column in enumerate(heads.evaluate_all("heads => heads.map(head => head.cellIndex)")):
            for direction, key in (("ascending", "Enter"), ("descending", "Space"), (None, "Enter")):
                buttons.nth(index).press(key)
                assert heads.nth(index).get_attribute("aria-sort") == direction
                found = _cells(table)
                assert [sorted(group, key=str) for group in found] == [sorted(group, key=str) for group in original]
                if direction:
                    _check_order(found, column, direction)
            assert found == original
            assert table.locator("[aria-sort]").count() == 0


def check_filters(page: Page) -> None:
    """A filter hides the rows that lack a word, says how many are left, and needs no mouse."""
    for table in page.locator("table[data-filter]").all():
        above = table.locator("xpath=ancestor::*[contains(@class, 'scroll')]/preceding-sibling::*[1]")
        status = above.get_by_role("status")
        assert status.get_attribute("aria-live") == "polite"
        whole = table.evaluate(_SHOWN)
        assert status.inner_text() == f"{len(whole)} rows"
        word = whole[-1].split()[-1].lower()
        above.get_by_role("searchbox", name="Filter rows").focus()
        page.keyboard.type(word.upper())
        left = [row for row in whole if word in row.lower()]
        assert table.evaluate(_SHOWN) == left
        assert status.inner_text() == (
            f"{len(left)} of {len(whole)} rows" if len(left) < len(whole) else f"{len(whole)} rows"
        )
        page.keyboard.type(" no-such-word")
        assert table.locator("tbody tr").filter(visible=True).count() == 0
        assert status.inner_text() == f"0 of {len(whole)} rows"
        page.keyboard.press("Escape")
        assert table.evaluate(_SHOWN) == whole
        assert table.locator("tbody tr").filter(visible=True).count() == table.locator("tbody tr").count()


def tab_to(page: Page, target: Locator, most: int = 400) -> None:
    """Reach an element by the tabulator key alone."""
    page.locator("body").evaluate("body => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    for _ in range(most):
        page.keyboard.press("Tab")
        if target.evaluate("one => one === document.activeElement"):
            return
    raise AssertionError("the tabulator key does not lead there")


def download(page: Page, name: str) -> bytes:
    """Click on a download and return what was saved; its link must promise the same bytes."""
    link = page.locator(f"a[download='{name}']")
    address = link.get_attribute("href") or ""
    with page.expect_download() as waiting:
        link.click()
    assert waiting.value.suggested_filename == name
    saved = waiting.value.path().read_bytes()
    assert address == f"data:text/csv;charset=utf-8;base64,{base64.b64encode(saved).decode()}"
    return saved


def _open_details(page: Page) -> None:
    closed = page.locator("details:not([open]) > summary")
    while closed.count():
        closed.first.click()


def _cells(table: Locator) -> list[list[list[str | float]]]:
    """Rows of each group: the number of a cell where it has one, or its text."""
    return table.evaluate(
        """table => [...table.tBodies].map(body => [...body.rows].filter(row => !row.classList.contains("heading"))
            .map(row => [...row.cells].map(cell =>
                "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim())))"""
    )


def _check_order(groups: list[list[list[str | float]]], column: int, direction: str) -> None:
    for rows in groups:
        cells = [row[column] for row in rows]
        numbers = [cell for cell in cells if not isinstance(cell, str)]
        words = [cell for cell in cells if isinstance(cell, str) and cell not in _UNKNOWN]
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert cells[: len(numbers) + len(words)] == numbers + words, "what is not known stands last"


# Rows that are shown, each with the name of its group.
_SHOWN = """table => [...table.tBodies].flatMap(body => {
  const heading = body.querySelector(".heading");
  return [...body.rows].filter(row => row !== heading && row.checkVisibility())
    .map(row => `${heading ? heading.cells[0].textContent : ""} ${row.textContent}`.trim());
})"""

# Text elements that are seen, with less contrast than wanted: luminance and ratio as in WCAG 2.1.
_PALE = """least => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
  const behind = one => {
    if (!one) return [255, 255, 255];
    const color = numbers(getComputedStyle(one).backgroundColor);
    return color[3] === undefined || color[3] === 1 ? color.slice(0, 3) : over(color, behind(one.parentElement));
  };
  const luminance = color => {
    const [r, g, b] = color.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pale = [];
  for (const one of document.body.querySelectorAll("*")) {
    const speaks = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || one.tagName === "INPUT";
    if (!speaks || !one.checkVisibility()) continue;
    const back = behind(one);
    const [low, high] = [over(numbers(getComputedStyle(one).color), back), back].map(luminance).sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < least) pale.push(`${one.tagName} ${ratio.toFixed(2)}: ${one.textContent.slice(0, 40)}`);
  }
  return pale;
}"""
