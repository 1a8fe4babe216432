"""The page of a report in Chromium: requests, tables, hostile names, accessibility, small and dark screens, print."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.report.page import render

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.slow
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
KINDS = ["conversion", "verification", "failure", "batch", "strangers"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=QUIET)


@pytest.fixture
def shown(browser, reports, tmp_path):
    """Open the page of a report; fail on what it requests, on errors of its script and on dialogs."""
    contexts, wrong = [], []

    def open_page(kind: str, **settings: Any):
        file: Path = tmp_path / f"{kind}.html"
        file.write_text(render(reports[kind]))
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("request", lambda one: one.url == file.as_uri() or wrong.append(one.url))
        page.on("console", lambda one: wrong.append(one.text))
        page.on("pageerror", lambda one: wrong.append(str(one)))
        page.on("dialog", lambda one: (wrong.append(one.message), one.dismiss()))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_no_fault_and_nothing_is_wider_than_the_screen(shown, kind, scheme, width):
    page = shown(kind, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    found = axe.Axe().run(page)
    assert [one["id"] for one in found.response["violations"]] == []
    assert len(found.response["passes"]) > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def column(page, table: str, number: int) -> list[str]:
    return page.locator(f"#{table} tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_tables_are_sorted_and_searched_by_mouse_and_keyboard(shown):
    page = shown("batch")
    names = column(page, "models", 1)
    page.get_by_role("button", name="Model").click()
    assert column(page, "models", 1) == sorted(names) != names
    page.get_by_role("button", name="Model").press("Enter")
    assert column(page, "models", 1) == sorted(names, reverse=True)
    assert page.get_by_role("columnheader", name="Model").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Seconds").click()
    seconds = [float(text) for text in column(page, "models", 4)]
    assert seconds == sorted(seconds)
    page.get_by_label("Search").fill("FINE")
    assert column(page, "models", 1) == ["fine"]
    assert page.get_by_text("1 of 3 rows").is_visible()
    page.get_by_label("Search").fill("")
    page.get_by_label("State").select_option("failed")
    assert column(page, "models", 1) == ["a b/net"]


def test_names_of_strangers_are_shown_and_do_not_run(shown):
    page = shown("strangers")
    assert page.locator("script").count() == 1
    assert page.get_by_role("heading", level=1).inner_text().startswith("<script>alert(1)</script>\\x1b[31m")


def test_the_page_can_be_read_without_its_script(shown):
    page = shown("conversion", java_script_enabled=False)
    assert page.locator(".verdict").first.inner_text() == "verified"
    assert page.get_by_role("button").count() == 0
    assert not page.get_by_label("Search").first.is_visible()
    page.get_by_text("All figures of each output").click()
    assert page.get_by_text("x float32 rounding").first.is_visible()


def test_a_printed_page_has_what_can_be_unfolded(shown, tmp_path):
    page = shown("conversion")
    assert page.locator("details:not([open])").count() > 0
    page.pdf(path=str(tmp_path / "page.pdf"))
    assert page.locator("details:not([open])").count() == 0
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
