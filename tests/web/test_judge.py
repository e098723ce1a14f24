from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from polyloom.methods.redteam.data import read_responses
from polyloom.runs.store import EventStore
from polyloom.web.label_sets import labels_of, make_set
from tests.web.audit import assert_accessible, one_studio
from tests.web.conftest import Studio

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'}{{7*7}}\u202e"
NUM_ITEMS = 6


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Return one server for all tests here: each works in a project of its own."""
    yield from one_studio(tmp_path_factory.mktemp("studio"))


def prepare(studio: Studio) -> tuple[EventStore, str]:
    """Make a set of six responses; return the store and the set's identity."""
    rows = [
        {"goal": f"question {i}", "response": f"answer number {i}", "verdicts": {"keywords": i % 2 == 0, "nli": True}}
        for i in range(NUM_ITEMS)
    ]
    rows[0]["response"] = HOSTILE
    rows[1]["goal"] = HOSTILE
    studio.runs.mkdir(exist_ok=True)
    (studio.runs / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = EventStore(studio.runs / ".studio" / "studio.sqlite3")
    return store, make_set(store, studio.runs, "answers.jsonl")


def enter(page: Page, address: str, name: str) -> None:
    """Open an item as somebody."""
    page.goto(address)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator("#open")).to_be_focused()


def label_all(page: Page, keys: str) -> None:
    """Open and label every item by keyboard."""
    for number, one in enumerate(keys, 1):
        expect(page.locator(".eyebrow")).to_contain_text(f"response {number} of")
        page.keyboard.press("o")
        expect(page.locator("#response")).to_be_focused()
        page.keyboard.press(one)
    expect(page.get_by_role("heading", name="Who has labelled")).to_be_visible()


def test_two_people_label_blind_and_agreement_is_there_at_once(
    studio: Studio, new_context: Callable[..., BrowserContext]
) -> None:
    store, identity = prepare(studio)
    address = f"{studio.url}/judge/{identity}"
    for name, keys in (("Ann", "110010"), ("Bo", "1100s1")):
        page = new_context().new_page()
        enter(page, f"{address}/1", name)
        for hidden in ("answer number", "window.hacked", "keywords", "nli"):
            assert (
                hidden not in page.locator("#content").inner_html().replace(">question", "")
                or hidden == "window.hacked"
            )
        assert_accessible(page)
        label_all(page, keys)
    expect(page.locator("section", has_text="Agreement between people").locator("tbody tr td").nth(0)).to_have_text("5")
    expect(page.locator("section", has_text="Agreement between people").locator("tbody td").nth(1)).to_contain_text(
        "0.80"
    )
    expect(page.locator("section", has_text="Agreement between people").locator("tbody td").nth(2)).to_contain_text(
        "0.62"
    )
    expect(page.get_by_role("heading", name="Where people differ (1)")).to_be_visible()
    assert "nli" not in page.inner_text("main")
    assert_accessible(page)
    page.get_by_role("link", name="Show how the judges did").click()
    expect(page.locator("section", has_text="The automatic judges").locator("tbody tr")).to_have_count(2)
    labels = labels_of(store.entries(identity))
    assert {name: list(given.values()) for name, given in labels.items()} == {
        "Ann": [True, True, False, False, True, False], "Bo": [True, True, False, False, None, True]
    }  # fmt: skip
    with page.expect_download() as download:
        page.get_by_role("link", name="Download labels").click()
    redacted = Path(download.value.path()).read_text()
    assert len(redacted.splitlines()) == 12
    assert "answer number" not in redacted
    page.get_by_role("button", name="Run redteam agree").click()
    page.wait_for_url("**/runs/redteam-agree-*")
    written = read_responses(str(studio.runs / "answers.labels.jsonl"))
    assert len(written) == 11
    assert {(one.annotator, one.label) for one in written} == {("Ann", 1), ("Ann", 0), ("Bo", 1), ("Bo", 0)}


