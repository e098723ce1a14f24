"""Rooms and their cards: what exists, without importing what it needs."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from polyloom.core.config import Config
from polyloom.core.errors import UserError, closest


@dataclass(frozen=True)
class Paper:
    """A published method: its title, arXiv number, year and authors."""

    title: str
    arxiv: str
    year: int
    authors: str = ""


@dataclass(frozen=True)
class Equation:
    """One row of a room's equation map: the symbol or number, what it says, and the function that computes it."""

    name: str
    meaning: str
    function: str


@dataclass(frozen=True)
class Verb:
    """A command of a room. `config` and `run` are lazy strings `module:attribute`."""

    name: str
    summary: str
    config: str
    run: str

    def load_config(self) -> type[Config]:
        """Import and return the verb's configuration model."""
        model: type[Config] = load(self.config)
        return model


@dataclass(frozen=True)
class TourStep:
    """A room's step of the tour: the verb, and which of the tour's materials its configuration takes.

    `inputs` maps a field of the configuration to one of the tour's materials: `model` (a folder), `text` (files),
    `languages` (codes). `cpu_seconds` says roughly what the quick step takes: the tour starts the longest first.
    """

    verb: str = "study"
    inputs: dict[str, str] = field(default_factory=dict)
    cpu_seconds: float = 30.0


@dataclass(frozen=True)
class RoomCard:
    """What the command line, the docs, the studio and the tour know of a room.

    `report` names the function `Result -> list[Figure]` that draws its figures in place of the default ones; `page`
    names a function `(Result, run folder) -> str` that renders the whole page.
    """

    name: str
    title: str
    question: str
    papers: tuple[Paper, ...]
    verbs: tuple[Verb, ...]
    order: int
    equations: tuple[Equation, ...] = ()
    tour: TourStep | None = None
    report: str | None = None
    page: str | None = None

    def verb(self, name: str) -> Verb:
        """Return the verb called `name`.

        Raises:
            UserError: the room has no such verb.
        """
        for verb in self.verbs:
            if verb.name == name:
                return verb
        names = [verb.name for verb in self.verbs]
        raise UserError(f"the room {self.name!r} has no verb {name!r}.", hint=closest(name, names))


def load(target: str) -> Any:
    """Import `module:attribute` and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@cache
def rooms() -> dict[str, RoomCard]:
    """Return the cards of all rooms by name, in their order: each folder of `polyloom.methods` is one."""
    methods = importlib.import_module("polyloom.methods")
    names = [module.name for module in pkgutil.iter_modules(methods.__path__) if module.ispkg]
    cards: list[RoomCard] = [load(f"polyloom.methods.{name}:CARD") for name in names]
    return {card.name: card for card in sorted(cards, key=lambda card: (card.order, card.name))}


def card(name: str) -> RoomCard:
    """Return the card called `name`: a room's, or the tour's, which is run, resumed and reported like one.

    Raises:
        UserError: there is no such room.
    """
    if name == "tour":
        tour: RoomCard = load("polyloom.tour:CARD")
        return tour
    if name not in rooms():
        raise UserError(f"there is no room {name!r}.", hint=closest(name, rooms()))
    return rooms()[name]
