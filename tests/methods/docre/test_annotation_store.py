from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyloom.core.errors import UserError
from polyloom.methods.docre.annotation_store import AnnotationStore, Proposal, edits_agree
from polyloom.methods.docre.annotations import Event, Key, apply_event, edits_of_log, key, replay, resolve
from polyloom.methods.docre.data import Document, Mention, Triple, load_documents
from polyloom.methods.docre.desk import candidates, num_reviewed, segments
from polyloom.methods.docre.pipeline import recall_by_questions
from polyloom.metrics.relations import Prediction, edit_steps
from polyloom.runs.store import Conflict

A, B, C = Triple(0, "P", 1, (0,)), Triple(1, "P", 2), Triple(2, "Q", 0)
PROPOSALS: list[Proposal] = [(A, 2.0, "model"), (B, 1.0, "kb")]


def open_store(target: str) -> AnnotationStore:
    store = AnnotationStore(target, "project")
    store.recommend("d", PROPOSALS)
    return store


def test_undo_and_redo_are_events(store_target: str) -> None:
    store = open_store(store_target)
    start = store.state("d", "ann")
    for event in (Event("ann", "d", "remove", A), Event("ann", "d", "add", C), Event("ann", "d", "undo")):
        store.append(event)
    assert {key(t) for t in store.state("d", "ann")} == {key(B)}
    store.append(Event("ann", "d", "undo"))
    assert store.state("d", "ann") == start
    with pytest.raises(UserError, match="nothing to undo"):
        store.append(Event("ann", "d", "undo"))
    store.append(Event("ann", "d", "redo"))
    store.append(Event("ann", "d", "redo"))
    assert {key(t) for t in store.state("d", "ann")} == {key(B), key(C)}
    with pytest.raises(UserError, match="nothing to redo"):
        store.append(Event("ann", "d", "redo"))
    edits = edits_of_log(store.events("d", "ann"))
    assert (edits.made, edits.remaining) == (6, 2)
    assert edits_agree(store, "d", "ann")


def test_a_new_event_forgets_what_could_be_redone(store_target: str) -> None:
    store = open_store(store_target)
    for event in (Event("ann", "d", "remove", A), Event("ann", "d", "undo"), Event("ann", "d", "accept", B)):
        store.append(event)
    with pytest.raises(UserError, match="nothing to redo"):
        store.append(Event("ann", "d", "redo"))


def test_two_pages_of_one_annotator_never_lose_an_edit(store_target: str) -> None:
    store = open_store(store_target)
    store.append(Event("ann", "d", "accept", A), seen=0, token="1")
    store.append(Event("ann", "d", "remove", B), seen=0, token="2")  # of another pair: it follows
    with pytest.raises(Conflict) as caught:
        store.append(Event("ann", "d", "flip", A), seen=0, token="3")
    assert [entry.kind for entry in caught.value.unseen] == ["accept", "remove"]
    store.append(Event("ann", "d", "flip", A), seen=2, token="4")
    with pytest.raises(Conflict):
        store.append(Event("ann", "d", "undo"), seen=2, token="5")
    with pytest.raises(Conflict):  # the same pair, the other way round
        store.append(Event("ann", "d", "remove", Triple(1, "P", 0)), seen=2, token="6")
    store.append(Event("ann", "d", "done"), seen=0, token="7")
    assert store.append(Event("ann", "d", "done"), seen=4, token="7").version == 4
    assert len(store.events("d", "ann")) == 4


def test_projects_are_apart_and_hold_their_documents(store_target: str) -> None:
    documents = load_documents("world", language="ja", num_documents=3)[0]
    one, two = AnnotationStore(store_target, "one"), AnnotationStore(store_target, "two")
    one.create("one", documents, {})
    assert one.titles() == [d.title for d in documents]
    assert [d.sentences for d in one.documents()] == [d.sentences for d in documents]
    assert one.document(documents[1].title).entities == documents[1].entities
    assert one.document(documents[1].title).triples is None
    title = documents[0].title
    one.recommend(title, PROPOSALS)
    one.recommend(title, [(C, 1.0, "model")])
    assert one.proposals(title) == PROPOSALS
    assert two.proposals(title) == []
    one.append(Event("ann", title, "accept", A))
    assert one.annotators() == ["ann"]
    assert two.annotators() == []
    with pytest.raises(UserError, match="share a name"):
        AnnotationStore(store_target, "three").create("three", [documents[0], documents[0]], {})


