"""The annotators' event log in SQLite: replay, edit counts, agreement, adjudication, and what may be missing."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from polyloom.core.errors import UserError, closest
from polyloom.core.files import read_text, write_text
from polyloom.methods.docre.data import Document, Triple
from polyloom.metrics.relations import edit_steps

Operation = Literal["add", "remove", "retag", "flip", "evidence", "accept", "done"]
Source = Literal["model", "kb", "human"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
ADJUDICATED = "adjudicated"
Key = tuple[int, str, int]

_TABLES = """
CREATE TABLE IF NOT EXISTS recommendations (
  document TEXT NOT NULL, head INTEGER NOT NULL, relation TEXT NOT NULL, tail INTEGER NOT NULL,
  evidence TEXT NOT NULL, score REAL NOT NULL, source TEXT NOT NULL,
  PRIMARY KEY (document, head, relation, tail));
CREATE TABLE IF NOT EXISTS events (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, user TEXT NOT NULL, document TEXT NOT NULL,
  operation TEXT NOT NULL, head INTEGER, relation TEXT, tail INTEGER, evidence TEXT NOT NULL,
  new_relation TEXT NOT NULL, source TEXT NOT NULL, milliseconds INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_document ON events (document, user, number);
"""


@dataclass(frozen=True)
class Event:
    """One thing that an annotator did.

    Attributes:
        user: the annotator.
        document: title.
        operation: `add`, `remove`, `retag` (to `new_relation`), `flip` (head and tail), `evidence` (new sentences),
            `accept` (seen and kept), or `done` (with the document).
        triple: what it was done to; None for `done`.
        new_relation: of `retag`.
        source: who proposed the triple.
        milliseconds: how long it took.
        time: Unix seconds; 0 takes the clock's when it is stored.
    """

    user: str
    document: str
    operation: Operation
    triple: Triple | None = None
    new_relation: str = ""
    source: Source = "human"
    milliseconds: int = 0
    time: float = 0.0

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise UserError(f"there is no operation {self.operation!r}.", hint=closest(self.operation, OPERATIONS))
        if (self.triple is None) != (self.operation == "done"):
            raise UserError(f"the operation {self.operation!r} has {'no' if self.triple is None else 'a'} triple.")
        if (self.operation == "retag") != bool(self.new_relation):
            raise UserError("a new relation belongs to the operation 'retag', and only to it.")
        if not self.user or not self.document:
            raise UserError("an event names its user and its document.")


class AnnotationStore:
    """The log in a SQLite file that several annotators write to at the same time; nothing in it is overwritten."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made when it does not exist."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_TABLES)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=30)
        connection.row_factory = sqlite3.Row
        try:
            with connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise UserError(f"is no annotation log ({error}).", where=str(self.path)) from error
        finally:
            connection.close()

    def recommend(self, document: str, triples: Iterable[tuple[Triple, float, Source]]) -> None:
        """Store what a document's annotators start from; what is stored already stays as it is.

        Args:
            document: title.
            triples: triple, score and who proposes it.
        """
        rows = [
            (document, t.head, t.relation, t.tail, json.dumps(t.evidence), score, source)
            for t, score, source in triples
        ]
        with self._connected() as connection:
            connection.executemany("INSERT OR IGNORE INTO recommendations VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def recommended(self, document: str) -> list[Triple]:
        """Return the document's recommendations, best first."""
        query = "SELECT * FROM recommendations WHERE document = ? ORDER BY score DESC, head, tail, relation"
        with self._connected() as connection:
            return [_triple(row) for row in connection.execute(query, (document,))]

    def append(self, event: Event) -> None:
        """Add an event to the log.

        Raises:
            UserError: it changes a triple that is not there, or adds one that is.
        """
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = self._replay(connection, event.document, event.user)
            apply_event(before, event)
            triple = event.triple
            connection.execute(
                "INSERT INTO events (time, user, document, operation, head, relation, tail, evidence, new_relation,"
                " source, milliseconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    event.time or time.time(), event.user, event.document, event.operation,
                    triple.head if triple else None, triple.relation if triple else None,
                    triple.tail if triple else None, json.dumps(triple.evidence if triple else ()),
                    event.new_relation, event.source, event.milliseconds,
                ),
            )  # fmt: skip

    def events(self, document: str = "", user: str = "") -> list[Event]:
        """Return events in their order, of one document or user where named."""
        with self._connected() as connection:
            return [_event(row) for row in _select(connection, document, user)]

    def annotators(self, document: str) -> list[str]:
        """Return who has events in the document, the adjudicator aside."""
        return sorted({event.user for event in self.events(document)} - {ADJUDICATED})

    def state(self, document: str, user: str) -> list[Triple]:
        """Return the document's triples as the annotator left them."""
        with self._connected() as connection:
            return list(self._replay(connection, document, user).values())

    def _replay(self, connection: sqlite3.Connection, document: str, user: str) -> dict[Key, Triple]:
        query = "SELECT * FROM recommendations WHERE document = ?"
        state = {key(t): t for t in map(_triple, connection.execute(query, (document,)))}
        for row in _select(connection, document, user):
            apply_event(state, _event(row))
        return state

    def adjudicate(self, document: str, decisions: Mapping[Key, bool]) -> list[Triple]:
        """Settle a document: unanimous triples are taken, disputed ones as decided; the log keeps who said what.

        Args:
            document: title.
            decisions: for each disputed triple whether it holds.

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
            self.append(Event(ADJUDICATED, document, "remove", current[k]))
        for k in sorted(chosen.keys() - current.keys()):
            self.append(Event(ADJUDICATED, document, "add", chosen[k]))
        return list(chosen.values())

    def export(self, documents: Sequence[Document], user: str = ADJUDICATED) -> list[Document]:
        """Return the documents that a user has events in, with the triples as left."""
        done = {event.document for event in self.events(user=user)}
        return [replace(d, triples=tuple(self.state(d.title, user))) for d in documents if d.title in done]

    def write_log(self, path: Path) -> None:
        """Write all events as JSON lines."""
        lines = [json.dumps(asdict(event), ensure_ascii=False) for event in self.events()]
        write_text(path, "".join(line + "\n" for line in lines))

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


def _select(connection: sqlite3.Connection, document: str, user: str) -> list[sqlite3.Row]:
    query = "SELECT * FROM events WHERE (? = '' OR document = ?) AND (? = '' OR user = ?) ORDER BY number"
    return connection.execute(query, (document, document, user, user)).fetchall()


def _triple(row: sqlite3.Row) -> Triple:
    return Triple(row["head"], row["relation"], row["tail"], tuple(json.loads(row["evidence"])))


def _event(row: sqlite3.Row) -> Event:
    triple = None if row["head"] is None else _triple(row)
    return Event(
        row["user"], row["document"], row["operation"], triple, row["new_relation"], row["source"],
        row["milliseconds"], row["time"],
    )  # fmt: skip


def key(triple: Triple) -> Key:
    """Return a triple without its evidence."""
    return (triple.head, triple.relation, triple.tail)


def apply_event(state: dict[Key, Triple], event: Event) -> None:
    """Change `state` as the event says.

    Raises:
        UserError: the event does not fit the state.
    """
    triple = event.triple
    if triple is None:
        return
    present = key(triple) in state
    if present == (event.operation == "add"):
        what = "is there already" if present else "is not there"
        raise UserError(f"the triple {key(triple)} {what}: {event.operation} cannot be done.", where=event.document)
    if event.operation == "accept":
        return
    before = state.pop(key(triple), triple)
    after = {
        "add": triple,
        "retag": replace(before, relation=event.new_relation),
        "flip": replace(before, head=before.tail, tail=before.head),
        "evidence": triple,
    }.get(event.operation)
    if after is not None:
        if key(after) in state:
            state[key(before)] = before
            raise UserError(f"the triple {key(after)} is there already.", where=event.document)
        state[key(after)] = after


@dataclass(frozen=True)
class LoggedEdits:
    """Edits of one document by one annotator: steps as made, and steps that remain when undone work cancels."""

    made: int
    remaining: int
    milliseconds: int


def edits_of_log(events: Iterable[Event]) -> LoggedEdits:
    """Count edit steps from the log alone: what was put in and taken out again remains as nothing.

    Args:
        events: of one annotator in one document.
    """
    toggled: set[Key] = set()
    made = milliseconds = 0
    for event in events:
        milliseconds += event.milliseconds
        changes: list[Key] = []
        if event.triple is not None and event.operation in ("add", "remove", "retag", "flip"):
            head, relation, tail = key(event.triple)
            changes.append((head, relation, tail))
            if event.operation == "retag":
                changes.append((head, event.new_relation, tail))
            if event.operation == "flip":
                changes.append((tail, relation, head))
        made += len(changes)
        for change in changes:
            toggled ^= {change}
    return LoggedEdits(made, len(toggled), milliseconds)


def edits_agree(store: AnnotationStore, document: str, user: str) -> bool:
    """Say whether the log's remaining edits are |Q xor G| of recommendations and final state."""
    before = {(document, *key(t)) for t in store.recommended(document)}
    after = {(document, *key(t)) for t in store.state(document, user)}
    return edits_of_log(store.events(document, user)).remaining == edit_steps(before, after)


