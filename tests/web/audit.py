"""What a page owes to people who do not see it, or see it badly, or look at it on a telephone."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

OPTIONS = {"iframes": False, "resultTypes": ["violations"]}


def assert_accessible(page: Page) -> None:
    """Hold a page to axe's rules in light and dark, and that nothing sticks out sideways on a telephone."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = Axe().run(page, options=OPTIONS)
        assert found.violations_count == 0, f"{page.url} {scheme}\n{found.generate_report()}"
    page.emulate_media(color_scheme="light")
    size = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if size:
        page.set_viewport_size(size)