def test_who_settled_a_document_is_kept(store_target: str) -> None:
    store = open_store(store_target)
    store.append(Event("ann", "d", "accept", A))
    store.append(Event("bob", "d", "remove", A))
    assert store.adjudicate("d", {key(A): False}, by="eve") == [B]
    assert {event.by for event in store.events("d", "adjudicated")} == {"eve"}
    assert sorted(map(key, store.adjudicate("d", {key(A): True}, by="fay"))) == [key(A), key(B)]
    assert {key(t) for t in store.state("d", "adjudicated")} == {key(A), key(B)}
    assert store.annotators("d") == ["ann", "bob"]


OLD_TABLES = """
CREATE TABLE recommendations (document TEXT NOT NULL, head INTEGER NOT NULL, relation TEXT NOT NULL,
  tail INTEGER NOT NULL, evidence TEXT NOT NULL, score REAL NOT NULL, source TEXT NOT NULL);
CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, user TEXT NOT NULL,
  document TEXT NOT NULL, operation TEXT NOT NULL, head INTEGER, relation TEXT, tail INTEGER, evidence TEXT NOT NULL,
  new_relation TEXT NOT NULL, source TEXT NOT NULL, milliseconds INTEGER NOT NULL);
INSERT INTO recommendations VALUES ('d', 0, 'P', 1, '[0]', 2.0, 'model');
INSERT INTO events VALUES (1, 5.5, 'ann', 'd', 'retag', 0, 'P', 1, '[0]', 'R', 'human', 70);
INSERT INTO events VALUES (2, 6.5, 'ann', 'd', 'done', NULL, NULL, NULL, '[]', '', 'human', 0);
"""


