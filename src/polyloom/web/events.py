"""Server-sent events: what changed, sent to every page that looks, and computed once for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from starlette.responses import StreamingResponse

PERIOD_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
MAX_KEPT = 256


@dataclass(frozen=True)
class Snapshot:
    """What is to be seen now.

    Attributes:
        parts: pieces of pages by the name of their event.
        mark: what stands for the part of a page that is not sent: when it changes, the event `changed` says so.
        ended: whether nothing more will come.
    """

    parts: dict[str, str] = field(default_factory=dict)
    mark: str = ""
    ended: bool = False


class Hub:
    """Snapshots that all followers share; each is made at most once a period."""

    def __init__(self) -> None:
        """Start with none."""
        self.closing = asyncio.Event()
        self._kept: dict[str, tuple[float, Snapshot]] = {}
        self._making: dict[str, asyncio.Lock] = {}

    async def snapshot(self, key: str, make: Callable[[], Snapshot]) -> Snapshot:
        """Return the snapshot called `key`, made anew where it is older than a period.

        Args:
            key: what it shows, and in which language.
            make: called in a thread of its own.
        """
        async with self._making.setdefault(key, asyncio.Lock()):
            made, snapshot = self._kept.get(key, (-PERIOD_SECONDS, Snapshot()))
            if time.monotonic() - made < PERIOD_SECONDS * 0.9:
                return snapshot
            snapshot = await asyncio.to_thread(make)
            self._kept[key] = (time.monotonic(), snapshot)
        while len(self._kept) > MAX_KEPT:
            oldest = next(iter(self._kept))
            self._kept.pop(oldest)
            self._making.pop(oldest, None)
        return snapshot

    async def follow(self, key: str, make: Callable[[], Snapshot], mark: str = "") -> AsyncIterator[bytes]:
        """Yield events until the snapshot says that it ended, or the server ends.

        Args:
            key: what is followed, and in which language.
            make: makes its snapshot.
            mark: the mark of what the follower has already.
        """
        sent: dict[str, str] = {}
        beat = time.monotonic()
        while not self.closing.is_set():
            snapshot = await self.snapshot(key, make)
            for name, text in snapshot.parts.items():
                if sent.get(name) != text:
                    sent[name] = text
                    beat = time.monotonic()
                    yield event(name, text)
            if snapshot.mark != mark:
                mark = snapshot.mark
                yield event("changed", "")
            if snapshot.ended:
                yield event("ended", "")
                return
            if time.monotonic() - beat > HEARTBEAT_SECONDS:
                beat = time.monotonic()
                yield b": still here\n\n"
            try:
                await asyncio.wait_for(self.closing.wait(), PERIOD_SECONDS)
            except TimeoutError:
                continue

    def response(self, key: str, make: Callable[[], Snapshot], mark: str = "") -> StreamingResponse:
        """Return the response that follows a snapshot; arguments as `follow`."""
        return StreamingResponse(
            self.follow(key, make, mark), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )


def event(name: str, text: str) -> bytes:
    """Return one event in its form on the wire.

    Args:
        name: the event's name, a word of this program.
        text: its data; every line break starts a new line of data.
    """
    lines = "".join(f"data: {line}\n" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return f"event: {name}\n{lines}\n".encode()