def test_texts_stay_out_of_the_store_and_are_hostile_in_vain(studio: Studio, browser_page: Page) -> None:
    store, identity = prepare(studio)
    with sqlite3.connect(studio.runs / ".studio" / "studio.sqlite3") as connection:
        held = "\n".join(connection.iterdump())
    assert "answer number" not in held
    page = browser_page
    enter(page, f"{studio.url}/judge/{identity}/1", "<b>Ann</b>")
    names = store.names(identity)
    for number in range(1, NUM_ITEMS + 1):
        page.goto(f"{studio.url}/judge/{identity}/{number}")
        page.keyboard.press("o")
        expect(page.locator("#response")).to_be_visible()
    texts = []
    for number in range(1, NUM_ITEMS + 1):
        page.goto(f"{studio.url}/judge/{identity}/{number}")
        texts += [page.inner_text("#response"), page.inner_text(".bubble-text")]
    assert any("<script>window.hacked" in text for text in texts[::2])
    assert any("{{7*7}}" in text for text in texts[1::2])
    assert page.evaluate("window.hacked") is None
    opened = [entry for entry in store.entries(identity) if entry.kind == "opened"]
    assert {entry.stream.item for entry in opened} == set(names)
    assert {entry.stream.author for entry in opened} == {"<b>Ann</b>"}


def test_a_label_survives_a_kill_and_two_windows_do_not_overwrite_each_other(
    studio: Studio, new_context: Callable[..., BrowserContext]
) -> None:
    store, identity = prepare(studio)
    address = f"{studio.url}/judge/{identity}/1"
    first, second = new_context().new_page(), new_context().new_page()
    enter(first, address, "Ann")
    first.keyboard.press("o")
    expect(first.locator("#response")).to_be_visible()
    second.goto(address)
    second.get_by_label("Your name").fill("Ann")
    second.keyboard.press("Enter")
    expect(second.locator("#response")).to_be_focused()
    first.keyboard.press("1")
    expect(first.locator(".eyebrow")).to_contain_text("response 2 of")
    second.keyboard.press("0")
    expect(second.get_by_role("alert")).to_contain_text("another window")
    expect(second.locator(".saved")).to_contain_text("your label: It does")
    studio.restart()
    second.goto(address)
    expect(second.locator(".saved")).to_contain_text("your label: It does · Saved")
    second.keyboard.press("0")
    expect(second.locator(".eyebrow")).to_contain_text("response 2 of")
    assert [entry.body.get("label") for entry in store.entries(identity) if entry.kind == "labelled"] == [True, False]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_speaks_chinese_and_fits_a_telephone(
    studio: Studio, new_context: Callable[..., BrowserContext], width: int
) -> None:
    _, identity = prepare(studio)
    page = new_context(locale="zh-CN", viewport={"width": width, "height": 740}).new_page()
    page.goto(f"{studio.url}/judge/{identity}")
    expect(page.locator("h2").first).to_have_text("标注者")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_requests_that_do_not_fit_are_refused(client, post, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir(exist_ok=True)
    (runs / "r.jsonl").write_text(json.dumps({"goal": "g", "response": "text"}) + "\n")
    (runs / "redacted.jsonl").write_text(json.dumps({"goal": "g", "response_sha256": "text"}) + "\n")
    (tmp_path / "outside.jsonl").write_text(json.dumps({"goal": "g", "response": "text"}) + "\n")
    for name in ("../outside.jsonl", "absent", "r.jsonl/../../outside.jsonl"):
        assert post("/judge", source=name).status_code == 404, name
    assert "keep-responses" in post("/judge", source="redacted.jsonl").text
    made = post("/judge", source="r.jsonl").headers["location"]
    fields = {"value": "1", "seen": 0, "token": "t"}
    assert post(f"{made}/1/open").status_code == 400  # nobody has said who they are
    post("/name", name="Ann", next="/judge")
    assert "open the response first" in post(f"{made}/1/label", **fields).text
    assert post(f"{made}/agree").status_code == 400  # no label yet
    assert "text" not in client.get(f"{made}/1").text.split('aria-label="The exchange"')[1].split("<form")[0].replace(
        "bubble-text", ""
    )
    assert post(f"{made}/1/open").status_code == 303
    assert post(f"{made}/1/label", **{**fields, "value": "2"}).status_code == 422
    for place in (0, 2):
        assert client.get(f"{made}/{place}").status_code == 404
        assert post(f"{made}/{place}/open").status_code == 404
    assert post(f"{made}/1/label", **{**fields, "seen": 1}).status_code == 303
    assert post(f"{made}/1/label", **{**fields, "seen": 1}).status_code == 303  # the same request again
    (runs / "r.jsonl").write_text(json.dumps({"goal": "g", "response": "changed"}) + "\n")
    assert client.get(f"{made}/1").status_code == 404  # the text is gone; the label is kept
