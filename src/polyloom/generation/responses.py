"""Replies kept on disk, so that a resumed run pays for none of them twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from polyloom.core.errors import UserError
from polyloom.generation.chat import ChatReply, Usage


class ResponseCache:
    """A SQLite file of replies by request key.

    Each reply is committed on its own through a write-ahead log: a killed process loses none that were stored, and
    several tasks and processes may share the file. It holds replies and token counts; neither prompts nor keys.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            UserError: it cannot be opened, or is no such cache.
        """
        self.path = path
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Replies are stored on the thread of whichever event loop the model is opened in.
            self.connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute("PRAGMA synchronous = NORMAL")
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
                )
        except UserError:
            self.connection.close()
            raise

    def get(self, key: str) -> ChatReply | None:
        """Return the stored reply, marked as cached, or None."""
        with self._explained():
            row = self.connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        stored = json.loads(row[0])
        usage = Usage(**stored["usage"]) if stored["usage"] else None
        return ChatReply(stored["text"], stored["outcome"], stored["model"], usage, num_attempts=0, cached=True)

    def put(self, key: str, reply: ChatReply) -> None:
        """Store a reply; the first one stored for a key stays."""
        kept = {
            "text": reply.text,
            "outcome": reply.outcome,
            "model": reply.model,
            "usage": asdict(reply.usage) if reply.usage else None,
        }
        with self._explained():
            self.connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, json.dumps(kept)))

    def __len__(self) -> int:
        with self._explained():
            return int(self.connection.execute("SELECT count(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the reply cache cannot be used ({error}).",
                where=str(self.path),
                hint="Free some space if the disk is full; otherwise move the file away or name another.",
            ) from error
