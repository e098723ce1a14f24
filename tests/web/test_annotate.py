from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import BrowserContext, Page, expect

from polyloom.core.files import write_json
from polyloom.methods.docre.annotation_store import AnnotationStore
from polyloom.methods.docre.annotations import key
from polyloom.methods.docre.data import Triple, document_json, load_documents, read_documents
from polyloom.runs.execute import run_verb
from polyloom.runs.store import EventStore
from polyloom.web import Settings, create_app
from polyloom.web.projects import from_world
from tests.web.audit import assert_accessible, one_studio
from tests.web.conftest import BASE_URL, Studio

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'}{{7*7}}{% x %}\u202e"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Return one server for all tests here: each works in a project of its own."""
    yield from one_studio(tmp_path_factory.mktemp("studio"))


def prepare(studio: Studio, language: str = "ja", target: str = "") -> tuple[AnnotationStore, str]:
    """Make a project of two world documents in the studio's store; return it and the address of the first."""
    store = EventStore(target or studio.runs / ".studio" / "studio.sqlite3")
    project = from_world(store, language, 2, blind=False)
    return AnnotationStore(store, project), f"{studio.url}/annotate/{project}/1"


def enter(page: Page, address: str, name: str = "Aya") -> None:
    """Open a document as somebody."""
    page.goto(address)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    expect(page.locator(".candidate").first).to_be_visible()


def saved(page: Page) -> None:
    """Wait until the page says that everything is stored."""
    expect(page.locator("#saved")).to_have_text("Saved")


def do(page: Page, *keys: str) -> None:
    """Press keys one after the other, each stored before the next."""
    for one in keys:
        version = page.locator(".desk").get_attribute("data-version")
        page.keyboard.press(one)
        expect(page.locator(".desk")).not_to_have_attribute("data-version", str(version))
        saved(page)


def test_a_document_is_annotated_by_keyboard_alone(studio: Studio, browser_page: Page) -> None:
    page = browser_page
    page.goto(f"{studio.url}/annotate")
    page.get_by_label("Language of the texts").focus()
    page.keyboard.type("Japanese")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    page.wait_for_url("**/annotate/world-ja-*")
    page.get_by_role("link", name="Go on annotating").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Your name").focus()
    page.keyboard.type("Aya")
    page.keyboard.press("Enter")
    expect(page.locator(".candidate.current")).to_be_focused()

    project = page.url.split("/")[-2]
    store = AnnotationStore(studio.runs / ".studio" / "studio.sqlite3", project)
    title = store.titles()[0]
    start = store.recommended(title)
    num_sentences = len(store.document(title).sentences)
    assert len(start) >= 5

    do(page, "a", "x")  # accept the first, reject the second; the third is current
    do(page, "f")  # flip it
    do(page, "2")  # toggle the second sentence as evidence of it
    page.keyboard.press("e")  # and the last sentence by walking there
    for _ in range(num_sentences):
        page.keyboard.press("ArrowDown")
    do(page, " ")
    page.keyboard.press("Escape")
    expect(page.locator(".candidate.current")).to_be_focused()
    page.keyboard.press("j")  # the fourth gets another type, found by its name
    page.keyboard.press("c")
    page.keyboard.type("spouse")
    page.keyboard.press("Enter")
    saved(page)
    page.keyboard.press("n")  # a triple of the last two entities is added
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    page.keyboard.type("sibling")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    saved(page)
    expect(page.locator(".candidate.current .stands")).to_have_text("added")
    expect(page.locator(".candidate.current")).to_be_focused()
    do(page, "d")

    count = len(store.document(title).entities)
    third, fourth = start[2], start[3]
    state = {key(t): t for t in store.state(title, "Aya")}
    assert key(start[0]) in state
    assert key(start[1]) not in state
    flipped = state[third.tail, third.relation, third.head]
    assert set(flipped.evidence) == set(third.evidence) ^ {1} ^ {num_sentences - 1}
    assert key(Triple(fourth.head, "P26", fourth.tail)) in state
    assert (count - 1, "P3373", count - 2) in state
    operations = [event.operation for event in store.events(title, "Aya")]
    assert operations == ["accept", "remove", "flip", "evidence", "evidence", "retag", "add", "done"]
    expect(page.locator(".counts")).to_contain_text(f"5 of {len(start) + 1} reviewed · 6 edits")

    page.keyboard.press("]")
    page.wait_for_url("**/2")
    page.goto(page.url.rsplit("/", 1)[0])
    expect(page.locator("tbody tr").first).to_contain_text("done · 6 edits")
    assert_accessible(page)


