"""The studio in a real browser: start, watch, crash and restart, compare, on a phone, by keyboard, in Chinese."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, expect

from tests.web.conftest import Studio
from tests.web.runs_for_tests import HOSTILE, hostile_run, make_run

PAGES = (
    "/",
    "/runs",
    "/runs/a",
    "/runs/a/report",
    "/rooms",
    "/rooms/silu",
    "/start/silu/study",
    "/compare?run=a&run=b",
    "/no-such",
)


def fill_runs(root: Path) -> None:
    for name in ("a", "b"):
        make_run(root, name, report=True)
    make_run(root, "failed", status="failed", error="broke")


def start_count(page: Page, studio: Studio, **fields: object) -> None:
    """Start the demo room's counting from its form."""
    page.goto(f"{studio.url}/start/demo/count")
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(str(value))
    page.get_by_role("button", name="Start").click()


def hold(page: Page, studio: Studio) -> Path:
    """Let the run of the page wait at its next step until the file that is returned is deleted."""
    held = studio.runs / page.url.rpartition("/")[2] / "hold"
    held.touch()
    return held


@pytest.fixture
def demo(start_studio: Callable[..., Studio]) -> Studio:
    """Return a studio whose rooms are the demo rooms."""
    return start_studio(module="tests.demo_room")


def test_a_run_is_started_watched_and_done_with_an_error_at_its_field_first(demo: Studio, browser_page: Page) -> None:
    start_count(browser_page, demo, num_steps="0", seconds="0.5")
    wrong = browser_page.locator("[name=num_steps]")
    expect(wrong).to_have_attribute("aria-invalid", "true")
    expect(browser_page.locator("#f-num_steps-error")).to_contain_text("greater than or equal to 1")
    assert list(demo.runs.glob("*/run.json")) == []
    wrong.fill("8")
    browser_page.get_by_role("button", name="Start").click()
    expect(browser_page.locator(".state")).to_contain_text("running", timeout=60_000)
    expect(browser_page.locator(".bars")).to_contain_text("count")
    expect(browser_page.locator(".curves")).to_contain_text("loss")
    # Nobody reloads: the page turns into its result by itself.
    expect(browser_page.locator(".verdicts")).to_contain_text("counted to 8", timeout=60_000)
    expect(browser_page.get_by_role("link", name="Report", exact=True)).to_be_visible()
    expect(browser_page.get_by_role("button", name="Stop")).to_have_count(0)


def test_a_refresh_and_a_killed_server_lose_nothing(demo: Studio, browser_page: Page) -> None:
    start_count(browser_page, demo, num_steps="30", seconds="0.1")
    held = hold(browser_page, demo)
    expect(browser_page.locator(".state")).to_contain_text("running", timeout=60_000)
    address = browser_page.url
    browser_page.reload()
    expect(browser_page.locator(".state")).to_contain_text("running")
    start_count(browser_page, demo, num_steps="1")
    expect(browser_page.locator(".state")).to_contain_text("Number 1 in the queue")
    waiting = browser_page.url
    demo.restart(signal.SIGKILL)
    browser_page.goto(waiting)
    expect(browser_page.locator(".state")).to_contain_text("Number 1 in the queue")
    browser_page.goto(address)
    expect(browser_page.locator(".state")).to_contain_text("running")
    held.unlink()
    expect(browser_page.locator(".verdicts")).to_contain_text("counted to 30", timeout=120_000)
    browser_page.goto(waiting)
    expect(browser_page.locator(".verdicts")).to_contain_text("counted to 1", timeout=60_000)


def test_a_page_that_looks_on_follows_again_after_a_restart(demo: Studio, browser_page: Page) -> None:
    start_count(browser_page, demo, num_steps="24")
    held = hold(browser_page, demo)
    expect(browser_page.locator(".state")).to_contain_text("running", timeout=60_000)
    demo.restart(signal.SIGTERM)
    held.unlink()
    expect(browser_page.locator(".verdicts")).to_contain_text("counted to 24", timeout=120_000)


def test_stop_resume_repeat_and_delete(demo: Studio, browser_page: Page) -> None:
    start_count(browser_page, demo, num_steps="40", seconds="0.1")
    hold(browser_page, demo)
    expect(browser_page.locator(".state")).to_contain_text("running", timeout=60_000)
    browser_page.get_by_role("button", name="Stop").click()
    resume = browser_page.get_by_role("button", name="Resume")
    expect(resume).to_be_visible(timeout=60_000)
    expect(browser_page.locator(".failure")).to_contain_text("stopped on request")
    resume.click()
    expect(browser_page.locator(".state")).to_contain_text("running", timeout=60_000)
    browser_page.get_by_role("button", name="Stop").click()
    expect(resume).to_be_visible(timeout=60_000)
    first = browser_page.url
    browser_page.get_by_role("button", name="Run again").click()
    expect(browser_page.locator(".state")).to_be_visible()
    assert browser_page.url != first
    browser_page.goto(first)
    browser_page.get_by_text("Delete", exact=True).click()
    browser_page.get_by_role("button", name="Yes, delete it").click()
    browser_page.wait_for_url(re.compile("/runs$"))
    assert browser_page.goto(first).status == 404  # type: ignore[union-attr]


