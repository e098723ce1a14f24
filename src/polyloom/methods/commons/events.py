"""Typed events. The log of a run is its product: everything else is computed from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from polyloom.core.errors import UserError
from polyloom.core.files import read_text

SCHEMA = 1
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: int


class Start(_Event):
    """The first event of a run: all that defines it."""

    type: Literal["start"]
    schema_version: int
    scenario: str
    language: str
    arm: str
    rules: str
    calls: str
    report: str
    seed: int
    agents: list[str]
    minds: list[str]
    resource: dict[str, Any]
    settings: dict[str, Any]


class Month(_Event):
    """A month begins; `hint` is the number that notes show."""

    type: Literal["month"]
    month: int
    stock: int
    threshold: int
    hint: int
    agents: int


class Note(_Event):
    """Something put into an agent's mind: an arm's note, a trait, an agreement."""

    type: Literal["note"]
    month: int
    agent: int
    text: str


class Call(_Event):
    """One question to a mind, as asked, and its answer as given."""

    type: Literal["call"]
    month: int
    phase: Literal["strategy", "harvest", "discussion", "reflection"]
    agent: int | None
    purpose: str
    prompt: str
    reply: str
    outcome: str
    shortened: int = 0


class Harvest(_Event):
    """What one agent asked for and obtained; `status` is how its reply was read."""

    type: Literal["harvest"]
    month: int
    agent: int
    ask: int
    obtained: int
    status: str
    raw: float | None = None
    defaulted: bool = False


class Fine(_Event):
    """A fine for taking more than the norm."""

    type: Literal["fine"]
    month: int
    agent: int
    amount: int


class Report(_Event):
    """Who was told to have taken what."""

    type: Literal["report"]
    month: int
    agent: int | None
    text: str


class Utter(_Event):
    """An agent's turn; `ended` and `next` as it said them, None where it did not."""

    type: Literal["utterance"]
    month: int
    agent: int
    text: str
    ended: bool | None
    next: int | None


class Agreement(_Event):
    """The talk in a sentence, and the limit per person that came out of it."""

    type: Literal["agreement"]
    month: int
    summary: str
    limit: int | None


class Thought(_Event):
    """A thought that an agent keeps."""

    type: Literal["thought"]
    month: int
    agent: int
    kind: Literal["plan", "fact", "insight"]
    text: str
    importance: int
    rated: bool


class Election(_Event):
    """The vote for a leader."""

    type: Literal["election"]
    month: int
    votes: list[int | None]
    leader: int


class MonthEnd(_Event):
    """The stock after the harvest and next month's."""

    type: Literal["month_end"]
    month: int
    rest: int
    next_stock: int
    collapsed: bool


class End(_Event):
    """The last event of a complete run."""

    type: Literal["end"]
    months: int
    collapsed: bool
    decisions: int
    defaulted: int


Event = Annotated[
    Start | Month | Note | Call | Harvest | Fine | Report | Utter | Agreement | Thought | Election | MonthEnd | End,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Event)


def encode_events(events: Iterable[dict[str, Any]]) -> str:
    """Write events, one compact JSON object a line."""
    return "".join(f"{_encode(event)}\n" for event in events)


def read_events(path: Path) -> list[Any]:
    """Read a log.

    Args:
        path: a file of events; a last line that was cut in the middle is left out.

    Raises:
        UserError: unreadable, or a line that is no event; the line is named.
    """
    lines = read_text(path).split("\n")
    whole = lines[:-1] if lines and lines[-1] else lines
    events = []
    for number, line in enumerate(whole, start=1):
        if not line.strip():
            continue
        try:
            events.append(_ADAPTER.validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UserError(f"is no event of the commons: {place} {first['msg']}.", where=f"{path}:{number}") from None
    return events


def split_runs(events: Sequence[Any]) -> list[list[Any]]:
    """Return the events of each run of a log, in order of their numbers."""
    runs: dict[int, list[Any]] = {}
    for event in events:
        runs.setdefault(event.run, []).append(event)
    return [runs[number] for number in sorted(runs)]
