"""A logged run as a story to look at: month by month what was there, who took what, who said what, and every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polyloom.core.errors import UserError
from polyloom.methods.commons.events import (
    Agreement,
    Call,
    Election,
    Fine,
    Harvest,
    Month,
    MonthEnd,
    Note,
    Report,
    Start,
    Thought,
    Utter,
)


@dataclass(frozen=True)
class Catch:
    """What one agent asked for and obtained, and whether that is over its sustainable share."""

    agent: int
    ask: int
    obtained: int
    status: str
    defaulted: bool
    over: bool


@dataclass
class Chapter:
    """One month of a run.

    Attributes:
        number: from 1.
        stock: at its start.
        share: each agent's sustainable share.
        rest: what was left after the harvest; None where the log ends before.
        next_stock: at the start of the next month.
        collapsed: whether the resource collapsed in it.
        catches: one for each agent, in the log's order.
        words: reports, utterances and agreements, in order.
        thoughts: notes, fines, votes and kept thoughts, in order.
        calls: every prompt and reply, in order.
    """

    number: int
    stock: int
    share: int
    rest: int | None = None
    next_stock: int | None = None
    collapsed: bool = False
    catches: list[Catch] = field(default_factory=list)
    words: list[Report | Utter | Agreement] = field(default_factory=list)
    thoughts: list[Note | Fine | Election | Thought] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def taken(self) -> int:
        """What all agents obtained together."""
        return sum(catch.obtained for catch in self.catches)


@dataclass(frozen=True)
class Story:
    """A run: its first event, its months, and whether it was played to its end."""

    start: Start
    chapters: list[Chapter]
    complete: bool


def tell(events: Sequence[Any]) -> Story:
    """Arrange the events of one run by month.

    Args:
        events: of one run, in order.

    Raises:
        UserError: they do not begin with the run's start, or hold no month.
    """
    if not events or not isinstance(events[0], Start):
        raise UserError("does not begin with a start event.", where="the log", hint="It was cut at its beginning.")
    start: Start = events[0]
    chapters: list[Chapter] = []
    removes = start.resource.get("sense") == "remove"
    for event in events[1:]:
        if isinstance(event, Month):
            chapters.append(Chapter(event.month + 1, event.stock, event.threshold))
        elif chapters:
            _add(chapters[-1], event, removes=removes)
    if not chapters:
        raise UserError("holds no month.", where="the log")
    return Story(start, chapters, complete=events[-1].type == "end")


def _add(chapter: Chapter, event: Any, *, removes: bool) -> None:
    if isinstance(event, Harvest):
        over = event.obtained < chapter.share if removes else event.obtained > chapter.share
        chapter.catches.append(Catch(event.agent, event.ask, event.obtained, event.status, event.defaulted, over))
    elif isinstance(event, Report | Utter | Agreement):
        chapter.words.append(event)
    elif isinstance(event, Note | Fine | Election | Thought):
        chapter.thoughts.append(event)
    elif isinstance(event, Call):
        chapter.calls.append(event)
    elif isinstance(event, MonthEnd):
        chapter.rest, chapter.next_stock, chapter.collapsed = event.rest, event.next_stock, event.collapsed
