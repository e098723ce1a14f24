"""What the tests of the workbench's pages share: one server for a module, and what a page owes to everybody."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.web.conftest import Studio

# The machines that run this are shared: what takes long is no failure.
expect.set_options(timeout=20_000)
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


def one_studio(folder: Path) -> Iterator[Studio]:
    """Start a studio, and end it after its users."""
    studio = Studio(folder / "runs").start()
    yield studio
    studio.end(signal.SIGKILL)