def test_random_pairs_are_asked_about_and_counted(studio: Studio, browser_page: Page) -> None:
    store, address = prepare(studio)
    page = browser_page
    enter(page, address)
    asked = page.locator(".questions li")
    expect(asked).to_have_count(5)
    asked.first.get_by_role("button", name="No relation").click()
    expect(asked).to_have_count(4)
    asked.first.get_by_role("button", name="Yes: add it").click()
    page.get_by_role("dialog").get_by_role("button", name="Add").click()
    expect(asked).to_have_count(3)
    recall = store.recall("Aya")
    assert (recall.num_asked, recall.num_yes) == (2, 1)
    page.goto(address.rpartition("/")[0])
    expect(page.get_by_text("by 2 questions")).to_be_visible()
    assert_accessible(page)


def test_undo_and_redo_go_all_the_way(studio: Studio, browser_page: Page) -> None:
    store, address = prepare(studio)
    title, page = store.titles()[0], browser_page
    start = store.recommended(title)
    enter(page, address)
    do(page, "x", "a", "f")
    after = store.state(title, "Aya")
    do(page, "u", "u", "Control+z")
    assert store.state(title, "Aya") == start
    expect(page.locator(".counts")).to_contain_text("0 of")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    do(page, "r", "Control+Shift+Z", "r")
    assert store.state(title, "Aya") == after
    expect(page.locator(".counts")).to_contain_text("3 edits (9 made)")
    expect(page.get_by_role("button", name="Redo")).to_be_disabled()
    page.reload()
    expect(page.locator(".counts")).to_contain_text("3 edits (9 made)")


def test_by_mouse_two_entities_are_related_and_sentences_marked(studio: Studio, browser_page: Page) -> None:
    store, address = prepare(studio)
    title, page = store.titles()[0], browser_page
    enter(page, address)
    page.locator(".mention[data-entities='0 ']").first.click()
    page.locator(".mention[data-entities='1 ']").first.click()
    page.get_by_label("type to narrow").locator("visible=true").fill("award")
    page.get_by_role("button", name="Add", exact=True).locator("visible=true").last.click()
    saved(page)
    page.locator(".sentence .mark").nth(0).click()
    saved(page)
    expect(page.locator(".candidate.current .sid")).to_have_text("1")
    assert Triple(0, "P166", 1, (0,)) in store.state(title, "Aya")
    page.locator(".candidate").first.click()
    page.locator(".candidate.current").get_by_role("button", name="Reject").click()
    expect(page.locator(".candidate").first.locator(".stands")).to_have_text("rejected")
    page.locator(".candidate").first.get_by_role("button", name="Take back in").click()
    expect(page.locator(".candidate").first.locator(".stands")).to_have_text("accepted")
    page.locator(".mention").first.hover()
    expect(page.locator(".mention.is-over").first).to_be_visible()


def test_two_browsers_never_lose_an_edit_and_see_a_conflict(
    studio: Studio, new_context: Callable[..., BrowserContext]
) -> None:
    store, address = prepare(studio)
    title = store.titles()[0]
    start = store.recommended(title)
    first, second = new_context().new_page(), new_context().new_page()
    for page in (first, second):
        # The pages do not ask on their own: each knows only what its own events brought.
        page.route("**/desk?*", lambda route: route.abort())
        enter(page, address)
    do(first, "a")
    second.keyboard.press("j")
    do(second, "x")  # another relation: both are kept, and the second page now shows both
    expect(second.locator(".candidate").first.locator(".stands")).to_have_text("accepted")
    first.locator(".candidate").nth(1).click()
    first.keyboard.press("f")  # the same relation: the first page is told, nothing is stored
    expect(first.locator("#conflict")).to_contain_text("another window")
    expect(first.locator("#saved")).to_have_text("Not saved")
    assert [event.operation for event in store.events(title, "Aya")] == ["accept", "remove"]
    expect(first.locator(".candidate").nth(1).locator(".stands")).to_have_text("rejected")
    first.get_by_role("button", name="Store mine as well").click()
    expect(first.locator(".notice.bad")).to_contain_text("is not there")
    second.locator(".candidate").nth(2).click()
    do(second, "f")
    first.locator(".candidate").nth(2).click()
    first.keyboard.press("c")
    first.keyboard.type("spouse")
    first.keyboard.press("Enter")
    expect(first.locator("#conflict")).to_be_visible()
    first.get_by_role("button", name="Leave it").click()
    expect(first.locator("#conflict")).to_have_count(0)
    third = start[2]
    assert {key(t) for t in store.state(title, "Aya")} == {
        *(key(t) for t in start if t not in (start[1], third)), (third.tail, third.relation, third.head)
    }  # fmt: skip