def test_the_list_filters_as_one_types_and_two_chosen_runs_are_compared(start_studio, tmp_path, browser_page) -> None:
    fill_runs(tmp_path / "runs")
    studio = start_studio()
    browser_page.goto(f"{studio.url}/runs")
    rows = browser_page.locator("tbody tr")
    expect(rows).to_have_count(3)
    browser_page.get_by_label("Search").fill("broke")
    expect(rows).to_have_count(1)
    assert "q=broke" in browser_page.url
    browser_page.reload()
    expect(rows).to_have_count(1)
    browser_page.get_by_label("Search").fill("")
    expect(rows).to_have_count(3)
    for name in ("a", "b"):
        browser_page.get_by_label(f"Choose {name} to compare").check()
    browser_page.get_by_role("button", name="Compare the two chosen").click()
    expect(browser_page.get_by_role("heading", name="Figures side by side")).to_be_visible()
    assert browser_page.get_by_label("First").input_value() in ("a", "b")


def test_the_report_stands_in_a_frame_in_which_nothing_acts(start_studio, tmp_path, browser_page) -> None:
    hostile_run(tmp_path / "runs")
    studio = start_studio()
    browser_page.goto(f"{studio.url}/runs/hostile/report")
    frame = browser_page.frame_locator("iframe")
    expect(frame.locator("h1")).to_be_visible()
    title = browser_page.title()
    browser_page.goto(f"{studio.url}/files/hostile/artifacts/page.html")
    assert browser_page.evaluate("document.title") != "taken"
    assert "taken" not in title


def test_hostile_texts_in_every_field_of_every_form_stay_texts(studio: Studio, browser_page: Page) -> None:
    dialogs: list[str] = []
    browser_page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    text = HOSTILE.replace("\0", "")
    for room, verb in (("commons", "run"), ("prefix", "translate"), ("redteam", "attack")):
        browser_page.goto(f"{studio.url}/start/{room}/{verb}")
        browser_page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true })")
        for field in browser_page.locator("form.config input:not([type]), form.config textarea").all():
            field.fill(text)
        browser_page.get_by_role("button", name="Start").click()
        expect(browser_page.get_by_role("alert")).to_be_visible()
        assert browser_page.locator("main script, main img").count() == 0
        kept = browser_page.locator("form.config input:not([type])").first.input_value()
        assert "<script>" in kept
    browser_page.goto(f"{studio.url}/runs")
    browser_page.get_by_label("Search").fill(text)
    expect(browser_page.get_by_text("No run fits")).to_be_visible()
    assert dialogs == []
    assert list(studio.runs.glob("*/run.json")) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible(start_studio, tmp_path, new_context, scheme) -> None:
    fill_runs(tmp_path / "runs")
    studio = start_studio()
    page = new_context(color_scheme=scheme, bypass_csp=True).new_page()
    axe = Axe()
    for path in PAGES:
        page.goto(f"{studio.url}{path}")
        options = {"iframes": False, "resultTypes": ["violations"]}
        found = axe.run(page, options=options)
        assert found.violations_count == 0, f"{path}\n{found.generate_report()}"


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(start_studio, tmp_path, browser_page) -> None:
    fill_runs(tmp_path / "runs")
    studio = start_studio()
    browser_page.goto(studio.url)
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen = []
    for _ in range(60):
        browser_page.keyboard.press("Tab")
        place = browser_page.evaluate(
            "(() => { const one = document.activeElement, box = one.getBoundingClientRect();"
            " const look = getComputedStyle(one);"
            " return one === document.body ? null : [one.textContent.trim().slice(0, 20), box.top + scrollY,"
            " look.outlineStyle !== 'none' || one.matches('[tabindex]')] })()"
        )
        if place is None:
            break
        seen.append(place)
    assert len(seen) > 15
    assert all(visible for _, _, visible in seen)
    main = [top for name, top, _ in seen if top > 60]
    # Down the page, but for what stands side by side.
    assert all(after >= before - 60 for before, after in pairwise(main))


def test_no_page_scrolls_sideways_on_a_phone(start_studio, tmp_path, new_context) -> None:
    fill_runs(tmp_path / "runs")
    studio = start_studio()
    page = new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True).new_page()
    for path in PAGES:
        page.goto(f"{studio.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


def test_a_chinese_browser_gets_chinese_and_may_choose(
    studio: Studio, new_context: Callable[..., BrowserContext]
) -> None:
    page = new_context(locale="zh-CN").new_page()
    page.goto(studio.url)
    expect(page.get_by_role("heading", level=1)).to_have_text("工作台")
    page.get_by_role("link", name="English").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The workbench")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_a_token_is_asked_for_where_others_could_look(start_studio, browser_page) -> None:
    studio = start_studio(environment={"POLYLOOM_TOKEN": "a long token"})
    browser_page.goto(f"{studio.url}/runs")
    browser_page.wait_for_url(re.compile("/login$"))
    browser_page.get_by_label("Token").fill("guess")
    browser_page.get_by_role("button", name="Enter").click()
    expect(browser_page.get_by_text("That is not the token")).to_be_visible()
    browser_page.get_by_label("Token").fill("a long token")
    browser_page.get_by_role("button", name="Enter").click()
    expect(browser_page.get_by_role("heading", name="The workbench")).to_be_visible()
    studio.restart()
    browser_page.goto(f"{studio.url}/runs")
    expect(browser_page.get_by_role("heading", name="Runs")).to_be_visible()
    browser_page.get_by_role("button", name="Sign out").click()
    browser_page.wait_for_url(re.compile("/login$"))


def test_a_hidden_page_gives_its_connection_back(demo: Studio, browser_page: Page) -> None:
    browser_page.goto(demo.url)
    browser_page.evaluate("document.body.addEventListener('htmx:sseClose', () => { window.gaveBack = true })")
    browser_page.evaluate(
        "Object.defineProperty(document, 'hidden', { get: () => window.away, configurable: true }); window.away = true;"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    assert browser_page.evaluate("window.gaveBack") is True
    with browser_page.expect_response(lambda response: "/events?" in response.url):
        browser_page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
