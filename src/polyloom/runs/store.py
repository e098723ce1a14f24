"""What people do in the studio: collections of items, and an append-only log of what each author did to an item.

One schema in a SQLite file (WAL, each event on the disk before `append` returns) or in PostgreSQL, for teams. Nothing
in the log is overwritten or deleted.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from polyloom.core.errors import MissingExtra, PolyloomError, UserError

STORE_FILE = "studio.sqlite3"
MAX_NAME_CHARACTERS = 500
POSTGRES = ("postgresql://", "postgres://")
# Any fixed number: who migrates a PostgreSQL schema holds this lock.
_MIGRATION_LOCK = 7059_1266
# A migration is never edited once it is out: a new one is appended. `{identity}` is each database's own counter.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE collections (id TEXT PRIMARY KEY, kind TEXT NOT NULL, title TEXT NOT NULL,"
        " created DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)",
        "CREATE TABLE items (collection TEXT NOT NULL REFERENCES collections (id), position INTEGER NOT NULL,"
        " name TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (collection, position), UNIQUE (collection, name))",
        "CREATE TABLE entries (number {identity}, time DOUBLE PRECISION NOT NULL, collection TEXT NOT NULL,"
        " item TEXT NOT NULL, author TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,"
        " UNIQUE (collection, item, author, version))",
    ),
    # A request that is sent again after a lost answer carries the same token, and is not stored twice.
    (
        "ALTER TABLE entries ADD COLUMN token TEXT",
        "CREATE UNIQUE INDEX entries_by_token ON entries (token)",
    ),
)

Execute = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]


class Stream(NamedTuple):
    """Where events are appended: what one author did to one item of a collection."""

    collection: str
    item: str
    author: str


class Entry(NamedTuple):
    """One stored event; `version` counts from 1 within its stream, `number` over the whole store."""

    number: int
    time: float
    stream: Stream
    version: int
    kind: str
    body: dict[str, Any]


class Collection(NamedTuple):
    """A set of items that people work on; `body` says where it comes from."""

    id: str
    kind: str
    title: str
    created: float
    body: dict[str, Any]


class Conflict(PolyloomError):
    """Somebody appended to the stream what the author had not seen; nothing was stored."""

    def __init__(self, unseen: Sequence[Entry]) -> None:
        """Keep what the author had not seen."""
        super().__init__("was changed elsewhere in the meantime.", where=unseen[0].stream.item)
        self.unseen = list(unseen)


def refuse_unseen(entries: Sequence[Entry], seen: int | None) -> None:
    """Refuse an event whose author had seen fewer than all events of the stream.

    Args:
        entries: of the stream.
        seen: the version that the author had before the eyes; None does not ask.

    Raises:
        Conflict: with the unseen events.
    """
    if seen is not None and len(entries) > seen:
        raise Conflict(entries[seen:])


class EventStore:
    """Collections, items and the log, in a SQLite file or a PostgreSQL database that several people share."""

    def __init__(self, target: Path | str) -> None:
        """Open the store, make it when it does not exist, and bring its schema up to date.

        Args:
            target: a file, `sqlite:///path` or `postgresql://user@host/database`.

        Raises:
            UserError: no database there, or one of a newer Polyloom.
        """
        self.target = str(target).removeprefix("sqlite:///")
        self._open = _postgres if self.target.startswith(POSTGRES) else _sqlite
        if self._open is _sqlite and "://" in self.target:
            raise UserError("is no store.", where=place(self.target), hint="Give a file or postgresql://host/database.")
        with self._transaction(write=True) as execute:
            _migrate(execute, place(self.target), postgres=self._open is _postgres)

    def _transaction(self, *, write: bool = False) -> AbstractContextManager[Execute]:
        return self._open(self.target, write)

    def _lock(self, execute: Execute, name: str) -> None:
        """Let one transaction at a time past here; SQLite's writers wait for each other anyway."""
        if self._open is _postgres:
            execute("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", (name,))

    def add_collection(
        self, id: str, kind: str, title: str, body: Mapping[str, Any], items: Iterable[tuple[str, Any]]
    ) -> None:
        """Store a collection with its items; one that is there stays as it is.

        Args:
            id: its identity.
            kind: of what it is a collection.
            title: as people see it.
            body: where it comes from.
            items: name and JSON value of each, in order; names are unique.

        Raises:
            UserError: a name that is used twice or cannot be stored.
        """
        rows = [(id, position, plain(name), json.dumps(value)) for position, (name, value) in enumerate(items)]
        if repeated := len(rows) - len({row[2] for row in rows}):
            raise UserError(f"{repeated} items share a name with another.", where=title, hint="Give each its own.")
        with self._transaction(write=True) as execute:
            self._lock(execute, id)
            if execute("SELECT 1 FROM collections WHERE id = ?", (id,)):
                return
            head = (plain(id), kind, plain(title), time.time(), json.dumps(body))
            execute("INSERT INTO collections (id, kind, title, created, body) VALUES (?, ?, ?, ?, ?)", head)
            for row in rows:
                execute("INSERT INTO items (collection, position, name, body) VALUES (?, ?, ?, ?)", row)

    def collections(self, kind: str) -> list[Collection]:
        """Return the collections of a kind, newest first."""
        query = "SELECT id, kind, title, created, body FROM collections WHERE kind = ? ORDER BY created DESC, id"
        with self._transaction() as execute:
            return [_collection(row) for row in execute(query, (kind,))]

    def collection(self, id: str, kind: str) -> Collection:
        """Return one collection.

        Raises:
            UserError: there is none.
        """
        query = "SELECT id, kind, title, created, body FROM collections WHERE id = ? AND kind = ?"
        with self._transaction() as execute:
            for row in execute(query, (id, kind)):
                return _collection(row)
        raise UserError(f"there is no collection {id!r}.", hint="It may be in another store.")

    def names(self, collection: str) -> list[str]:
        """Return the names of a collection's items, in order."""
        query = "SELECT name FROM items WHERE collection = ? ORDER BY position"
        with self._transaction() as execute:
            return [row[0] for row in execute(query, (collection,))]

    def item(self, collection: str, name: str) -> Any:
        """Return the value of an item.

        Raises:
            UserError: there is none.
        """
        with self._transaction() as execute:
            for row in execute("SELECT body FROM items WHERE collection = ? AND name = ?", (collection, name)):
                return json.loads(row[0])
        raise UserError(f"there is no item {name!r}.", where=collection)

    def items(self, collection: str) -> list[tuple[str, Any]]:
        """Return names and values of a collection's items, in order."""
        query = "SELECT name, body FROM items WHERE collection = ? ORDER BY position"
        with self._transaction() as execute:
            return [(row[0], json.loads(row[1])) for row in execute(query, (collection,))]

    def append(
        self,
        stream: Stream,
        kind: str,
        body: Mapping[str, Any],
        *,
        token: str = "",
        at: float = 0.0,
        check: Callable[[list[Entry]], None] = lambda entries: None,
    ) -> Entry:
        """Append an event; when this returns, it is on the disk.

        Args:
            stream: where.
            kind: what happened.
            body: its particulars, as JSON can hold them.
            token: of the request; an event that came with the same token is returned in place of a second one.
            at: Unix seconds; 0 takes the clock's.
            check: called with the stream's events while nobody else can append; raises what refuses the event.

        Raises:
            PolyloomError: what `check` raises, and a database that cannot be written.
        """
        where = tuple(plain(part) for part in stream)
        with self._transaction(write=True) as execute:
            self._lock(execute, json.dumps(where))
            if token and (known := _read(execute, "token = ?", (plain(token),))):
                return known[0]
            before = _read(execute, "collection = ? AND item = ? AND author = ?", where)
            check(before)
            values = (at or time.time(), *where, len(before) + 1, kind, json.dumps(body), token or None)
            execute(
                "INSERT INTO entries (time, collection, item, author, version, kind, body, token)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            return _read(execute, "collection = ? AND item = ? AND author = ? AND version = ?", values[1:5])[0]

    def entries(self, collection: str, item: str | None = None, author: str | None = None) -> list[Entry]:
        """Return events in their order, of one item or author where named."""
        conditions, values = ["collection = ?"], [collection]
        for column, value in (("item", item), ("author", author)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        with self._transaction() as execute:
            return _read(execute, " AND ".join(conditions), values)


def _collection(row: Sequence[Any]) -> Collection:
    return Collection(row[0], row[1], row[2], row[3], json.loads(row[4]))


def _read(execute: Execute, condition: str, values: Sequence[Any]) -> list[Entry]:
    columns = "number, time, collection, item, author, version, kind, body"
    rows = execute(f"SELECT {columns} FROM entries WHERE {condition} ORDER BY number", values)
    return [
        Entry(n, at, Stream(c, i, a), version, kind, json.loads(body)) for n, at, c, i, a, version, kind, body in rows
    ]


def plain(name: str) -> str:
    """Return a name that both databases can hold.

    Raises:
        UserError: too long, or with characters that are no text.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        raise UserError(f"a name has at most {MAX_NAME_CHARACTERS} characters.", where=name[:40] + "...")
    if "\0" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError("holds characters that are no text.", where=ascii(name[:60]))
    return name


def place(target: str) -> str:
    """Return a store's address as messages show it: without user and password."""
    if "://" not in target:
        return target
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _migrate(execute: Execute, where: str, *, postgres: bool) -> None:
    if postgres:
        execute("SELECT pg_advisory_xact_lock(?)", (_MIGRATION_LOCK,))
    execute("CREATE TABLE IF NOT EXISTS store_version (version INTEGER NOT NULL)", ())
    found = execute("SELECT version FROM store_version", ())
    version = found[0][0] if found else 0
    if version > len(MIGRATIONS):
        what = f"is of a newer Polyloom (store version {version}; this one reads {len(MIGRATIONS)})."
        raise UserError(what, where=where, hint="Upgrade Polyloom to open it.")
    if version == len(MIGRATIONS):
        return
    kind = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY" if postgres else "INTEGER PRIMARY KEY AUTOINCREMENT"
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            execute(statement.format(identity=kind), ())
    execute("DELETE FROM store_version", ())
    execute("INSERT INTO store_version VALUES (?)", (len(MIGRATIONS),))


@contextmanager
def _sqlite(target: str, write: bool) -> Iterator[Execute]:
    path = Path(target)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield lambda sql, values: connection.execute(sql, values).fetchall()
            connection.execute("COMMIT")
        finally:
            connection.close()
    except (sqlite3.DatabaseError, OSError) as error:
        raise UserError(f"is no store that can be used ({error}).", where=target) from error


@contextmanager
def _postgres(target: str, write: bool) -> Iterator[Execute]:
    try:
        import psycopg
    except ImportError as error:
        raise MissingExtra("psycopg", extra="team") from error
    try:
        with psycopg.connect(target, connect_timeout=10) as connection:

            def execute(sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
                # Only fixed statements of this module come here; values travel apart from them.
                cursor = connection.execute(sql.replace("?", "%s").encode(), values)
                return cursor.fetchall() if cursor.description else []

            yield execute
    except psycopg.Error as error:
        # The driver's message can repeat the address with its password.
        raise UserError(f"the database does not answer ({type(error).__name__}).", where=place(target)) from error