def test_the_other_window_is_brought_up_to_date(studio: Studio, new_context: Callable[..., BrowserContext]) -> None:
    _, address = prepare(studio)
    first, second = new_context().new_page(), new_context().new_page()
    for page in (first, second):
        enter(page, address)
    do(first, "x")
    expect(second.locator(".candidate").first.locator(".stands")).to_have_text("rejected")
    expect(second.locator("#saved")).to_contain_text("other window")


def test_what_is_saved_survives_a_kill_and_what_is_not_is_sent_again(
    store_target: str, start_studio: Callable[..., Studio], browser_page: Page
) -> None:
    studio = start_studio(options=("--database", store_target))
    store, address = prepare(studio, target=store_target)
    title, page = store.titles()[0], browser_page
    enter(page, address)
    do(page, "a", "x")
    studio.end(9)  # type: ignore[arg-type]
    assert [event.operation for event in store.events(title, "Aya")] == ["accept", "remove"]
    page.keyboard.press("a")
    expect(page.locator("#saved")).to_contain_text("does not answer")
    studio.start()
    saved(page)
    assert [event.operation for event in store.events(title, "Aya")] == ["accept", "remove", "accept"]
    page.reload()
    expect(page.locator(".counts")).to_contain_text("3 of")


def test_disagreement_is_shown_and_settled(studio: Studio, new_context: Callable[..., BrowserContext]) -> None:
    store, address = prepare(studio)
    title = store.titles()[0]
    start = store.recommended(title)
    for name, keys in (("Aya", ("a", "x", "a")), ("Bo", ("a", "a", "x"))):
        page = new_context().new_page()
        enter(page, address, name)
        do(page, *keys)
    page.goto(f"{address}/compare")
    expect(page.locator(".is-disputed")).to_have_count(2)
    assert_accessible(page)
    page.get_by_role("button", name="Settle the document").click()
    assert "compare" in page.url
    assert store.events(title, "adjudicated") == []  # both have to be decided first
    rows = page.locator(".is-disputed")
    rows.nth(0).get_by_label("holds").check()
    rows.nth(1).get_by_label("does not").check()
    dropped = rows.nth(1).locator("input").first.get_attribute("name")
    page.get_by_role("button", name="Settle the document").click()
    expect(page.locator(".notice")).to_contain_text("is settled")
    with page.expect_download() as download:
        page.goto(address.rsplit("/", 1)[0])
        page.get_by_role("link", name="Download what is settled").click()
    documents, defects = read_documents(Path(download.value.path()))
    assert set(defects.counts) <= {"name_differs_by_spaces"}
    settled = {key(t) for t in documents[0].triples or ()}
    assert settled == {key(t) for t in start} - {k for k in map(key, start) if f"keep {k[0]}|{k[1]}|{k[2]}" == dropped}
    assert {event.by for event in store.events(title, "adjudicated")} == {"Bo"}


