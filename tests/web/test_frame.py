"""The frame in a browser: it loads, says where it is, and keeps its policy."""

from playwright.sync_api import Page, expect

from tests.web.conftest import Studio


def test_the_first_page_opens_in_a_browser(studio: Studio, browser_page: Page) -> None:
    browser_page.goto(studio.url)
    expect(browser_page.get_by_role("heading", level=1)).to_be_visible()
    expect(browser_page.get_by_role("link", name="Home")).to_have_attribute("aria-current", "page")
