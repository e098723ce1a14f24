"""Where annotations are kept: a project of documents with their recommendations, and its log of events."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from polyloom.core.errors import UserError
from polyloom.core.files import json_lines, read_text, write_text
from polyloom.methods.docre.annotations import (
    ADJUDICATED,
    Event,
    Key,
    Recall,
    Source,
    answers,
    apply_event,
    commutes,
    disputed,
    edits_of_log,
    estimate_recall,
    key,
    questions,
    replay,
    resolve,
    unreviewed_pairs,
)
from polyloom.methods.docre.data import Defects, Document, Triple, document_json, parse_document
from polyloom.metrics.relations import edit_steps
from polyloom.runs.store import Conflict, Entry, EventStore, Stream

KIND = "docre"
PROJECT = "docre"
QUESTIONS_A_DOCUMENT = 5
# Every tenth document can be left without recommendations, to see what annotators find on their own.
BLIND_EVERY = 10
Proposal = tuple[Triple, float, Source]


class AnnotationStore:
    """One project of annotations in a store that several annotators write to at the same time."""

    def __init__(self, store: EventStore | Path | str, project: str = PROJECT) -> None:
        """Open a project.

        Args:
            store: an open one, a file, or `postgresql://user@host/database`.
            project: its identity; events of a project that has no documents are kept too.
        """
        self.store = store if isinstance(store, EventStore) else EventStore(store)
        self.project = project
        if not isinstance(store, EventStore) and "://" not in str(store):
            _adopt_old_log(Path(store), self)

    def create(self, title: str, documents: Sequence[Document], about: Mapping[str, Any]) -> None:
        """Store the project's documents, once.

        Args:
            title: as people see it.
            documents: what is annotated.
            about: where they come from, as JSON can hold it.

        Raises:
            UserError: two documents of one title, by which events are keyed.
        """
        items = [(document.title, document_json(replace(document, triples=None))) for document in documents]
        self.store.add_collection(self.project, KIND, title, about, items)

    def titles(self) -> list[str]:
        """Return the titles of the project's documents, in order."""
        return self.store.names(self.project)

    def document(self, title: str) -> Document:
        """Return one of the project's documents.

        Raises:
            UserError: there is none of that title.
        """
        return parse_document(self.store.item(self.project, title), 0, Defects(), title)

    def documents(self) -> list[Document]:
        """Return the project's documents, in order."""
        return [parse_document(value, 0, Defects(), name) for name, value in self.store.items(self.project)]

    def recommend(self, document: str, triples: Iterable[Proposal]) -> None:
        """Store what a document's annotators start from, before they start; what is stored already stays as it is.

        Args:
            document: title.
            triples: triple, score and who proposes it.
        """
        rows = [[*key(t), list(t.evidence), score, source] for t, score, source in triples]
        if not self.store.entries(self.project, document):
            self.store.append(Stream(self.project, document, ""), "recommend", {"triples": rows})

    def proposals(self, document: str) -> list[Proposal]:
        """Return the document's recommendations, best first, with scores and who proposed them."""
        entries = self.store.entries(self.project, document, "")
        return _proposals([row for entry in entries for row in entry.body["triples"]])

    def recommended(self, document: str) -> list[Triple]:
        """Return the document's recommendations, best first."""
        return [triple for triple, _, _ in self.proposals(document)]

    def append(self, event: Event, *, seen: int | None = None, token: str = "") -> Entry:
        """Add an event to the log; when this returns, it is on the disk.

        Args:
            event: what was done.
            seen: how many events the annotator's page showed; None does not ask.
            token: of the request; sent again, it stores nothing again.

        Raises:
            UserError: it changes a triple that is not there, adds one that is, or undoes nothing.
            Conflict: events that were not seen are about the same pair.
        """
        recommended = self.recommended(event.document)

        def check(entries: list[Entry]) -> None:
            before = [event_of(entry) for entry in entries]
            if seen is not None and not commutes(event, before, seen):
                raise Conflict(entries[seen:])
            if event.triple is None:
                resolve([*before, event])
            else:
                apply_event(replay(recommended, before), event)

        stream = Stream(self.project, event.document, event.user)
        return self.store.append(stream, event.operation, _body(event), token=token, at=event.time, check=check)

    def whole_log(self) -> tuple[dict[str, list[Proposal]], dict[tuple[str, str], list[Event]]]:
        """Return all recommendations by document, and all events by document and user, read at once."""
        proposals: dict[str, list[Proposal]] = {}
        events: dict[tuple[str, str], list[Event]] = {}
        for entry in self.store.entries(self.project):
            _, document, user = entry.stream
            if user:
                events.setdefault((document, user), []).append(event_of(entry))
            else:
                proposals[document] = _proposals(entry.body["triples"])
        return proposals, events

    def events(self, document: str = "", user: str = "") -> list[Event]:
        """Return events in their order, of one document or user where named."""
        entries = self.store.entries(self.project, document or None, user or None)
        return [event_of(entry) for entry in entries if entry.stream.author]

    def annotators(self, document: str = "") -> list[str]:
        """Return who has events in the document or project, the adjudicated whole aside."""
        return sorted({event.user for event in self.events(document)} - {ADJUDICATED})

    def state(self, document: str, user: str) -> list[Triple]:
        """Return the document's triples as the annotator left them."""
        return list(replay(self.recommended(document), self.events(document, user)).values())

    def adjudicate(self, document: str, decisions: Mapping[Key, bool], by: str = "") -> list[Triple]:
        """Settle a document: unanimous triples are taken, disputed ones as decided; the log keeps who said what.

        Args:
            document: title.
            decisions: for each disputed triple whether it holds.
            by: who decides.

        Returns:
            The settled triples.

        Raises:
            UserError: nobody annotated it, or a disputed triple is not decided.
        """
        users = self.annotators(document)
        if not users:
            raise UserError("has no annotator yet.", where=document)
        states = [{key(t): t for t in self.state(document, user)} for user in users]
        undecided = [k for k in disputed(states) if k not in decisions]
        if undecided:
            raise UserError(f"{len(undecided)} disputed triples are not decided, {undecided[0]} first.", where=document)
        union = {k: t for state in reversed(states) for k, t in state.items()}
        chosen = {k: t for k, t in union.items() if decisions.get(k, True)}
        current = {key(t): t for t in self.state(document, ADJUDICATED)}
        for k in sorted(current.keys() - chosen.keys()):
            self.append(Event(ADJUDICATED, document, "remove", current[k], by=by))
        for k in sorted(chosen.keys() - current.keys()):
            self.append(Event(ADJUDICATED, document, "add", chosen[k], by=by))
        self.append(Event(ADJUDICATED, document, "done", by=by))
        return list(chosen.values())

    def export(self, documents: Sequence[Document], user: str = ADJUDICATED) -> list[Document]:
        """Return the documents that a user has events in, with the triples as left."""
        done = {event.document for event in self.events(user=user)}
        return [replace(d, triples=tuple(self.state(d.title, user))) for d in documents if d.title in done]

    def questions(self, document: Document, user: str, count: int = QUESTIONS_A_DOCUMENT) -> list[tuple[int, int]]:
        """Return the pairs that an annotator is still to be asked about."""
        events = self.events(document.title, user)
        return questions(document.title, len(document.entities), self.recommended(document.title), events, count)

    def recall(self, user: str) -> Recall:
        """Estimate, from an annotator's answers in all documents, how much of what holds was found."""
        proposals, events = self.whole_log()
        num_yes = num_asked = num_unreviewed = num_found = 0
        for document in self.documents():
            own = events.get((document.title, user), [])
            said = answers(own)
            if not said:
                continue
            start = [triple for triple, _, _ in proposals.get(document.title, [])]
            num_unreviewed += len(unreviewed_pairs(len(document.entities), start, own))
            num_asked += len(said)
            num_yes += sum(yes for _, yes in said)
            by_question = {pair for pair, yes in said if yes}
            num_found += len({frozenset((h, t)) for h, _, t in replay(start, own)} - by_question)
        return estimate_recall(num_yes, num_asked, num_unreviewed, num_found)

    def write_log(self, path: Path) -> None:
        """Write all events as JSON lines."""
        write_text(path, log_lines(self.events()))

    def read_log(self, path: Path) -> None:
        """Append the events of a file that `write_log` wrote.

        Raises:
            UserError: a line that is no event, by its number.
        """
        for number, line in enumerate(read_text(path).splitlines(), 1):
            try:
                value = json.loads(line)
                triple = value.pop("triple")
                if triple is not None:
                    triple = Triple(triple["head"], triple["relation"], triple["tail"], tuple(triple["evidence"]))
                event = Event(**value, triple=triple)
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                raise UserError("is no event.", where=f"{path}:{number}") from error
            self.append(event)