@pytest.mark.parametrize(("language", "direction"), [("ja", "ltr"), ("ar", "rtl")])
def test_scripts_render_in_their_direction_and_the_page_is_accessible(
    studio: Studio, browser_page: Page, language: str, direction: str
) -> None:
    store, address = prepare(studio, language)
    document, page = store.document(store.titles()[0]), browser_page
    enter(page, address)
    words = page.locator(".words").first
    assert words.evaluate("node => getComputedStyle(node).direction") == direction
    expect(page.locator(".sentence .words")).to_have_count(len(document.sentences))
    shown = words.evaluate("node => [...node.querySelectorAll('sup')].forEach((s) => s.remove()) || node.textContent")
    assert shown == document.sentence_text(0)
    assert page.locator("#sentences").get_attribute("lang") == language
    number, text = page.locator(".mark").first.bounding_box(), words.bounding_box()
    assert number is not None
    assert text is not None
    assert (number["x"] > text["x"]) == (direction == "rtl")
    do(page, "a", "x", "f")
    assert_accessible(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert_accessible(page)
    page.keyboard.press("Escape")
    order = []
    page.locator(".tools button").first.focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert order[-1].startswith("Keys")


def test_hostile_texts_are_shown_and_do_nothing(studio: Studio, browser_page: Page) -> None:
    document = document_json(load_documents("world", language="en", num_documents=1)[0][0])
    document["title"] = HOSTILE
    document["sents"][0] = [HOSTILE, *document["sents"][0][1:]]
    for mention in document["vertexSet"][0]:
        mention["name"] = mention["type"] = HOSTILE
    document["labels"] = [{"h": 0, "t": 1, "r": HOSTILE, "evidence": [0]}]
    studio.runs.mkdir(exist_ok=True)
    write_json(studio.runs / "hostile.json", [document])
    page = browser_page
    page.goto(f"{studio.url}/annotate")
    page.get_by_label("File").select_option("hostile.json")
    page.locator("form", has=page.get_by_label("File")).get_by_role("button").click()
    page.wait_for_url("**/annotate/hostile-*")
    page.get_by_role("row").nth(1).get_by_role("link").first.click()
    page.get_by_label("Your name").fill("<b onclick=x>\u202e' OR 1=1")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("<script>window.hacked")
    do(page, "a")
    page.keyboard.press("c")
    page.keyboard.type("spouse")
    page.keyboard.press("Enter")
    saved(page)
    page.goto(f"{page.url}/compare")
    expect(page.locator("h1")).to_contain_text("{{7*7}}")
    page.goto(page.url.rsplit("/", 2)[0])
    expect(page.locator("table")).to_contain_text("<b onclick=x>")
    assert page.evaluate("window.hacked") is None


def test_requests_that_do_not_fit_are_refused(client, post) -> None:
    store = EventStore(client.app.state.settings.database_url)
    project = from_world(store, "en", 1, blind=False)
    events = f"/annotate/{project}/1/events"
    fields = {"operation": "accept", "seen": 0, "token": "t"}
    assert post(events, **fields).status_code == 403  # nobody has said who they are
    for name in ("", "adjudicated", "x" * 41, "\0"):
        assert post("/name", name=name, next="/annotate").status_code in (400, 422)
    assert post("/name", name="Ann", next="//elsewhere.example").headers["location"] == "/"
    assert client.get("/annotate/absent").status_code == 400
    for number in (0, 2, 10**9):
        assert client.get(f"/annotate/{project}/{number}").status_code == 404
    for wrong in (
        {"operation": "explode"}, {"head": 0, "tail": 0, "relation": "P1"}, {"head": 0, "tail": 999, "relation": "P1"},
        {"head": 0, "tail": 1, "relation": ""}, {"head": 0, "tail": 1, "relation": "P1", "evidence": "999"},
        {"operation": "retag", "head": 0, "tail": 1, "relation": "P1"}, {"operation": "undo"},
    ):  # fmt: skip
        answer = post(events, **{**fields, **wrong})
        assert answer.status_code == 422, wrong
        assert "data-version" in answer.text
    assert post(events, operation="accept", seen=-1, token="t").status_code == 422
    assert client.post(events, data=fields).status_code == 403  # without the page's mark
    for source in ({"source": "file", "file": "../secret.json"}, {"source": "run", "run": "absent"}):
        assert post("/annotate", **source).status_code == 404
    assert post("/annotate", source="nothing").status_code == 400
    assert AnnotationStore(store, project).events() == []


def test_a_project_comes_from_a_run_and_leaves_blind_documents(client, post, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run_verb("docre.recommend", {"num_documents": 10, "num_train_documents": 20}, runs=runs, name="rec")
    assert "rec" in client.get("/annotate").text
    made = post("/annotate", source="run", run="rec", blind="1").headers["location"].split("/")[-1]
    store = AnnotationStore(EventStore(client.app.state.settings.database_url), made)
    stored = json.loads((runs / "rec" / "artifacts" / "recommendations.json").read_text())
    titles = store.titles()
    assert len(titles) == 10
    assert store.proposals(titles[9]) == []
    for title in titles[:9]:
        assert len(store.proposals(title)) == sum(row["title"] == title for row in stored)
    post("/name", name="Ann", next="/annotate")
    assert "without recommendations" in client.get(f"/annotate/{made}/10").text


def test_the_pages_keep_their_work_in_either_database(store_target: str, tmp_path: Path) -> None:
    settings = Settings(runs=tmp_path / "runs", database=store_target)
    project = from_world(EventStore(store_target), "en", 1, blind=False)
    with TestClient(create_app(settings), base_url=BASE_URL, follow_redirects=False) as client:
        csrf = client.get("/").text.split('X-CSRF-Token": "')[1].split('"')[0]
        client.post("/name", data={"csrf": csrf, "name": "Ann", "next": "/"})
        store = AnnotationStore(EventStore(store_target), project)
        first = store.recommended(store.titles()[0])[0]
        triple = {"head": first.head, "relation": first.relation, "tail": first.tail}
        for seen in (0, 0):  # the same request, sent twice
            sent = {"csrf": csrf, "operation": "remove", "seen": seen, "token": "t", **triple}
            assert client.post(f"/annotate/{project}/1/events", data=sent).status_code == 200
        assert "rejected" in client.get(f"/annotate/{project}/1").text
    assert [event.operation for event in store.events()] == ["remove"]