def disputed(states: Sequence[Mapping[Key, Any]]) -> list[Key]:
    """Return the triples that some annotators have and others have not."""
    every = set().union(*states)
    return sorted(k for k in every if any(k not in state for state in states))


def triple_agreement(states: Sequence[Mapping[Key, Any]], num_possible: int) -> float:
    """Return Krippendorff's alpha (nominal) of whether each possible triple holds.

    Args:
        states: each annotator's triples over the same documents.
        num_possible: triples that could have been chosen (pairs times relations).

    Returns:
        1 for full agreement, about 0 for chance.

    Source: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability".
    """
    num_raters = len(states)
    votes = [sum(k in state for state in states) for k in set().union(*states)]
    positive = sum(votes)
    total = num_raters * num_possible
    if num_raters < 2 or positive in (0, total):
        return 1.0
    observed = sum(2 * v * (num_raters - v) for v in votes) / (num_raters - 1)
    expected = 2 * positive * (total - positive) / (total - 1)
    return 1 - observed / expected


def estimate_total(first: Iterable[Key], second: Iterable[Key]) -> float:
    """Return Chapman's capture-recapture estimate of how many true triples there are, found by neither included.

    Args:
        first: triples that one annotator found without seeing the other's.
        second: the other's.

    Source: Chapman (1951).
    """
    a, b = set(first), set(second)
    return (len(a) + 1) * (len(b) + 1) / (len(a & b) + 1) - 1