def _proposals(rows: Iterable[Any]) -> list[Proposal]:
    best_first = sorted(rows, key=lambda row: (-row[4], row[0], row[2], row[1]))
    return [(Triple(h, r, t, tuple(evidence)), score, source) for h, r, t, evidence, score, source in best_first]


def log_lines(events: Iterable[Event]) -> str:
    """Return events as JSON lines."""
    return json_lines(map(asdict, events))


def _body(event: Event) -> dict[str, Any]:
    triple = event.triple and [*key(event.triple), list(event.triple.evidence)]
    kept = {name: getattr(event, name) for name in ("new_relation", "source", "milliseconds", "by")}
    return {"triple": triple, **kept}


def event_of(entry: Entry) -> Event:
    """Return an entry of the log as the annotator's event."""
    body = dict(entry.body)
    row = body.pop("triple")
    triple = None if row is None else Triple(row[0], row[1], row[2], tuple(row[3]))
    return Event(entry.stream.author, entry.stream.item, entry.kind, triple, time=entry.time, **body)  # type: ignore[arg-type]


def edits_agree(store: AnnotationStore, document: str, user: str) -> bool:
    """Say whether the log's remaining edits are |Q xor G| of recommendations and final state."""
    before = {(document, *key(t)) for t in store.recommended(document)}
    after = {(document, *key(t)) for t in store.state(document, user)}
    return edits_of_log(store.events(document, user)).remaining == edit_steps(before, after)


def _adopt_old_log(path: Path, store: AnnotationStore) -> None:
    """Take over the events of a file that an older Polyloom wrote; its tables stay there under other names."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"recommendations", "events"} <= tables:
            return
        proposals: dict[str, list[Proposal]] = {}
        for row in connection.execute("SELECT * FROM recommendations"):
            proposals.setdefault(row["document"], []).append((_old_triple(row), row["score"], row["source"]))
        for document, triples in proposals.items():
            store.recommend(document, triples)
        for row in connection.execute("SELECT * FROM events ORDER BY number"):
            triple = None if row["head"] is None else _old_triple(row)
            event = Event(
                row["user"], row["document"], row["operation"], triple, row["new_relation"], row["source"],
                row["milliseconds"], row["time"],
            )  # fmt: skip
            store.append(event, token=f"old log {row['number']}")
        with connection:
            for table in ("recommendations", "events"):
                connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")


def _old_triple(row: sqlite3.Row) -> Triple:
    return Triple(row["head"], row["relation"], row["tail"], tuple(json.loads(row["evidence"])))
