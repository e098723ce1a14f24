from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from polyloom.methods.commons.events import read_events, split_runs
from polyloom.methods.commons.story import tell
from polyloom.runs.execute import run_verb
from polyloom.web.stock_chart import BOTTOM, HEIGHT, TOP, draw
from tests.web.audit import assert_accessible, one_studio
from tests.web.conftest import Studio

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'}{{7*7}}\u202e"
GAME = {"minds": ["noisy:0.3:sustainable"], "num_months": 3, "num_seeds": 2, "seed": 3}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Return one server for all tests here: each works in a project of its own."""
    yield from one_studio(tmp_path_factory.mktemp("studio"))


def play(runs: Path, name: str = "fish", **more: Any) -> Path:
    """Play a short game and return its log."""
    # In a thread: playwright has this one's event loop, and the game wants one of its own.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_verb, "commons.run", {**GAME, **more}, runs=runs, name=name).result()
    return runs / name / "artifacts" / "events.jsonl"


def test_a_run_is_replayed_month_by_month_by_keyboard(studio: Studio, browser_page: Page) -> None:
    log, page = play(studio.runs), browser_page
    story = tell(split_runs(read_events(log))[1])
    page.goto(f"{studio.url}/replay")
    page.get_by_role("link", name="fish").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_role("link", name="Run 2").click()
    for number, chapter in enumerate(story.chapters, 1):
        expect(page.locator("h1")).to_have_text(f"Month {number} of {len(story.chapters)}")
        values = page.locator(".cards .value")
        expect(values.nth(0)).to_have_text(str(chapter.stock))
        expect(values.nth(1)).to_have_text(str(chapter.share))
        expect(values.nth(2)).to_have_text(str(chapter.taken))
        expect(values.nth(3)).to_have_text(str(chapter.rest))
        rows = page.locator("table tbody tr")
        expect(rows).to_have_count(len(chapter.catches))
        for catch in chapter.catches:
            row = rows.nth(catch.agent)
            expect(row).to_contain_text(story.start.agents[catch.agent])
            expect(row.locator("td").nth(0)).to_have_text(str(catch.ask))
            expect(row.get_by_text("beyond the share")).to_have_count(int(catch.over))
        expect(page.locator(".talk > li")).to_have_count(len(chapter.words))
        page.keyboard.press("ArrowRight")
    assert page.url.endswith(f"/replay/fish/1/{len(story.chapters)}")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("h1")).to_contain_text("Month 2")
    page.reload()
    expect(page.locator("h1")).to_contain_text("Month 2")
    call = page.locator(".calls details").nth(2)
    call.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(call.locator(".said").last).to_have_text(story.chapters[1].calls[2].reply)
    assert_accessible(page)
    page.locator("svg a").first.click()
    expect(page.locator("h1")).to_contain_text("Month 1")


def test_a_branch_is_played_and_shown_beside_the_log(studio: Studio, browser_page: Page) -> None:
    log, page = play(studio.runs, "origin"), browser_page
    story = tell(split_runs(read_events(log))[0])
    page.goto(f"{studio.url}/replay/origin/0/2")
    page.locator("#branch summary").focus()
    page.keyboard.press("Enter")
    page.locator("#ask-0").fill("30")
    page.get_by_label("Minds from this month on").fill("greedy")
    page.get_by_role("button", name="Play the branch").click()
    page.wait_for_url("**/replay/commons-branch-*/0/2", timeout=90_000)
    expect(page.locator(".notice")).to_contain_text(f"{story.start.agents[0]}=30")
    expect(page.locator("table tbody tr").first.locator("td").first).to_have_text("30")
    expect(page.locator("polyline.other")).to_have_count(1)
    page.get_by_role("link", name="origin").click()
    expect(page.locator("h1")).to_contain_text("Month 2")


def test_hostile_words_are_shown_and_do_nothing(studio: Studio, browser_page: Page) -> None:
    log, page = play(studio.runs, "hostile", num_seeds=1), browser_page
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        for name in ("text", "reply", "prompt", "summary", "scenario"):
            if name in row:
                row[name] = HOSTILE
        if row["type"] == "start":
            row["agents"] = [f"{HOSTILE} {i}" for i in range(len(row["agents"]))]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.goto(f"{studio.url}/replay/hostile/0/1")
    expect(page.locator(".bubble p").first).to_contain_text("<script>window.hacked")
    page.locator(".calls summary").first.click()
    expect(page.locator(".said").first).to_contain_text("{{7*7}}")
    assert page.evaluate("window.hacked") is None


def test_what_is_not_there_is_not_found(client, post, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    play(runs)
    (runs / "fish" / "artifacts" / "log_env.json").unlink()
    for path in ("absent", "fish/2/1", "fish/0/0", "fish/0/4", "fish/0/1/calls/9999", "..%2F..%2Fetc/0/1"):
        assert client.get(f"/replay/{path}").status_code == 404, path
    assert post("/replay/fish/0/1/branch", **{"ask-0": "many"}).status_code == 400
    (runs / "fish" / "artifacts" / "events.jsonl").write_text("{}\n")
    assert client.get("/replay/fish/0/1").status_code == 400


@pytest.mark.parametrize("scenario", ["fishery", "trash"])
def test_the_chart_cuts_each_column_into_what_was_taken_and_left(tmp_path: Path, scenario: str) -> None:
    log = play(tmp_path / "runs", scenario=scenario)
    story = tell(split_runs(read_events(log))[0])
    chart = draw(story, [100.0, None, 40.0])
    top = max(100, *(chapter.stock for chapter in story.chapters))
    inner = HEIGHT - TOP - BOTTOM
    for chapter, column in zip(story.chapters, chart.columns, strict=True):
        total = sum(piece.height for piece in column.pieces)
        assert total == pytest.approx(inner * chapter.stock / top, abs=0.7)
        taken = sum(piece.height for piece in column.pieces if piece.agent is not None)
        assert taken == pytest.approx(inner * min(chapter.taken, chapter.stock) / top, abs=0.7)
    assert len(chart.other) == 2