def test_a_log_of_an_older_version_is_taken_over_once(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(OLD_TABLES)
    for _ in range(2):
        store = AnnotationStore(path)
        assert store.events() == [
            Event("ann", "d", "retag", A, "R", milliseconds=70, time=5.5), Event("ann", "d", "done", time=6.5)
        ]  # fmt: skip
        assert store.state("d", "ann") == [Triple(0, "R", 1, (0,))]


TRIPLES = st.builds(Triple, st.integers(0, 2), st.sampled_from(["P", "Q"]), st.integers(0, 2), st.just(()))
STEPS = st.tuples(st.sampled_from(["add", "remove", "retag", "flip", "evidence", "accept", "undo", "redo"]), TRIPLES)


def tried(steps: list[tuple[Any, Triple]]) -> list[Event]:
    """Return the steps that fit, one after the other."""
    events: list[Event] = []
    for operation, triple in steps:
        event = Event("a", "d", operation, None if operation in ("undo", "redo") else triple,
                      ("Q" if triple.relation == "P" else "P") if operation == "retag" else "")  # fmt: skip
        try:
            if event.triple is None:
                resolve([*events, event])
            else:
                apply_event(replay([A, B], events), event)
        except UserError:
            continue
        events.append(event)
    return events


@given(st.lists(STEPS, max_size=30))
def test_the_desk_shows_the_state_and_edits_are_its_distance(steps: list[tuple[Any, Triple]]) -> None:
    events = tried(steps)
    rows = candidates(PROPOSALS, events)
    state = replay([A, B], events)
    shown: dict[Key, Triple] = {key(row.triple): row.triple for row in rows if row.status != "rejected"}
    assert shown == state
    assert len(shown) == sum(row.status != "rejected" for row in rows)
    distance = edit_steps({("d", *key(t)) for t in (A, B)}, {("d", *k) for k in state})
    assert edits_of_log(events).remaining == distance
    assert [row.score for row in rows if row.score is not None] == [2.0, 1.0]


def test_the_desk_says_where_each_candidate_stands() -> None:
    events = [Event("a", "d", "retag", A, "R"), Event("a", "d", "remove", B), Event("a", "d", "add", C)]
    rows = candidates(PROPOSALS, events)
    assert [row.status for row in rows] == ["changed", "rejected", "added"]
    assert num_reviewed(rows) == 3
    assert num_reviewed(candidates(PROPOSALS, [])) == 0
    assert rows[0].before == A
    back = candidates(PROPOSALS, [*events, Event("a", "d", "add", B), Event("a", "d", "remove", C)])
    assert [row.status for row in back] == ["changed", "accepted"]


@pytest.mark.parametrize("joiner", ["", " "])
def test_segments_give_the_text_back_and_share_overlaps(joiner: str) -> None:
    tokens = ("東", "京", "都", "庁") if not joiner else ("New", "York", "City", "Hall")
    mentions = ((Mention("x", 0, 0, 3, "LOC"),), (Mention("y", 0, 1, 4, "ORG"),), (Mention("z", 0, 1, 1, "LOC"),))
    document = Document("d", (tokens,), mentions, None)
    found = segments(document, 0)
    assert "".join(one.text for one in found) == joiner.join(tokens)
    assert [one.entities for one in found if one.entities] == [(0,), (0, 1), (1,)]


@pytest.mark.parametrize("language", ["ja", "ar", "de"])
def test_segments_cover_every_mention_of_world_documents(language: str) -> None:
    for document in load_documents("world", language=language, num_documents=4)[0]:
        for number in range(len(document.sentences)):
            found = segments(document, number)
            assert "".join(one.text for one in found) == document.sentence_text(number)
            expected = {i for i, entity in enumerate(document.entities) for m in entity if m.sentence == number}
            assert {i for one in found for i in one.entities} == expected


def test_recommend_fills_a_store_that_the_studio_opens(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    done = cli("docre", "recommend", "--num-documents", 3, "--num-train-documents", 20, "--store", path, "--run", "r")
    assert done.exit_code == 0, done.stderr
    store = AnnotationStore(path, "r")
    assert len(store.titles()) == 3
    assert any(store.proposals(title) for title in store.titles())


def test_random_pairs_are_asked_about_and_measure_recall(tmp_path: Path) -> None:
    documents = load_documents("world", num_documents=3)[0]
    store = AnnotationStore(tmp_path / "log.sqlite")
    store.create("p", documents, {})
    document = documents[0]
    known = (document.triples or ())[0]
    store.recommend(document.title, [(known, 1.0, "model")])
    asked = store.questions(document, "ann")
    assert len(asked) == 5
    assert asked == store.questions(document, "bob")
    assert (min(known.head, known.tail), max(known.head, known.tail)) not in asked
    store.append(Event("ann", document.title, "none", Triple(*_named(asked[0]))))
    store.append(Event("ann", document.title, "add", Triple(asked[1][0], "P17", asked[1][1]), source="question"))
    assert store.questions(document, "ann") == asked[2:]
    assert edits_agree(store, document.title, "ann")
    count = len(document.entities)
    recall, pairs = store.recall("ann"), count * (count - 1) // 2 - 1
    assert (recall.num_asked, recall.num_yes, recall.num_found) == (2, 1, 1)
    assert recall.missing.value == pytest.approx(pairs / 2)
    assert recall.recall.value == pytest.approx(1 / (1 + pairs / 2))
    assert recall.recall.low < recall.recall.value < recall.recall.high
    store.append(Event("ann", document.title, "undo"))
    assert store.questions(document, "ann") == asked[1:]
    assert store.recall("nobody").num_asked == 0


def _named(pair: tuple[int, int]) -> tuple[int, str, int]:
    return pair[0], "Na", pair[1]


def test_questions_estimate_the_recall_that_is_known() -> None:
    documents = load_documents("world", num_documents=40)[0]
    half = [Prediction(d.title, t.head, t.relation, t.tail) for d in documents for t in (d.triples or ())[::3]]
    found, truth = recall_by_questions(documents, half, 20)
    assert found.recall.low <= truth <= found.recall.high
